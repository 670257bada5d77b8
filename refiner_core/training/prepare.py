"""Turns triplets into training items: cropped as inference crops, encoded once, kept on disk.

An item is one safetensors file, and a folder of them is complete once it has an `items.json`. An
interrupted preparation continues where it stopped. A triplet that cannot be used is recorded with
the reason in `skipped.jsonl` and left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..data.shards import TripletSet
from ..data.splits import manifest_hash, split_data
from ..interfaces import TextEncoder
from ..nano.reference_blend import ReferenceBlend
from ..recipes.recipe import Recipe
from ..storage.output_files import check_ids, ignores_case, write_text
from ..weights.safetensors_io import save_weights
from ..workers.pool import worker_pool
from .augment import AugmentedDataset
from .config import DataSettings
from .crop_triplet import check_worth, crop_triplet
from .dataset import Dataset, Encoder, Item, Pixels, Shape, latent_mask
from .distributed import Processes
from .text_cache import TextCache

ITEMS = "items.json"
SKIPPED = "skipped.jsonl"
_PIXELS = ("target", "draft", "reference", "mask")
_CHUNK = 8  # crops that a worker process makes before it hands them over


def encode(pixels: Pixels, engine: Encoder, data: DataSettings) -> dict[str, Tensor]:
    """The latents of a crop on the CPU: target, draft and reference (float16), mask (uint8)."""
    recipe = engine.recipe
    blend = ReferenceBlend.of(recipe, aligned=recipe.align)
    blended = blend.shown(pixels.draft, pixels.reference, pixels.mask)
    images = {"target": pixels.target, "draft": blended, "reference": pixels.reference}
    out = {k: engine.encode(v).cpu().half() for k, v in images.items()}
    size = (out["target"].shape[-2], out["target"].shape[-1])
    out["mask"] = latent_mask(pixels.mask, size, data.dilate).to(torch.uint8)
    return out


class PreparedDataset:
    """The items of a prepared folder (a `Dataset`); reads one file at a time."""

    def __init__(self, folder: Path, order: tuple[str, ...], names: Sequence[str]) -> None:
        self.folder, self.order = folder, order
        listed: dict[str, Any] = json.loads((folder / ITEMS).read_text())
        self.names = [n for n in names if n in listed]
        self._shapes: list[Shape] = [tuple((h, w) for h, w in listed[name]) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shapes(self) -> list[Shape]:
        return self._shapes

    def prompts(self) -> set[str]:
        """All prompts of the items."""
        prompts = set()
        for name in self.names:
            with safe_open(self.folder / f"{name}.safetensors", "pt") as f:
                prompts.add((f.metadata() or {})["prompt"])
        return prompts

    def __getitem__(self, index: int) -> Item:
        path = self.folder / f"{self.names[index]}.safetensors"
        try:
            sd = load_file(path)
        except Exception as e:
            raise ValueError(
                f"The prepared item {path} is damaged ({e}). Delete it to prepare it again."
            ) from e
        with safe_open(path, "pt") as f:
            facts = f.metadata() or {}
        pixels = None
        if "pixels.target" in sd:
            pixels = Pixels(*(sd[f"pixels.{k}"].float() / 255 for k in _PIXELS))
        references = tuple(sd[role].float() for role in self.order)
        target, mask = sd["target"].float(), sd["mask"].float()
        kind = facts.get("kind", "")  # which items prepared by earlier versions do not have
        return Item(facts["id"], facts["prompt"], target, references, mask, pixels, kind)


def preparation_hash(engine: Encoder, data: DataSettings, source: str, pixels: bool) -> str:
    """12 hex digits of all that a preparation depends on: changed settings never reuse old items."""
    settings = {k: v for k, v in asdict(data).items() if k not in ("variants", "workers")}
    facts = [repr(engine.recipe), settings, engine.source, source, pixels]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def prepare(
    triplets: TripletSet,
    chosen: Sequence[int],
    engine: Encoder,
    data: DataSettings,
    folder: Path,
    processes: Processes,
    *,
    pixels: bool,
    needed: bool = True,
) -> list[str]:
    """Crop and encode the items of the triplets that are missing in `folder`.

    Args:
        chosen: indices of the triplets to prepare.
        pixels: store the pixels beside the latents, for rewards.
        needed: raise an error if no item is left.

    Returns:
        the names of all items, including those that had to be left out.

    Raises:
        ValueError: no triplet could be used, or a setting does not apply to the recipe.
    """
    _check_aligned(engine.recipe, data)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(i, k) for i in chosen for k in range(data.crops)]
    ids = {i: str(triplets.entries[i]["id"]) for i in chosen}
    check_ids(ids.values(), "triplets", ignoring_case=ignores_case(folder))
    names = [f"{ids[i]}-{k}" for i, k in wanted]
    if not (folder / ITEMS).exists():
        paths = {(i, k): folder / f"{ids[i]}-{k}.safetensors" for i, k in wanted}
        _prepare_missing(triplets, paths, engine, data, processes, pixels)
        processes.wait()
        if processes.main:
            _write_list(folder, names, engine.recipe.order, needed)
        processes.wait()
    skipped = _skipped(folder)
    if skipped:
        processes.log(
            f"{len(skipped)} of {len(names)} items are left out; {folder / SKIPPED} lists the "
            f"reasons. The last one: {list(skipped.values())[-1]}"
        )
    return names


# Index of a triplet and of its crop.
_Place = tuple[int, int]


def _prepare_missing(
    triplets: TripletSet,
    paths: dict[_Place, Path],
    engine: Encoder,
    data: DataSettings,
    processes: Processes,
    pixels: bool,
) -> None:
    """This process's share of the items that are neither there nor known to be unusable."""
    from tqdm.auto import tqdm

    skipped = _skipped(next(iter(paths.values())).parent) if paths else {}
    missing = [
        place
        for place in list(paths)[processes.rank :: processes.count]
        if not paths[place].exists() and paths[place].stem not in skipped
    ]
    crops = _crop_all(triplets, engine.recipe, data, missing)
    bar = tqdm(crops, "preparing items", len(missing), disable=not processes.main, leave=False)
    for place, made in zip(missing, bar, strict=True):
        _write(made, engine, data, paths[place], pixels)


