"""Model families: one file each, named after the `model_type` of its models, says all that mmfast must know of it.

A family of one's own is a file of the same kind in a folder `mmfast_families` on the Python path.
"""

from __future__ import annotations

import importlib.util
import json
import pkgutil
import re
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfast.families.base import Adapter

if TYPE_CHECKING:
    from transformers import PretrainedConfig

OWN = "mmfast.families"
PLACES = (OWN, "mmfast_families")  # the second has no __init__.py: it may lie in several places on the path
NO_FAMILY = ("base", "generic", "layout", "tiny")  # files here that describe none


def adapter_for(config: PretrainedConfig) -> Adapter:
    """The adapter of a model: its family's, or the general one for models that no file here describes."""
    from mmfast.families.generic import Generic, TextOnly

    adapter = (family_for(config.to_dict()) or (Generic if reads_images(config) else TextOnly))(config)
    adapter.proven &= type(adapter).__module__.startswith(OWN)  # no test of ours has run the others
    return adapter


def config_of(folder: str | Path) -> PretrainedConfig:
    """The config of a model directory, its family's own classes made known first: no code of the directory runs."""
    from transformers import AutoConfig

    file = Path(folder) / "config.json"
    register(json.loads(file.read_text()).get("model_type") or "" if file.is_file() else "")
    return AutoConfig.from_pretrained(folder)


def drawn_config(model_type: str, **sizes: Any) -> PretrainedConfig:
    """A config of that type with these settings."""
    from transformers import AutoConfig

    register(model_type)
    return AutoConfig.for_model(model_type, **sizes)


def register(model_type: str) -> bool:
    """Tells transformers of a family's own classes; False where it has no such."""
    kind = family_of(model_type)
    classes = None if kind is None else kind.classes()
    if classes is None:
        return False
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    config, model = classes
    AutoConfig.register(model_type, config, exist_ok=True)
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        auto.register(config, model, exist_ok=True)
    return True


def reads_images(config: PretrainedConfig) -> bool:
    """Is it a model of images and text, for transformers?"""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or register(config.model_type)


def model_class(config: PretrainedConfig) -> Any:
    """The class of transformers that reads the model, of a family that mmfast cannot train too."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if reads_images(config) else AutoModelForCausalLM


@cache
def family_of(model_type: str) -> type[Adapter] | None:
    """The class in the file of that name, if there is one."""
    name = re.sub(r"\W", "_", model_type)
    if not name or name in NO_FAMILY:
        return None
    for place in PLACES:
        module = f"{place}.{name}"
        if importlib.util.find_spec(place) is None or importlib.util.find_spec(module) is None:
            continue
        kinds = [x for x in vars(importlib.import_module(module)).values() if _described_in(x, module)]
        if len(kinds) != 1:
            raise ValueError(f"{module} must hold one class derived from Adapter, it holds {len(kinds)}")
        return kinds[0]
    return None


def family_for(model: dict[str, Any]) -> type[Adapter] | None:
    """The family of a config.json, where its file tells of this very model."""
    kind = family_of(model.get("model_type") or "")
    return kind if kind is not None and kind.describes(model) else None


def families() -> dict[str, type[Adapter]]:
    """Every family that a file describes, by the file's name."""
    described: dict[str, type[Adapter]] = {}
    for place in PLACES:
        spec = importlib.util.find_spec(place)
        for file in pkgutil.iter_modules((spec.submodule_search_locations if spec else None) or []):
            kind = family_of(file.name)
            if kind is not None:
                described.setdefault(file.name, kind)
    return described


def sources_outside(kind: type[Adapter] | None) -> list[str]:
    """The text of the files beside mmfast's own that describe a family. What their rules make is named after them, or a
    store would outlive a change of its rules; those of mmfast's own files are under its format version."""
    classes = kind.__mro__ if kind else ()
    modules = {x.__module__ for x in classes if x.__module__.startswith(f"{PLACES[1]}.")}
    files = [Path(str(sys.modules[name].__file__)) for name in sorted(modules)]
    beside = [sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file] for file in files]
    return [file.read_text() for some in beside for file in some]


def _described_in(x: object, module: str) -> bool:
    return isinstance(x, type) and issubclass(x, Adapter) and x.__module__ == module
