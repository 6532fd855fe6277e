"""`section.key=value` of the command line, over a file's own; and what other trainers call our keys."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Sequence
from typing import Any

EXCLUSIVE = ("train.steps", "train.epochs")  # an override of one clears the other of the file

BATCH = "train.pairs_per_step (pairs of a step over all GPUs), with train.tokens_per_pack as the memory dial"
ALIASES = {
    **dict.fromkeys(("lr", "learning_rate", "peak_lr"), "optim.lr"),
    **dict.fromkeys(("batch", "batch_size", "train_batch_size", "global_batch_size", "micro_batch_size"), BATCH),
    **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps", "per_device_batch_size"), BATCH),
    **dict.fromkeys(("num_train_epochs", "num_epochs", "max_epochs"), "train.epochs"),
    **dict.fromkeys(("max_steps", "num_steps", "total_steps"), "train.steps"),
    **dict.fromkeys(("save_steps", "save_interval"), "train.checkpoint_every"),
    **dict.fromkeys(("save_total_limit",), "train.keep_last"),
    **dict.fromkeys(("eval_steps", "eval_interval"), "train.eval_every"),
    **dict.fromkeys(("logging_steps", "log_every"), "log.every"),
    **dict.fromkeys(("metric_for_best_model", "load_best_model_at_end"), "train.best_metric"),
    **dict.fromkeys(("resume_from_checkpoint",), "train.resume"),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler", "scheduler"), "optim.schedule"),
    **dict.fromkeys(("warmup_ratio", "warmup_steps"), "optim.warmup"),
    **dict.fromkeys(("max_grad_norm", "clip_grad", "grad_clip", "gradient_clipping"), "optim.clip"),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), "optim.betas"),
    **dict.fromkeys(("adam_epsilon",), "optim.eps"),
    **dict.fromkeys(("mm_projector_lr", "aligner_lr"), "optim.projector_lr"),
    **dict.fromkeys(("vit_lr", "vision_tower_lr"), "optim.vision_lr"),
    **dict.fromkeys(("loss_type", "pref_loss", "rlhf_type"), "objective.loss"),
    **dict.fromkeys(("loss_weights",), "objective.terms"),
    **dict.fromkeys(("pref_beta", "dpo_beta"), "objective.beta"),
    **dict.fromkeys(("pref_ftx", "rpo_alpha", "sft_alpha"), "objective.sft_weight"),
    **dict.fromkeys(("dpo_token_weight", "dpo_token_weighted"), "objective.gamma"),
    **dict.fromkeys(("dpo_use_average",), "objective.average"),
    **dict.fromkeys(("f_divergence_type",), "objective.divergence"),
    **dict.fromkeys(("f_alpha_divergence_coef",), "objective.alpha"),
    **dict.fromkeys(("stage", "task"), "objective.kind"),
    **dict.fromkeys(("model_name_or_path", "model_id", "base_model"), "model.path"),
    **dict.fromkeys(("adapter_name_or_path", "adapters"), "model.adapter"),
    **dict.fromkeys(("torch_dtype", "bf16", "fp16", "precision"), "model.dtype"),
    **dict.fromkeys(("attn_implementation", "attn_impl", "flash_attn"), "model.attention"),
    **dict.fromkeys(("quantization_bit", "quant_bits", "load_in_4bit"), "model.quantize"),
    **dict.fromkeys(("freeze_vision_tower", "freeze_vit", "freeze_aligner", "freeze_llm"), "model.freeze"),
    **dict.fromkeys(("freeze_multi_modal_projector", "freeze_language_model"), "model.freeze"),
    **dict.fromkeys(("image_max_pixels",), "model.max_pixels"),
    **dict.fromkeys(("image_min_pixels",), "model.min_pixels"),
    **dict.fromkeys(("lora_rank", "lora_r", "rank"), "model.lora.r"),
    **dict.fromkeys(("lora_alpha",), "model.lora.alpha"),
    **dict.fromkeys(("lora_dropout",), "model.lora.dropout"),
    **dict.fromkeys(("lora_target", "target_modules", "lora_target_modules"), "model.lora.targets"),
    **dict.fromkeys(("peft_config", "use_peft", "lora_enable", "finetuning_type", "tuner_type"), "model.lora"),
    **dict.fromkeys(("ref_model", "ref_model_name_or_path"), "reference.model"),
    **dict.fromkeys(("precompute_ref_log_probs",), "reference.kind"),
    **dict.fromkeys(("dataset", "dataset_name", "train_file", "data_path"), "data.path"),
    **dict.fromkeys(("eval_dataset", "val_dataset", "validation_file"), "data.eval_path"),
    **dict.fromkeys(("image_folder", "media_dir", "image_dir"), "data.images"),
    **dict.fromkeys(("image_aspect_ratio",), "data.aspect"),
    **dict.fromkeys(("cutoff_len", "max_seq_length", "model_max_length"), "data.max_length"),
    **dict.fromkeys(("max_samples",), "data.limit"),
    **dict.fromkeys(("dataloader_num_workers", "preprocessing_num_workers", "dataset_num_proc"), "data.workers"),
    **dict.fromkeys(("gradient_checkpointing",), "parallel.activation_checkpointing"),
    **dict.fromkeys(("fsdp", "deepspeed"), "parallel.shard"),
    **dict.fromkeys(("torch_compile",), "parallel.compile"),
    **dict.fromkeys(("report_to",), "log.trackers"),
    **dict.fromkeys(("run_name", "run"), "log.name"),
    **dict.fromkeys(("output", "out", "save_dir"), "output_dir"),
}


def apply(tree: dict[str, Any], overrides: Sequence[str], optional: Collection[str]) -> None:
    """Put overrides into the tree of a file. `--key=value` is read like key=value; `key=none` takes a key of `optional`
    (those whose default is absence) out of it."""
    names: set[str] = set()
    for text in overrides:
        name, mark, value = text.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not mark:
            raise ValueError(f"override {text!r}: write section.key=value")
        names.add(name)
        parsed = _value(value.strip())
        _assign(tree, name.split("."), None if parsed == "none" and name in optional else parsed, text)
    for name, other in (EXCLUSIVE, EXCLUSIVE[::-1]):
        if name in names and other not in names:
            section, _, key = other.partition(".")
            tree.get(section, {}).pop(key, None)


def _assign(tree: dict[str, Any], keys: list[str], value: Any, text: str) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise ValueError(f"override {text!r}: {key} is a value, not a section")
    if value is None:
        tree.pop(keys[-1], None)
    else:
        tree[keys[-1]] = value


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text  # a bare string: data.path=pairs.jsonl
