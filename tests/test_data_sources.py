"""Real pairs from files: reading, selecting, marking, breaking, and what is wrong with them."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refiner_core.__main__ import main
from refiner_core.data.shards import TripletSet, read_lines, read_manifest
from refiner_core.data.stages.generated import CachedWorkflow
from refiner_core.data.stages.selection import VlmVerdict, sharpness
from refiner_core.data.workflow import Workflow, load_workflow
from refiner_core.evaluation.held_out_scenes import make_scene
from refiner_core.scoring.dreamsim_release import convert_release
from refiner_core.scoring.vlm_client import VlmClient
from refiner_core.storage.output_files import name_problem
from tests.dreamsim_release import LAYOUTS, TINY, write_release

SIZE = (128, 96)


def save(folder: Path, **pictures: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Four pairs; the first two show the same reference."""
    folder = tmp_path / "pairs"
    for i in range(4):
        s = make_scene(40 + i, SIZE, (0.4, 0.6), degradation="swap")
        reference = make_scene(40, SIZE, degradation="swap").reference if i < 2 else s.reference
        save(folder / f"p{i}", target=s.target, mask=s.mask, draft=s.draft, reference=reference)
    (folder / "p2" / "prompt.txt").write_text("Fix the label\n")
    (folder / "p2" / "info.json").write_text('{"identity": "mug", "licence": "CC0"}')
    return folder


def build(out: Path, *options: object, count: int = 4) -> int:
    return main(["data", "build", "--out", str(out), "--count", str(count), *map(str, options)])


def reasons(out: Path) -> dict[str, str]:
    return {e["id"]: f"{e['stage']}: {e['reason']}" for e in read_lines(out / "rejected.jsonl")}


