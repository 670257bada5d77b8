"""What a weight file is, which recipe it serves, which node takes it and in which folder it goes.

Told by the names, shapes and types of its tensors alone; no weight is read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .headers import Header, parameters, read_any_header
from .imagecritic_keys import is_imagecritic
from .keys import strip_prefix
from .lora_keys import TEXT_PREFIXES, is_lora, metadata_alphas, other_adapter, parse_name
from .nano_keys import is_nano

# (key prefixes, what has them); the first that matches names the file.
ARCHITECTURES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("double_stream_modulation_img.", "single_stream_modulation."), "a FLUX.2 transformer"),
    (("distilled_guidance_layer.",), "a Chroma transformer"),
    (("txt_in.individual_token_refiner.", "vision_in."), "a HunyuanVideo transformer"),
    (("transformer_blocks.0.img_mod.", "txt_norm."), "a Qwen-Image transformer"),
    (("joint_blocks.",), "a Stable Diffusion 3 transformer"),
    (("label_emb.", "add_embedding."), "an SDXL U-Net"),
    (("input_blocks.", "down_blocks."), "a Stable Diffusion U-Net"),
    (("cap_embedder.", "noise_refiner."), "a Lumina or Z-Image transformer"),
    (("blocks.0.cross_attn.",), "a Wan transformer"),
    (("fuse_module.",), "an ImageCritic detail encoder"),
    (("encoder.block.", "shared."), "a T5 text encoder"),
    (("visual.", "model.layers.", "model.embed_tokens."), "a language model (Qwen or Mistral)"),
    (("vision_model.",), "a CLIP vision model"),
    (("text_model.", "transformer.text_model."), "a CLIP text encoder"),
    (("encoder.conv_in.", "decoder.conv_in.", "decoder.", "first_stage_model."), "an autoencoder"),
)
_FLUX_BLOCKS, _FLUX_SINGLE = 19, 38
_FLUX2_BLOCKS = ((8, 48), (5, 20), (8, 24))  # double and single: dev, klein 4B, klein 9B
# The second is Nunchaku's.
_FLUX_IN_DIFFUSERS_NAMES = (
    "single_transformer_blocks.0.proj_mlp",
    "single_transformer_blocks.0.mlp_fc1",
)
_INTEGERS = {"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64"}
_BLOCK = re.compile(r"(?:^|[._])(single_)?(?:transformer|double|single)_blocks[._](\d+)[._]")
NEVER = "none"
_FOLDERS = {
    "base": "diffusion_models",
    "lora": "loras",
    "detail encoder": "clip_vision",
    "text encoder": "text_encoders",
    "vae": "vae",
}
_KINDS = {  # by the slot; the others take text encoders
    "diffusion_model": "base",
    "vae": "vae",
    "refiner_lora": "lora",
    "accelerator_lora": "lora",
    "detail_encoder": "detail encoder",
}
_FLUX, _QWEN = ("omnirefiner", "imagecritic", "kontext"), ("refineanything",)
_FLUX2 = ("flux2-klein", "flux2-dev")
# By family: the recipes of LoRAs, and the name and the recipes of autoencoders.
_LORA_RECIPES = {"flux": ("omnirefiner", "kontext"), "qwen-edit": _QWEN, "flux2": _FLUX2}
_AUTOENCODERS = {
    "flux": ("FLUX.1's autoencoder (ae)", _FLUX),
    "qwen-edit": ("Qwen-Image's (Wan 2.1's) autoencoder", _QWEN),
    "flux2": ("FLUX.2's autoencoder", _FLUX2),
}
_FLUX_ENCODERS = {"a T5 text encoder": "t5xxl", "a CLIP text encoder": "clip_l"}


@dataclass(frozen=True)
class WeightFile:
    """What a file is.

    `kind` one of "base", "lora", "detail encoder", "text encoder", "vae", "nano", "other"; `family`
    "flux", "flux2", "qwen-edit" or None; `what` in words; `types` of its weights; `rank` and `alpha`
    of a LoRA; `attention` of its training, None where the file does not say; `recipes` that fit;
    `node` and its `slot` that take it; `folder` under `models`.
    """

    path: Path
    kind: str
    what: str
    family: str | None
    parameters: int
    types: str
    recipes: tuple[str, ...]
    slot: str
    folder: str
    node: str = "Load Refiner"
    rank: int | None = None
    alpha: str | None = None
    attention: str | None = None

    def lines(self) -> list[str]:
        """For people, one fact a line."""
        facts = [
            f"{self.path.name}: {self.what}",
            f"  weights   {self.parameters / 1e6:,.1f} million, {self.types}",
        ]
        if self.rank is not None:
            facts.append(f"  rank      {self.rank}, alpha {self.alpha}")
        if self.attention is not None:
            facts.append(f"  attention {self.attention}")
        recipes = ", ".join(self.recipes) or "none of this pack's"
        facts.append(f"  recipe    {recipes}")
        if self.recipes:
            facts += [f"  node      {self.node}, {self.slot}", f"  folder    models/{self.folder}"]
        return facts


def inspect_file(path: str | Path) -> WeightFile:
    """What a safetensors or GGUF file is.

    Raises:
        ValueError: as `read_any_header`.
    """
    header = read_any_header(path)
    keys = {strip_prefix(k): v for k, v in header.shapes.items()}
    if is_imagecritic(keys):
        return _imagecritic_lora(header, keys)
    other = other_adapter(header.shapes)
    if other is not None:
        _, base = lora_base(keys)
        return _made(header, "lora", f"{other[0]} for {base}, which is not supported")
    if is_lora(header.shapes):
        return _lora(header, keys)
    return _base(header, keys) or _part(header, keys)


def _types(header: Header) -> str:
    """The types by their share of the weights; scaled fp8 is named as such."""
    counted: Counter[str] = Counter()
    for name, shape in header.shapes.items():
        if len(shape) > 1:
            counted[header.types[name]] += 1
    if not counted:
        counted.update(header.types.values())
    scaled = any(
        k.endswith((".scale_weight", ".weight_scale", "scaled_fp8")) for k in header.shapes
    )
    names = [name for name, _ in counted.most_common(3)]
    text = ", ".join(names) or "nothing"
    if header.format == "gguf":
        return f"GGUF {text}"
    return f"{text} (scaled)" if scaled else text


def trained_attention(metadata: Mapping[str, object]) -> str | None:
    """The attention that weights were trained with, by their file's metadata; None where it is not
    from this pack's training, which always says its recipe.
    """
    return str(metadata.get("attention", "both ways")) if "recipe" in metadata else None


def check_attention(name: str, trained: str | None, recipe: str, attention: str) -> None:
    """Refuse weights that were trained with another attention than the recipe's.

    Raises:
        ValueError: names both, and how to get a recipe that fits.
    """
    if trained not in (None, attention):
        raise ValueError(
            f'{name} was trained with attention "{trained}", but the recipe {recipe} runs with '
            f'"{attention}". Use a recipe file with "based_on": "{recipe}" and "attention": '
            f'"{trained}".'
        )


def _made(
    header: Header,
    kind: str,
    what: str,
    family: str | None = None,
    recipes: tuple[str, ...] = (),
    slot: str = NEVER,
    **rest: Any,
) -> WeightFile:
    return WeightFile(
        header.path,
        kind,
        what,
        family,
        parameters(header),
        _types(header),
        recipes,
        slot,
        NEVER if slot == NEVER else _FOLDERS[kind],
        attention=trained_attention(header.metadata),
        **rest,
    )


# Architectures of GGUF files that ComfyUI's GGUF loader reads, of the families that recipes use.
_GGUF_ARCHITECTURES = ("flux", "flux2", "qwen_image")


def _unusable(header: Header, names: set[str]) -> str | None:
    """Why the loaders of ComfyUI cannot read a model whose names are right, or None if they can."""
    architecture = header.metadata.get("general.architecture")
    if header.format == "gguf" and architecture not in (None, *_GGUF_ARCHITECTURES):
        return f"of the unknown architecture {architecture!r}, which GGUF loaders refuse"
    if any(name.endswith(".wscales") for name in names):
        return "quantized by Nunchaku (SVDQuant), which ComfyUI's own loaders cannot read"
    if any("bitsandbytes" in name or name.endswith(".absmax") for name in names):
        return "quantized by bitsandbytes (NF4 or FP4), which ComfyUI's own loaders cannot read"
    return None


def _base(header: Header, keys: Mapping[str, tuple[int, ...]]) -> WeightFile | None:
    """What a diffusion model is, or None if it is none that is known."""
    model = _known_base(header, keys)
    reason = None if model is None else _unusable(header, set(keys))
    if model is None or reason is None:
        return model
    return replace(model, what=f"{model.what}, {reason}", recipes=(), slot=NEVER, folder=NEVER)


def _known_base(header: Header, keys: Mapping[str, tuple[int, ...]]) -> WeightFile | None:
    where = {"slot": "diffusion_model"}
    if header.format == "gguf":
        where = {"slot": "model", "node": "Refiner from Model"}
    if is_nano(keys):
        return _made(header, "nano", "a nano refiner (omnirefiner train nano)", "flux")
    names = set(keys)
    if any(k.startswith("double_stream_modulation_img.") for k in names):
        dev = any(k.startswith("guidance_in.") for k in names)
        what, recipe = ("FLUX.2 [dev]", "flux2-dev") if dev else ("FLUX.2 [klein]", "flux2-klein")
        return _made(header, "base", what, "flux2", (recipe,), **where)
    if any(k.startswith("transformer_blocks.0.img_mod.") for k in names):
        edit = "__index_timestep_zero__" in names
        unmarked = (
            "Qwen-Image or Qwen-Image-Edit (the file does not say which; it lacks 2511's mark)"
        )
        what = "Qwen-Image-Edit-2511" if edit else unmarked
        return _made(header, "base", what, "qwen-edit", _QWEN, **where)
    entry = keys.get("img_in.weight", keys.get("x_embedder.weight"))
    flux = any(k.startswith(("single_blocks.0.linear1", *_FLUX_IN_DIFFUSERS_NAMES)) for k in names)
    if not flux or entry is None or any(k.startswith("distilled_guidance") for k in names):
        return None
    if entry[-1:] != (64,):
        inputs = entry[-1] if entry else "no"
        what = f"FLUX.1 with {inputs} inputs a token (Fill, Canny or Depth)"
        return _made(header, "base", what, "flux")
    what = "FLUX.1, Kontext or [dev] (the two have the same names and shapes)"
    return _made(header, "base", what, "flux", _FLUX, **where)


def _part(header: Header, keys: Mapping[str, tuple[int, ...]]) -> WeightFile:
    what = architecture(keys)
    if "fuse_module.layer_norm.weight" in keys:
        return _made(header, "detail encoder", what, "flux", ("imagecritic",), "detail_encoder")
    if what == "a language model (Qwen or Mistral)":
        return _made(header, "text encoder", *_language(keys), "text_encoder")
    if what in _FLUX_ENCODERS:
        return _made(header, "text encoder", what, "flux", _FLUX, _FLUX_ENCODERS[what])
    if what == "an autoencoder":
        family = _autoencoder(keys)
        name, recipes = _AUTOENCODERS.get(family or "", (what, ()))
        return _made(header, "vae", name, family, recipes, "vae")
    return _made(header, "other", what)


def _language(keys: Mapping[str, tuple[int, ...]]) -> tuple[str, str, tuple[str, ...]]:
    """Qwen2.5-VL has a picture tower of its own; Qwen3 normalises its queries, Mistral does not."""
    if any(k.startswith("visual.") for k in keys):
        return "Qwen2.5-VL", "qwen-edit", ("refineanything",)
    if any(k.endswith(".self_attn.q_norm.weight") for k in keys):
        return "Qwen3", "flux2", ("flux2-klein",)
    return "Mistral", "flux2", ("flux2-dev",)


def _autoencoder(keys: Mapping[str, tuple[int, ...]]) -> str | None:
    if any(k.startswith("decoder.middle.0.residual.") for k in keys):
        return "qwen-edit"
    entry = keys.get("decoder.conv_in.weight")
    channels = {16: "flux", 32: "flux2"}
    return channels.get(entry[1]) if entry is not None and len(entry) == 4 else None


def architecture(keys: Mapping[str, object]) -> str:
    """The architecture in words, by the names of the weights."""
    if is_lora(keys) or other_adapter(keys) is not None:
        return "a LoRA"
    for prefixes, name in ARCHITECTURES:
        if any(strip_prefix(k).startswith(prefixes) for k in keys):
            return name
    return f"unknown (first keys: {', '.join(list(keys)[:3]) or 'none'})"


def _imagecritic_lora(header: Header, keys: Mapping[str, tuple[int, ...]]) -> WeightFile:
    rank = next((s[0] for k, s in keys.items() if k.endswith(".down.weight") and s), None)
    what = "ImageCritic's LoRA for FLUX.1-Kontext"
    slot, alpha = "refiner_lora", "= rank (fixed)"
    return _made(header, "lora", what, "flux", ("imagecritic",), slot, rank=rank, alpha=alpha)


def _lora(header: Header, keys: Mapping[str, tuple[int, ...]]) -> WeightFile:
    downs = {k: s for k, s in keys.items() if (parse_name(k) or ("", ""))[1] == "a"}
    rank = max((s[0] for s in downs.values() if s), default=0)
    alpha = _alpha(header)
    family, base = lora_base(keys)
    broken = _mismatch(keys)
    if broken is not None:
        what = f"a broken LoRA for {base} ({broken})"
        return _made(header, "lora", what, family, rank=rank, alpha=alpha)
    recipes = _LORA_RECIPES.get(family or "", ())
    quantized = sorted(
        {header.types[k] for k, s in header.shapes.items() if len(s) > 1} & _INTEGERS
    )
    if quantized:
        what = f"a LoRA for {base} quantized to {quantized[0]}, which is not supported"
        return _made(header, "lora", what, family, rank=rank, alpha=alpha)
    quick = family in ("flux", "qwen-edit") and _accelerates(header.path.name, keys, family)
    what = f"an accelerator LoRA for {base}" if quick else f"a LoRA for {base}"
    if quick and family == "flux":
        recipes = _FLUX
    slot = "accelerator_lora" if quick else "refiner_lora"
    return _made(header, "lora", what, family, recipes, slot, rank=rank, alpha=alpha)


def _mismatch(keys: Mapping[str, tuple[int, ...]]) -> str | None:
    """What is wrong with the first pair of factors that do not fit each other."""
    pairs: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in keys.items():
        module, part = parse_name(key) or ("", "")
        if part in ("a", "b") and not key.startswith(TEXT_PREFIXES):
            pairs.setdefault(module, {})[part] = shape
    for module, pair in pairs.items():
        if len(pair) < 2:
            return f"half of {module} is missing"
        flat = [shape for shape in pair.values() if len(shape) < 2]
        if flat:
            return f"a factor of {module} with the shape {list(flat[0])}, which is not a matrix"
        if pair["a"][0] != pair["b"][1]:
            return f"ranks {pair['a'][0]} and {pair['b'][1]} of {module}"
    return None


def _alpha(header: Header) -> str:
    if any(k.endswith(".alpha") for k in header.shapes):
        return "in the tensors"
    alpha, _, _ = metadata_alphas(header.metadata)
    return "none: scale 1" if alpha is None else f"{alpha:g} in the metadata"


def _accelerates(name: str, keys: Mapping[str, object], family: str | None) -> bool:
    """Whether a LoRA is for fewer steps, by its name or by parts that other LoRAs do not change.

    Of Qwen-Image the MLP of the picture is such a part; kohya trains FLUX's like everything else.
    """
    parts = ("guidance_embedder", "guidance_in", *(("img_mlp",) if family == "qwen-edit" else ()))
    named = re.search(r"lightning|turbo|hyper|\d[-_ ]?steps?", name.lower())
    return named is not None or any(part in k for k in keys for part in parts)


def lora_base(keys: Mapping[str, tuple[int, ...]]) -> tuple[str | None, str]:
    """Family and name of the model that a LoRA is for, by the blocks that it changes."""
    double, single = _blocks(keys)
    fused = any("to_qkv_mlp_proj" in k or "linear_in" in k for k in keys)
    if fused or any("double_stream_modulation" in k or "single_stream_mod" in k for k in keys):
        return "flux2", "FLUX.2"
    if any("img_mod" in k or "img_mlp" in k or "txt_norm" in k for k in keys) and not single:
        named = any(k.count("double_blocks") for k in keys)
        return ("flux", "FLUX.1") if named else ("qwen-edit", "Qwen-Image")
    # A LoRA of a few blocks looks like no model in particular: only whole ones are told by count.
    if single > _FLUX_SINGLE or (double, single) in _FLUX2_BLOCKS:
        return "flux2", "FLUX.2"
    if single:
        return "flux", "FLUX.1"
    if double > _FLUX_BLOCKS:
        return "qwen-edit", "Qwen-Image"
    if double:
        return "flux", "FLUX.1"
    if any("lora_unet_input_blocks" in k or "down_blocks" in k for k in keys):
        return None, "Stable Diffusion"
    return None, "a model this pack does not know"


def _blocks(keys: Mapping[str, object]) -> tuple[int, int]:
    """How many double and single blocks the names reach."""
    counts = {"double": 0, "single": 0}
    for key in keys:
        found = _BLOCK.search(key)
        if found is not None:
            kind = "single" if found[1] or "single_blocks" in found[0] else "double"
            counts[kind] = max(counts[kind], int(found[2]) + 1)
    return counts["double"], counts["single"]


def expect(path: str | Path, slot: str, family: str | None = None) -> WeightFile:
    """Inspect a file that a user put in `slot`, and refuse it if it belongs elsewhere.

    Args:
        path: the file; a GGUF or an unknown kind is let through, its loader will tell.
        slot: "diffusion_model", "clip_l", "t5xxl", "text_encoder", "vae", "refiner_lora",
            "accelerator_lora" or "detail_encoder".
        family: of the recipe.

    Raises:
        ValueError: says which file, what it is, and what was expected.
    """
    try:
        found = inspect_file(path)
    except ValueError as e:
        raise ValueError(f"{slot}: {e}") from e
    words = {"base": "diffusion model", "lora": "LoRA", "vae": "VAE"}
    kind = _KINDS.get(slot, "text encoder")
    names = {"flux": "FLUX.1-Kontext", "qwen-edit": "Qwen-Image-Edit-2511", "flux2": "FLUX.2"}
    wanted = f"a {words.get(kind, kind)}" + (f" for {names[family]}" if family else "")
    unknown = found.kind == "other" and kind != "detail encoder"
    pair = ("clip_l", "t5xxl")  # both are text encoders, and neither does the other's work
    swapped = slot in pair and found.slot in pair and found.slot != slot
    wrong = found.kind != kind or swapped
    foreign = family is not None and found.family not in (None, family)
    if not unknown and (wrong or foreign):
        goes = f" It goes to {found.slot}." if wrong and found.slot != NEVER else ""
        raise ValueError(
            f"{slot}: {found.path.name} is {found.what}, but {wanted} was expected.{goes}"
        )
    return found
