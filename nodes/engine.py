"""The ComfyUI engine: the core's pipeline on ComfyUI's model, sampler and memory management."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_base
import comfy.model_management as mm
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import node_helpers
import torch
from PIL import Image
from torch import Tensor

from ..refiner_core import sampling
from ..refiner_core.interfaces import SamplingJob
from ..refiner_core.models.devices import most_at_once
from ..refiner_core.recipes.recipe import Recipe
from .conditioning import EncodedText, condition, encode_text
from .one_way import Caches, cache_bytes, one_way
from .qwen import as_published
from .tiles import tiled
from .types import Refiner

OWN_SAMPLER = "omnirefiner (Euler)"
RECIPE_SCHEDULE = "recipe"


_FAMILIES = {
    "flux": (comfy.model_base.Flux, 16, "FLUX.1-Kontext"),
    "flux2": (comfy.model_base.Flux, 128, "FLUX.2"),
    "qwen-edit": (comfy.model_base.QwenImage, 16, "Qwen-Image-Edit-2511"),
}


def check_model(model: Any, recipe: Recipe, what: str) -> None:
    """Refuse a MODEL of a family that does not fit the recipe.

    Raises:
        ValueError: names the model's class and what was expected.
    """
    inner = getattr(model, "model", None)
    channels = getattr(getattr(inner, "latent_format", None), "latent_channels", None)
    kind, wanted, name = _FAMILIES[recipe.family]
    if not isinstance(inner, kind) or channels != wanted:
        raise ValueError(
            f"{what} is a {type(inner).__name__} model with {channels} latent channels, but the recipe "
            f"{recipe.name} needs {name} with {wanted} latent channels. Load that model, or choose the "
            "recipe that fits this one."
        )
    guided = inner.model_config.unet_config.get("guidance_embed", False)
    if recipe.family == "flux2" and guided != (recipe.guidance is not None):
        kind, fitting = ("[dev]", "flux2-dev") if guided else ("[klein]", "flux2-klein")
        raise ValueError(
            f"{what} is FLUX.2 {kind}, which does not fit the recipe {recipe.name}. Choose the recipe "
            f"{fitting}."
        )


def obeys_reference_method(model: Any, conditioning: Any, layout: str = "index") -> bool:
    """Whether the model distinguishes the recipe's layout of two references from "offset".

    Found out by running it on 4x4 latents: a wrapper that ignores the method gives the same twice.
    """
    generator = torch.Generator().manual_seed(0)
    form = model.model.latent_format
    size = (1, form.latent_channels, *([1] * (form.latent_dimensions - 2)), 8, 8)
    x, a, b = (torch.randn(size, generator=generator) for _ in range(3))
    outputs: list[Tensor] = []
    for method in (layout, "offset"):
        values = {"reference_latents": [a, b], "reference_latents_method": method, "guidance": 2.5}
        positive = node_helpers.conditioning_set_values(conditioning, values)
        sampler = comfy.samplers.sampler_object("euler")
        outputs.append(
            comfy.sample.sample_custom(
                model,
                x,
                1.0,
                sampler,
                torch.tensor([1.0, 0.0]),
                positive,
                [],
                torch.zeros_like(x),
                disable_pbar=True,
                seed=0,
            ).float()
        )
    return float((outputs[0] - outputs[1]).abs().max()) > 1e-5 * float(
        outputs[0].abs().max() + 1e-8
    )


def check_layout(refiner: Refiner, positive: Any) -> None:
    """Refuse a model that ignores the recipe's layout of references. It is tested once per refiner.

    Raises:
        ValueError: it does.
    """
    layout = refiner.recipe.layout
    if layout == "offset" or refiner.probed:
        return
    if not obeys_reference_method(refiner.model, positive, layout):
        raise ValueError(
            f"{refiner.name or 'This model'} ignores the reference latents method: its output "
            f'is the same with "{layout}" and "offset". Nunchaku\'s FLUX loader is known for '
            "this. Load the model with ComfyUI's own loader or as GGUF instead."
        )
    refiner.probed = True


def sampling_model(refiner: Refiner) -> Any:
    """The MODEL to sample with, which differs from the loaded one for Qwen-Image-Edit."""
    return as_published(refiner.model) if refiner.recipe.family == "qwen-edit" else refiner.model


def encode_image(vae: Any, image: Tensor) -> Tensor:
    """Encode an image `1 3 H W` to the latent that ComfyUI's samplers take."""
    return vae.encode(image.movedim(1, -1))


def decode_latent(vae: Any, latent: Tensor) -> Tensor:
    """Decode a latent to an image `1 3 H W`, float32 on the CPU."""
    image = vae.decode(latent)
    if image.ndim == 5:  # codecs of video give B T H W C
        image = image.flatten(0, 1)
    return image.movedim(-1, 1).float().cpu()


