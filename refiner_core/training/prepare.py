"""Triplets to training views: framed as inference frames them, encoded once, kept on disk.

A view is one safetensors file; a set of them is complete when its `views.json` is there. An
interrupted preparation goes on where it stopped, and a triplet that cannot be used is noted in
`skipped.jsonl` with the reason and left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..data.shards import TripletSet
from ..data.worker_pool import worker_pool
from ..models.core_engine import TextEncoder
from ..nano.reference_blend import ReferenceBlend
from ..recipes.recipe import Recipe
from ..storage.output_files import atomic_path
from ..weights.safetensors_io import save_weights
from .config import DataSettings
from .crop_triplet import frame
from .dataset import Pixels, Shape, View, latent_region
from .distributed import Workers
from .filter import check_worth

_PIXELS = ("target", "draft", "reference", "mask")
SKIPPED = "skipped.jsonl"
_PROMPTS = 64  # embeddings kept in memory
_AT_ONCE = 8  # views that a process frames before it hands them over


class Encoder(Protocol):
    """The part of an engine that preparing needs; `source` says what weights it encodes with."""

    recipe: Recipe
    source: dict[str, str]

    def encode(self, image: Tensor) -> Tensor: ...


def encode(pixels: Pixels, engine: Encoder, data: DataSettings) -> dict[str, Tensor]:
    """The latents of a framed view, on the CPU: target, draft and reference (half), mask."""
    recipe = engine.recipe
    blend = ReferenceBlend.of(recipe, aligned=recipe.align)
    seen = blend.shown(pixels.draft, pixels.reference, pixels.mask)
    images = {"target": pixels.target, "draft": seen, "reference": pixels.reference}
    out = {k: engine.encode(v).cpu().half() for k, v in images.items()}
    size = (out["target"].shape[-2], out["target"].shape[-1])
    out["mask"] = latent_region(pixels.mask, size, data.grow).to(torch.uint8)
    return out


class PreparedViews:
    """Views out of a prepared folder (`Views`); reads one file at a time."""

    def __init__(self, folder: Path, order: tuple[str, ...], names: Sequence[str]) -> None:
        self.folder, self.order = folder, order
        listed: dict[str, Any] = json.loads((folder / "views.json").read_text())
        self.names = [n for n in names if n in listed]
        self._shapes: list[Shape] = [tuple((h, w) for h, w in listed[name]) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shapes(self) -> list[Shape]:
        return self._shapes

    def prompts(self) -> set[str]:
        """Every prompt that the views speak."""
        found = set()
        for name in self.names:
            with safe_open(self.folder / f"{name}.safetensors", "pt") as f:
                found.add((f.metadata() or {})["prompt"])
        return found

    def __getitem__(self, index: int) -> View:
        path = self.folder / f"{self.names[index]}.safetensors"
        try:
            sd = load_file(path)
        except Exception as e:
            raise ValueError(
                f"The prepared view {path} is damaged ({e}). Delete it to redo it."
            ) from e
        with safe_open(path, "pt") as f:
            facts = f.metadata() or {}
        pixels = None
        if "pixels.target" in sd:
            pixels = Pixels(*(sd[f"pixels.{k}"].float() / 255 for k in _PIXELS))
        references = tuple(sd[role].float() for role in self.order)
        return View(
            facts["id"],
            facts["prompt"],
            sd["target"].float(),
            references,
            sd["mask"].float(),
            pixels,
        )


def fingerprint(engine: Encoder, data: DataSettings, source: str, pixels: bool) -> str:
    """What a preparation depends on, as 12 hex digits: a changed setting never meets old views."""
    settings = {k: v for k, v in asdict(data).items() if k not in ("variants", "workers")}
    facts = [repr(engine.recipe), settings, engine.source, source, pixels]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def prepare(
    triplets: TripletSet,
    chosen: Sequence[int],
    engine: Encoder,
    data: DataSettings,
    folder: Path,
    workers: Workers,
    *,
    pixels: bool,
    needed: bool = True,
) -> list[str]:
    """Frame and encode every view of the triplets that `folder` lacks; the names of them all.

    Args:
        chosen: numbers of the triplets to prepare.
        pixels: keep the pixels beside the latents, for rewards.
        needed: that no view is left is an error.

    Raises:
        ValueError: no triplet could be used, or settings that the recipe has no use for.
    """
    from tqdm.auto import tqdm

    _check_aligned(engine.recipe, data)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(i, k) for i in chosen for k in range(data.views)]
    ids = {i: str(triplets.entries[i]["id"]) for i in chosen}
    names = [f"{ids[i]}-{k}" for i, k in wanted]
    if not (folder / "views.json").exists():
        paths = {(i, k): folder / f"{ids[i]}-{k}.safetensors" for i, k in wanted}
        refused = _refusals(folder)
        mine = [
            v for v in wanted[workers.rank :: workers.count]
            if not paths[v].exists() and paths[v].stem not in refused
        ]  # fmt: skip
        framed = _framed(triplets, engine.recipe, data, mine)
        bar = tqdm(framed, "preparing views", len(mine), disable=not workers.main, leave=False)
        for view, found in zip(mine, bar, strict=True):
            _keep(found, engine, data, paths[view], pixels)
        workers.wait()
        if workers.main:
            _finish(folder, names, engine.recipe.order, needed)
        workers.wait()
    refused = _refusals(folder)
    if refused:
        workers.say(
            f"{len(refused)} of {len(names)} views are left out (why: {folder / SKIPPED}), "
            f"the last because {list(refused.values())[-1]}"
        )
    return names


def _refusals(folder: Path) -> dict[str, str]:
    """Why views were left out, by name."""
    path = folder / SKIPPED
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return {f["view"]: f["reason"] for f in found}


def _check_aligned(recipe: Recipe, data: DataSettings) -> None:
    given = {
        "variants": data.variants > 1,
        "least_agreement": data.least_agreement is not None,
        "least_gain": data.least_gain is not None,
    }
    for name, is_given in given.items():
        if is_given and not recipe.align:
            raise ValueError(
                f"data.{name} needs aligned references, and the recipe {recipe.name} does not align "
                "them. Leave it at its default."
            )


# (id, prompt, target, draft, reference, mask) of a framed view, or why there is none.
_Framed = tuple[str, str, tuple[np.ndarray, ...]] | str


def _frame_one(
    triplets: TripletSet, recipe: Recipe, data: DataSettings, view: tuple[int, int]
) -> _Framed:
    try:
        triplet = triplets[view[0]]
        seen, _ = frame(triplet, recipe, data, view[1])
        check_worth(seen, data)
    except ValueError as e:
        return str(e)
    # Tensors would travel between processes as open files, and of those there are few.
    return triplet.id, triplet.prompt, tuple(getattr(seen, k).numpy() for k in _PIXELS)


_opened = lru_cache(1)(TripletSet)


def _frame_elsewhere(
    folder: Path, split: str | None, recipe: Recipe, data: DataSettings, view: tuple[int, int]
) -> _Framed:
    """`_frame_one` in a process of a pool, which opens the data set once: its index is large."""
    return _frame_one(_opened(folder, split), recipe, data, view)


def _framed(
    triplets: TripletSet, recipe: Recipe, data: DataSettings, views: Sequence[tuple[int, int]]
) -> Iterator[_Framed]:
    """Every view (number of its triplet, number of the view), in order."""
    processes = data.workers
    if processes <= 1 or len(views) <= _AT_ONCE:
        yield from (_frame_one(triplets, recipe, data, view) for view in views)
        return
    work = partial(_frame_elsewhere, triplets.folder, triplets.split, recipe, data)
    # A pool takes on all it is given: a few rounds at a time bound what waits in memory.
    some = 4 * processes * _AT_ONCE
    with worker_pool(processes) as pool:
        try:
            for at in range(0, len(views), some):
                yield from pool.map(work, views[at : at + some], chunksize=_AT_ONCE)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _keep(found: _Framed, engine: Encoder, data: DataSettings, path: Path, pixels: bool) -> None:
    """Write one view, or note why there is none."""
    if isinstance(found, str):
        with (path.parent / SKIPPED).open("a") as stream:
            stream.write(json.dumps({"view": path.stem, "reason": found}) + "\n")
        return
    name, prompt, planes = found
    seen = Pixels(*(torch.from_numpy(x) for x in planes))
    tensors = encode(seen, engine, data)
    if pixels:
        tensors |= {
            f"pixels.{k}": (getattr(seen, k) * 255).round().to(torch.uint8) for k in _PIXELS
        }
    save_weights(path, tensors, {"id": name, "prompt": engine.recipe.text(prompt or None)})


def _finish(folder: Path, names: Sequence[str], order: tuple[str, ...], needed: bool) -> None:
    """List the views that could be made, with their shapes."""
    listed = {}
    for path in (folder / f"{name}.safetensors" for name in sorted(names)):
        if not path.exists():
            continue  # skipped.jsonl says why
        with safe_open(path, "pt") as f:
            shapes = [f.get_slice(k).get_shape()[-2:] for k in ("target", *order)]
        listed[path.stem] = shapes
    if needed and names and not listed:
        reason = [*_refusals(folder).values()][-1:]
        raise ValueError(
            f"None of {len(names)} views can be used; the last because {''.join(reason)} The others' "
            f"reasons: {folder / SKIPPED}."
        )
    with atomic_path(folder / "views.json") as temporary:
        temporary.write_text(json.dumps(listed))


class TextCache:
    """Text embeddings on disk: a prompt is encoded once, and the encoders can then be let go."""

    def __init__(self, encoder: TextEncoder, length: int, folder: Path) -> None:
        self.encoder: TextEncoder | None = encoder
        self.length, self.folder = length, folder
        # T5's embedding of one prompt takes 8 MB, and a data set may have thousands of prompts.
        self._recent = lru_cache(_PROMPTS)(self._load)

    def __call__(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Text 1 L D and pooled 1 P, float32."""
        return self._recent(prompt)

    def _load(self, prompt: str) -> tuple[Tensor, Tensor]:
        key = hashlib.sha256(f"{self.length}/{prompt}".encode()).hexdigest()[:24]
        path = self.folder / f"text-{key}.safetensors"
        if not path.exists():
            assert self.encoder is not None, "a prompt that was not there when views were prepared"
            self.folder.mkdir(parents=True, exist_ok=True)
            text, pooled = self.encoder(prompt, self.length)
            save_weights(path, {"text": text, "pooled": pooled})
        sd = load_file(path)
        return sd["text"].float(), sd["pooled"].float()
