"""Load Folder: the pictures of a folder with their names, in order."""

from __future__ import annotations

import re
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..refiner_core.images.image_io import load_picture, to_float
from .layout import from_core
from .types import SCORING

_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}


def input_folder(name: str) -> Path:
    """A folder the user names: a full path, or inside ComfyUI's input folder."""
    return Path(folder_paths.get_input_directory()) / Path(name).expanduser()


def _by_number(path: Path) -> list[tuple[int, str]]:
    """Sorts picture 2 before picture 10."""
    parts = re.findall(r"\d+|\D+", path.name.lower())
    return [(int(p), "") if p.isdigit() else (-1, p) for p in parts]


def pictures_in(folder: Path, most: int) -> list[Path]:
    """The first `most` pictures of a folder by name; 0 = all.

    Raises:
        ValueError: no such folder, or no pictures in it.
    """
    if not folder.is_dir():
        raise ValueError(
            f"There is no folder {folder}. Make it and put pictures in, or name another: one inside "
            "ComfyUI's input folder, or a full path."
        )
    found = [p for p in folder.iterdir() if p.suffix.lower() in _ENDINGS and p.is_file()]
    if not found:
        raise ValueError(
            f"There are no pictures in {folder}: {', '.join(sorted(_ENDINGS))} are read."
        )
    return sorted(found, key=_by_number)[: most or None]


class LoadFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_LoadFolder",
            display_name="Load Folder",
            category=SCORING,
            description="The pictures of a folder one by one, with their names, in order of the "
            "names. What is connected runs once for each.",
            search_aliases=["load images from folder", "batch load", "directory", "dataset"],
            inputs=[
                io.String.Input("folder", default="",
                    tooltip="A folder inside ComfyUI's input folder, or a full path. Empty: the input "
                    "folder itself. Folders inside it are not looked into."),
                io.Int.Input("most", default=64, min=0, max=100000,
                    tooltip="At most so many pictures, the first by name; 0 = all."),
            ],
            outputs=[
                io.Image.Output(display_name="image", is_output_list=True,
                    tooltip="The pictures, each of its own size."),
                io.String.Output(display_name="name", is_output_list=True,
                    tooltip="Their file names."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, folder: str, most: int) -> bool | str:
        try:
            pictures_in(input_folder(folder), most)
        except ValueError as e:
            return str(e)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: str, most: int) -> list[tuple[str, int]]:
        return [(p.name, p.stat().st_mtime_ns) for p in pictures_in(input_folder(folder), most)]

    @classmethod
    def execute(cls, folder: str, most: int) -> io.NodeOutput:
        paths = pictures_in(input_folder(folder), most)
        images = [from_core(to_float(load_picture(p).pixels)) for p in paths]
        return io.NodeOutput(images, [p.name for p in paths])
