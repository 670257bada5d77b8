"""Load Folder: the images of a folder with their names, sorted by name."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..refiner_core.images.image_io import PICTURE_SUFFIXES
from ..refiner_core.images.picture_folder import picture_files, read_pictures
from ..refiner_core.images.tensors import to_float
from .layout import from_core
from .pictures import show_text
from .types import SCORING


def input_folder(name: str) -> Path:
    """The folder that a user entered: a full path, or a folder in ComfyUI's input folder.

    Raises:
        ValueError: nothing was entered, or the folder does not exist.
    """
    if not name.strip():
        raise ValueError(
            "No folder is entered. Enter the name of a folder inside ComfyUI's input folder, a full "
            "path, or a dot (.) for the input folder itself."
        )
    try:
        folder = Path(folder_paths.get_input_directory()) / Path(name).expanduser()
        found = folder.is_dir()
    except (OSError, RuntimeError) as e:
        reason = e.strerror if isinstance(e, OSError) else e
        raise ValueError(f"The folder {name[:200]} cannot be opened: {reason}.") from e
    if not found:
        raise ValueError(
            f"The folder {folder} does not exist. Enter the name of a folder inside ComfyUI's input "
            "folder, or a full path."
        )
    return folder


def _by_number(path: Path) -> list[tuple[int, str]]:
    """Sort key that puts image2 before image10."""
    parts = re.findall(r"\d+|\D+", path.name.lower())
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in parts]


def pictures_in(folder: Path) -> list[Path]:
    """The images of a folder, sorted by name.

    Raises:
        ValueError: the folder contains no images.
    """
    files = picture_files(folder)
    if not files:
        raise ValueError(
            f"The folder {folder} contains no images. Supported file types are "
            f"{', '.join(sorted(PICTURE_SUFFIXES))}."
        )
    return sorted(files, key=_by_number)


class LoadFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_LoadFolder",
            display_name="Load Folder (OmniRefiner)",
            category=SCORING,
            description="Loads the images of a folder with their file names, sorted by name. The "
            "nodes that are connected run once for each image.",
            search_aliases=["load images from folder", "batch load", "directory", "dataset"],
            inputs=[
                io.String.Input(
                    "folder",
                    default="",
                    tooltip="The folder to load images from: a folder inside ComfyUI's input folder, "
                    "or a full path. A dot (.) is the input folder itself. Subfolders are not searched.",
                ),
                io.Int.Input(
                    "most",
                    default=64,
                    min=0,
                    max=100000,
                    tooltip="Maximum number of images to load, in the order of their names. 0 loads "
                    "all of them.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    is_output_list=True,
                    tooltip="List of the loaded images, each in its own size.",
                ),
                io.String.Output(
                    display_name="name", is_output_list=True, tooltip="List of the file names."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, most: int | None) -> object:
        """What the folder contains; a value unlike any other if that is not known: its name comes from
        another node, or it cannot be read.
        """
        if folder is not None:
            with suppress(ValueError):
                return [(p.name, p.stat().st_mtime_ns) for p in pictures_in(input_folder(folder))]
        return float("nan")  # a new object: ComfyUI compares by identity first

    @classmethod
    def execute(cls, folder: str, most: int) -> io.NodeOutput:
        try:
            found = read_pictures(pictures_in(input_folder(folder)), most or None)
        except ValueError as e:
            show_text(cls, str(e))  # ComfyUI's own message does not say what is wrong
            raise
        show_text(cls, "\n".join(found.notes))
        images = [from_core(to_float(picture.pixels)) for _, picture in found.pictures]
        return io.NodeOutput(images, [path.name for path, _ in found.pictures])
