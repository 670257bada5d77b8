"""`python score_beside_nano.py FOLDER`: DreamSim from an extra folder, beside a loaded model.

A script for ComfyUI's Python. FOLDER stands in for a `dreamsim` entry of extra_model_paths.yaml.
"""

from __future__ import annotations

import os
import sys

from comfyui_script import load_pack, start_on_cpu

if __name__ == "__main__":
    start_on_cpu()

    import comfy.model_management as mm
    import folder_paths
    import torch

    # main.py reads extra_model_paths.yaml, then loads the packs.
    folder_paths.add_model_folder_path("dreamsim", sys.argv[1])
    pack = load_pack()
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
