"""Training on several processes: what is learnt is what one process learns, however they share."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from refiner_core.training.config import ModelSettings
from refiner_core.training.open_session import make_trainable
from refiner_core.training.sharding import Fsdp, Zero3, requested_sharding
from tests.tiny_training import (
    PROGRAM,
    ROOT,
    environment,
    final,
    largest_difference,
    tiny_engine,
    tiny_run,
)

# Rewards of the tiny cases spread by about as much as this: half of the groups are dropped, so that
# processes have unequal numbers to learn from.
DROP = "objective.floor=0.065"
MEAN = ["objective.algorithm=nft", "rollout.group_mean=true"]
STAGES = {"sft": [], "grpo": [DROP], "nft": [DROP, *MEAN]}
MODES = {
    "plain": ["--multi_gpu"],  # accelerate's --cpu starts one process only; this is torchrun's way
    "fsdp": ["--use_fsdp", "--fsdp_version", "2"],
    "offload": ["--use_fsdp", "--fsdp_version", "2", "--fsdp_offload_params", "true"],
    "zero3": ["--use_deepspeed", "--zero_stage", "3"],
}
HEAD = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def start(options: list[str], arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*HEAD, *options, *PROGRAM, *arguments],
        cwd=ROOT,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        said = process.communicate(timeout=240)[0]
    finally:
        process.kill()
    assert process.returncode == 0, said
    return said


def launch(mode: str, stage: str, out: Path, steps: int) -> str:
    """Train in two processes; what they said."""
    arguments = [stage.replace("nft", "grpo"), str(out), str(steps), *STAGES[stage]]
    return finish(start(["--main_process_port", free_port(), *MODES[mode]], arguments))


def of(values: dict[str, Any], kind: str) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k.startswith(f"{kind}.")}


def alone(stage: str, out: Path, steps: int) -> dict[str, Any]:
    """Train in this process; the state left."""
    from refiner_core.training.settings import parse_assignments

    tiny_run(stage.replace("nft", "grpo"), out, steps, parse_assignments(STAGES[stage]))
    return final(out)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Three steps of every stage in two processes that each hold all of the base; what they said."""
    found = {}
    for stage in STAGES:
        out = tmp_path_factory.mktemp(stage)
        found[stage] = (out, launch("plain", stage, out, 3))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_learn_what_one_does(
    tmp_path: Path, plain: dict[str, tuple[Path, str]], stage: str
) -> None:
    out, said = plain[stage]
    assert said.count("2 processes, ") == 1, "only the main process speaks"
    one, two = alone(stage, tmp_path, 3), final(out)
    assert largest_difference(of(one, "now"), of(two, "now")) < 2e-4
    assert largest_difference(of(one, "copy:ema"), of(two, "copy:ema")) < 2e-4
    if stage != "sft":
        rows = [json.loads(row) for row in (out / "log.jsonl").read_text().splitlines()]
        assert any(0 < row["dropped"] < 1 for row in rows), "the groups that are dropped matter"


def check_same_run(a: Path, b: Path) -> None:
    """To the bit: the state left; and the refiner's layout, with what it says of its making."""
    left, right = final(a), final(b)
    assert left.keys() == right.keys()
    assert [k for k in left if not torch.equal(left[k], right[k])] == []
    files = [out / "refiner.safetensors" for out in (a, b)]
    with safe_open(files[0], "pt") as left, safe_open(files[1], "pt") as right:
        assert left.keys() == right.keys()
        facts = [{**f.metadata(), "figures": ""} for f in (left, right)]
        assert facts[0] == facts[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "stage"),
    [("fsdp", "grpo"), ("fsdp", "nft"), ("offload", "sft"), ("zero3", "sft"), ("zero3", "grpo")],
)
def test_a_divided_base_changes_nothing(
    tmp_path: Path, plain: dict[str, tuple[Path, str]], mode: str, stage: str
) -> None:
    if mode == "zero3" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("the package deepspeed is not installed")
    said = launch(mode, stage, tmp_path, 3)
    name = "DeepSpeed" if mode == "zero3" else "FSDP"
    assert f"2 processes with 50% of the base each ({name})" in said
    check_same_run(plain[stage][0], tmp_path)


@pytest.mark.slow
def test_a_divided_run_goes_on_divided_or_not(
    tmp_path: Path, plain: dict[str, tuple[Path, str]]
) -> None:
    assert "resumed" not in launch("fsdp", "sft", tmp_path / "two", 2)
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    assert "resumed at step 2" in launch("fsdp", "sft", tmp_path / "two", 3)
    check_same_run(plain["sft"][0], tmp_path / "two")
    one, two = alone("sft", tmp_path / "one", 3), final(tmp_path / "two")
    assert largest_difference(of(one, "now"), of(two, "now")) < 2e-4


@pytest.mark.slow
def test_two_machines_learn_what_one_does(
    tmp_path: Path, plain: dict[str, tuple[Path, str]]
) -> None:
    where = ["--main_process_ip", "127.0.0.1", "--main_process_port", free_port()]
    machines = [
        start(
            [*MODES["fsdp"], "--num_machines", "2", "--machine_rank", rank, *where],
            ["sft", str(tmp_path), "3"],
        )
        for rank in "01"
    ]
    said = [finish(machine) for machine in machines]
    assert "2 processes with 50%" in said[0]
    assert "2 processes" not in said[1]
    check_same_run(plain["sft"][0], tmp_path)


# --- what is refused ------------------------------------------------------------------------------


def ask(monkeypatch: pytest.MonkeyPatch, **names: str) -> Any:
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    return requested_sharding()


def test_the_launchers_settings_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert requested_sharding() is None
    with monkeypatch.context() as m:
        found = ask(m, ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
        assert found == Fsdp(reshard=True, offload=False)
        m.setenv("FSDP_RESHARD_AFTER_FORWARD", "false")
        assert ask(m, FSDP_OFFLOAD_PARAMS="true") == Fsdp(reshard=False, offload=True)
    with monkeypatch.context() as m:
        m.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "cpu")
        found = ask(m, ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE="3")
        assert isinstance(found, Zero3)
        assert found.settings["offload_param"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"USE_FSDP": "true"}, "FSDP version 1.*--fsdp_version 2"),
        ({"USE_DEEPSPEED": "true", "DEEPSPEED_ZERO_STAGE": "2"}, "stage 2.*--zero_stage 3"),
        ({"USE_DEEPSPEED": "true", "DEEPSPEED_CONFIG_FILE": "FILE"}, "sets optimizer"),
        ({"USE_MEGATRON_LM": "true"}, "Megatron-LM.*FSDP version 2 or DeepSpeed"),
        ({"USE_PARALLELISM_CONFIG": "true"}, "parallelism_config"),
    ],
)
def test_launches_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: dict[str, str], message: str
) -> None:
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3}, "optimizer": {"type": "Adam"}}))
    for name, value in names.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value.replace("FILE", str(file)))
    with pytest.raises(ValueError, match=message):
        requested_sharding()


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"train": "full"}, "model.train = 'full'.*FSDP.*'lora'"),
        ({"quantize": "int8"}, "model.quantize = 'int8'.*FSDP.*'none'"),
    ],
)
def test_a_base_that_cannot_be_divided(over: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainable(tiny_engine(), replace(ModelSettings(), **over), 0, Fsdp())
