"""A part of the reward that is trained with the run: how true a sample looks (Adv-GRPO).

A linear head on frozen features learns to tell the truth from samples, once an epoch. Source: "The
Image as Its Own Reward", whose features are DINOv2's; here they are DreamSim's, or statistics of fine
detail that need no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..images.filters import blur
from ..scoring.pixels import sobel
from ..scoring.seam import edge_ring
from .dataset import Pixels
from .distributed import Processes

# Pictures B 3 H W in [0, 1] and a region 1 1 H W -> features B F of about unit size.
Features = Callable[[Tensor, Tensor], Tensor]

_SCALES = 3
_FLOOR = 1e-6  # added to mean squares: detail of a thousandth of the range counts as none
_STEPS, _RATE, _DECAY = 20, 0.05, 1e-3  # of Adam, once an epoch
_STATE = "head:"


def structural_features(images: Tensor, region: Tensor) -> Tensor:
    """How much gradient and fine detail there is, B 12: logarithms of mean squares at three scales, in
    the region and on the ring around its edge.
    """
    on = (region > 0).to(images)
    on = on if bool(on.any()) else torch.ones_like(on)
    places = torch.cat([on, edge_ring(on)], 1)
    found: list[Tensor] = []
    for _ in range(_SCALES):
        detail = (images - blur(images, 1.0)).square().mean(1)
        maps = torch.stack([sobel(images).square().mean(1), detail], 1)
        sums = torch.einsum("bmhw,xphw->bmp", maps, places)
        found.append((sums / places.sum((2, 3)).clamp_min(1e-6)).flatten(1))
        images, places = (F.avg_pool2d(x, 2, ceil_mode=True) for x in (images, places))
    return ((torch.cat(found, 1) + _FLOOR).log() + 7) / 2


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """`(mean relu(1 - D(real)) + mean relu(1 + D(fake))) / 2`; 1 where D is 0."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def accuracy(real: Tensor, fake: Tensor) -> float:
    """The share of right signs, the mean of both kinds; 0 counts as half right."""
    return float((2 + real.sign().mean() - fake.sign().mean()) / 4)


class AdversarialReward:
    """The head's value D of each sample: above 0 it looks like the truth, below 0 like a sample.

    Before the first epoch is over, all are 0. What is not finite is left out of the head's training,
    and a head that would no longer be finite stays as it was.
    """

    def __init__(self, features: Features) -> None:
        self.features = features
        self.head: Tensor | None = None  # a weight for each feature, and the bias
        self._seen: list[Tensor] = []  # rows of this epoch: the label 1 or -1, features, 1

    def _inputs(self, images: Tensor, region: Tensor) -> Tensor:
        found = self.features(images.nan_to_num(), region.to(images)).float().cpu()
        found[~torch.isfinite(images).flatten(1).all(1).cpu()] = torch.nan
        return F.pad(found, (0, 1), value=1.0)

    @torch.no_grad()
    def __call__(self, images: Tensor, pixels: Pixels) -> Tensor:
        """B values of samples of one item.

        Raises:
            ValueError: the head was trained on other features.
        """
        inputs = self._inputs(images, pixels.mask)
        head = inputs.new_zeros(inputs.shape[1]) if self.head is None else self.head
        if len(head) != inputs.shape[1]:
            raise ValueError(
                f"The reward adversarial was trained on {len(head) - 1} features, but there are "
                f"{inputs.shape[1] - 1}. Use the objective.dreamsim that the run was started with, or "
                "another --out folder."
            )
        return inputs @ head

    @torch.no_grad()
    def show(self, samples: Tensor, truth: Tensor, region: Tensor) -> None:
        """Note samples B 3 H W and the truth 1 3 H W of an item for the end of the epoch."""
        for label, images in ((-1.0, samples), (1.0, truth)):
            self._seen.append(F.pad(self._inputs(images, region), (1, 0), value=label))

    def learn(self, processes: Processes) -> dict[str, float]:
        """Train the head on what was shown since the last time, by all processes.

        Returns:
            the hinge loss and the accuracy of the head before that, on pictures new to it.
        """
        rows, self._seen = processes.gather(torch.cat(self._seen)), []
        rows = rows[torch.isfinite(rows).all(1)]
        real, fake = (rows[rows[:, 0] == label][:, 1:] for label in (1, -1))
        if not len(real) or not len(fake):
            return {}
        before = rows.new_zeros(rows.shape[1] - 1) if self.head is None else self.head
        found = {
            "adversarial/hinge": float(hinge_loss(real @ before, fake @ before)),
            "adversarial/accuracy": accuracy(real @ before, fake @ before),
        }
        head = before.clone().requires_grad_()
        optimizer = torch.optim.Adam([head], _RATE)
        for _ in range(_STEPS):
            optimizer.zero_grad()
            (hinge_loss(real @ head, fake @ head) + _DECAY * head.square().sum()).backward()
            optimizer.step()
        if bool(torch.isfinite(head).all()):
            self.head = head.detach()
        return found

    def state(self) -> dict[str, float]:
        """The head, for a checkpoint; the numbers are exact."""
        numbers = [] if self.head is None else self.head.tolist()
        return {f"{_STATE}{i}": value for i, value in enumerate(numbers)}

    def restore(self, state: Mapping[str, float]) -> dict[str, float]:
        """Continue with the head in a checkpoint's numbers; the numbers that are not its own."""
        own = [value for name, value in state.items() if name.startswith(_STATE)]
        self.head = torch.tensor(own) if own else None
        return {name: value for name, value in state.items() if not name.startswith(_STATE)}


@runtime_checkable
class LearningReward(Protocol):
    """A reward that may have a part that is trained with the run."""

    adversary: AdversarialReward | None
