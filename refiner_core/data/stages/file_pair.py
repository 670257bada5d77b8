"""The pair stage for pairs that exist as files."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ..pair_files import PairFiles, listing_digest, picture_identity, read_pixels, shrink
from ..sample import RejectedError, Sample

_MIN_SIDE = 32  # px


@dataclass(frozen=True)
class FilePair:
    """Takes existing pairs in turn; if there are more samples than pairs, each is used again.

    Transparent pictures are composited over white, which is noted in the sample.
    """

    pairs: tuple[PairFiles, ...]
    side: int | None  # maximum square root of a picture's area in pixels; None = unchanged
    source: str  # noted in every sample
    licence: str  # noted in every sample
    name: str = field(default="pair", init=False)
    version: str = field(default="files/2", init=False)

    def settings(self) -> dict[str, Any]:
        return {"pairs": listing_digest(self.pairs), "side": self.side, "source": self.source}

    def __call__(self, sample: Sample) -> Sample:
        pair = self.pairs[sample.number % len(self.pairs)]
        for role in ("reference", "target"):
            if role not in pair.files:
                raise ValueError(f"{pair.name} has no {role} picture")
        (reference, cut_out), (target, target_cut_out) = (
            read_pixels(pair.files[r], r) for r in ("reference", "target")
        )
        reference, target = (shrink(p, self.side) for p in (reference, target))
        shortest = min(*target.shape[:2], *reference.shape[:2])
        if shortest < _MIN_SIDE:
            raise RejectedError(f"a picture has a side of {shortest} px, less than {_MIN_SIDE}")
        notes: dict[str, Any] = {
            "identity": picture_identity(pair.files["reference"]),
            "source": self.source,
            "licence": self.licence,
            **pair.info,
            "pair": pair.name,
        }
        names = (("reference", cut_out), ("target", target_cut_out))
        composited = [name for name, transparent in names if transparent]
        if composited:
            notes["composited_over_white"] = composited
        info = sample.noted(**notes)
        return replace(sample, reference=reference, target=target, prompt=pair.prompt, info=info)
