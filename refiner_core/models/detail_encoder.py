"""ImageCritic's detail encoder: a CLIP picture tower whose output is fused into one text token.

Ouyang et al., ImageCritic (arXiv 2511.20614): the T5 embedding of a trigger word is replaced by a
mixture of itself and the picture that it stands for. Written after the weights' names and shapes;
every size comes from the file, so it also holds at other widths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..weights.safetensors_io import read_weights

Loading = Literal["assign", "add"]
_HEAD = 64  # CLIP's width of an attention head
_MARK = "fuse_module.layer_norm.weight"
_NEEDED = (_MARK, "vision_model.embeddings.patch_embedding.weight", "visual_projection_2.weight")


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            p(x).unflatten(-1, (-1, _HEAD)).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _QuickMLP(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))  # CLIP's quick GELU


class _Layer(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = _Attention(width), _QuickMLP(width, inner)
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _Embeddings(nn.Module):
    def __init__(self, width: int, patch: int, tokens: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, patch, patch, bias=False)
        self.position_embedding = nn.Embedding(tokens, width)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embedding(image).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(x), 1, -1)
        return torch.cat([first, x], 1) + self.position_embedding.weight


class _Encoder(nn.Module):
    def __init__(self, width: int, inner: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width, inner) for _ in range(depth))


class _VisionModel(nn.Module):
    def __init__(self, width: int, inner: int, depth: int, patch: int, tokens: int) -> None:
        super().__init__()
        self.embeddings = _Embeddings(width, patch, tokens)
        self.pre_layrnorm = nn.LayerNorm(width)  # spelled like this in every CLIP file
        self.encoder = _Encoder(width, inner, depth)
        self.post_layernorm = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> Tensor:
        x = self.pre_layrnorm(self.embeddings(image))
        for layer in self.encoder.layers:
            x = layer(x)
        return self.post_layernorm(x[:, 0])


class _FuseMLP(nn.Module):
    def __init__(self, inputs: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(inputs)
        self.fc1, self.fc2 = nn.Linear(inputs, inner), nn.Linear(inner, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.layernorm(x))))


class _FuseModule(nn.Module):
    def __init__(self, text: int, picture: int) -> None:
        super().__init__()
        self.mlp1 = _FuseMLP(text + picture, text, text)
        self.mlp2 = _FuseMLP(text, text, text)
        self.layer_norm = nn.LayerNorm(text)

    def forward(self, text: Tensor, picture: Tensor) -> Tensor:
        x = self.mlp1(torch.cat([text, picture], -1)) + text
        return self.layer_norm(self.mlp2(x) + x)


class DetailEncoder(nn.Module):
    """`encoder(image, embedding)`: the embedding of a trigger word, told what its picture shows.

    `image` B 3 H W in [0, 1] at any size, `embedding` B D of the text encoder; returns B D.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        width, _, patch, _ = shapes["vision_model.embeddings.patch_embedding.weight"]
        tokens = shapes["vision_model.embeddings.position_embedding.weight"][0]
        inner = shapes["vision_model.encoder.layers.0.mlp.fc1.weight"][0]
        layer = "vision_model.encoder.layers."
        depth = len({k[len(layer) :].split(".")[0] for k in shapes if k.startswith(layer)})
        first = shapes["visual_projection.weight"][0]
        second = shapes["visual_projection_2.weight"][0]
        self.side = math.isqrt(tokens - 1) * patch
        self.vision_model = _VisionModel(width, inner, depth, patch, tokens)
        self.visual_projection = nn.Linear(width, first, bias=False)
        self.visual_projection_2 = nn.Linear(width, second, bias=False)
        self.fuse_module = _FuseModule(shapes[_MARK][0], first + second)

    def forward(self, image: Tensor, embedding: Tensor) -> Tensor:
        weight = self.visual_projection.weight
        # Trained on [-1, 1], without CLIP's own mean and deviation.
        x = (2 * image - 1).to(weight)
        x = F.interpolate(x, (self.side, self.side), mode="bilinear", align_corners=False)
        seen = self.vision_model(x)
        picture = torch.cat([self.visual_projection(seen), self.visual_projection_2(seen)], -1)
        return self.fuse_module(embedding.to(weight), picture)


