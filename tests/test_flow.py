"""The process: schedule, step and log-probability against the numbers of the method's notes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from refiner_core import flow
from refiner_core.images.geometry import Extent
from refiner_core.recipes.recipe import KONTEXT, NANO, OMNIREFINER, get_recipe
from refiner_core.sampling import draw_noise, restrict, sample

MU_512 = flow.resolution_shift(1024)
KINDS: list[flow.StepKind] = ["flow", "dance", "cps"]


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)


# --- schedule ------------------------------------------------------------------------------------


def test_kontexts_schedule() -> None:
    expected = [1, 0.904, 0.790, 0.652, 0.484, 0.273, 0]
    assert flow.sigmas(6, MU_512).tolist() == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize(("tokens", "mu"), [(256, 0.5), (1024, 0.63), (4096, 1.15)])
def test_resolution_shift(tokens: int, mu: float) -> None:
    assert flow.resolution_shift(tokens) == pytest.approx(mu, abs=1e-3)


@given(st.floats(1e-4, 1), st.floats(-3, 3))
def test_shift_is_the_exponential_one(t: float, mu: float) -> None:
    shifted = float(flow.shift(torch.tensor(t, dtype=torch.float64), mu))
    assert shifted == pytest.approx(math.exp(mu) / (math.exp(mu) + 1 / t - 1))
    back = float(flow.shift(torch.tensor(shifted, dtype=torch.float64), -mu))
    assert back == pytest.approx(t)


@settings(deadline=None)
@given(st.integers(1, 1000), st.floats(-2, 3))
def test_schedules_fall_from_one_to_zero(steps: int, mu: float) -> None:
    s = flow.sigmas(steps, mu)
    assert (len(s), float(s[0]), float(s[-1])) == (steps + 1, 1.0, 0.0)
    assert bool((s.diff() < 0).all())


@pytest.mark.parametrize("steps", [0, -1, 1001, 5000])
def test_bad_steps(steps: int) -> None:
    with pytest.raises(ValueError, match=f"1000, got {steps}"):
        flow.sigmas(steps, 1.0)


def test_recipes_state_their_schedule() -> None:
    torch.testing.assert_close(
        OMNIREFINER.sigmas(Extent(512, 512), 6), flow.sigmas(6, MU_512), rtol=0, atol=0
    )
    assert len(KONTEXT.sigmas(Extent(1024, 1024))) == 29
    assert torch.equal(NANO.sigmas(Extent(128, 128)), NANO.sigmas(Extent(256, 64)))
    assert OMNIREFINER.text(None, "logo").startswith("Fix the logo in")
    assert OMNIREFINER.text("as I say") == "as I say"
    assert OMNIREFINER.text(None, "{odd}").startswith("Fix the {odd} in")
    with pytest.raises(ValueError, match="nope.*omnirefiner, .*kontext, .*nano"):
        get_recipe("nope")


# --- interpolation -------------------------------------------------------------------------------


@given(st.floats(1e-3, 1))
def test_velocity_and_x0_are_each_others_inverse(t: float) -> None:
    x0, noise = normal(0, 2, 3, 4, 5), normal(1, 2, 3, 4, 5)
    x, v = flow.interpolate(x0, noise, t), flow.velocity_target(x0, noise)
    torch.testing.assert_close(flow.x0_from_velocity(x, v, t), x0)
    torch.testing.assert_close(flow.velocity_from_x0(x, x0, t), v, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(x + (1 - t) * v, noise)


def test_one_level_per_sample() -> None:
    x0, noise, t = normal(0, 3, 2, 4), normal(1, 3, 2, 4), torch.tensor([0.0, 0.5, 1.0])
    x = flow.interpolate(x0, noise, t)
    torch.testing.assert_close(x[0], x0[0])
    torch.testing.assert_close(x[1], (x0[1] + noise[1]) / 2)
    torch.testing.assert_close(x[2], noise[2])


# --- the step ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "eta"), [("ode", 0.7), ("flow", 0.0), ("dance", 0.0), ("cps", 0.0)]
)
def test_without_noise_it_is_eulers_step(kind: flow.StepKind, eta: float) -> None:
    x, v = normal(0, 2, 4, 3, 3), normal(1, 2, 4, 3, 3)
    step = flow.step(x, v, 0.8, 0.6, eta=eta, kind=kind)
    assert torch.equal(step.x, x + v * (0.6 - 0.8))
    assert (step.std, step.log_prob) == (0.0, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("t", "t_next"), [(1.0, 0.9), (0.8, 0.5), (0.3, 0.01)])
def test_log_prob_is_the_normals(kind: flow.StepKind, t: float, t_next: float) -> None:
    x, v, noise = (normal(i, 3, 4, 5, 6) for i in range(3))
    step = flow.step(x, v, t, t_next, eta=0.7, kind=kind, noise=noise)
    expected = torch.distributions.Normal(step.mean, step.std).log_prob(step.x).mean((1, 2, 3))
    assert step.log_prob is not None
    torch.testing.assert_close(step.log_prob, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(step.x, step.mean + step.std * noise, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "eta", "expected"),
    [
        ("flow", 0.7, [0.70, 0.72, 0.50, 0.39, 0.31]),
        ("flow", 0.9, [0.90, 0.93, 0.65, 0.51, 0.40]),
        ("dance", 0.3, [0.09, 0.10, 0.11, 0.12, 0.14]),
        ("cps", 0.8, [0.86, 0.75, 0.62, 0.46, 0.26]),
    ],
)
def test_noise_per_step(kind: flow.StepKind, eta: float, expected: list[float]) -> None:
    levels = flow.sigmas(6, MU_512).tolist()
    x = torch.zeros(1, 1)
    found = [
        flow.step(x, x, t, u, eta=eta, kind=kind, noise=x).std
        for t, u in zip(levels[:5], levels[1:6], strict=True)
    ]
    assert found == pytest.approx(expected, abs=0.0051)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_step_is_deterministic(kind: flow.StepKind) -> None:
    x, v = normal(0, 2, 4), normal(1, 2, 4)
    step = flow.step(x, v, 0.27, 0.0, eta=0.8, kind=kind)
    torch.testing.assert_close(step.x, flow.x0_from_velocity(x, v, 0.27))
    assert (step.std, step.log_prob) == (0.0, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_replay_has_ratio_one(kind: flow.StepKind, dtype: torch.dtype) -> None:
    x, v, noise = (normal(i, 3, 4, 8, 8, dtype=dtype) for i in range(3))
    drawn = flow.step(x, v, 0.8, 0.6, eta=0.7, kind=kind, noise=noise)
    replay = flow.step(x, v, 0.8, 0.6, eta=0.7, kind=kind, x_next=drawn.x)
    assert drawn.x.dtype == dtype
    assert drawn.log_prob is not None
    assert replay.log_prob is not None
    assert replay.log_prob.dtype == torch.float32
    assert torch.equal((replay.log_prob - drawn.log_prob).exp(), torch.ones(3))


def test_a_replay_notices_another_velocity() -> None:
    x, v, noise = (normal(i, 3, 4) for i in range(3))
    drawn = flow.step(x, v, 0.8, 0.6, eta=0.7, kind="flow", noise=noise)
    v = v.requires_grad_()
    replay = flow.step(x, v + 0.1, 0.8, 0.6, eta=0.7, kind="flow", x_next=drawn.x)
    assert replay.log_prob is not None
    assert drawn.log_prob is not None
    assert not torch.allclose(replay.log_prob, drawn.log_prob)
    replay.log_prob.sum().backward()
    assert v.grad is not None
    assert float(v.grad.abs().sum()) > 0


@pytest.mark.parametrize(("t", "t_next"), [(0.5, 0.5), (0.4, 0.5), (1.1, 0.5), (0.5, -0.1)])
def test_levels_out_of_order(t: float, t_next: float) -> None:
    with pytest.raises(ValueError, match=f"t={t}, t_next={t_next}"):
        flow.step(torch.zeros(1, 1), torch.zeros(1, 1), t, t_next)


def test_bad_steps_of_the_process() -> None:
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="needs `noise`"):
        flow.step(x, x, 0.8, 0.5, eta=0.7, kind="flow")
    with pytest.raises(ValueError, match="ode, flow, dance, cps, got 'euler'"):
        flow.step(x, x, 0.8, 0.5, eta=0.7, kind="euler", noise=x)  # type: ignore[arg-type]


# --- what the process does to known data ---------------------------------------------------------


def final_std(steps: int, kind: flow.StepKind, eta: float, data_std: float) -> float:
    """Spread of the result for Gaussian data and the exact velocity.

    Everything is linear, so one unit state and each step's std carry the variance without sampling.
    """
    levels = flow.sigmas(steps, MU_512).double().tolist()
    one, variance = torch.ones(1, 1, dtype=torch.float64), 1.0
    for t, u in zip(levels[:-1], levels[1:], strict=True):
        spread = (1 - t) ** 2 * data_std**2 + t**2
        v = one * (t - (1 - t) * data_std**2) / spread
        step = flow.step(one, v, t, u, eta=eta, kind=kind, noise=0 * one)
        variance = float(step.mean) ** 2 * variance + step.std**2
    return math.sqrt(variance)


@pytest.mark.parametrize(
    ("kind", "eta", "expected"),
    [
        ("ode", 0.0, (0.260, 0.367, 0.395, 0.399)),
        ("flow", 0.7, (0.323, 0.384, 0.399, 0.400)),
        ("flow", 0.9, (0.349, 0.387, 0.398, 0.400)),
        ("dance", 0.3, (0.269, 0.372, 0.396, 0.399)),
        ("cps", 0.8, (0.231, 0.294, 0.316, 0.321)),
    ],
)
def test_gaussian_data(kind: flow.StepKind, eta: float, expected: tuple[float, ...]) -> None:
    found = [final_std(n, kind, eta, 0.4) for n in (6, 28, 200, 1000)]
    assert found == pytest.approx(expected, abs=1.5e-3)
    if kind != "cps":  # it keeps the noise level, not the marginals
        assert found[2] == pytest.approx(0.4, rel=0.02)
        errors = [abs(f - 0.4) for f in found]
        assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("steps", [2, 6, 28, 200])
def test_cps_is_exact_on_a_point_mass(steps: int) -> None:
    levels = flow.sigmas(steps, MU_512).double().tolist()
    one, variance = torch.ones(1, 1, dtype=torch.float64), 1.0
    for t, u in zip(levels[:-1], levels[1:], strict=True):
        step = flow.step(one, one / t, t, u, eta=0.8, kind="cps", noise=one)
        variance = float(step.mean) ** 2 * variance + step.std**2
        assert math.sqrt(variance) == pytest.approx(u, abs=1e-7)


# --- the sampler ---------------------------------------------------------------------------------


def denoise(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
    """A point mass at 0.3, softened."""
    s = sigma.reshape(-1, 1, 1, 1)
    return 0.3 + 0.2 * torch.tanh(x) * (1 - s)


def test_the_ode_sampler_is_eulers() -> None:
    levels, x = flow.sigmas(5, 1.0), draw_noise((2, 4, 3, 3), 1)
    expected = x
    for t, u in zip(levels[:-1], levels[1:], strict=True):
        d = (expected - denoise(expected, t.expand(2))) / t
        expected = expected + d * (u - t)
    torch.testing.assert_close(sample(denoise, x, levels), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_outside_the_window_there_is_no_noise(kind: flow.StepKind) -> None:
    levels, x = flow.sigmas(6, 1.0), draw_noise((1, 4, 3, 3), 1)
    states: list[Tensor] = []
    out = sample(
        denoise, x, levels, callback=lambda d: states.append(d["x"]),
        kind=kind, eta=0.7, window=(1, 3), noise_seed=5,
    )  # fmt: skip
    states.append(out)
    noisy = []
    for i, (a, b) in enumerate(zip(states[:-1], states[1:], strict=True)):
        t, u = float(levels[i]), float(levels[i + 1])
        v = (a - denoise(a, torch.tensor([t]))) / t
        noisy.append(not torch.allclose(b, a + v * (u - t), atol=1e-6))
    assert noisy == [False, True, True, False, False, False]


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_window_all_but_the_last_step_are_noisy(kind: flow.StepKind) -> None:
    levels, x = flow.sigmas(4, 1.0), draw_noise((1, 4, 3, 3), 1)
    runs = [sample(denoise, x, levels, kind=kind, eta=0.5, noise_seed=s) for s in (5, 5, 6)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    one = flow.sigmas(1, 1.0)
    assert torch.equal(sample(denoise, x, one, kind=kind, eta=0.5), sample(denoise, x, one))


def test_noise_is_of_its_seed() -> None:
    assert torch.equal(draw_noise((2, 3), 7), draw_noise((2, 3), 7))
    assert not torch.equal(draw_noise((2, 3), 7), draw_noise((2, 3), 8))
    assert draw_noise((2, 3), (1 << 64) - 1).shape == (2, 3)
    for seed in (-1, 1 << 64):
        with pytest.raises(ValueError, match=str(seed)):
            draw_noise((1,), seed)


def test_restricted_sampling_ends_on_the_clean_latent() -> None:
    clean = normal(3, 1, 4, 6, 6, dtype=torch.float32)
    mask = torch.zeros(1, 1, 6, 6)
    mask[..., 2:4, 2:4] = 1
    x = draw_noise((1, 4, 6, 6), 1)
    out = sample(restrict(denoise, clean, mask), x, flow.sigmas(6, 1.0))
    free = sample(denoise, x, flow.sigmas(6, 1.0))
    keep = (mask == 0).expand_as(out)
    torch.testing.assert_close(out[keep], clean[keep])
    torch.testing.assert_close(out[~keep], free[~keep])


def test_callbacks_have_k_diffusions_keys() -> None:
    seen: list[dict[str, Any]] = []
    sample(denoise, draw_noise((1, 4, 2, 2), 0), flow.sigmas(3, 1.0), callback=seen.append)
    assert [d["i"] for d in seen] == [0, 1, 2]
    assert set(seen[0]) == {"x", "i", "sigma", "sigma_hat", "denoised"}


def test_extra_arguments_reach_the_model() -> None:
    def scaled(x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        return torch.full_like(x, extra_args["scale"])

    x = draw_noise((1, 4, 2, 2), 0)
    out = sample(scaled, x, flow.sigmas(3, 1.0), {"scale": 0.25})
    torch.testing.assert_close(out, torch.full_like(x, 0.25))
