"""PNG and TIFF files with 16 bits per channel, which Pillow reads with 8 bits and does not write.

Pillow's decoders are told which byte of every 16-bit value to keep. Decoding a file twice, once
for the high bytes and once for the low bytes, gives all 16 bits at the speed of compiled code.
"""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Pixels16 = NDArray[np.uint16]
_FULL_SCALE = 65535
_OTHER_BYTE_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_PLAIN = ("RGB", "RGBA", "RGBX")
_PREMULTIPLIED = "RGBa"
_GRAY_ALPHA = "LA;16B"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_COLOR_TYPE = {3: 2, 4: 6}  # by number of channels: RGB, RGBA
_PNG_UP_FILTER = 2
_TIFF_SHORT, _TIFF_LONG = 3, 4
_TIFF_UNASSOCIATED_ALPHA = 2
_TIFF_BITS, _TIFF_PLANES, _TIFF_SEPARATE_PLANES = 258, 284, 2


class UnsupportedPictureError(ValueError):
    """Why a picture cannot be read; the caller adds which picture."""


def read_16_bit(image: Image.Image, path: Path) -> Pixels16 | None:
    """All 16 bits of a color picture that Pillow has opened and not yet decoded.

    Args:
        image: the opened file; its first frame is read.
        path: where the file is, as it is decoded twice.

    Returns:
        H W C, upright, with the channels gray and alpha, RGB or RGBA; or None if this is not a
        color picture with 16 bits per channel.

    Raises:
        OSError: the file is damaged or cut off.
        UnsupportedPictureError: a TIFF that keeps its channels in separate planes.
    """
    raw = _raw_mode(image)
    _check_interleaved(image)
    kind, _, byte_order = raw.partition(";16")
    if raw == _GRAY_ALPHA:
        pairs = _decode(path, "RGBA")  # four bytes: high and low of gray, high and low of alpha
        return _joined(pairs[..., 0::2], pairs[..., 1::2])
    if byte_order not in _OTHER_BYTE_ORDER or kind not in (*_PLAIN, _PREMULTIPLIED):
        return None
    layout = "RGBA" if kind == _PREMULTIPLIED else kind
    high = _decode(path, f"{layout};16{byte_order}")
    low = _decode(path, f"{layout};16{_OTHER_BYTE_ORDER[byte_order]}")
    pixels = _joined(high, low)[..., : 3 if kind == "RGBX" else None]
    transparent = image.info.get("transparency")
    if isinstance(transparent, tuple):
        return _with_color_key(pixels, np.asarray(transparent, np.uint16))
    return _without_premultiplication(pixels) if kind == _PREMULTIPLIED else pixels


def _check_interleaved(image: Image.Image) -> None:
    tags: Any = getattr(image, "tag_v2", {})
    depths: tuple[int, ...] = tags.get(_TIFF_BITS, ())
    if 16 in depths and tags.get(_TIFF_PLANES) == _TIFF_SEPARATE_PLANES:
        raise UnsupportedPictureError(
            "it is a TIFF whose 16-bit channels are in separate planes. Save it with interleaved "
            "channels or as PNG"
        )


