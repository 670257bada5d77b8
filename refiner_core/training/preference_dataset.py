"""Kept and rejected repairs as training items: an item is the best repair of its case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from .dataset import Dataset, Item, Shape


class NamedDataset(Dataset, Protocol):
    """Items that have names."""

    @property
    def names(self) -> Sequence[str]:
        """Of each item: the id of its triplet, "-" and the number of the crop."""
        ...


class PreferenceDataset:
    """The cases of preferences as a `Dataset`; an item is the best repair of its case."""

    def __init__(self, prepared: NamedDataset, ranks: Mapping[str, tuple[str, int]]) -> None:
        """Group the prepared repairs by case and crop.

        Args:
            ranks: case and rank by the id of a repair.

        Raises:
            ValueError: no case has two repairs of different rank that could be prepared.
        """
        self._items = prepared
        groups: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for index, name in enumerate(prepared.names):
            repair, _, crop = name.rpartition("-")
            case, rank = ranks[repair]
            groups.setdefault((case, crop), []).append((rank, index))
        complete = [sorted(g) for g in groups.values() if len({rank for rank, _ in g}) > 1]
        self._groups = complete
        if not complete:
            raise ValueError("None of the preferences has two repairs of different rank left.")

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def shapes(self) -> Sequence[Shape]:
        return [self._items.shapes[group[0][1]] for group in self._groups]

    def __getitem__(self, index: int) -> Item:
        return self._items[self._groups[index][0][1]]

    def repairs(self, index: int) -> list[tuple[int, Item]]:
        """Rank and item of every repair of a case, best first."""
        return [(rank, self._items[at]) for rank, at in self._groups[index]]
