"""Masks as detectors and other packs give them, in the nodes that read masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

SCRIPT = Path(__file__).with_name("detected_masks.py")


@pytest.mark.slow
def test_masks_of_detectors(run_in_comfyui: Any, tmp_path: Path) -> None:
    said = run_in_comfyui(SCRIPT, tmp_path / "out.safetensors")
    out = load_file(tmp_path / "out.safetensors")
    segs = np.zeros((1, 48, 64))
    segs[:, 6:16, 5:25] = segs[:, 30:38, 40:48] = 1
    assert (out["segs"] == segs).all()
    batch = np.zeros((1, 48, 64))
    batch[:, :4, :4] = batch[:, 44:, 60:] = 1
    assert (out["labels"] == batch).all()
    segs[:, :12, 32:48] = 1
    assert (out["all"] == np.maximum(segs, batch)).all()
    lines = dict(line.split(" ", 1) for line in said.splitlines() if " " in line)
    assert "64x40" in lines["size"] and "64x48" in lines["size"]
    assert "empty" in lines["nothing"]
    assert out["index"] == 1 and "255" in lines["notes"] and "64x64" in lines["notes"]
