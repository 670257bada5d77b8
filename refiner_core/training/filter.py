"""Which framed views teach a small refiner something, for recipes that align their references."""

from __future__ import annotations

import math

from torch import Tensor

from ..matching.registration import blur
from .config import DataSettings
from .dataset import Pixels

_BLUR = 2.0  # px: finer detail does not count in the agreement


def agreement(p: Pixels) -> float:
    """How far reference and truth agree over the mask once fine detail is blurred away, PSNR in dB.

    Low where the mask takes in much background, the light could not be matched, or the alignment is
    off: such a view teaches distrust of the reference.
    """
    apart = (blur(p.reference, _BLUR) - blur(p.target, _BLUR)).square() * p.mask
    return -10 * math.log10(float(apart.sum() / (3 * p.mask.sum()).clamp_min(1)) + 1e-6)


def gain(p: Pixels) -> float:
    """How much nearer to the truth the reference is than the draft over the mask, in dB.

    Where it is not, the best answer is to keep the draft; a model this small that learns both
    answers learns to mix them, and a mixture of two words reads as neither.
    """

    def error(x: Tensor) -> float:
        return float(((x - p.target).square() * p.mask).sum()) + 1e-4

    return 10 * math.log10(error(p.draft) / error(p.reference))


def check_worth(p: Pixels, data: DataSettings) -> None:
    """Refuse a view under the least agreement or gain.

    Raises:
        ValueError: which of them it misses, and by how much.
    """
    for name, least, measure in (
        ("agreement", data.least_agreement, agreement),
        ("gain", data.least_gain, gain),
    ):
        if least is not None and (value := measure(p)) < least:
            raise ValueError(f"its {name} is {value:.2f} dB, under data.least_{name} = {least:g}.")
