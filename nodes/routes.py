"""HTTP routes for the page: scaled images before a run, and the sizes and inputs of recipes."""

from __future__ import annotations

import asyncio
import io
import os
from typing import Any

import folder_paths
from aiohttp import web
from PIL import ExifTags, Image, ImageOps
from server import PromptServer

from ..refiner_core.images.geometry import Extent
from ..refiner_core.images.image_io import DECODING_ERRORS
from ..refiner_core.images.previews import fitted, to_pillow
from ..refiner_core.recipes.recipe import RECIPES
from .example import NAMES, example_case
from .loaders import inputs_of
from .pictures import POINTING
from .preferences import add_verdict, set_collecting

_FOLDERS = {"input", "output", "temp"}
_CASE_PICTURES = {"draft", "reference", "target"}
_DECODING = asyncio.Semaphore(2)  # pictures at a time: a large one takes hundreds of megabytes


def add_routes() -> None:
    """Add the pack's routes to the server, if there is one."""
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    server.routes.get("/omnirefiner/recipes")(_recipes)
    server.routes.get("/omnirefiner/picture")(_picture)
    server.routes.post("/omnirefiner/preferences")(set_collecting)
    server.routes.post("/omnirefiner/verdict")(add_verdict)


async def _recipes(_: web.Request) -> web.Response:
    return web.json_response({name: _sizes(recipe) for name, recipe in RECIPES.items()})


def _sizes(recipe: Any) -> dict[str, Any]:
    return {
        "sizes": [list(s) for s in recipe.buckets.sizes],
        "multiple": recipe.buckets.multiple,
        "context": recipe.context,
        "native_detail": recipe.native_detail,
        "inputs": inputs_of(recipe),
    }


async def _picture(request: web.Request) -> web.Response:
    """An image from ComfyUI's folders or from an Example Case, scaled down to at most 1024 px. The
    header `X-Picture-Size` holds its full size.
    """
    case, name = request.query.get("case"), request.query.get("name")
    path = _path(request.query)
    try:
        if case in NAMES and name in _CASE_PICTURES:
            data, size = await asyncio.to_thread(_of_case, case, name)
        elif path is not None and os.path.isfile(path):
            async with _DECODING:
                data, size = await asyncio.to_thread(_scaled, path)
        else:
            return web.json_response({"error": "The image was not found."}, status=404)
    except DECODING_ERRORS as e:
        return web.json_response({"error": f"The image cannot be read: {e}"}, status=415)
    headers = {"X-Picture-Size": str(size), "Cache-Control": "no-cache"}
    return web.Response(body=data, content_type="image/jpeg", headers=headers)


def _path(query: Any) -> str | None:
    """The file that a query names, or None if it is outside ComfyUI's folders."""
    kind, filename = query.get("type", "input"), query.get("filename", "")
    if kind not in _FOLDERS or not filename or "\0" in "".join(query.values()):
        return None
    folder = os.path.realpath(folder_paths.get_directory_by_type(kind))
    path = os.path.realpath(os.path.join(folder, query.get("subfolder", ""), filename))
    return path if path.startswith(os.path.join(folder, "")) else None


def _scaled(path: str) -> tuple[bytes, Extent]:
    with Image.open(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5  # stored on its side
        size = Extent(*(image.size[::-1] if turned else image.size))
        image.draft("RGB", (POINTING, POINTING))  # a JPEG is decoded at a fraction of its size
        shown = _over_white(image)
        shown = ImageOps.exif_transpose(shown).resize(
            fitted(size, POINTING), Image.Resampling.BILINEAR, reducing_gap=2.0
        )
    return _jpeg(shown), size


def _over_white(image: Image.Image) -> Image.Image:
    """As the repair reads it, and as viewers show it."""
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    shown = Image.alpha_composite(white, layer).convert("RGB")
    shown.info["exif"] = image.info.get("exif", b"")
    return shown


def _of_case(case: str, name: str) -> tuple[bytes, Extent]:
    pixels = getattr(example_case(case), name)
    return _jpeg(to_pillow(pixels, POINTING)), Extent(pixels.shape[-1], pixels.shape[-2])


def _jpeg(shown: Image.Image) -> bytes:
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
