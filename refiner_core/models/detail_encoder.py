"""ImageCritic's detail encoder: a CLIP picture tower whose output is fused into one text token.

Ouyang et al., ImageCritic (arXiv 2511.20614): the T5 embedding of a trigger word is replaced by a
mixture of itself and the picture that it stands for. Written after the weights' names and shapes;
every size comes from the file, so it also holds at other widths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..weights.safetensors_io import read_weights

Loading = Literal["assign", "add"]
_HEAD_WIDTH = 64  # of one attention head of CLIP
_LAYERS = "vision_model.encoder.layers."
_MARK = "fuse_module.layer_norm.weight"
_NEEDED = (_MARK, "vision_model.embeddings.patch_embedding.weight", "visual_projection_2.weight")


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
    """The embedding of a trigger word mixed with what its picture shows.

    Args:
        shapes: of the file's weights, by name; all sizes come from them.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        config = _vision_config(shapes)
        first = shapes["visual_projection.weight"][0]
        second = shapes["visual_projection_2.weight"][0]
        self.side = config.image_size
        self.vision_model = _vision_model(config)
        self.visual_projection = nn.Linear(config.hidden_size, first, bias=False)
        self.visual_projection_2 = nn.Linear(config.hidden_size, second, bias=False)
        self.fuse_module = _FuseModule(shapes[_MARK][0], first + second)

    def forward(self, image: Tensor, embedding: Tensor) -> Tensor:
        """B D, from an image B 3 H W in [0, 1] of any size and the text encoder's embedding B D."""
        weight = self.visual_projection.weight
        # Trained on [-1, 1], without CLIP's own mean and deviation.
        x = (2 * image - 1).to(weight)
        x = F.interpolate(x, (self.side, self.side), mode="bilinear", align_corners=False)
        pooled = self.vision_model(x).pooler_output
        projections = (self.visual_projection(pooled), self.visual_projection_2(pooled))
        return self.fuse_module(embedding.to(weight), torch.cat(projections, -1))


def _vision_config(shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """The `CLIPVisionConfig` of a vision tower with weights of these shapes."""
    from transformers import CLIPVisionConfig  # takes long, and few recipes need it

    width, _, patch, _ = shapes["vision_model.embeddings.patch_embedding.weight"]
    tokens = shapes["vision_model.embeddings.position_embedding.weight"][0]
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=shapes["vision_model.encoder.layers.0.mlp.fc1.weight"][0],
        num_hidden_layers=len({k.split(".")[3] for k in shapes if k.startswith(_LAYERS)}),
        num_attention_heads=width // _HEAD_WIDTH,
        image_size=math.isqrt(tokens - 1) * patch,  # one token is the class token
        patch_size=patch,
        hidden_act="quick_gelu",
    )


def _vision_model(config: Any) -> Any:
    from transformers import CLIPVisionModelWithProjection

    # The class around the tower names its weights alike in all versions of transformers.
    model: Any = CLIPVisionModelWithProjection(config).vision_model
    # In no file; made here, as the model is built on the meta device.
    ids = torch.arange(model.embeddings.num_positions, device="cpu")[None]
    model.embeddings.register_buffer("position_ids", ids, persistent=False)
    return model


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
    path: str | Path, loading: Loading | None = None
) -> tuple[DetailEncoder, Loading]:
    """The detail encoder of a file, in float32, and how it was loaded.

    Args:
        path: detail_encoder.safetensors.
        loading: "assign" takes the file's weights; "add" adds them to random ones, as the published
            code does (with no seed, so that its results differ from start to start). None looks at
            the file.

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
        base = random_weights(model, seed=0)
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
    depth: int = model.vision_model.config.num_hidden_layers
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
