"""Repairs and measures all cases of a data set, and resumes where an earlier run stopped.

The output folder holds `run.json` (the settings, which a resumed run must share) and per case
`cases/<id>/`: a PNG per system, `repair.json` once they are complete, and `scores.json`. Every file
is written completely or not at all, so a killed run loses at most the case it was working on.
"""

from __future__ import annotations

import json
import platform
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.triplets import Triplet, encode_png
from ..images.image_io import load_picture
from ..images.tensors import to_dtype, to_float
from ..interfaces import Engine
from ..load import load_engine
from ..recipes.recipe import NANO
from ..repair.pipeline import refine
from ..repair.request import RefineOptions, RefineRequest
from ..storage.output_files import atomic_path, check_ids, ignores_case
from .baselines import PastedReference, pasted_reference
from .cases import Cases, open_cases
from .digests import triplet_digest
from .evaluation_settings import ALIGNED, DRAFT, PASTED, REFINED, EvaluationSettings, Outcome
from .metric import EvaluationCase, Metric, Scores

_FILES = {PASTED: "pasted.png", ALIGNED: "aligned.png", REFINED: "refined.png"}
_SETTINGS = "run.json"
Log = Callable[[str], None]


def case_seed(seed: int, name: str) -> int:
    """The noise seed of a case, which does not depend on the other cases."""
    return (seed + zlib.crc32(name.encode())) % (1 << 64)


def _read_png(path: Path) -> Tensor:
    return to_dtype(to_float(load_picture(path, "result").pixels), torch.uint8)


def _write(path: Path, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    _write(path, json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False).encode())


def _png(image: Tensor) -> bytes:
    return encode_png(image[0].permute(1, 2, 0).contiguous().numpy())


class _Repairer:
    """Makes the pictures of cases; the engine is loaded once, and only if it is needed."""

    def __init__(self, settings: EvaluationSettings, cases: Cases, device: str) -> None:
        self.settings, self.cases = settings, cases
        model = {**settings.model, "device": device}
        self.engine = load_engine(**model) if settings.results is None else None

    def __call__(self, index: int) -> None:
        """Make those of the case number `index`."""
        folder = self.settings.out / "cases" / self.cases.ids[index]
        _make_pictures(self.settings, self.engine, self.cases.load(index), folder)


def _make_pictures(
    settings: EvaluationSettings, engine: Engine | None, triplet: Triplet, folder: Path
) -> None:
    case = EvaluationCase.of(triplet)
    _ = case.box  # rejects an empty mask before any work is done
    folder.mkdir(parents=True, exist_ok=True)
    pasted = pasted_reference(
        triplet.draft, triplet.mask, triplet.reference, triplet.reference_mask
    )
    _write(folder / _FILES[PASTED], encode_png(pasted))
    seed = case_seed(settings.options.seed, triplet.id)
    prompt = settings.options.prompt or case.prompt or None
    options = replace(settings.options, seed=seed, prompt=prompt)
    request = RefineRequest(
        case.draft, (case.reference,), case.mask, (case.reference_mask,), options
    )
    report: dict[str, Any] = {}
    recipe = NANO
    if engine is not None:
        recipe = engine.recipe
        result = refine(engine, request)
        _write(folder / _FILES[REFINED], _png(result.image))
        report = result.report
    defaults = replace(request, options=RefineOptions(seed=seed))
    aligned = refine(PastedReference(recipe), defaults)
    _write(folder / _FILES[ALIGNED], _png(aligned.image))
    _write_json(
        folder / "repair.json",
        {"id": triplet.id, "seed": seed, "digest": triplet_digest(triplet), "report": report},
    )


def _repair_all(
    settings: EvaluationSettings, cases: Cases, numbers: Sequence[int], log: Log
) -> dict[str, str]:
    """Repair what is not repaired yet; returns the failures by id."""
    todo = [
        i for i in numbers if not (settings.out / "cases" / cases.ids[i] / "repair.json").is_file()
    ]
    failed: dict[str, str] = {}
    if len(todo) < len(numbers):
        log(f"{len(numbers) - len(todo)} of {len(numbers)} cases are already repaired")
    open_worker = partial(_Repairer, replace(settings, out=settings.out.absolute()), cases)
    for done, finished in enumerate(settings.place.run(open_worker, todo), 1):
        name, error = cases.ids[todo[finished.index]], finished.error
        log(f"repaired {done}/{len(todo)}: {name}" + ("" if error is None else f" FAILED: {error}"))
        if error is not None:
            failed[name] = error
    return failed


