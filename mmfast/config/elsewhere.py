"""What TRL's DPOConfig, LLaMA-Factory, ms-swift and others call our keys, and which of theirs have no counterpart.

One table serves the message of an unknown key and docs/migration.md; tests hold it to every key of TRL's DPOConfig
and of the DPO examples of LLaMA-Factory and ms-swift.
"""

from __future__ import annotations

BATCH = "train.pairs_per_step (pairs of a step over all GPUs), with train.tokens_per_pack as the memory dial"
HERE = {  # our key, and a word on it -> what others call it
    BATCH: "batch batch_size train_batch_size global_batch_size micro_batch_size per_device_train_batch_size "
    "gradient_accumulation_steps per_device_batch_size",
    "train.tokens_per_pack (the memory dial; `mmfast plan` shows what it takes)": "auto_find_batch_size "
    "per_device_eval_batch_size precompute_ref_batch_size",
    "train.epochs": "num_train_epochs num_epochs max_epochs",
    "train.steps": "max_steps num_steps total_steps",
    "train.drop_last": "dataloader_drop_last",
    "train.shuffle": "train_sampling_strategy group_by_length disable_shuffling",
    "train.checkpoint_every": "save_steps save_interval save_strategy",
    "train.keep_last": "save_total_limit",
    "train.eval_every": "eval_steps eval_interval eval_strategy",
    "train.eval_tokens": "max_new_tokens",
    "train.best_metric": "metric_for_best_model load_best_model_at_end",
    "train.resume": "resume_from_checkpoint overwrite_output_dir",
    "train.nonfinite_limit": "logging_nan_inf_filter",
    "optim.lr": "lr learning_rate peak_lr",
    "optim.name": "optim optimizer optimizer_type",
    "optim.schedule": "lr_scheduler_type lr_scheduler scheduler",
    "optim.min_lr (and optim.decay_share)": "lr_scheduler_kwargs",
    "optim.warmup": "warmup_ratio warmup_steps lr_warmup_fraction",
    "optim.clip": "max_grad_norm clip_grad grad_clip gradient_clipping",
    "optim.betas": "adam_beta1 adam_beta2",
    "optim.eps": "adam_epsilon",
    "optim.projector_lr": "mm_projector_lr aligner_lr",
    "optim.vision_lr": "vit_lr vision_tower_lr",
    "objective.loss": "loss_type pref_loss rlhf_type",
    "objective.terms": "loss_weights",
    "objective.beta": "pref_beta dpo_beta",
    "objective.sft_weight": "pref_ftx rpo_alpha cpo_alpha sft_alpha",
    "objective.gamma": "dpo_token_weight dpo_token_weighted",
    "objective.average": "dpo_use_average",
    "objective.label_smoothing": "dpo_label_smoothing",
    "objective.divergence": "f_divergence_type",
    "objective.alpha": "f_alpha_divergence_coef",
    "objective.tau": "discopop_tau",
    "objective.simpo_margin": "simpo_gamma",
    "objective.kind": "stage task",
    "model.path": "model model_name_or_path model_id base_model",
    "model.adapter": "adapter_name_or_path adapters",
    "model.dtype": "torch_dtype bf16 fp16 precision",
    "model.dtype (and model.attention, model.quantize)": "model_init_kwargs",
    "model.attention": "attn_implementation attn_impl flash_attn attention_backend",
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
    "data.path": "dataset dataset_name train_dataset train_file data_path",
    "data.eval_path": "eval_dataset val_dataset validation_file val_size split_dataset_ratio",
    "data.split (and data.eval_split)": "dataset_train_split dataset_test_split",
    "data.subset": "dataset_config",
    "data.images": "image_folder media_dir image_dir",
    "data.aspect": "image_aspect_ratio",
    "data.max_length": "cutoff_len max_seq_length model_max_length",
    "data.truncate": "truncation_mode truncation_strategy",
    "data.limit": "max_samples",
    "data.workers": "dataloader_num_workers preprocessing_num_workers dataset_num_proc",
    "seed": "data_seed",
    "parallel.activation_checkpointing": "gradient_checkpointing recompute_granularity",
    "parallel.shard": "fsdp fsdp_config deepspeed accelerator_config parallelism_config dist_config",
    "parallel.compile": "torch_compile",
    "log.every": "logging_steps log_every logging_strategy logging_first_step",
    "log.trackers": "report_to",
    "log.name": "run_name run",
    "log.progress": "disable_tqdm",
    "output_dir": "output out save_dir",
}
NOWHERE = {  # why there is nothing to set -> what others call it
    "it is always so": "padding_free packing average_tokens_across_devices enable_jit_checkpoint plot_loss "
    "save_safetensors",
    "nothing is padded: examples are packed": "pad_to_multiple_of pad_token",
    "the loss is fused with the last layer, always": "use_liger_kernel liger_kernel_config cross_entropy_loss_fusion",
    "each decoder block is recomputed, in one way": "activation_checkpointing_kwargs gradient_checkpointing_kwargs "
    "recompute_method recompute_num_layers",
    "blocks are compiled in one way": "torch_compile_backend torch_compile_mode",
    "a model's dropout is that of its config.json; an adapter's is model.lora.dropout": "disable_dropout",
    "labels of tokens are not smoothed; those of pairs are by objective.label_smoothing": "label_smoothing_factor",
    "evaluation computes in model.dtype": "bf16_full_eval fp16_full_eval",
    "float32 is float32": "tf32",
    "no code of a model's folder is run": "trust_remote_code",
    "images and text alone are read": "video_max_pixels video_min_pixels",
    "what is built is kept by its content, and made anew where that changed": "overwrite_cache load_from_cache_file",
    "training never keeps keys and values": "use_cache",
    "a resumed run goes on at the very example": "ignore_data_skip restore_callback_states_from_checkpoint",
    "a checkpoint holds all that exact resume needs; the model alone is in export/": "save_only_model "
    "no_save_optim no_save_rng",
    "rank 0 alone writes and logs": "save_on_each_node log_on_each_node log_level log_level_replica",
    "`mmfast train` trains, and evaluates where data.eval_path is given": "do_train do_eval do_predict",
    "held-out pairs are always measured in full, as objective.loss measures the others": "prediction_loss_only "
    "eval_do_concat_batches eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics "
    "label_names",
    "the first evaluation is the one after train.eval_every steps": "eval_on_start eval_delay",
    "each metric knows which way is better": "greater_is_better",
    "columns that are not read are kept and named": "remove_unused_columns",
    "lengths are counted, not read": "length_column_name",
    "packs are built by data.workers ahead of the step": "dataloader_pin_memory dataloader_persistent_workers "
    "dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order",
    "gradients are summed by FSDP2 or one all-reduce, without settings": "ddp_find_unused_parameters ddp_bucket_cap_mb "
    "ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout",
    "torchrun, or `mmfast train --gpus N`, says it": "local_rank",
    "parallel.shard alone divides a model: no layers, no heads, no sequences": "sequence_parallel "
    "sequence_parallel_size tensor_model_parallel_size pipeline_model_parallel_size expert_model_parallel_size",
    "kernels are chosen by what runs here (mmfast doctor)": "kernel_config",
    "config.json says what kind of model it is": "model_class",
    "a run starts from model.path and, where its folder holds a checkpoint, goes on from there": "finetune",
    "the model that trains answers in evaluations": "sample_backend",
    "hide the GPUs with CUDA_VISIBLE_DEVICES": "use_cpu",
    "docs/training.md says what repeats to the bit": "full_determinism",
    "the run's folder stays here: upload export/ with the hub's own command": "push_to_hub hub_token hub_private_repo "
    "hub_model_id hub_strategy hub_always_push hub_revision",
    "the reference stays as it is: its log-probs are computed once": "sync_ref_model ref_model_mixup_alpha "
    "ref_model_sync_steps",
    "it is not built": "optim_args optim_target_modules neftune_noise_alpha torch_empty_cache_steps "
    "include_num_input_tokens_seen router_aux_loss_coef use_weighting activation_offloading "
    "trackio_space_id trackio_bucket_id trackio_static_space_id",
    "mmfast measures memory and has no such hooks": "debug skip_memory_metrics",
}
ALIASES = {name: key for key, names in HERE.items() for name in names.split()}
ABSENT = {name: why for why, names in NOWHERE.items() for name in names.split()}


def table() -> str:
    """All of it in markdown, for docs/migration.md."""
    rows = ["| there | here |", "|---|---|"]
    for left, names in HERE.items():
        key, _, word = left.partition(" ")
        rows.append(f"| {_code(names)} | `{key}`{' ' * bool(word)}{word} |")
    rows += ["", "| there | nothing to set here |", "|---|---|"]
    return "\n".join(rows + [f"| {_code(names)} | {why} |" for why, names in NOWHERE.items()]) + "\n"


def _code(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split())
