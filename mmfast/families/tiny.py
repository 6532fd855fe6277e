"""What a family's file says of its tiny models, which tests and the embedded world draw (world/models.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, kw_only=True)
class Size:
    """Dials of a tiny model. image_size is LLaVA's input edge (its number of image tokens is (image_size / patch)^2;
    LLaVA-NeXT's tiles have half the edge); the Qwen families take pictures of any size and round them to whole
    patches."""

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
    def side(self) -> int:
        """Patches along an edge."""
        return self.image_size // self.patch


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A tokenizer's special tokens and chat template. It puts its bos_token, where it has one, in front."""

    named: dict[str, str]
    others: tuple[str, ...] = ()
    template: str
    image: dict[str, str] = field(default_factory=dict)  # those that a processor looks up by name


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """Parts of a model directory, by transformers' names and settings."""

    config: dict[str, Any]
    images: tuple[str, dict[str, Any]] | None = None  # the image processor in its Pillow form
    processor: tuple[str, dict[str, Any]] | None = None  # None: it cannot stand without torchvision, or there is none
    blind: str = ""  # a matrix that starts at zero, and is drawn: or the model would not see


VICUNA = Chat(
    named={"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
    others=("<image>",),
    image={"image_token": "<image>"},
    template=(
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
    ),
)


def decoder_part(size: Size, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The config of a decoder by Llama's names, which all families share."""
    return {
        "vocab_size": size.vocab,
        "hidden_size": size.hidden,
        "intermediate_size": size.mlp or 8 * size.hidden // 3 // 16 * 16,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "max_position_embeddings": size.max_positions,
        "tie_word_embeddings": size.tie,
        "initializer_range": size.init,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def tower_part(size: Size) -> dict[str, Any]:
    """The config of a tower by CLIP's and SigLIP's names."""
    return {
        "hidden_size": size.vision_hidden,
        "intermediate_size": 4 * size.vision_hidden,
        "num_hidden_layers": size.vision_layers,
        "num_attention_heads": size.vision_heads,
        "image_size": size.image_size,
        "patch_size": size.patch,
    }
