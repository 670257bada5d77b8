"""One-way attention on ComfyUI's FLUX: clean tokens are computed once and serve every step.

A wrapper around the diffusion model runs it once over the reference latents alone, at time 0, and
records their keys and values; every step then runs without reference latents, and its attention gets
the recorded keys and values besides its own. ComfyUI's model, weights and kernels stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor, nn

from ..refiner_core.models.attention import KeysValues
from ..refiner_core.models.kontext import CleanCache, Conditioning

_NAME = "omnirefiner_one_way"
_OVERRIDE = "optimized_attention_override"
_PATCH = 2


def _block(options: dict[str, Any]) -> Hashable:
    return options["block_type"], options["block_index"]


def _with_override(options: dict[str, Any], attend: Callable[..., Tensor]) -> dict[str, Any]:
    """Transformer options whose attention is `attend(inner, q, k, v, heads, **kwargs)`.

    `inner` is ComfyUI's attention, or what another node has put in its place.
    """
    previous = options.get(_OVERRIDE)

    def override(func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        if kwargs.get("mask") is not None:
            raise ValueError(
                "One-way attention cannot be combined with an attention mask. Remove the node that "
                "masks the attention, or use a recipe with attention both ways."
            )

        def inner(*args: Any, **kwargs: Any) -> Tensor:
            if previous is None:
                return func(*args, **kwargs)
            return previous(func, *args, **kwargs)

        return attend(inner, *args, **kwargs)

    return {**options, _OVERRIDE: override}


def _recording(
    record: dict[Hashable, tuple[Tensor, Tensor]], options: dict[str, Any]
) -> dict[str, Any]:
    """Options that record clean tokens, which attend only to one another."""

    def attend(
        inner: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, **kwargs: Any
    ) -> Tensor:
        now = kwargs["transformer_options"]
        first = q.shape[2] - sum(now["reference_image_num_tokens"])
        q, k, v = (x[:, :, first:].contiguous() for x in (q, k, v))
        record[_block(now)] = (k, v)
        clean = inner(q, k, v, heads, **kwargs)
        # What becomes of text and noisy tokens in this pass is of no use to anybody.
        return torch.cat([clean.new_zeros(len(q), first, clean.shape[-1]), clean], 1)

    return _with_override(options, attend)


def _attending(clean: KeysValues, options: dict[str, Any]) -> dict[str, Any]:
    """Options whose attention also looks at the recorded keys and values."""

    def attend(
        inner: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, **kwargs: Any
    ) -> Tensor:
        found = clean[_block(kwargs["transformer_options"])]
        more = [x.expand(len(q), *x.shape[1:]) for x in found]
        return inner(q, torch.cat([k, more[0]], 2), torch.cat([v, more[1]], 2), heads, **kwargs)

    return _with_override(options, attend)


def _wrapper(cache: CleanCache) -> Callable[..., Tensor]:
    def run(
        executor: Any,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        guidance: Tensor | None = None,
        ref_latents: list[Tensor] | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        options = transformer_options or {}
        if not ref_latents:
            return executor(x, timestep, context, y, guidance, None, control, options, **kwargs)

        def record(c: Conditioning) -> KeysValues:
            found: dict[Hashable, tuple[Tensor, Tensor]] = {}
            rows = len(c.references[0])
            # The smallest picture there is: its tokens are not what is recorded.
            small, at = x[:rows, :, :_PATCH, :_PATCH], torch.zeros_like(timestep[:rows])
            pooled = None if y is None else c.pooled
            guided = None if guidance is None else guidance[:rows]
            executor(
                small,
                at,
                context[:rows],
                pooled,
                guided,
                list(c.references),
                None,
                _recording(found, options),
                **kwargs,
            )
            return found

        pooled = x.new_zeros(len(x), 1) if y is None else y
        value = None if guidance is None else float(guidance[0])
        indices = tuple(range(1, len(ref_latents) + 1))
        conditioning = Conditioning(tuple(ref_latents), indices, context, pooled, value)
        clean = cache.get(conditioning, record)
        seeing = _attending(clean, options)
        return executor(x, timestep, context, y, guidance, None, control, seeing, **kwargs)

    return run


def cache_bytes(model: Any, latents: list[Tensor]) -> int:
    """How much memory the clean tokens' keys and values take while sampling."""
    network = model.model.diffusion_model
    blocks = len(network.double_blocks) + len(network.single_blocks)
    area = sum(-(-z.shape[-2] // _PATCH) * -(-z.shape[-1] // _PATCH) for z in latents)
    rows = max(len(z) for z in latents)
    dtype = model.model.get_dtype_inference()
    return 2 * blocks * rows * area * network.hidden_size * mm.dtype_size(dtype)


def one_way_alone(model: Any) -> Any:
    """A clone of the model that runs one way under any sampler node.

    It forgets the clean tokens' keys and values after every run, so that they take no memory then.
    """
    cache = CleanCache()
    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, _NAME, _wrapper(cache))
    model.add_callback_with_key(CallbacksMP.ON_CLEANUP, _NAME, lambda _: cache.clear())
    return model


def one_way(model: Any, cache: CleanCache, latents: list[Tensor]) -> Any:
    """A clone of the model that runs one way and keeps the clean tokens' keys in `cache`.

    ComfyUI makes room for them as for a model of that size.

    Args:
        latents: the reference latents of the run, for the estimate of the memory.
    """
    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, _NAME, _wrapper(cache))
    room = comfy.model_patcher.ModelPatcher(
        nn.Module(), model.load_device, model.offload_device, size=cache_bytes(model, latents)
    )
    model.set_additional_models(_NAME, [room])
    return model
