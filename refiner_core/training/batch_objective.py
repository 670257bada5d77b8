"""What the objectives that learn from batches of items share: which items, in which micro-batches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

import torch

from .config import RunConfig
from .dataset import Item, epoch_batches
from .objective import Learner, Objective, Term, Update
from .rollout import derive_seed


class BatchObjective(Objective):
    """Learn from `run.batch` items per update; subclasses say what from each.

    Everything random of an item follows from (seed, step, its place in the batch), so that neither
    the number of processes nor the micro-batch changes what is learnt.

    Raises:
        ValueError: the batch cannot be split evenly over processes and micro-batches.
    """

    log_every = 10

    def __init__(self, config: RunConfig, learner: Learner) -> None:
        self.run, self.learner = config.run, learner
        config.check_processes(learner.processes.count)
        self._step = 0
        self._order: tuple[int, list[list[int]]] = (-1, [])
        self._per_epoch = len(self._epoch(0))

    @abstractmethod
    def term(self, items: Sequence[Item], places: Sequence[int], weight: float) -> Term:
        """The loss of some items at their places in the current batch, times `weight`."""

    def _epoch(self, epoch: int) -> list[list[int]]:
        return epoch_batches(self.learner.dataset.shapes, self.run.batch, self.run.seed, epoch)

    def indices(self) -> list[int]:
        """The items of the current step's batch."""
        epoch, at = divmod(self._step, self._per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, self._epoch(epoch))
        return self._order[1][at]

    def begin(self, step: int, skip: Callable[[str], None]) -> dict[str, float]:
        """Choose the batch of the step."""
        self._step = step
        return {}

    def update(self, number: int) -> Update:
        """The batch in micro-batches."""
        run, processes = self.run, self.learner.processes
        mine = range(processes.rank, run.batch, processes.count)
        micro_batches = [
            list(mine[at : at + run.micro_batch]) for at in range(0, len(mine), run.micro_batch)
        ]
        terms = [partial(self._term, places) for places in micro_batches]
        return Update(terms, terms[0], self._describe)

    def generators(self, places: Sequence[int]) -> list[torch.Generator]:
        """The source of everything random of each place in the current batch."""
        seeds = [derive_seed(self.run.seed, self._step, p) for p in places]
        return [torch.Generator().manual_seed(s) for s in seeds]

    def others(self, places: Sequence[int], count: int) -> list[list[Item]]:
        """Up to `count` items that follow each place in the current batch and are not its own.

        They follow in the whole batch, whatever the micro-batch. An item that fills up a batch a second
        time is not counted again, so there can be fewer than `count`, but equally many for every place.
        """
        indices, dataset = self.indices(), self.learner.dataset
        found: list[list[Item]] = []
        for place in places:
            following = dict.fromkeys([*indices[place + 1 :], *indices[:place]])
            chosen = [i for i in following if i != indices[place]][:count]
            found.append([dataset[i] for i in chosen])
        return found

    def _describe(self) -> str:
        ids = ", ".join(self.learner.dataset[i].id for i in self.indices()[:4])
        return f"a batch with {ids}"

    def _term(self, places: Sequence[int]) -> Term:
        batch = self.indices()
        items = [self.learner.dataset[batch[p]] for p in places]
        return self.term(items, places, len(places) / self.run.batch)
