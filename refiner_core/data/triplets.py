"""The unit of training and evaluation data: a draft, its reference, the target and the region.

A triplet is stored as named members, as in a webdataset sample: PNG pictures and one JSON. `encode`
and `decode` are the only places that know those names.
"""

from __future__ import annotations

import io
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..images.image_io import DECODING_ERRORS
from ..storage.text_files import parse_object

PICTURES = ("draft", "reference", "target", "mask", "reference_mask")
_OPTIONAL = ("target", "reference_mask")
_MASKS = ("mask", "reference_mask")
# A dot would end webdataset's sample key, a slash would make a folder.
_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
# Grain has no repeats to search for: run lengths alone are faster than level 1, and smaller.
_PNG = {"compress_level": 1, "compress_type": zlib.Z_RLE}


@dataclass(frozen=True)
class Triplet:
    """A draft with a wrong detail, a reference of the true one, and what the draft should be."""

    id: str  # letters, digits, "-" and "_"; unique in a data set
    draft: np.ndarray  # uint8 H W 3, the picture to repair
    reference: np.ndarray  # uint8 h w 3, another picture of the same thing, of any size
    target: np.ndarray | None  # uint8 H W 3, the draft with the true detail; None if unknown
    # uint8 H W, over 0 where the draft may change. A draft that needs no repair ("identity") has
    # the mask of its detail all the same.
    mask: np.ndarray
    reference_mask: np.ndarray | None = None  # uint8 h w, over 0 on the detail in the reference
    prompt: str = ""  # what to repair, in words
    # JSON values as far as known: kind, degradation {name, ...}, seed, identity, scores, boxes,
    # source, licence.
    info: dict[str, Any] = field(default_factory=dict)


def check(triplet: Triplet) -> Triplet:
    """Return the triplet if it is valid.

    Raises:
        ValueError: the id, a type or a shape is wrong, or two sizes differ; names both.
    """
    check_id(triplet.id)
    for name in PICTURES:
        array: np.ndarray | None = getattr(triplet, name)
        if array is None:
            if name in _OPTIONAL:
                continue
            raise ValueError(f"{triplet.id}: {name} is missing.")
        dimensions = 2 if name in _MASKS else 3
        wrong = array.dtype != np.uint8 or array.ndim != dimensions or array.size == 0
        if wrong or (dimensions == 3 and array.shape[2] != 3):
            raise ValueError(
                f"{triplet.id}: {name} must be uint8 {'H W' if dimensions == 2 else 'H W 3'}, "
                f"got {array.dtype} {array.shape}."
            )
    for name, other in (("target", "draft"), ("mask", "draft"), ("reference_mask", "reference")):
        a, b = getattr(triplet, name), getattr(triplet, other)
        if a is not None and a.shape[:2] != b.shape[:2]:
            raise ValueError(
                f"{triplet.id}: {name} is {a.shape[1]}x{a.shape[0]} but {other} is "
                f"{b.shape[1]}x{b.shape[0]}; they must have the same size."
            )
    return triplet


def check_id(name: str) -> str:
    """Return the id if it is valid.

    Raises:
        ValueError: it is empty, too long, or has characters other than letters, digits, "-", "_".
    """
    if not isinstance(name, str) or not _ID.fullmatch(name):
        raise ValueError(f"{name!r} is not a valid id: use up to 100 letters, digits, '-' and '_'.")
    return name


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """(x0, y0, x1, y1) of what is over 0 in a mask H W, or None if it is empty."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1


def encode_png(pixels: np.ndarray) -> bytes:
    """A picture uint8 H W 3 or H W as a PNG; the same pixels give the same bytes."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", **_PNG)
    return stream.getvalue()


def decode_png(data: bytes, mask: bool) -> np.ndarray:
    """The pixels of a PNG: uint8 H W for a mask, uint8 H W 3 otherwise.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image.convert("L" if mask else "RGB"))
    except DECODING_ERRORS as e:
        raise ValueError(f"it is not a complete picture ({e})") from e


def encode(triplet: Triplet) -> dict[str, bytes]:
    """The members of a checked triplet, in order: `draft.png` and so on, `json` last."""
    return encode_members(
        triplet.id, {n: getattr(triplet, n) for n in PICTURES}, triplet.prompt, triplet.info
    )


def encode_members(
    name: str, pictures: Mapping[str, np.ndarray | None], prompt: str, info: Mapping[str, Any]
) -> dict[str, bytes]:
    """Like `encode`, for the pictures that are there."""
    members = {f"{n}.png": encode_png(a) for n, a in pictures.items() if a is not None}
    record = {
        "id": name,
        "prompt": prompt,
        "info": dict(info),
        # A flipped bit in a PNG may decode to other pixels without an error.
        "crc32": {n: zlib.crc32(data) for n, data in members.items()},
    }
    members["json"] = json.dumps(record, sort_keys=True, ensure_ascii=False).encode()
    return members


def decode_members(
    name: str, members: Mapping[str, bytes]
) -> tuple[dict[str, np.ndarray], str, dict[str, Any]]:
    """Pictures by name, prompt and info of a sample's members; unknown members are ignored.

    Raises:
        ValueError: a member is damaged; names it.
    """
    record = decode_record(name, members.get("json"))
    pictures = {}
    for picture in PICTURES:
        member = f"{picture}.png"
        data = members.get(member)
        if data is None:
            if member in record["crc32"]:
                raise ValueError(f"{name}.{member} is missing")
            continue
        if zlib.crc32(data) != record["crc32"].get(member, zlib.crc32(data)):
            raise ValueError(
                f"{name}.{member} is damaged: its checksum differs from the recorded one"
            )
        try:
            pictures[picture] = decode_png(data, picture in _MASKS)
        except ValueError as e:
            raise ValueError(f"{name}.{member} is damaged: {e}") from e
    return pictures, record["prompt"], record["info"]


def decode_record(name: str, data: bytes | None) -> dict[str, Any]:
    """The JSON member: prompt, info and checksums, each with a default.

    Raises:
        ValueError: it is missing or not a JSON object.
    """
    if data is None:
        raise ValueError(f"{name}.json is missing")
    record = {"prompt": "", "info": {}, "crc32": {}} | parse_object(data, f"{name}.json")
    for key, kind in (("prompt", str), ("info", dict), ("crc32", dict)):
        if not isinstance(record[key], kind):
            raise ValueError(f"{name}.json is damaged: {key} is {record[key]!r}")
    return record


def decode(name: str, members: Mapping[str, bytes]) -> Triplet:
    """The triplet of a sample's members.

    Raises:
        ValueError: a member is missing or damaged, or the pictures' sizes disagree.
    """
    pictures, prompt, info = decode_members(name, members)
    for needed in ("draft", "reference", "mask"):
        if needed not in pictures:
            raise ValueError(f"{name}.{needed}.png is missing")
    return check(
        Triplet(
            name,
            pictures["draft"],
            pictures["reference"],
            pictures.get("target"),
            pictures["mask"],
            pictures.get("reference_mask"),
            prompt,
            info,
        )
    )


def picture_tensor(array: np.ndarray) -> Tensor:
    """uint8 H W 3 -> 1 3 H W."""
    return torch.from_numpy(np.array(array)).permute(2, 0, 1)[None]


def mask_tensor(array: np.ndarray) -> Tensor:
    """uint8 H W -> float32 1 1 H W in [0, 1]."""
    return torch.from_numpy(np.array(array))[None, None].float() / 255
