"""docs/from-llama-factory.md and docs/from-ms-swift.md: each of their DPO examples becomes a config of ours that holds
the same values, by the table of mmfast/config/elsewhere.py."""

import math
import re
import shlex
from pathlib import Path

import pytest

from mmfast.config import elsewhere, load
from mmfast.config.toml import all_keys
from mmfast.job.opening import keys_of_images

DOCS = Path(__file__).parents[2] / "docs"
# Keys and values of their files, at the commits that the pages name; what follows the first of a page is what changes
LLAMA_FACTORY = {
    "examples/train_lora/qwen3vl_lora_dpo.yaml": """
        model_name_or_path=Qwen/Qwen3-VL-4B-Instruct image_max_pixels=262144 video_max_pixels=16384 bf16=true
        trust_remote_code=true stage=dpo do_train=true finetuning_type=lora lora_rank=8 lora_target=all
        pref_beta=0.1 pref_loss=sigmoid dataset=rlhf_v template=qwen3_vl_nothink cutoff_len=2048 max_samples=1000
        overwrite_cache=true preprocessing_num_workers=16 dataloader_num_workers=4
        output_dir=saves/qwen3-vl-4b/lora/dpo logging_steps=10 save_steps=500 plot_loss=true
        overwrite_output_dir=true save_only_model=false report_to=none per_device_train_batch_size=1
        gradient_accumulation_steps=8 learning_rate=5.0e-6 num_train_epochs=3.0 lr_scheduler_type=cosine
        warmup_ratio=0.1 ddp_timeout=180000000 resume_from_checkpoint=null lora_alpha=16 freeze_vision_tower=true
        freeze_multi_modal_projector=true""",
    "examples/train_lora/qwen3_lora_dpo.yaml": """
        model_name_or_path=Qwen/Qwen3-4B-Instruct-2507 dataset=dpo_en_demo template=qwen3_nothink image_max_pixels=-
        video_max_pixels=- output_dir=saves/qwen3-4b/lora/dpo freeze_vision_tower=- freeze_multi_modal_projector=-""",
    "examples/v1/train_lora/train_lora_dpo.yaml": """
        model=Qwen/Qwen3-4B model_class=llm lora_rank=16 lora_alpha=32 lora_dropout=0.05 lora_target=all
        kernel_config=auto dist_config=fsdp2 train_dataset=orca_dpo_pairs output_dir=outputs/test_lora
        micro_batch_size=1 cutoff_len=2048 learning_rate=1.0e-5 max_steps=10 sample_backend=hf max_new_tokens=128
        image_max_pixels=- max_samples=- lr_scheduler_type=constant warmup_ratio=0 weight_decay=0.01
        model_name_or_path=- dataset=- num_train_epochs=- per_device_train_batch_size=-
        gradient_accumulation_steps=- logging_steps=1 freeze_vision_tower=- freeze_multi_modal_projector=-
        save_steps=-""",
}
TEXT = "dataset=hjh0119/shareAI-Llama3-DPO-zh-en-emoji max_length=2048 max_pixels=- freeze_vit=- freeze_aligner=-"
FULL = (
    "tuner_type=full lora_rank=- lora_alpha=- lora_dropout=- target_modules=- learning_rate=1e-5 save_only_model=true"
)
SWIFT = {
    "multimodal/rlhf/dpo/lora.sh": """
        GPUS=2 rlhf_type=dpo model=Qwen/Qwen2.5-VL-7B-Instruct dataset=swift/RLAIF-V-Dataset#20000
        load_from_cache_file=true split_dataset_ratio=0.01 tuner_type=lora torch_dtype=bfloat16 num_train_epochs=1
        per_device_train_batch_size=1 per_device_eval_batch_size=1 learning_rate=1e-4 lora_rank=8 lora_alpha=32
        target_modules=all-linear freeze_vit=true freeze_aligner=true gradient_accumulation_steps=8 eval_steps=100
        save_steps=100 save_total_limit=2 deepspeed=zero2 logging_steps=5 max_length=4096 output_dir=output
        warmup_ratio=0.05 dataloader_num_workers=4 rpo_alpha=0.1 dataset_num_proc=4 max_pixels=1003520
        lora_dropout=0.05 beta=0.1 weight_decay=0.1 adam_beta2=0.95 lr_scheduler_type=cosine""",
    "multimodal/rlhf/dpo/full.sh": f"{FULL} GPUS=4 gradient_accumulation_steps=4 deepspeed=zero3",
    "packing/dpo_vlm.sh": f"""
        {FULL} GPUS=4 dataset=swift/RLAIF-V-Dataset gradient_accumulation_steps=- per_device_train_batch_size=-
        eval_steps=200 save_steps=200 deepspeed=zero3 max_length=8192 dataset_num_proc=64 attn_impl=flash_attn
        packing=true""",
    "padding_free/dpo_vlm.sh": f"""
        {FULL} GPUS=4 per_device_train_batch_size=4 gradient_accumulation_steps=1 deepspeed=zero3
        attn_impl=flash_attn padding_free=true""",
    "sequence_parallel/sequence_parallel_dpo.sh": f"""
        {FULL} GPUS=1 model=Qwen/Qwen2.5-VL-3B-Instruct dataset=swift/RLAIF-V-Dataset num_train_epochs=3
        max_pixels=- gradient_accumulation_steps=8 eval_steps=200 save_steps=200 dataloader_num_workers=8
        dataset_num_proc=8 output_dir=output/Qwen2.5-VL-3B-Instruct attn_impl=flash_attn use_liger_kernel=true
        sequence_parallel_size=4 max_length=128000""",
    "rlhf/mpo.sh": f"""
        {FULL} GPUS=4 gradient_accumulation_steps=4 loss_type=sigmoid,bco_pair,sft loss_weights=0.8,0.2,1.0
        rpo_alpha=-""",
    "rlhf/dpo/lora.sh": f"{TEXT} GPUS=1 model=Qwen/Qwen2.5-7B-Instruct gradient_accumulation_steps=16 eval_steps=50 "
    "save_steps=50 deepspeed=-",
    "rlhf/dpo/full.sh": f"""
        {TEXT} {FULL} GPUS=4 model=Qwen/Qwen2.5-7B-Instruct per_device_train_batch_size=4
        gradient_accumulation_steps=1 max_length=8192 deepspeed=zero3 attn_impl=flash_attn padding_free=true""",
    "packing/dpo.sh": f"""
        {TEXT} {FULL} GPUS=4 model=Qwen/Qwen2.5-7B-Instruct dataset=AI-ModelScope/orpo-dpo-mix-40k max_length=8192
        per_device_train_batch_size=- gradient_accumulation_steps=- eval_steps=200 save_steps=200 deepspeed=zero3
        attn_impl=flash_attn packing=true""",
    "rlhf/orpo.sh": f"{TEXT} GPUS=2 model=Qwen/Qwen2.5-7B-Instruct rlhf_type=orpo rpo_alpha=-",
    "rlhf/simpo.sh": f"""
        {TEXT} {FULL} GPUS=2 model=Qwen/Qwen2.5-3B-Instruct rlhf_type=simpo rpo_alpha=- beta=2 cpo_alpha=1
        simpo_gamma=1""",
}
# examples/megatron/multimodal/dense/dpo.sh: no command of ours, but each of its options is told of
MEGATRON = """
rlhf_type model save_safetensors dataset load_from_cache_file tuner_type tensor_model_parallel_size
sequence_parallel freeze_llm freeze_vit freeze_aligner packing split_dataset_ratio micro_batch_size global_batch_size
recompute_granularity recompute_method recompute_num_layers finetune cross_entropy_loss_fusion lr lr_warmup_fraction
min_lr num_train_epochs output_dir save_steps max_length dataloader_num_workers no_save_optim no_save_rng
dataset_num_proc attention_backend rpo_alpha beta loss_type
"""
FROZEN = {"freeze_vision_tower": "vision", "freeze_vit": "vision"}
FROZEN |= {"freeze_multi_modal_projector": "projector", "freeze_aligner": "projector"}
# Whose values are names of theirs: that ours is set is all that can be said
APART = ("train.pairs_per_step", "train.tokens_per_pack", "model.freeze", "objective.terms")  # looked at by themselves
OTHER_WORDS = {("objective.loss", "dpo"): "sigmoid", ("model.dtype", "true"): "bfloat16"}
OTHER_WORDS |= {("model.lora.targets", word): "language-linear" for word in ("all", "all-linear")}
NAMED = ("data.path", "data.eval_path", "data.template", "data.workers", "parallel.shard", "model.attention")


