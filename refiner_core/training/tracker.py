"""The record of a run: `log.jsonl` always, and TensorBoard or Weights & Biases on request."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from ..storage.output_files import atomic_path

Board = Literal["none", "tensorboard", "wandb"]


class Tracker:
    """Writes rows of numbers and pictures; on a process that is not the main one it does nothing.

    `settings` are stored with the run where the board has a place for them.

    Raises:
        ModuleNotFoundError: the requested board is not installed.
    """

    def __init__(
        self,
        out: Path,
        board: Board = "none",
        active: bool = True,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.active = out / "log.jsonl", active
        self._tensorboard: Any = None
        self._wandb: Any = None
        if active and board == "tensorboard":
            self._tensorboard = _open_tensorboard(out)
        if active and board == "wandb":
            self._wandb = _open_wandb(out, settings)

    def row(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """Append one row of numbers."""
        if not self.active:
            return
        with self.path.open("a+b") as stream:
            if stream.tell() and not _ends_with_newline(stream):  # a crash cut off the last row
                stream.write(b"\n")
            stream.write(json.dumps({"step": step, **values}).encode() + b"\n")
        numbers = {k: v for k, v in values.items() if not isinstance(v, str)}
        if self._tensorboard is not None:
            for key, value in numbers.items():
                self._tensorboard.add_scalar(key, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Save a picture, uint8 H W 3, as `samples/<name>-<step>.png` and on the board."""
        if not self.active:
            return
        from PIL import Image

        folder = self.path.parent / "samples"
        folder.mkdir(exist_ok=True)
        with atomic_path(folder / f"{name}-{step:06d}.png") as temporary:
            Image.fromarray(pixels).save(temporary)
        if self._tensorboard is not None:
            self._tensorboard.add_image(name, pixels, step, dataformats="HWC")
        if self._wandb is not None:
            import wandb  # pyright: ignore[reportMissingImports]

            self._wandb.log({name: wandb.Image(pixels)}, step=step)

    def close(self) -> None:
        """Flush and close the board."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def _ends_with_newline(stream: BinaryIO) -> bool:
    stream.seek(-1, os.SEEK_END)
    return stream.read(1) == b"\n"


def _open_tensorboard(out: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as e:
        raise ModuleNotFoundError(
            "TensorBoard is not installed: pip install tensorboard, or set run.board = 'none'."
        ) from e
    return SummaryWriter(str(out / "tensorboard"))


def _open_wandb(out: Path, settings: Mapping[str, Any] | None) -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise ModuleNotFoundError(
            "Weights & Biases is not installed: pip install wandb, or set run.board = 'none'."
        ) from e
    return wandb.init(
        project="omnirefiner", name=out.name, dir=str(out), config=dict(settings or {})
    )
