"""The comparison in the page: slider, scale, flip, batches, and pictures of different sizes."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.browser.graphs import build

VIEW = ".omnirefiner-view"


def compare_graph(
    comfy: Any, second: tuple[int, int] = (128, 96), batch: int = 1, overlay: bool = False
) -> dict[str, Any]:
    """A red picture of 128x96 as a, a blue one as b, a green one as overlay, compared; run once.

    Returns the run's history entry.
    """

    def empty(size: tuple[int, int], colour: int, y: int) -> dict[str, Any]:
        values = {"width": size[0], "height": size[1], "batch_size": batch, "color": colour}
        return {"type": "EmptyImage", "pos": [20, y], "values": values}

    nodes = [
        empty((128, 96), 0xFF0000, 80), empty(second, 0x0000FF, 320),
        {"type": "OmniRefiner_Compare", "pos": [420, 80], "size": [620, 520]},
    ]  # fmt: skip
    links = [(0, 0, 2, "a"), (1, 0, 2, "b")]
    if overlay:
        nodes.append(empty((128, 96), 0x00FF00, 560))
        links.append((3, 0, 2, "overlay"))
    build(comfy, nodes, links)
    entry = comfy.run()
    assert entry["status"]["status_str"] == "success", comfy.server.error(entry)
    comfy.page.wait_for_function(
        "() => document.querySelector('.omnirefiner-viewer .omnirefiner-status').innerText"
    )
    comfy.settle(400)
    return entry


def seen(comfy: Any) -> np.ndarray:
    """The view as it is on the screen, height x width x 3, 0..255."""
    shot = Image.open(io.BytesIO(comfy.page.locator(VIEW).first.screenshot())).convert("RGB")
    return np.asarray(shot).astype(int)


def colours(comfy: Any) -> tuple[float, float]:
    """How much of the view is red and blue."""
    pixels = seen(comfy)
    red = (pixels[..., 0] > 200) & (pixels[..., 2] < 60)
    blue = (pixels[..., 2] > 200) & (pixels[..., 0] < 60)
    return float(red.mean()), float(blue.mean())


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_slider_at_three_positions_and_flip(open_comfy: Callable[..., Any], vue: bool) -> None:
    comfy = open_comfy(vue=vue)
    compare_graph(comfy)
    box = comfy.page.locator(VIEW).first.bounding_box()
    whole = sum(colours(comfy))
    for share in (0.3, 0.5, 0.7):
        comfy.page.mouse.click(box["x"] + box["width"] * share, box["y"] + box["height"] / 2)
        comfy.settle(200)
        red, blue = colours(comfy)
        at = share * box["width"]
        fitted = 128 * min(box["width"] / 128, box["height"] / 96)
        left = (box["width"] - fitted) / 2
        assert red / (red + blue) == pytest.approx((at - left) / fitted, abs=0.04)
    comfy.shot(f"compare-{'vue' if vue else 'canvas'}")
    comfy.page.keyboard.down(" ")
    comfy.settle(200)
    red, blue = colours(comfy)
    assert blue < 0.001 and red == pytest.approx(whole, rel=0.1)
    comfy.page.keyboard.up(" ")
    comfy.settle(200)
    assert colours(comfy)[1] > 0.1
    comfy.assert_clean()


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_an_overlay_has_the_strength_that_was_set(
    open_comfy: Callable[..., Any], vue: bool
) -> None:
    comfy = open_comfy(vue=vue)
    compare_graph(comfy, overlay=True)
    strength = comfy.page.get_by_label("Opacity of the overlay, from 0 to 1").first
    for opacity in (0.0, 0.25, 0.5, 1.0):
        strength.fill(f"{opacity:g}")
        comfy.settle(200)
        pixels = seen(comfy)
        row = pixels[pixels.shape[0] // 3]  # away from the divider's handle
        left, right = row[row.shape[0] // 4], row[row.shape[0] * 3 // 4]
        under, green = 255 * (1 - opacity), 255 * opacity
        assert left.tolist() == pytest.approx([under, green, 0], abs=3)
        assert right.tolist() == pytest.approx([0, green, under], abs=3)
    comfy.assert_clean()


def test_one_to_one_and_the_wheel(open_comfy: Callable[..., Any]) -> None:
    comfy = open_comfy()
    compare_graph(comfy)
    view = comfy.page.locator(VIEW).first
    box = view.bounding_box()
    view.click()
    comfy.page.keyboard.press("1")
    comfy.settle(200)
    red, blue = colours(comfy)
    # The divider and its handle lie over some of the picture.
    assert (red + blue) * box["width"] * box["height"] == pytest.approx(128 * 96, rel=0.1)
    comfy.page.mouse.wheel(0, -100)
    comfy.settle(200)
    assert sum(colours(comfy)) > 1.3 * (red + blue)
    comfy.assert_clean()


@pytest.mark.parametrize(
    ("second", "note"), [((256, 192), "exact multiple"), ((128, 90), "sizes differ")]
)
def test_sizes_that_differ(
    open_comfy: Callable[..., Any], second: tuple[int, int], note: str
) -> None:
    comfy = open_comfy()
    compare_graph(comfy, second=second)
    status = comfy.page.locator(".omnirefiner-viewer .omnirefiner-status").first.inner_text()
    assert note in status and f"{second[0]}×{second[1]}" in status
    comfy.assert_clean()


def test_batches(open_comfy: Callable[..., Any]) -> None:
    comfy = open_comfy()
    compare_graph(comfy, batch=3)
    count = comfy.page.locator(".omnirefiner-count").first
    assert count.inner_text() == "1 / 3"
    comfy.page.get_by_role("button", name="Next image").click()
    comfy.settle(400)
    assert count.inner_text() == "2 / 3"
    comfy.assert_clean()


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_without_b_the_previous_run_is_compared_and_a_is_passed_on(
    open_comfy: Callable[..., Any], vue: bool
) -> None:
    comfy = open_comfy(vue=vue)
    red = {"width": 128, "height": 96, "batch_size": 1, "color": 0xFF0000}
    nodes = [
        {"type": "EmptyImage", "pos": [20, 80], "values": red},
        {"type": "OmniRefiner_Compare", "pos": [420, 80], "size": [620, 520]},
        {"type": "PreviewImage", "pos": [1080, 80]},
    ]
    source, _, preview = build(comfy, nodes, [(0, 0, 1, "a"), (1, 0, 2, "images")])
    entry = comfy.run()
    assert entry["outputs"][str(preview)]["images"]
    comfy.page.wait_for_function(
        "() => /Run the workflow again/.test("
        "document.querySelector('.omnirefiner-viewer .omnirefiner-status').innerText)"
    )
    assert colours(comfy)[1] == 0
    view = comfy.page.locator(VIEW).first
    view.click(button="right")
    assert comfy.page.get_by_text("Open image: A").is_visible()
    assert not comfy.page.get_by_text("previous run").count(), "there is none yet"
    comfy.page.keyboard.press("Escape")
    comfy.page.evaluate(
        "(id) => { app.graph.getNodeById(id).widgets.find((w) => w.name === 'color').value = 255; }",
        source,
    )
    comfy.run()
    comfy.page.wait_for_function(
        "() => !/Run the workflow again/.test("
        "document.querySelector('.omnirefiner-viewer .omnirefiner-status').innerText)"
    )
    comfy.settle()
    comfy.shot(f"compare-previous-{'vue' if vue else 'canvas'}")
    pixels = seen(comfy)
    row = pixels[pixels.shape[0] // 3]
    left, right = row[row.shape[0] // 4], row[row.shape[0] * 3 // 4]
    assert left[2] > 200 and left[0] < 60, "this run is on the left"
    assert right[0] > 200 and right[2] < 60, "the previous run is on the right"
    comfy.assert_clean()


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_a_right_click_opens_and_saves(open_comfy: Callable[..., Any], vue: bool) -> None:
    comfy = open_comfy(vue=vue)
    entry = compare_graph(comfy)
    shown = next(o["omnirefiner"][0] for o in entry["outputs"].values() if "omnirefiner" in o)
    view = comfy.page.locator(VIEW).first
    view.click(button="right")
    comfy.shot(f"compare-menu-{'vue' if vue else 'canvas'}")
    with comfy.page.context.expect_page() as opened:
        comfy.page.get_by_text("Open image: B").click()
    filename = shown["pairs"][0]["after"]["filename"]
    # A new tab exists before it has an address.
    opened.value.wait_for_url(lambda address: filename in address)
    opened.value.close()
    view.click(button="right")
    with comfy.page.expect_download() as saved:
        comfy.page.get_by_text("Save image: A").click()
    picture = Image.open(saved.value.path())
    assert picture.size == (128, 96) and picture.convert("RGB").getpixel((5, 5)) == (255, 0, 0)
    comfy.assert_clean()


def test_a_picture_that_the_server_has_forgotten(open_comfy: Callable[..., Any]) -> None:
    comfy = open_comfy()
    entry = compare_graph(comfy, batch=2)
    shown = next(o["omnirefiner"][0] for o in entry["outputs"].values() if "omnirefiner" in o)
    gone = comfy.server.base / "temp" / shown["pairs"][1]["after"]["filename"]
    gone.unlink()
    comfy.page.get_by_role("button", name="Next image").click()
    comfy.settle()
    status = comfy.page.locator(".omnirefiner-viewer .omnirefiner-status").first
    assert "no longer on the server" in status.inner_text() and sum(colours(comfy)) == 0
    comfy.shot("compare-gone")
    comfy.page.get_by_role("button", name="Previous image").click()
    comfy.settle()
    assert "128×96" in status.inner_text() and sum(colours(comfy)) > 0.2
    assert all("404" in m and gone.name in m for m in comfy.our_failures), comfy.our_failures
    assert comfy.errors == []
