"""A real ComfyUI for the tests of this folder; they are skipped, with the reason, without one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
_MARKS = ("comfy/sd.py", "main.py", "folder_paths.py")


def _is_comfyui(folder: Path) -> bool:
    return all((folder / mark).is_file() for mark in _MARKS)


@pytest.fixture(scope="session")
def comfyui_path() -> Path:
    """A ComfyUI checkout: $COMFYUI_PATH, one around this pack, ~/comfy/ComfyUI or ~/ComfyUI."""
    named = os.environ.get("COMFYUI_PATH")
    if named:
        if not _is_comfyui(Path(named)):
            pytest.fail(f"COMFYUI_PATH={named} is not a ComfyUI folder: it lacks {_MARKS[0]}.")
        return Path(named).resolve()
    places = [*ROOT.parents, Path.home() / "comfy" / "ComfyUI", Path.home() / "ComfyUI"]
    for place in places:
        if _is_comfyui(place):
            return place
    pytest.skip("no ComfyUI: COMFYUI_PATH is not set, and there is none around the pack or at home")


@pytest.fixture(scope="session")
def comfyui_python(comfyui_path: Path) -> Path:
    """The Python that runs that ComfyUI: $COMFYUI_PYTHON, or the one in its virtual environment."""
    named = os.environ.get("COMFYUI_PYTHON")
    places = [Path(named)] if named else []
    for environment in (".venv", "venv"):
        places += [
            comfyui_path / environment / "bin" / "python",
            comfyui_path / environment / "Scripts" / "python.exe",
        ]
    places += [comfyui_path.parent / "python_embeded" / "python.exe"]
    found = next((p for p in places if p.is_file()), None)
    if found is None:
        pytest.skip(f"no Python for {comfyui_path}: set COMFYUI_PYTHON, or make a .venv in it")
    return found


@pytest.fixture(scope="session")
def comfyui_environment(comfyui_path: Path) -> dict[str, str]:
    """The environment of a ComfyUI subprocess: one thread, offline, nothing of ours on its path."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    own = {
        "COMFYUI_PATH": str(comfyui_path),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
    }
    if "GGUF_PACKAGE" in inherited:  # a folder with the package gguf, for $COMFYUI_GGUF
        own["PYTHONPATH"] = inherited["GGUF_PACKAGE"]
    return inherited | own


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


