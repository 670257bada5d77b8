"""The dual-input model: FLUX.1-Kontext's transformer over `[noisy | draft | reference...]`.

This is the core engine (training, command line, tests). Inside ComfyUI the same weights run on
ComfyUI's own FLUX; both give the same velocity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import flow
from ..recipes.recipe import Attention
from . import tokens
from .attention import KeysValues, use_recorded_keys
from .clean_storage import Storage, StoredKeys, choose_storage, clean_bytes
from .devices import free_memory

if TYPE_CHECKING:
    from .flux_transformer import Transformer


@dataclass(frozen=True)
class Conditioning:
    """All that the network sees beside the noisy latent.

    Args:
        references: clean latents `B C h w` in token order, draft first; sizes may differ.
        indices: the position index of each of them (OmniRefiner: 1, 2, ...).
        text: text embeddings `B L D`.
        pooled: pooled text embedding `B P`.
        guidance: the value of the guidance embedding, None where the weights have none.
        layout: "index", or "offset" for stock Kontext's places beside one another.
    """

    references: tuple[Tensor, ...]
    indices: tuple[int, ...]
    text: Tensor
    pooled: Tensor
    guidance: float | None = None
    layout: str = "index"

    def __post_init__(self) -> None:
        if len(self.references) != len(self.indices):
            raise ValueError(
                f"{len(self.references)} reference latents need as many position indices, "
                f"got {self.indices}."
            )

    def repeat(self, batch: int) -> Conditioning:
        """The same conditioning for `batch` samples (from one)."""
        return replace(
            self,
            references=tuple(_repeat(r, batch) for r in self.references),
            text=_repeat(self.text, batch),
            pooled=_repeat(self.pooled, batch),
        )


def _repeat(x: Tensor, batch: int) -> Tensor:
    return x if len(x) == batch else x.expand(batch, *x.shape[1:])


def _call(
    model: Transformer,
    latents: Sequence[Tensor],
    ids: Tensor,
    t: Tensor,
    conditioning: Conditioning,
    **keys: Any,
) -> Tensor:
    """The network's output on the tokens of `latents`, which stand at `ids`, at times `t`."""
    hidden = torch.cat([tokens.pack(z) for z in latents], dim=1)
    guidance = 1.0 if conditioning.guidance is None else conditioning.guidance
    return model(
        hidden_states=hidden,
        encoder_hidden_states=conditioning.text.to(hidden),
        pooled_projections=conditioning.pooled.to(hidden),
        timestep=t.to(hidden),
        img_ids=ids.to(hidden.device),
        txt_ids=torch.zeros(conditioning.text.shape[1], 3, device=hidden.device),
        guidance=t.new_full((len(t),), guidance).to(hidden)
        if model.config["guidance_embeds"]
        else None,
        joint_attention_kwargs=keys,
        return_dict=False,
    )[0]


def record_clean(
    model: Transformer,
    conditioning: Conditioning,
    dtype: torch.dtype,
    storage: Storage = "device",
) -> StoredKeys:
    """Keys and values of the clean tokens that attend only to one another, at their own time 0.

    Neither the noisy latents nor the noise level nor the text changes them.
    """
    use_recorded_keys(model)
    conditioning = conditioning.repeat(_count(conditioning))
    latents = [z.to(dtype) for z in conditioning.references]
    ids = tokens.layout_ids(latents, conditioning.indices, conditioning.layout)
    record = StoredKeys(storage)
    alone = replace(conditioning, text=conditioning.text[:, :0])
    _call(model, latents, ids, alone.pooled.new_zeros(len(latents[0])), alone, record=record)
    return record


