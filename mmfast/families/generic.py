"""Any other model of transformers: VLMs that follow its conventions, and text-only decoders.

Nothing here is known to be exact: a generic VLM proves itself at load (proof.py) before its trees are trusted.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from mmfast.families.base import Adapter
from mmfast.families.tiny import VICUNA, Size, Tiny, decoder_part

PROJECTORS = ("projector", "connector", "resampler")  # words in the names of what stands between tower and decoder


class TextOnly(Adapter):
    """A decoder without images. Its attention is causal unless its config says otherwise (see proof.py)."""

    proven = False
    has_dummy = False
    outside_decoder = ()
    chat = replace(VICUNA, others=(), image={})

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        self.image_token_id = None

    @classmethod
    def tiny(cls, size: Size, tokenizer: PreTrainedTokenizerFast) -> Tiny:
        return Tiny(config=decoder_part(size, tokenizer))

    def decoder(self, model: PreTrainedModel) -> PreTrainedModel:
        return model.base_model  # type: ignore[return-value]

    def vision(self, model: PreTrainedModel) -> list[nn.Module]:
        return []

    def vision_blocks(self, model: PreTrainedModel) -> list[nn.Module]:
        return []

    def projector(self, model: PreTrainedModel) -> list[nn.Module | nn.Parameter]:
        return []


class Generic(Adapter):
    """A VLM that says where its decoder is, has `get_image_features(...)` and one image token id in its config."""

    proven = False
    has_dummy = False
    outside_decoder = None

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        if self.image_token_id is None:
            raise ValueError(
                f"{config.model_type}: its config names no image_token_id, so mmfast cannot place its images"
            )
        text = self.text_config.to_dict()
        if text.get("hidden_size_per_layer_input"):
            raise ValueError(
                f"{config.model_type} cannot be trained: each of its layers reads the token ids again "
                "(hidden_size_per_layer_input), and mmfast's trees bring embeddings alone. Choose another model"
            )
        if "mrope_section" in (text.get("rope_parameters") or {}):
            self.positions = "mrope"
            self.merge_size = config.vision_config.to_dict().get("spatial_merge_size", 1)

    def decoder(self, model: PreTrainedModel) -> PreTrainedModel:
        return model.get_decoder()

    def layers(self, model: PreTrainedModel) -> nn.ModuleList:
        layers = getattr(self.decoder(model), "layers", None)
        if layers is None or not hasattr(model.model, "get_image_features"):
            raise ValueError(
                f"{self.config.model_type} cannot be trained: its decoder has no list of layers, or the model no "
                "get_image_features"
            )
        return layers

    def _split(self, model: PreTrainedModel) -> tuple[list[nn.Module], list[nn.Module]]:
        """(Towers, projectors) among the parts beside the decoder; a projector may have layers too (Idefics2)."""
        decoder = self.decoder(model)
        parts: tuple[list[nn.Module], list[nn.Module]] = ([], [])
        for name, child in model.model.named_children():
            repeats = any(isinstance(m, nn.ModuleList) and len(m) > 1 for m in child.modules())
            between = any(word in name for word in PROJECTORS)
            if child is not decoder:
                parts[between or not repeats].append(child)
        return parts

    def vision(self, model: PreTrainedModel) -> list[nn.Module]:
        return self._split(model)[0]

    def vision_blocks(self, model: PreTrainedModel) -> list[nn.Module]:
        lists: list[Any] = [m for tower in self.vision(model) for m in tower.modules() if isinstance(m, nn.ModuleList)]
        longest: list[Any] = max(lists, key=len) if lists else []
        return [*longest]

    def projector(self, model: PreTrainedModel) -> list[nn.Module | nn.Parameter]:
        return [*self._split(model)[1], *model.model._parameters.values()]

    def encode_pixels(self, model: PreTrainedModel, images: dict[str, Tensor]) -> Tensor:
        function = model.model.get_image_features
        accepted = inspect.signature(function).parameters
        dtype = next(self.vision(model)[0].parameters()).dtype
        inputs = {name: t.to(dtype) if name == "pixel_values" else t for name, t in images.items() if name in accepted}
        output = function(**inputs)
        rows = output if isinstance(output, torch.Tensor | list | tuple) else output.pooler_output
        rows = rows if torch.is_tensor(rows) else torch.cat([r.flatten(0, -2) for r in rows])
        return rows.flatten(0, -2)

    def plain_inputs(self, tokens: Tensor) -> dict[str, Tensor]:
        return dict.fromkeys(("token_type_ids", "mm_token_type_ids"), self.images_in(tokens))
