"""Progress of a running repair: the name of the stage and a preview of every step."""

from __future__ import annotations

import comfy.model_management as mm
import comfy.utils
from comfy_api.latest import io
from PIL import Image

from ..refiner_core.images.previews import in_place, to_pillow
from ..refiner_core.interfaces import Stage
from .engine import ComfyEngine
from .pictures import tell_page

_SIDE = 768  # px of the live picture's longer side


class LiveView:
    """`interfaces.Progress` for a node: progress bar, previews, stage events and interruption."""

    def __init__(self, node: type[io.ComfyNode], engine: ComfyEngine) -> None:
        self.node, self.engine = node, engine
        self.bar: comfy.utils.ProgressBar | None = None
        self.whole: Image.Image | None = None
        self.shown: tuple[int, int] | None = None  # picture and region of `whole`

    def __call__(self, stage: Stage) -> None:
        mm.throw_exception_if_processing_interrupted()
        tell_page(self.node, "stage", _event(stage))
        if stage.name == "sample":
            self._step(stage)

    def _step(self, stage: Stage) -> None:
        part = stage.picture * stage.regions + stage.region
        total = stage.pictures * stage.regions * stage.steps
        self.bar = self.bar or comfy.utils.ProgressBar(total)
        shown = self._picture(stage)
        preview = None if shown is None else ("JPEG", shown, None)
        self.bar.update_absolute(part * stage.steps + stage.step, total, preview)

    def _picture(self, stage: Stage) -> Image.Image | None:
        if stage.estimate is None or stage.plan is None or stage.image is None:
            return None
        crop = self.engine.preview(stage.estimate)
        if crop is None:
            return None
        if self.shown != (stage.picture, stage.region):
            self.whole = None  # another picture, or one that earlier regions have changed
            self.shown = stage.picture, stage.region
        self.whole = self.whole or to_pillow(stage.image, _SIDE)
        return in_place(self.whole, stage.plan, crop)


def _event(stage: Stage) -> dict[str, object]:
    return {
        "stage": stage.name,
        "step": stage.step,
        "steps": stage.steps,
        "picture": stage.picture,
        "pictures": stage.pictures,
        "region": stage.region,
        "regions": stage.regions,
    }
