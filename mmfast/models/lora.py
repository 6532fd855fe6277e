"""LoRA through peft. The adapter lies in the language model's linear layers; the vision side gets none unless asked."""

from __future__ import annotations

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from mmfast import config
from mmfast.directory import adapter_directory
from mmfast.models.scorer import Scorer, projector_parameters

ALL_LINEAR = "language-linear"


class Lora(config.Lora):
    """The [model.lora] of a config, and what that cannot say."""

    # names joined by commas, or a tuple of them: ("q_proj", "v_proj")
    targets: str | tuple[str, ...] = ALL_LINEAR  # type: ignore[assignment]
    vision: bool = False  # also the tower's layers of these names (ALL_LINEAR: every linear layer of its blocks)

    @classmethod
    def of(cls, settings: config.Config) -> Lora | None:
        section = settings.model.lora
        return cls(**section.model_dump()) if section else None


def target_modules(scorer: Scorer, spec: Lora) -> list[str]:
    """Full names of the layers to adapt: within the decoder's blocks (and the tower's), and the head where named."""
    model, adapter = scorer.model, scorer.adapter
    inside = {id(m) for block in adapter.layers(model) for m in block.modules()}
    if spec.vision:
        inside |= {id(m) for block in adapter.vision_blocks(model) for m in block.modules()}
    names = [n.strip() for n in spec.targets.split(",")] if isinstance(spec.targets, str) else [*spec.targets]
    head = model.get_output_embeddings()
    if any(m is head and _named(n, names) for n, m in model.named_modules()):
        inside.add(id(head))
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and id(m) in inside]
    if spec.targets == ALL_LINEAR:
        return linear
    picked = [n for n in linear if _named(n, names)]
    missing = [w for w in names if not any(_named(n, [w]) for n in picked)]
    if missing:
        known = sorted({n.rsplit(".", 1)[-1] for n in linear})
        raise ValueError(f"model.lora.targets: no linear layer {missing[0]!r}; this model has {', '.join(known)}")
    return picked


def _named(module: str, names: list[str]) -> bool:
    """Is it one of them? A name with dots ("attn.c_proj") is the end of a module's full name."""
    return any(module == name or module.endswith(f".{name}") for name in names)


def settings_of(adapter_path: str) -> PeftConfig:
    """An initial adapter's own settings, for a fresh one of its shape: ranks, patterns and layers as it has them.
    Raises where they are not plain LoRA's."""
    try:
        settings = PeftConfig.from_pretrained(str(adapter_directory(adapter_path)))
    except (ValueError, OSError) as error:
        raise ValueError(f"model.adapter: {adapter_path} is no adapter of peft's layout: {error}") from None
    if not isinstance(settings, LoraConfig) or settings.use_dora:
        kind = "DoRA" if isinstance(settings, LoraConfig) else settings.peft_type
        raise ValueError(f"model.adapter: {adapter_path} is {kind}; only plain LoRA is supported")
    if settings.modules_to_save:
        raise ValueError(
            f"model.adapter: {adapter_path} replaces {settings.modules_to_save[0]} as a whole (modules_to_save); only "
            "plain LoRA is supported"
        )
    settings.inference_mode = False
    return settings


def add_lora(
    scorer: Scorer, spec: Lora | PeftConfig | None, adapter_path: str = "", *, replacing: bool = False
) -> PeftModel:
    """Adds a fresh adapter, or loads one, and freezes the base; projector parameters keep their requires_grad.
    `replacing`: what the adapter has in place of whole modules (a trained projector) takes their place."""
    # The adapter
    trains = [p for p in projector_parameters(scorer.adapter, scorer.model) if p.requires_grad]
    shapes_only = scorer.device.type == "meta"
    if adapter_path:
        folder = adapter_directory(adapter_path, weights=True)
        peft = PeftModel.from_pretrained(scorer.model, str(folder), is_trainable=True)
    elif isinstance(spec, PeftConfig):
        peft = get_peft_model(scorer.model, spec, low_cpu_mem_usage=shapes_only)
    else:
        assert spec is not None
        plain = LoraConfig(
            r=spec.r,
            lora_alpha=spec.alpha,  # type: ignore[arg-type]  # any number
            lora_dropout=spec.dropout,
            target_modules=target_modules(scorer, spec),
            bias="none",
            task_type="CAUSAL_LM",
        )
        peft = get_peft_model(scorer.model, plain, low_cpu_mem_usage=shapes_only)
    # What it replaces, and what trains beside it
    if replacing:
        for name, module in [*peft.named_modules()]:
            if isinstance(module, ModulesToSaveWrapper):
                parent, _, leaf = name.rpartition(".")
                setattr(peft.get_submodule(parent), leaf, module.modules_to_save[module.active_adapter])
    refuse_what_is_not_lora(peft)
    for p in trains:
        p.requires_grad_(True)
    scorer.peft = [peft]
    return peft


def refuse_what_is_not_lora(peft: PeftModel) -> None:
    """An adapter from elsewhere may hold more than LoRA, which the fused head and the splice would pass over."""
    for name, module in peft.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            raise ValueError(f"model.adapter: it replaces {name} as a whole (modules_to_save); only LoRA is supported")
        if isinstance(module, LoraLayer):
            if any(module.use_dora.values()):
                raise ValueError(f"model.adapter: {name} is DoRA; only plain LoRA is supported")
            if not isinstance(module.get_base_layer(), nn.Linear) or any(module.lora_bias.values()):
                raise ValueError(f"model.adapter: {name} is no plain LoRA of a linear layer; only that is supported")
    if (bias := getattr(peft.peft_config["default"], "bias", "none")) != "none":
        raise ValueError(f'model.adapter: bias = "{bias}" trains biases of the base; only plain LoRA is supported')
