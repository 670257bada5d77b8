"""`python score_beside_nano.py FOLDER`: DreamSim from an extra folder, beside a loaded model.

A script for ComfyUI's Python. FOLDER stands in for a `dreamsim` entry of extra_model_paths.yaml.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]

if __name__ == "__main__":
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args

    args.cpu = True  # before anything asks for a device

    import comfy.model_management as mm
    import folder_paths
    import torch

    # main.py reads extra_model_paths.yaml, then loads the packs.
    folder_paths.add_model_folder_path("dreamsim", sys.argv[1])
    spec = importlib.util.spec_from_file_location(
        "pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    assert spec is not None and spec.loader is not None
    pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    from pack.nodes.nano import load_nano_refiner  # type: ignore[import-not-found]
    from pack.nodes.scoring import load_scorer  # type: ignore[import-not-found]

    paths = folder_paths.get_folder_paths("dreamsim")
    assert paths == [sys.argv[1], os.path.join(folder_paths.models_dir, "dreamsim")], paths
    assert "extra.safetensors" in folder_paths.get_filename_list("dreamsim")
    with torch.inference_mode():
        refiner = load_nano_refiner()
        mm.load_models_gpu([refiner.model])
        scorer = load_scorer("extra.safetensors", "float32")
        again = load_scorer("extra.safetensors", "float16")
        x = torch.rand(2, 3, 50, 70)
        assert float(scorer.distance(x, x).max()) < 1e-6
        assert float(again.distance(x, x.flip(0)).min()) > 0
        shared = load_scorer("extra.safetensors", "float32")
    assert shared.model is scorer.model and again.model is not scorer.model
    loaded = [m.model for m in mm.loaded_models()]
    assert refiner.model.model in loaded and scorer.model in loaded
    print("extra.safetensors scored, nano still loaded")
