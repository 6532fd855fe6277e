"""What mmfast must know of a model family. One short file a family derives from Adapter.

An adapter holds the config only, no weights, so it travels to the worker processes that make packs.
Letters: F feature rows (one an image slot), D decoder width, V tower width, L deepstack levels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from mmfast.packing.layout import Layout

FEATURES, TOWER = "feature_rows", "tower_rows"  # keys of cached vision features in Pack.images


class Adapter:
    proven = True  # the family is held exact by the tests; others prove themselves at load
    positions = "1d"  # or "mrope"
    merge_size = 1  # patches merged along each axis into one image slot
    has_dummy = True  # dummy_images() is known: the tower's blocks can be sharded one by one while they train
    levels = 0  # deepstack: dense addends after the first decoder layers

    tower_depth: tuple[str, str] | None = None  # (sub-config, key) that says how many blocks the tower has

    def __init__(self, config: PretrainedConfig):
        self.config = config
        self.text_config: PretrainedConfig = config.get_text_config()
        keys = config.to_dict()  # LLaVA's and Gemma's configs write the older name
        self.image_token_id: int | None = keys.get("image_token_id", keys.get("image_token_index"))

    # where things are

    def decoder(self, model: PreTrainedModel) -> nn.Module:
        return model.model.language_model

    def layers(self, model: PreTrainedModel) -> nn.ModuleList:
        return self.decoder(model).layers

    def vision(self, model: PreTrainedModel) -> list[nn.Module]:
        """The tower(s). Modules of `projector` may lie inside."""
        return [model.model.vision_tower]

    def vision_blocks(self, model: PreTrainedModel) -> list[nn.Module]:
        """The tower's repeated blocks: what is checkpointed, compiled and sharded one by one."""
        raise NotImplementedError

    def projector(self, model: PreTrainedModel) -> list[nn.Module | nn.Parameter]:
        """Between the tower and the decoder: projectors, mergers, the newline embedding."""
        return [model.model.multi_modal_projector]

    def softcap(self) -> float | None:
        return self.text_config.to_dict().get("final_logit_softcapping")

    # on the host, in a worker

    def prepare(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds the index tensors that the tower needs, so that no step reads the device. Idempotent."""
        return images

    def rows_of(self, images: dict[str, Tensor]) -> list[int]:
        """Feature rows (image slots) of each image."""
        raise NotImplementedError

    def tower_rows_of(self, images: dict[str, Tensor]) -> list[int]:
        """Rows of tower() of each image."""
        raise NotImplementedError

    def layout(self, share: bool = True) -> Layout:
        """What packing must know of the family."""
        return Layout(
            image_token_id=self.image_token_id, mrope=self.positions == "mrope", merge=self.merge_size, share=share
        )

    def dummy_images(self) -> dict[str, Tensor]:
        """One smallest image, for a pack without images while the tower trains."""
        raise NotImplementedError

    # on the device

    def tower(self, model: PreTrainedModel, images: dict[str, Tensor]) -> Tensor:
        """Pixels -> rows that only depend on the tower's weights, in image order."""
        raise NotImplementedError

    def project(self, model: PreTrainedModel, rows: Tensor, images: dict[str, Tensor]) -> Tensor:
        """Tower rows -> [F, (1+L)*D]: the feature rows, then each level's."""
        raise NotImplementedError

    def encode_pixels(self, model: PreTrainedModel, images: dict[str, Tensor]) -> Tensor:
        return self.project(model, self.tower(model, images), images)

    def encode(self, model: PreTrainedModel, images: dict[str, Tensor]) -> Tensor:
        """The images of a pack -> [F, (1+L)*D], from the cache where the pack brings cached rows."""
        if FEATURES in images:
            return images[FEATURES]
        if TOWER in images:
            return self.project(model, images[TOWER], images)
        return self.encode_pixels(model, images)

    def plain_inputs(self, tokens: Tensor) -> dict[str, Tensor]:
        """What the unpatched model's forward needs beside the ids [1,L] and the images."""
        return {}


def select_hidden(outputs: Any, layer: int | list[int], strategy: str) -> Tensor:
    """LLaVA's choice of tower states: [images, patches, V]."""
    chosen = [outputs.hidden_states[i] for i in ([layer] if isinstance(layer, int) else layer)]
    if strategy == "default":
        chosen = [states[:, 1:] for states in chosen]
    return chosen[0] if len(chosen) == 1 else torch.cat(chosen, dim=-1)
