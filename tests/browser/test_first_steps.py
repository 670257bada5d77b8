"""What a newcomer meets first: the node search, words for automatic values, missing models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.graphs import build
from tests.comfyui.test_training import write_triplets

EXAMPLE = Path(__file__).resolve().parents[2] / "example_workflows" / "Repair a logo (Kontext).json"

_SEARCH = """
(query) => {
  const pinia = document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia;
  const service = pinia._s.get('nodeDef').nodeSearchService;
  return service.searchNode(query, [], { limit: 8 }).map((def) => def.name);
}
"""
_SHOWN = """
([id, name]) => app.graph.getNodeById(id).widgets.find((w) => w.name === name)._displayValue
"""
_SET = """
([id, name, value]) => {
  app.graph.getNodeById(id).widgets.find((w) => w.name === name).value = value;
}
"""


@pytest.mark.parametrize("query", ["refine", "fix detail", "omni", "omnirefiner", "fix logo"])
def test_the_search_leads_to_reference_refine(open_comfy: Callable[..., Any], query: str) -> None:
    found = open_comfy().page.evaluate(_SEARCH, query)
    assert found[:1] == ["OmniRefiner_ReferenceRefine"], found


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("load folder", "LoadFolder"),
        ("refiner parts", "RefinerParts"),
        ("refine conditioning", "RefineConditioning"),
        ("crop for refine", "CropForRefine"),
    ],
)
def test_exact_names_stay_first(open_comfy: Callable[..., Any], query: str, name: str) -> None:
    found = open_comfy().page.evaluate(_SEARCH, query)
    assert found[:1] == [f"OmniRefiner_{name}"], found


def test_automatic_values_are_shown_as_words(open_comfy: Callable[..., Any]) -> None:
    comfy = open_comfy()
    nodes = [
        {"type": "OmniRefiner_ReferenceRefine", "pos": [100, 100]},
        {"type": "OmniRefiner_LoadFolder", "pos": [800, 100], "values": {"most": 0}},
    ]
    refine, folder = build(comfy, nodes, [])
    automatic = ("steps", "guidance", "context", "megapixels", "color_match", "prune_at")
    shown = [comfy.page.evaluate(_SHOWN, [refine, name]) for name in automatic]
    assert shown == ["auto"] * len(automatic)
    assert comfy.page.evaluate(_SHOWN, [folder, "most"]) == "all"
    comfy.page.evaluate(_SET, [refine, "steps", 28])
    comfy.page.evaluate(_SET, [refine, "color_match", 0])
    assert comfy.page.evaluate(_SHOWN, [refine, "steps"]) == "28"
    assert float(comfy.page.evaluate(_SHOWN, [refine, "color_match"])) == 0
    comfy.shot("automatic-values")
    saved = comfy.page.evaluate("() => app.graph.serialize()")
    values = next(n for n in saved["nodes"] if n["type"].endswith("LoadFolder"))["widgets_values"]
    assert 0 in values, "the number is saved, not the word"


_COVERED = """
([type, label]) => {
  const input = document.querySelector(`[node-type="${type}"] [aria-label="${label}"] input`);
  const word = getComputedStyle(input.nextElementSibling, "::after").content;
  return [getComputedStyle(input).color === "rgba(0, 0, 0, 0)", word];
}
"""


def test_automatic_values_are_shown_as_words_in_nodes_2(open_comfy: Callable[..., Any]) -> None:
    comfy = open_comfy(vue=True)
    refine, folder = (f"OmniRefiner_{name}" for name in ("ReferenceRefine", "LoadFolder"))
    nodes = [
        {"type": refine, "pos": [100, 100]},
        {"type": folder, "pos": [800, 100], "values": {"most": 0}},
    ]
    build(comfy, nodes, [])
    assert comfy.page.evaluate(_COVERED, [refine, "steps"]) == [True, '"auto"']
    assert comfy.page.evaluate(_COVERED, [folder, "most"]) == [True, '"all"']
    assert comfy.page.evaluate(_COVERED, [refine, "feather"]) == [False, "none"]
    comfy.shot("automatic-values-vue")
    row = comfy.page.locator(f'[node-type="{refine}"] [aria-label="steps"]')
    row.get_by_role("button", name="Increment").click()
    comfy.settle(300)
    assert comfy.page.evaluate(_COVERED, [refine, "steps"]) == [False, "none"]
    comfy.assert_clean()


_SEED_CONTROL = """
(id) => app.graph.getNodeById(id).widgets.find((w) => w.name === "seed").linkedWidgets
  .map((w) => w.value)
"""


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_an_interrupted_training_can_be_run_again_with_its_seed(
    open_comfy: Callable[..., Any], vue: bool
) -> None:
    """ComfyUI gives a new seed for every run to nodes that do not ask for another default."""
    comfy = open_comfy(vue=vue)
    (train,) = build(comfy, [{"type": "OmniRefiner_TrainRefiner", "pos": [100, 100]}], [])
    assert comfy.page.evaluate(_SEED_CONTROL, train) == ["fixed"]


def test_the_page_offers_the_download_of_missing_models(open_comfy: Callable[..., Any]) -> None:
    comfy = open_comfy()
    comfy.load(json.loads(EXAMPLE.read_text()))
    comfy.page.get_by_role("button", name="View details").first.click()
    comfy.settle(1500)
    comfy.shot("missing-models")
    for name in ("flux1-dev-kontext_fp8_scaled", "clip_l", "t5xxl_fp8_e4m3fn_scaled", "ae"):
        button = comfy.page.get_by_role("button", name=f"Download {name}.safetensors")
        assert button.is_visible(), name


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_a_training_says_where_it_resumed(open_comfy: Callable[..., Any], vue: bool) -> None:
    comfy = open_comfy(vue=vue)
    triplets = comfy.server.base / "input" / "triplets"
    if not triplets.exists():
        write_triplets(triplets)
    settings = {"folder": "triplets", "batch": 1, "rank": 2, "preview_every": 0}
    settings |= {"lora_name": f"resumed-{vue}", "steps": 1}
    nodes = [
        {"type": "OmniRefiner_LoadRefiner", "pos": [20, 100]},
        {"type": "OmniRefiner_TrainRefiner", "pos": [450, 100], "values": settings},
    ]
    _, train = build(comfy, nodes, [(0, 0, 1, "refiner")])
    assert comfy.run()["status"]["status_str"] == "success"
    comfy.page.get_by_text("Started at step 0 of 1").wait_for()
    assert comfy.page.get_by_text("Resumed at").count() == 0
    comfy.page.evaluate(_SET, [train, "steps", 2])
    assert comfy.run()["status"]["status_str"] == "success"
    comfy.page.get_by_text("Resumed at step 1 of 2").wait_for()
