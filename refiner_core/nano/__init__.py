"""The embedded default refiner: FLUX's layout in miniature, shipped inside the package."""

from __future__ import annotations

from pathlib import Path

NANO_WEIGHTS = Path(__file__).parent / "nano.safetensors"
