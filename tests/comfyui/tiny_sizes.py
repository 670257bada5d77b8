"""A pack for the test server: files in miniature go through ComfyUI's own loaders and classes.

ComfyUI holds the sizes of text encoders and of Qwen-Image as constants. Here they are read from the
file instead, and nothing else is changed: the classes, tokenizers, samplers and autoencoders are
ComfyUI's. Files of full size give the constants again.
"""

from __future__ import annotations

import comfy.model_detection
import comfy.sd
from comfy.text_encoders import qwen_vl

NODE_CLASS_MAPPINGS: dict = {}
HEAD = 128  # Qwen's attention heads
# Qwen2.5-VL's picture tower, which is built before its file is seen.
TOWER = {"hidden_size": 128, "intermediate_size": 128, "num_layers": 2}


def _layers(sd, prefix: str) -> int:
    return len({k.removeprefix(prefix).split(".")[0] for k in sd if k.startswith(prefix)})


def sizes(sd) -> dict[str, dict[str, int]]:
    """What one text encoder's file says of its size, as ComfyUI's model options."""
    if "text_model.embeddings.token_embedding.weight" in sd:
        width = sd["text_model.embeddings.token_embedding.weight"].shape[1]
        return {"clip_l_model_config": {
            "hidden_size": width, "num_attention_heads": width // 64,
            "intermediate_size": sd["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": _layers(sd, "text_model.encoder.layers."),
        }}  # fmt: skip
    if "encoder.final_layer_norm.weight" in sd:
        block = "encoder.block.0.layer."
        return {"t5xxl_model_config": {
            "d_model": sd["encoder.final_layer_norm.weight"].shape[0],
            "d_ff": sd[f"{block}1.DenseReluDense.wi_0.weight"].shape[0],
            "num_heads": sd[f"{block}0.SelfAttention.q.weight"].shape[0] // 64,
            "num_layers": _layers(sd, "encoder.block."),
        }}  # fmt: skip
    first = "model.layers.0"
    name = "qwen3_4b" if f"{first}.self_attn.q_norm.weight" in sd else "qwen25_7b"
    name = "mistral3_24b" if "tekken_model" in sd else name
    return {f"{name}_model_config": {
        "hidden_size": sd["model.embed_tokens.weight"].shape[1],
        "intermediate_size": sd[f"{first}.mlp.up_proj.weight"].shape[0],
        "num_hidden_layers": _layers(sd, "model.layers."),
        "num_attention_heads": sd[f"{first}.self_attn.q_proj.weight"].shape[0] // HEAD,
        "num_key_value_heads": sd[f"{first}.self_attn.k_proj.weight"].shape[0] // HEAD,
    }}  # fmt: skip


def _install() -> None:
    load, detect_text = comfy.sd.load_text_encoder_state_dicts, comfy.sd.detect_te_model
    detect, tower = comfy.model_detection.detect_unet_config, qwen_vl.Qwen2VLVisionTransformer

    def load_sized(state_dicts, *args, model_options=None, **kwargs):
        options = dict(model_options or {})
        for sd in state_dicts:
            options |= sizes(sd)
        # ComfyUI makes CLIP-L's options anew from this entry.
        options["model_config"] = options.pop("clip_l_model_config", {})
        return load(state_dicts, *args, model_options=options, **kwargs)

    def detect_sized(sd):
        if "model.layers.0.self_attn.q_norm.weight" in sd:
            return comfy.sd.TEModel.QWEN3_4B
        if "tekken_model" in sd:
            return comfy.sd.TEModel.MISTRAL3_24B_PRUNED_FLUX2
        return detect_text(sd)

    def detect_qwen_image(sd, prefix, *args, **kwargs):
        config = detect(sd, prefix, *args, **kwargs)
        if config and config.get("image_model") == "qwen_image":
            config["num_attention_heads"] = sd[f"{prefix}img_in.weight"].shape[0] // HEAD
            config["joint_attention_dim"] = sd[f"{prefix}txt_norm.weight"].shape[0]
        return config

    def small_tower(output_hidden_size: int, **kwargs):
        small = TOWER if output_hidden_size < 1024 else {}
        return tower(output_hidden_size=output_hidden_size, **(kwargs | small))

    comfy.sd.load_text_encoder_state_dicts = load_sized
    comfy.sd.detect_te_model = detect_sized
    comfy.model_detection.detect_unet_config = detect_qwen_image
    qwen_vl.Qwen2VLVisionTransformer = small_tower


_install()
