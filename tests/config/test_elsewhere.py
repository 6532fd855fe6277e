"""Keys of other trainers: each has a name here, or a reason why there is none, and the message and the docs say it."""

from dataclasses import fields
from pathlib import Path

import pytest

from mmfast.config import elsewhere, load
from mmfast.config.toml import all_keys
from tests.config.test_effects import keys_of_schema

# trl 1.16.0, DPOConfig with what it has of transformers' TrainingArguments
TRL_KEYS = """
output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs
warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon optim_target_modules
gradient_accumulation_steps average_tokens_across_devices max_grad_norm label_smoothing_factor bf16 fp16 bf16_full_eval
fp16_full_eval tf32 activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing
gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode use_liger_kernel
liger_kernel_config use_cache neftune_noise_alpha torch_empty_cache_steps auto_find_batch_size logging_strategy
logging_steps logging_first_step log_on_each_node logging_nan_inf_filter include_num_input_tokens_seen log_level
log_level_replica disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id
eval_strategy eval_steps eval_delay per_device_eval_batch_size prediction_loss_only eval_on_start eval_do_concat_batches
eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics save_only_model save_strategy
save_steps save_on_each_node save_total_limit enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id
hub_strategy hub_always_push hub_revision load_best_model_at_end metric_for_best_model greater_is_better
ignore_data_skip restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu accelerator_config
parallelism_config dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order remove_unused_columns label_names
train_sampling_strategy length_column_name ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers
ddp_static_graph ddp_backend ddp_timeout fsdp fsdp_config deepspeed debug skip_memory_metrics do_train do_eval
do_predict resume_from_checkpoint local_rank model_init_kwargs trust_remote_code router_aux_loss_coef disable_dropout
dataset_num_proc max_length truncation_mode padding_free pad_to_multiple_of precompute_ref_log_probs
precompute_ref_batch_size loss_type loss_weights ld_alpha f_divergence_type f_alpha_divergence_coef label_smoothing beta
use_weighting discopop_tau activation_offloading sync_ref_model ref_model_mixup_alpha ref_model_sync_steps pad_token
"""
# LLaMA-Factory, examples/train_lora/qwen2_5vl_lora_dpo.yaml and qwen3vl_lora_dpo.yaml, their comments' keys too
LLAMA_FACTORY_KEYS = """
model_name_or_path image_max_pixels video_max_pixels trust_remote_code stage do_train finetuning_type lora_rank
lora_target pref_beta pref_loss dataset template cutoff_len max_samples overwrite_cache preprocessing_num_workers
dataloader_num_workers output_dir logging_steps save_steps plot_loss overwrite_output_dir save_only_model report_to
per_device_train_batch_size gradient_accumulation_steps learning_rate num_train_epochs lr_scheduler_type warmup_ratio
bf16 ddp_timeout resume_from_checkpoint val_size per_device_eval_batch_size eval_strategy eval_steps
"""
TRL, LLAMA_FACTORY = TRL_KEYS.split(), LLAMA_FACTORY_KEYS.split()


def said(override: str) -> str:
    with pytest.raises(ValueError) as caught:
        load("", [override])
    return str(caught.value)


def test_every_key_of_theirs_is_ours_or_is_named_or_has_a_reason():
    same = {name for name in all_keys() if name not in elsewhere.ALIASES}
    for name in {*TRL, *LLAMA_FACTORY}:
        known = [name in same, name in elsewhere.ALIASES, name in elsewhere.ABSENT]
        assert sum(known) == 1, name
    assert load("", ["output_dir=a", "seed=7"])  # at the top there as here
    for name in ({*TRL, *LLAMA_FACTORY} & same) - {"output_dir", "seed"}:
        assert said(f"{name}=1").startswith(f"unknown key {name}: here it is {all_keys()[name][0]}"), name


def test_the_message_names_our_key_or_says_why_there_is_none():
    for name, meant in elsewhere.ALIASES.items():
        assert meant.split(" ")[0] in keys_of_schema() | {"model.lora"}, name
        assert f"here it is {meant}" in said(f"{name}=1"), name
        if name != "rank":  # a key of no section is told as at the top
            assert f"unknown key train.{name}: here it is {meant}" in said(f"train.{name}=1"), name
    for name, why in elsewhere.ABSENT.items():
        assert said(f"train.{name}=1") == f"unknown key train.{name}: it has no counterpart here: {why}"
    assert said("--optim.learning-rate=1e-5") == "unknown key optim.learning_rate: here it is optim.lr"
    assert said("optim=adamw_torch") == "optim is a section: here it is optim.name"
    assert said("path=x") == "unknown key path: here it is model.path or data.path or reference.path"


def test_a_dashed_key_takes_the_value_that_follows():
    found = load("", ["--optim.lr", "1e-5", "train.steps=4", "--train.pairs-per-step", "8", "--log.name=a b"])
    assert (found.optim.lr, found.train.steps, found.train.pairs_per_step, found.log.name) == (1e-5, 4, 8, "a b")
    assert said("--lr=1e-5") == "unknown key lr: here it is optim.lr"
    for alone in (["--optim.lr"], ["--optim.lr", "--train.steps=4"], ["optim.lr", "1e-5"]):
        with pytest.raises(ValueError, match=r"override '(--)?optim.lr': write section.key=value"):
            load("", alone)


def test_the_page_holds_the_table():
    page = Path("docs/migration.md").read_text()
    assert elsewhere.table() in page, f"put this table there:\n{elsewhere.table()}"


@pytest.mark.slow
def test_the_list_is_trls():
    trl = pytest.importorskip("trl")
    if trl.__version__.startswith("1.16"):
        assert [field.name for field in fields(trl.DPOConfig)] == TRL
