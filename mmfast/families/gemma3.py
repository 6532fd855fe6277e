"""Gemma-3: a SigLIP tower at a fixed size, pooled. Its images see themselves whole, so its trees are not shared; the
general adapter runs it and proves it at load. Here stands what the data must know of its images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mmfast.families.base import BILINEAR, HALVES
from mmfast.families.generic import Generic
from mmfast.families.tiny import Chat, Size, Tiny, decoder_part, tower_part

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GEMMA = Chat(
    named={"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"},
    others=("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"),
    image={"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
    template=(
        "{{ bos_token }}{% for m in messages %}"
        "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}<start_of_image>"
        "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
)


class Gemma3(Generic):
    image_aspect = "square"
    image_mean, image_std, image_resample = HALVES, HALVES, BILINEAR
    chat = GEMMA

    @classmethod
    def square_slots(cls, model: dict[str, Any], side: int) -> int:
        return int(model.get("mm_tokens_per_image", 256))

    @classmethod
    def image_text(cls, model: dict[str, Any], image: str, token: Callable[[int], str]) -> tuple[str, str] | None:
        """The template writes the mark that begins an image and no more."""
        begin, end = token(model.get("boi_token_index", 255_999)), token(model.get("eoi_token_index", 256_000))
        return begin, f"\n\n{begin}{image}{end}\n\n"

    @classmethod
    def tiny(cls, size: Size, tokenizer: PreTrainedTokenizerFast) -> Tiny:
        ids, slots = tokenizer.convert_tokens_to_ids, size.side**2 // 4
        text = decoder_part(size, tokenizer) | {
            "head_dim": size.hidden // size.heads,
            "sliding_window": 16,
            "query_pre_attn_scalar": 16,
            "layer_types": ["full_attention" if n % 2 else "sliding_attention" for n in range(size.layers)],
        }
        config = {
            "vision_config": tower_part(size),
            "text_config": text,
            "mm_tokens_per_image": slots,
            "image_token_index": ids("<image_soft_token>"),
            "boi_token_index": ids("<start_of_image>"),
            "eoi_token_index": ids("<end_of_image>"),
        }
        square = {"size": {"height": size.image_size, "width": size.image_size}}
        return Tiny(
            config=config,
            images=("Gemma3ImageProcessorPil", square),
            processor=("Gemma3Processor", {"image_seq_length": slots}),
            blind="model.multi_modal_projector.mm_input_projection_weight",
        )
