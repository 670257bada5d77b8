"""One-way attention on ComfyUI's FLUX: clean tokens are computed once and serve every step.

A wrapper around the diffusion model runs it once over the reference latents alone, at time 0, and
records their keys and values; every step then runs without reference latents, and its attention gets
the recorded keys and values besides its own. ComfyUI's model, weights and kernels stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor, nn

from ..refiner_core.models.attention import KeysValues
from ..refiner_core.models.clean_storage import Storage, StoredKeys, choose_storage, clean_bytes
from ..refiner_core.models.kontext import CleanCache, Conditioning
from ..refiner_core.models.tiles import KEPT_PASSES

_NAME = "omnirefiner_one_way"
_OVERRIDE = "optimized_attention_override"
_PATCH = 2


def _block(options: dict[str, Any]) -> Hashable:
    return options.get("block_type"), options.get("block_index")


def _check_not_compiled(model: Any) -> None:
    """Refuse torch.compile, as ComfyUI's node and those made like it apply it.

    They leave the attention's options out of what makes the compiler compile anew, so that it would
    run what it compiled for the pass over the clean tokens in the steps, too, and the reverse.

    Raises:
        ValueError: the model is compiled.
    """
    if model.get_wrappers(WrappersMP.APPLY_MODEL, "torch.compile"):
        raise ValueError(
            "One-way attention cannot be combined with torch.compile. Remove the node that compiles "
            "the model, or use a recipe with attention both ways."
        )


def _check_recorded(record: StoredKeys, blocks: int) -> None:
    """Refuse a model whose blocks were not all called as ComfyUI's FLUX calls them.

    Raises:
        ValueError: some were skipped, called twice under one name, or called without their options,
            so that attention would not see the references.
    """
    if len(record) != blocks:
        raise ValueError(
            f"One-way attention needs each of the model's {blocks} blocks, but {len(record)} of them "
            "could be recorded: a node between the model and the refiner skips or exchanges blocks, "
            "as TeaCache and WaveSpeed's First Block Cache do. Remove it, use EasyCache instead, or "
            "use a recipe with attention both ways."
        )


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


def _recording(record: StoredKeys, options: dict[str, Any]) -> dict[str, Any]:
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


class Caches:
    """The clean tokens' keys and values, apart for the positive and the negative prompt of CFG.

    Whether ComfyUI computes both in one pass or one after the other, each is recorded once. Of a
    model that works on tiles, the first passes over tiles have caches of their own, and the others
    record at every step.
    """

    def __init__(self) -> None:
        self._by_pass: dict[tuple[int, ...], CleanCache] = {}
        self._tiles = 0

    def select(self, number: int) -> None:
        """Say which pass over tiles comes next."""
        self._tiles = number

    def of(self, options: dict[str, Any]) -> CleanCache:
        """The cache for a pass with these transformer options."""
        if self._tiles >= KEPT_PASSES:
            return CleanCache()
        key = self._tiles, *options.get("cond_or_uncond", ())
        return self._by_pass.setdefault(key, CleanCache())

    def clear(self) -> None:
        """Forget everything."""
        self._by_pass.clear()


def _wrapper(caches: Caches, blocks: int, storage: Storage) -> Callable[..., Tensor]:
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

        def record(c: Conditioning) -> StoredKeys:
            found = StoredKeys(storage)
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
            _check_recorded(found, blocks)
            return found

        pooled = x.new_zeros(len(x), 1) if y is None else y
        value = None if guidance is None else float(guidance[0])
        indices = tuple(range(1, len(ref_latents) + 1))
        conditioning = Conditioning(tuple(ref_latents), indices, context, pooled, value)
        clean = caches.of(options).get(conditioning, record)
        seeing = _attending(clean, options)
        return executor(x, timestep, context, y, guidance, None, control, seeing, **kwargs)

    return run


def _blocks(model: Any) -> int:
    network = model.model.diffusion_model
    return len(network.double_blocks) + len(network.single_blocks)


def cache_bytes(model: Any, latents: Sequence[Tensor], cfg: float = 1.0) -> int:
    """How many bytes the clean tokens' keys and values take while sampling."""
    area = sum(-(-z.shape[-2] // _PATCH) * -(-z.shape[-1] // _PATCH) for z in latents)
    rows = max(len(z) for z in latents) * (2 if cfg > 1 else 1)
    item = mm.dtype_size(model.model.get_dtype_inference())
    return clean_bytes(_blocks(model), rows * area, model.model.diffusion_model.hidden_size, item)


def _storage(model: Any, latents: Sequence[Tensor], needed: int) -> Storage:
    """Where there is room for the keys and values beside the model."""
    if mm.is_device_cpu(model.load_device):
        return "device"
    shape = list(latents[0].shape)
    free = mm.get_total_memory(model.load_device) - model.model_size()
    exact = mm.dtype_size(model.model_dtype()) > 1
    return choose_storage(needed, free - model.memory_required(shape), exact)


def one_way_alone(model: Any, caches: Caches | None = None) -> Any:
    """A clone of the model that runs one way under any sampler node.

    It forgets the clean tokens' keys and values after every run, so that they take no memory then.

    Args:
        caches: where it keeps them meanwhile; None = in some of its own.
    """
    _check_not_compiled(model)
    caches = caches or Caches()
    model = model.clone()
    wrapper = _wrapper(caches, _blocks(model), "device")
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, _NAME, wrapper)
    model.add_callback_with_key(CallbacksMP.ON_CLEANUP, _NAME, lambda _: caches.clear())
    return model


def one_way(model: Any, caches: Caches, latents: Sequence[Tensor], cfg: float = 1.0) -> Any:
    """A clone of the model that runs one way and keeps the clean tokens' keys in `caches`.

    ComfyUI makes room for them as for a model of that size. Where the device has no room, they are
    kept in 8 bits, if the model's weights are, too, or else in the computer's memory.

    Args:
        latents: the reference latents of the run, for the estimate of the memory.
        cfg: the scale of classifier-free guidance; over 1 there are two prompts.
    """
    _check_not_compiled(model)
    model = model.clone()
    needed = cache_bytes(model, latents, cfg)
    storage = _storage(model, latents, needed)
    wrapper = _wrapper(caches, _blocks(model), storage)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, _NAME, wrapper)
    room = comfy.model_patcher.ModelPatcher(
        nn.Module(),
        model.load_device,
        model.offload_device,
        size={"device": needed, "fp8": needed // 2, "cpu": 2 * needed // _blocks(model)}[storage],
    )
    model.set_additional_models(_NAME, [room])
    return model