def test_a_folder_of_pairs(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert build(out, "--pairs", pairs, "--licence", "ours", count=8) == 0
    entries = {e["id"]: e for e in read_manifest(out)}
    assert set(entries) | set(reasons(out)) == {f"{i:08d}" for i in range(8)}
    same = [e["identity"] for e in entries.values() if e["pair"] in ("p0", "p1")]
    assert len(set(same)) == 1, "one reference is one identity"
    for t in TripletSet(out):
        assert t.target is not None
        np.testing.assert_array_equal(t.draft[t.mask == 0], t.target[t.mask == 0])
        stored = np.asarray(Image.open(pairs / t.info["pair"] / "target.png"))
        np.testing.assert_array_equal(t.target, stored)
    labelled = [e for e in entries.values() if e["pair"] == "p2"]
    assert {(e["prompt"], e["identity"], e["licence"]) for e in labelled} == {
        ("Fix the label", "mug", "CC0")
    }
    assert {e["licence"] for e in entries.values() if e["pair"] != "p2"} == {"ours"}
    # The same pair serves again, broken in another way.
    again = {(e["pair"], json.dumps(e["degradation"])) for e in entries.values()}
    assert len(again) == len(entries)


def test_a_listing_of_pairs(pairs: Path, tmp_path: Path) -> None:
    lines = [
        {"A_image": f"p{i}/reference.png", "B_image": f"p{i}/draft.png", "mask": f"p{i}/mask.png",
         "target": f"p{i}/target.png", "caption": f"Fix {i}"}
        for i in range(4)
    ]  # fmt: skip
    (pairs / "all.jsonl").write_text("".join(json.dumps(e) + "\n" for e in lines))
    out = tmp_path / "out"
    assert build(out, "--pairs", pairs / "all.jsonl", "--given-drafts") == 0
    found = list(TripletSet(out))
    assert {t.prompt for t in found} <= {f"Fix {i}" for i in range(4)} and found
    for t in found:
        assert t.target is not None
        stored = np.asarray(Image.open(pairs / f"p{t.prompt[-1]}" / "target.png"))
        np.testing.assert_array_equal(t.target, stored)
    (pairs / "none.jsonl").write_text("\n")
    assert build(tmp_path / "none", "--pairs", pairs / "none.jsonl") == 2


def test_critic_layout_and_its_own_drafts(pairs: Path, tmp_path: Path) -> None:
    names = {
        "reference": "product", "target": "generated", "draft": "generated_with_degradation",
        "mask": "mask",
    }  # fmt: skip
    for folder in pairs.iterdir():
        for own, theirs in names.items():
            (folder / f"{own}.png").rename(tmp_path / "moved.png")
            (tmp_path / "moved.png").rename(folder / f"{theirs}.png")
    # Theirs keep draft and target in different sizes now and then.
    draft = pairs / "p1" / "generated_with_degradation.png"
    Image.open(draft).resize((64, 48)).save(draft)
    out = tmp_path / "out"
    assert build(out, "--pairs", pairs, "--given-drafts") == 0
    triplets = {t.info["pair"]: t for t in TripletSet(out)}
    assert {"p0", "p2", "p3"} <= set(triplets)
    given = np.asarray(Image.open(pairs / "p0" / "generated_with_degradation.png"))
    inside = triplets["p0"].mask > 0
    np.testing.assert_array_equal(triplets["p0"].draft[inside], given[inside])
    assert triplets["p0"].info["degradation"]["name"] == "given"


def test_masks_from_alpha_and_boxes(pairs: Path, tmp_path: Path) -> None:
    for folder in pairs.iterdir():
        image = Image.open(folder / "target.png").convert("RGBA")
        alpha = np.zeros((image.height, image.width), np.uint8)
        alpha[20:60, 30:90] = 255
        image.putalpha(Image.fromarray(alpha))
        image.save(folder / "target.png")
    assert build(tmp_path / "alpha", "--pairs", pairs, "--masks", "alpha") == 0
    for entry in read_manifest(tmp_path / "alpha"):
        x0, y0, x1, y1 = entry["box"]
        assert (x0 - 30, y0 - 20, x1 - 90, y1 - 60) == pytest.approx((0, 0, 0, 0), abs=3)
    boxes = tmp_path / "boxes.json"
    boxes.write_text('{"p0": {"target": [[0.25, 0.25, 0.5, 0.75]], "reference": [[0, 0, 1, 0.5]]}}')
    out = tmp_path / "boxed"
    assert build(out, "--pairs", pairs, "--masks", "boxes", "--boxes", boxes) == 0
    (t,) = TripletSet(out)
    assert t.reference_mask is not None
    assert abs(t.info["boxes"]["reference"][3] - t.reference.shape[0] / 2) <= 1
    assert t.mask[48, 48] == 255 and t.mask[48, 100] == 0
    assert reasons(out)["00000001"].startswith("mask: ")
    assert reasons(out)["00000001"].endswith(" p1")


def test_broken_pairs_are_named_and_skipped(pairs: Path, tmp_path: Path) -> None:
    (pairs / "p0" / "target.png").write_bytes((pairs / "p0" / "target.png").read_bytes()[:200])
    save(pairs / "p1", mask=np.zeros((96, 128), np.uint8))
    save(pairs / "p2", mask=np.full((96, 128), 255, np.uint8))
    (pairs / "p3" / "reference.png").unlink()
    save(
        pairs / "p4",
        target=np.zeros((96, 128, 3), np.uint8),
        reference=np.zeros((9, 9, 3), np.uint8),
    )
    source = make_scene(50, SIZE)
    save(pairs / "p5", target=source.target, reference=source.reference,
         mask=np.zeros((96, 96), np.uint8))  # fmt: skip
    save(pairs / "p6", target=source.target, reference=source.target, mask=source.mask)
    save(pairs / "p7", target=source.target, reference=source.reference, mask=source.mask)
    out = tmp_path / "out"
    assert build(out, "--pairs", pairs, count=8) == 0
    found = reasons(out)
    expected = {
        0: r"damaged or cut off", 1: "the mask is empty", 2: "covers 100.00%", 3: "no reference",
        4: "9 px", 5: "96x96 but its picture is 128x96", 6: "a copy",
    }  # fmt: skip
    for number, text in expected.items():
        assert text in found[f"{number:08d}"], found
    assert [e["pair"] for e in read_manifest(out)] == ["p7"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pairs", "nowhere"], "nowhere"),
        (["--pairs", "."], ". holds"),
        (["--pairs", "x", "--pair-workflow", "y"], "--pairs and --pair-workflow"),
        (["--masks", "alpha"], "--masks is for real pairs"),
        (["--given-drafts"], "--given-drafts needs --pairs"),
        (["--boxes", "b.json"], "--boxes needs --masks boxes"),
        (["--size", "8"], "--size must be 32 to 4096"),
        (["--identity", "1.5"], "--identity must be 0 to 1"),
        (["--from", "x"], "--from names the build"),
        (["--vlm", "http://x"], "--vlm needs --vlm-model"),
        (["--stage", "degrade"], "run stage mask first"),
    ],
)
def test_contradictory_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    options: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert build(tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--degradation", "ruin"], "'ruin'; choose from blur"),
        (["--scorer", "dreamsim"], "dreamsim needs --scorer-weights"),
        (["--scorer", "dinov2", "--scorer-weights", "."], "DINOv2"),
        (["--masks", "boxes"], "--boxes"),
        (["--degrade-workflow", "w.json"], "no placeholder {{mask}}"),
    ],
)
def test_what_real_stages_refuse(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], options: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_workflow(tmp_path / "w.json", {"image": "{{target}}"})
    assert build(tmp_path / "out", "--pairs", pairs, *options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "boxes",
    ["[1]", '{"p0": [1]}', '{"p0": {"target": [[0, 0, 2, 1]]}}', '{"p0": {"target": [[0, 1]]}}',
     '{"p0": {"objects": []}}', "{"],
)  # fmt: skip
def test_bad_boxes_files(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], boxes: str
) -> None:
    (tmp_path / "b.json").write_text(boxes)
    options = ["--pairs", pairs, "--masks", "boxes", "--boxes", tmp_path / "b.json"]
    assert build(tmp_path / "out", *options) == 2
    assert "b.json" in capsys.readouterr().err


