"""Repairs and measures all cases of a data set; goes on where an earlier run stopped.

The output folder holds `run.json` (the settings, which a second run has to share), and per case
`cases/<id>/`: a PNG per system, `repair.json` once they are all there, and `scores.json`. Every file
appears whole or not at all, so a killed run loses at most the case it was at.
"""

from __future__ import annotations

import json
import platform
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..data.triplets import Triplet, encode_png
from ..data.worker_pool import worker_pool
from ..images.image_io import load_picture
from ..images.tensors import to_dtype, to_float
from ..interfaces import Engine
from ..load import load_engine
from ..nano import NANO_WEIGHTS
from ..recipes.recipe import NANO
from ..repair.pipeline import refine
from ..repair.request import RefineOptions, RefineRequest
from ..storage.output_files import atomic_path
from .baselines import PastedReference, pasted_reference
from .cases import Cases, open_cases
from .files import sha256, triplet_digest
from .metrics import Case, Metric, Scores

DRAFT, PASTED, ALIGNED, REFINED = "draft", "pasted reference", "aligned reference", "refined"
_FILES = {PASTED: "pasted.png", ALIGNED: "aligned.png", REFINED: "refined.png"}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to run.

    `data` and `split` the cases; `count` how many of them (None = all); `model` the arguments of
    `load_engine`; `options` of every repair, its seed mixed with the case's id; `results` a folder
    with finished repairs `<id>.png` to read instead of running a refiner; `others` name -> folder
    of another system's `<id>.png` (or `<id>/refined.png`); `workers` processes that repair.
    """

    data: Path
    out: Path
    split: str | None = None
    count: int | None = None
    model: Mapping[str, Any] = field(default_factory=lambda: {"refiner": "nano"})
    options: RefineOptions = field(default_factory=RefineOptions)
    results: Path | None = None
    others: Mapping[str, Path] = field(default_factory=dict)
    workers: int = 1

    def __post_init__(self) -> None:
        taken = {DRAFT, PASTED, ALIGNED, REFINED, "target", "reference"}
        for name, folder in self.others.items():
            if name in taken or not name.strip():
                raise ValueError(f"--other needs a name of its own, got {name!r}.")
            if not folder.is_dir():
                raise ValueError(f"The results of {name}: there is no folder {folder}.")
        if self.results is not None and not self.results.is_dir():
            raise ValueError(f"The results: there is no folder {self.results}.")
        if self.workers < 1 or (self.count is not None and self.count < 1):
            raise ValueError(
                f"workers and count must be 1 or more, got {self.workers} and {self.count}."
            )

    @property
    def systems(self) -> list[str]:
        """The rows of the table, in order."""
        return [DRAFT, PASTED, ALIGNED, *self.others, REFINED]

    def settings(self) -> dict[str, Any]:
        """What decides the pictures, for `run.json`: a resumed run must have the same."""
        model = {k: str(v) for k, v in self.model.items() if v is not None and k != "device"}
        read = self.results is not None
        return {
            "version": __version__, "data": str(self.data.resolve()), "split": self.split,
            "refiner": {"results": str(self.results)} if read else model,
            "weights": {} if read else _weights(self.model),
            "options": {} if read else dict(vars(self.options)),
            "others": {k: str(v.resolve()) for k, v in self.others.items()},
        }  # fmt: skip


def _weights(model: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the weight files a model is named by."""
    path = NANO_WEIGHTS if model["refiner"] == "nano" else Path(model["refiner"]).expanduser()
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    files += [Path(str(a).rpartition(":")[0] or a) for a in model.get("loras", ())]
    return {f.name: sha256(f) for f in files if f.is_file()}


@dataclass(frozen=True)
class Outcome:
    """All there is to report: the measured cases and what was left out, with the reason."""

    plan: Plan
    measured: list[dict[str, Any]]
    failed: dict[str, str]
    systems: list[str]


def case_seed(seed: int, name: str) -> int:
    """The noise seed of a case: the same whatever else is in the data set."""
    return (seed + zlib.crc32(name.encode())) % (1 << 64)


