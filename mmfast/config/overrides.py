"""`section.key=value` of the command line, over a file's own; and what other trainers call our keys."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Sequence
from typing import Any

EXCLUSIVE = ("train.steps", "train.epochs")  # an override of one clears the other of the file

BATCH = "train.pairs_per_step (pairs of a step over all GPUs), with train.tokens_per_pack as the memory dial"
ELSEWHERE = {  # our keys -> what other trainers call them
    "optim.lr": "lr learning_rate peak_lr",
    BATCH: "batch batch_size train_batch_size global_batch_size micro_batch_size per_device_train_batch_size "
    "gradient_accumulation_steps per_device_batch_size",
    "train.epochs": "num_train_epochs num_epochs max_epochs",
    "train.steps": "max_steps num_steps total_steps",
    "train.checkpoint_every": "save_steps save_interval",
    "train.keep_last": "save_total_limit",
    "train.eval_every": "eval_steps eval_interval",
    "log.every": "logging_steps log_every",
    "train.best_metric": "metric_for_best_model load_best_model_at_end",
    "train.resume": "resume_from_checkpoint",
    "optim.schedule": "lr_scheduler_type lr_scheduler scheduler",
    "optim.warmup": "warmup_ratio warmup_steps",
    "optim.clip": "max_grad_norm clip_grad grad_clip gradient_clipping",
    "optim.betas": "adam_beta1 adam_beta2",
    "optim.eps": "adam_epsilon",
    "optim.projector_lr": "mm_projector_lr aligner_lr",
    "optim.vision_lr": "vit_lr vision_tower_lr",
    "objective.loss": "loss_type pref_loss rlhf_type",
    "objective.terms": "loss_weights",
    "objective.beta": "pref_beta dpo_beta",
    "objective.sft_weight": "pref_ftx rpo_alpha sft_alpha",
    "objective.gamma": "dpo_token_weight dpo_token_weighted",
    "objective.average": "dpo_use_average",
    "objective.divergence": "f_divergence_type",
    "objective.alpha": "f_alpha_divergence_coef",
    "objective.kind": "stage task",
    "model.path": "model_name_or_path model_id base_model",
    "model.adapter": "adapter_name_or_path adapters",
    "model.dtype": "torch_dtype bf16 fp16 precision",
    "model.attention": "attn_implementation attn_impl flash_attn",
    "model.quantize": "quantization_bit quant_bits load_in_4bit",
    "model.freeze": (
        "freeze_vision_tower freeze_vit freeze_aligner freeze_llm freeze_multi_modal_projector freeze_language_model"
    ),
    "model.max_pixels": "image_max_pixels",
    "model.min_pixels": "image_min_pixels",
    "model.lora.r": "lora_rank lora_r rank",
    "model.lora.alpha": "lora_alpha",
    "model.lora.dropout": "lora_dropout",
    "model.lora.targets": "lora_target target_modules lora_target_modules",
    "model.lora": "peft_config use_peft lora_enable finetuning_type tuner_type",
    "reference.model": "ref_model ref_model_name_or_path",
    "reference.kind": "precompute_ref_log_probs",
    "data.path": "dataset dataset_name train_file data_path",
    "data.eval_path": "eval_dataset val_dataset validation_file",
    "data.images": "image_folder media_dir image_dir",
    "data.aspect": "image_aspect_ratio",
    "data.max_length": "cutoff_len max_seq_length model_max_length",
    "data.limit": "max_samples",
    "data.workers": "dataloader_num_workers preprocessing_num_workers dataset_num_proc",
    "parallel.activation_checkpointing": "gradient_checkpointing",
    "parallel.shard": "fsdp deepspeed",
    "parallel.compile": "torch_compile",
    "log.trackers": "report_to",
    "log.name": "run_name run",
    "output_dir": "output out save_dir",
}
ALIASES = {name: key for key, names in ELSEWHERE.items() for name in names.split()}


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
