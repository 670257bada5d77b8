"""The repair in single nodes: for every recipe the same picture as Reference Refine makes.

Crop for Refine -> Refine Conditioning -> SamplerCustom -> VAE Decode -> Stitch, over HTTP, with the
published refiners' files in miniature.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .graphs import LOAD, node, pixels, repair
from .test_published import CRITIC, DEV, FLUX, KLEIN, LIGHTNING, QWEN

NANO: dict[str, Any] = {"recipe": "nano (embedded)"}
STEPS = 2
ALL = [
    (NANO, False),
    (FLUX | {"recipe": "omnirefiner"}, False),
    (FLUX | {"recipe": "kontext"}, False),
    (CRITIC, True),
    (KLEIN, False),
    (DEV, False),
    (QWEN, True),
    (QWEN | LIGHTNING, True),
]
NAMES = [
    "nano",
    "omnirefiner",
    "kontext",
    "imagecritic",
    "klein",
    "dev",
    "refineanything",
    "lightning",
]


def whole(files: dict[str, Any], case: str = "word") -> dict[str, Any]:
    """Load Refiner -> Reference Refine, whose every other setting is the recipe's."""
    graph = repair(case, sampler="euler", steps=STEPS, megapixels=0.03, seed=7)
    graph["load"] = node("OmniRefiner_LoadRefiner", **(LOAD | files))
    return graph


def taken_apart(files: dict[str, Any], looks: bool) -> dict[str, Any]:
    """The same in single nodes; `looks`: the prompt is encoded together with the images."""
    recipe = "nano" if files is NANO else files["recipe"]
    graph = whole(files)
    del graph["refine"], graph["report"]
    graph |= {
        "parts": node("OmniRefiner_RefinerParts", refiner=["load", 0], prompt=""),
        "crop": node(
            "OmniRefiner_CropForRefine",
            draft=["case", 0],
            reference=["case", 1],
            mask=["case", 2],
            reference_mask=["case", 3],
            recipe=recipe,
            context=1.5,
            megapixels=0.03,
            grow=0,
        ),
        "cond": node(
            "OmniRefiner_RefineConditioning",
            positive=["parts", 2],
            vae=["parts", 1],
            draft_crop=["crop", 0],
            reference_crop=["crop", 1],
            guidance=0.0,
            refine_crop=["crop", 3],
            steps=STEPS,
            **({"refiner": ["load", 0]} if looks else {}),
        ),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "sample": node(
            "SamplerCustom",
            model=["parts", 0],
            add_noise=True,
            noise_seed=7,
            cfg=["cond", 4],
            positive=["cond", 0],
            negative=["cond", 2],
            sampler=["euler", 0],
            sigmas=["cond", 3],
            latent_image=["cond", 1],
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["parts", 1]),
        "stitch": node(
            "OmniRefiner_Stitch",
            refine_crop=["crop", 3],
            image=["decode", 0],
            feather=6,
            blend="feather",
            fix_drift=True,
            color_match=1.0,
            vae=["parts", 1],
        ),
        "save": node("SaveImage", images=["stitch", 0], filename_prefix="steps"),
    }
    return graph


def saved(server: Any, graph: dict[str, Any]) -> np.ndarray:
    return pixels(server.saved(server.run(graph, seconds=400), "save")[0])


@pytest.mark.parametrize(("files", "looks"), ALL, ids=NAMES)
def test_single_nodes_make_the_same_picture(
    published: Any, files: dict[str, Any], looks: bool
) -> None:
    expected = saved(published, whole(files))
    assert (saved(published, taken_apart(files, looks)) == expected).all()


@pytest.mark.parametrize("files", [CRITIC, QWEN], ids=["imagecritic", "refineanything"])
def test_a_prompt_that_needs_the_images_is_refused_without_the_refiner(
    published: Any, files: dict[str, Any]
) -> None:
    message = published.error(published.wait(published.queue(taken_apart(files, looks=False))))
    assert files["recipe"] in message and "refiner" in message


def test_a_refiner_of_another_recipe_is_refused(published: Any) -> None:
    graph = taken_apart(FLUX | {"recipe": "kontext"}, looks=True)
    graph["crop"]["inputs"]["recipe"] = "omnirefiner"
    message = published.error(published.wait(published.queue(graph)))
    assert "kontext" in message and "omnirefiner" in message


def test_crops_of_other_sizes_are_refused(published: Any) -> None:
    graph = taken_apart(NANO, looks=False)
    graph["cond"]["inputs"]["draft_crop"] = ["case", 0]
    assert "draft_crop" in published.error(published.wait(published.queue(graph)))


def test_a_batch_of_crops_is_refused(published: Any) -> None:
    graph = taken_apart(NANO, looks=False)
    graph["twice"] = node("RepeatImageBatch", image=["decode", 0], amount=2)
    graph["stitch"]["inputs"]["image"] = ["twice", 0]
    assert "2 image" in published.error(published.wait(published.queue(graph)))


def test_an_older_graph_without_the_crops_recipe_still_runs(published: Any) -> None:
    """As saved before Refine Conditioning could take it: omnirefiner's order and layout."""
    files = FLUX | {"recipe": "omnirefiner"}
    graph = taken_apart(files, looks=False)
    del graph["cond"]["inputs"]["refine_crop"]
    graph["cond"]["inputs"]["guidance"] = 2.5
    assert (saved(published, graph) == saved(published, whole(files))).all()
