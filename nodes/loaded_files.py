"""The transparency of image files, which *Load Image* leaves out of its IMAGE.

Its MASK has it inverted, as the mask of what is transparent, and without it the hidden colors of
transparent pixels show: dark letters on a transparent background become black on black.
"""

from __future__ import annotations

import os
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor

from ..refiner_core.images.image_io import load_picture
from ..refiner_core.images.tensors import to_float
from .layout import CHANNELS_WITH_ALPHA, check_tensor, references_to_core

_PAINTED = "clipspace"  # where the mask editor saves images, with the painted mask as their alpha
_MASK_SLOT = 1


def _source(node: type[io.ComfyNode], name: str) -> Any:
    """The link `[id, slot]` of an input of a running node, or None."""
    hidden = node.hidden
    if hidden is None or not hidden.prompt:
        return None
    link = hidden.prompt.get(str(hidden.unique_id), {}).get("inputs", {}).get(name)
    return link if isinstance(link, list) and len(link) == 2 else None


def _loaded_file(node: type[io.ComfyNode], name: str) -> str | None:
    """The file that a *Load Image* connected to an input reads; None if its alpha is a painted mask."""
    link = _source(node, name)
    loader = node.hidden.prompt.get(str(link[0]), {}) if link else {}
    file = loader.get("inputs", {}).get("image")
    if loader.get("class_type") != "LoadImage" or not isinstance(file, str):
        return None
    path = folder_paths.get_annotated_filepath(file)
    painted = _PAINTED in os.path.normpath(file).split(os.sep)
    return None if painted or not os.path.isfile(path) else path


def with_alpha(node: type[io.ComfyNode], name: str, image: Tensor) -> Tensor:
    """The IMAGE of an input, with the alpha of the file if *Load Image* read a transparent one.

    Args:
        node: the running node, with the hidden inputs `prompt` and `unique_id`.
        name: of the input.
        image: its value, B H W C.

    Raises:
        ValueError: the value is not a tensor.
    """
    check_tensor(image, "IMAGE")
    path = _loaded_file(node, name) if image.shape[-1] == 3 and len(image) == 1 else None
    picture = load_picture(path) if path else None
    if picture is None or picture.alpha is None or not picture.cut_out:
        return image
    alpha = to_float(picture.alpha)[:, 0, :, :, None]
    if alpha.shape[1:3] != image.shape[1:3]:
        return image
    return torch.cat([image, alpha.to(image)], -1)


def read_references(
    node: type[io.ComfyNode], images: dict[str, Tensor | None], mask: Tensor | None
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...], tuple[str, ...]]:
    """`references_to_core` of the inputs of a running node, with the alpha of transparent files.

    If `mask` is the MASK of the same *Load Image*, it marks what is transparent, the inverse of the
    detail. It is left out then, with a note.

    Args:
        images: IMAGEs by the name of their input; those that are None are left out.
        mask: the MASK of the input `reference_mask`, or None.
    """
    given = [with_alpha(node, name, image) for name, image in images.items() if image is not None]
    notes: tuple[str, ...] = ()
    source, other = _source(node, "reference"), _source(node, "reference_mask")
    transparent = bool(given) and given[0].shape[-1] == CHANNELS_WITH_ALPHA
    if mask is not None and transparent and source and other == [source[0], _MASK_SLOT]:
        mask = None
        notes = (
            "reference_mask is the MASK of the same Load Image and marks what is transparent in the "
            "reference. It is left out, and what is opaque is the mask",
        )
    references, masks, more = references_to_core(given, mask)
    return references, masks, (*notes, *more)
