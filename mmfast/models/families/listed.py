"""Which adapter serves a config."""

from __future__ import annotations

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from mmfast.models.families.base import Adapter
from mmfast.models.families.generic import Generic, TextOnly
from mmfast.models.families.llava import Llava
from mmfast.models.families.llava_next import LlavaNext
from mmfast.models.families.qwen2_5_vl import Qwen25VL
from mmfast.models.families.qwen2_vl import Qwen2VL
from mmfast.models.families.qwen3_vl import Qwen3VL

LISTED: dict[str, type[Adapter]] = {
    "llava": Llava,
    "llava_next": LlavaNext,
    "qwen2_vl": Qwen2VL,
    "qwen2_5_vl": Qwen25VL,
    "qwen3_vl": Qwen3VL,
}


def adapter_for(config: PretrainedConfig) -> Adapter:
    kind = LISTED.get(config.model_type)
    if kind is None:
        kind = Generic if config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES else TextOnly
    return kind(config)