# --- workflows -----------------------------------------------------------------------------------

KNOWN = {"reference": "the picture", "seed": "a number", "prompt": "a text"}


def write_workflow(path: Path, inputs: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"1": {"class_type": "LoadImage", "inputs": inputs}}))
    return path


def test_placeholders_keep_their_type(tmp_path: Path) -> None:
    inputs = {
        "image": "{{reference}}",
        "seed": "{{ seed }}",
        "text": "no. {{seed}}: {{prompt}}",
        "n": 3,
    }
    workflow = load_workflow(write_workflow(tmp_path / "w.json", inputs), KNOWN, ("reference",))
    filled = workflow.fill({"reference": "a.png", "seed": 7, "prompt": "{{x}}"})
    assert filled["1"]["inputs"] == {"image": "a.png", "seed": 7, "text": "no. 7: {{x}}", "n": 3}
    assert workflow.graph["1"]["inputs"] == inputs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "JSON"),
        ("[]", "not in API format"),
        ("{}", "not in API format"),
        ('{"nodes": [], "links": []}', r"editor's format.*Export \(API\)"),
        ('{"1": {"class_type": "X"}}', "not in API format"),
        ('{"1": {"class_type": "X", "inputs": {}}}', r"no placeholder \{\{reference\}\}"),
        ('{"1": {"class_type": "X", "inputs": {"a": "{{refrence}}"}}}',
         r"unknown placeholder \{\{refrence\}\}. Did you mean \{\{reference\}\}"),
    ],
)  # fmt: skip
def test_a_workflow_that_cannot_be_filled(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "w.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_workflow(tmp_path / "w.json", KNOWN, ("reference",))


# --- selection -----------------------------------------------------------------------------------


def test_sharpness_falls_with_blur() -> None:
    target = make_scene(3, SIZE).target
    soft = np.asarray(Image.fromarray(target).resize((16, 12)).resize(SIZE))
    assert sharpness(target) > 5 * sharpness(soft)


class Judge(http.server.BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint whose verdict is in its `answers`, taken in turn."""

    answers: list[str] = []
    asked: list[dict[str, Any]] = []

    def do_POST(self) -> None:  # noqa: N802
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({**body, "key": self.headers.get("Authorization")})
        text = self.answers[(len(self.asked) - 1) % len(self.answers)]
        if text == "500":
            self.send_error(500, "out of memory")
            return
        data = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def judge() -> Iterator[str]:
    Judge.asked.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_a_model_judges_the_pairs(
    pairs: Path, tmp_path: Path, judge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Judge.answers = [
        '{"same": 90, "why": "yes"}',
        'It is {"same": 20, "why": "another word"}.',
        "Hm.",
    ]
    monkeypatch.setenv("MY_KEY", "secret")
    options = ["--pairs", pairs, "--vlm", judge, "--vlm-model", "m", "--vlm-key-env", "MY_KEY"]
    out = tmp_path / "out"
    assert build(out, *options, count=3) == 0
    (entry,) = read_manifest(out)
    assert entry["scores"]["verdict"] == 90
    found = reasons(out)
    assert "verdict 20 is less than 60: another word" in found["00000001"]
    assert "no score" in found["00000002"]
    assert Judge.asked[0]["key"] == "Bearer secret" and Judge.asked[0]["model"] == "m"
    kinds = [part["type"] for part in Judge.asked[0]["messages"][0]["content"]]
    assert kinds == ["text", "image_url", "image_url"]
    assert "secret" not in (out / "build.json").read_text()


def test_an_endpoint_that_fails_stops_the_build(
    pairs: Path, tmp_path: Path, judge: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Judge.answers = ["500"]
    assert build(tmp_path / "out", "--pairs", pairs, "--vlm", judge, "--vlm-model", "m") == 2
    assert "HTTP 500" in capsys.readouterr().err
    with pytest.raises(ConnectionError):
        VlmVerdict(VlmClient("http://127.0.0.1:9/v1", "m"))(*[np.zeros((40, 40, 3), np.uint8)] * 2)


def test_dreamsim_selects(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    variant = "dino_vitb16"
    release = write_release(tmp_path / "release", variant, TINY)
    weights = tmp_path / "dreamsim.safetensors"
    convert_release(release, weights, side=2 * LAYOUTS[variant][0][0][1])
    options = ["--pairs", pairs, "--scorer", "dreamsim", "--scorer-weights", weights]
    assert build(tmp_path / "out", *options, "--min-distance", "1e-6") == 0
    scores = [e["scores"][f"DreamSim {variant}"] for e in read_manifest(tmp_path / "out")]
    assert len(scores) == 4 and 0 < min(scores) < max(scores)
    assert build(tmp_path / "far", *options, "--min-distance", "0", "--max-distance", "1e-7") == 2
    assert "no sample was kept" in capsys.readouterr().err
    assert all("another thing" in r for r in reasons(tmp_path / "far").values())


def test_dinov2_tells_pictures_apart(tmp_path: Path) -> None:
    import torch
    from transformers import Dinov2Config, Dinov2Model

    from refiner_core.scoring.dinov2 import load_dinov2

    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=224
    )
    torch.manual_seed(0)
    Dinov2Model(config).save_pretrained(tmp_path)
    scorer = load_dinov2(tmp_path)
    x = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    zero, apart = scorer.distance(x, x), scorer.distance(x[:1], 1 - x)
    assert zero.shape == (2,) and float(zero.abs().max()) < 1e-5
    assert float(apart.min()) > 1e-5
    mask = torch.zeros(1, 1, 96, 128)
    mask[..., 40:, :] = 1
    y = x.clone()
    y[..., :40, :] = 0
    assert float(scorer.distance(x, y, mask).abs().max()) < 1e-5


class Saving:
    """Servers whose workflow saves a picture from each node of these titles."""

    def __init__(self, titles: list[str]) -> None:
        self.titles, self.runs = titles, 0

    def run(self, fill: Any, pictures: Any, first: int = 0) -> dict[str, np.ndarray]:
        self.runs += 1
        return {t: np.full((4, 4, 3), i, np.uint8) for i, t in enumerate(self.titles)}


def test_titles_that_no_file_can_have_are_kept(tmp_path: Path) -> None:
    titles = ["a/b", "a_b", "C: x?", "con", "..", "", "A_B"]
    servers = Saving(titles)
    workflow = Workflow(tmp_path / "w.json", {}, frozenset())
    cached = CachedWorkflow(workflow, servers, tmp_path / "kept")  # type: ignore[arg-type]
    for _ in range(2):
        found = cached({}, {}, 0)
        assert {t: int(p[0, 0, 0]) for t, p in found.items()} == {
            t: i for i, t in enumerate(titles)
        }
    assert servers.runs == 1
    names = [p.name for p in (tmp_path / "kept").rglob("*") if p.is_file()]
    assert all(name_problem(name) is None for name in names)


def test_ai_toolkits_folders_become_a_data_set_by_what_the_message_says(
    tmp_path: Path, capsys: Any
) -> None:
    scene = make_scene(3, (160, 120), (0.4, 0.6))
    for folder, picture in (("control", scene.reference), ("target", scene.target)):
        (tmp_path / "data" / folder).mkdir(parents=True)
        Image.fromarray(picture).save(tmp_path / "data" / folder / "cup.jpg")
    out = tmp_path / "out"

    def made_of(pairs: str) -> int:
        options = ["--pairs", str(tmp_path / pairs), "--count", "2", "--out", str(out)]
        return main(["data", "build", *options])

    assert made_of("data") == 2
    said = capsys.readouterr().err
    for name in ("cup/reference.png", "cup/target.png", "cup/mask.png", "data build --pairs"):
        assert name in said
    (tmp_path / "pairs" / "cup").mkdir(parents=True)
    Image.fromarray(scene.reference).save(tmp_path / "pairs/cup/reference.png")
    Image.fromarray(scene.target).save(tmp_path / "pairs/cup/Target.PNG")
    assert made_of("pairs") == 2
    assert "2 of 2: there is no mask" in capsys.readouterr().err
    Image.fromarray(scene.mask).save(tmp_path / "pairs/cup/mask.gif")
    out = tmp_path / "again"
    assert made_of("pairs") == 0
    assert len(TripletSet(out)) == 2
