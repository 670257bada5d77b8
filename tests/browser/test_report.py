"""The run explained: the report in the node, the candidates' scores, and the copy as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.graphs import refine_graph

BOXES = '[{"draft": [0.25, 0.2155, 0.6734, 0.8407], "reference": [0.135, 0.1175, 0.8925, 0.9025]}]'


def report_of(comfy: Any, **values: Any) -> tuple[dict[str, Any], str]:
    """Run Reference Refine; its report, and what the tab Report says."""
    node = refine_graph(comfy, **({"boxes": BOXES} | values))[3]
    entry = comfy.run()
    assert entry["status"]["status_str"] == "success", comfy.server.error(entry)
    comfy.page.get_by_role("tab", name="Report").click()
    comfy.settle()
    said = comfy.page.locator(".omnirefiner-table").inner_text()
    return entry["outputs"][str(node)]["omnirefiner"][0]["report"], said


def pasted(comfy: Any) -> str:
    """What Ctrl+V gives."""
    comfy.page.evaluate(
        "() => { const area = document.createElement('textarea'); area.id = 'pasted';"
        "document.body.append(area); area.focus(); }"
    )
    comfy.page.keyboard.press("Control+v")
    return comfy.page.evaluate(
        "() => { const area = document.getElementById('pasted'); area.remove(); return area.value; }"
    )


@pytest.mark.parametrize("secure", [True, False], ids=["clipboard", "no clipboard"])
def test_the_report_is_copied_as_json(open_comfy: Callable[..., Any], secure: bool) -> None:
    comfy = open_comfy()
    report, _ = report_of(comfy, steps=3 + secure)
    if not secure:  # as on a server in the network that is reached by plain http
        comfy.page.evaluate(
            "() => Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true })"
        )
    # By the keyboard: at this zoom ComfyUI's own bar may lie over the lower end of the node.
    comfy.page.get_by_role("button", name="Copy the whole report as JSON").press("Enter")
    comfy.settle(200)
    assert json.loads(pasted(comfy)) == report
    comfy.page.evaluate("() => { delete navigator.clipboard; }")
    comfy.assert_clean()


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_what_was_done_is_readable(open_comfy: Callable[..., Any], vue: bool) -> None:
    comfy = open_comfy(vue=vue)
    report, said = report_of(comfy, candidates=4 + vue)
    comfy.shot(f"report-candidates-{'vue' if vue else 'canvas'}")
    search = report["regions"][0]["search"]
    assert len(search["candidates"]) == 4 + vue
    for i, candidate in enumerate(search["candidates"]):
        assert f"candidate {i + 1}" in said and f"seed {candidate['seed']}" in said
        assert str(list(candidate["scores"].values())[-1]) in said
    assert said.count("chosen") == 1 and "dropped after step" in said
    x0, y0, x1, y1 = report["regions"][0]["region"]
    assert f"{x0}, {y0} – {x1}, {y1}" in said
    for word in ("nano", "Euler", str(report["seed"]), "seconds", "drift", "128×128"):
        assert word in said, word
    comfy.assert_clean()


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_a_reference_that_does_not_match_is_named(
    open_comfy: Callable[..., Any], vue: bool
) -> None:
    comfy = open_comfy(vue=vue)
    sky = json.dumps([{"draft": [0.125, 0.2342, 0.2188, 0.3747], "reference": None}])
    report, said = report_of(comfy, boxes=sky, steps=2 + vue)
    (mismatch,) = report["mismatches"]
    assert mismatch in said
    note = comfy.page.locator(".omnirefiner-live [role=status]")
    assert note.is_visible() and note.inner_text()
    comfy.shot(f"report-mismatch-{'vue' if vue else 'canvas'}")
    comfy.assert_clean()


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_a_note_goes_with_the_run_it_belongs_to(open_comfy: Callable[..., Any], vue: bool) -> None:
    comfy = open_comfy(vue=vue)
    sky = json.dumps([{"draft": [0.125, 0.2342, 0.2188, 0.3747], "reference": None}])
    # A seed of its own: ComfyUI answers a run that it knows from its cache, which sends no note.
    node = refine_graph(comfy, boxes=sky, seed=710 + vue)[3]
    noted = (
        "(id) => app.graph.getNodeById(id).widgets.some((w) => w.name === '$$node-text-preview')"
    )
    for boxes, has_note in ((sky, True), (BOXES, False)):
        comfy.page.evaluate(
            "([id, boxes]) => { app.graph.getNodeById(id).widgets"
            ".find((w) => w.name === 'boxes').value = boxes; }",
            [node, boxes],
        )
        entry = comfy.run()
        assert entry["status"]["status_str"] == "success", comfy.server.error(entry)
        comfy.page.wait_for_function(f"([id, has]) => ({noted})(id) === has", arg=[node, has_note])
        comfy.settle()
        comfy.shot(f"report-note-{has_note}-{'vue' if vue else 'canvas'}")
    comfy.assert_clean()
