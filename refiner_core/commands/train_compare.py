"""`omnirefiner train compare`: compares two refiners on the same held-out cases."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any


def add_parser(kinds: Any) -> None:
    """Add the command's options."""
    p = kinds.add_parser("compare", help="compare two refiners, with confidence intervals")
    p.add_argument(
        "--a", default="nano", metavar="REFINER", help="first refiner: nano, a file or a folder"
    )
    p.add_argument(
        "--b", required=True, metavar="REFINER", help="second refiner: nano, a file or a folder"
    )
    for name, which in (("--lora-a", "first"), ("--lora-b", "second")):
        p.add_argument(
            name,
            action="append",
            default=[],
            metavar="FILE:STRENGTH",
            help=f"a LoRA to merge into the {which} refiner; can be given several times",
        )
    p.add_argument("--recipe", help="recipe of both refiners; default: follows from the refiners")
    p.add_argument(
        "--data", metavar="DIR", help="folder of triplets; default: procedural held-out scenes"
    )
    p.add_argument("--split", help="split of --data, for example test")
    p.add_argument("--count", type=int, default=256, help="number of cases; default: %(default)s")
    p.add_argument(
        "--workers", type=int, default=2, help="number of processes that draw scenes; default: 2"
    )
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    p.add_argument("--json", metavar="FILE", help="write the metrics of each case")
    p.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Measure both and print the table."""
    from ..load import load_engine
    from ..storage.output_files import write_text
    from ..training.compare import data_set_cases, held_out_scenes, measure, paired, table

    if chosen.count < 2:
        raise ValueError(f"--count must be at least 2, got {chosen.count}.")
    engines = [
        load_engine(refiner, loras=loras, recipe=chosen.recipe, device=chosen.device)
        for refiner, loras in ((chosen.a, chosen.lora_a), (chosen.b, chosen.lora_b))
    ]
    if engines[0].recipe != engines[1].recipe:
        raise ValueError(
            f"The refiners have different recipes, {engines[0].recipe.name} and "
            f"{engines[1].recipe.name}: choose one with --recipe."
        )
    if chosen.data:
        cases = data_set_cases(Path(chosen.data), engines[0].recipe, chosen.count, chosen.split)
    else:
        cases = held_out_scenes(chosen.count, chosen.workers)
    rows = [measure(engine, cases) for engine in engines]
    found = paired(rows[0], rows[1])
    print(table(found, (Path(chosen.a).name, Path(chosen.b).name), len(cases)))
    if chosen.json:
        content = {
            "a": chosen.a,
            "b": chosen.b,
            "count": len(cases),
            "comparison": [asdict(c) for c in found],
            "cases": [{k: v.tolist() for k, v in r.items()} for r in rows],
        }
        write_text(chosen.json, json.dumps(content))
