"""Recipes of the user's own: what a file may say, and what it is told when it may not."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from refiner_core.images.geometry import Extent
from refiner_core.recipes.recipe import IMAGECRITIC, OMNIREFINER, Distilled, Recipe
from refiner_core.recipes.recipe_files import find_recipe, read_recipe


def write(folder: Path, table: Any, name: str = "mine.json") -> Path:
    path = folder / name
    path.write_text(table if isinstance(table, str) else json.dumps(table))
    return path


def test_based_on_keeps_the_rest(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, {"name": "mine", "based_on": "imagecritic", "steps": 8}))
    assert recipe.steps == 8 and recipe.triggers == IMAGECRITIC.triggers
    assert find_recipe(str(tmp_path / "mine.json")) == recipe
    assert find_recipe("omnirefiner") is OMNIREFINER


def test_toml(tmp_path: Path) -> None:
    pytest.importorskip("tomllib", reason="TOML needs Python 3.11")
    text = 'name = "mine"\nbased_on = "kontext"\nguidance = "none"\nbuckets = [[512, 768]]\n'
    recipe = read_recipe(write(tmp_path, text, "mine.toml"))
    assert recipe.guidance is None and recipe.buckets.sizes == (Extent(512, 768),)


def test_every_field_can_be_written(tmp_path: Path) -> None:
    table = {
        "name": "mine", "title": "Mine", "order": ["draft", "reference"], "indices": [1, 2],
        "prompt": "fix the {subject}", "guidance": 2.5, "steps": 20, "shift": None,
        "text_tokens": 512, "buckets": "kontext", "context": 1.5, "align": False,
        "latent_factor": 8, "correct_drift_and_color": True, "reference_blend": 0,
        "codec_residual": 0, "family": "flux",
        "layout": "index", "attention": "both ways",
        "conditioning": "detail", "references": [1, 1], "shared_bucket": True, "cfg": 1, "negative": "",
        "distilled": {"steps": 8, "cfg": 1}, "triggers": [["reference", "IMG1"]],
        "prompt_strip": ["<[^>]*>"],
        "note": "",
    }  # fmt: skip
    assert set(table) == {f.name for f in fields(Recipe)}
    assert read_recipe(write(tmp_path, table)).triggers == (("reference", "IMG1"),)


def test_former_names_of_fields_are_read(tmp_path: Path) -> None:
    former = {
        "settles": False, "prefill": 0.5, "remainder": 0.25, "sight": "detail", "one_size": True,
        "fast": {"steps": 4, "cfg": 2}, "dropped": ["<[^>]*>"],
    }  # fmt: skip
    table = {"name": "mine", "based_on": "imagecritic"} | former
    recipe = read_recipe(write(tmp_path, table))
    assert recipe == replace(
        IMAGECRITIC,
        name="mine",
        title="mine",
        correct_drift_and_color=False,
        reference_blend=0.5,
        codec_residual=0.25,
        shared_bucket=True,
        distilled=Distilled(4, 2.0),
        prompt_strip=("<[^>]*>",),
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"stpes": 4}, "no field 'stpes'; did you mean 'steps'"),
        ({"loader": "os.system"}, "no field 'loader'"),
        ({"steps": 0}, "steps must be a whole number from 1 to 1000, got 0"),
        ({"steps": True}, "steps must be a whole number"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"guidance": "high"}, "guidance must be a number"),
        ({"prompt": "{subject.__class__}"}, "no other braces"),
        ({"prompt": "{0}"}, "no other braces"),
        ({"order": ["reference"]}, "must hold draft"),
        ({"order": ["draft"], "indices": [1, 2]}, "1 roles in order need as many indices"),
        ({"indices": [2, 1]}, "must rise by one"),
        ({"indices": []}, "must rise by one"),
        ({"buckets": "sdxl"}, "must be one of kontext"),
        ({"buckets": [[500, 500]]}, "multiples of 8"),
        ({"family": "sd3"}, "family must be one of flux"),
        ({"based_on": "flux"}, "based_on must be one of"),
        ({"name": "kontext"}, "one of the pack's own"),
        ({"name": "../x"}, "needs a name"),
        ({"name": None}, "name must be a text"),
        ({"conditioning": "detail"}, "go together"),
        ({"prefill": 0.5, "reference_blend": 0.5}, "reference_blend"),
        ({"reference_blend": 0.5, "prefill": 0.5}, "reference_blend"),
        ({"prefill": 2}, "prefill must be a number from 0 to 1, got 2"),
        ({"prompt_strip": ["("]}, "no regular expression"),
        ({"references": [2, 1]}, "least and the most"),
        ({"attention": "sideways"}, "attention must be one of both ways, one way"),
        ({"attention": "one way", "layout": "offset"}, 'layout "index", got "flux" and "offset"'),
        ({"attention": "one way", "family": "flux2"}, 'family "flux".*got "flux2"'),
    ],
)
def test_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    table = {"name": "mine", "based_on": "omnirefiner"} | change
    with pytest.raises(ValueError, match=says) as e:
        read_recipe(write(tmp_path, table))
    assert "mine.json" in str(e.value)


def test_refused_files(tmp_path: Path) -> None:
    for text, name, says in (
        ("{", "a.json", "cannot be read"),
        ("[]", "b.json", "one table"),
        ('{"name": "x"}', "c.json", "without based_on it needs .*order"),
        ("", "d.yaml", "must end in"),
    ):
        with pytest.raises(ValueError, match=says):
            read_recipe(write(tmp_path, text, name))
    with pytest.raises(ValueError, match="does not exist"):
        read_recipe(tmp_path / "none.json")