def settings(examples, name):
    """Of an example: the first one's, with its own over them; `key=-` takes one out."""
    found = {}
    for text in (next(iter(examples.values())), examples[name]):
        found |= dict(word.split("=") for word in text.split())
    return {key: value for key, value in found.items() if value != "-"}


def page(name):
    """The page, its file's text, and what each example's command adds to it."""
    text = (DOCS / name).read_text()
    (body,) = re.findall(r"^```toml\n(.*?)^```", text, re.M | re.S)
    return text, body, dict(re.findall(r"^\| `(\S+\.(?:sh|yaml))` \| `mmfast train (.+)` \|$", text, re.M))


def ours(key):
    """What the table says of a key of theirs: our key, or nothing where there is nothing to set."""
    if key == "GPUS" or key in elsewhere.ABSENT:
        return ""
    return elsewhere.ALIASES.get(key, "").split(" ")[0] or all_keys()[key][0]


def value_of(config, key):
    for part in key.split("."):
        config = getattr(config, part)
    return config


@pytest.fixture(params=["from-llama-factory.md", "from-ms-swift.md"])
def told(request, tmp_path):
    text, body, commands = page(request.param)
    file = tmp_path / re.findall(r"^# (\S+\.toml)$", body, re.M)[0]
    file.write_text(body)
    return {"from-llama-factory.md": LLAMA_FACTORY, "from-ms-swift.md": SWIFT}[request.param], text, file, commands


