"""Tiny BLIP-2 and InstructBLIP, over a decoder (OPT) or an encoder-decoder (T5): models that cannot be packed."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as hf

from mmfast.world.models import tiny_tokenizer

EDGE, QUERIES = 56, 4
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_blip(folder: Path, kind: str, decoder: str) -> Path:
    tokenizer = tiny_tokenizer("llama")  # the processor adds <image> to it
    tokenizer.chat_template = None
    sizes = {"vocab_size": 520, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    sizes["eos_token_id"] = tokenizer.eos_token_id
    if decoder == "opt":
        heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 256, "init_std": 0.3}
        text = {"model_type": "opt", "hidden_size": 32, "ffn_dim": 64, "word_embed_proj_dim": 32, **heads, **sizes}
    else:
        heads = {"num_layers": 2, "num_heads": 2, "d_kv": 16, "initializer_factor": 2.0}
        starts = {"decoder_start_token_id": tokenizer.pad_token_id}
        text = {"model_type": "t5", "d_model": 32, "d_ff": 64, **heads, **sizes, **starts}
    config = hf.AutoConfig.for_model(
        kind,
        vision_config=TOWER | {"image_size": EDGE, "patch_size": 14},
        qformer_config=TOWER | {"vocab_size": 520, "encoder_hidden_size": 32},
        text_config=text,
        num_query_tokens=QUERIES,
        image_token_index=len(tokenizer),
    )
    torch.manual_seed(0)
    model = hf.AutoModelForImageTextToText.from_config(config)
    torch.nn.init.normal_(model.query_tokens, std=0.5)  # zeros at first: all would ask the same
    torch.nn.init.normal_(model.language_projection.weight, std=0.5)
    parts = {"image_processor": hf.BlipImageProcessorPil(size={"height": EDGE, "width": EDGE}), "tokenizer": tokenizer}
    if kind == "instructblip":
        parts["qformer_tokenizer"] = tiny_tokenizer("llama")
    named = {"blip-2": hf.Blip2Processor, "instructblip": hf.InstructBlipProcessor}[kind]
    model.save_pretrained(folder)
    named(num_query_tokens=QUERIES, **parts).save_pretrained(folder)
    return folder
