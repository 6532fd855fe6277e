"""Qwen-VL and Qwen-VL-Chat (model_type "qwen"), of which transformers knows neither model nor tokenizer nor images: the
model is ours (model.py), and `mmfast import` makes a published directory one that we read (vocabulary.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmfast.families.base import BICUBIC, CLIP_MEAN, CLIP_STD, Adapter, TowerSizes
from mmfast.families.tiny import Chat, Size, Tiny, decoder_part

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

CHATML = Chat(
    named={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    others=("<|im_start|>", "<img>", "</img>", "<imgpad>"),  # the last three side by side, as the model counts on it
    template=(
        "{% set seen = namespace(images=0) %}{% for m in messages %}"
        "{% if loop.first and m['role'] != 'system' %}"
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
        "<|im_start|>{{ m['role'] }}\n"
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}{% set seen.images = seen.images + 1 %}"
        "Picture {{ seen.images }}: <img><imgpad></img>\n"
        "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
)
ASKED = {"rotary_pct": 1.0, "scale_attn_weights": True, "attn_dropout_prob": 0.0, "emb_dropout_prob": 0.0}


TEXT_ALONE = "this qwen reads text alone (Qwen-7B): mmfast knows Qwen-VL and Qwen-VL-Chat only"


class Qwen(Adapter):
    image_aspect = "square"
    needs_processor_file = False
    tower_depth = ("visual", "layers")
    outside_decoder = ("transformer.visual",)
    chat = CHATML
    published = {  # noqa: RUF012  # the rest are the config's defaults
        "Qwen/Qwen-VL-Chat": {
            "visual": {
                "width": 1664,
                "layers": 48,
                "heads": 16,
                "mlp_ratio": 4.9231,
                "output_dim": 4096,
                "image_size": 448,
                "patch_size": 14,
                "image_start_id": 151857,
            }
        }
    }

    def __init__(self, config: PretrainedConfig):
        if not config.visual:
            raise ValueError(TEXT_ALONE)
        for key, value in ASKED.items():
            if getattr(config, key) != value:
                raise ValueError(f"qwen with {key} = {getattr(config, key)} is not supported: it must be {value}")
        super().__init__(config)
        self.longest = config.seq_length

    @classmethod
    def classes(cls) -> tuple[type[PretrainedConfig], type[PreTrainedModel]]:
        from mmfast.families.qwen.model import QwenConfig, QwenForCausalLM

        return QwenConfig, QwenForCausalLM

    # images, for the data

    @classmethod
    def image_id(cls, model: dict[str, Any]) -> int | None:
        """<imgpad> stands two behind <img>; what stands between <img> and </img> is the tower's in any case."""
        return model["visual"]["image_start_id"] + 2 if model.get("visual") else None

    @classmethod
    def tower_square(cls, model: dict[str, Any]) -> tuple[int | None, int]:
        return model["visual"]["image_size"], model["visual"]["patch_size"]

    @classmethod
    def square_slots(cls, model: dict[str, Any], side: int) -> int:
        return int(model["visual"].get("n_queries", 256))

    @classmethod
    def tiny(cls, size: Size, tokenizer: PreTrainedTokenizerFast) -> Tiny:
        edge, text = size.image_size, decoder_part(size, tokenizer)
        text["intermediate_size"] *= 2
        names = ("num_key_value_heads", "bos_token_id")
        config = {key: value for key, value in text.items() if key not in names} | {
            "kv_channels": size.hidden // size.heads,
            "image_token_id": tokenizer.convert_tokens_to_ids("<imgpad>"),
            "visual": {
                "width": size.vision_hidden,
                "layers": size.vision_layers,
                "heads": size.vision_heads,
                "mlp_ratio": 2,
                "output_dim": size.hidden,
                "image_size": edge,
                "patch_size": size.patch,
                "n_queries": 16,
                "image_start_id": tokenizer.convert_tokens_to_ids("<img>"),
            },
        }
        return Tiny(config=config, images=("CLIPImageProcessorPil", image_settings(edge)))

    # a directory as it is published

    @classmethod
    def imported_config(cls, source: Path, model: dict[str, Any]) -> dict[str, Any]:
        """Without the pointers to code in the directory; with the image's id by the name that others look for."""
        if not model.get("visual"):
            raise ValueError(TEXT_ALONE)
        kept = {key: value for key, value in model.items() if key != "auto_map"}
        return kept | {"image_token_id": cls.image_id(model)}

    @classmethod
    def write_imported(cls, source: Path, out: Path, model: dict[str, Any]) -> None:
        from mmfast.families.qwen.vocabulary import NAME, tokenizer_of

        # The tokenizer, of this very model
        if not (source / NAME).is_file():
            raise ValueError(f"{source} has no {NAME}, which holds its vocabulary")
        tokenizer = tokenizer_of(source / NAME, CHATML.template)
        begin, wanted = tokenizer.convert_tokens_to_ids("<img>"), model["visual"]["image_start_id"]
        if begin != wanted:
            raise ValueError(f"{source / NAME} is of another model: its <img> is {begin}, config.json says {wanted}")
        tokenizer.save_pretrained(out)
        # What the directory has not, or not in transformers' words
        (out / "preprocessor_config.json").write_text(json.dumps(processor_config(model["visual"]["image_size"])))
        taste = out / "generation_config.json"
        settings = json.loads(taste.read_text()) if taste.is_file() else {}
        ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
        settings |= {"eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id}
        for own in ("chat_format", "max_window_size"):  # of its own chat code
            settings.pop(own, None)
        taste.write_text(json.dumps(settings, indent=1))

    # where things are

    def decoder(self, model: PreTrainedModel) -> PreTrainedModel:
        return self._decoder(model)

    def _decoder(self, model: Any) -> Any:
        return model.transformer

    def layers(self, model: PreTrainedModel) -> nn.ModuleList:
        layers: nn.ModuleList = self._decoder(model).h
        return layers

    def vision(self, model: PreTrainedModel) -> list[nn.Module]:
        return [self._decoder(model).visual]

    def vision_blocks(self, model: PreTrainedModel) -> list[nn.Module]:
        return list(self._decoder(model).visual.transformer.resblocks)

    def projector(self, model: PreTrainedModel) -> list[nn.Module | nn.Parameter]:
        """The pool, and what follows it."""
        visual = self._decoder(model).visual
        return [visual.attn_pool, visual.ln_post, visual.proj]

    def rows_a_slot(self) -> float:
        visual = self.config.visual
        return (visual["image_size"] // visual["patch_size"]) ** 2 / self.slots

    def tower_sizes(self) -> TowerSizes:
        v = self.config.visual
        return TowerSizes(v["width"], v["layers"], int(v["width"] * v["mlp_ratio"]), 3 * v["patch_size"] ** 2)

    # images, for the model

    @property
    def slots(self) -> int:
        return self.square_slots({"visual": self.config.visual}, 0)

    def rows_of(self, images: dict[str, Tensor]) -> list[int]:
        return [self.slots] * len(images["pixel_values"])

    def tower_rows_of(self, images: dict[str, Tensor]) -> list[int]:
        return [1] * len(images["pixel_values"])

    def dummy_images(self) -> dict[str, Tensor]:
        edge = self.config.visual["image_size"]
        return {"pixel_values": torch.zeros(1, 3, edge, edge)}

    def tower(self, model: PreTrainedModel, images: dict[str, Tensor]) -> Tensor:
        """[images, patches, V]"""
        return self._decoder(model).visual.patches(images["pixel_values"])

    def project(self, model: PreTrainedModel, rows: Tensor, images: dict[str, Tensor]) -> Tensor:
        return self._decoder(model).visual.pooled(rows).flatten(0, 1)


def processor_config(edge: int) -> dict[str, Any]:
    """preprocessor_config.json, which a published directory lacks: CLIP's colours."""
    more = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "resample": BICUBIC, "do_resize": True}
    return {"image_processor_type": "CLIPImageProcessor", **more, **image_settings(edge)}


def image_settings(edge: int) -> dict[str, Any]:
    """An image is squashed to the tower's square."""
    square = {"height": edge, "width": edge}
    return {"size": square, "crop_size": square, "do_center_crop": False}
