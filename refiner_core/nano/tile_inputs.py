"""What a nano that works on tiles is shown of the broken inside: its tone, but not its detail.

A small model that sees a wrong word beside the right one paints a ghost of it. So the draft's inside
is replaced by the reference's detail with the draft's low frequencies: between what the model sees
as draft and as reference lies a smooth difference, which it has to believe or not.
"""

from __future__ import annotations

from torch import Tensor

from ..images.filters import wide_blur
from ..images.masks import mask_sides

_TONE_SIGMA = 0.05  # of the region's shorter side
_LEAST_SIGMA = 3.0  # px


def with_draft_tone(draft: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """The draft with the reference's detail in its own tone inside the region.

    Args:
        draft, reference: float 1 3 h w, the reference in the draft's pose.
        mask: the region, 1 1 h w.
    """
    sigma = max(_LEAST_SIGMA, _TONE_SIGMA * mask_sides(mask)[1])
    toned = reference + wide_blur(draft - reference, sigma)
    return (draft + mask * (toned - draft)).clamp(0, 1)
