"""Random weights of the published refiners' bases in miniature: `python tiny_published.py MODELS`.

A script for ComfyUI's Python: its own classes are built at tiny width and saved under the names that
real files have. The transformers have all their blocks. MODELS is ComfyUI's models folder.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

from comfyui_script import start_on_cpu

if __name__ == "__main__":
    start_on_cpu()

    import comfy.ldm.flux.model
    import comfy.ldm.qwen_image.model
    import comfy.ldm.wan.vae
    import comfy.ops
    import comfy.text_encoders.flux as flux_text
    import tiny_sizes  # for the picture tower
    import torch
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.text_encoders import llama
    from safetensors.torch import save_file

    models = Path(sys.argv[1])
    ops = comfy.ops.disable_weight_init
    build = {"dtype": torch.float32, "device": "cpu", "operations": ops}
    generator = torch.Generator().manual_seed(0)

    def save(
        name: str, module: torch.nn.Module, dtype: torch.dtype = torch.float32,
        **beside: torch.Tensor,
    ) -> None:  # fmt: skip
        """Random weights that keep the size of what passes through; norms begin at one."""
        out = {}
        for key, value in module.state_dict().items():
            if value.ndim < 2:
                one = key.endswith(("weight", "scale", "gamma", "running_var"))
                out[key] = torch.ones_like(value) if one else torch.zeros_like(value)
            elif "gamma" in key:
                out[key] = torch.ones_like(value)
            else:
                fan = value[0].numel()
                out[key] = torch.randn(value.shape, generator=generator) * fan**-0.5
        save_file({k: v.to(dtype).contiguous() for k, v in out.items()} | beside, models / name)

    flux = {
        "hidden_size": 128, "num_heads": 1, "patch_size": 2, "in_channels": 16,
        "out_channels": 16, "vec_in_dim": 64, "context_in_dim": 64, "mlp_ratio": 4.0, "depth": 19,
        "depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True,
        "guidance_embed": True, "txt_ids_dims": [],
    }  # fmt: skip
    save("diffusion_models/tiny_flux.safetensors", comfy.ldm.flux.model.Flux(**flux, **build))
    klein = flux | {
        "patch_size": 1, "in_channels": 128, "out_channels": 128, "vec_in_dim": None,
        "context_in_dim": 3 * 64, "mlp_ratio": 3.0, "depth": 5, "depth_single_blocks": 20,
        "axes_dim": [32] * 4, "theta": 2000, "qkv_bias": False, "guidance_embed": False,
        "txt_ids_dims": [3], "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
    }  # fmt: skip
    save("diffusion_models/tiny_klein.safetensors", comfy.ldm.flux.model.Flux(**klein, **build))
    dev = klein | {"guidance_embed": True, "depth": 8, "depth_single_blocks": 48}
    save("diffusion_models/tiny_flux2_dev.safetensors", comfy.ldm.flux.model.Flux(**dev, **build))
    qwen = comfy.ldm.qwen_image.model.QwenImageTransformer2DModel(
        num_layers=60, num_attention_heads=1, joint_attention_dim=64,
        default_ref_method="index_timestep_zero", **build,
    )  # fmt: skip
    save("diffusion_models/tiny_qwen_edit_2511.safetensors", qwen)

    words = {
        "clip_l_model_config": {
            "hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 128,
            "num_hidden_layers": 2,
        },
        "t5xxl_model_config": {"d_model": 64, "d_ff": 128, "num_heads": 1, "num_layers": 2},
    }  # fmt: skip
    pair = flux_text.FluxClipModel(dtype=torch.float32, dtype_t5=torch.float32, model_options=words)
    save("text_encoders/tiny_clip_l.safetensors", pair.clip_l.transformer)
    save("text_encoders/tiny_t5xxl.safetensors", pair.t5xxl.transformer)
    language = {"hidden_size": 64, "intermediate_size": 128}
    # ComfyUI tells Qwen2.5-VL 7B by its four heads of keys.
    four = language | {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    save("text_encoders/tiny_qwen_2.5_vl.safetensors",
         llama.Qwen25_7BVLI(four, torch.float32, "cpu", ops))  # fmt: skip
    # FLUX.2 [klein] reads the layers 9, 18 and 27.
    deep = language | {"num_hidden_layers": 28, "num_attention_heads": 1, "num_key_value_heads": 1}
    save("text_encoders/tiny_qwen_3_4b.safetensors",
         llama.Qwen3_4B(deep, torch.float32, "cpu", ops))  # fmt: skip

    # FLUX.2 [dev]'s file of Mistral ends at layer 30, and carries its tokenizer: here one token a byte.
    cut = deep | {"num_hidden_layers": 30, "final_norm": False}
    tokens = {
        "config": {"default_num_special_tokens": 1000, "default_vocab_size": 131072},
        "vocab": [
            {"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode()} for i in range(256)
        ],
        "special_tokens": [
            {"rank": i, "token_str": name}
            for i, name in enumerate(("<unk>", "<s>", "</s>", "[INST]", "[/INST]"))
        ],
    }
    tekken = torch.tensor(list(json.dumps(tokens).encode()), dtype=torch.uint8)
    save("text_encoders/tiny_mistral_3.safetensors",
         llama.Mistral3Small24B(cut, torch.float32, "cpu", ops), tekken_model=tekken)  # fmt: skip

    wan = comfy.ldm.wan.vae.WanVAE(
        dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
        temperal_downsample=[False, True, True], image_channels=3, conv_out_channels=3, dropout=0.0,
    )  # fmt: skip
    save("vae/tiny_qwen_vae.safetensors", wan)
    # FLUX.2's encoder has a fixed width in ComfyUI; its decoder does not.
    wide = {
        "double_z": True, "z_channels": 32, "resolution": 256, "in_channels": 3, "out_ch": 3,
        "ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [],
        "dropout": 0.0, "batch_norm_latent": True,
    }  # fmt: skip
    vae = AutoencoderKL(ddconfig=wide, embed_dim=32, decoder_ddconfig=wide | {"ch": 32})
    save("vae/tiny_flux2_vae.safetensors", vae, torch.bfloat16)
    assert tiny_sizes.TOWER
