"""The ComfyUI engine: the core's pipeline on ComfyUI's model, sampler and memory management."""

from __future__ import annotations

from collections.abc import Callable
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
from ..refiner_core.recipes import Recipe
from .types import Refiner

OWN_SAMPLER = "omnirefiner (Euler)"
RECIPE_SCHEDULE = "recipe"


def reference_conditioning(conditioning: Any, latents: list[Tensor], guidance: float | None) -> Any:
    """Conditioning with clean latents laid out by index: the first is 1, the second 2, ..."""
    values: dict[str, Any] = {"reference_latents": latents, "reference_latents_method": "index"}
    if guidance is not None:
        values["guidance"] = guidance
    return node_helpers.conditioning_set_values(conditioning, values)


def check_flux(model: Any, what: str) -> None:
    """Refuse a MODEL that is not FLUX.1.

    Raises:
        ValueError: names the model's class.
    """
    inner = getattr(model, "model", None)
    channels = getattr(getattr(inner, "latent_format", None), "latent_channels", None)
    if not isinstance(inner, comfy.model_base.Flux) or channels != 16:
        raise ValueError(
            f"{what} is a {type(inner).__name__} with {channels} latent channels. A refiner needs a "
            "FLUX.1-Kontext model (16 channels), which lays out references as tokens."
        )


def obeys_reference_method(model: Any, conditioning: Any) -> bool:
    """Whether the model tells "index" from "offset" when it lays out two references.

    Found out by running it on 4x4 latents: a wrapper that ignores the method gives the same twice.
    """
    generator = torch.Generator().manual_seed(0)
    x, a, b = (torch.randn(1, 16, 8, 8, generator=generator) for _ in range(3))
    seen = []
    for method in ("index", "offset"):
        values = {"reference_latents": [a, b], "reference_latents_method": method, "guidance": 2.5}
        positive = node_helpers.conditioning_set_values(conditioning, values)
        sampler = comfy.samplers.sampler_object("euler")
        seen.append(
            comfy.sample.sample_custom(
                model, x, 1.0, sampler, torch.tensor([1.0, 0.0]), positive, [],
                torch.zeros_like(x), disable_pbar=True, seed=0,
            ).float()
        )  # fmt: skip
    return float((seen[0] - seen[1]).abs().max()) > 1e-5 * float(seen[0].abs().max() + 1e-8)


def encode_prompt(refiner: Refiner, prompt: str) -> Any:
    """The refiner's text conditioning: ready-made if it has some, else the encoded prompt."""
    if refiner.conditioning is not None:
        return refiner.conditioning
    return refiner.clip.encode_from_tokens_scheduled(refiner.clip.tokenize(prompt))


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

    @property
    def recipe(self) -> Recipe:
        return self.refiner.recipe

    def describe(self) -> dict[str, str]:
        return {
            "kind": "ComfyUI", "weights": self.refiner.name, "sampler": self.sampler,
            "scheduler": self.scheduler, "device": str(self.refiner.model.load_device),
        }  # fmt: skip

    def encode(self, image: Tensor) -> Tensor:
        return self.refiner.vae.encode(image.movedim(1, -1))

    def decode(self, latent: Tensor) -> Tensor:
        return self.refiner.vae.decode(latent).movedim(-1, 1).float().cpu()

    def _sigmas(self, job: SamplingJob) -> Tensor:
        if self.scheduler == RECIPE_SCHEDULE:
            return job.sigmas
        process = self.refiner.model.get_model_object("model_sampling")
        asked = len(job.sigmas) - 1
        sigmas = comfy.samplers.calculate_sigmas(process, self.scheduler, asked).cpu()
        if len(sigmas) - 1 != asked and (job.begin or job.end is not None):
            raise ValueError(
                f"The scheduler {self.scheduler} makes {len(sigmas) - 1} steps where {asked} were "
                "asked for, so candidates cannot be dropped on the way. Set prune_at to 0 or take "
                "another scheduler."
            )
        return sigmas

    def _sampler(self) -> Any:
        if self.sampler == OWN_SAMPLER:
            return comfy.samplers.KSAMPLER(sampling.sample)
        return comfy.samplers.sampler_object(self.sampler)

    def sample(self, job: SamplingJob, step: Callable[[int, int, Tensor], None]) -> Tensor:
        refiner = self.refiner
        text = encode_prompt(refiner, job.prompt)
        if not refiner.probed:
            if not obeys_reference_method(refiner.model, text):
                raise ValueError(
                    f"{refiner.name or 'This model'} ignores how references are laid out (it gave the "
                    'same for "index" and "offset"), as Nunchaku\'s FLUX wrapper does. Load the model '
                    "with ComfyUI's own loader or as GGUF instead."
                )
            refiner.probed = True
        positive = reference_conditioning(text, list(job.references), job.guidance)
        draft = job.references[self.recipe.order.index("draft")]
        sigmas = self._sigmas(job)
        steps = len(sigmas) - 1
        sigmas = sigmas[job.begin : (steps if job.end is None else job.end) + 1]

        def callback(i: int, x0: Tensor, x: Tensor, total: int) -> None:
            mm.throw_exception_if_processing_interrupted()
            step(job.begin + i + 1, steps, refiner.model.model.process_latent_out(x0.float()))

        held = job.restrict is not None
        clean = draft if held else torch.zeros_like(draft)
        latent = comfy.sample.sample_custom(
            refiner.model, self._noise(job, sigmas, draft, held), 1.0, self._sampler(), sigmas,
            positive, [], clean, noise_mask=job.restrict, callback=callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=job.seed,
        )  # fmt: skip
        return latent if sigmas[-1] == 0 else self._state(latent, sigmas)

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
        """A small picture of an estimate, or None if previews are switched off."""
        x0 = self.refiner.model.model.process_latent_in(x0)
        own = getattr(self.refiner.vae, "preview", None)
        if own is not None:
            return own(x0)
        if self._previewer is None:
            model = self.refiner.model
            found = latent_preview.get_previewer(model.load_device, model.model.latent_format)
            self._previewer = found or False
        if self._previewer is False:
            return None
        return self._previewer.decode_latent_to_preview_image("JPEG", x0)[1]