def agrees(found, target, value):
    """Whether our value means what theirs means."""
    if target == "model.lora":
        return (found is not None) == (value == "lora")
    if target in NAMED:
        return bool(found) or target == "model.attention"
    if target in ("train.resume", "log.trackers"):
        return (value, found) in (("true", "never"), ("null", "never"), ("none", []))
    if isinstance(found, str):
        first = value.split(",")[0]
        return found == OTHER_WORDS.get((target, first), first)
    return (found[1] if target == "optim.betas" else found) == float(value)


def batch(theirs):
    """Pairs of a step over all GPUs."""
    parts = ("GPUS", "micro_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps")
    return math.prod(float(theirs.get(part, 1)) for part in parts)


def test_each_example_becomes_a_config_with_its_values(told):
    examples, text, file, commands = told
    first, *others = examples
    assert f"{first}\n" in text and set(commands) == set(others)
    for name in examples:
        theirs = settings(examples, name)
        # The file alone, or the command's overrides on it
        words = shlex.split(commands.get(name, file.name))
        assert words[0] == file.name
        gpus = words[words.index("--gpus") + 1] if "--gpus" in words else ""
        if name != first and "sequence_parallel_size" not in theirs:
            assert (gpus or "1") == theirs.get("GPUS", "1")
        config = load(file, [word for word in words[1:] if word not in ("--gpus", gpus)])
        # Keys that stand for one of ours each
        for key, value in theirs.items():
            target = ours(key)
            if target and target not in APART:
                assert agrees(value_of(config, target), target, value), (name, key, value, target)
        # Several of theirs for one of ours; a text model keeps the default, and no key of images
        frozen = [part for key, part in FROZEN.items() if key in theirs]
        assert config.model.freeze == (frozen or ["vision"]) and (frozen or keys_of_images(config) == []), name
        assert "packing" in theirs or config.train.pairs_per_step == batch(theirs), name
        rows = theirs.get("max_samples", theirs.get("dataset", "").partition("#")[2])
        assert config.data.limit == float(rows or 0), name
        mixed = {"rpo_alpha", "cpo_alpha", "loss_weights"} & set(theirs)
        assert bool(mixed) == (config.objective.sft_weight > 0) == config.objective.sft_average, name


def test_mixed_losses_have_their_shares(tmp_path):
    """Divided by the main loss's, which has no weight here."""
    main, bco, sft = (float(weight) for weight in settings(SWIFT, "rlhf/mpo.sh")["loss_weights"].split(","))
    _, body, commands = page("from-ms-swift.md")
    (tmp_path / "swift.toml").write_text(body)
    words = shlex.split(commands["rlhf/mpo.sh"])
    config = load(tmp_path / "swift.toml", words[words.index("4") + 1 :])
    (term,) = config.objective.terms
    assert (term.loss, term.weight, config.objective.sft_weight) == ("bco_pair", bco / main, sft / main)
    assert config.optim.clip == 1 / main


def test_the_file_names_each_key_that_it_comes_from(told):
    """Beside our key, or among those that need none."""
    examples, _, file, _ = told
    body = file.read_text()
    section = ""
    lines = {}
    for line in body.splitlines():
        if head := re.match(r"\[(.+)\]", line):
            section = f"{head[1]}."
        if key := re.match(r"(\w+) = ", line):
            lines[section + key[1]] = line.partition("  # ")[2]
    lines["model.lora"] = (
        body.partition("[model.lora]")[2].splitlines()[0] if "[model.lora]" in body else lines["model.lora"]
    )
    for key in settings(examples, next(iter(examples))):
        target = ours(key)
        if not target or target == "train.tokens_per_pack":
            continue
        beside = lines.get(target) or lines[target.rpartition(".")[0]]
        assert re.search(rf"\b{key}\b", beside, re.I), (key, target, beside)


def test_every_option_is_told_of_in_the_table():
    table = elsewhere.table()
    keys = {key for examples in (LLAMA_FACTORY, SWIFT) for name in examples for key in settings(examples, name)} - {
        "GPUS"
    }
    for key in keys | set(MEGATRON.split()):
        assert f"`{key}`" in table or key in all_keys(), key
