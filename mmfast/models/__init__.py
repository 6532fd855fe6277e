"""Models: loading, one adapter a family, the Scorer, LoRA and parallelism."""

import mmfast.packages  # noqa: F401, before anything that imports peft or transformers
from mmfast.families import adapter_for
from mmfast.families.base import Adapter
from mmfast.models.loading import load
from mmfast.models.lora import Lora
from mmfast.models.parallelize import Parallel, make_mesh, parallelize
from mmfast.models.proof import prove
from mmfast.models.scorer import Scorer

__all__ = ["Adapter", "Lora", "Parallel", "Scorer", "adapter_for", "load", "make_mesh", "parallelize", "prove"]
