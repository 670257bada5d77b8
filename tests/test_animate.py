"""Moving pictures of before and after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refiner_core.__main__ import main
from refiner_core.images.animation import changed_box


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    before = np.full((60, 90, 3), 50, np.uint8)
    after = before.copy()
    after[20:30, 40:60] = 200
    paths = tmp_path / "before.png", tmp_path / "after.png"
    for path, pixels in zip(paths, (before, after), strict=True):
        Image.fromarray(pixels).save(path)
    return paths


@pytest.mark.parametrize("ending", ["webp", "gif"])
def test_starts_with_before_and_ends_with_after(pair: tuple[Path, Path], ending: str) -> None:
    out = pair[0].with_name(f"wipe.{ending}")
    assert main(["animate", "--pair", *map(str, pair), "--out", str(out), "--height", "60"]) == 0
    moving = Image.open(out)
    assert moving.n_frames > 15 and moving.size == (90 * 2 + 6, 60)
    seen = []
    for i in (0, moving.n_frames - 1):
        moving.seek(i)
        seen.append(np.asarray(moving.convert("RGB")).astype(int)[25, 50, 0])
    assert seen[0] == pytest.approx(50, abs=8) and seen[1] == pytest.approx(200, abs=8)


def test_the_detail_has_the_pictures_aspect_and_holds_the_change(pair: tuple[Path, Path]) -> None:
    before, after = (np.asarray(Image.open(p)) for p in pair)
    box = changed_box(before, after)
    assert box is not None and box.x0 <= 40 and box.x1 >= 60 and box.y0 <= 20 and box.y1 >= 30
    assert box.extent.aspect == pytest.approx(1.5, abs=0.1)
    assert changed_box(before, before) is None


def test_refusals(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    small = pair[0].with_name("small.png")
    Image.new("RGB", (10, 10)).save(small)
    out = str(pair[0].with_name("x.webp"))
    assert main(["animate", "--pair", str(pair[0]), str(small), "--out", out]) == 2
    assert "90x60" in capsys.readouterr().err
    assert main(["animate", "--pair", *map(str, pair), "--out", out[:-4] + "mp4"]) == 2
    assert ".webp or .gif" in capsys.readouterr().err
