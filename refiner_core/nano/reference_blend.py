"""What a model too small to tell a wrong detail from a right one needs beside its pictures.

Two fields of a recipe ask for it, and both need an aligned reference: `reference_blend` weakens the
wrong detail before the model sees it, `codec_residual` gives back the fine print that a coarse codec
loses. For a recipe that asks for neither, `ReferenceBlend` changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..recipes.recipe import Recipe
from ..scoring.structural import StructuralScorer

# Structural distance of draft and reference. On 35 development scenes the search gained the same
# with any limit from 0.4 to 0.5, and less below.
_CONTRADICTION = 0.45
_SPREAD = 5.0  # the candidates' shares reach this many times as far from 1 as the recipe's
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class ReferenceBlend:
    """How much of the aligned reference goes into what the model sees, and into what it returns."""

    share: float = 0.0
    """Of the reference that is laid over the draft inside the region, 0 to 1."""
    residual: float = 0.0
    """Of what the codec loses of the reference that is added to the result, 0 to 1."""

    @classmethod
    def of(cls, recipe: Recipe, *, aligned: bool) -> ReferenceBlend:
        """What the recipe asks for; nothing where the reference is not aligned."""
        return cls(recipe.reference_blend, recipe.codec_residual) if aligned else cls()

    def shown(self, draft: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
        """The draft's crop as the model sees it.

        Args:
            draft, reference: crops of one size, float 1 3 H W, the reference aligned.
            mask: the region, 1 1 H W.
        """
        return draft if self.share == 0 else draft + self.share * mask * (reference - draft)

    def candidate(self, number: int) -> ReferenceBlend:
        """The blend of one of several candidates; 0 has the recipe's own.

        The others' shares lie evenly between 1 and five times as far from it as the recipe's, in
        steps of the golden ratio, so that any first N of them cover that range. A small model's
        output hardly depends on the noise; what it sees of the draft is what makes candidates
        differ.
        """
        span = min(1.0, _SPREAD * (1 - self.share))
        if number == 0 or self.share == 0 or span == 0:
            return self
        low = 1 - span
        position = ((self.share - low) / span + number * _GOLDEN) % 1.0
        return replace(self, share=low + span * position)

    def targets(self, draft: Tensor, reference: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The pictures that candidates are compared with, by role.

        Candidates that differ in their share are compared with both: the distance to the reference
        alone always chooses the largest share, and a reference that is a pixel or two out of place
        is a worse target than a blurred draft. But a draft that shows another detail altogether,
        and not only a damaged one, is not used as a target.
        """
        targets = {"reference": reference}
        if self.share > 0:
            distance = float(StructuralScorer().distance(draft, reference, mask))
            if distance <= _CONTRADICTION:
                targets["draft"] = draft
        return targets

    def restore(self, result: Tensor, reference: Tensor, coded: Tensor) -> Tensor:
        """The result with the codec's residual of the reference.

        Where the model has put the reference's detail at the same place, what the codec loses of
        the reference is missing from the result too.

        Args:
            result, reference: float 1 3 H W.
            coded: the reference encoded and decoded again.
        """
        lost = reference - coded.float().clamp(0, 1)
        return (result + self.residual * lost).clamp(0, 1)