class Server:
    """A ComfyUI with this pack in it, on a port of its own."""

    def __init__(self, base: Path, url: str, log: Path) -> None:
        self.base, self.url, self.log = base, url, log

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as answer:
            return json.load(answer)

    def post(self, path: str, data: dict[str, Any]) -> tuple[int, Any]:
        """Status and JSON of a POST; errors of the server are answers here."""
        request = urllib.request.Request(
            f"{self.url}{path}", json.dumps(data).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                body = answer.read()
                return answer.status, json.loads(body) if body else None
        except urllib.error.HTTPError as e:
            return e.code, json.loads(e.read())

    def queue(self, graph: dict[str, Any], client: str = "tests") -> str:
        """Queue an API-format graph; its prompt id."""
        status, answer = self.post("/prompt", {"prompt": graph, "client_id": client})
        assert status == 200, answer
        return answer["prompt_id"]

    def wait(self, prompt_id: str, seconds: float = 180) -> dict[str, Any]:
        """The history entry of a prompt once it has ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            history = {}
            with suppress(TimeoutError):  # a busy server may answer late
                history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.2)
        raise AssertionError(f"prompt did not end in {seconds} s:\n{self.log.read_text()[-3000:]}")

    def run(self, graph: dict[str, Any], seconds: float = 180) -> dict[str, Any]:
        """Run a graph to its end; fails with ComfyUI's message if it does not succeed."""
        entry = self.wait(self.queue(graph), seconds)
        assert entry["status"]["status_str"] == "success", self.error(entry)
        return entry

    @staticmethod
    def error(entry: dict[str, Any]) -> str:
        """The message of the exception that ended a prompt, or an empty string."""
        for kind, message in entry["status"]["messages"]:
            if kind == "execution_error":
                return str(message["exception_message"])
        return ""

    def saved(self, entry: dict[str, Any], node: str) -> list[Path]:
        """The files a Save Image node wrote."""
        images = entry["outputs"][node]["images"]
        return [self.base / "output" / i["subfolder"] / i["filename"] for i in images]


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# A pack whose first node drops the reference method on its way to the model, as Nunchaku's wrapper
# does; its second compiles a model as TorchCompileModel does, but leaves out the code generator, which
# takes minutes on a CPU.
DEAF_NODE = """
class Deaf:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",)}})
    RETURN_TYPES, FUNCTION = ("MODEL",), "wrap"

    def wrap(self, model):
        def call(apply_model, args):
            c = {k: v for k, v in args["c"].items() if k != "ref_latents_method"}
            return apply_model(args["input"], args["timestep"], **c)
        model = model.clone()
        model.set_model_unet_function_wrapper(call)
        return (model,)

class Traced:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",)}})
    RETURN_TYPES, FUNCTION = ("MODEL",), "wrap"

    def wrap(self, model):
        from comfy_api.torch_helpers import set_torch_compile_wrapper
        model = model.clone()
        set_torch_compile_wrapper(model=model, backend="eager")
        return (model,)

NODE_CLASS_MAPPINGS = {"Deaf": Deaf, "Traced": Traced}
"""


def write_tiny_models(folder: Path) -> None:
    """A random FLUX in Kontext's layout and a TAESD-layout autoencoder for the stock loaders."""
    import torch
    from diffusers import AutoencoderTiny, FluxTransformer2DModel
    from safetensors.torch import save_file

    from refiner_core.nano.initialisation import nano_config

    torch.manual_seed(0)
    config = {**nano_config(single=1), "guidance_embeds": True}
    flux = FluxTransformer2DModel(**config).state_dict()
    save_file(flux, folder / "diffusion_models" / "tiny_kontext.safetensors")
    vae = {}
    for key, value in AutoencoderTiny(latent_channels=16).state_dict().items():
        part, _, number, rest = key.split(".", 3)
        shifted = int(number) + (part == "decoder")
        # torch's own initialisation lets a picture fade away on its way through.
        vae[f"taesd_{part}.{shifted}.{rest}"] = value * (1.8 if value.ndim == 4 else 1.0)
    vae |= {"vae_scale": torch.tensor(0.3611), "vae_shift": torch.tensor(0.1159)}
    save_file(vae, folder / "vae" / "tiny_ae.safetensors")


class Launcher:
    """Starts servers whose custom_nodes holds this pack, as a user's would."""

    def __init__(self, python: Path, folder: Path, environment: dict[str, str]) -> None:
        self.python, self.folder, self.environment = python, folder, environment

    @staticmethod
    def furnish(base: Path) -> None:
        """Lay out a base directory: this pack, the deaf node, miniature models, no tutorial."""
        for folder in ("custom_nodes", "input", "output", "models/diffusion_models", "models/vae",
                       "models/loras", "models/text_encoders", "models/clip_vision",
                       "models/omnirefiner_recipes", "user/default"):  # fmt: skip
            (base / folder).mkdir(parents=True)
        (base / "user/default/comfy.settings.json").write_text('{"Comfy.TutorialCompleted": true}')
        (base / "custom_nodes" / "comfyui-omnirefiner").symlink_to(ROOT)
        (base / "custom_nodes" / "deaf.py").write_text(DEAF_NODE)
        sizes = Path(__file__).with_name("tiny_sizes.py")
        (base / "custom_nodes" / "tiny_sizes.py").symlink_to(sizes)
        if os.environ.get("COMFYUI_GGUF"):
            gguf = Path(os.environ["COMFYUI_GGUF"]).resolve()
            (base / "custom_nodes" / "ComfyUI-GGUF").symlink_to(gguf)
        write_tiny_models(base / "models")

    @contextmanager
    def running(
        self, base: Path, port: int | None = None, options: Sequence[str] = ()
    ) -> Iterator[Server]:
        """A server on a furnished base, killed at the end; `port` None takes a free one."""
        port, log = port or _free_port(), base / "server.log"
        command = [
            str(self.python), "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port),
            "--base-directory", str(base), "--database-url", "sqlite:///:memory:",
            "--disable-api-nodes", "--disable-auto-launch", "--preview-method", "latent2rgb", *options,
        ]  # fmt: skip
        with log.open("w") as stream:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=stream, stderr=stream
            )
            server = Server(base, f"http://127.0.0.1:{port}", log)
            try:
                self._wait(server, process)
                yield server
            finally:
                process.terminate()
                process.wait(30)

    @staticmethod
    def _wait(server: Server, process: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + 180
        while True:
            try:
                server.get("/system_stats")
                return
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    pytest.fail(f"ComfyUI did not start:\n{server.log.read_text()[-4000:]}")
                time.sleep(0.3)


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