def _skipped(folder: Path) -> dict[str, str]:
    """Why items were left out, by name."""
    path = folder / SKIPPED
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    entries = [json.loads(line) for line in lines if line.endswith("}")]
    return {e["item"]: e["reason"] for e in entries}


def _check_aligned(recipe: Recipe, data: DataSettings) -> None:
    given = {
        "variants": data.variants > 1,
        "least_agreement": data.least_agreement is not None,
        "least_gain": data.least_gain is not None,
    }
    for name, is_given in given.items():
        if is_given and not recipe.align:
            raise ValueError(
                f"data.{name} needs aligned references, but the recipe {recipe.name} does not align "
                "them. Leave it at its default."
            )
    if data.flip and recipe.align:
        raise ValueError(
            f"data.flip = true mirrors references, but the recipe {recipe.name} aligns them with the "
            "draft. Set it to false; data.variants mirrors all pictures of a crop alike."
        )


# (id, prompt, kind, planes of `_PIXELS`) of a crop, or the reason why there is none.
_Crop = tuple[str, str, str, tuple[np.ndarray, ...]] | str


def _crop_one(triplets: TripletSet, recipe: Recipe, data: DataSettings, place: _Place) -> _Crop:
    try:
        triplet = triplets[place[0]]
        pixels, _ = crop_triplet(triplet, recipe, data, place[1])
        check_worth(pixels, data)
    except ValueError as e:
        return str(e)
    # Tensors would travel between processes as open files, of which a system allows few.
    kind = str(triplet.info.get("kind", ""))
    return triplet.id, triplet.prompt, kind, tuple(getattr(pixels, k).numpy() for k in _PIXELS)


_opened = lru_cache(1)(TripletSet)


def _crop_in_worker(
    folder: Path, split: str | None, recipe: Recipe, data: DataSettings, place: _Place
) -> _Crop:
    """`_crop_one` in a worker process, which opens the data set once: its index is large."""
    return _crop_one(_opened(folder, split), recipe, data, place)


