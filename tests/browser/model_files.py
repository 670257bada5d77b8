"""The model files that the example workflows name, in the form of ComfyUI's `models` entries.

ComfyUI's page offers to download them when a workflow is opened in which they are missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class ModelFile:
    """A file in one of the folders in `models`.

    `path` is its address on Hugging Face below `HUB`, None if it has not been published; `sha256` is
    its checksum where a second source confirms it; `vram` is what a workflow with this diffusion model
    needs, in GB, as docs/models.md estimates it.
    """

    name: str
    folder: str
    path: str | None
    sha256: str | None = None
    vram: int | None = None

    def entry(self) -> dict[str, str]:
        """The entry in `properties.models` of the node that loads the file."""
        out = {"name": self.name, "url": f"{HUB}/{self.path}", "directory": self.folder}
        if self.sha256:
            out |= {"hash": self.sha256, "hash_type": "SHA256"}
        return out

    def line(self) -> str:
        """The line about the file in a note: its folder and where to get it."""
        if self.path is None:
            return f"- `{self.folder}`: {self.name} (not published, see below)"
        return f"- `{self.folder}`: [{self.name}]({HUB}/{self.path})"


_ENCODERS = "comfyanonymous/flux_text_encoders/resolve/main"
_QWEN = "Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files"
_KLEIN = "Comfy-Org/flux2-klein/resolve/main/split_files"

FILES = {
    f.name: f
    for f in (
        ModelFile(
            "flux1-dev-kontext_fp8_scaled.safetensors",
            "diffusion_models",
            "Comfy-Org/flux1-kontext-dev_ComfyUI/resolve/main/split_files/diffusion_models/"
            "flux1-dev-kontext_fp8_scaled.safetensors",
            "630ba795ec64283b4230ea23cf79406c2c68b7c578229ed139f30043eadb30a2",
            vram=14,
        ),
        ModelFile(
            "clip_l.safetensors",
            "text_encoders",
            f"{_ENCODERS}/clip_l.safetensors",
            "660c6f5b1abae9dc498ac2d21e1347d2abdb0cf6c0c0c8576cd796491d9a6cdd",
        ),
        ModelFile(
            "t5xxl_fp8_e4m3fn_scaled.safetensors",
            "text_encoders",
            f"{_ENCODERS}/t5xxl_fp8_e4m3fn_scaled.safetensors",
            "a498f0485dc9536735258018417c3fd7758dc3bccc0a645feaa472b34955557a",
        ),
        ModelFile(
            "ae.safetensors",
            "vae",
            "Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae/ae.safetensors",
            "afc8e28272cd15db3919bacdb6918ce9c1ed22e96cb12c4d5ed0fba823529e38",
        ),
        ModelFile("omnirefiner-kontext.safetensors", "loras", None),
        ModelFile(
            "ImageCritic-lora.safetensors",
            "loras",
            "ziheng1234/ImageCritic/resolve/main/lora.safetensors",
        ),
        ModelFile(
            "ImageCritic-detail_encoder.safetensors",
            "clip_vision",
            "ziheng1234/ImageCritic/resolve/main/detail_encoder.safetensors",
        ),
        ModelFile(
            "qwen_image_edit_2511_fp8mixed.safetensors",
            "diffusion_models",
            "Comfy-Org/Qwen-Image-Edit_ComfyUI/resolve/main/split_files/diffusion_models/"
            "qwen_image_edit_2511_fp8mixed.safetensors",
            vram=23,
        ),
        ModelFile(
            "qwen_2.5_vl_7b_fp8_scaled.safetensors",
            "text_encoders",
            f"{_QWEN}/text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors",
            "cb5636d852a0ea6a9075ab1bef496c0db7aef13c02350571e388aea959c5c0b4",
        ),
        ModelFile(
            "qwen_image_vae.safetensors",
            "vae",
            f"{_QWEN}/vae/qwen_image_vae.safetensors",
            "a70580f0213e67967ee9c95f05bb400e8fb08307e017a924bf3441223e023d1f",
        ),
        ModelFile(
            "Qwen-Image-Edit-2511-RefineAny.safetensors",
            "loras",
            "limuloo1999/RefineAnything/resolve/main/Qwen-Image-Edit-2511-RefineAny.safetensors",
        ),
        ModelFile(
            "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors",
            "loras",
            "lightx2v/Qwen-Image-Edit-2511-Lightning/resolve/main/"
            "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors",
            "22226e8d05d354bb356627d428809f5afd7819399b077238a2b70a82883a904f",
        ),
        ModelFile(
            "flux-2-klein-4b.safetensors",
            "diffusion_models",
            f"{_KLEIN}/diffusion_models/flux-2-klein-4b.safetensors",
            vram=10,
        ),
        ModelFile(
            "qwen_3_4b.safetensors",
            "text_encoders",
            f"{_KLEIN}/text_encoders/qwen_3_4b.safetensors",
        ),
        ModelFile(
            "sam3.1_multiplex_fp16.safetensors",
            "checkpoints",
            "Comfy-Org/sam3.1/resolve/main/checkpoints/sam3.1_multiplex_fp16.safetensors",
        ),
        ModelFile(
            "flux2-vae.safetensors",
            "vae",
            "Comfy-Org/flux2-dev/resolve/main/split_files/vae/flux2-vae.safetensors",
        ),
    )
}


def named(values: Any) -> list[ModelFile]:
    """The model files among a node's widget values, in their order.

    Raises:
        KeyError: a file that is missing in `FILES`.
    """
    names = (v for v in values if isinstance(v, str) and v.endswith(".safetensors"))
    return [FILES[name] for name in names]


def file_list(*nodes: dict[str, Any]) -> str:
    """The part of a note that lists the files of these nodes."""
    files = {f.name: f for node in nodes for f in named(node.values())}
    lines = "\n".join(f.line() for f in files.values())
    return (
        f"**Model files.** Put each file into this folder in ComfyUI's `models` folder:\n\n{lines}\n\n"
        "You can also choose other files in the loader nodes." + _vram(files.values())
    )


def _vram(files: Iterable[ModelFile]) -> str:
    most = max((f.vram for f in files if f.vram), default=None)
    if most is None:
        return ""
    return (
        f" About {most} GB of VRAM are needed (an estimate). With less, ComfyUI keeps a part of the "
        "model in main memory and runs slower."
    )


def add_models(workflow: dict[str, Any]) -> None:
    """Give every node that loads published files its `models` entries."""
    for node in workflow["nodes"]:
        values = node.get("widgets_values")
        entries = [f.entry() for f in named(values or []) if f.path]
        if entries:
            node["properties"]["models"] = entries
