"""The embedded default refiner: FLUX's layout in miniature, shipped inside the package."""

from __future__ import annotations

from pathlib import Path

from ..recipes.recipe import NANO, NANO_TILES, Recipe
from ..weights.nano_keys import is_nano
from ..weights.safetensors_io import read_header

NANO_WEIGHTS = Path(__file__).parent / "nano.safetensors"


def resolve_weights(refiner: str | Path) -> Path:
    """The file or folder that the user means; "nano" is the embedded one."""
    return NANO_WEIGHTS if str(refiner) == "nano" else Path(refiner).expanduser()


def nano_file(refiner: str | Path) -> Path | None:
    """The file of the embedded nano or of one that the user trained; None for any other model.

    Raises:
        ValueError: the file is missing or not valid.
    """
    path = resolve_weights(refiner)
    return path if not path.is_dir() and is_nano(read_header(path, "diffusion model")[0]) else None


def nano_recipe(path: Path) -> Recipe:
    """The recipe that a nano's file was trained for: on tiles, or on one crop."""
    trained = read_header(path, "diffusion model")[1].get("recipe")
    return NANO_TILES if trained == NANO_TILES.name else NANO
