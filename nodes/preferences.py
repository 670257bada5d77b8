"""Keep or reject: what the page says of a result, written to a local folder for `train dpo`.

Off until the page asks for it. Then the latest results are remembered in memory, and what is kept or
rejected is written to `omnirefiner-preferences` in ComfyUI's output folder. Nothing is sent anywhere.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import folder_paths
import numpy as np
import torch
from aiohttp import web
from comfy_api.latest import io
from torch import Tensor

from ..refiner_core.data.preferences import RepairInputs, record_verdict
from ..refiner_core.images.tensors import to_dtype, to_float
from ..refiner_core.repair.pipeline import RefineResult
from ..refiner_core.repair.request import RefineRequest

FOLDER = "omnirefiner-preferences"
_REMEMBERED = 4  # results


class _Remembered(NamedTuple):
    request: RefineRequest
    result: RefineResult


class _Collection:
    """Whether results are remembered, and the latest of every node."""

    def __init__(self) -> None:
        self.on = False
        self.runs: OrderedDict[str, _Remembered] = OrderedDict()


_COLLECTION = _Collection()


def remember(node: type[io.ComfyNode], request: RefineRequest, result: RefineResult) -> None:
    """Keep a run's result for a verdict, if the page has asked for it."""
    if not _COLLECTION.on or node.hidden is None:
        return
    runs = _COLLECTION.runs
    runs[str(node.hidden.unique_id)] = _Remembered(request, result)
    runs.move_to_end(str(node.hidden.unique_id))
    while len(runs) > _REMEMBERED:
        runs.popitem(last=False)


def preferences_folder() -> Path:
    """Where verdicts are written."""
    return Path(folder_paths.get_output_directory()) / FOLDER


async def set_collecting(request: web.Request) -> web.Response:
    """Switch remembering on or off (`{"on": true}`); answers with the folder."""
    _COLLECTION.on = bool((await request.json()).get("on"))
    if not _COLLECTION.on:
        _COLLECTION.runs.clear()
    return web.json_response({"on": _COLLECTION.on, "folder": str(preferences_folder())})


async def add_verdict(request: web.Request) -> web.Response:
    """Write a verdict (`{"node": id, "picture": number, "kept": true}`); answers with the file."""
    asked = await request.json()
    run = _COLLECTION.runs.get(str(asked.get("node")))
    number = asked.get("picture", 0)
    if run is None or not isinstance(number, int) or not 0 <= number < len(run.result.image):
        return web.json_response({"error": "This result is no longer remembered."}, status=404)
    try:
        path = await asyncio.to_thread(_write, run, number, bool(asked.get("kept")))
    except (ValueError, OSError) as e:
        return web.json_response({"error": str(e)}, status=400)
    return web.json_response({"file": str(path)})


def _write(run: _Remembered, number: int, kept: bool) -> Path:
    request, result = run
    if not request.references:
        raise ValueError("A verdict needs a reference, but this run had none.")
    reference = request.references[min(number, len(request.references) - 1)]
    mask = result.mask[min(number, len(result.mask) - 1)]
    inputs = RepairInputs(
        _pixels(request.draft[min(number, len(request.draft) - 1)]),
        _pixels(reference[0]),
        ((mask[0] > 0).numpy() * 255).astype(np.uint8),
        request.options.prompt or "",
    )
    return record_verdict(preferences_folder(), inputs, _pixels(result.image[number]), kept)


def _pixels(image: Tensor) -> np.ndarray[Any, Any]:
    """3 H W in any stored type as uint8 H W 3."""
    stored = to_dtype(to_float(image.cpu()), torch.uint8)
    return stored.permute(1, 2, 0).contiguous().numpy()
