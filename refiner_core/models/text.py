"""FLUX's text encoders, CLIP-L and T5, for the core engine.

Weights come from a diffusers folder or from the single files of ComfyUI's users, tokenizers from
wherever this machine has them; nothing is downloaded. The encoders are loaded at the first prompt,
the small tokenizers at once, so that a missing one is told before anything large is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,  # pyright: ignore[reportAttributeAccessIssue] made at import time
)

from ..weights.safetensors_io import check_weights_path, fill, read_folder, read_weights
from ..weights.transformer import count_parameters
from .triggers import tokenize_triggers

CLIP_LENGTH = 77
_CLIP_HEAD = 64
_KONTEXT = "black-forest-labs/FLUX.1-Kontext-dev"


@dataclass(frozen=True)
class _Kind:
    """A tokenizer: where it lies in other people's folders, and the sets of files that make one."""

    name: str
    loader: Any
    places: tuple[str, ...]
    files: tuple[tuple[str, ...], ...]
    hub: tuple[tuple[str, str], ...]


_CLIP = _Kind(
    "CLIP",
    CLIPTokenizer,
    ("tokenizer", "clip_l", "comfy/sd1_tokenizer"),
    (("vocab.json", "merges.txt"), ("tokenizer.json",)),
    (("openai/clip-vit-large-patch14", ""), (_KONTEXT, "tokenizer/")),
)
_T5 = _Kind(
    "T5",
    T5TokenizerFast,
    ("tokenizer_2", "t5xxl", "comfy/text_encoders/t5_tokenizer"),
    (("tokenizer.json",), ("spiece.model",)),
    (("google/t5-v1_1-xxl", ""), (_KONTEXT, "tokenizer_2/")),
)


def comfyui_folders(start: Path | None = None) -> Iterator[Path]:
    """ComfyUI checkouts on this machine: $COMFYUI_PATH, around this file and `start`, at home."""
    named = os.environ.get("COMFYUI_PATH")
    places = [Path(named)] if named else []
    places += [*Path(__file__).resolve().parents, *(start.resolve().parents if start else ())]
    places += [Path.home() / "comfy" / "ComfyUI", Path.home() / "ComfyUI"]
    return (p for p in places if (p / "comfy" / "sd1_tokenizer").is_dir())


def _find(roots: Sequence[Path], kind: _Kind) -> Path | None:
    """The folder of a tokenizer. transformers 5 makes an empty one, silently, where files lack."""
    for root in roots:
        for place in kind.places:
            if any(all((root / place / f).is_file() for f in files) for files in kind.files):
                return root / place
    for repository, folder in kind.hub:
        for files in kind.files:
            cached = [try_to_load_from_cache(repository, folder + f) for f in files]
            if all(isinstance(c, str) for c in cached):
                return Path(str(cached[0])).parent
    return None


def load_tokenizers(roots: Sequence[Path]) -> tuple[Any, Any]:
    """CLIP's and T5's tokenizers, from the first of `roots` that has them or Hugging Face's cache.

    Raises:
        ValueError: one of them is nowhere; says where to put it.
    """
    return _load_tokenizer(roots, _CLIP), _load_tokenizer(roots, _T5)


def _load_tokenizer(roots: Sequence[Path], kind: _Kind) -> Any:
    folder = _find(roots, kind)
    if folder is None:
        looked = ", ".join(str(r) for r in roots) or "no folder"
        raise ValueError(
            f"No {kind.name} tokenizer was found (looked in {looked} and Hugging Face's cache). "
            f"Give --tokenizers FOLDER with {kind.places[0]}/{kind.files[0][0]}, or set "
            "COMFYUI_PATH to a ComfyUI folder, which carries it."
        )
    return kind.loader.from_pretrained(str(folder))


def _read(
    path: Path, dtype: torch.dtype, what: str, kind: Any
) -> tuple[dict[str, Tensor], Any | None]:
    """The weights of a transformers folder with its configuration, or those of a single file."""
    if path.is_dir():
        return read_folder(path, dtype, what), kind.from_pretrained(str(path))
    return read_weights(path, dtype, what), None


def load_clip(path: Path, dtype: torch.dtype) -> CLIPTextModel:
    """CLIP's text model from a transformers folder or a single file (clip_l.safetensors).

    Raises:
        ValueError: unreadable, or not a CLIP text model.
    """
    sd, config = _read(path, dtype, "CLIP text encoder", CLIPTextConfig)
    marker = "embeddings.token_embedding.weight"
    start = next((k.removesuffix(marker) for k in sd if k.endswith(marker)), None)
    if start is None:
        raise ValueError(f"{path} is not a CLIP text encoder ({marker} is missing): take clip_l.")
    # A projection and a logit scale may stand beside the text model; FLUX uses neither.
    own = tuple(start + part for part in ("embeddings.", "encoder.", "final_layer_norm."))
    sd = {k.removeprefix(start): v for k, v in sd.items() if k.startswith(own)}
    sd.pop("embeddings.position_ids", None)
    config = config or _clip_config(sd)
    with torch.device("meta"):
        model = CLIPTextModel(config)
    # transformers 5 dropped the level that older files and versions have.
    inner = "text_model." if any(k.startswith("text_model.") for k in model.state_dict()) else ""
    fill(model, {inner + k: v for k, v in sd.items()}, str(path))
    for name, _ in list(model.named_buffers()):
        assert name.endswith("position_ids"), name  # the only one, and in no file
        owner = model.get_submodule(name.rpartition(".")[0])
        ids = torch.arange(config.max_position_embeddings)[None]
        owner.register_buffer("position_ids", ids, persistent=False)
    return model


