"""Text embeddings kept on disk, so that the text encoders can leave memory before training."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from ..interfaces import TextEncoder
from ..weights.safetensors_io import save_weights

_IN_MEMORY = 64  # embeddings: T5's of one prompt takes 8 MB, and a data set may have thousands


class TextCache:
    """Encodes each prompt once and stores the embedding; `encoder` can then be set to None."""

    def __init__(self, encoder: TextEncoder, length: int, folder: Path) -> None:
        self.encoder: TextEncoder | None = encoder
        self.length, self.folder = length, folder
        self._recent = lru_cache(_IN_MEMORY)(self._load)

    def __call__(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Text embeddings 1 L D and pooled embedding 1 P, float32."""
        return self._recent(prompt)

    def _load(self, prompt: str) -> tuple[Tensor, Tensor]:
        key = hashlib.sha256(f"{self.length}/{prompt}".encode()).hexdigest()[:24]
        path = self.folder / f"text-{key}.safetensors"
        if not path.exists():
            assert self.encoder is not None, "the prompt was not encoded during preparation"
            self.folder.mkdir(parents=True, exist_ok=True)
            text, pooled = self.encoder(prompt, self.length)
            save_weights(path, {"text": text, "pooled": pooled})
        sd = load_file(path)
        return sd["text"].float(), sd["pooled"].float()