@cache
def _engine(arguments: tuple[tuple[str, Any], ...]) -> Engine:
    return load_engine(**dict(arguments))


def _read_png(path: Path) -> Tensor:
    return to_dtype(to_float(load_picture(path, "result").pixels), torch.uint8)


def _write(path: Path, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    _write(path, json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False).encode())


def _png(image: Tensor) -> bytes:
    return encode_png(image[0].permute(1, 2, 0).contiguous().numpy())


def _repair(job: tuple[Plan, Cases, int]) -> tuple[str, str | None]:
    """Make one case's pictures; its id and what went wrong, if anything did."""
    plan, cases, index = job
    name = cases.ids[index]
    try:
        _make_pictures(plan, cases.load(index), plan.out / "cases" / name)
    except (ValueError, OSError) as e:
        return name, str(e)
    return name, None


def _make_pictures(plan: Plan, triplet: Triplet, folder: Path) -> None:
    case = Case.of(triplet)
    _ = case.box  # refuses an empty mask before any work is done
    folder.mkdir(parents=True, exist_ok=True)
    pasted = pasted_reference(
        triplet.draft, triplet.mask, triplet.reference, triplet.reference_mask
    )
    _write(folder / _FILES[PASTED], encode_png(pasted))
    seed = case_seed(plan.options.seed, triplet.id)
    request = RefineRequest(
        case.draft, (case.reference,), case.mask, (case.reference_mask,),
        replace(plan.options, seed=seed, prompt=plan.options.prompt or case.prompt or None),
    )  # fmt: skip
    report: dict[str, Any] = {}
    recipe = NANO
    if plan.results is None:
        arguments = tuple(
            (k, tuple(v) if isinstance(v, list) else v) for k, v in plan.model.items()
        )
        engine = _engine(arguments)
        recipe = engine.recipe
        done = refine(engine, request)
        _write(folder / _FILES[REFINED], _png(done.image))
        report = done.report
    plain = replace(request, options=RefineOptions(seed=seed))
    aligned = refine(PastedReference(recipe), plain)
    _write(folder / _FILES[ALIGNED], _png(aligned.image))
    _write_json(
        folder / "repair.json",
        {"id": triplet.id, "seed": seed, "digest": triplet_digest(triplet), "report": report},
    )


def _repair_all(plan: Plan, cases: Cases, numbers: Sequence[int], say: Say) -> dict[str, str]:
    """Repair what is not repaired yet; what failed, by id."""
    left = [i for i in numbers if not (plan.out / "cases" / cases.ids[i] / "repair.json").is_file()]
    failed: dict[str, str] = {}
    jobs = [(plan, cases, i) for i in left]
    if len(left) < len(numbers):
        say(f"{len(numbers) - len(left)} of {len(numbers)} cases are repaired already")
    for done, (name, error) in enumerate(_mapped(jobs, plan.workers), 1):
        say(f"repaired {done}/{len(left)}: {name}" + ("" if error is None else f" FAILED: {error}"))
        if error is not None:
            failed[name] = error
    return failed


def _mapped(jobs: list[tuple[Plan, Cases, int]], workers: int) -> Iterator[tuple[str, str | None]]:
    if workers == 1 or len(jobs) < 2:
        yield from map(_repair, jobs)
        return
    with worker_pool(min(workers, len(jobs))) as pool:
        yield from pool.map(_repair, jobs)


def _results(plan: Plan, case: Case) -> dict[str, Tensor]:
    """Every system's picture of a case; a system without one is left out."""
    folder = plan.out / "cases" / case.id
    found = {DRAFT: case.draft}
    for system in (PASTED, ALIGNED):
        found[system] = _read_png(folder / _FILES[system])
    for system, place in {**plan.others, REFINED: plan.results or folder}.items():
        path = folder / _FILES[REFINED] if place == folder else _other(place, case.id)
        if path is None:
            continue
        picture = _read_png(path)
        if picture.shape != case.draft.shape:
            raise ValueError(
                f"{path} is {picture.shape[-1]}x{picture.shape[-2]} but the draft is "
                f"{case.draft.shape[-1]}x{case.draft.shape[-2]}: results must have its size."
            )
        found[system] = picture
    return found


