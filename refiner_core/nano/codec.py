"""The nano refiner's latent codec: 4x4 pixel blocks to 16 numbers, linear and exact to invert.

Each 4x4 RGB block (48 numbers) is projected on its 16 leading principal components. That is a
JPEG-like autoencoder without training: about 34 dB on photographs, and the decoder costs nothing.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 4
CHANNELS = 16


class BlockCodec(nn.Module):
    """`encode` maps images B 3 H W in [0, 1] to latents B 16 H/4 W/4; `decode` maps them back.

    The components are orthonormal; channel c is scaled by `scale[c]`, the inverse square root of
    its standard deviation: between whitening (which would make faint texture as loud as shape)
    and none (which would leave all but the block's mean at the noise floor).
    """

    mean: Tensor
    components: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        size = 3 * BLOCK * BLOCK
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("components", torch.eye(CHANNELS, size))
        self.register_buffer("scale", torch.ones(CHANNELS))

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Take mean and principal components from images B 3 H W in [0, 1]."""
        blocks = F.unfold(images.double(), BLOCK, stride=BLOCK).transpose(1, 2).reshape(-1, 48)
        mean = blocks.mean(0)
        centred = blocks - mean
        _, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        components = vectors.flip(1).T[:CHANNELS]
        # The sign of an eigenvector is arbitrary: fix it, so that a refit gives the same codec.
        components = components * torch.where(components.sum(1, keepdim=True) < 0, -1.0, 1.0)
        deviation = (centred @ components.T).std(0).clamp_min(1e-6)
        scale = deviation.rsqrt()
        scale = scale / (deviation * scale).square().mean().sqrt()  # unit mean power
        self.mean.copy_(mean)
        self.components.copy_(components)
        self.scale.copy_(scale)

    def fingerprint(self) -> str:
        """8 hex digits that identify its weights: latents of one codec are useless to another."""
        digest = hashlib.sha256()
        for _, buffer in self.named_buffers():
            digest.update(buffer.cpu().numpy().tobytes())
        return digest.hexdigest()[:8]

    def encode(self, images: Tensor) -> Tensor:
        """Images B 3 H W, sides multiples of 4, to latents.

        Raises:
            ValueError: a side is not a multiple of 4.
        """
        h, w = images.shape[-2:]
        if h % BLOCK or w % BLOCK:
            raise ValueError(f"The nano codec takes sides that are multiples of 4, got {w}x{h}.")
        blocks = F.unfold(images, BLOCK, stride=BLOCK).transpose(1, 2)
        z = (blocks - self.mean) @ self.components.T * self.scale
        return z.transpose(1, 2).reshape(len(images), CHANNELS, h // BLOCK, w // BLOCK)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents B 16 h w to images B 3 4h 4w, not clamped."""
        h, w = latents.shape[-2:]
        z = latents.flatten(2).transpose(1, 2) / self.scale
        blocks = z @ self.components + self.mean
        return F.fold(blocks.transpose(1, 2), (h * BLOCK, w * BLOCK), BLOCK, stride=BLOCK)
