"""Takes drift and colour cast out of what the model made of a region, and blends it in."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..images.crop import crop_mask, stitch_into, uncrop, uncrop_signed
from ..images.geometry import Blend
from ..images.tensors import to_float
from ..matching.tone import close_rim, keep_light, keep_low_frequencies
from .drift_and_color import correct_drift_and_color
from .region import PreparedRegion
from .request import RefineOptions


def correct_region(
    prepared: PreparedRegion,
    result: Tensor,
    options: RefineOptions,
    coded_reference: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """What the model made, with the codec's residual given back and drift and colour cast taken out.
    Where the detail was transferred, its light is kept, whatever `color_match` says.

    Args:
        result: the decoded crop, float 1 3 H W.
        options: `drift` and `color_match`; None follows the recipe.
        coded_reference: the first reference's crop encoded and decoded again, for recipes with a
            codec residual; None leaves that out.
    """
    result = result.float().clamp(0, 1)
    if prepared.blend.residual and coded_reference is not None:
        result = prepared.blend.restore(result, prepared.references[0].crop, coded_reference)
    usual = prepared.recipe.correct_drift_and_color
    corrected, report = correct_drift_and_color(
        result,
        prepared.draft,
        prepared.region,
        prepared.plan,
        drift=usual if options.drift is None else options.drift,
        color_match=float(usual) if options.color_match is None else options.color_match,
    )
    if prepared.transfer is not None:
        corrected = keep_light(corrected, prepared.references[0].crop, prepared.mask)
    elif prepared.recipe.native_detail and prepared.aligned:
        corrected = keep_low_frequencies(corrected, prepared.draft, prepared.mask)
    if _blend(prepared, options) == "membrane" and prepared.transfer is None:
        mask = prepared.mask
        if prepared.pasted is not prepared.region:
            mask = crop_mask(prepared.pasted, prepared.plan)
        corrected = close_rim(corrected, prepared.draft, mask)
    return corrected, report


def stitch_region(
    image: Tensor, prepared: PreparedRegion, result: Tensor, options: RefineOptions
) -> None:
    """Blend the repaired crop, float 1 3 H W, into `image` itself. Outside of what is pasted it keeps
    its exact bits, and so does a region that is left alone.
    """
    if prepared.left_alone:
        return
    patch = _patch(image, prepared, result)
    blend = _blend(prepared, options)
    stitch_into(image, patch, prepared.pasted, feather_pixels=options.feather, blend=blend)


def _blend(prepared: PreparedRegion, options: RefineOptions) -> Blend:
    return options.blend or prepared.recipe.blend


def _patch(image: Tensor, prepared: PreparedRegion, result: Tensor) -> Tensor:
    """The repaired crop at the draft's resolution, cut to the box of what is pasted.

    Where the detail was transferred at that resolution, only what the model changed of it is scaled
    up, and where it was not, the picture stays as it is.
    """
    pasted = prepared.pasted
    if prepared.transfer is None:
        return uncrop(result, prepared.plan, pasted)
    b = pasted.box
    patch = to_float(image[..., b.y0 : b.y1, b.x0 : b.x1]).clone()
    seen = prepared.transfer.window.intersection(b)
    if min(seen.extent) <= 0:
        return patch
    change = uncrop_signed(result - prepared.references[0].crop, prepared.plan, pasted)
    rows, columns = slice(seen.y0 - b.y0, seen.y1 - b.y0), slice(seen.x0 - b.x0, seen.x1 - b.x0)
    picture, shown = prepared.transfer.part(seen)
    patch[..., rows, columns] = picture + shown * change[..., rows, columns]
    return patch.clamp(0, 1)
