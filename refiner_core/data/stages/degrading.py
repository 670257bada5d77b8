"""The degrade stage for real pictures: given drafts, or the procedural errors on the region."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..degrade import DEGRADATIONS
from .files import PairFile, fitted, read_pixels
from .interface import RejectedError, Sample
from .pasting import paste_inside
from .procedural import spoil


@dataclass(frozen=True)
class RegionDegrade:
    """One of `DEGRADATIONS` on the region, pasted with a soft edge inside the mask.

    `names` to choose from; `identity` share of right drafts; `least` mean change in the mask, of
    255.
    """

    names: tuple[str, ...] = tuple(DEGRADATIONS)
    identity: float = 0.05
    least: float = 2.0
    name: str = field(default="degrade", init=False)
    version: str = field(default="region/1", init=False)

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in DEGRADATIONS:
                raise ValueError(f"No degradation {name!r}; there are: {', '.join(DEGRADATIONS)}.")

    def settings(self) -> dict[str, Any]:
        return {"names": list(self.names), "identity": self.identity, "least": self.least}

    def __call__(self, sample: Sample) -> Sample:
        rng = sample.rng("degrade")
        _, target = sample.pair()
        assert sample.mask is not None, "the mask stage comes first"
        exact = rng.random() < self.identity
        name, strength = str(rng.choice(self.names)), round(float(rng.uniform(0, 1)), 4)
        if exact:
            note = {"name": "identity", "strength": 0.0}
            return replace(sample, draft=target.copy(), info=sample.noted(degradation=note))
        broken = spoil(target, sample.mask, name, rng, strength)
        draft = paste_inside(target, broken, sample.mask)
        change = float(np.abs(draft.astype(np.int16) - target)[sample.mask > 0].mean())
        if change < self.least:
            raise RejectedError(f"{name} changed the detail by {change:.2f} of 255 only")
        note = {"name": name, "strength": strength, "change": round(change, 3)}
        return replace(sample, draft=draft, info=sample.noted(degradation=note))


@dataclass(frozen=True)
class GivenDraft:
    """The drafts that came with the pairs.

    Outside the mask the target takes their place, exactly; how far they were apart there (mean,
    of 255) is noted, and drafts over `outside` are rejected: their mask is not where they differ.
    """

    pairs: tuple[PairFile, ...]
    outside: float = 8.0
    least: float = 1.0
    name: str = field(default="degrade", init=False)
    version: str = field(default="given/1", init=False)

    def settings(self) -> dict[str, Any]:
        return {"outside": self.outside, "least": self.least}

    def __call__(self, sample: Sample) -> Sample:
        files = self.pairs[sample.number % len(self.pairs)].files
        if "draft" not in files:
            raise ValueError("the pair has no draft picture")
        _, target = sample.pair()
        assert sample.mask is not None, "the mask stage comes first"
        given = fitted(read_pixels(files["draft"], "draft")[0], target, "draft")
        apart = np.abs(given.astype(np.int16) - target).mean(-1)
        inside = sample.mask > 0
        within, beyond = float(apart[inside].mean()), float(apart[~inside].mean())
        if within < self.least:
            raise RejectedError(f"the draft differs by {within:.2f} of 255 only in its mask")
        if beyond > self.outside:
            raise RejectedError(f"the draft differs by {beyond:.1f} of 255 outside its mask")
        note = {
            "name": "given", "strength": 1.0, "change": round(within, 3), "outside": round(beyond, 3),
        }  # fmt: skip
        draft = np.where(inside[..., None], given, target)
        return replace(sample, draft=draft, info=sample.noted(degradation=note))
