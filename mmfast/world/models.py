"""Tiny models of every family we train, made from transformers' own classes and written as ordinary model directories.

    tiny_model("qwen2_5_vl", "runs/tiny", seed=1)        # a directory that from_pretrained loads

The family's file says what its models are like. The tokenizer is a real fast one, trained on the world's grammar, with
the family's special tokens and a chat template of the family's form. The image processor is the family's own, in its
Pillow form, so that torchvision is not needed.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mmfast.families import drawn_config, families, family_of, model_class
from mmfast.families.base import Adapter
from mmfast.families.generic import TextOnly
from mmfast.families.tiny import Chat, Size
from mmfast.packages import no_bars

from .grammar import corpus

FAMILIES = (*(name for name, kind in families().items() if kind.chat), "llama")

SIZES = {
    "tiny": Size(),
    "world": Size(
        hidden=128, layers=4, heads=4, kv_heads=4, patch=28, vision_hidden=96, vision_layers=3, vision_heads=4,
        init=0.08,
    ),
    # 64 M parameters and LLaVA-1.5's 576 image tokens and 32000 words: for benches of the trainer
    "bench": Size(
        vocab=32000, hidden=512, layers=8, heads=8, kv_heads=8, mlp=1536, image_size=336, vision_hidden=128,
        vision_layers=3, vision_heads=4, init=0.02,
    ),
}  # fmt: skip

_TEMPLATE_WORDS = "USER: ASSISTANT: ASSISTANT system\nuser\nassistant\nmodel\nYou are a helpful assistant."


def _described(family: str) -> tuple[type[Adapter], Chat]:
    kind = TextOnly if family == "llama" else family_of(family)
    if kind is None or kind.chat is None:
        raise ValueError(f"family {family!r} is unknown; the factory makes {', '.join(FAMILIES)}")
    return kind, kind.chat


@lru_cache(maxsize=16)
def _trained(special: tuple[str, ...], vocab: int, bos: str | None) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*corpus(), *[_TEMPLATE_WORDS] * 500], trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer.to_str()


def tiny_tokenizer(family: str, vocab: int = 512) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the grammar: a word of the world is one token, any other text is bytes."""
    return tokenizer_of(_described(family)[1], vocab)


def tokenizer_of(chat: Chat, vocab: int = 512) -> PreTrainedTokenizerFast:
    special = (*chat.named.values(), *chat.others)
    trained = Tokenizer.from_str(_trained(special, min(vocab, 1024), chat.named.get("bos_token")))
    return PreTrainedTokenizerFast(
        tokenizer_object=trained,
        additional_special_tokens=[*chat.others],
        extra_special_tokens={**chat.image},
        chat_template=chat.template,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **chat.named,
    )


def tiny_image_processor(family: str, size: Size) -> Any:
    """The family's image processor in its Pillow form; None for text-only models."""
    settings = _described(family)[0].tiny(size, tiny_tokenizer(family)).images
    return settings and getattr(transformers, settings[0])(**settings[1])


def tiny_processor(family: str, tokenizer: Any, image_processor: Any, size: Size) -> Any:
    """The family's processor where it can stand without torchvision; None where it cannot (the Qwen families need a
    video processor, which does): there tokenizer and image processor are used side by side."""
    settings = _described(family)[0].tiny(size, tokenizer).processor
    return settings and getattr(transformers, settings[0])(
        image_processor=image_processor, tokenizer=tokenizer, chat_template=tokenizer.chat_template, **settings[1]
    )


def build(family: str, *, seed: int = 0, size: Size | str = "tiny", dtype: str = "float32", **dials: Any) -> tuple:
    """(model, tokenizer, image processor, processor or None), in memory. `dials` are fields of Size."""
    size = replace(SIZES[size] if isinstance(size, str) else size, **dials)
    tokenizer = tiny_tokenizer(family, size.vocab)
    if len(tokenizer) > size.vocab:
        raise ValueError(f"vocab = {size.vocab} is below the tokenizer's {len(tokenizer)} tokens; raise it")
    tiny = _described(family)[0].tiny(size, tokenizer)
    config = drawn_config(family, **tiny.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config).from_config(config, dtype=getattr(torch, dtype))
        if tiny.blind:
            torch.nn.init.normal_(model.get_parameter(tiny.blind), std=size.init)
    model.eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    images = tiny_image_processor(family, size)
    return model, tokenizer, images, tiny_processor(family, tokenizer, images, size)


def tiny_model(family: str, path: str | Path, **settings: Any) -> Path:
    """Writes a tiny model of `family` (one of FAMILIES) to `path` as a model directory and returns the path. `settings`
    are build()'s: tiny_model("llava", path, seed=1, layers=1)."""
    save(path, *build(family, **settings))
    return Path(path)


def with_hub_names(file: Path) -> None:
    """Checkpoints of the hub say vision_tower.vision_model, which transformers 5 leaves out when it saves; other
    software (vLLM) reads the hub's names alone."""
    tensors = load_file(file)
    assert not any("vision_tower.vision_model." in name for name in tensors), "transformers writes hub names again"
    renamed = {name.replace("vision_tower.", "vision_tower.vision_model.", 1): t for name, t in tensors.items()}
    save_file(renamed, file, {"format": "pt"})


def save(path: str | Path, model: Any, tokenizer: Any, images: Any, processor: Any) -> None:
    """A model directory as `from_pretrained` wants it."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    with no_bars():
        model.save_pretrained(path)
    vision = getattr(model.config, "vision_config", None)
    if getattr(vision, "model_type", "") == "clip_vision_model":
        with_hub_names(path / "model.safetensors")
    if processor is not None:
        processor.save_pretrained(path)
    tokenizer.save_pretrained(path)
    if images is not None:
        images.save_pretrained(path)
