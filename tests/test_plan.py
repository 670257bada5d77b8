"""Plans of training runs, against figures that are known."""

from __future__ import annotations

from typing import Any

import pytest

from refiner_core.__main__ import main
from refiner_core.training.config import GRPO_PRESETS, SFT_PRESETS, GrpoConfig, SftConfig
from refiner_core.training.memory_estimate import CARDS, estimate_memory
from refiner_core.training.settings import build, merged


def sft(preset: str, **over: Any) -> SftConfig:
    return build(SftConfig, merged(SFT_PRESETS[preset], over))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "tokens", "learning", "forward"),
    [("kontext-24gb", 3599, 65.4e6, 55e12), ("kontext-80gb", 12860, 261.5e6, 280e12)],
)
def test_kontexts_size(preset: str, tokens: int, learning: float, forward: float) -> None:
    config = sft(preset)
    plan = estimate_memory(config, CARDS["h100"])
    assert plan.base == pytest.approx(11.901e9, rel=1e-4)
    assert plan.tokens == tokens
    assert plan.trainable == pytest.approx(learning, rel=1e-3)
    assert plan.modules == 418
    # A LoRA step with recomputed activations is 3.1 forward passes.
    assert plan.flops / config.run.batch / 3.1 == pytest.approx(forward, rel=0.02)


@pytest.mark.slow
def test_presets_fit_their_cards() -> None:
    assert estimate_memory(sft("kontext-24gb"), CARDS["rtx4090"]).total < 0.95 * 24
    assert estimate_memory(sft("kontext-80gb"), CARDS["h100"]).total < 0.95 * 80
    whole = estimate_memory(sft("kontext-24gb", model={"quantize": "none"}), CARDS["rtx4090"])
    assert whole.total > 24, "a bf16 base alone fills a 24 GB card"
    packed = estimate_memory(sft("kontext-24gb", model={"quantize": "nf4"}), CARDS["rtx4090"])
    assert packed.memory["base"] == pytest.approx(6.25, abs=0.05)


@pytest.mark.slow
def test_several_cards_share_the_work_and_can_share_the_base() -> None:
    config = sft("kontext-80gb")
    one = estimate_memory(config, CARDS["l40s"])
    four = estimate_memory(config, CARDS["l40s"], 4)
    divided = estimate_memory(config, CARDS["l40s"], 4, divided=True)
    assert four.seconds == pytest.approx(one.seconds / 4) and four.flops == one.flops
    assert four.memory["base"] == one.memory["base"]
    assert four.memory["gradients"] == 2 * one.memory["gradients"], "a sum is a second copy"
    assert divided.memory["base"] == pytest.approx(one.memory["base"] / 4)
    # A double block of Kontext has 340 M weights; two are whole at a time.
    assert divided.memory["gathered blocks"] == pytest.approx(1.36, abs=0.01)
    assert divided.total < 0.7 * 48 < four.total
    with pytest.raises(ValueError, match="run.batch = 8 is not a multiple.*times 3 processes"):
        estimate_memory(config, CARDS["h100"], 3)
    with pytest.raises(ValueError, match="model.quantize = 'int8'.*FSDP"):
        estimate_memory(sft("kontext-24gb"), CARDS["rtx4090"], 4, divided=True)


@pytest.mark.slow
def test_grpo_costs_what_its_samples_cost() -> None:
    config = build(GrpoConfig, GRPO_PRESETS["kontext-80gb"])
    plan = estimate_memory(config, CARDS["h100"])
    double = build(GrpoConfig, merged(GRPO_PRESETS["kontext-80gb"], {"rollout": {"group": 24}}))
    assert estimate_memory(double, CARDS["h100"]).flops == pytest.approx(2 * plan.flops)
    to_ref = merged(GRPO_PRESETS["kontext-80gb"], {"objective": {"kl_to": "ref"}})
    assert estimate_memory(build(GrpoConfig, to_ref), CARDS["h100"]).flops > plan.flops


@pytest.mark.slow
def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "plan", "--preset", "nano", "--card", "cpu"]) == 0
    assert "fits" in capsys.readouterr().out
    assert main(["train", "plan", "--preset", "kontext-80gb", "--processes", "4", "--divided"]) == 0
    assert "gathered blocks" in capsys.readouterr().out
    assert main(["train", "plan", "--processes", "0"]) == 2
    assert "--processes" in capsys.readouterr().err
    assert main(["train", "plan", "--card", "abacus"]) == 2
    assert "abacus" in capsys.readouterr().err
    assert main(["train", "sft", "--preset", "nano", "--set", "run.bacth=1"]) == 2
    assert "nearest is run.batch" in capsys.readouterr().err
    assert main(["train", "sft", "--preset", "nano"]) == 2
    assert "needs --data DIR and --out DIR" in capsys.readouterr().err
    assert main(["train", "grpo", "--preset", "nano", "--print-config"]) == 0
    assert 'algorithm = "nft"' in capsys.readouterr().out


@pytest.mark.slow
def test_keys_and_values_of_clean_tokens_are_counted() -> None:
    """Of two samples, two clean pictures of a megapixel each: 57 blocks, 3072 channels, bfloat16."""
    both, one = (
        estimate_memory(sft("kontext-80gb", model={"attention": way}), CARDS["h100"])
        for way in ("both ways", "one way")
    )
    assert both.memory["clean keys and values"] == 0
    clean = 2 * (one.tokens - 512) / 3
    assert one.memory["clean keys and values"] == pytest.approx(2 * 2 * 57 * clean * 3072 * 2 / 1e9)
    assert one.total - both.total == pytest.approx(one.memory["clean keys and values"])
