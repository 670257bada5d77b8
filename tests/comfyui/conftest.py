"""A real ComfyUI for the tests of this folder; they are skipped, with the reason, without one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .server import (
    ComfyUIMissingError,
    Launcher,
    Server,
    environment_for,
    find_comfyui,
    find_python,
)


@pytest.fixture(scope="session")
def comfyui_path() -> Path:
    """A ComfyUI checkout, as `find_comfyui` finds it."""
    try:
        return find_comfyui()
    except ComfyUIMissingError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="session")
def comfyui_python(comfyui_path: Path) -> Path:
    """The Python that runs that ComfyUI, as `find_python` finds it."""
    try:
        return find_python(comfyui_path)
    except ComfyUIMissingError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="session")
def comfyui_environment(comfyui_path: Path) -> dict[str, str]:
    """The environment of a ComfyUI subprocess."""
    return environment_for(comfyui_path)


class ComfyUIScript:
    """Runs a Python file with ComfyUI's Python, in ComfyUI's folder; fails with its output."""

    def __init__(self, python: Path, folder: Path, environment: dict[str, str]) -> None:
        self.python, self.folder, self.environment = python, folder, environment

    def __call__(self, script: Path, *arguments: str | Path, timeout: float = 300) -> str:
        command = [str(self.python), str(script), *map(str, arguments)]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True,
            timeout=timeout, check=False,
        )  # fmt: skip
        if done.returncode:
            pytest.fail(
                f"{script.name} failed in ComfyUI ({done.returncode}):\n{done.stderr[-4000:]}"
            )
        return done.stdout


@pytest.fixture(scope="session")
def run_in_comfyui(
    comfyui_python: Path, comfyui_path: Path, comfyui_environment: dict[str, str]
) -> ComfyUIScript:
    """`run_in_comfyui(script, *arguments) -> stdout`."""
    return ComfyUIScript(comfyui_python, comfyui_path, comfyui_environment)


@pytest.fixture(scope="session")
def launcher(
    comfyui_python: Path, comfyui_path: Path, comfyui_environment: dict[str, str]
) -> Launcher:
    return Launcher(comfyui_python, comfyui_path, comfyui_environment)


@pytest.fixture(scope="session")
def server(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that most tests share."""
    base = tmp_path_factory.mktemp("comfy")
    launcher.furnish(base)
    with launcher.running(base) as running:
        yield running


@pytest.fixture(scope="session")
def tiny_models(run_in_comfyui: ComfyUIScript, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the files of the published refiners in miniature."""
    from .. import synthetic

    models = tmp_path_factory.mktemp("models")
    for folder in ("diffusion_models", "text_encoders", "vae", "loras", "clip_vision"):
        (models / folder).mkdir()
    run_in_comfyui(Path(__file__).with_name("tiny_published.py"), models)
    for name, weights in (
        ("loras/tiny_imagecritic.safetensors", synthetic.imagecritic_lora(128)),
        ("loras/tiny_omnirefiner.safetensors", synthetic.refiner_lora(width=128)),
        ("loras/tiny_refineany.safetensors", synthetic.refineanything_lora(width=128)),
        ("loras/tiny-Lightning-2steps.safetensors", synthetic.lightning_lora(width=128)),
        ("clip_vision/tiny_detail_encoder.safetensors", synthetic.detail_encoder(text=64)),
    ):
        synthetic.write(models / name, weights)
    return models


# The names that the example workflows carry, and what stands in for those files in the tests.
REAL_NAMES = {
    "diffusion_models/flux1-dev-kontext_fp8_scaled": "tiny_flux",
    "diffusion_models/qwen_image_edit_2511_fp8mixed": "tiny_qwen_edit_2511",
    "diffusion_models/flux-2-klein-4b": "tiny_klein",
    "text_encoders/clip_l": "tiny_clip_l",
    "text_encoders/t5xxl_fp8_e4m3fn_scaled": "tiny_t5xxl",
    "text_encoders/qwen_2.5_vl_7b_fp8_scaled": "tiny_qwen_2.5_vl",
    "text_encoders/qwen_3_4b": "tiny_qwen_3_4b",
    "vae/ae": "tiny_ae",
    "vae/flux2-vae": "tiny_flux2_vae",
    "vae/qwen_image_vae": "tiny_qwen_vae",
    "loras/omnirefiner-kontext": "tiny_omnirefiner",
    "loras/ImageCritic-lora": "tiny_imagecritic",
    "loras/Qwen-Image-Edit-2511-RefineAny": "tiny_refineany",
    "loras/Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16": "tiny-Lightning-2steps",
    "clip_vision/ImageCritic-detail_encoder": "tiny_detail_encoder",
}


@pytest.fixture(scope="session")
def published(server: Server, tiny_models: Path) -> Server:
    """The server with those files in its models folders."""
    for file in tiny_models.glob("*/*"):
        (server.base / "models" / file.relative_to(tiny_models)).symlink_to(file)
    for name, tiny in REAL_NAMES.items():
        link = server.base / "models" / f"{name}.safetensors"
        link.symlink_to(link.with_name(f"{tiny}.safetensors"))
    return server
