"""The page's crop plan is Python's, to the pixel."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from refiner_core.images.boxes import BoxPair, RelativeBox, box_regions
from refiner_core.images.geometry import Extent, plan_crop
from refiner_core.recipes.recipe import RECIPES, Recipe

HERE = Path(__file__).resolve().parent


def run_node(script: str, data: Any) -> Any:
    """Run a script of this folder with node; JSON in, JSON out."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on the PATH: the page's modules cannot be run")
    done = subprocess.run(
        [node, HERE / script], input=json.dumps(data), capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def random_case(rng: random.Random) -> dict[str, Any]:
    recipe = rng.choice(list(RECIPES.values()))
    largest = rng.choice([40, 300, 1024, 2500])
    x0, x1 = sorted(rng.uniform(0, 1) for _ in range(2))
    y0, y1 = sorted(rng.choice([0.0, 1.0, rng.uniform(0, 1)]) for _ in range(2))
    return {
        "image": [rng.randint(8, largest), rng.randint(8, largest)],
        "box": [x0, y0, x1, y1 if y1 > y0 else y0 + 1e-6],
        "recipe": recipe.name,
        "context": rng.choice([1.0, 1.25, 1.5, 2.0, round(rng.uniform(1, 4), 2)]),
        "megapixels": rng.choice([None, None, 0.03, 0.25, round(rng.uniform(0.02, 2), 3)]),
        "grow": rng.choice([0, 0, 5, 40, -2]),
    }


def sizes_of(recipe: Recipe) -> dict[str, Any]:
    """A recipe as the page gets it."""
    return {
        "sizes": [list(s) for s in recipe.buckets.sizes],
        "multiple": recipe.buckets.multiple,
        "context": recipe.context,
    }


def planned(case: dict[str, Any]) -> dict[str, Any] | None:
    image = Extent(*case["image"])
    pair = BoxPair(RelativeBox(*case["box"]))
    try:
        (region,) = box_regions((pair,), image, grow_pixels=case["grow"])
    except ValueError:
        return None
    buckets = RECIPES[case["recipe"]].buckets
    plan = plan_crop(image, region.box, buckets, case["context"], case["megapixels"])
    return {"region": list(region.box), "box": list(plan.box), "target": list(plan.target)}


@pytest.mark.slow
def test_two_hundred_plans_equal() -> None:
    rng = random.Random(7)
    cases = [random_case(rng) for _ in range(200)]
    expected = [planned(c) for c in cases]
    assert sum(e is None for e in expected) < 40
    sent = [{**c, "recipe": sizes_of(RECIPES[c["recipe"]])} for c in cases]
    answers = run_node("plan_vectors.mjs", sent)
    for case, mine, theirs in zip(cases, expected, answers, strict=True):
        assert theirs == mine, case
