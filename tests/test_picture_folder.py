"""Folders as they come from cameras, phones, Macs and downloads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from refiner_core.images.image_io import PICTURE_SUFFIXES
from refiner_core.images.picture_folder import picture_files, read_pictures

RED = Image.new("RGB", (16, 12), "red")


def test_every_suffix_is_read(tmp_path: Path) -> None:
    """JPEG 2000 and AVIF only where this Pillow can write them."""
    registered = Image.registered_extensions()
    for suffix in PICTURE_SUFFIXES:
        known = registered.get(suffix)
        lacks = (suffix == ".jp2" and not features.check("jpg_2000")) or (
            suffix == ".avif" and not features.check("avif")
        )
        if known and not lacks:
            RED.save(tmp_path / f"picture{suffix}", known)
    found = read_pictures(picture_files(tmp_path))
    assert len(found.pictures) >= len(PICTURE_SUFFIXES) - 2 and found.notes == ()
    for path, picture in found.pictures:
        color = picture.pixels.double().mean((0, 2, 3)).tolist()
        assert color == pytest.approx([255, 0, 0], abs=4), path.name


def test_what_systems_leave_behind_is_no_picture(tmp_path: Path) -> None:
    RED.save(tmp_path / "b.PNG")
    RED.save(tmp_path / "\u56fe \u00e9.png")
    (tmp_path / "._b.png").write_bytes(b"\0\x05\x16\x07Mac OS X")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (tmp_path / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in picture_files(tmp_path)] == ["b.PNG", "\u56fe \u00e9.png"]


def test_unreadable_files_are_left_out_and_counted(tmp_path: Path) -> None:
    for name in ("a.png", "c.png", "d.png"):
        RED.save(tmp_path / name)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    found = read_pictures(picture_files(tmp_path), limit=2)
    assert [path.name for path, _ in found.pictures] == ["a.png", "c.png"]
    (note,) = found.notes
    assert note.startswith("1 ") and "b.png" in note


def test_a_folder_of_broken_files_is_refused(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"2 .*a\.png"):
        read_pictures(picture_files(tmp_path))


def test_pictures_are_read_as_viewers_show_them(tmp_path: Path) -> None:
    hidden = np.zeros((4, 4, 4), np.uint8)
    Image.fromarray(hidden).save(tmp_path / "a.png")
    RED.save(tmp_path / "b.gif", save_all=True, append_images=[Image.new("RGB", (16, 12), "blue")])
    found = read_pictures(picture_files(tmp_path))
    (_, first), (_, second) = found.pictures
    assert first.alpha is None and first.pixels.unique().tolist() == [255]
    assert second.pixels[0, :, 0, 0].tolist() == [255, 0, 0]
    assert [note.split(":")[0] for note in found.notes] == ["a.png", "b.gif"]


def test_what_is_the_same_for_several_pictures_is_said_once(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name in "abcd":
        RED.save(tmp_path / f"{name}.png", icc_profile=profile)
    RED.convert("CMYK").save(tmp_path / "e.jpg")
    notes = read_pictures(picture_files(tmp_path)).notes
    assert len(notes) == 2
    assert notes[0].startswith("4 of 5 ") and "sRGB" in notes[0]
    assert notes[1].startswith("e.jpg: ") and "CMYK" in notes[1]
