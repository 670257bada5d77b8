"""Masks of detectors and of odd ranges in Mask Builder and Pick Best: `python detected_masks.py OUT`.

A script for ComfyUI's Python. OUT (safetensors) gets the masks that Mask Builder makes: of SEGS
(`segs`), of SEGS, a batch of masks and a box (`all`), and of a label map (`labels`); and the pick
of Pick Best with a mask of 0 to 255 (`index`).
"""

from __future__ import annotations

import json
import sys
from collections import namedtuple

from comfyui_script import load_pack, start_on_cpu

if __name__ == "__main__":
    start_on_cpu()

    import numpy as np
    import torch
    from safetensors.torch import save_file

    load_pack()
    from pack.nodes.masking import MaskBuilder
    from pack.nodes.pick import PickBest

    # The fields of ComfyUI Impact Pack.
    SEG = namedtuple("SEG", "cropped_image cropped_mask confidence crop_region bbox label control")
    segments = [
        SEG(None, np.ones((10, 20), np.float32), 0.9, [5, 6, 25, 16], [5, 6, 25, 16], "a", None),
        SEG(None, torch.ones(1, 8, 8), 0.9, (40, 30, 48, 38), (40, 30, 48, 38), "b", None),
    ]
    image = torch.rand(1, 48, 64, 3, generator=torch.Generator().manual_seed(0))
    plain = {
        "threshold": 0.1, "align": False, "grow": 0, "fill_holes": False, "smallest": 1, "invert": False,
    }  # fmt: skip

    def built(**inputs: object) -> torch.Tensor:
        with torch.inference_mode():
            return MaskBuilder.execute(image, **plain, **inputs).result[0].clone()

    batch = torch.zeros(2, 48, 64)
    batch[0, :4, :4], batch[1, 44:, 60:] = 1, 1
    box = json.dumps([{"draft": [0.5, 0, 0.75, 0.25]}])
    out = {
        "segs": built(segs=((48, 64), segments)),
        "all": built(segs=((48, 64), segments), mask=batch, boxes=box),
        "labels": built(mask=batch / 255),
    }
    for name, segs in (("size", ((40, 64), segments)), ("nothing", ((48, 64), []))):
        try:
            built(segs=segs)
        except ValueError as e:
            print(name, e)
    marked = torch.zeros(1, 48, 64)
    marked[:, :24, :32] = 255
    other = image.clone()
    other[:, :24, :32] = 0
    with torch.inference_mode():
        picked = PickBest.execute(
            [other, image],
            [image],
            [1],
            [False],
            mask=[marked],
            reference_mask=[torch.zeros(1, 64, 64)],
        )
    out["index"] = torch.tensor(picked.result[1])
    print("notes", json.loads(picked.result[2])["notes"])
    save_file(out, sys.argv[1])
