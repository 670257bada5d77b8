"""Best of several in a running ComfyUI: candidates of Reference Refine, and Pick Best."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.comfyui.graphs import CASES, node, pixels, repair


def run(server: Any, **changes: Any) -> tuple[np.ndarray, dict[str, Any]]:
    entry = server.run(repair(**changes))
    report = json.loads(entry["outputs"]["report"]["text"][0])
    return pixels(server.saved(entry, "save")[0]), report["regions"][0]


def test_candidates_are_dropped_on_the_way(server: Any) -> None:
    refined, region = run(server, candidates=6, seed=4)
    found = region["search"]
    assert found["evaluations"] == 6 + 3 + 1 + 1 and found["evaluations_full"] == 24
    assert [c["seed"] for c in found["candidates"]] == [4, 5, 6, 7, 8, 9]
    ends = [c["scores"].get("4") for c in found["candidates"]]
    assert ends[found["chosen"]] == min(e for e in ends if e is not None)
    draft, mask = pixels(CASES / "logo/draft.png"), Image.open(CASES / "logo/mask.png")
    assert (refined[np.asarray(mask) == 0] == draft[np.asarray(mask) == 0]).all()


@pytest.mark.parametrize("model_mask", [0.0, 0.7])
def test_a_run_in_parts_is_the_whole_run(server: Any, model_mask: float) -> None:
    """Scoring at every step must not change what a candidate becomes."""
    parts = run(server, candidates=2, keep=1, prune_at=1, seed=2, model_mask=model_mask)
    whole = run(server, candidates=2, keep=1, prune_at=0, seed=2, model_mask=model_mask)
    a, b = (r[1]["search"] for r in (parts, whole))
    winner = a["chosen"]
    assert a["candidates"][winner]["scores"]["4"] == pytest.approx(
        b["candidates"][winner]["scores"]["4"], abs=2e-4
    )
    if b["chosen"] == winner:
        assert np.abs(parts[0] - whole[0]).max() <= 1


def test_a_comfyui_sampler_searches_too(server: Any) -> None:
    _, region = run(server, candidates=4, steps=4, sampler="heun", scheduler="simple")
    assert region["search"]["evaluations"] == 8


def test_pick_best_finds_the_repaired_picture(server: Any) -> None:
    graph = repair() | {
        "worse": node("ImageBlur", image=["case", 0], blur_radius=4, sigma=3.0),
        "two": node("ImageBatch", image1=["worse", 0], image2=["refine", 0]),
        "pick": node(
            "OmniRefiner_PickBest", images=["two", 0], reference=["case", 1], mask=["case", 2],
            reference_mask=["case", 3], keep=1, align=True,
        ),
        "index": node("PreviewAny", source=["pick", 1]),
        "picked": node("SaveImage", images=["pick", 0], filename_prefix="picked"),
        "why": node("PreviewAny", source=["pick", 2]),
    }  # fmt: skip
    entry = server.run(graph)
    report = json.loads(entry["outputs"]["why"]["text"][0])
    assert entry["outputs"]["index"]["text"][0] == "1" and report["order"] == [1, 0]
    a, b = (pixels(server.saved(entry, n)[0]) for n in ("picked", "save"))
    assert (a == b).all()


def test_pick_best_names_sizes_that_do_not_fit(server: Any) -> None:
    graph = repair() | {
        "pick": node(
            "OmniRefiner_PickBest", images=["case", 0], reference=["case", 1], mask=["case", 3],
            keep=1, align=True,
        ),
        "index": node("PreviewAny", source=["pick", 1]),
    }  # fmt: skip
    entry = server.wait(server.queue(graph))
    assert "Resize the mask first" in server.error(entry)
