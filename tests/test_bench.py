"""`omnirefiner bench`: that its tables can be made; no time is judged."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from refiner_core.__main__ import main
from refiner_core.scoring.dreamsim_release import convert_release
from tests.dreamsim_release import TINY, write_release


def test_dreamsim_beside_a_python_without_the_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = write_release(tmp_path / "release", "dino_vitb16", TINY)
    convert_release(release, tmp_path / "d.safetensors", side=224)
    arguments = [
        "bench",
        "dreamsim",
        str(tmp_path / "d.safetensors"),
        "--batch",
        "1",
        "--rounds",
        "1",
    ]
    assert main(arguments) == 0
    assert "this program" in capsys.readouterr().out
    assert main([*arguments, "--package", sys.executable, "--release", str(release)]) == 2
    assert "No module named 'dreamsim'" in capsys.readouterr().err