def _raw_mode(image: Image.Image) -> str:
    tiles: list[Any] = getattr(image, "tile", [])
    if not tiles:
        return ""
    arguments = tiles[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _decode(path: Path, raw_mode: str) -> NDArray[np.uint8]:
    """The file decoded by Pillow with another raw mode, H W C, upright."""
    with Image.open(path) as opened:
        image: Any = opened
        image.tile = [_with_raw_mode(tile, raw_mode) for tile in image.tile]
        image.load()
        return np.asarray(ImageOps.exif_transpose(image))


def _with_raw_mode(tile: Any, raw_mode: str) -> Any:
    """Pillow's description of a piece of a file: codec, extents, offset and arguments."""
    arguments = (raw_mode, *tile[3][1:]) if isinstance(tile[3], tuple) else raw_mode
    changed = (*tile[:3], arguments)
    return changed if type(tile) is tuple else type(tile)(*changed)  # a named tuple since Pillow 11


def _joined(high: NDArray[np.uint8], low: NDArray[np.uint8]) -> Pixels16:
    return (high.astype(np.uint16) << np.uint16(8)) | low.astype(np.uint16)


def _with_color_key(pixels: Pixels16, key: Pixels16) -> Pixels16:
    """PNG's transparent color as an alpha channel."""
    opaque = (pixels != key).any(-1, keepdims=True)
    return np.concatenate([pixels, opaque * np.uint16(_FULL_SCALE)], -1)


def _without_premultiplication(pixels: Pixels16) -> Pixels16:
    alpha = pixels[..., 3:].astype(np.float64)
    color = pixels[..., :3] * (_FULL_SCALE / np.maximum(alpha, 1))
    return np.concatenate(
        [color.round().clip(0, _FULL_SCALE).astype(np.uint16), pixels[..., 3:]], -1
    )


def write_png_16_bit(pixels: Pixels16, stream: BinaryIO) -> None:
    """Write H W C, C 3 or 4, as PNG (ISO/IEC 15948) with 16 bits per channel."""
    height, width, channels = pixels.shape
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    filtered = np.full((height, rows.shape[1] + 1), _PNG_UP_FILTER, np.uint8)
    filtered[:, 1:] = np.diff(rows, axis=0, prepend=np.zeros((1, rows.shape[1]), np.uint8))
    header = struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOR_TYPE[channels], 0, 0, 0)
    stream.write(_PNG_SIGNATURE)
    for kind, data in (
        (b"IHDR", header),
        (b"IDAT", zlib.compress(filtered.tobytes())),
        (b"IEND", b""),
    ):
        checksum = zlib.crc32(data, zlib.crc32(kind))
        stream.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum))


def write_tiff_16_bit(pixels: Pixels16, stream: BinaryIO) -> None:
    """Write H W C, C 3 or 4, as an uncompressed TIFF 6.0 with 16 bits per channel."""
    height, width, channels = pixels.shape
    data = pixels.astype("<u2").tobytes()
    entries: list[tuple[int, int, tuple[int, ...]]] = [
        (256, _TIFF_LONG, (width,)),
        (257, _TIFF_LONG, (height,)),
        (258, _TIFF_SHORT, (16,) * channels),  # bits per sample
        (259, _TIFF_SHORT, (1,)),  # no compression
        (262, _TIFF_SHORT, (2,)),  # RGB
        (273, _TIFF_LONG, (8,)),  # the pixels follow the 8 bytes of the header
        (277, _TIFF_SHORT, (channels,)),
        (278, _TIFF_LONG, (height,)),  # one strip holds all rows
        (279, _TIFF_LONG, (len(data),)),
        (284, _TIFF_SHORT, (1,)),  # channels are interleaved
    ]
    if channels == 4:
        entries.append((338, _TIFF_SHORT, (_TIFF_UNASSOCIATED_ALPHA,)))
    stream.write(struct.pack("<2sHI", b"II", 42, 8 + len(data)))
    stream.write(data)
    stream.write(_tiff_directory(entries, 8 + len(data)))


def _tiff_directory(entries: list[tuple[int, int, tuple[int, ...]]], offset: int) -> bytes:
    """The directory that begins at `offset`; values of over four bytes follow its table."""
    table = struct.pack("<H", len(entries))
    extra = b""
    after = offset + 2 + 12 * len(entries) + 4
    for tag, kind, values in entries:
        packed = struct.pack(f"<{len(values)}{'H' if kind == _TIFF_SHORT else 'I'}", *values)
        if len(packed) > 4:
            packed, extra = struct.pack("<I", after + len(extra)), extra + packed
        table += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    return table + bytes(4) + extra
