"""On a local Ray, a build and repairs give the same bytes as in one process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from refiner_core.data.build import run_build
from refiner_core.data.build_settings import Build
from refiner_core.data.cluster import ray_runner
from refiner_core.data.stages.procedural import (
    ProceduralDegrade,
    ProceduralMask,
    ProceduralPair,
    ProceduralSelect,
)
from refiner_core.jobs.job_list import read_jobs
from refiner_core.jobs.run_jobs import run_jobs
from refiner_core.repair.request import RefineOptions
from refiner_core.workers.dispatch import Place

CASE = Path(__file__).parents[1] / "refiner_core" / "demo_cases" / "word"

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[data]'")


@pytest.fixture
def local_ray() -> Iterator[Any]:
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
    yield ray
    ray.shutdown()


def test_ray_gives_the_same_bytes(local_ray: Any, tmp_path: Path) -> None:
    pair = ProceduralPair(side=64)
    stages = (pair, ProceduralSelect(pair), ProceduralMask(pair), ProceduralDegrade(pair))
    seen = []
    for name, run in (("here", None), ("there", ray_runner("local"))):
        build = Build(tmp_path / name, stages, count=6, shard_size=2)
        counts = run_build(
            build, progress=lambda d, n, r: seen.append((d, n)), **({"run": run} if run else {})
        )
        assert counts["kept"] > 2
    assert seen == [(1, 3), (2, 3), (3, 3)] * 2
    here, there = (
        {p.name: p.read_bytes() for p in (tmp_path / n).iterdir() if p.is_file()}
        for n in ("here", "there")
    )
    assert here == there


def test_ray_repairs_the_same(local_ray: Any, tmp_path: Path) -> None:
    files = {r: str(CASE / f"{r}.png") for r in ("draft", "reference", "mask")}
    lines = [{**files, "id": f"n{i}", "seed": i} for i in range(3)] + [
        {**files, "id": "gone", "draft": "gone.png"}
    ]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    fast = RefineOptions(steps=1, align=False, drift=False)
    for name, place in (("here", Place(("cpu",))), ("there", Place(ray="local"))):
        listed = read_jobs(tmp_path / "jobs.jsonl", fast)
        found = run_jobs(listed, tmp_path / name, {"refiner": "nano"}, place)
        assert found.repaired == 3 and list(found.failed) == ["gone"]
    for i in range(3):
        here, there = ((tmp_path / name / f"n{i}.png").read_bytes() for name in ("here", "there"))
        assert here == there
    with pytest.raises(ValueError, match="missing"):
        run_jobs(listed, tmp_path / "other", {"refiner": "missing"}, Place(ray="local"))


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("127.0.0.1:1", ConnectionError),
        ("ray://127.0.0.1:1", ConnectionError),
        ("head", ValueError),
    ],
)
def test_no_cluster_is_said(tmp_path: Path, address: str, error: type[Exception]) -> None:
    assert not ray.is_initialized()
    pair = ProceduralPair(side=64)
    with pytest.raises(error, match=address):
        run_build(Build(tmp_path, (pair,), count=2), run=ray_runner(address))
