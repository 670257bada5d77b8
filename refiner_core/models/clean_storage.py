"""Where the clean tokens' keys and values are kept between the steps of a one-way run.

Kontext's, at a megapixel with one reference, take about 5 GB in bfloat16. What does not fit beside the
model waits in the computer's memory, and each block's is copied back while the block before it computes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, MutableMapping
from typing import Literal

import torch
from torch import Tensor

# On the device as computed; there in 8 bits; or in the computer's memory.
Storage = Literal["device", "fp8", "cpu"]

_SHARE = 0.7  # of the memory that is free, for the rest is needed to compute
_FLOAT8 = torch.float8_e4m3fn
_Pair = tuple[Tensor, Tensor]


def clean_bytes(blocks: int, tokens: int, width: int, item: int) -> int:
    """Bytes of the keys and values of `tokens` clean tokens (of all samples) in every block.

    Args:
        blocks: of the transformer, double and single.
        tokens: clean tokens of all samples.
        width: channels of a token inside the transformer.
        item: bytes of a number.
    """
    return 2 * blocks * tokens * width * item


def choose_storage(needed: int, free: float, exact: bool = True) -> Storage:
    """Where `needed` bytes of keys and values are kept if `free` bytes of the device are left.

    Args:
        needed: see `clean_bytes`.
        free: what the model and its activations leave.
        exact: whether they must keep their numbers; not where the weights have 8 bits, too.
    """
    if needed <= _SHARE * free:
        return "device"
    if not exact and needed / 2 <= _SHARE * free:
        return "fp8"
    return "cpu"


class StoredKeys(MutableMapping[Hashable, _Pair]):
    """Keys and values by block, kept in one of the storages; asked for in the blocks' order.

    Args:
        storage: where they are kept.
    """

    def __init__(self, storage: Storage = "device") -> None:
        self.storage: Storage = storage
        self._kept: dict[Hashable, tuple[_Kept, _Kept]] = {}
        self._following: dict[Hashable, Hashable] = {}
        self._ahead: dict[Hashable, _Pair] = {}
        self._last: Hashable = None
        self._stream: torch.cuda.Stream | None = None

    def __setitem__(self, block: Hashable, pair: _Pair) -> None:
        if self.storage == "cpu" and pair[0].is_cuda and self._stream is None:
            self._stream = torch.cuda.Stream(pair[0].device)
        if self._kept:
            self._following[self._last] = block
        self._last = block
        self._kept[block] = (_Kept(pair[0], self.storage), _Kept(pair[1], self.storage))

    def __getitem__(self, block: Hashable) -> _Pair:
        if self._stream is None:
            key, value = self._kept[block]
            return key.get(), value.get()
        pair = self._ahead.pop(block, None) or self._copied(block)
        torch.cuda.current_stream(pair[0].device).wait_stream(self._stream)
        for x in pair:  # its memory must not be used again before the block has read it
            x.record_stream(torch.cuda.current_stream(x.device))
        following = self._following.get(block)
        self._ahead = {} if following is None else {following: self._copied(following)}
        return pair

    def __delitem__(self, block: Hashable) -> None:
        del self._kept[block]

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def rows(self, rows: list[int]) -> StoredKeys:
        """Those of some of the samples."""
        chosen = StoredKeys(self.storage)
        chosen._following, chosen._stream = self._following, self._stream
        chosen._kept = {b: (k.rows(rows), v.rows(rows)) for b, (k, v) in self._kept.items()}
        return chosen

    @property
    def device_bytes(self) -> int:
        """What they take of the device's memory."""
        kept = [x for pair in self._kept.values() for x in pair]
        return sum(x.device_bytes for x in kept)

    def _copied(self, block: Hashable) -> _Pair:
        """On the way to the device, beside what is computed there."""
        assert self._stream is not None, "only what is not on the device is copied"
        key, value = self._kept[block]
        self._stream.wait_stream(torch.cuda.current_stream(key.device))
        with torch.cuda.stream(self._stream):
            return key.get(), value.get()


class _Kept:
    """One block's keys or values."""

    def __init__(self, x: Tensor, storage: Storage) -> None:
        self.device, self._dtype = x.device, x.dtype
        self._scale: Tensor | None = None
        if storage == "fp8":
            # One for each token, or for each head, whichever follows the sample.
            largest = x.abs().amax((2, 3), keepdim=True)
            self._scale = (largest.float() / torch.finfo(_FLOAT8).max).clamp_min(1e-12)
            x = (x.float() / self._scale).to(_FLOAT8)
        elif storage == "cpu" and x.is_cuda:
            pinned = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            x = pinned.copy_(x, non_blocking=True)
        self._x = x

    def get(self) -> Tensor:
        """As it was computed, on the device."""
        if self._scale is not None:
            return (self._x.float() * self._scale).to(self._dtype)
        return self._x.to(self.device, non_blocking=True)

    def rows(self, rows: list[int]) -> _Kept:
        """That of some samples."""
        chosen = object.__new__(_Kept)
        chosen.device, chosen._dtype, chosen._x = self.device, self._dtype, self._x[rows]
        chosen._scale = None if self._scale is None else self._scale[rows]
        return chosen

    @property
    def device_bytes(self) -> int:
        return self._x.numel() * self._x.element_size() if self._x.device == self.device else 0
