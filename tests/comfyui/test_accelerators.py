"""What speeds up ComfyUI's FLUX, beside two references and both ways of attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .test_one_way import CLEAN, NOISY, apart, inputs, tiny_kontext

__all__ = ["inputs"]  # the fixture

SCRIPT = Path(__file__).with_name("accelerators_native.py")
STEPS = 12
WAYS = ("both ways", "one way")
ALL = {"both ways": [NOISY + CLEAN] * STEPS, "one way": [1 + CLEAN] + [NOISY] * STEPS}


@pytest.fixture(scope="module")
def folder(
    run_in_comfyui: Any, tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, Tensor]
) -> Path:
    folder = tmp_path_factory.mktemp("accelerators")
    weights = {f"model.{k}": v.contiguous() for k, v in tiny_kontext().state_dict().items()}
    save_file(inputs | weights, folder / "in.safetensors")
    run_in_comfyui(SCRIPT, folder / "in.safetensors", folder / "out.safetensors")
    return folder


@pytest.fixture(scope="module")
def native(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "out.safetensors")


@pytest.fixture(scope="module")
def refused(folder: Path) -> dict[str, str]:
    with safe_open(folder / "out.safetensors", "pt") as file:
        return file.metadata() or {}


def passes(native: dict[str, Tensor], name: str) -> list[int]:
    return native[f"{name}.passes"].tolist()


@pytest.mark.parametrize("way", WAYS)
def test_a_lora_is_as_merged(native: dict[str, Tensor], way: str) -> None:
    assert apart(native[f"{way}.lora"], native[f"{way}.merged"]) < 1e-5
    assert apart(native[f"{way}.lora"], native[f"{way}.plain"]) > 1e-4
    assert passes(native, f"{way}.lora") == ALL[way]


@pytest.mark.parametrize("name", ["EasyCache", "LazyCache", "block cache"])
def test_caches_skip_as_much_and_cost_as_much_one_way(native: dict[str, Tensor], name: str) -> None:
    skipped, off = {}, {}
    for way in WAYS:
        went = passes(native, f"{way}.{name}")
        skipped[way] = len(ALL[way]) - len(went)
        off[way] = apart(native[f"{way}.{name}"], native[f"{way}.plain"])
        assert went == ALL[way][: len(went)], "the clean tokens are still computed once"
    print(f"{name}: skipped of {STEPS} steps {skipped}, off by {off}")
    assert min(skipped.values()) > 0 and abs(skipped["both ways"] - skipped["one way"]) <= 1
    assert 0 < off["one way"] < 1.5 * off["both ways"]


@pytest.mark.parametrize("way", WAYS)
def test_exchanged_methods_change_nothing_without_skipping(
    native: dict[str, Tensor], way: str
) -> None:
    assert apart(native[f"{way}.blocks"], native[f"{way}.plain"]) < 1e-5


@pytest.mark.parametrize(("name", "negative"), [("cfg", None), ("cfg apart", 4)])
def test_both_prompts_of_cfg_record_the_clean_tokens_once(
    native: dict[str, Tensor], name: str, negative: int | None
) -> None:
    went = passes(native, f"one way.{name}")
    shorter = [] if negative is None else [1 + CLEAN - negative, NOISY - negative]
    assert went.count(1 + CLEAN) == 1 and went.count(NOISY) == STEPS
    assert [went.count(n) for n in shorter] == [1, STEPS][: len(shorter)]
    assert apart(native[f"one way.{name}"], native["one way.plain"]) > 0.1


@pytest.mark.parametrize("name", ["compiled", "block cache without options"])
def test_what_would_hide_the_references_is_refused(
    native: dict[str, Tensor], refused: dict[str, str], name: str
) -> None:
    assert (
        list(refused) and f"one way.{name}" in refused and "both ways" in refused[f"one way.{name}"]
    )
    assert f"one way.{name}" not in native
    assert not any(key.startswith("both ways") for key in refused)