class ComfyEngine:
    """`interfaces.Engine` over a `Refiner`.

    `sampler` one of ComfyUI's names or `OWN_SAMPLER`; `scheduler` one of ComfyUI's or
    `RECIPE_SCHEDULE`.
    """

    def __init__(
        self, refiner: Refiner, sampler: str = OWN_SAMPLER, scheduler: str = RECIPE_SCHEDULE
    ) -> None:
        self.refiner, self.sampler, self.scheduler = refiner, sampler, scheduler
        self._previewer: Any = None
        self._clean = Caches()
        self._texts: list[tuple[SamplingJob, EncodedText]] = []

    @property
    def recipe(self) -> Recipe:
        return self.refiner.recipe

    def describe(self) -> dict[str, str]:
        return {
            "kind": "ComfyUI",
            "weights": self.refiner.name,
            "sampler": self.sampler,
            "scheduler": self.scheduler,
            "device": str(self.refiner.model.load_device),
        }

    def encode(self, image: Tensor) -> Tensor:
        return encode_image(self.refiner.vae, image)

    def decode(self, latent: Tensor) -> Tensor:
        return decode_latent(self.refiner.vae, latent)

    def _sigmas(self, job: SamplingJob) -> Tensor:
        if self.scheduler == RECIPE_SCHEDULE:
            return job.sigmas
        process = self.refiner.model.get_model_object("model_sampling")
        wanted = len(job.sigmas) - 1
        sigmas = comfy.samplers.calculate_sigmas(process, self.scheduler, wanted).cpu()
        if len(sigmas) - 1 != wanted and (job.begin or job.end is not None):
            raise ValueError(
                f"The scheduler {self.scheduler} makes {len(sigmas) - 1} steps instead of {wanted}, so "
                "candidates cannot be dropped early. Set prune_at to 0 or choose another scheduler."
            )
        return sigmas

    def _sampler(self) -> Any:
        if self.sampler == OWN_SAMPLER:
            return comfy.samplers.KSAMPLER(sampling.sample)
        return comfy.samplers.sampler_object(self.sampler)

    def encode_text(self, jobs: Sequence[SamplingJob]) -> None:
        self._texts = [(job, encode_text(self.refiner, job)) for job in jobs]

    def _text(self, job: SamplingJob) -> EncodedText:
        """The job's encoded text; candidates share that of the job they come from."""
        for known, text in self._texts:
            pictures = zip(known.inputs, job.inputs, strict=True)
            if known.prompt == job.prompt and all(a.image is b.image for a, b in pictures):
                return text
        return encode_text(self.refiner, job)

    def at_once(self, job: SamplingJob) -> int:
        """How many jobs of this one's size fit into a batch; on a CPU a batch saves nothing.

        Other samplers than the recipe's may draw other noise for a batch.
        """
        model, recipe = self.refiner.model, self.recipe
        alone = recipe.tile or recipe.conditioning != "text" or self.sampler != OWN_SAMPLER
        if mm.is_device_cpu(model.load_device) or alone:
            return 1
        area = sum(z.shape[-2] * z.shape[-1] for z in (job.draft, *job.latents))
        each = model.memory_required([1, job.draft.shape[1], 1, area])
        if recipe.attention == "one way":
            each += cache_bytes(model, job.latents, job.cfg)
        return most_at_once(mm.get_total_memory(model.load_device) - model.model_size(), each)

    def sample(self, job: SamplingJob, step: Callable[[int, int, Tensor], None]) -> Tensor:
        refiner = self.refiner
        positive, negative = condition(self._text(job), job, self.recipe.layout)
        check_layout(refiner, positive)
        model = sampling_model(refiner)
        recipe = self.recipe
        if recipe.attention == "one way":
            model = one_way(model, self._clean, job.latents, job.cfg)
        if recipe.tile:
            model = tiled(model, recipe.tile // recipe.latent_factor, self._clean)
        draft = job.draft
        sigmas = self._sigmas(job)
        steps = len(sigmas) - 1
        sigmas = sigmas[job.begin : (steps if job.end is None else job.end) + 1]

        def callback(i: int, x0: Tensor, x: Tensor, total: int) -> None:
            mm.throw_exception_if_processing_interrupted()
            step(job.begin + i + 1, steps, refiner.model.model.process_latent_out(x0.float()))

        held = job.restrict is not None
        clean = draft if held else torch.zeros_like(draft)
        latent = comfy.sample.sample_custom(
            model,
            self._noise(job, sigmas, draft, held),
            job.cfg,
            self._sampler(),
            sigmas,
            positive,
            negative,
            clean,
            noise_mask=job.restrict,
            callback=callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=job.seed,
        )
        if sigmas[-1] > 0:
            return self._state(latent, sigmas)
        self._clean.clear()  # of use between the rounds of a search, and large
        return latent

    def _noise(self, job: SamplingJob, sigmas: Tensor, draft: Tensor, held: bool) -> Tensor:
        """The noise from which ComfyUI's `sigma * noise + (1 - sigma) * clean` makes the start."""
        if job.start is None:
            return sampling.draw_noise(tuple(draft.shape), job.seed)
        if job.begin == 0:
            return job.start
        sigma = float(sigmas[0])
        clean = self.refiner.model.model.process_latent_in(draft) if held else 0.0
        return (job.start - (1 - sigma) * clean) / sigma

    def _state(self, latent: Tensor, sigmas: Tensor) -> Tensor:
        """The network's own latents at a noise level over 0: ComfyUI's scalings undone."""
        return self.refiner.model.model.process_latent_in(latent) * (1 - sigmas[-1])

    def preview(self, x0: Tensor) -> Image.Image | None:
        """A small preview of an estimate, or None if previews are turned off."""
        x0 = self.refiner.model.model.process_latent_in(x0)
        own = getattr(self.refiner.vae, "preview", None)
        if own is not None:
            return own(x0)
        if self._previewer is None:
            model = self.refiner.model
            previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
            self._previewer = previewer or False
        if self._previewer is False:
            return None
        return self._previewer.decode_latent_to_preview_image("JPEG", x0)[1]
