"""The core engine: a diffusers transformer, a codec and a text encoder behind one recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor

from ..interfaces import SamplingJob, TextEncoder
from ..recipes.recipe import Recipe
from ..sampling import DenoiserCall, draw_noise, restrict, sample
from .detail_encoder import DetailEncoder, fill_triggers
from .devices import free_memory, most_at_once
from .kontext import CleanCache, Conditioning, Denoiser
from .tiles import TileCaches, TiledDenoiser
from .tokens import PATCH

if TYPE_CHECKING:
    from .flux_transformer import Transformer


class Codec(Protocol):
    """Images 1 3 H W in [0, 1] to the latents the network sees, and back."""

    def encode(self, images: Tensor) -> Tensor: ...
    def decode(self, latents: Tensor) -> Tensor: ...


class TriggerText(Protocol):
    """The same for prompts with trigger words, whose positions it also returns."""

    def with_triggers(
        self, prompt: str, words: Sequence[str], length: int
    ) -> tuple[Tensor, Tensor, tuple[int, ...]]: ...


class Movable(Protocol):
    """A part of an engine that computes on a device."""

    def to(self, device: torch.device, /) -> object: ...


_VECTORS = 40  # of the model's width that a block holds for each token while it computes


@dataclass
class CoreEngine:
    """Runs a recipe on torch alone (see `interfaces.Engine`).

    `detail` the detail encoder of recipes that need one; `source` says where the weights are from,
    for the report.
    """

    recipe: Recipe
    model: Transformer
    codec: Codec
    text: TextEncoder
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    source: dict[str, str] = field(default_factory=dict)
    detail: DetailEncoder | None = None
    encoders: tuple[Movable, ...] = ()
    """What encodes pictures and prompts, as far as it computes on a device."""
    release_text: Callable[[], None] | None = None
    """Frees the memory of the text encoders; a later prompt loads them again."""
    _clean: CleanCache | None = None

    def to(self, device: torch.device) -> None:
        """Encode on a device from now on; the transformer stays where it is."""
        self.device = device
        for encoder in self.encoders:
            encoder.to(device)

    def release(self) -> None:
        """Free the memory of the text encoders."""
        if self.release_text is not None:
            self.release_text()

    def encode(self, image: Tensor) -> Tensor:
        return self.codec.encode(image.to(self.device)).float()

    def decode(self, latent: Tensor) -> Tensor:
        return self.codec.decode(latent).float().cpu()

    def encode_text(self, jobs: Sequence[SamplingJob]) -> None:
        for prompt in dict.fromkeys(job.prompt for job in jobs):
            if self.detail is None:
                self.text(prompt, self.recipe.text_tokens)

    def at_once(self, job: SamplingJob) -> int:
        """How many jobs of this one's size fit into a batch; on a CPU a batch saves nothing."""
        if self.device.type != "cuda" or self.detail is not None or self.recipe.tile:
            return 1
        areas = [z.shape[-2] * z.shape[-1] // PATCH**2 for z in (job.draft, *job.latents)]
        tokens = sum(areas) + self.recipe.text_tokens
        each = tokens * self.model.inner_dim * self.model.dtype.itemsize * _VECTORS
        return most_at_once(free_memory(self.device), each)

    def sample(self, job: SamplingJob, step: Callable[[int, int, Tensor], None]) -> Tensor:
        recipe = self.recipe
        text, pooled = self._encode_text(job, recipe)
        conditioning = Conditioning(
            job.latents,
            job.indices,
            text.to(self.device),
            pooled.to(self.device),
            job.guidance,
            recipe.layout,
        )
        clean = job.draft
        x = draw_noise(tuple(clean.shape), job.seed) if job.start is None else job.start
        x = x.to(self.device)
        model = self._denoiser(recipe)
        if job.restrict is not None:
            model = restrict(model, clean, job.restrict.to(clean))
        steps = len(job.sigmas) - 1
        end = steps if job.end is None else job.end
        latents = sample(
            model,
            x,
            job.sigmas[job.begin : end + 1],
            {"conditioning": conditioning},
            lambda d: step(job.begin + d["i"] + 1, steps, d["denoised"]),
        )
        if end == steps:
            self._clean = None  # of use between the rounds of a search, and large
        return latents

    def _denoiser(self, recipe: Recipe) -> DenoiserCall:
        """The model, tile by tile where the recipe says so."""
        if not recipe.tile:
            self._clean = self._clean or CleanCache()
            return Denoiser(self.model, recipe.attention, self._clean)
        caches = self._clean if isinstance(self._clean, TileCaches) else TileCaches()
        self._clean = caches
        model = Denoiser(self.model, recipe.attention, caches)
        return TiledDenoiser(model, recipe.tile // recipe.latent_factor, caches)

    def _encode_text(self, job: SamplingJob, recipe: Recipe) -> tuple[Tensor, Tensor]:
        length, triggers = recipe.text_tokens, recipe.triggers
        if self.detail is None:
            return self.text(job.prompt, length)
        encoder = cast(TriggerText, self.text)
        text, pooled, at = encoder.with_triggers(job.prompt, [w for _, w in triggers], length)
        pictures = [job.input(role).image for role, _ in triggers]
        return fill_triggers(self.detail, text, at, pictures), pooled

    def describe(self) -> dict[str, str]:
        return {
            "kind": "core",
            "device": str(self.device),
            "dtype": str(self.model.dtype),
            **self.source,
        }
