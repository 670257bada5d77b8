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
        "name": "mine",
        "title": "Mine",
        "order": ["draft", "reference"],
        "indices": [1, 2],
        "prompt": "fix the {subject}",
        "guidance": 2.5,
        "steps": 20,
        "shift": None,
        "text_tokens": 512,
        "buckets": "kontext",
        "context": 1.5,
        "align": False,
        "latent_factor": 8,
        "correct_drift_and_color": True,
        "blend": "multiband",
        "reference_blend": 0,
        "codec_residual": 0,
        "native_detail": False,
        "tile": 0,
        "family": "flux",
        "layout": "index",
        "attention": "both ways",
        "conditioning": "detail",
        "references": [1, 1],
        "shared_bucket": True,
        "cfg": 1,
        "negative": "",
        "distilled": {"steps": 8, "cfg": 1},
        "triggers": [["reference", "IMG1"]],
        "prompt_strip": ["<[^>]*>"],
        "note": "",
    }
    assert set(table) == {f.name for f in fields(Recipe)}
    assert read_recipe(write(tmp_path, table)).triggers == (("reference", "IMG1"),)


def test_former_names_of_fields_are_read(tmp_path: Path) -> None:
    former = {
        "settles": False,
        "prefill": 0.5,
        "remainder": 0.25,
        "sight": "detail",
        "one_size": True,
        "fast": {"steps": 4, "cfg": 2},
        "dropped": ["<[^>]*>"],
    }
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
    ("change", "named"),
    [
        ({"stpes": 4}, ["'stpes'", "'steps'"]),
        ({"loader": "os.system"}, ["'loader'"]),
        ({"steps": 0}, ["steps", "1 to 1000", "got 0"]),
        ({"steps": True}, ["steps", "got True"]),
        ({"steps": 2.5}, ["steps", "got 2.5"]),
        ({"guidance": "high"}, ["guidance", "'high'"]),
        ({"prompt": "{subject.__class__}"}, ["prompt", "{subject}", "__class__"]),
        ({"prompt": "{0}"}, ["prompt", "{subject}", "{0}"]),
        ({"order": ["reference"]}, ["order", "draft", "['reference']"]),
        ({"order": [["draft"]]}, ["order", "[['draft']]"]),
        ({"order": ["draft"], "indices": [1, 2]}, ["order", "1", "indices", "[1, 2]"]),
        ({"indices": [2, 1]}, ["indices", "[2, 1]"]),
        ({"indices": []}, ["indices", "[]"]),
        ({"buckets": "sdxl"}, ["buckets", "kontext", "'sdxl'"]),
        ({"buckets": [[500, 500]]}, ["buckets", "8", "[[500, 500]]"]),
        ({"family": "sd3"}, ["family", "flux", "'sd3'"]),
        ({"based_on": "flux"}, ["based_on", "kontext", "'flux'"]),
        ({"name": "kontext"}, ["'kontext'"]),
        ({"name": "../x"}, ["name", "'../x'"]),
        ({"name": None}, ["name", "got None"]),
        ({"conditioning": "detail"}, ["triggers", "conditioning", "detail"]),
        ({"prefill": 0.5, "reference_blend": 0.5}, ["reference_blend"]),
        ({"reference_blend": 0.5, "prefill": 0.5}, ["reference_blend"]),
        ({"prefill": 2}, ["prefill", "0 to 1", "got 2"]),
        ({"prompt_strip": ["("]}, ["prompt_strip", "'('"]),
        ({"prompt_strip": ["(a+)+$"]}, ["prompt_strip", "'(a+)+$'"]),
        ({"prompt_strip": ["(?:a|a)*"]}, ["prompt_strip", "'(?:a|a)*'"]),
        ({"prompt_strip": ["(a*){1,40}b"]}, ["prompt_strip", "{1,40}"]),
        ({"prompt_strip": ["a{99999999999}"]}, ["prompt_strip", "99999999999"]),
        ({"prompt_strip": ["(" * 900 + ")" * 900]}, ["prompt_strip"]),
        ({"references": [2, 1]}, ["references", "[2, 1]"]),
        ({"tile": 40}, ["tile", "16", "40"]),
        ({"tile": 64, "based_on": "omnirefiner"}, ["align", "native_detail"]),
        ({"attention": "sideways"}, ["attention", "both ways, one way", "'sideways'"]),
        ({"attention": "one way", "layout": "offset"}, ['"index"', '"flux" and "offset"']),
        ({"attention": "one way", "family": "flux2"}, ['"flux"', '"flux2"']),
    ],
)
def test_refused(tmp_path: Path, change: dict[str, Any], named: list[str]) -> None:
    table = {"name": "mine", "based_on": "omnirefiner"} | change
    with pytest.raises(ValueError, match=r"mine\.json") as e:
        read_recipe(write(tmp_path, table))
    assert [word for word in named if word not in str(e.value)] == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("suffix", [".json", ".toml"])
def test_files_of_any_editor(tmp_path: Path, encoding: str, suffix: str) -> None:
    """Notepad writes a byte order mark, PowerShell UTF-16."""
    if suffix == ".toml":
        pytest.importorskip("tomllib", reason="TOML needs Python 3.11")
    prompt = "\u4fee\u590d {subject}"
    text = {
        ".json": json.dumps({"name": "mine", "based_on": "nano", "prompt": prompt}),
        ".toml": f'name = "mine"\nbased_on = "nano"\nprompt = "{prompt}"\n',
    }[suffix]
    (tmp_path / f"mine{suffix}").write_bytes(text.encode(encoding))
    assert read_recipe(tmp_path / f"mine{suffix}").prompt == prompt


def test_text_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes('{"name": "\u4fee"}'.encode("gbk"))
    with pytest.raises(ValueError, match=r"a\.json.*UTF-8"):
        read_recipe(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "{"),
        ("b.json", "[]"),
        ("c.json", '{"name": "x"}'),
        ("d.yaml", ""),
        ("e.json", "[" * 100_000),
        ("f.json", '"' + "x" * 100_000 + '"'),
        ("none.json", None),
    ],
)
def test_refused_files(tmp_path: Path, name: str, text: str | None) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="recipe") as e:
        read_recipe(tmp_path / name)
    assert name in str(e.value)


@pytest.mark.parametrize("pattern", [r"\(x\)+", "(a)?b{3}", r"\[\s*\d+(?:,\d+){3}\]", "x*y+"])
def test_patterns_that_are_quick_are_read(tmp_path: Path, pattern: str) -> None:
    table = {"name": "mine", "based_on": "imagecritic", "prompt_strip": [pattern]}
    assert read_recipe(write(tmp_path, table)).prompt_strip == (pattern,)
