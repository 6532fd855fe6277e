"""Tiny models of every family we train, made from transformers' own classes and written as ordinary model directories.

    tiny_model("qwen2_5_vl", "runs/tiny", seed=1)        # a directory that from_pretrained loads

The tokenizer is a real fast one, trained on the world's grammar, with the family's special tokens and a chat template
of the family's form. The image processor is the family's own, in its Pillow form, so that torchvision is not needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mmfast.packages import no_bars

from .grammar import corpus

FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "llama")


@dataclass(frozen=True, kw_only=True)
class Size:
    """Dials of a tiny model. image_size is LLaVA's input edge (its number of image tokens is (image_size / patch)^2);
    the Qwen families take pictures of any size and round them to whole patches."""

    vocab: int = 512
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 0  # 0: about 8/3 of hidden
    image_size: int = 84
    patch: int = 14  # qwen3_vl: 16 (its own default)
    vision_hidden: int = 32
    vision_layers: int = 3  # LLaVA reads the last but one
    vision_heads: int = 2
    max_positions: int = 4096
    tie: bool = False  # one matrix for embedding and head
    init: float = 0.1  # spread of the initial weights: at the usual .02 a tiny model ignores its context

    @property
    def inner(self) -> int:
        return self.mlp or 8 * self.hidden // 3 // 16 * 16


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

_VICUNA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ m['content'] if m['content'] is string else m['content'][0]['text'] }} "
    "{% elif m['role'] == 'user' %}USER: "
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %} "
    "{% else %}ASSISTANT: "
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_CHATML = (
    "{{% for m in messages %}}{system}<|im_start|>{{{{ m['role'] }}}}\n"
    "{{% if m['content'] is string %}}{{{{ m['content'] }}}}{{% else %}}"
    "{{% for c in m['content'] %}}{{% if c['type'] == 'image' %}}<|vision_start|><|image_pad|><|vision_end|>"
    "{{% elif c['type'] == 'text' %}}{{{{ c['text'] }}}}{{% endif %}}{{% endfor %}}{{% endif %}}<|im_end|>\n"
    "{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
)
_SYSTEM = (
    "{% if loop.first and m['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<start_of_image>"
    "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

_TEMPLATE_WORDS = "USER: ASSISTANT: ASSISTANT system\nuser\nassistant\nmodel\nYou are a helpful assistant."

_LLAMA_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
_QWEN_TOKENS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
_QWEN_EXTRA = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
_GEMMA_TOKENS = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
_GEMMA_EXTRA = ["<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"]


def _tokens(family: str) -> tuple[dict[str, str], list[str], str, bool]:
    """(named special tokens, further special tokens, chat template, whether the tokenizer puts BOS in front)."""
    if family in ("llava", "llava_next"):
        return _LLAMA_TOKENS, ["<image>"], _VICUNA, True
    if family == "llama":
        return _LLAMA_TOKENS, [], _VICUNA, True
    if family == "gemma3":
        return _GEMMA_TOKENS, _GEMMA_EXTRA, _GEMMA, True
    return _QWEN_TOKENS, _QWEN_EXTRA, _CHATML.format(system="" if family == "qwen3_vl" else _SYSTEM), False


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
    named, extra, template, bos = _tokens(family)
    special = (*named.values(), *extra)
    trained = Tokenizer.from_str(_trained(special, min(vocab, 1024), named["bos_token"] if bos else None))
    tokens = {"<image>": {"image_token": "<image>"}, "<image_soft_token>": {"image_token": "<image_soft_token>"}}
    known = next((tokens[t] for t in extra if t in tokens), {})
    if family == "gemma3":
        known = known | {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=trained,
        additional_special_tokens=extra,
        extra_special_tokens=known,
        chat_template=template,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **named,
    )


def _llama_config(size: Size, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": size.vocab, "hidden_size": size.hidden, "intermediate_size": size.inner,
        "num_hidden_layers": size.layers, "num_attention_heads": size.heads, "num_key_value_heads": size.kv_heads,
        "max_position_embeddings": size.max_positions, "tie_word_embeddings": size.tie, "initializer_range": size.init,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip


def _config(family: str, size: Size, tokenizer: PreTrainedTokenizerFast) -> Any:
    """transformers' config of the family, and through it the model's class."""
    import transformers as hf

    text = _llama_config(size, tokenizer)
    ids = tokenizer.convert_tokens_to_ids
    clip = {
        "hidden_size": size.vision_hidden, "intermediate_size": 4 * size.vision_hidden,
        "num_hidden_layers": size.vision_layers, "num_attention_heads": size.vision_heads,
        "image_size": size.image_size, "patch_size": size.patch, "projection_dim": size.vision_hidden,
    }  # fmt: skip
    if family == "llama":
        return hf.LlamaConfig(**text)
    if family == "llava":
        return hf.LlavaConfig(
            vision_config=hf.CLIPVisionConfig(**clip),
            text_config=hf.LlamaConfig(**text),
            image_token_index=ids("<image>"),
            image_seq_length=(size.image_size // size.patch) ** 2,
            tie_word_embeddings=size.tie,
        )
    if family == "llava_next":
        return hf.LlavaNextConfig(
            vision_config=hf.CLIPVisionConfig(**clip),
            text_config=hf.LlamaConfig(**text),
            image_token_index=ids("<image>"),
            image_seq_length=(size.image_size // size.patch) ** 2,
            image_grid_pinpoints=_pinpoints(size),
            tie_word_embeddings=size.tie,
        )
    if family == "gemma3":
        return hf.Gemma3Config(
            vision_config=hf.SiglipVisionConfig(**{k: v for k, v in clip.items() if k != "projection_dim"}),
            text_config=hf.Gemma3TextConfig(
                **text,
                head_dim=size.hidden // size.heads,
                sliding_window=16,
                query_pre_attn_scalar=16,
                layer_types=["full_attention" if n % 2 else "sliding_attention" for n in range(size.layers)],
            ),
            mm_tokens_per_image=(size.image_size // size.patch) ** 2 // 4,
            image_token_index=ids("<image_soft_token>"),
            boi_token_index=ids("<start_of_image>"),
            eoi_token_index=ids("<end_of_image>"),
        )
    head = size.hidden // size.heads
    half = head // 2
    sections = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]
    special = {
        "image_token_id": ids("<|image_pad|>"), "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"), "vision_end_token_id": ids("<|vision_end|>"),
        "tie_word_embeddings": size.tie,
    }  # fmt: skip
    rope: dict[str, Any] = {"rope_type": "default", "mrope_section": sections, "rope_theta": 10000.0}
    vision = {"depth": size.vision_layers, "num_heads": size.vision_heads, "initializer_range": size.init}
    if family == "qwen2_vl":
        return hf.Qwen2VLConfig(
            text_config=text | {"rope_parameters": rope},
            vision_config=vision
            | {"embed_dim": size.vision_hidden, "hidden_size": size.hidden, "patch_size": size.patch, "mlp_ratio": 2},
            **special,
        )
    if family == "qwen2_5_vl":
        return hf.Qwen2_5_VLConfig(
            text_config=text | {"rope_parameters": rope},
            vision_config=vision
            | {"hidden_size": size.vision_hidden, "out_hidden_size": size.hidden, "patch_size": size.patch}
            | {
                "intermediate_size": 2 * size.vision_hidden,
                "window_size": 4 * size.patch,
                "fullatt_block_indexes": [1],
            },
            **special,
        )
    if family == "qwen3_vl":
        rope["mrope_interleaved"] = True
        return hf.Qwen3VLConfig(
            text_config=text | {"rope_parameters": rope, "head_dim": head},
            vision_config=vision
            | {"hidden_size": size.vision_hidden, "out_hidden_size": size.hidden, "patch_size": 16}
            | {"intermediate_size": 2 * size.vision_hidden, "num_position_embeddings": 64}
            | {"deepstack_visual_indexes": [0, 1]},
            **special,
        )
    raise ValueError(f"family {family!r} is unknown; the factory makes {', '.join(FAMILIES)}")


def _pinpoints(size: Size) -> list[list[int]]:
    edge = size.image_size
    return [[edge, 2 * edge], [2 * edge, edge], [2 * edge, 2 * edge]]


def tiny_image_processor(family: str, size: Size) -> Any:
    """The family's image processor in its Pillow form; None for text-only models."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    edge = size.image_size
    square = {"size": {"shortest_edge": edge}, "crop_size": {"height": edge, "width": edge}}
    if family == "llama":
        return None
    if family == "llava":
        return CLIPImageProcessorPil(**square)
    if family == "llava_next":
        return LlavaNextImageProcessorPil(**square, image_grid_pinpoints=_pinpoints(size))
    if family == "gemma3":
        return Gemma3ImageProcessorPil(size={"height": edge, "width": edge})
    patch = 16 if family == "qwen3_vl" else size.patch
    return Qwen2VLImageProcessorPil(
        patch_size=patch, merge_size=2, temporal_patch_size=2, min_pixels=(2 * patch) ** 2, max_pixels=(16 * patch) ** 2
    )


