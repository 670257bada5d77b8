"""Runs the real dreamsim package on a synthetic release; for a Python that has it.

    python dreamsim_package.py OUT.json [--size tiny|full] [--dinov2 CHECKOUT] [VARIANT ...]

Writes, per variant, the distances and embeddings of `dreamsim_release.sample_pictures` and the digest
of the prepared pictures (full size: embeddings and pictures into OUT.safetensors). Nothing is
downloaded: torch.hub is replaced by the package's own DINO and, for DINOv2, by a checkout of
facebookresearch/dinov2.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from dreamsim_release import DEPTH, FULL, LAYOUTS, TINY, Sizes, sample_pictures, write_release
from PIL import Image
from safetensors.torch import save_file


def allow_torchvision() -> object:
    """torchvision's import needs two operators that it lacks beside another build of torch."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def patch_package(sizes: Sizes, folder: Path, dinov2: str | None) -> None:
    """Give the package transformers of these sizes and local backbones."""
    from dreamsim.feature_extraction import (
        load_clip_as_dino,
        load_open_clip_as_dino,
        load_synclr_as_dino,
    )
    from dreamsim.feature_extraction.vision_transformer import VisionTransformer

    def vit(patch_size: int = 16) -> Any:
        side = patch_size * (sizes.grid or 224 // patch_size)
        return VisionTransformer(
            img_size=[side], patch_size=patch_size, embed_dim=sizes.width, depth=DEPTH,
            num_heads=sizes.width // 64, mlp_ratio=4, qkv_bias=True,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        )  # fmt: skip

    for module in (load_clip_as_dino, load_open_clip_as_dino, load_synclr_as_dino):
        module.vit_base = vit

    def hub(repository: str, name: str, *_: Any, **__: Any) -> Any:
        if name == "dino_vitb16":
            model, file = vit(16), "dino_vitbase16_pretrain.pth"
        else:
            model, file = dinov2_vit(sizes, dinov2), "dinov2_vitb14_pretrain.pth"
        model.load_state_dict(torch.load(folder / "checkpoints" / file))
        return model

    torch.hub.load = hub


def dinov2_vit(sizes: Sizes, checkout: str | None) -> Any:
    if checkout is None:
        raise SystemExit("DINOv2 variants need --dinov2, a checkout of facebookresearch/dinov2")
    sys.path.insert(0, checkout)
    from dinov2.models.vision_transformer import DinoVisionTransformer

    return DinoVisionTransformer(
        img_size=14 * sizes.dinov2_grid, patch_size=14, embed_dim=sizes.width, depth=DEPTH,
        num_heads=sizes.width // 64, init_values=1.0, block_chunks=0,
    )  # fmt: skip


def build(variant: str, sizes: Sizes, folder: Path, dinov2: str | None) -> tuple[Any, Any]:
    """The package's model and preprocessing of a release."""
    patch_package(sizes, folder, dinov2)
    from dreamsim import dreamsim
    from dreamsim.config import dreamsim_args

    patch = LAYOUTS[variant][0][0][1]
    dreamsim_args["img_size"] = patch * (sizes.grid or 224 // patch)
    kind = variant.removesuffix("_patch")
    return dreamsim(
        device="cpu", cache_dir=str(folder), dreamsim_type=kind, use_patch_model=kind != variant
    )


def joined(model: Any, image: torch.Tensor) -> torch.Tensor:
    """The embedding that the package takes the cosine of, 1 D."""
    embedding = model.embed(image)
    if embedding.ndim == 3:
        return torch.cat([embedding[:, 0], embedding[:, 1:].mean(1)], -1)
    return embedding


@torch.no_grad()
def measure(variant: str, sizes: Sizes, dinov2: str | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        release = write_release(Path(folder), variant, sizes)
        model, prepare = build(variant, sizes, release, dinov2)
    images = [prepare(Image.fromarray(p)) for p in sample_pictures()]
    first = images[0]
    return {
        "distances": [float(model(first, other)) for other in images],
        "embeddings": torch.cat([joined(model, i) for i in images]),
        "inputs": torch.cat(images),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("variants", nargs="*")
    parser.add_argument("--size", choices=("tiny", "full"), default="tiny")
    parser.add_argument("--dinov2")
    chosen = parser.parse_args()
    keep = allow_torchvision()
    assert keep is not None
    found: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    for variant in chosen.variants or LAYOUTS:
        measured = measure(variant, TINY if chosen.size == "tiny" else FULL, chosen.dinov2)
        tensors[f"{variant}.embeddings"] = measured["embeddings"]
        tensors[f"{variant}.inputs"] = measured["inputs"]
        digest = hashlib.sha256(measured["inputs"].numpy().tobytes()).hexdigest()
        found[variant] = {"distances": measured["distances"], "inputs_sha256": digest}
        if chosen.size == "tiny":
            found[variant]["embeddings"] = [
                [float(f"{x:.8g}") for x in row] for row in measured["embeddings"].tolist()
            ]
    chosen.out.write_text(json.dumps(found))
    if chosen.size == "full":
        save_file(tensors, chosen.out.with_suffix(".safetensors"))


if __name__ == "__main__":
    main()