def _clip_config(sd: dict[str, Tensor]) -> CLIPTextConfig:
    vocabulary, width = sd["embeddings.token_embedding.weight"].shape
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=len(sd["encoder.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=len({k.split(".")[2] for k in sd if k.startswith("encoder.layers.")}),
        num_attention_heads=max(1, width // _CLIP_HEAD),
        max_position_embeddings=len(sd["embeddings.position_embedding.weight"]),
        hidden_act="quick_gelu",
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,  # the pooled embedding is read at the first of these
        pad_token_id=vocabulary - 1,
    )


def load_t5(path: Path, dtype: torch.dtype) -> T5EncoderModel:
    """T5's encoder from a transformers folder or a single file (t5xxl_*.safetensors).

    Raises:
        ValueError: unreadable, or not a T5 encoder.
    """
    sd, config = _read(path, dtype, "T5 text encoder", T5Config)
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    words = sd.get("shared.weight", sd.get("encoder.embed_tokens.weight"))
    if bias not in sd or words is None:
        raise ValueError(f"{path} is not a T5 text encoder: take t5xxl_fp16 or t5xxl_fp8.")
    # Whole T5 files carry a decoder too; a text encoder has no use for it.
    sd = {k: v for k, v in sd.items() if k.startswith("encoder.")}
    sd["shared.weight"] = sd["encoder.embed_tokens.weight"] = words
    config = config or _t5_config(sd, bias)
    with torch.device("meta"):
        model = T5EncoderModel(config)
    fill(model, sd, str(path))
    return model


def _t5_config(sd: dict[str, Tensor], bias: str) -> T5Config:
    buckets, heads = sd[bias].shape
    block = "encoder.block.0.layer."
    return T5Config(
        vocab_size=len(sd["shared.weight"]),
        d_model=sd["shared.weight"].shape[1],
        d_kv=len(sd[f"{block}0.SelfAttention.q.weight"]) // heads,
        d_ff=len(sd[f"{block}1.DenseReluDense.wi_0.weight"]),
        num_layers=len({k.split(".")[2] for k in sd if k.startswith("encoder.block.")}),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
    )


_KEPT = 8  # prompts whose embeddings are remembered, 4 to 8 MB each


class FluxText:
    """The `TextEncoder` of a core engine: (prompt, T5 length) to text 1 L D and pooled 1 P.

    `clip` and `t5` are files or transformers folders, `roots` folders in which tokenizers may be;
    the encoders are read at the first prompt, and the last few prompts are remembered.

    Raises:
        ValueError: an encoder is no readable file or folder, or a tokenizer is not to be found.
    """

    def __init__(self, clip: Path, t5: Path, roots: Sequence[Path], device: torch.device) -> None:
        self.clip, self.t5, self.device = clip, t5, device
        self._models: tuple[CLIPTextModel, T5EncoderModel] | None = None
        self._known: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        for path in (clip, t5):
            if not path.is_dir():
                check_weights_path(path, "text encoder")
        self._tokenizers = load_tokenizers(roots)

    def __call__(self, prompt: str, length: int) -> tuple[Tensor, Tensor]:
        if length < 1:
            raise ValueError(f"The T5 length must be at least 1 token, got {length}.")
        if (prompt, length) not in self._known:
            while len(self._known) >= _KEPT:
                del self._known[next(iter(self._known))]
            self._known[prompt, length] = self._encode(prompt, length)
        return self._known[prompt, length]

    def to(self, device: torch.device) -> None:
        """Encode on a device from now on, as far as there is room for the encoders."""
        self.device = device

    def release(self) -> None:
        """Let the encoders go; a prompt that comes later reads them again."""
        self._models = None

    def with_triggers(
        self, prompt: str, words: Sequence[str], length: int
    ) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """The same for a prompt with trigger words, which are tokens to T5 only; their positions.

        Raises:
            ValueError: a word is not in the prompt.
        """
        found = tokenize_triggers(self._tokenizers[1], prompt, words, length)
        return *self._encode(prompt, length, torch.tensor([found.ids])), found.positions

    @torch.no_grad()
    def _encode(
        self, prompt: str, length: int, t5_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if self._models is None:
            self._models = (
                load_clip(self.clip, text_dtype(self.clip, self.device)),
                load_t5(self.t5, text_dtype(self.t5, self.device)),
            )
        clip, t5 = self._models
        clip_tokens, t5_tokens = self._tokenizers
        short = min(CLIP_LENGTH, clip.config.max_position_embeddings)
        pooled = _run(clip, _ids(clip_tokens, prompt, short), self.device)
        ids = _ids(t5_tokens, prompt, length) if t5_ids is None else t5_ids
        text = _run(t5, ids, self.device)
        return text.last_hidden_state.cpu(), pooled.pooler_output.cpu()


def _ids(tokenizer: Any, prompt: str, length: int) -> Tensor:
    tokens = tokenizer(
        prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    return cast(Tensor, tokens.input_ids)


def _run(model: nn.Module, ids: Tensor, device: torch.device) -> Any:
    """Run on the device if there is room beside the transformer, and leave that room again."""
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] > 1.2 * size + 2**30:
        out = model.to(device)(ids.to(device))
        model.to("cpu")
        return out
    return model(ids)


def text_dtype(path: Path, device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU and for large encoders, else float32."""
    if device.type == "cuda":
        return torch.bfloat16
    return torch.float32 if count_parameters(path) < 2e9 else torch.bfloat16