def _crop_all(
    triplets: TripletSet, recipe: Recipe, data: DataSettings, places: Sequence[_Place]
) -> Iterator[_Crop]:
    """All crops in order, made by `data.workers` processes."""
    if data.workers <= 1 or len(places) <= _CHUNK:
        yield from (_crop_one(triplets, recipe, data, place) for place in places)
        return
    work = partial(_crop_in_worker, triplets.folder, triplets.split, recipe, data)
    # A pool accepts any number of tasks; a few rounds at a time bound what waits in memory.
    round_size = 4 * data.workers * _CHUNK
    with worker_pool(data.workers) as pool:
        try:
            for at in range(0, len(places), round_size):
                yield from pool.map(work, places[at : at + round_size], chunksize=_CHUNK)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _write(made: _Crop, engine: Encoder, data: DataSettings, path: Path, pixels: bool) -> None:
    """Write one item, or record why there is none."""
    if isinstance(made, str):
        with (path.parent / SKIPPED).open("a") as stream:
            stream.write(json.dumps({"item": path.stem, "reason": made}) + "\n")
        return
    name, prompt, kind, planes = made
    pictures = Pixels(*(torch.from_numpy(x) for x in planes))
    tensors = encode(pictures, engine, data)
    if pixels:
        tensors |= {
            f"pixels.{k}": (getattr(pictures, k) * 255).round().to(torch.uint8) for k in _PIXELS
        }
    facts = {"id": name, "prompt": engine.recipe.text(prompt or None), "kind": kind}
    save_weights(path, tensors, facts)


def _write_list(folder: Path, names: Sequence[str], order: tuple[str, ...], needed: bool) -> None:
    """List the items that could be made, with their shapes."""
    listed = {}
    for path in (folder / f"{name}.safetensors" for name in sorted(names)):
        if not path.exists():
            continue  # recorded in skipped.jsonl
        with safe_open(path, "pt") as f:
            shapes = [f.get_slice(k).get_shape()[-2:] for k in ("target", *order)]
        listed[path.stem] = shapes
    if needed and names and not listed:
        reason = "".join([*_skipped(folder).values()][-1:])
        raise ValueError(
            f"None of {len(names)} items can be used; {folder / SKIPPED} lists the reasons. The last "
            f"one: {reason}"
        )
    write_text(folder / ITEMS, json.dumps(listed))


def prepare_datasets(
    encoder: Encoder,
    text: TextEncoder,
    data: DataSettings,
    folder: Path,
    cache: Path,
    processes: Processes,
    pixels: bool,
) -> tuple[Dataset, Dataset, TextCache]:
    """The training and the held-out items of a data set, and the embeddings of their prompts.

    Args:
        encoder, text: what pictures and prompts are encoded with.
        folder: the data set.
        cache: where prepared items are kept and found again.
        pixels: keep the pixels of the training items, for rewards.
    """
    triplets, recipe = TripletSet(folder), encoder.recipe
    train, held_out = split_data(triplets, data.held_out)
    source = manifest_hash(folder)
    keep = pixels or data.variants > 1
    prepared: list[PreparedDataset] = []
    for name, chosen, with_pixels in (("train", train, keep), ("held", held_out, True)):
        key = preparation_hash(encoder, data, f"{source}/{name}/{chosen}", with_pixels)
        names = prepare(
            triplets,
            chosen,
            encoder,
            data,
            cache / key,
            processes,
            pixels=with_pixels,
            needed=name == "train",
        )
        prepared.append(PreparedDataset(cache / key, recipe.order, names))
    texts = TextCache(text, recipe.text_tokens, cache / "texts")
    prompts = sorted({"", *prepared[0].prompts(), *prepared[1].prompts()})
    for prompt in prompts[processes.rank :: processes.count]:
        texts(prompt)
    processes.wait()
    texts.encoder = None
    dataset: Dataset = prepared[0]
    if data.variants > 1:
        dataset = AugmentedDataset(dataset, encoder, data.variants, data.dilate)
    return dataset, prepared[1], texts