def velocity(
    model: Transformer,
    x: Tensor,
    t: Tensor | float,
    conditioning: Conditioning,
    attention: Attention = "both ways",
    clean: KeysValues | None = None,
) -> Tensor:
    """The network's velocity for the noisy latents `x`, `B C H W`, at noise levels `t` in (0, 1].

    Draft and reference tokens follow the noisy ones, and the prediction is what stands on the noisy
    tokens (arXiv 2511.19990, figure 2).

    Args:
        attention: "both ways" in the paper; "one way" the clean tokens see neither the noisy ones
            nor the text, and have time 0.
        clean: one way, what `record_clean` gave for this conditioning; None records it.
    """
    b, _, h, w = x.shape
    t = torch.as_tensor(t, dtype=torch.float32, device=x.device).expand(b)
    if attention == "one way" and clean is None:
        clean = record_clean(model, conditioning, x.dtype)
    conditioning = conditioning.repeat(b)
    if clean is not None:
        ids = tokens.layout_ids([x], [0])
        return tokens.unpack(_call(model, [x], ids, t, conditioning, clean=clean), h, w)
    latents = [x, *(z.to(x.dtype) for z in conditioning.references)]
    ids = tokens.layout_ids(latents, (0, *conditioning.indices), conditioning.layout)
    noisy = (h // tokens.PATCH) * (w // tokens.PATCH)
    return tokens.unpack(_call(model, latents, ids, t, conditioning)[:, :noisy], h, w)


class Denoiser:
    """The model in the samplers' call shape: `denoiser(x, sigma, conditioning=...)` -> x0.

    `x` is float32; the network runs in its own type. With attention one way, `cache` keeps
    the clean tokens' keys and values from step to step.
    """

    def __init__(
        self,
        model: Transformer,
        attention: Attention = "both ways",
        cache: CleanCache | None = None,
    ) -> None:
        self.model = model
        self.attention: Attention = attention
        self.cache = CleanCache() if cache is None else cache

    def __call__(self, x: Tensor, sigma: Tensor, *, conditioning: Conditioning) -> Tensor:
        dtype = self.model.dtype
        clean = None
        if self.attention == "one way":
            clean = self.cache.get(conditioning, lambda c: self._recorded(c, dtype))
        v = velocity(self.model, x.to(dtype), sigma, conditioning, self.attention, clean)
        return flow.x0_from_velocity(x, v.to(x.dtype), sigma)

    def _recorded(self, conditioning: Conditioning, dtype: torch.dtype) -> StoredKeys:
        """The clean tokens' keys and values, where there is room for them."""
        free = free_memory(conditioning.references[0].device)
        storage = choose_storage(_needed_bytes(self.model, conditioning, dtype), free)
        return record_clean(self.model, conditioning, dtype, storage)


def _needed_bytes(model: Transformer, conditioning: Conditioning, dtype: torch.dtype) -> int:
    areas = [z.shape[-2] * z.shape[-1] // tokens.PATCH**2 for z in conditioning.references]
    blocks = len(model.transformer_blocks) + len(model.single_transformer_blocks)
    count = _count(conditioning) * sum(areas)
    return clean_bytes(blocks, count, model.inner_dim, dtype.itemsize)


class CleanCache:
    """The clean tokens' keys and values, for all steps of a run and all rounds of a search.

    Samples that have the same clean tokens share one entry.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget them."""
        self._known: Conditioning | None = None
        self._last: Conditioning | None = None
        self._rows: list[int] = []
        self._all = self._chosen = StoredKeys()

    def get(
        self, conditioning: Conditioning, record: Callable[[Conditioning], StoredKeys]
    ) -> StoredKeys:
        """Keys and values of the conditioning's clean tokens, of one sample or of each.

        Args:
            record: computes them for every sample of a conditioning; called for unknown ones.
        """
        if conditioning is self._last:
            return self._chosen
        rows = self._find(conditioning)
        if rows is None:
            self._known = _shared(conditioning)
            self._all = self._chosen = record(self._known)
            rows = list(range(_count(self._known)))
        elif rows != self._rows:
            self._chosen = self._all.rows(rows)
        self._rows, self._last = rows, conditioning
        return self._chosen

    def _find(self, conditioning: Conditioning) -> list[int] | None:
        """Where the samples' clean tokens are among the known ones; None if one is not."""
        known = self._known
        if known is None or not _alike(known, conditioning):
            return None
        mine, theirs = _samples(_shared(conditioning)), _samples(known)
        found = [[i for i, old in enumerate(theirs) if _equal(new, old)] for new in mine]
        return [f[0] for f in found] if all(found) else None


def _count(conditioning: Conditioning) -> int:
    """How many different samples it may hold."""
    return max(len(p) for p in (*conditioning.references, conditioning.pooled))


def _alike(a: Conditioning, b: Conditioning) -> bool:
    """Whether all but the values of the clean latents and of the pooled text is the same."""
    shapes = [[r.shape[1:] for r in c.references] for c in (a, b)]
    facts = [(c.indices, c.guidance, c.layout) for c in (a, b)]
    return shapes[0] == shapes[1] and facts[0] == facts[1]


def _samples(conditioning: Conditioning) -> list[tuple[Tensor, ...]]:
    """Clean latents and pooled text of every sample."""
    parts = (*conditioning.references, conditioning.pooled)
    count = _count(conditioning)
    return [tuple(p[i if len(p) > 1 else 0] for p in parts) for i in range(count)]


def _equal(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _shared(conditioning: Conditioning) -> Conditioning:
    """One sample's conditioning if all samples have the same clean tokens, else all of it."""
    first, *others = _samples(conditioning)
    if not all(_equal(first, other) for other in others):
        return conditioning.repeat(1 + len(others))
    references = tuple(r[:1] for r in conditioning.references)
    return replace(
        conditioning,
        references=references,
        text=conditioning.text[:1],
        pooled=conditioning.pooled[:1],
    )
