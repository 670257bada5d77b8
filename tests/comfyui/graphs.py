"""Graphs in the API's format that several tests post to a running ComfyUI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT / "refiner_core" / "demo_cases"

LOAD = {
    "recipe": "nano (embedded)", "diffusion_model": "none", "weight_dtype": "default",
    "clip_l": "none", "t5xxl": "none", "vae": "none", "refiner_lora": "none", "lora_strength": 1.0,
}  # fmt: skip
REFINE = {
    "prompt": "", "seed": 0, "steps": 0, "guidance": 0.0, "sampler": "omnirefiner (Euler)",
    "scheduler": "recipe", "context": 0.0, "megapixels": 0.0, "grow": 0, "feather": 6,
    "model_mask": 0.0, "blend": "feather", "color_match": -1.0, "fix_drift": "recipe",
    "align_reference": "recipe",
}  # fmt: skip


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """One node."""
    return {"class_type": kind, "inputs": inputs}


def repair(case: str = "logo", **changes: Any) -> dict[str, Any]:
    """Load Refiner -> Example Case -> Reference Refine -> Save Image and the report."""
    inputs = REFINE | changes
    return {
        "load": node("OmniRefiner_LoadRefiner", **LOAD),
        "case": node("OmniRefiner_ExampleCase", case=case),
        "refine": node(
            "OmniRefiner_ReferenceRefine", refiner=["load", 0], draft=["case", 0],
            reference=["case", 1], mask=["case", 2], reference_mask=["case", 3], **inputs,
        ),
        "save": node("SaveImage", images=["refine", 0], filename_prefix="refined"),
        "report": node("PreviewAny", source=["refine", 3]),
    }  # fmt: skip


def pixels(path: Path) -> np.ndarray:
    """A picture as integers H W 3."""
    return np.asarray(Image.open(path).convert("RGB")).astype(int)
