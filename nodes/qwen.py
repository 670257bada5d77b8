"""Where the pipeline that Qwen-Image-Edit's refiners are published with differs from ComfyUI's model.

ComfyUI places the text by the size of the picture to be made alone, and its CFGNorm measures the
estimate pixel by pixel and only ever damps it. diffusers' QwenImageEditPlusPipeline places the text
after the longest side of all pictures, and gives each token of the guided velocity the length that
the conditional one has.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F


def as_published(model: Any) -> Any:
    """A clone of a Qwen-Image MODEL that places the text and combines under CFG as the pipeline."""
    model = model.clone()
    model.set_model_post_input_patch(_place_text)
    model.set_model_sampler_cfg_function(guide)
    return model


def _place_text(given: dict[str, Any]) -> dict[str, Any]:
    # Rows and columns are counted from each picture's middle: the least is half the longest side.
    text, half = given["txt_ids"], -given["img_ids"][..., 1:].amin()
    return given | {"txt_ids": text - text.amin() + half}


def guide(given: dict[str, Any]) -> Tensor:
    """Classifier-free guidance whose tokens, 2x2 latent pixels B C T h w, keep their lengths."""
    cond, uncond = given["cond"], given["uncond"]
    guided = uncond + given["cond_scale"] * (cond - uncond)
    scale = _lengths(cond) / _lengths(guided).clamp_min(1e-12)
    return guided * F.interpolate(scale, scale_factor=(1, 2, 2))


def _lengths(x: Tensor) -> Tensor:
    return F.avg_pool3d(x.square().sum(1, keepdim=True), (1, 2, 2)).sqrt()
