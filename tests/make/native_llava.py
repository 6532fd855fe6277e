"""Models in LLaVA's native layout, made of tiny ones in transformers' layout by giving every tensor its first name."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.make.llama_tokenizer import _vocabulary

TOWER = "openai/clip-vit-large-patch14-336"
FIELDS = {  # of liuhaotian/llava-v1.5-7b's config.json, beside the decoder's
    "_name_or_path": "llava-v1.5-7b", "architectures": ["LlavaLlamaForCausalLM"], "freeze_mm_mlp_adapter": False,
    "freeze_mm_vision_resampler": False, "image_aspect_ratio": "pad", "image_grid_pinpoints": None,
    "mm_hidden_size": 1024, "mm_projector_type": "mlp2x_gelu", "mm_resampler_type": None,
    "mm_use_im_patch_token": False, "mm_use_im_start_end": False, "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2, "mm_vision_tower": TOWER, "model_type": "llava", "tune_mm_mlp_adapter": False,
    "tune_mm_vision_resampler": False, "unfreeze_mm_vision_tower": False, "use_cache": True, "use_mm_proj": True,
    "transformers_version": "4.31.0",
}  # fmt: skip


def original(name: str) -> str:
    """The name in LLaVA's files of a tensor that the hub's converted model has."""
    for start, first in (
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
        ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ("vision_tower.", "model.vision_tower.vision_tower."),
    ):
        if name.startswith(start):
            return first + name.removeprefix(start)
    raise AssertionError(name)


def write_native(
    hf: Path, out: Path, *, tower: str = "beside", pickled: bool = True, shards: int = 2, sentencepiece: bool = False
) -> Path:
    """`hf` again in the native layout. tower: "beside" (a folder of CLIP's own files beside `out`), "inside" (in the
    checkpoint, as after it was trained) or "none"."""
    out.mkdir(parents=True)
    tensors = {original(k): t for k, t in load_file(hf / "model.safetensors").items()}
    config = json.loads((hf / "config.json").read_text())
    vision = {k: t for k, t in tensors.items() if ".vision_tower." in k}
    if tower != "inside":
        tensors = {k: t for k, t in tensors.items() if k not in vision}
    if tower != "none":
        write_tower(out.parent / TOWER.partition("/")[2], config["vision_config"], vision)
    text = {k: v for k, v in config["text_config"].items() if k not in ("model_type", "architectures", "dtype")}
    text["rope_theta"] = text.pop("rope_parameters", {"rope_theta": 10000.0})["rope_theta"]
    dtype = next(iter(tensors.values())).dtype
    own = (
        text
        | FIELDS
        | {"torch_dtype": str(dtype).removeprefix("torch."), "unfreeze_mm_vision_tower": tower == "inside"}
    )
    (out / "config.json").write_text(json.dumps(own | {"mm_hidden_size": config["vision_config"]["hidden_size"]}))
    write_weights(tensors, out, pickled, shards)
    if sentencepiece:
        (out / "tokenizer.model").write_bytes(sentencepiece_model())
    else:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(hf / name, out)
    (out / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": text["eos_token_id"]}))
    return out


def write_weights(tensors: dict[str, torch.Tensor], out: Path, pickled: bool, shards: int) -> None:
    start, end = ("pytorch_model", ".bin") if pickled else ("model", ".safetensors")
    names = [f"{start}-{i + 1:05}-of-{shards:05}{end}" for i in range(shards)] if shards > 1 else [start + end]
    where = {key: names[i * shards // len(tensors)] for i, key in enumerate(tensors)}
    for name in names:
        part = {key: tensors[key].clone() for key in tensors if where[key] == name}
        torch.save(part, out / name) if pickled else save_file(part, out / name)
    if shards > 1:
        (out / f"{start}{end}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def write_tower(folder: Path, config: dict, tensors: dict[str, torch.Tensor]) -> None:
    """CLIP's own directory: both halves, in one .bin."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": config, "text_config": {}}))
    own = {k.removeprefix("model.vision_tower.vision_tower."): t.float() for k, t in tensors.items()}
    own |= {"text_model.final_layer_norm.weight": torch.ones(4), "logit_scale": torch.ones(())}
    own["vision_model.embeddings.position_ids"] = torch.arange(4)[None]
    torch.save(own, folder / "pytorch_model.bin")


def write_adapter(
    base: str, config: Path, out: Path, tensors: dict[str, torch.Tensor], others: dict[str, torch.Tensor], **settings
) -> Path:
    """What LLaVA's trainers save: `tensors` and `others` by the original names."""
    out.mkdir(parents=True)
    shutil.copy(config / "config.json", out)
    given = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "bias": "none",
    }
    given |= {"base_model_name_or_path": base, "target_modules": ["q_proj", "v_proj"], "inference_mode": True}
    (out / "adapter_config.json").write_text(json.dumps(given | settings))
    torch.save({f"base_model.model.{k}": t for k, t in tensors.items()}, out / "adapter_model.bin")
    torch.save({f"base_model.model.{k}": t for k, t in others.items()}, out / "non_lora_trainables.bin")
    return out


def pieces() -> list[tuple[str, float, int]]:
    """(text, score, kind) of a vocabulary of Llama's kind: unknown 2, control 3, byte 6, else 1."""
    vocab, merges = _vocabulary()
    order = {left + right: -float(i) for i, (left, right) in reversed([*enumerate(merges)])}
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3}
    return [
        (word, order.get(word, 0.0 if word in kinds or word.startswith("<0x") else -1e5 - number),
         kinds.get(word, 6 if word.startswith("<0x") else 1))
        for word, number in vocab.items()
    ]  # fmt: skip


def sentencepiece_model() -> bytes:
    out = b""
    for text, score, kind in pieces():
        word = text.encode()
        piece = b"\x0a" + _length(word) + word + b"\x15" + struct.pack("<f", score) + b"\x18" + _length(b"x" * kind)
        out += b"\x0a" + _length(piece) + piece
    trainer = b"\x18\x80\xfa\x01"  # something of the trainer's, which no reader of pieces needs
    return out + b"\x12" + _length(trainer) + trainer


def _length(data: bytes) -> bytes:
    number, out = len(data), b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])