def _other(folder: Path, name: str) -> Path | None:
    places = (folder / f"{name}.png", folder / name / "refined.png")
    return next((p for p in places if p.is_file()), None)


def _measure(plan: Plan, triplet: Triplet, metrics: Sequence[Metric]) -> dict[str, Any]:
    """The scores of one case; only what is missing in `scores.json` is computed."""
    folder = plan.out / "cases" / triplet.id
    repair = json.loads((folder / "repair.json").read_text(encoding="utf-8"))
    if repair["digest"] != triplet_digest(triplet):
        raise ValueError(
            "its pictures in the data set have changed since it was repaired. Delete "
            f"{folder} to repair it anew."
        )
    path = folder / "scores.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    scores: Scores = known.get("scores", {})
    errors: dict[str, str] = {}
    case = Case.of(triplet)
    results = _results(plan, case)
    for metric in metrics:
        todo = {n: r for n, r in results.items() if _missing(metric, scores.get(n, {}))}
        if todo:
            _add(scores, metric, case, todo, errors)
    kept = {n: scores[n] for n in results if n in scores}
    record = {
        "id": triplet.id, "seed": repair["seed"], "digest": repair["digest"],
        "info": triplet.info, "prompt": triplet.prompt, "scores": kept, "errors": errors,
    }  # fmt: skip
    _write_json(path, record)
    return record


def _missing(metric: Metric, row: Mapping[str, float | None]) -> bool:
    """Whether a column has never been measured, or all of them failed."""
    columns = [c.key for c in metric.columns]
    return any(k not in row for k in columns) or all(row[k] is None for k in columns)


def _add(
    scores: Scores, metric: Metric, case: Case, todo: Mapping[str, Tensor], errors: dict[str, str]
) -> None:
    keys = [c.key for c in metric.columns]
    try:
        found = metric.measure(case, todo)
    except (ValueError, RuntimeError, OSError) as e:
        errors[keys[0]] = f"{type(e).__name__}: {e}"
        found = {name: dict.fromkeys(keys) for name in todo}
    for name, row in found.items():
        scores.setdefault(name, {}).update(row)


def _settle_settings(plan: Plan) -> None:
    """Write the settings, or make sure that an earlier run had the same.

    Raises:
        ValueError: it had others; names the first that differs.
    """
    path = plan.out / "run.json"
    settings = json.loads(json.dumps(plan.settings()))
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))["settings"]
        for key, value in settings.items():
            if before.get(key) != value:
                raise ValueError(
                    f"{plan.out} holds a run with {key} {before.get(key)}, now it is {value}. Give "
                    "another --out, or the same settings to go on."
                )
        return
    if any(plan.out.iterdir()):
        raise ValueError(f"{plan.out} is not empty and holds no evaluation: give another --out.")
    made_by = {"torch": torch.__version__, "python": platform.python_version()}
    _write_json(path, {"settings": settings, "made_by": made_by})


def evaluate(plan: Plan, metrics: Sequence[Metric], say: Say) -> Outcome:
    """Repair and measure every case.

    A case that cannot be read, repaired or measured is reported and left out; the others go on.

    Raises:
        ValueError: no cases, or `out` holds something else.
    """
    cases = open_cases(plan.data, plan.split)
    plan.out.mkdir(parents=True, exist_ok=True)
    _settle_settings(plan)
    numbers = range(len(cases.ids) if plan.count is None else min(plan.count, len(cases.ids)))
    failed = _repair_all(plan, cases, numbers, say)
    measured = []
    for i in numbers:
        name = cases.ids[i]
        if name in failed:
            continue
        try:
            measured.append(_measure(plan, cases.load(i), metrics))
        except (ValueError, OSError) as e:
            failed[name] = str(e)
            say(f"{name} FAILED: {e}")
    say(f"measured {len(measured)} cases" + (f", {len(failed)} failed" if failed else ""))
    return Outcome(plan, measured, failed, plan.systems)
