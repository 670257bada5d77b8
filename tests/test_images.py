"""Picture files: every common kind is read, broken ones are named, saving is all or nothing."""

from __future__ import annotations

import contextlib
import io
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import png
import pytest
import torch
from PIL import Image, ImageCms

from refiner_core.images.geometry import Box, Extent
from refiner_core.images.image_io import Picture, load_picture, save_picture
from refiner_core.images.mask_io import load_mask
from refiner_core.images.previews import to_pillow, updated
from refiner_core.images.tensors import (
    check_finite,
    check_picture,
    composite,
    resize,
    to_dtype,
    to_float,
)
from refiner_core.storage.output_files import atomic_path, check_output
from tests.bad_inputs import disk_of

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (11, 17, 3), dtype=np.uint8)
RGBA = RNG.integers(0, 256, (11, 17, 4), dtype=np.uint8)
RGB16 = RNG.integers(0, 65536, (11, 17, 3), dtype=np.uint16)


def planes(pixels: torch.Tensor) -> np.ndarray:
    """1 C H W to H W C."""
    return pixels[0].permute(1, 2, 0).numpy()


def write_png16(path: Path, data: np.ndarray) -> None:
    data = data[..., None] if data.ndim == 2 else data
    h, w, c = data.shape
    writer = png.Writer(w, h, bitdepth=16, greyscale=c < 3, alpha=c in (2, 4))
    with path.open("wb") as stream:
        writer.write(stream, data.reshape(h, -1).tolist())


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp"])
def test_lossless_files_keep_every_value(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(RGB).save(path, lossless=True)
    picture = load_picture(path)
    assert picture.pixels.dtype == torch.uint8
    assert picture.extent == (17, 11)
    assert picture.alpha is None
    assert picture.notes == ()
    np.testing.assert_array_equal(planes(picture.pixels), RGB)


def test_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert load_picture(tmp_path / "a.png").pixels.flatten().tolist() == [1, 2, 3]


def test_grey(tmp_path: Path) -> None:
    Image.fromarray(RGB[..., 0]).save(tmp_path / "a.png")
    picture = load_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(planes(picture.pixels), np.repeat(RGB[..., :1], 3, -1))
    assert picture.notes == ()


def test_alpha_is_kept_through_saving(tmp_path: Path) -> None:
    Image.fromarray(RGBA).save(tmp_path / "a.png")
    picture = load_picture(tmp_path / "a.png")
    assert picture.alpha is not None
    np.testing.assert_array_equal(planes(picture.pixels), RGBA[..., :3])
    np.testing.assert_array_equal(planes(picture.alpha)[..., 0], RGBA[..., 3])
    for suffix in (".png", ".tif", ".webp"):
        save_picture(picture, tmp_path / f"b{suffix}")
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"b{suffix}")), RGBA)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_compositing_shows_what_a_viewer_shows(dtype: type) -> None:
    """Opaque pixels keep their exact value, and hidden colours do not count."""
    top = np.iinfo(dtype).max
    colours = RNG.integers(0, top + 1, (1, 3, 2, 3)).astype(dtype)
    alpha = torch.from_numpy(np.array([[top, 0, 0], [top, 0, top // 2]], dtype))[None, None]
    seen = Picture(torch.from_numpy(colours), alpha).composited()
    assert seen.alpha is None and any("white" in note for note in seen.notes)
    pixels = seen.pixels.numpy()
    np.testing.assert_array_equal(pixels[..., 0], colours[..., 0])
    np.testing.assert_array_equal(pixels[..., 1], top)
    assert pixels[0, :, 0, 2].tolist() == [top] * 3
    half = (colours[0, :, 1, 2].astype(float) + top) / 2
    np.testing.assert_allclose(pixels[0, :, 1, 2], half, rtol=0.005)
    hidden = Picture(torch.from_numpy(colours ^ (np.array(alpha) == 0)), alpha).composited()
    assert torch.equal(hidden.pixels, seen.pixels)
    black = Picture(torch.from_numpy(colours), alpha).composited(0.0)
    assert black.pixels.numpy()[0, :, 0, 1].tolist() == [0] * 3


def test_an_opaque_alpha_is_dropped_without_a_note() -> None:
    picture = Picture(
        torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.full((1, 1, 2, 2), 255).byte()
    )
    assert not picture.transparent
    assert picture.composited().notes == () and picture.composited().alpha is None
    assert torch.equal(picture.composited().pixels, picture.pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("transparent", "cut_out"),
    [
        (np.s_[:0], False),
        (np.s_[4:7, 5:9], False),  # a painted mask
        (np.s_[:, 3:-3], False),  # painted from edge to edge, the corners are there
        (np.s_[0, 0], True),
        (np.s_[0, -1], True),
        (np.s_[-1, 0], True),
        (np.s_[-1, -1], True),
        (np.s_[:], True),
    ],
)
def test_a_detail_without_its_surroundings_has_a_transparent_corner(
    dtype: type, transparent: Any, cut_out: bool
) -> None:
    alpha = np.full((11, 17), np.iinfo(dtype).max, dtype)
    alpha[transparent] = 0
    pixels = torch.zeros(1, 3, 11, 17, dtype=torch.from_numpy(alpha).dtype)
    assert Picture(pixels, torch.from_numpy(alpha)[None, None]).cut_out == cut_out
    assert not Picture(pixels).cut_out


def test_float_pictures_with_opaque_alpha_keep_every_bit() -> None:
    pixels = torch.rand(2, 3, 5, 7)
    assert torch.equal(composite(pixels, torch.ones(2, 1, 5, 7)), pixels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png(tmp_path: Path, channels: int) -> None:
    data = RNG.integers(0, 65536, (11, 17, channels), dtype=np.uint16)
    write_png16(tmp_path / "a.png", data)
    picture = load_picture(tmp_path / "a.png")
    assert picture.pixels.dtype == torch.uint16
    color = data[..., :1].repeat(3, -1) if channels < 3 else data[..., :3]
    np.testing.assert_array_equal(planes(picture.pixels), color)
    assert (picture.alpha is None) == (channels % 2 == 1)
    if picture.alpha is not None:
        np.testing.assert_array_equal(planes(picture.alpha)[..., 0], data[..., -1])
    save_picture(picture, tmp_path / "b.png")
    again = load_picture(tmp_path / "b.png")
    np.testing.assert_array_equal(planes(again.pixels), color)


def test_a_16_bit_png_may_be_interlaced_or_name_a_transparent_color(tmp_path: Path) -> None:
    rows = RGB16.reshape(11, -1).tolist()
    key = tuple(int(v) for v in RGB16[3, 4])
    for name, options in (("a.png", {"interlace": True}), ("b.png", {"transparent": key})):
        with (tmp_path / name).open("wb") as stream:
            png.Writer(17, 11, bitdepth=16, greyscale=False, **options).write(stream, rows)
        np.testing.assert_array_equal(planes(load_picture(tmp_path / name).pixels), RGB16)
    alpha = load_picture(tmp_path / "b.png").alpha
    assert alpha is not None
    assert (planes(alpha)[..., 0] == 0).nonzero()[0].tolist() == [3]


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_tiff(
    tmp_path: Path, byteorder: str, compression: str | None, channels: int
) -> None:
    tifffile = pytest.importorskip("tifffile", reason="comes with scikit-image")
    data = RNG.integers(0, 65536, (11, 17, channels), dtype=np.uint16)
    options = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    tifffile.imwrite(
        tmp_path / "a.tif",
        data,
        byteorder=byteorder,
        compression=compression,
        predictor=compression is not None,
        photometric="rgb",
        **options,
    )
    picture = load_picture(tmp_path / "a.tif")
    np.testing.assert_array_equal(planes(picture.pixels), data[..., :3])
    save_picture(picture, tmp_path / "b.tif")
    again = load_picture(tmp_path / "b.tif")
    assert torch.equal(again.pixels, picture.pixels)
    assert (again.alpha is None) == (channels == 3)
    if again.alpha is not None:
        np.testing.assert_array_equal(planes(again.alpha)[..., 0], data[..., 3])


def test_16_bit_tiff_with_premultiplied_alpha(tmp_path: Path) -> None:
    """The stored color is the true one times alpha."""
    tifffile = pytest.importorskip("tifffile", reason="comes with scikit-image")
    data = np.zeros((1, 3, 4), np.uint16)
    data[0] = [[20000, 10000, 0, 32768], [60000, 500, 7, 65535], [0, 0, 0, 0]]
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="rgb", extrasamples=["assocalpha"])
    found = planes(load_picture(tmp_path / "a.tif").pixels)[0]
    np.testing.assert_allclose(found[0], [40000, 20000, 0], atol=1)
    assert found[1:].tolist() == [[60000, 500, 7], [0, 0, 0]]


def test_16_bit_tiff_in_planes_is_refused(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="comes with scikit-image")
    data = RGB16.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="rgb", planarconfig="separate")
    with pytest.raises(ValueError, match=r"a\.tif .*planes"):
        load_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_an_animation_the_first_frame_is_read_and_that_is_noted(
    tmp_path: Path, kind: str
) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    path = tmp_path / f"a.{kind.lower()}"
    frames[0].save(path, kind, save_all=True, append_images=frames[1:], lossless=True)
    picture = load_picture(path)
    assert planes(picture.pixels)[0, 0].tolist() == [255, 0, 0]
    assert [note for note in picture.notes if "3 frames" in note]


def test_values_beyond_16_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif .*70000"):
        load_picture(tmp_path / "a.tif")


def test_16_bit_tiff_gray(tmp_path: Path) -> None:
    Image.fromarray(RGB16[..., 0]).save(tmp_path / "a.tif")
    picture = load_picture(tmp_path / "a.tif")
    np.testing.assert_array_equal(planes(picture.pixels)[..., 1], RGB16[..., 0])


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    picture = load_picture(tmp_path / "a.jpg")
    red = planes(picture.pixels).mean((0, 1))
    assert red[0] > 230
    assert red[1:].max() < 60
    assert "CMYK converted to RGB" in picture.notes


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = 255  # a white corner at the top left
    undo = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    Image.fromarray(np.ascontiguousarray(undo)).save(path, exif=exif, quality=100)
    picture = load_picture(path)
    np.testing.assert_allclose(planes(picture.pixels), upright, atol=12)
    assert bool(picture.notes) == (orientation != 1)


def _swapped_profile() -> bytes:
    """sRGB with the red and blue primaries exchanged: wrong colours if it is not applied."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for old, new in ((b"rXYZ", b"qXYZ"), (b"bXYZ", b"rXYZ"), (b"qXYZ", b"bXYZ")):
        data = data.replace(old, new, 1)
    for coding in ("utf-16-be", "ascii"):
        data = data.replace("sRGB".encode(coding), "sXXB".encode(coding))
    return data


def test_colour_profiles_are_applied(tmp_path: Path) -> None:
    profile = _swapped_profile()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "a.png", icc_profile=profile)
    picture = load_picture(tmp_path / "a.png")
    assert planes(picture.pixels)[0, 0].tolist() == pytest.approx([0, 0, 255], abs=3)
    assert any("to sRGB" in n for n in picture.notes)


def test_a_palette_with_a_profile_is_converted_too(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), (255, 0, 0)).quantize(4)
    image.save(tmp_path / "a.png", icc_profile=_swapped_profile())
    picture = load_picture(tmp_path / "a.png")
    assert planes(picture.pixels)[0, 0].tolist() == pytest.approx([0, 0, 255], abs=3)


def test_an_srgb_profile_changes_nothing(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(RGB).save(tmp_path / "a.png", icc_profile=profile)
    np.testing.assert_array_equal(planes(load_picture(tmp_path / "a.png").pixels), RGB)


def test_a_broken_profile_is_ignored_and_noted(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png", icc_profile=b"not a profile")
    picture = load_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(planes(picture.pixels), RGB)
    assert any("ignored" in n for n in picture.notes)


def test_a_profile_in_a_16_bit_file_is_noted(tmp_path: Path) -> None:
    write_png16(tmp_path / "a.png", RGB16)
    Image.fromarray(RGB).save(tmp_path / "b.png", icc_profile=_swapped_profile())
    (chunk,) = [c for c in png.Reader(filename=str(tmp_path / "b.png")).chunks() if c[0] == b"iCCP"]
    plain = list(png.Reader(filename=str(tmp_path / "a.png")).chunks())
    with (tmp_path / "c.png").open("wb") as stream:
        png.write_chunks(stream, [plain[0], chunk, *plain[1:]])
    picture = load_picture(tmp_path / "c.png")
    np.testing.assert_array_equal(planes(picture.pixels), RGB16)
    assert "profile ignored" in picture.notes[0]


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (4, 2), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (2, 0, 4, 2))
    image.save(tmp_path / "a.png", transparency=1)
    picture = load_picture(tmp_path / "a.png")
    assert picture.alpha is not None
    assert planes(picture.alpha)[0, :, 0].tolist() == [255, 255, 0, 0]
    assert planes(picture.pixels)[0, 0].tolist() == [10, 20, 30]
    assert planes(picture.pixels)[0, 3].tolist() == [200, 100, 50]


def test_a_mask_is_its_files_luminance(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 51, 255]], np.uint8)).save(tmp_path / "a.png")
    torch.testing.assert_close(
        load_mask(tmp_path / "a.png"), torch.tensor([[[[0, 0.2, 1.0]]]]), rtol=0, atol=1e-6
    )


# --- what cannot be read -------------------------------------------------------------------------


def _encoded(suffix: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(RGB).resize((64, 64)).save(stream, {"jpg": "JPEG"}.get(suffix, suffix.upper()))
    return stream.getvalue()


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(ValueError, match="draft"):
            load_picture(path, "draft")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.png", b""),
        ("a.png", b"just some text\n" * 30),
        ("a.txt", b"{}"),
        ("a.png", _encoded("png")[:200]),
        ("a.jpg", _encoded("jpg")[:-200]),
        ("a.jpg", _encoded("jpg")[:20]),
        ("a.webp", _encoded("webp")[:60]),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match="reference") as e:
        load_picture(tmp_path / name, "reference")
    assert str(tmp_path / name) in str(e.value)


def test_every_truncation_of_a_16_bit_png_is_named(tmp_path: Path) -> None:
    """A file that lacks nothing but checksums still gives every pixel."""
    write_png16(tmp_path / "a.png", RGB16)
    data = (tmp_path / "a.png").read_bytes()
    for length in range(0, len(data) - 40, 37):
        (tmp_path / "b.png").write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"b\.png"):
            load_picture(tmp_path / "b.png")
    for length in range(len(data) - 40, len(data)):
        (tmp_path / "b.png").write_bytes(data[:length])
        with contextlib.suppress(ValueError):
            pixels = planes(load_picture(tmp_path / "b.png").pixels)
            np.testing.assert_array_equal(pixels, RGB16)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_damaged_files_are_read_or_refused(tmp_path: Path, suffix: str) -> None:
    """Whatever the bytes are, the answer is a picture or a ValueError."""
    clean, rng, refused = _encoded(suffix), random.Random(1), 0
    for _ in range(60):
        data = bytearray(clean)
        for _ in range(rng.randrange(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(data[: rng.randrange(1, len(data) + 1)])
        try:
            assert load_picture(path).pixels.shape[1] == 3
        except ValueError as e:
            refused += "a." in str(e)
    assert refused > 0


def test_too_wide(tmp_path: Path) -> None:
    Image.new("1", (16385, 1)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="16385x1.*16384"):
        load_picture(tmp_path / "a.png")


def test_float_pictures_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif .*floating"):
        load_picture(tmp_path / "a.tif")


def test_the_decompression_limit_is_put_back(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    Image.fromarray(RGB).save(tmp_path / "a.png")
    load_picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"b\.png"):
        (tmp_path / "b.png").write_bytes(b"x")
        load_picture(tmp_path / "b.png")
    assert before == Image.MAX_IMAGE_PIXELS


# --- writing -------------------------------------------------------------------------------------


def a_picture(dtype: torch.dtype = torch.uint8) -> Picture:
    data = RGB if dtype == torch.uint8 else RGB16
    return Picture(torch.from_numpy(data.copy()).permute(2, 0, 1)[None])


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".tif", ".tiff", ".webp"])
def test_saved_and_read_again(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    save_picture(a_picture(), path)
    np.testing.assert_array_equal(planes(load_picture(path).pixels), RGB)
    assert os.listdir(tmp_path) == [path.name]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_an_existing_file_is_kept_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="--overwrite"):
        save_picture(a_picture(), path)
    assert path.read_bytes() == b"old"
    save_picture(a_picture(), path, overwrite=True)
    np.testing.assert_array_equal(planes(load_picture(path).pixels), RGB)


@pytest.mark.parametrize(
    ("name", "says"),
    [("", "folder"), ("no/such/a.png", "no/such"), ("a.jpg", r"a\.jpg .*\.png"), ("a", r"\.png")],
)
def test_refused_outputs(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        save_picture(a_picture(), tmp_path / name)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_16_bits_are_written_as_others_read_them(
    tmp_path: Path, suffix: str, channels: int
) -> None:
    data = RNG.integers(0, 65536, (11, 17, channels), dtype=np.uint16)
    chw = torch.from_numpy(data.copy()).permute(2, 0, 1)[None]
    path = tmp_path / f"a{suffix}"
    save_picture(Picture(chw[:, :3], chw[:, 3:] if channels == 4 else None), path)
    if suffix == ".png":
        _, _, rows, info = png.Reader(filename=str(path)).asDirect()
        found = np.vstack([np.asarray(row) for row in rows]).reshape(data.shape)
        assert info["bitdepth"] == 16
    else:
        found = pytest.importorskip("tifffile", reason="comes with scikit-image").imread(path)
    np.testing.assert_array_equal(found, data)


def test_16_bits_do_not_become_webp(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"16 .*\.webp .*\.png, \.tif"):
        save_picture(a_picture(torch.uint16), tmp_path / "a.webp")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_folder_that_is_not_writable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ValueError, match=str(tmp_path)):
            check_output(tmp_path / "a.png", False)
    finally:
        tmp_path.chmod(0o700)


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        (".png", torch.uint8),
        (".png", torch.uint16),
        (".tif", torch.uint8),
        (".tif", torch.uint16),
        (".webp", torch.uint8),
    ],
)
@pytest.mark.parametrize("bytes_free", [100, 4096, 30_000])
def test_a_full_disk_leaves_the_old_file_and_no_litter(
    tmp_path: Path, suffix: str, kind: torch.dtype, bytes_free: int
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"old")
    pixels = torch.randint(0, 256, (1, 3, 150, 150)).to(kind)
    with disk_of(bytes_free), pytest.raises(OSError):
        save_picture(Picture(pixels), path, overwrite=True)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [path.name]


# --- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "top"), [(torch.uint8, 255), (torch.uint16, 65535)])
def test_every_stored_value_survives_float(dtype: torch.dtype, top: int) -> None:
    values = torch.arange(top + 1, dtype=torch.int32).to(dtype)
    there = to_float(values)
    assert (float(there[0]), float(there[-1])) == (0.0, 1.0)
    assert torch.equal(to_dtype(there, dtype).int(), values.int())


def test_to_dtype_clamps_and_rounds() -> None:
    x = torch.tensor([-1.0, 0.499 / 255, 0.501 / 255, 2.0])
    assert to_dtype(x, torch.uint8).tolist() == [0, 0, 1, 255]
    assert torch.equal(to_dtype(x, torch.float32), x)


def test_resize() -> None:
    x = torch.rand(1, 3, 8, 12)
    assert resize(x, Extent(12, 8)) is x
    assert resize(x, Extent(5, 7)).shape == (1, 3, 7, 5)
    flat = torch.full((1, 3, 8, 12), 0.25)
    torch.testing.assert_close(resize(flat, Extent(31, 3)), torch.full((1, 3, 3, 31), 0.25))


def test_check_finite_counts() -> None:
    x = torch.zeros(1, 3, 4, 4)
    check_finite(x, "draft")
    check_finite(x.to(torch.uint8), "draft")
    x[0, 0, 0, :2] = float("nan")
    x[0, 1, 1, 1] = float("inf")
    with pytest.raises(ValueError, match=r"draft .*\b3\b"):
        check_finite(x, "draft")


@pytest.mark.parametrize(
    ("scale", "offset", "named"),
    [(255, 0, "255"), (2, -1, "-1"), (1.2, -0.1, None), (1, 0, None)],
)
def test_values_that_are_no_colors_are_refused(
    scale: float, offset: float, named: str | None
) -> None:
    x = torch.linspace(0, 1, 12).reshape(1, 3, 2, 2) * scale + offset
    if named is None:
        check_picture(x, "draft")
        return
    with pytest.raises(ValueError, match=f"draft.*{named}"):
        check_picture(x, "draft")
    check_picture((x * 0 + 255).to(torch.uint8), "draft")


# --- previews ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "side"),
    [(64, 96, 96), (64, 96, 48), (60, 90, 30), (61, 96, 48), (64, 96, 50), (640, 640, 40)],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_a_repairs_preview_is_the_drafts_with_the_changed_boxes(
    height: int, width: int, side: int, dtype: torch.dtype
) -> None:
    draft = to_dtype(torch.rand(1, 3, height, width), dtype)
    boxes = [Box(3, 5, 20, 18), Box(width - 7, height - 9, width, height)]
    repaired = draft.clone()
    for x0, y0, x1, y1 in boxes:
        repaired[..., y0:y1, x0:x1] = to_dtype(torch.rand(1, 3, y1 - y0, x1 - x0), dtype)
    shown = to_pillow(draft, side)
    made, whole = np.asarray(updated(shown, repaired, boxes)), np.asarray(to_pillow(repaired, side))
    np.testing.assert_array_equal(made, whole)
    assert (made != np.asarray(shown)).any()


def test_a_preview_at_half_the_size_is_the_mean_of_four_pixels() -> None:
    picture = torch.rand(1, 3, 130, 260)
    means = torch.nn.functional.avg_pool2d(picture, 2)[0].movedim(0, -1).numpy() * 255
    assert np.abs(np.asarray(to_pillow(picture, 130), np.float32) - means).max() < 1.01