def _results(settings: EvaluationSettings, case: EvaluationCase) -> dict[str, Tensor]:
    """Every system's picture of a case; a system without one is left out."""
    folder = settings.out / "cases" / case.id
    pictures = {DRAFT: case.draft}
    for system in (PASTED, ALIGNED):
        pictures[system] = _read_png(folder / _FILES[system])
    for system, source in {**settings.others, REFINED: settings.results or folder}.items():
        path = folder / _FILES[REFINED] if source == folder else _find_result(source, case.id)
        if path is None:
            continue
        picture = _read_png(path)
        if picture.shape != case.draft.shape:
            raise ValueError(
                f"{path} is {picture.shape[-1]}x{picture.shape[-2]} but the draft is "
                f"{case.draft.shape[-1]}x{case.draft.shape[-2]}: a result must have the same size."
            )
        pictures[system] = picture
    return pictures


def _find_result(folder: Path, name: str) -> Path | None:
    paths = (folder / f"{name}.png", folder / name / "refined.png")
    return next((p for p in paths if p.is_file()), None)


def _measure(
    settings: EvaluationSettings, triplet: Triplet, metrics: Sequence[Metric]
) -> dict[str, Any]:
    """The scores of one case; only what is missing in `scores.json` is computed."""
    folder = settings.out / "cases" / triplet.id
    repair = json.loads((folder / "repair.json").read_text(encoding="utf-8"))
    if repair["digest"] != triplet_digest(triplet):
        raise ValueError(
            "its pictures in the data set have changed since it was repaired. Delete "
            f"{folder} to repair it again."
        )
    path = folder / "scores.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    scores: Scores = known.get("scores", {})
    errors: dict[str, str] = {}
    case = EvaluationCase.of(triplet)
    results = _results(settings, case)
    for metric in metrics:
        todo = {n: r for n, r in results.items() if _missing(metric, scores.get(n, {}))}
        if todo:
            _add(scores, metric, case, todo, errors)
    kept = {n: scores[n] for n in results if n in scores}
    record = {
        "id": triplet.id,
        "seed": repair["seed"],
        "digest": repair["digest"],
        "info": triplet.info,
        "prompt": triplet.prompt,
        "scores": kept,
        "errors": errors,
    }
    _write_json(path, record)
    return record


def _missing(metric: Metric, row: Mapping[str, float | None]) -> bool:
    """Whether a column has never been measured, or all of them failed."""
    columns = [c.key for c in metric.columns]
    return any(k not in row for k in columns) or all(row[k] is None for k in columns)


def _add(
    scores: Scores,
    metric: Metric,
    case: EvaluationCase,
    todo: Mapping[str, Tensor],
    errors: dict[str, str],
) -> None:
    keys = [c.key for c in metric.columns]
    try:
        measured = metric.measure(case, todo)
    except (ValueError, RuntimeError, OSError) as e:
        errors[keys[0]] = f"{type(e).__name__}: {e}"
        measured = {name: dict.fromkeys(keys) for name in todo}
    for name, row in measured.items():
        scores.setdefault(name, {}).update(row)


def _write_settings(settings: EvaluationSettings) -> None:
    """Write the settings, or check that an earlier run had the same.

    Raises:
        ValueError: a setting differs; names the first one.
    """
    path = settings.out / _SETTINGS
    recorded = json.loads(json.dumps(settings.recorded()))
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))["settings"]
        for key, value in recorded.items():
            if before.get(key) != value:
                raise ValueError(
                    f"{settings.out} holds a run with {key} {before.get(key)}, now it is {value}. Use "
                    "another --out, or the same settings to resume it."
                )
        return
    if any(settings.out.iterdir()):
        raise ValueError(f"{settings.out} is not empty and holds no evaluation: use another --out.")
    made_by = {"torch": torch.__version__, "python": platform.python_version()}
    _write_json(path, {"settings": recorded, "made_by": made_by})


def evaluate(settings: EvaluationSettings, metrics: Sequence[Metric], log: Log) -> Outcome:
    """Repair and measure every case.

    A case that cannot be read, repaired or measured is reported and left out.

    Raises:
        ValueError: there are no cases, or `out` holds something else.
    """
    cases = open_cases(settings.data, settings.split)
    settings.out.mkdir(parents=True, exist_ok=True)
    _write_settings(settings)
    check_ids(cases.ids, f"cases of {settings.data}", ignores_case(settings.out / _SETTINGS))
    numbers = range(
        len(cases.ids) if settings.count is None else min(settings.count, len(cases.ids))
    )
    failed = _repair_all(settings, cases, numbers, log)
    measured = []
    for i in numbers:
        name = cases.ids[i]
        if name in failed:
            continue
        try:
            measured.append(_measure(settings, cases.load(i), metrics))
        except (ValueError, OSError) as e:
            failed[name] = str(e)
            log(f"{name} FAILED: {e}")
    log(f"measured {len(measured)} cases" + (f", {len(failed)} failed" if failed else ""))
    return Outcome(settings, measured, failed)
