"""A whole FLUX.1-Kontext in miniature, random, as diffusers lays it out."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def randomise(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data.normal_(0, 0.08, generator=generator)


def write_tokenizers(folder: Path) -> None:
    """Letters as tokens: the classes are FLUX's, the vocabulary is not."""
    clip = folder / "tokenizer"
    clip.mkdir(parents=True)
    words = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (clip / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (clip / "merges.txt").write_text("#version: 0.2\n")
    (clip / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>"})
    )
    t5 = folder / "tokenizer_2"
    t5.mkdir()
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    tokenizer = Tokenizer(Unigram([*pieces, *((c, -3.0) for c in LETTERS)], 2, False))
    tokenizer.save(str(t5 / "tokenizer.json"))
    (t5 / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0})
    )


def write_kontext(folder: Path) -> Path:
    """Write all parts and tokenizers; the folder."""
    transformer = FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, num_attention_heads=1, joint_attention_dim=32,
        pooled_projection_dim=64, guidance_embeds=True,
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16), layers_per_block=2, latent_channels=16,
        norm_num_groups=8, use_quant_conv=False, use_post_quant_conv=False,
        scaling_factor=0.3611, shift_factor=0.1159,
    )  # fmt: skip
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=54, hidden_size=64, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=1, bos_token_id=52, eos_token_id=53, pad_token_id=53,
        )
    )  # fmt: skip
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=32, d_model=32, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip
    parts = {"transformer": transformer, "vae": vae, "text_encoder": clip, "text_encoder_2": t5}
    for seed, (name, model) in enumerate(parts.items()):
        randomise(model, seed)
        model.save_pretrained(folder / name)
    write_tokenizers(folder)
    return folder
