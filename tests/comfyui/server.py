"""A ComfyUI to test and measure with: where it is, and a server of it with this pack."""

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

ROOT = Path(__file__).resolve().parents[2]
_MARKS = ("comfy/sd.py", "main.py", "folder_paths.py")


class ComfyUIMissingError(ValueError):
    """There is no ComfyUI, or no Python to run it with; says what is missing."""


def find_comfyui() -> Path:
    """A ComfyUI checkout: $COMFYUI_PATH, one around this pack, ~/comfy/ComfyUI or ~/ComfyUI.

    Raises:
        ComfyUIMissingError: there is none.
        ValueError: $COMFYUI_PATH is not a ComfyUI folder.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        if not _is_comfyui(Path(named)):
            raise ValueError(f"COMFYUI_PATH={named} is not a ComfyUI folder: it lacks {_MARKS[0]}.")
        return Path(named).resolve()
    places = [*ROOT.parents, Path.home() / "comfy" / "ComfyUI", Path.home() / "ComfyUI"]
    for place in places:
        if _is_comfyui(place):
            return place
    raise ComfyUIMissingError(
        "no ComfyUI: COMFYUI_PATH is not set, and there is none around the pack or at home"
    )


def _is_comfyui(folder: Path) -> bool:
    return all((folder / mark).is_file() for mark in _MARKS)


def find_python(comfyui: Path) -> Path:
    """The Python that runs that ComfyUI: $COMFYUI_PYTHON, or the one in its virtual environment.

    Raises:
        ComfyUIMissingError: there is none.
    """
    named = os.environ.get("COMFYUI_PYTHON")
    places = [Path(named)] if named else []
    for environment in (".venv", "venv"):
        places += [
            comfyui / environment / "bin" / "python",
            comfyui / environment / "Scripts" / "python.exe",
        ]
    places += [comfyui.parent / "python_embeded" / "python.exe"]
    found = next((p for p in places if p.is_file()), None)
    if found is None:
        raise ComfyUIMissingError(
            f"no Python for {comfyui}: set COMFYUI_PYTHON, or make a .venv in it"
        )
    return found


def environment_for(comfyui: Path) -> dict[str, str]:
    """The environment of a ComfyUI subprocess: one thread, offline, nothing of ours on its path."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    own = {
        "COMFYUI_PATH": str(comfyui),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
    }
    if "GGUF_PACKAGE" in inherited:  # a folder with the package gguf, for $COMFYUI_GGUF
        own["PYTHONPATH"] = inherited["GGUF_PACKAGE"]
    return inherited | own


class Server:
    """A ComfyUI with this pack in it, on a port of its own."""

    def __init__(self, base: Path, url: str, log: Path, pid: int) -> None:
        self.base, self.url, self.log, self.pid = base, url, log, pid

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
# takes minutes on a CPU. The third hands on what is no IMAGE and no MASK, as nodes of some packs do.
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

class Odd:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"image": ("IMAGE",), "how": ("STRING",)}})
    RETURN_TYPES, FUNCTION = ("IMAGE", "MASK"), "make"

    def make(self, image, how):
        kinds = {
            "list": lambda x: [x], "array": lambda x: x.numpy(), "bytes": lambda x: x * 255,
            "bfloat16": lambda x: x.bfloat16(),
        }
        return kinds[how](image), kinds[how](image[..., 0])

NODE_CLASS_MAPPINGS = {"Deaf": Deaf, "Traced": Traced, "Odd": Odd}
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
            server = Server(base, f"http://127.0.0.1:{port}", log, process.pid)
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
                    said = server.log.read_text()[-4000:]
                    raise RuntimeError(f"ComfyUI did not start:\n{said}") from None
                time.sleep(0.3)
