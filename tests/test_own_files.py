"""Procedural scenes made of the user's own photographs, fonts and artwork."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw

from refiner_core.__main__ import main
from refiner_core.data.artwork import load_artwork
from refiner_core.data.own_files import NO_FILES, OwnFiles, find_own_files
from refiner_core.data.sample import Sample, sample_seed
from refiner_core.data.scripts import SCRIPTS, letters, misspell, needed_characters, random_word
from refiner_core.data.shards import TripletSet, read_lines, read_manifest
from refiner_core.data.stages.procedural import ProceduralPair
from refiner_core.data.textures import alternative, draw_texture

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{w}mm" height="{h}mm" viewBox="0 0 {w} {h}">'
    '<rect x="2" y="2" width="{inner}" height="6" fill="#d02020"/></svg>'
)


def make_photo(path: Path, seed: int = 0, size: tuple[int, int] = (320, 280)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    low = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(low).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def _bars(number: int) -> object:
    """A glyph of bars that spells the number in binary."""
    pen = TTGlyphPen(None)
    for bit in range(16):
        if number >> bit & 1:
            x, y = 40 + bit % 4 * 220, bit // 4 * 180
            pen.moveTo((x, y))
            for corner in ((x, y + 130), (x + 180, y + 130), (x + 180, y)):
                pen.lineTo(corner)
            pen.closePath()
    return pen.glyph()


def make_font(path: Path, characters: str, weight: int = 400, boxes: bool = False) -> Path:
    """A font with one glyph per character: its number in bars, or the same box for every one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {f"g{ord(c)}": c for c in dict.fromkeys(characters)}
    order = [".notdef", *names]
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap({ord(c): n for n, c in names.items()})
    numbers = {".notdef": 0xFFFF} | {n: 0xFFFF if boxes else ord(c) for n, c in names.items()}
    builder.setupGlyf({n: _bars(number) for n, number in numbers.items()})
    builder.setupHorizontalMetrics(dict.fromkeys(order, (950, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2(usWeightClass=weight)
    builder.setupPost()
    builder.save(path)
    return path


def make_artwork(path: Path, color: str = "orange") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGBA", (80, 60), (0, 255, 0, 0))
    ImageDraw.Draw(image).ellipse((20, 10, 60, 40), fill=color)
    image.save(path)
    return path


def make_folders(root: Path) -> list[str]:
    """One folder of each kind with a licence, and the options that name them."""
    for i in range(4):
        make_photo(root / "photos" / "sea" / f"{i}.jpg", i)
    (root / "photos" / "sea" / "COPYING").write_text("CC0: do what you like")
    make_font(root / "fonts" / "kana.ttf", needed_characters("hiragana"))
    (root / "fonts" / "OFL.txt").write_text("the font's licence")
    for name in ("a", "b", "c"):
        make_artwork(
            root / "artwork" / f"{name}.png", {"a": "orange", "b": "blue"}.get(name, "red")
        )
    return [v for k in ("photos", "fonts", "artwork") for v in (f"--{k}", str(root / k))]


def found(root: Path) -> OwnFiles:
    return find_own_files([root / "photos"], [root / "fonts"], [root / "artwork"], 0.3)[0]


# --- scripts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "count", "first"),
    [
        ("latin", 22, "B"),
        ("greek", 24, "Α"),
        ("cyrillic", 32, "А"),
        ("hiragana", 82, "あ"),
        ("hanzi", 3755, "啊"),
        ("kanji", 2965, "亜"),
        ("hangul", 2350, "가"),
        ("hanzi-traditional", 5401, "一"),
    ],
)
def test_letters(script: str, count: int, first: str) -> None:
    assert (len(set(letters(script))), letters(script)[0]) == (count, first)


@pytest.mark.parametrize("script", SCRIPTS)
def test_words_hold_only_characters_that_the_font_was_asked_for(script: str) -> None:
    rng = np.random.default_rng(3)
    needed = set(needed_characters(script))
    for _ in range(200):
        word = random_word(rng, script)
        wrong = misspell(rng, word, script)
        assert word.isprintable() and 2 <= len(word) <= 8
        assert needed.issuperset(word + wrong)


# --- what is found ---------------------------------------------------------------------------------


def test_a_font_is_used_for_the_scripts_that_it_has_every_letter_of(tmp_path: Path) -> None:
    greek, kana = needed_characters("greek"), needed_characters("hiragana")
    make_font(tmp_path / "whole.ttf", needed_characters("latin") + greek)
    make_font(tmp_path / "gap.otf", needed_characters("latin")[:-1] + kana)
    make_font(tmp_path / "boxes.ttf", kana, boxes=True)
    make_font(tmp_path / "thin.ttf", kana, weight=100)
    (tmp_path / "cut.ttf").write_bytes((tmp_path / "whole.ttf").read_bytes()[:400])
    (tmp_path / "page.ttf").write_text("<html>not found</html>")
    own, (line,) = find_own_files([], [tmp_path], [], 0.05)
    scripts = {Path(f.path).name: f.scripts for f in own.fonts}
    assert scripts == {"whole.ttf": ("latin", "greek"), "gap.otf": ("hiragana",)}
    for counted in ("2 files", "4 skipped", "2 unreadable", "1 of a weight", "1 without all"):
        assert counted in line


def test_words_are_drawn_with_fonts_that_have_their_letters(tmp_path: Path) -> None:
    make_font(tmp_path / "latin.ttf", needed_characters("latin"))
    make_font(tmp_path / "kana.ttf", needed_characters("hiragana"))
    own, _ = find_own_files([], [tmp_path], [], 0)
    able = {"latin": needed_characters("latin"), "kana": needed_characters("hiragana")}
    seen = set[str]()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        texture = draw_texture(rng, 48, "word", own)
        other = alternative(rng, texture)
        for t in (texture, other):
            assert t.style.font is not None
            name = Path(t.style.font.path).stem
            assert set(able[name]).issuperset(t.label)
            seen.add(name)
        assert texture.image.tobytes() != other.image.tobytes()
    assert seen == {"latin", "kana"}


def test_files_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    photos, artwork = tmp_path / "photos", tmp_path / "artwork"
    for i in range(3):
        make_photo(photos / f"{i}.png", i)
    make_photo(photos / "small.png", size=(320, 100))
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (photos / "notes.md").write_text("not counted")
    (photos / "._0.png").write_bytes(b"not counted either")
    make_artwork(artwork / "deep" / "er" / "a.png")
    (artwork / "b.svg").write_text("plain text")
    own, lines = find_own_files([photos], [], [artwork], 0.05)
    assert {len(own.photos), len(own.held_out_photos)} == {1, 2}
    assert lines == [
        "--photos: 3 files, 2 skipped (1 unreadable, 1 smaller than 256 px)",
        "--artwork: 1 files, 1 skipped (1 unreadable)",
    ]


def test_a_file_that_is_linked_or_in_two_folders_counts_once(tmp_path: Path) -> None:
    for i in range(2):
        make_photo(tmp_path / "inner" / f"{i}.png", i)
    (tmp_path / "inner" / "link.png").symlink_to(tmp_path / "inner" / "0.png")
    own, _ = find_own_files([tmp_path, tmp_path / "inner"], [], [], 0)
    assert [f.path.name for f in own.photos] == ["0.png", "1.png"]


@pytest.mark.parametrize("kind", ["photos", "fonts", "artwork"])
def test_a_folder_without_anything_of_use_is_named(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, useless = tmp_path / "nothing", tmp_path / "rubbish"
    empty.mkdir()
    useless.mkdir()
    for suffix in (".png", ".ttf"):
        (useless / f"broken{suffix}").write_bytes(b"broken")
    command = ["data", "build", "--out", str(tmp_path / "out"), "--count", "1"]
    for folder in (empty, useless, tmp_path / "missing"):
        assert main([*command, f"--{kind}", str(folder)]) == 2
        error = capsys.readouterr().err
        assert f"--{kind}" in error and str(folder) in error
    assert not (tmp_path / "out").exists()


def test_one_photograph_is_not_enough_for_two_splits(tmp_path: Path) -> None:
    photo = make_photo(tmp_path / "only.png")
    with pytest.raises(ValueError, match=str(photo)):
        find_own_files([tmp_path], [], [], 0.05)
    own, _ = find_own_files([tmp_path], [], [], 0)
    assert [f.path for f in own.photos] == [photo]


def test_own_files_are_for_procedural_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folders(tmp_path)
    command = ["data", "build", "--out", str(tmp_path / "out"), "--count", "1"]
    options = ["--pairs", str(tmp_path), "--artwork", str(tmp_path / "artwork")]
    assert main([*command, *options]) == 2
    assert "--artwork" in capsys.readouterr().err


# --- artwork ---------------------------------------------------------------------------------------


def test_artwork_is_cut_to_what_is_visible_and_fitted(tmp_path: Path) -> None:
    drawing = load_artwork(make_artwork(tmp_path / "a.png"), (164, 200))
    assert drawing.size == (164, 124)  # the ellipse is 41 by 31
    assert np.asarray(drawing)[62, 82].tolist() == [255, 165, 0, 255]
    colored = np.asarray(drawing)[..., 3] > 40
    red, green = np.asarray(drawing, int)[colored][:, :2].T
    assert (red > green).all()  # no green from the transparent pixels


@pytest.mark.parametrize(("w", "h"), [(20, 10), (90, 10)])
def test_svg_in_millimetres(tmp_path: Path, w: int, h: int) -> None:
    pytest.importorskip("resvg_py", reason="resvg-py renders SVG")
    path = tmp_path / "a.svg"
    path.write_text(SVG.format(w=w, h=h, inner=w - 4))
    drawing = load_artwork(path, (120, 120))
    assert drawing.width == 120
    assert drawing.height == pytest.approx(120 * 6 / (w - 4), abs=2)
    assert np.asarray(drawing)[drawing.height // 2, 60].tolist() == [0xD0, 0x20, 0x20, 255]


def test_svg_without_its_renderer_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.svg").write_text(SVG.format(w=9, h=9, inner=5))
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ModuleNotFoundError, match="svg"):
        find_own_files([], [], [tmp_path], 0)


def test_invisible_artwork_is_an_error_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "air.png"
    Image.new("RGBA", (64, 64)).save(path)
    with pytest.raises(ValueError, match=r"air\.png"):
        load_artwork(path, (32, 32))


def test_logos_are_the_artwork_and_wrong_ones_are_other_artwork(tmp_path: Path) -> None:
    make_folders(tmp_path)
    own = found(tmp_path)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        texture = draw_texture(rng, 64, "logo", own)
        other = alternative(rng, texture)
        assert texture.artwork in own.artwork and other.artwork in own.artwork
        assert texture.artwork != other.artwork
        x0, y0, x1, y1 = texture.box
        assert 0 <= x0 < x1 <= texture.image.width and 0 <= y0 < y1 <= texture.image.height
        apart = np.abs(np.asarray(texture.image, int) - np.asarray(texture.style.material, int))
        assert apart[y0:y1, x0:x1].max() > 40
        apart[y0:y1, x0:x1] = 0
        assert apart.max() == 0


def test_a_single_drawing_has_a_wrong_one_too(tmp_path: Path) -> None:
    make_artwork(tmp_path / "only.png")
    own, _ = find_own_files([], [], [tmp_path], 0)
    texture = draw_texture(np.random.default_rng(0), 64, "logo", own)
    wrong = alternative(np.random.default_rng(1), texture)
    assert wrong.label != texture.label and wrong.image.tobytes() != texture.image.tobytes()


# --- the build -------------------------------------------------------------------------------------


def test_without_own_files_the_settings_are_those_of_before() -> None:
    assert "own" not in ProceduralPair(side=64).settings()
    assert NO_FILES.files() == {}


def test_a_build_credits_its_files_and_keeps_the_splits_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = make_folders(tmp_path)
    command = ["data", "build", "--count", "16", "--size", "96", "--held-out", "0.3", *options]
    out = tmp_path / "set"
    assert main([*command, "--out", str(out)]) == 0
    assert "--photos: 4 files" in capsys.readouterr().out
    entries = read_manifest(out)
    photos: dict[str, set[str]] = {"train": set(), "validation": set()}
    files = set[str]()
    for entry in entries:
        for credit in entry["credits"]:
            files.add(credit["file"])
            if credit["file"].startswith("photos/"):
                assert credit["licence"] == "photos/sea/COPYING"
                photos[entry["split"]].add(credit["file"])
        assert set(needed_characters("hiragana")).issuperset(entry["label"]) == (
            entry["kind"] == "word"
        )
    assert photos["train"] and photos["validation"] and not photos["train"] & photos["validation"]
    assert "fonts/kana.ttf" in files and any(f.startswith("artwork/") for f in files)

    credit = json.loads((out / "credits.json").read_text(encoding="utf-8"))
    named = {f["file"]: f["licence"] for f in credit["files"]}
    assert len(named) == 8 and files <= set(named) and named["artwork/a.png"] is None
    assert credit["licences"] == {
        "fonts/OFL.txt": "the font's licence",
        "photos/sea/COPYING": "CC0: do what you like",
    }

    assert main([*command, "--out", str(tmp_path / "again")]) == 0
    first, again = ([t.draft.tobytes() for t in TripletSet(o)] for o in (out, tmp_path / "again"))
    assert first == again
    make_artwork(tmp_path / "artwork" / "d.png")
    assert main([*command, "--out", str(out)]) == 2
    assert "own.artwork" in capsys.readouterr().err


def test_a_photograph_that_is_cut_off_costs_its_samples_only(tmp_path: Path) -> None:
    for i in range(3):
        make_photo(tmp_path / "photos" / f"{i}.png", i)
    cut = tmp_path / "photos" / "0.png"
    cut.write_bytes(cut.read_bytes()[:2000])
    out = tmp_path / "set"
    command = [
        "data",
        "build",
        "--out",
        str(out),
        "--count",
        "8",
        "--size",
        "64",
        "--held-out",
        "0",
    ]
    assert main([*command, "--photos", str(tmp_path / "photos")]) == 0
    reasons = [e["reason"] for e in read_lines(out / "rejected.jsonl") if e["broken"]]
    assert reasons and all(str(cut) in r for r in reasons)
    assert read_manifest(out)


def test_the_same_seed_gives_the_same_scene(tmp_path: Path) -> None:
    make_folders(tmp_path)
    pair = ProceduralPair(side=96, own=found(tmp_path))
    one, two = (pair(Sample("a", sample_seed(0, 5), 5)) for _ in range(2))
    np.testing.assert_array_equal(one.pair()[0], two.pair()[0])
    assert one.info == two.info
