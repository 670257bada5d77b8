"""Turns preferences into training items: every repair of a case is cropped and encoded alike.

Preferences come from a folder of kept and rejected repairs (see `data.preferences`), or from the
results of an evaluation or an audit. They are written as a data set of triplets, one per repair, whose
target is the repair; so the preparation of triplets does the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..data.preferences import (
    Preference,
    Repair,
    check_preference,
    preference_folders,
    read_preference,
)
from ..data.shards import MANIFEST, read_manifest, write_lines, write_shard
from ..data.triplets import Triplet
from ..evaluation.audit_orders import read_orders
from ..evaluation.cases import open_cases
from ..images.image_io import load_picture
from .dataset import Dataset
from .preference_dataset import PreferenceDataset
from .prepare import PreparedDataset

# What an evaluation's repairs are ordered by: the first of these that they have; True: higher is better.
_COLUMNS = (("structure_crop", False), ("dreamsim_crop", False), ("ssim", True), ("psnr", True))
_FILES = {
    "pasted reference": "pasted.png",
    "aligned reference": "aligned.png",
    "refined": "refined.png",
}
_Reader = Callable[[], Preference]


def write_preferences(
    data: Path, cache: Path, held_out: int, log: Callable[[str], None]
) -> tuple[Path, int]:
    """Write the preferences of a folder as triplets; their folder, and how many cases are held out.

    The last `held_out` cases, at most half of all, are held out; there the best repair is the target.
    Cases that cannot be used are left out with the reason.

    Raises:
        ValueError: there are no preferences, or none of them can be used.
    """
    readers = preference_readers(data)
    folder = cache / f"preferences-{_digest(data, held_out)}"
    listing = folder / "preferences.json"
    if listing.is_file():
        return folder, int(json.loads(listing.read_text(encoding="utf-8"))["held_out"])
    found, reasons = _read_all(readers)
    if not found:
        last = "".join([*reasons.values()][-1:])
        raise ValueError(
            f"None of {len(readers)} preferences in {data} can be used. The last reason: {last}"
        )
    if reasons:
        last_id, last = list(reasons.items())[-1]
        log(
            f"{len(reasons)} of {len(readers)} preferences are left out; the last one, {last_id}: {last}"
        )
    kept_back = min(held_out, len(found) // 2)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        "train": found[: len(found) - kept_back],
        "validation": found[len(found) - kept_back :],
    }
    entries: list[dict[str, Any]] = []
    for split, preferences in parts.items():
        if preferences:
            made = [t for p in preferences for t in _triplets(p, best_only=split != "train")]
            entries += write_shard(folder / f"{split}-00000.tar", made)
    write_lines(folder / MANIFEST, entries)
    listing.write_text(json.dumps({"held_out": kept_back, "left_out": reasons}), encoding="utf-8")
    return folder, kept_back


def read_ranks(folder: Path) -> dict[str, tuple[str, int]]:
    """Case and rank by the id of a repair, from the manifest of `write_preferences`."""
    return {e["id"]: (e["preference"], e["rank"]) for e in read_manifest(folder)}


def group_preferences(dataset: Dataset, folder: Path) -> PreferenceDataset:
    """The prepared repairs of `write_preferences` by case."""
    assert isinstance(dataset, PreparedDataset), "preferences are not augmented"
    return PreferenceDataset(dataset, read_ranks(folder))


def _read_all(
    readers: Mapping[str, _Reader],
) -> tuple[list[Preference], dict[str, str]]:
    found: list[Preference] = []
    reasons: dict[str, str] = {}
    for name, read in readers.items():
        try:
            found.append(read())
        except (ValueError, OSError) as e:
            reasons[name] = str(e)
    return found, reasons


def _triplets(preference: Preference, best_only: bool) -> Iterator[Triplet]:
    repairs = preference.repairs[:1] if best_only else preference.repairs
    for number, repair in enumerate(repairs):
        name = hashlib.sha256(preference.id.encode()).hexdigest()[:16]
        yield Triplet(
            f"{name}_{number:03d}",
            preference.draft,
            preference.reference,
            repair.pixels,
            preference.mask,
            preference.reference_mask,
            preference.prompt,
            {"preference": name, "rank": repair.rank},
        )


def _digest(data: Path, held_out: int) -> str:
    """12 hex digits of the names, sizes and times of the files."""
    files = sorted(p for p in data.rglob("*") if p.suffix in (".png", ".json", ".txt"))
    facts = [(str(p.relative_to(data)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(repr((held_out, facts)).encode()).hexdigest()[:12]


# --- where preferences come from -------------------------------------------------------------------


def preference_readers(data: Path) -> dict[str, _Reader]:
    """How each case is read: from a folder of preferences, of an evaluation or of an audit.

    Raises:
        ValueError: the folder does not exist or is none of these.
    """
    if (data / "audit.json").is_file():
        return _of_audit(data)
    if (data / "run.json").is_file() and (data / "cases").is_dir():
        return _of_evaluation(data)
    return {p.name: _reader(read_preference, p) for p in preference_folders(data)}


def _reader(read: Callable[..., Preference], *arguments: Any) -> _Reader:
    return lambda: read(*arguments)


def _of_evaluation(data: Path) -> dict[str, _Reader]:
    """The results of every case, ordered by a metric to the target."""
    settings = json.loads((data / "run.json").read_text(encoding="utf-8"))["settings"]
    source = Path(settings["data"])
    names = open_cases(source, settings["split"]).ids
    return {
        name: _reader(_evaluated, data, source, settings["split"], i)
        for i, name in enumerate(names)
        if (data / "cases" / name / "scores.json").is_file()
    }


def _evaluated(data: Path, source: Path, split: str | None, index: int) -> Preference:
    cases = open_cases(source, split)
    triplet, folder = cases.load(index), data / "cases" / cases.ids[index]
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["scores"]
    column = next(
        (c for c in _COLUMNS if all(s.get(c[0]) is not None for s in scores.values())), None
    )
    if column is None:
        raise ValueError("its results have no metric to the target.")
    key, higher = column
    order = sorted(scores, key=lambda system: scores[system][key], reverse=higher)
    pictures = [(system, _result(folder, triplet, system)) for system in order]
    known = [pixels for _, pixels in pictures if pixels is not None]
    repairs = tuple(Repair(rank, pixels) for rank, pixels in enumerate(known, 1))
    return _preference(triplet, repairs)


def _result(folder: Path, triplet: Triplet, system: str) -> np.ndarray | None:
    if system == "draft":
        return triplet.draft
    path = folder / _FILES.get(system, "")
    return _read(path) if system in _FILES and path.is_file() else None


def _read(path: Path) -> np.ndarray:
    pixels = load_picture(path, "repair").pixels
    return pixels[0].permute(1, 2, 0).contiguous().numpy()


def _of_audit(data: Path) -> dict[str, _Reader]:
    """The order "truth over repair over draft" of every case of an audit."""
    settings = json.loads((data / "audit.json").read_text(encoding="utf-8"))["settings"]
    source, split, results = Path(settings["data"]), settings["split"], settings["results"]
    results = None if results is None else Path(results)
    return {
        name: _reader(_audited, source, split, i, results)
        for i, name in enumerate(open_cases(source, split).ids)
    }


def _audited(source: Path, split: str | None, index: int, results: Path | None) -> Preference:
    triplet = open_cases(source, split).load(index)
    order = read_orders(source, split, index, results)[0]
    if len(order.pictures) != 3 or triplet.target is None:
        raise ValueError("its draft needs no repair.")
    box = order.box
    repairs: list[Repair] = []
    for rank, picture in enumerate(order.pictures, 1):
        whole = triplet.target.copy()
        whole[box.y0 : box.y1, box.x0 : box.x1] = picture[0].permute(1, 2, 0).numpy()
        repairs.append(Repair(rank, whole))
    return _preference(triplet, tuple(repairs))


def _preference(triplet: Triplet, repairs: tuple[Repair, ...]) -> Preference:
    return check_preference(
        Preference(
            triplet.id,
            triplet.draft,
            triplet.reference,
            triplet.mask,
            repairs,
            triplet.reference_mask,
            triplet.prompt,
        )
    )
