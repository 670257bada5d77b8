"""A run's log as a picture."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refiner_core.__main__ import main
from refiner_core.training.curves import read_curves


def run_of(folder: Path, rows: list[dict[str, float]], end: str = "") -> Path:
    folder.mkdir(parents=True)
    text = "".join(json.dumps(r) + "\n" for r in rows)
    (folder / "log.jsonl").write_text(text + end)
    return folder


def test_what_was_made_again_after_a_crash_counts_once(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "loss": 3.0, "norm": 1.0},
        {"step": 2, "loss": 2.0},
        {"step": 2, "held_out/psnr": 20.0},
        {"step": 2, "loss": 1.0},
    ]
    run = run_of(tmp_path / "run", rows, end='{"step": 3, "lo')
    assert read_curves(run) == {"loss": {1: 3.0, 2: 1.0}, "held_out/psnr": {2: 20.0}}


def drawn(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


@pytest.mark.slow
def test_other_figures_are_another_picture_and_a_second_run_a_second_line(tmp_path: Path) -> None:
    a, b = (
        run_of(tmp_path / name, [{"step": i, "loss": f * i, "reward/whole": i} for i in range(5)])
        for name, f in (("a", 1.0), ("b", -1.0))
    )
    pictures = {}
    for runs in ((a,), (b,), (a, b)):
        out = tmp_path / f"{len(pictures)}.png"
        assert main(["train", "curves", *map(str, runs), "--out", str(out)]) == 0
        pictures[runs] = drawn(out)
    assert pictures[a,].shape == pictures[b,].shape == pictures[a, b].shape
    assert np.abs(pictures[a,] - pictures[b,]).max() > 100
    both, first = pictures[a, b], pictures[a,]
    orange = (both[..., 0] > 200) & (both[..., 2] < 80)  # the colour of a second line
    assert orange.sum() > 200 and not ((first[..., 0] > 200) & (first[..., 2] < 80)).any()


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "c.png", r"log\.jsonl"),
        ("", "c.png", r"log\.jsonl"),
        ('{"step": 1, "loss": 1}', "c.xyz", r"\.png, \.svg or \.pdf.*c\.xyz"),
    ],
)
def test_what_cannot_be_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, name: str, message: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    if content is not None:
        (run / "log.jsonl").write_text(content)
    assert main(["train", "curves", str(run), "--out", str(tmp_path / name)]) != 0
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / name).exists()
