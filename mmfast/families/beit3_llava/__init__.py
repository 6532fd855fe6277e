"""Muffin (model_type "beit3_llava"), RLHF-V's base: BEiT-3 with queries in its second branch, and Vicuna. transformers
knows nothing of it: the model is ours (model.py), and `mmfast import` makes a published directory one that we read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmfast.families.base import BICUBIC, HALVES, Adapter, TowerSizes
from mmfast.families.tiny import Chat, Size, Tiny, decoder_part

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

MARKS = ("[PAD]", "<im_patch>", "<im_start>", "<im_end>")  # in the order in which its trainer adds them
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
# As it is trained: no white space beside an image's marks
TEMPLATE = (
    "{{ bos_token }}{% if not messages or messages[0]['role'] != 'system' %}" + SYSTEM + "\n\n### {% endif %}"
    "{% for m in messages %}{% set shown = namespace(images='') %}{% set words %}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] if c['type'] == 'text' %}"
    "{{ c['text'] }}{% endfor %}{% endif %}{% endset %}"
    "{% if m['content'] is not string %}{% for c in m['content'] if c['type'] == 'image' %}"
    "{% set shown.images = shown.images + '<im_start><im_patch><im_end>' %}{% endfor %}{% endif %}"
    "{% if m['role'] == 'system' %}{{ words }}\n\n### "
    "{% elif m['role'] == 'user' %}"
    "{% if shown.images %}Human:{{ shown.images }}{{ (words + '\n').lstrip() }}"
    "{% else %}Human: {{ words }}\n{% endif %}"
    "{% else %}### Assistant: {{ words }}\n### {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:{% endif %}"
)
MUFFIN = Chat(
    named={"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "[PAD]"},
    others=("<im_patch>", "<im_start>", "<im_end>"),
    template=TEMPLATE,
)


class Muffin(Adapter):
    image_aspect = "square"
    image_mean, image_std, image_resample = HALVES, HALVES, BICUBIC
    needs_processor_file = False
    outside_decoder = ("model.vision_tower", "model.mm_projector")
    why_no_cache = "Muffin's queries, which train, run through every block of its tower beside the image's rows"
    chat = MUFFIN
    published = {  # noqa: RUF012
        "Yirany/RLHF-V-SFT": {
            "vocab_size": 32004,
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "num_key_value_heads": 40,
            "image_token_id": 32001,
        }
    }

    def __init__(self, config: PretrainedConfig):
        from mmfast.families.beit3_llava.model import tower_shape

        super().__init__(config)
        self.shape = tower_shape(config.to_dict())
        if self.image_token_id is None:
            raise ValueError(
                "this Muffin is as it was published: `mmfast import DIR NEW` first, which learns from its tokenizer "
                "which word stands for an image"
            )

    @classmethod
    def classes(cls) -> tuple[type[PretrainedConfig], type[PreTrainedModel]]:
        from mmfast.families.beit3_llava.model import Beit3LlavaConfig, Beit3LlavaForCausalLM

        return Beit3LlavaConfig, Beit3LlavaForCausalLM

    # images, for the data

    @classmethod
    def tower_square(cls, model: dict[str, Any]) -> tuple[int | None, int]:
        from mmfast.families.beit3_llava.model import tower_shape

        shape = tower_shape(model)
        return shape["edge"], shape["patch"]

    @classmethod
    def square_slots(cls, model: dict[str, Any], side: int) -> int:
        return int(model.get("num_query", 64))

    @classmethod
    def tiny(cls, size: Size, tokenizer: PreTrainedTokenizerFast) -> Tiny:
        edge = size.image_size
        sizes = {"width": size.vision_hidden, "layers": size.vision_layers, "heads": size.vision_heads}
        config = decoder_part(size, tokenizer) | {
            "mm_vision_tower": f"beit3_tiny_patch{size.patch}_{edge}",
            "mm_vision_sizes": sizes | {"inner": 4 * size.vision_hidden, "positions": 40},
            "num_query": 8,
            "image_token_id": tokenizer.convert_tokens_to_ids("<im_patch>"),
        }
        return Tiny(config=config, images=("CLIPImageProcessorPil", image_settings(edge)))

    # a directory as it is published

    @classmethod
    def imported_config(cls, source: Path, model: dict[str, Any]) -> dict[str, Any]:
        """With the image's word, which a published directory leaves to its tokenizer."""
        return model | {"image_token_id": _tokenizer(source, model).convert_tokens_to_ids("<im_patch>")}

    @classmethod
    def imported_name(cls, model: dict[str, Any], key: str) -> str:
        return "" if key.endswith(".rotary_emb.inv_freq") else key

    @classmethod
    def write_imported(cls, source: Path, out: Path, model: dict[str, Any]) -> None:
        tokenizer = _tokenizer(source, model)
        tokenizer.save_pretrained(out)
        edge, _ = cls.tower_square(model)
        look = {"image_processor_type": "CLIPImageProcessor", "do_resize": True, **image_settings(int(edge or 0))}
        (out / "preprocessor_config.json").write_text(json.dumps(look, indent=1))

    # where things are

    def decoder(self, model: PreTrainedModel) -> PreTrainedModel:
        decoder: PreTrainedModel = model.model
        return decoder

    def vision(self, model: PreTrainedModel) -> list[nn.Module]:
        return [model.model.vision_tower]

    def vision_blocks(self, model: PreTrainedModel) -> list[nn.Module]:
        return list(model.model.vision_tower.beit3.encoder.layers)

    def projector(self, model: PreTrainedModel) -> list[nn.Module | nn.Parameter]:
        """What RLHF-V trains beside the decoder: the projector, the queries, and the tower's second branch."""
        tower = model.model.vision_tower
        seconds = [module for name, module in tower.named_modules() if name.endswith(".B")]
        return [model.model.mm_projector, model.model.query, *seconds]

    def rows_a_slot(self) -> float:
        return ((self.shape["edge"] // self.shape["patch"]) ** 2 + 1 + self.slots) / self.slots

    def tower_sizes(self) -> TowerSizes:
        s = self.shape
        return TowerSizes(hidden=s["width"], depth=s["layers"], inner=s["inner"], pixels=3 * s["patch"] ** 2)

    # images, for the model

    @property
    def slots(self) -> int:
        return int(self.config.num_query)

    def rows_of(self, images: dict[str, Tensor]) -> list[int]:
        return [self.slots] * len(images["pixel_values"])

    def tower_rows_of(self, images: dict[str, Tensor]) -> list[int]:
        return [1] * len(images["pixel_values"])

    def dummy_images(self) -> dict[str, Tensor]:
        edge = self.shape["edge"]
        return {"pixel_values": torch.zeros(1, 3, edge, edge)}

    def encode_pixels(self, model: PreTrainedModel, images: dict[str, Tensor]) -> Tensor:
        return model.model.image_rows(images["pixel_values"]).flatten(0, 1)


def image_settings(edge: int) -> dict[str, Any]:
    """An image is squashed to the tower's square."""
    square = {"height": edge, "width": edge}
    colours = {"image_mean": HALVES, "image_std": HALVES, "resample": BICUBIC}
    return {"size": square, "crop_size": square, "do_center_crop": False, **colours}


def _tokenizer(source: Path, model: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Llama's words, and the marks behind them where the directory does not have them yet."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from mmfast.directory.sentencepiece import llama_backend

    # Words
    if (source / "tokenizer.json").exists():
        backend = Tokenizer.from_file(str(source / "tokenizer.json"))
    elif (source / "tokenizer.model").exists():
        backend = llama_backend(source / "tokenizer.model")
    else:
        raise ValueError(f"{source} has neither tokenizer.model nor tokenizer.json, which hold its vocabulary")
    # Marks, by the numbers that the directory says
    added = {}
    if (source / "added_tokens.json").exists():
        added = json.loads((source / "added_tokens.json").read_text())
    backend.add_special_tokens([*sorted(added, key=lambda word: added[word]), *MARKS])
    wrong = next((word for word, number in added.items() if backend.token_to_id(word) != number), "")
    if wrong:
        raise ValueError(
            f"{source / 'added_tokens.json'}: {wrong} is no. {added[wrong]}, and does not follow the vocabulary"
        )
    last = max(backend.token_to_id(word) or 0 for word in MARKS)
    if last >= model["vocab_size"]:
        raise ValueError(
            f"{source}: with {', '.join(MARKS)} the tokenizer has {last + 1} words, and config.json says "
            f"{model['vocab_size']}: are its added_tokens.json and its weights those of one model?"
        )
    # Together
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATE,
        **MUFFIN.named,
    )