def fill_triggers(
    encoder: Callable[[Tensor, Tensor], Tensor],
    text: Tensor,
    positions: Sequence[int],
    pictures: Sequence[Tensor],
) -> Tensor:
    """Text embeddings B L D with the tokens at `positions` told of their pictures, one by one."""
    out = text.clone()
    for at, picture in zip(positions, pictures, strict=True):
        out[:, at] = encoder(picture, out[:, at]).to(out)
    return out


def loading_of(sd: Mapping[str, Tensor]) -> Loading:
    """Whether a file holds whole weights ("assign") or what is added to random ones ("add").

    Told by the last norm's weight, which is about 1 in whole weights and about 0 in a difference.
    """
    return "assign" if float(sd[_MARK].float().mean()) > 0.5 else "add"


def load_detail_encoder(
    path: str | Path, loading: Loading | None = None, seed: int = 0
) -> tuple[DetailEncoder, Loading]:
    """The detail encoder of a file, in float32, and how it was loaded.

    Args:
        path: detail_encoder.safetensors.
        loading: "assign" takes the file's weights; "add" adds them to random ones, as the published
            code does (with no seed, so that its results differ from start to start). None looks at
            the file.
        seed: of those random weights.

    Raises:
        ValueError: another kind of file, or weights missing or left over (named).
    """
    sd = read_weights(path, torch.float32, "detail encoder")
    missing = [k for k in _NEEDED if k not in sd]
    if missing:
        raise ValueError(f"{path} is no detail encoder: {missing[0]} is missing.")
    with torch.device("meta"):
        model = DetailEncoder({k: tuple(v.shape) for k, v in sd.items()})
    _check(path, model, sd)
    chosen = loading or loading_of(sd)
    if chosen == "add":
        base = random_weights(model, seed)
        sd = {k: base[k] + v for k, v in sd.items()}
    model.load_state_dict(sd, assign=True)
    return model.eval().requires_grad_(False), chosen


def _check(path: str | Path, model: nn.Module, sd: dict[str, Tensor]) -> None:
    sd.pop("vision_model.embeddings.position_ids", None)
    own = model.state_dict()
    wrong = [k for k in own if k not in sd] + [k for k in sd if k not in own]
    wrong += [k for k in own if k in sd and sd[k].shape != own[k].shape]
    if wrong:
        few = ", ".join(wrong[:4]) + (", ..." if len(wrong) > 4 else "")
        raise ValueError(
            f"The detail encoder {path} does not fit: {len(wrong)} of its {len(own)} weights are "
            f"missing, left over or of another shape: {few}."
        )


def random_weights(model: DetailEncoder, seed: int) -> dict[str, Tensor]:
    """What the published code starts from: CLIP's initialisation, torch's for the other layers."""
    generator = torch.Generator().manual_seed(seed)
    depth = len(model.vision_model.encoder.layers)
    out: dict[str, Tensor] = {}
    for name, p in model.state_dict().items():
        if "norm" in name:
            out[name] = torch.full(p.shape, float(name.endswith("weight")))
        elif name.startswith(("fuse_module.", "visual_projection_2.")):
            weight = name.removesuffix("bias").removesuffix("weight") + "weight"
            bound = model.state_dict()[weight].shape[1] ** -0.5
            out[name] = torch.empty(p.shape).uniform_(-bound, bound, generator=generator)
        elif name.endswith(".bias"):
            out[name] = torch.zeros(p.shape)
        else:
            std = _clip_deviation(name, model, depth)
            out[name] = torch.empty(p.shape).normal_(0, std, generator=generator)
    return out


def _clip_deviation(name: str, model: DetailEncoder, depth: int) -> float:
    width = model.visual_projection.in_features
    if name.endswith(("patch_embedding.weight", "position_embedding.weight")):
        return 0.02
    if name.endswith("fc1.weight"):
        return (2 * width) ** -0.5
    if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "fc2.weight")):
        return width**-0.5 * (2 * depth) ** -0.5
    return width**-0.5  # class embedding, attention's output, first projection