def tiny_processor(family: str, tokenizer: Any, image_processor: Any, size: Size) -> Any:
    """The family's processor where it can stand without torchvision; None where it cannot (the Qwen families need a
    video processor, which does): there tokenizer and image processor are used side by side."""
    import transformers as hf

    if family in ("llava", "llava_next"):
        kind = hf.LlavaProcessor if family == "llava" else hf.LlavaNextProcessor
        return kind(
            image_processor=image_processor, tokenizer=tokenizer, patch_size=size.patch,
            vision_feature_select_strategy="default", num_additional_image_tokens=1,
            chat_template=tokenizer.chat_template,
        )  # fmt: skip
    if family == "gemma3":
        tokens = (size.image_size // size.patch) ** 2 // 4
        return hf.Gemma3Processor(
            image_processor, tokenizer, chat_template=tokenizer.chat_template, image_seq_length=tokens
        )
    return None


def build(family: str, *, seed: int = 0, size: Size | str = "tiny", dtype: str = "float32", **dials: Any) -> tuple:
    """(model, tokenizer, image processor, processor or None), in memory. `dials` are fields of Size."""
    import transformers as hf

    size = replace(SIZES[size] if isinstance(size, str) else size, **dials)
    if family == "llava_next" and "image_size" not in dials:
        size = replace(size, image_size=size.image_size // 2)  # four tiles and the whole: as many pixels again
    tokenizer = tiny_tokenizer(family, size.vocab)
    if len(tokenizer) > size.vocab:
        raise ValueError(f"vocab = {size.vocab} is below the tokenizer's {len(tokenizer)} tokens; raise it")
    config = _config(family, size, tokenizer)
    kind = hf.AutoModelForCausalLM if family == "llama" else hf.AutoModelForImageTextToText
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        model = kind.from_config(config, dtype=getattr(torch, dtype))
        if family == "gemma3":  # whose projector starts at zero, blind
            torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=size.init)
    finally:
        torch.random.set_rng_state(state)
    model.eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    images = tiny_image_processor(family, size)
    return model, tokenizer, images, tiny_processor(family, tokenizer, images, size)


def tiny_model(
    family: str,
    path: str | Path,
    *,
    seed: int = 0,
    size: Size | str = "tiny",
    dtype: str = "float32",
    **dials: Any,
) -> Path:
    """Writes a tiny model of `family` (one of FAMILIES) to `path` as a model directory and returns the path.

    `size` is a Size or the name of one in SIZES; `dials` override its fields: tiny_model("llava", path, layers=1).
    """
    path = Path(path)
    model, tokenizer, images, processor = build(family, seed=seed, size=size, dtype=dtype, **dials)
    save(path, model, tokenizer, images, processor)
    return path


def save(path: str | Path, model: Any, tokenizer: Any, images: Any, processor: Any) -> None:
    """A model directory as `from_pretrained` wants it."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    with no_bars():
        model.save_pretrained(path)
    if processor is not None:
        processor.save_pretrained(path)
    tokenizer.save_pretrained(path)
    if images is not None:
        images.save_pretrained(path)
