"""What a script for ComfyUI's Python begins with: `start_on_cpu()`, then ComfyUI's own imports."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def start_on_cpu() -> None:
    """Make ComfyUI's modules importable and choose the CPU, before anything asks for a device."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args

    args.cpu = True


def load_pack(folder: Path = ROOT, name: str = "pack") -> ModuleType:
    """A pack, loaded as ComfyUI loads it: this one, importable as `pack`, or another."""
    import nodes  # noqa: F401  claims the name before a pack's folder can

    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    pack = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    return pack
