"""What the page asks this pack for: scaled pictures before a run, and the recipes' sizes."""

from __future__ import annotations

import asyncio
import io
import os
from typing import Any

import folder_paths
from aiohttp import web
from PIL import Image, ImageOps
from server import PromptServer

from ..refiner_core.commands.demo import CASES
from ..refiner_core.geometry import Extent
from ..refiner_core.previews import fitted
from ..refiner_core.recipes import RECIPES
from .pictures import POINTING

_FOLDERS = {"input", "output", "temp"}
_CASE_PICTURES = {"draft", "reference", "target"}


def add_routes() -> None:
    """Add the pack's routes to the server that is starting; without a server there are none."""
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    server.routes.get("/omnirefiner/recipes")(_recipes)
    server.routes.get("/omnirefiner/picture")(_picture)


async def _recipes(_: web.Request) -> web.Response:
    return web.json_response({name: _sizes(recipe) for name, recipe in RECIPES.items()})


def _sizes(recipe: Any) -> dict[str, Any]:
    return {
        "sizes": [list(s) for s in recipe.buckets.sizes],
        "multiple": recipe.buckets.multiple,
        "context": recipe.context,
    }


async def _picture(request: web.Request) -> web.Response:
    """A picture of ComfyUI's folders, no side over 1024 px; its true size in `X-Picture-Size`."""
    path = _path(request.query)
    if path is None or not os.path.isfile(path):
        return web.json_response({"error": "There is no such picture."}, status=404)
    try:
        data, size = await asyncio.to_thread(_scaled, path)
    except (OSError, Image.DecompressionBombError) as e:
        return web.json_response({"error": f"The picture cannot be read: {e}"}, status=415)
    headers = {"X-Picture-Size": str(size), "Cache-Control": "no-cache"}
    return web.Response(body=data, content_type="image/jpeg", headers=headers)


def _path(query: Any) -> str | None:
    """The file a query names, or None for one outside ComfyUI's folders."""
    case, name = query.get("case"), query.get("name")
    if case is not None:
        known = case in {p.name for p in CASES.iterdir()} and name in _CASE_PICTURES
        return str(CASES / case / f"{name}.png") if known else None
    kind, filename = query.get("type", "input"), query.get("filename", "")
    if kind not in _FOLDERS or not filename:
        return None
    folder = os.path.realpath(folder_paths.get_directory_by_type(kind))
    path = os.path.realpath(os.path.join(folder, query.get("subfolder", ""), filename))
    return path if os.path.commonpath([folder, path]) == folder else None


def _scaled(path: str) -> tuple[bytes, Extent]:
    with Image.open(path) as image:
        turned = image.getexif().get(0x0112, 1) >= 5  # stored on its side
        size = Extent(*(image.size[::-1] if turned else image.size))
        image.draft("RGB", (POINTING, POINTING))  # a JPEG is decoded at a fraction of its size
        shown = image.convert("RGB")
        shown = ImageOps.exif_transpose(shown).resize(
            fitted(size, POINTING), Image.Resampling.BILINEAR, reducing_gap=2.0
        )
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=90)
    return buffer.getvalue(), size
