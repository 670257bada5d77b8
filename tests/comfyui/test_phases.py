"""Each model is loaded once a run, and a prompt is encoded once a refiner, in a real ComfyUI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .server import write_tiny_models

SCRIPT = Path(__file__).with_name("count_models.py")
PHASES = ["vae", "text", "transformer", "vae"]


@pytest.fixture(scope="module")
def runs(run_in_comfyui: Any, tiny_models: Path, tmp_path_factory: Any) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("phases")
    for part in ("vae", "diffusion_models"):
        (folder / part).mkdir()
    write_tiny_models(folder)
    vae = folder / "vae" / "tiny_ae.safetensors"
    run_in_comfyui(SCRIPT, tiny_models, vae, folder / "runs.json", timeout=500)
    return json.loads((folder / "runs.json").read_text())


def test_eight_pictures_with_two_regions_load_each_model_once(runs: list[dict[str, Any]]) -> None:
    first, second, other, apart = runs
    assert first["models"] == PHASES and first["encoded"] == 1
    assert second["models"] == ["vae", "transformer", "vae"] and second["encoded"] == 0
    assert other["models"] == PHASES and other["encoded"] == 1
    assert apart["encoded"] == 16 and len(apart["models"]) > 16


def test_pictures_and_progress_are_in_order(runs: list[dict[str, Any]]) -> None:
    for run in runs[:3]:
        assert run["steps"] == [
            [picture, region, step]
            for picture in range(8)
            for region in range(2)
            for step in range(1, 3)
        ]
        assert [picture for picture, _ in run["order"]] == [p for p in range(8) for _ in range(2)]
        lefts = [region[0] for _, region in run["order"]]
        assert lefts == 8 * [20, 190]
