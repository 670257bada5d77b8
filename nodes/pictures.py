"""Images for the page: files in ComfyUI's temp folder, and the events that announce them."""

from __future__ import annotations

import html
import logging
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer
from torch import Tensor

from ..refiner_core.images.geometry import Box
from ..refiner_core.images.previews import to_pillow, updated
from ..refiner_core.storage.output_files import atomic_path
from ..refiner_core.storage.recent_files import NodeRun, RecentFiles

# Longest side of what the page is sent, px: to point at details, and to compare pixel by pixel.
POINTING, COMPARING = 1024, 4096
# ComfyUI empties its temp folder only when it starts.
_WRITTEN = RecentFiles(most_files=1000, most_bytes=2 << 30)


def temp_picture(image: Tensor, side: int = COMPARING) -> dict[str, Any]:
    """Write the first image of B 3 H W to the temp folder, scaled down to at most `side` px.

    Returns what the page needs: `filename`, `subfolder`, `type` for /view, and the true `width` and
    `height`.
    """
    return _write(to_pillow(image, side), image.shape[-1], image.shape[-2])


def temp_pair(before: Tensor, after: Tensor, boxes: Sequence[Box]) -> dict[str, dict[str, Any]]:
    """The same for a draft and its repair, 1 3 H W each, which differ only in `boxes`: most of the
    second file's pixels are the first one's.
    """
    shown = to_pillow(before, COMPARING)
    pictures = {"before": shown, "after": updated(shown, after, boxes)}
    return {name: _write(p, after.shape[-1], after.shape[-2]) for name, p in pictures.items()}


def temp_mask(mask: Tensor) -> dict[str, Any]:
    """The same for the first mask of B 1 H W."""
    shown = to_pillow(mask[:1].expand(-1, 3, -1, -1), POINTING).convert("L")
    return _write(shown, mask.shape[-1], mask.shape[-2])


def _write(shown: Image.Image, width: int, height: int) -> dict[str, Any]:
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    name = f"omnirefiner_{uuid.uuid4().hex[:16]}.png"
    with atomic_path(folder / name) as temporary:
        shown.save(temporary, compress_level=1)
    context = get_executing_context()
    run = NodeRun("", "") if context is None else NodeRun(context.prompt_id, context.node_id)
    _WRITTEN.add(run, folder / name)
    return {
        "filename": name,
        "subfolder": "",
        "type": "temp",
        "width": width,
        "height": height,
    }


def tell_page(node: type[io.ComfyNode], event: str, data: dict[str, Any]) -> None:
    """Send the event `omnirefiner.<event>` about a running node to the page that queued it.

    Does nothing if the node is called outside a running prompt.
    """
    server = getattr(PromptServer, "instance", None)
    if server is None or node.hidden is None:
        return
    server.send_sync(
        f"omnirefiner.{event}", {"node": node.hidden.unique_id, **data}, server.client_id
    )


def show_text(node: type[io.ComfyNode], text: str) -> None:
    """Show a note below a node that is running, and write it to the log; nothing if it is empty.

    ComfyUI's page takes the note as HTML, in which names of files and recipes must stay text.
    """
    if not text:
        return
    logging.warning("%s", text)
    server = getattr(PromptServer, "instance", None)
    if server is not None and node.hidden is not None:
        shown = html.escape(text, quote=False)
        server.send_progress_text(shown, node.hidden.unique_id, server.client_id)


def show_inputs(
    node: type[io.ComfyNode], draft: Tensor, reference: Tensor | None
) -> dict[str, Any]:
    """Send scaled previews of a node's input images before the repair starts, so that boxes can be
    drawn on them even if the repair fails. Returns the previews for the node's own output.
    """
    data = {"draft": temp_picture(draft, POINTING)}
    if reference is not None:
        data["reference"] = temp_picture(reference, POINTING)
    tell_page(node, "pictures", data)
    return data
