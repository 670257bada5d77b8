"""A list of repairs: JSON lines, or a folder with one folder for each case."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

from ..data.pair_files import PairFiles, find_cases
from ..data.triplets import check_id
from ..repair.request import RefineOptions
from ..storage.output_files import check_ids
from ..storage.text_files import read_json_lines
from .repair_files import RepairFiles

_FILES = ("draft", "reference", "mask", "reference_mask", "paste_mask")
_OPTIONS = get_type_hints(RefineOptions)
SUMMARY_ID = "summary"  # the results' own file beside those of the jobs
_CRITIC = "A_image"  # only Critic-10K's listings have this field


@dataclass(frozen=True)
class Job:
    """One repair."""

    id: str
    """Names its results: letters, digits, "-" and "_"."""
    files: RepairFiles
    options: RefineOptions

    def described(self) -> dict[str, Any]:
        """What determines the result, for its report."""
        files = {f.name: getattr(self.files, f.name) for f in fields(RepairFiles)}
        return {"files": _as_text(files), "options": dict(vars(self.options))}


def _as_text(value: Any) -> Any:
    """Paths in a JSON value as absolute text."""
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, tuple):
        return [_as_text(v) for v in cast(tuple[Any, ...], value)]
    if isinstance(value, dict):
        return {k: _as_text(v) for k, v in cast(dict[str, Any], value).items()}
    return value


@dataclass(frozen=True)
class JobList:
    """The jobs of a list, and the entries that are none."""

    jobs: list[Job]
    broken: dict[str, str] = field(default_factory=dict)
    """By id, or "line N", why an entry cannot be used."""


def read_jobs(path: Path, options: RefineOptions, resize_masks: bool = False) -> JobList:
    """The jobs of a .jsonl file or of a folder.

    A line is a JSON object with `draft` and `reference` (a file, or a list of up to three), and as
    far as they are wanted `id`, `mask`, `reference_mask`, `paste_mask` and any of the fields of
    `RefineOptions`. Paths are relative to the file. Folders, and Critic-10K's listings, are as
    `data.pair_files` reads them.

    Args:
        path: the list.
        options: hold for every job that does not say otherwise.
        resize_masks: whether masks are resized to the size of their pictures.

    Raises:
        ValueError: there is no such file or folder, it holds no job, or two jobs have the same id.
    """
    if not path.exists():
        raise ValueError(f"The list of jobs {path} does not exist.")
    entries = [] if path.is_dir() else list(read_json_lines(path))
    first = entries[0][1] if entries else {}
    if path.is_dir() or (isinstance(first, dict) and _CRITIC in first):
        cases = find_cases(path, (SUMMARY_ID,))
        return _from_cases(cases, options, resize_masks)
    if not entries:
        raise ValueError(f"{path} lists no jobs: it is empty.")
    jobs: list[Job] = []
    broken: dict[str, str] = {}
    for number, entry in entries:
        try:
            jobs.append(_from_entry(entry, path.parent.absolute(), options, resize_masks))
        except ValueError as e:
            broken[f"line {number}"] = str(e)
    ids = [job.id for job in jobs]
    _check_unique(path, ids)
    check_ids([*ids, SUMMARY_ID], f"jobs of {path}")
    return JobList(jobs, broken)


def _check_unique(path: Path, ids: list[str]) -> None:
    if SUMMARY_ID in ids:
        raise ValueError(
            f"{path} has a job with the id {SUMMARY_ID!r}, which names the report of all jobs. Give it "
            'another "id".'
        )
    repeated = sorted({i for i in ids if ids.count(i) > 1}) if len(set(ids)) < len(ids) else []
    if repeated:
        raise ValueError(
            f"{path} has several jobs with the id {repeated[0]!r}, whose results would replace one "
            'another. Give each an "id" of its own; without one, the id is the name of the draft.'
        )


def _from_entry(
    entry: Mapping[str, Any] | ValueError, folder: Path, options: RefineOptions, resize_masks: bool
) -> Job:
    if isinstance(entry, ValueError):
        raise entry
    unknown = sorted(entry.keys() - {"id", *_FILES, *_OPTIONS})
    if unknown:
        known = ", ".join(("id", *_FILES, *_OPTIONS))
        raise ValueError(f"unknown field {unknown[0]!r}; known: {known}")
    draft, mask, paste_mask = (
        next(iter(_paths(entry, name, folder, most=1)), None)
        for name in ("draft", "mask", "paste_mask")
    )
    references, reference_masks = (
        _paths(entry, name, folder) for name in ("reference", "reference_mask")
    )
    if draft is None or not references:
        raise ValueError(f"it names no {'reference' if draft else 'draft'}")
    files = RepairFiles(draft, references, mask, reference_masks, paste_mask, resize_masks)
    name = entry.get("id", re.sub(r"[^A-Za-z0-9_-]", "_", files.draft.stem)[:100])
    return Job(check_id(str(name)), files, replace(options, **_options(entry)))


def _paths(entry: Mapping[str, Any], name: str, folder: Path, most: int = 3) -> tuple[Path, ...]:
    """The files that a field names, one or a list."""
    value = entry.get(name)
    if value is None:
        return ()
    names = cast(list[Any], value) if isinstance(value, list) else [value]
    if len(names) > most or not all(isinstance(n, str) and n for n in names):
        what = "a file name" if most == 1 else f"a file name or a list of up to {most}"
        raise ValueError(f"{name} must be {what}, got {value!r}")
    return tuple(folder / n for n in names)


def _options(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a line, of the right kind; null is the default."""
    found: dict[str, Any] = {}
    for name in _OPTIONS:
        value = entry.get(name)
        if value is None:
            continue
        kind, what = _kind(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{name} must be {what}, got {value!r}")
        found[name] = value
    return found


def _kind(name: str) -> tuple[Any, str]:
    """The type that an option has apart from None, and what that is called."""
    kind = next(iter(get_args(_OPTIONS[name])), _OPTIONS[name])
    if kind is float:
        return (int, float), "a number"
    named = {int: "a whole number", bool: "true or false"}
    return (kind, named[kind]) if kind in named else (str, "text")


def _from_cases(
    cases: Mapping[str, PairFiles], options: RefineOptions, resize_masks: bool
) -> JobList:
    """The jobs of cases in folders; they have the ids that `evaluate` gives them."""
    jobs: list[Job] = []
    broken: dict[str, str] = {}
    for name, pair in cases.items():
        missing = [role for role in ("draft", "reference") if role not in pair.files]
        if missing:
            broken[name] = f"there is no {missing[0]} picture"
            continue
        reference_mask = pair.files.get("reference_mask")
        files = RepairFiles(
            pair.files["draft"],
            (pair.files["reference"],),
            pair.files.get("mask"),
            () if reference_mask is None else (reference_mask,),
            resize_masks=resize_masks,
        )
        prompt = options.prompt or pair.prompt or None
        jobs.append(Job(name, files, replace(options, prompt=prompt)))
    return JobList(jobs, broken)
