"""The options that say where many repairs are done, shared by `refine --jobs` and `evaluate`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..workers.dispatch import Place


def add_workers(group: Any) -> None:
    """Add the options that say where many repairs are done."""
    group.add_argument(
        "--devices",
        metavar="A,B,...",
        help="one process for each of these, such as cuda:0,cuda:1 (default: --device)",
    )
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="a Ray cluster: auto, local or ray://HOST:PORT; all machines must see the files under "
        "the same paths",
    )


def place(chosen: argparse.Namespace) -> Place:
    """Where the options say that the work is done.

    Raises:
        ValueError: a device does not exist, or both --devices and --ray are given.
    """
    from ..models.devices import pick_device
    from ..workers.dispatch import Place

    if chosen.ray and chosen.devices:
        raise ValueError("Give --devices or --ray, not both: Ray chooses the devices itself.")
    count = getattr(chosen, "workers", 1)
    if count < 1 or (count > 1 and (chosen.ray or chosen.devices)):
        raise ValueError(
            f"--workers must be at least 1, and 1 beside --devices or --ray, got {count}."
        )
    if chosen.devices is None:
        return Place((chosen.device,) * count, chosen.ray)
    devices = tuple(name.strip() for name in chosen.devices.split(",") if name.strip())
    if not devices:
        raise ValueError(f"--devices names no device, got {chosen.devices!r}.")
    for name in devices:
        pick_device(name)
    return Place(devices)
