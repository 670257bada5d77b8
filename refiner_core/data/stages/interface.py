"""What passes between the stages of a data build, and what a stage is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..triplets import Triplet

STAGES = ("pair", "select", "mask", "degrade")


class RejectedError(Exception):
    """This sample is not good enough; the message says why. The build records it and goes on."""


@dataclass(frozen=True)
class Sample:
    """A triplet in the making: each stage returns a copy with more of it.

    Attributes:
        id: unique in the build.
        seed: everything random about the sample follows from it.
        number: place in the build, from 0; sources choose their pictures by it.
        reference, target, draft, mask, reference_mask, prompt, info: as in `Triplet`, None until a
            stage has made them.
        scene: what procedural stages share in memory; never stored, made again from the seed.
    """

    id: str
    seed: int
    number: int
    reference: np.ndarray | None = None
    target: np.ndarray | None = None
    draft: np.ndarray | None = None
    mask: np.ndarray | None = None
    reference_mask: np.ndarray | None = None
    prompt: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    scene: Any = field(default=None, compare=False, repr=False)

    def rng(self, stage: str) -> np.random.Generator:
        """The stage's own random numbers: running one stage again does not move the others."""
        return np.random.default_rng([self.seed, STAGES.index(stage)])

    def noted(self, **values: Any) -> dict[str, Any]:
        """The info with more in it; dictionaries are merged."""
        merged = dict(self.info)
        for key, value in values.items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = merged[key] | value if both else value
        return merged

    def pair(self) -> tuple[np.ndarray, np.ndarray]:
        """Reference and target, once the pair stage has run."""
        assert self.reference is not None and self.target is not None, "the pair stage comes first"
        return self.reference, self.target

    def triplet(self) -> Triplet:
        """The finished sample."""
        reference, target = self.pair()
        assert self.draft is not None and self.mask is not None, "all stages must have run"
        return Triplet(
            self.id, self.draft, reference, target, self.mask, self.reference_mask, self.prompt, self.info
        )  # fmt: skip


class Stage(Protocol):
    """One stage with one back end.

    A stage is picklable (it travels to worker processes and cluster nodes) and answers the same
    sample with the same result.
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
        """JSON values that its results depend on; an interrupted build goes on only with these."""
        ...

    def __call__(self, sample: Sample) -> Sample:
        """The sample with this stage's part.

        Raises:
            RejectedError: not good enough.
            ValueError: a picture of it cannot be used; the build records both and goes on.
            ConnectionError: a server cannot be reached; the build stops, its work is kept.
        """
        ...


def sample_seed(run: int, number: int) -> int:
    """hash(run, number), 63 bits, the same on every machine."""
    digest = hashlib.blake2b(f"{run}:{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def split_of_identity(identity: str, held_out: float) -> str:
    """"train" or, for that share of all identities, "validation".

    It depends on the identity alone: two pictures of one thing never part.
    """  # fmt: skip
    digest = hashlib.blake2b(identity.encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "little") / 2**64
    return "validation" if share < held_out else "train"
