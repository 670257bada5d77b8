"""The example workflows in the page: they open, run and change the picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def workflow(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "example_workflows" / f"{name}.json").read_text())


def test_repair_a_logo_opens_runs_and_changes_the_picture(open_comfy: Callable[..., Any]) -> None:
    comfy = open_comfy()
    comfy.load(workflow("Repair a logo (nano, nothing to download)"))
    entry = comfy.run()
    assert entry["status"]["status_str"] == "success", comfy.server.error(entry)
    comfy.settle(1500)
    comfy.shot("template-logo")
    saved = [
        i for o in entry["outputs"].values() for i in o.get("images", []) if i["type"] == "output"
    ]
    assert saved, entry["outputs"].keys()
    file = comfy.server.base / "output" / saved[0]["subfolder"] / saved[0]["filename"]
    refined = np.asarray(Image.open(file).convert("RGB")).astype(int)
    draft = np.asarray(Image.open(ROOT / "refiner_core/demo_cases/logo/draft.png").convert("RGB"))
    assert (refined != draft).any()
    comfy.assert_clean()
