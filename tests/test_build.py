"""The procedural build: the same bytes always, also after a kill, in parts and stage by stage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refiner_core.__main__ import main
from refiner_core.data.build import run_build
from refiner_core.data.build_settings import Build
from refiner_core.data.corruptions import CORRUPTIONS
from refiner_core.data.degrade import DEGRADATIONS
from refiner_core.data.render import render
from refiner_core.data.sample import (
    BuildStage,
    RejectedError,
    Sample,
    sample_seed,
    split_of_identity,
)
from refiner_core.data.shards import TripletSet, read_lines, read_manifest
from refiner_core.data.stages.drafts import paste_inside
from refiner_core.data.stages.procedural import (
    ProceduralDegrade,
    ProceduralMask,
    ProceduralPair,
    ProceduralSelect,
)
from refiner_core.data.textures import KINDS, draw_texture

ROOT = Path(__file__).resolve().parents[1]
PAIR = ProceduralPair(side=64, held_out=0.2)


def stages_of(pair: ProceduralPair = PAIR, **degrade: Any) -> tuple[BuildStage, ...]:
    return (pair, ProceduralSelect(pair), ProceduralMask(pair), ProceduralDegrade(pair, **degrade))


def build_of(out: Path, **changes: Any) -> Build:
    return replace(Build(out, stages_of(), count=12, shard_size=5, held_out=0.2), **changes)


def sample_of(number: int, seed: int = 0) -> Sample:
    return Sample(f"{number:08d}", sample_seed(seed, number), number)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file a reader sees."""
    files = [p for p in folder.iterdir() if p.is_file()]
    return {p.name: p.read_bytes() for p in sorted(files)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build that ran through."""
    out = tmp_path_factory.mktemp("whole") / "set"
    run_build(build_of(out))
    return out


def test_the_seed_of_a_sample_is_fixed_for_ever() -> None:
    assert [sample_seed(r, n) for r, n in ((0, 0), (0, 1), (1, 0))] == [
        3560153452049741418, 2754921267890689017, 4432326512554026153,
    ]  # fmt: skip


def test_a_build_keeps_the_contract(whole: Path) -> None:
    triplets = {t.id: t for t in TripletSet(whole)}
    entries = read_manifest(whole)
    rejected = read_lines(whole / "rejected.jsonl")
    assert len(triplets) == len(entries) and len(entries) + len(rejected) == 12
    for entry in entries:
        t = triplets[entry["id"]]
        outside = t.mask == 0
        assert t.target is not None and t.reference_mask is not None
        np.testing.assert_array_equal(t.draft[outside], t.target[outside])
        assert outside.any() and t.mask.any()
        assert entry["split"] == split_of_identity(entry["identity"], 0.2)
        assert entry["seed"] == sample_seed(0, int(entry["id"]))
        assert entry["boxes"]["target"] == entry["box"] and entry["licence"] and entry["prompt"]
        assert set(entry["stages"]) == {"pair", "select", "mask", "degrade"}
        assert {"name", "strength"} <= set(entry["degradation"])
    assert not any(p.name.startswith(".") for p in whole.rglob("*"))


@pytest.mark.parametrize("changes", [{"seed": 1}, {"stages": stages_of(identity=1.0)}])
def test_another_configuration_is_another_set_and_refused_in_this_one(
    whole: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"seed was 0, now 1|identity was 0.05, now 1"):
        run_build(build_of(whole, **changes))
    run_build(build_of(tmp_path, count=3, **changes))
    drafts = [{t.id: t.draft.tobytes() for t in TripletSet(p)} for p in (whole, tmp_path)]
    assert any(drafts[0].get(i) != d for i, d in drafts[1].items())


def test_more_samples_may_be_asked_for_but_not_fewer(whole: Path, tmp_path: Path) -> None:
    run_build(build_of(tmp_path, count=7))
    with pytest.raises(ValueError, match="--count 7; 6"):
        run_build(build_of(tmp_path, count=6))
    run_build(build_of(tmp_path))
    assert contents(tmp_path) == contents(whole)


def test_stages_one_by_one_give_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    for stage in stages_of():
        run_build(build_of(tmp_path, stages=(stage,)))
    assert contents(tmp_path) == contents(whole)


def test_one_stage_again_keeps_the_others(whole: Path, tmp_path: Path) -> None:
    blurred = (ProceduralDegrade(PAIR, identity=0, only="blur"),)
    with pytest.raises(ValueError, match="other settings"):
        run_build(build_of(whole, stages=blurred))
    run_build(build_of(tmp_path, stages=blurred, source=whole))
    before = {t.id: t for t in TripletSet(whole)}
    after = {t.id: t for t in TripletSet(tmp_path)}
    assert after and set(after) <= set(before)
    for name, t in after.items():
        for same in ("target", "reference", "mask", "reference_mask"):
            np.testing.assert_array_equal(getattr(t, same), getattr(before[name], same))
        assert t.info["degradation"]["name"] == "blur"
        assert t.info["scores"] == before[name].info["scores"]


def test_a_stage_without_what_comes_before_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run stage mask first"):
        run_build(build_of(tmp_path / "a", stages=stages_of()[3:]))
    with pytest.raises(ValueError, match="pair, mask"):
        run_build(build_of(tmp_path / "a", stages=(stages_of()[0], stages_of()[2])))
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_a_killed_build_goes_on_to_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "refiner_core", "data", "build", "--out", str(tmp_path), "--count",
        "12", "--shard", "5", "--held-out", "0.2", "--size", "64",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (tmp_path / "stages" / "degrade" / "00000.json").exists():
        assert process.poll() in (None, 0)
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # What a kill in the middle of a write leaves.
    (tmp_path / ".train-00001.tar.zzz.tar").write_bytes(b"half")
    (tmp_path / "train-00001.tar").write_bytes(b"a stranger without a report")
    (tmp_path / "stages" / "degrade" / "00001.json").unlink(missing_ok=True)
    assert main(command[3:]) == 0
    assert contents(tmp_path) == contents(whole)


def test_a_shard_that_is_gone_or_cut_is_made_again(whole: Path, tmp_path: Path) -> None:
    run_build(build_of(tmp_path))
    shards = sorted(tmp_path.glob("train-*.tar"))
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:3000])
    run_build(build_of(tmp_path))
    assert contents(tmp_path) == contents(whole)


@pytest.mark.slow
def test_processes_give_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    run_build(build_of(tmp_path), workers=2)
    assert contents(tmp_path) == contents(whole)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no ulimit on Windows")
def test_a_full_disk_keeps_what_is_done(whole: Path, tmp_path: Path) -> None:
    run_build(build_of(tmp_path, count=5))
    size = max(p.stat().st_size for p in tmp_path.glob("*.tar")) // 512
    command = (
        f"ulimit -f {size // 2}; exec {sys.executable} -m refiner_core data build --out {tmp_path} "
        "--count 12 --shard 5 --held-out 0.2 --size 64"
    )
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "cannot be written" in done.stderr, done.stderr
    assert not any(p.name.startswith(".") for p in tmp_path.rglob("*"))
    run_build(build_of(tmp_path))
    assert contents(tmp_path) == contents(whole)


@dataclass(frozen=True)
class Fragile(ProceduralPair):
    """Cannot read every third picture, and finds every fourth bad."""

    def __call__(self, sample: Sample) -> Sample:
        if sample.number % 3 == 0:
            raise ValueError(f"picture {sample.number} is cut off")
        if sample.number % 4 == 0:
            raise RejectedError("ugly")
        return super().__call__(sample)


def test_a_broken_item_is_recorded_and_the_rest_is_made(whole: Path, tmp_path: Path) -> None:
    pair = Fragile(side=64, held_out=0.2)
    counts = run_build(build_of(tmp_path, stages=stages_of(pair)))
    rejected = {e["id"]: e for e in read_lines(tmp_path / "rejected.jsonl")}
    assert rejected["00000003"] == {
        "id": "00000003", "stage": "pair", "broken": True, "reason": "picture 3 is cut off",
    }  # fmt: skip
    assert rejected["00000004"]["broken"] is False
    assert counts["broken"] == 4 and counts["kept"] + counts["rejected"] == 12
    kept = {e["id"] for e in read_manifest(tmp_path)}
    assert kept == {e["id"] for e in read_manifest(whole) if int(e["id"]) % 3 and int(e["id"]) % 4}


@dataclass(frozen=True)
class Dying(ProceduralPair):
    """Its server goes away at sample 7."""

    def __call__(self, sample: Sample) -> Sample:
        if sample.number == 7:
            raise ConnectionError("no server answers")
        return super().__call__(sample)


def test_a_lost_server_stops_the_build_and_keeps_what_is_done(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="no server"):
        run_build(build_of(tmp_path, stages=stages_of(Dying(side=64, held_out=0.2))))
    assert (tmp_path / "train-00000.tar").exists() and not (tmp_path / "manifest.jsonl").exists()
    with pytest.raises(ValueError, match="no split 'nothing'"):
        TripletSet(tmp_path, "nothing")[0]
    run_build(build_of(tmp_path))
    assert contents(tmp_path) == contents(whole)


# --- what is drawn -------------------------------------------------------------------------------


def test_splits_share_no_identity_and_no_photograph() -> None:
    identities: dict[str, set[str]] = {"train": set(), "validation": set()}
    for number in range(300):
        rng = sample_of(number).rng("pair")
        label = draw_texture(rng, 24).label.upper()
        identities[split_of_identity(label, 0.3)].add(label)
    assert identities["train"] and not identities["train"] & identities["validation"]
    share = sum(split_of_identity(str(i), 0.05) == "validation" for i in range(4000)) / 4000
    assert share == pytest.approx(0.05, abs=0.015)


@pytest.mark.slow
def test_kinds_errors_and_identity_samples_all_occur() -> None:
    pair = ProceduralPair(side=64)
    stages = (pair, ProceduralMask(pair), ProceduralDegrade(pair, min_change=0))
    kinds, names = Counter[str](), Counter[str]()
    for number in range(120):
        sample = sample_of(number)
        for stage in stages:
            sample = stage(sample)
        kinds[sample.info["kind"]] += 1
        names[sample.info["degradation"]["name"]] += 1
    assert set(kinds) == set(KINDS)
    assert set(CORRUPTIONS) <= set(names) <= {*CORRUPTIONS, *DEGRADATIONS, "identity"}
    assert 1 <= names["identity"] <= 20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_misprint_changes_the_detail_and_nothing_around_it(kind: str, name: str) -> None:
    texture = draw_texture(np.random.default_rng(5), 80, kind)
    wrong = CORRUPTIONS[name](np.random.default_rng(1), texture, 0.8)
    apart = np.abs(np.asarray(wrong, int) - np.asarray(texture.image, int)).max(-1)
    x0, y0, x1, y1 = texture.box
    assert apart[y0:y1, x0:x1].mean() > 1
    apart[y0:y1, x0:x1] = 0
    assert name in ("swap", "partial") or apart.max() == 0


def test_the_mask_lies_on_the_detail_of_bent_surfaces_too() -> None:
    """Without its ink the surface differs inside the outline only, whatever the bend."""
    pair = ProceduralPair(side=128, kind="word")
    bends = Counter[str]()
    for number in range(30):
        sample = sample_of(number)
        for stage in (pair, ProceduralMask(pair, rough=False)):
            sample = stage(sample)
        scene = pair.draw_scene(sample)
        bare = render(scene.texture.style.material, scene.target).astype(int)
        apart = np.abs(bare - sample.pair()[1]).max(-1)
        changed = apart > 40
        assert sample.mask is not None and changed.any()
        assert changed[sample.mask > 0].sum() > 0.98 * changed.sum()
        bends[scene.target.bend.kind] += 1
    assert set(bends) == {"flat", "cylinder", "cloth"}


def test_what_is_pasted_stays_in_the_mask() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 256, (40, 50, 3), np.uint8)
    broken = 255 - target
    mask = np.zeros((40, 50), np.uint8)
    mask[10:30, 0:35] = 255
    mask[12:15, 5:9] = 0
    out = paste_inside(target, broken, mask)
    np.testing.assert_array_equal(out[mask == 0], target[mask == 0])
    np.testing.assert_array_equal(out[20, 15], broken[20, 15])


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "set")
    command = ["data", "build", "--out", out, "--count", "3", "--size", "64"]
    assert main(command) == 0
    assert "samples" in capsys.readouterr().out
    assert json.loads((tmp_path / "set" / "build.json").read_text())["count"] == 3
    assert main([*command, "--seed", "4"]) == 2
    assert "seed was 0, now 4" in capsys.readouterr().err
    assert main([*command[:-4], "--count", "0"]) == 2
    with pytest.raises(SystemExit):
        main([*command, "--stage", "paint"])
    assert os.listdir(tmp_path) == ["set"]
