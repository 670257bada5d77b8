"""What passes between the stages of a data build, and what a stage is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .triplets import Triplet

STAGES = ("pair", "select", "mask", "degrade")


class RejectedError(Exception):
    """This sample is not good enough; the message gives the reason. The build records it and goes
    on.
    """


@dataclass(frozen=True)
class Sample:
    """A triplet in the making: each stage returns a copy with its own fields filled in.

    Pictures, masks, prompt and info are as in `Triplet`; None until a stage has made them.
    """

    id: str  # unique in the build
    seed: int  # everything random about the sample follows from it
    number: int  # position in the build, from 0; sources choose their pictures by it
    reference: np.ndarray | None = None
    target: np.ndarray | None = None
    draft: np.ndarray | None = None
    mask: np.ndarray | None = None
    reference_mask: np.ndarray | None = None
    prompt: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    # What procedural stages share in memory: never stored, but made again from the seed.
    scene: Any = field(default=None, compare=False, repr=False)

    def rng(self, stage: str) -> np.random.Generator:
        """The stage's own random numbers: running one stage again does not change the others."""
        return np.random.default_rng([self.seed, STAGES.index(stage)])

    def noted(self, **values: Any) -> dict[str, Any]:
        """The info with more values; dictionaries are merged."""
        merged = dict(self.info)
        for key, value in values.items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = merged[key] | value if both else value
        return merged

    def pair(self) -> tuple[np.ndarray, np.ndarray]:
        """Reference and target, once the pair stage has run."""
        assert self.reference is not None and self.target is not None, "the pair stage comes first"
        return self.reference, self.target

    def target_and_mask(self) -> tuple[np.ndarray, np.ndarray]:
        """Target and mask, once the mask stage has run."""
        assert self.target is not None and self.mask is not None, "the mask stage comes first"
        return self.target, self.mask

    def triplet(self) -> Triplet:
        """The finished sample."""
        reference, target = self.pair()
        assert self.draft is not None and self.mask is not None, "all stages must have run"
        return Triplet(
            self.id,
            self.draft,
            reference,
            target,
            self.mask,
            self.reference_mask,
            self.prompt,
            self.info,
        )


class BuildStage(Protocol):
    """One stage with one back end.

    A stage can be pickled (it travels to worker processes and cluster nodes), and gives the same
    result for the same sample.
    """

    @property
    def name(self) -> str:
        """One of `STAGES`."""
        ...

    @property
    def version(self) -> str:
        """Back end and number, such as "procedural/1"; the number grows when results change."""
        ...

    def settings(self) -> dict[str, Any]:
        """JSON values that the results depend on; an interrupted build resumes only with these."""
        ...

    def __call__(self, sample: Sample) -> Sample:
        """The sample with what this stage adds.

        Raises:
            RejectedError: the sample is not good enough.
            ValueError: a picture cannot be used; the build records both and goes on.
            ConnectionError: a server cannot be reached; the build stops and its work is kept.
        """
        ...


def sample_seed(build_seed: int, number: int) -> int:
    """The seed of sample `number`, a hash of 63 bits that is the same on every machine."""
    digest = hashlib.blake2b(f"{build_seed}:{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def split_of_identity(identity: str, held_out: float) -> str:
    """Return "validation" for the share `held_out` of all identities, else "train".

    It depends on the identity alone, so two pictures of one thing are never in two splits.
    """
    digest = hashlib.blake2b(identity.encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "little") / 2**64
    return "validation" if share < held_out else "train"
