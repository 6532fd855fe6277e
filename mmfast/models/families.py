"""Which adapter serves a config."""

from __future__ import annotations

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from mmfast.models.adapter import Adapter
from mmfast.models.generic import Generic, TextOnly
from mmfast.models.llava import Llava
from mmfast.models.llava_next import LlavaNext
from mmfast.models.qwen2_5_vl import Qwen25VL
from mmfast.models.qwen2_vl import Qwen2VL
from mmfast.models.qwen3_vl import Qwen3VL

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
