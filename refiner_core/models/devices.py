"""Where networks run, and the memory there."""

from __future__ import annotations

import ctypes
import sys

import torch

_MOST_AT_ONCE = 8  # samples in a batch: more save no time


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device.

    Raises:
        ValueError: another name, or CUDA is asked for and not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or name == "cpu:":
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}.")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(
                f"device {name} was asked for, but PyTorch {torch.__version__} sees no CUDA GPU. "
                "Use auto or cpu, or install PyTorch with CUDA."
            )
        if index and int(index) >= torch.cuda.device_count():
            raise ValueError(f"There is no {name}: PyTorch sees {torch.cuda.device_count()} GPUs.")
    return torch.device(name)


def free_memory(device: torch.device) -> float:
    """Free bytes of a GPU's memory; infinite for a CPU, whose memory is not checked."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")


def most_at_once(free: float, each: float) -> int:
    """How many samples of `each` bytes fit into half of the free memory; at least one.

    The other half is for what is not counted.
    """
    return max(1, min(_MOST_AT_ONCE, int(free / 2 / each)))


def return_freed_memory() -> None:
    """Give the memory that was freed back to the system, where the C library (glibc) keeps it.

    Pictures of many sizes leave gaps in the heap, which add up to hundreds of megabytes in a server
    that runs for long. Takes about 20 ms; does nothing on other systems.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
