"""Every key of the schema: when it acts, and that setting it where it cannot raises with its name and the fix.

A key that this table does not know fails: a new key says here when it acts.
"""

from typing import get_args

import pytest

from mmfast.config import Config, Lora, Section, Source, Term, build, dump, load
from mmfast.config import effects as config_effects
from mmfast.config import rules as config_rules
from mmfast.config import schema as config
from mmfast.packages import tomllib

ALWAYS = {
    "output_dir": "the run's files lie there",
    "seed": "order, dropout, LoRA's start, the rows re-scored",
    "about": "the model card's words",
    "model.path": "the policy",
    "model.adapter": "trained further",
    "model.dtype": "of the forward pass",
    "model.attention": "a backend that cannot be used here raises at its first call",
    "model.min_pixels": "a model of fixed size, or of text, refuses it (test_a_text_model, data/images/processor.py)",
    "model.max_pixels": "as min_pixels",
    "model.lora.r": "wherever [model.lora] is allowed at all",
    "model.lora.alpha": "as r",
    "model.lora.dropout": "as r",
    "model.lora.targets": "as r",
    "data.path": "the examples",
    "data.split": "of folders and hub ids; refused where the data are files (data/containers/read.py)",
    "data.subset": "as split",
    "data.revision": "of hub ids; refused where there is none",
    "data.format": "forced",
    "data.images": "on relative paths of images",
    "data.aspect": "one that does not suit the model, or a text model, raises when examples are built",
    "data.template": "the rendered text",
    "data.turns": "conversations; an answer of one turn is the last and all",
    "data.max_length": "longer rows are bad rows",
    "data.max_words": "longer answers are cut",
    "data.truncate": "what becomes of rows over max_length",
    "data.on_error": "what becomes of bad rows",
    "data.limit": "rows read",
    "data.eval_path": "evaluated at the end at least",
    "data.workers": "examples and packs, however few (test_workers_build_the_packs_of_a_few_examples)",
    "data.cache": "a place",
    "data.path[].path": "a source",
    "data.path[].weight": "how often its rows come",
    "objective.kind": "pairs or answers",
    "objective.terms[].loss": "a summand",
    "objective.terms[].weight": "its factor, above 0",
    "optim.name": "the optimiser",
    "optim.lr": "the rate",
    "optim.betas": "of every optimiser",
    "optim.eps": "of every optimiser",
    "optim.schedule": "the rate's shape",
    "optim.warmup": "at most the run's steps",
    "optim.weight_decay": "matrices",
    "optim.clip": "the gradient",
    "train.epochs": "or steps",
    "train.steps": "or epochs",
    "train.pairs_per_step": "the step",
    "train.tokens_per_pack": "memory",
    "train.shuffle": "the order",
    "train.drop_last": "the last step of an epoch",
    "train.resume": "the start",
    "train.checkpoint_every": "checkpoints",
    "train.keep_last": "checkpoints, those of a stop too",
    "train.nonfinite_limit": "when to give up",
    "evaluate.bench": "answered and scored at the end at least",
    "parallel.shard": "on several ranks",
    "parallel.activation_checkpointing": "memory",
    "parallel.compile": "speed",
    "parallel.offload": "without a GPU it raises when the run starts",
    "parallel.threads": "a process's",
    "log.every": "metrics.jsonl",
    "log.trackers": "one that is not installed raises",
    "log.progress": "the bar",
}

SFT = ["objective.kind=sft"]
LORA = ["model.lora.r=8"]
EVAL = ["data.eval_path=held_out.jsonl"]
BENCH = ["evaluate.bench=pope", "evaluate.data=somewhere"]
# key: (set where it cannot act, what the line says beside the key, set where it acts)
GATED = {
    "model.lora": ([*LORA, "model.adapter=some/adapter"], "take .model.lora. out", LORA),
    "model.quantize": (["model.quantize=nf4"], r"needs \[model.lora\]", ["model.quantize=nf4", "model.adapter=a"]),
    "model.freeze": (
        [*LORA, "model.freeze=[]"],
        "the vision tower does not train",
        ["model.freeze=vision,projector", *LORA],
    ),
    "model.cache_vision": (
        ["model.cache_vision=true", "model.freeze=[]"],
        'needs "vision" in model.freeze',
        ["model.cache_vision=true"],
    ),
    "data.options": (
        ["data.options={ prompt = 'p.txt' }"],
        "no reader has it",
        ["data.options={ prompts = 'p.txt' }", "data.format=dgpref"],
    ),
    "reference.kind": ([*SFT, *LORA, "reference.kind=adapter-off"], "sft", [*LORA, "reference.kind=adapter-off"]),
    "reference.model": ([*SFT, "reference.model=m"], "only a cached reference", ["reference.model=m"]),
    "reference.path": (
        [*LORA, "reference.kind=adapter-off", "reference.path=p"],
        "only a cached reference",
        ["reference.path=p"],
    ),
    "reference.check": ([*SFT, "reference.check=2"], "only a cached reference", ["reference.check=2"]),
    "reference.tolerance": ([*SFT, "reference.tolerance=1"], "nothing is compared", ["reference.tolerance=1"]),
    "objective.loss": ([*SFT, "objective.loss=ipo"], "train on pairs", ["objective.loss=ipo"]),
    "objective.beta": ([*SFT, "objective.beta=1"], "has a beta", ["objective.beta=1"]),
    "objective.gamma": ([*SFT, "objective.gamma=2"], "train on pairs", ["objective.gamma=2"]),
    "objective.segments": (
        ["objective.segments=compat"],
        "set objective.gamma above 1",
        ["objective.segments=compat", "objective.gamma=2"],
    ),
    "objective.average": (
        ["objective.average=true", "objective.loss=ipo"],
        "per token whatever it says",
        ["objective.average=true"],
    ),
    "objective.label_smoothing": (
        ["objective.label_smoothing=0.1", "objective.loss=hinge"],
        "acts on sigmoid",
        ["objective.label_smoothing=0.1"],
    ),
    "objective.sft_weight": ([*SFT, "objective.sft_weight=1"], "train on pairs", ["objective.sft_weight=1"]),
    "objective.sft_average": (
        ["objective.sft_average=true"],
        "give objective.sft_weight",
        ["objective.sft_average=true", "objective.sft_weight=0.1"],
    ),
    "objective.terms": (
        [*SFT, "objective.terms=[{ loss = 'ipo', weight = 1 }]"],
        "train on pairs",
        ["objective.terms=[{ loss = 'ipo', weight = 1 }]"],
    ),
    "objective.divergence": (
        ["objective.divergence=forward_kl", "objective.loss=apo_zero"],
        "it is defined for sigmoid",
        ["objective.divergence=forward_kl"],
    ),
    "objective.alpha": (
        ["objective.alpha=0.5"],
        'objective.divergence = "alpha_divergence"',
        ["objective.alpha=0.5", "objective.divergence=alpha_divergence"],
    ),
    "objective.ld_alpha": (
        ["objective.ld_alpha=0.5", "objective.loss=orpo", "reference.kind=none"],
        "likelihoods of whole answers",
        ["objective.ld_alpha=0.5"],
    ),
    "objective.tau": (["objective.tau=0.1"], "discopop", ["objective.tau=0.1", "objective.loss=discopop"]),
    "objective.simpo_margin": (
        ["objective.simpo_margin=1"],
        "simpo",
        ["objective.simpo_margin=1", "objective.loss=simpo", "reference.kind=none"],
    ),
    "objective.compat": (
        ["objective.compat=dgpref", "reference.kind=adapter-off", *LORA],
        "only a cached reference",
        ["objective.compat=sima", "reference.kind=adapter-off", *LORA],
    ),
    "optim.projector_lr": (
        ["optim.projector_lr=1e-4", "model.freeze=vision,projector"],
        'take "projector" out of model.freeze',
        ["optim.projector_lr=1e-4"],
    ),
    "optim.vision_lr": (
        ["optim.vision_lr=1e-4"],
        'take "vision" out of model.freeze',
        ["optim.vision_lr=1e-4", "model.freeze=[]"],
    ),
    "optim.master": (
        ["optim.master=bf16-stochastic", "model.dtype=float32"],
        'model.dtype = "bfloat16"',
        ["optim.master=bf16-stochastic"],
    ),
    "optim.min_lr": (["optim.min_lr=0.1", "optim.schedule=constant"], "choose another", ["optim.min_lr=0.1"]),
    "optim.decay_share": (["optim.decay_share=0.2"], "wsd", ["optim.decay_share=0.2", "optim.schedule=wsd"]),
    "train.best_metric": (
        [*EVAL, "train.best_metric=eval/loss"],
        "set data.eval_path and train.eval_every",
        [*EVAL, "train.eval_every=5", "train.best_metric=eval/loss"],
    ),
    "data.eval_split": (["data.eval_split=test"], "data.eval_path", [*EVAL, "data.eval_split=test"]),
    "train.eval_every": (["train.eval_every=5"], "data.eval_path", [*EVAL, "train.eval_every=5"]),
    "train.eval_samples": (["train.eval_samples=5"], "data.eval_path", [*EVAL, "train.eval_samples=5"]),
    "train.eval_tokens": (
        [*EVAL, "train.eval_tokens=5"],
        "train.eval_samples",
        [*EVAL, "train.eval_tokens=5", "train.eval_samples=1"],
    ),
    "evaluate.data": (["evaluate.data=d"], "evaluate.bench", BENCH),
    "evaluate.images": (["evaluate.images=d"], "evaluate.bench", [*BENCH, "evaluate.images=d"]),
    "evaluate.limit": (["evaluate.limit=2"], "evaluate.bench", [*BENCH, "evaluate.limit=2"]),
    "evaluate.every": (["evaluate.every=2"], "evaluate.bench", [*BENCH, "evaluate.every=2"]),
    "evaluate.start": (
        [*BENCH, "evaluate.start=2"],
        "evaluate.every",
        [*BENCH, "evaluate.every=2", "evaluate.start=2"],
    ),
    "evaluate.best": (
        [*BENCH, "evaluate.best=pope.f1"],
        "evaluate.every",
        [*BENCH, "evaluate.every=2", "evaluate.best=pope.f1"],
    ),
    "evaluate.margin": (
        [*BENCH, "evaluate.every=2", "evaluate.margin=false"],
        "evaluate.best",
        [*BENCH, "evaluate.every=2", "evaluate.best=pope.f1", "evaluate.margin=false"],
    ),
    "parallel.shard_size": (["parallel.shard_size=2"], "hybrid", ["parallel.shard_size=2", "parallel.shard=hybrid"]),
    "log.project": (
        ["log.project=p", "log.trackers=tensorboard"],
        "add one to log.trackers",
        ["log.project=p", "log.trackers=wandb"],
    ),
    "log.name": (["log.name=n", "export.formats=[]"], "log.trackers", ["log.name=n"]),
    "export.formats": (["export.formats=peft"], r"needs \[model.lora\] or", ["export.formats=peft", "model.adapter=a"]),
    "export.merge": (
        ["export.merge=true", *LORA, "export.formats=peft"],
        '"hf" format',
        ["export.merge=true", "model.adapter=a"],
    ),
}  # fmt: skip


def keys_of_schema():
    found = set()
    nested = {"model.lora": Lora, "data.path[]": Source, "objective.terms[]": Term}
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= {f"{name}.{key}" for key in field.annotation.model_fields}
        else:
            found.add(name)
    return found | {f"{path}.{key}" for path, section in nested.items() for key in section.model_fields}


def test_the_table_knows_every_key_once():
    assert keys_of_schema() == ALWAYS.keys() | GATED.keys()
    assert not ALWAYS.keys() & GATED.keys()
    assert config_effects.effects(config.Config()).keys() <= GATED.keys()


@pytest.mark.parametrize("key", sorted(GATED))
def test_a_key_that_cannot_act_raises_by_name_with_the_fix_and_one_that_can_is_taken(key):
    idle, fix, acting = GATED[key]
    with pytest.raises(ValueError, match=fix) as caught:
        load("", idle)
    lines = str(caught.value).splitlines()
    assert any(key in line for line in lines), lines
    assert all(len(line) < 400 for line in lines)
    taken = load("", acting)
    value, default = config_effects.value_of(taken, key)
    assert value != default
    assert load_again(taken) == taken  # a resolved config, which writes every key, is no mistake


def load_again(given):
    return build(tomllib.loads(dump(given)))


def test_names_that_stand_in_two_files_are_the_same():
    from mmfast.data.formats.known import FORMATS
    from mmfast.data.images.processor import ASPECTS
    from mmfast.data.text.templates import NAMES
    from mmfast.ops.attention import BACKENDS
    from mmfast.training.objective import Pairs, Sft

    assert set(get_args(config.Data.model_fields["format"].annotation)) == {"auto", *FORMATS}
    assert set(get_args(config.Data.model_fields["template"].annotation)) == set(NAMES)
    assert set(get_args(config.Data.model_fields["aspect"].annotation)) == set(ASPECTS)
    assert set(get_args(config.Model.model_fields["attention"].annotation)) == {"auto", *BACKENDS}
    assert set(config_rules.PAIR_METRICS) == {f"eval/{name}" for name in Pairs.names if name != "pairs"}
    assert set(config_rules.SFT_METRICS) == {f"eval/{name}" for name in Sft.names if name != "tokens"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.betas=[-1, 2]"], "optim.betas"),
        (["optim.betas=[0.9, 1.0]"], "optim.betas"),
        (["optim.lr=inf"], "optim.lr: .*finite"),
        (["optim.eps=nan"], "optim.eps"),
        (["optim.warmup=5000", "train.steps=10"], "optim.warmup = 5000 steps is more than the run's 10"),
        (["optim.warmup=1.5"], "whole number of steps"),
        (["data.format=csv"], "data.format: .*'trl'"),
        (["data.aspect=wide"], "data.aspect: .*'pad'"),
        (["data.template=vicuna"], "data.template: .*'vicuna_v1'"),
        (["model.attention=flash5"], "model.attention: .*'flash2'"),
        (["model.min_pixels=100", "model.max_pixels=50"], "model.min_pixels = 100 is above"),
        (["objective.terms=[{ loss = 'ipo', weight = 0 }]"], "objective.terms.*greater than 0"),
        (["objective.loss=exo_pair"], "objective.label_smoothing"),
        (["objective.loss=robust", "objective.label_smoothing=0.6"], "below 0.5"),
        (["objective.divergence=alpha_divergence"], "needs objective.alpha"),
        (["model.lora.targets="], "model.lora.targets"),
        ([*EVAL, "train.eval_every=1", "train.best_metric=eval/acc"], "best_metric = 'eval/acc' is not measured"),
        ([*EVAL, *SFT, "train.eval_every=1", "train.best_metric=eval/x"], "these are: eval/loss, eval/nll"),
        (["model.adapter=a", "model.freeze=vision,language"], 'take "language" out of model.freeze'),
        (["data.options={ names = 'n.json' }"], 'it is an option of data.format = "dgpref"'),
        (["evaluate.bench=pope"], "evaluate.bench needs evaluate.data"),
        ([*BENCH, "evaluate.every=1", "evaluate.best=mme.sum"], "evaluate.best = 'mme.sum' is no metric of"),
        ([*BENCH, *EVAL, "evaluate.every=1", "evaluate.best=pope.f1", "train.eval_every=1",
          "train.best_metric=eval/loss"], "exclude each other"),
        (["evaluate.bench=pope,pope", "evaluate.data=d"], "twice"),
        (["data.options={ claims = 0.0 }"], 'objective.segments = "record"'),
    ],
)  # fmt: skip
def test_values_are_ranged_when_the_config_is_read(overrides, message):
    with pytest.raises(ValueError, match=message):
        load("", overrides)


def test_an_override_of_steps_clears_a_files_epochs_and_the_other_way_round(tmp_path):
    file = tmp_path / "c.toml"
    for there, given in (("epochs = 3", "train.steps=2"), ("steps = 9", "train.epochs=2")):
        file.write_text(f"[train]\n{there}\n")
        train = load(file, [given]).train
        assert (train.steps, train.epochs) == ((2, None) if "steps" in given else (None, 2.0))
    with pytest.raises(ValueError, match="exclude each other"):
        load(file, ["train.steps=2", "train.epochs=1"])
    file.write_text("[train]\nsteps = 3\nepochs = 1\n")
    with pytest.raises(ValueError, match="exclude each other"):
        load(file)
    with pytest.raises(ValueError, match="exclude each other"):
        load(file, ["optim.lr=1e-5"])


def test_a_key_whose_default_is_absence_can_be_taken_out(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("[model]\nlora = { r = 8 }\n[optim]\nprojector_lr = 1e-5\n[train]\nepochs = 7\n")
    found = load(file, ["model.lora=none", "optim.projector_lr=none", "train.epochs=none", "model.adapter=a"])
    assert found.model.lora is None and found.optim.projector_lr is None and found.train.epochs == 3
    assert load("", ["log.name=none"]).log.name == "none"  # a text is a text


def test_one_name_is_a_list_of_one_and_dashes_are_forgiven():
    found = load("", ["--log.trackers=wandb", "--model.freeze=vision,projector", "--train.pairs-per-step=4"])
    assert found.log.trackers == ["wandb"] and found.model.freeze == ["vision", "projector"]
    assert found.train.pairs_per_step == 4
    with pytest.raises(ValueError, match=r"'hf', 'peft' or 'llava' \(got 'gguf'\)"):
        load("", ["export.formats=gguf"])


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["objective.gamma=2"], "gamma"),
        (["objective.average=true"], "average"),
        (["objective.loss=ipo"], "loss"),
        (["objective.sft_weight=0.1"], "sft_weight"),
        (["objective.label_smoothing=0.1"], "label_smoothing"),
        (["objective.terms=[{ loss = 'sft', weight = 1 }]"], "terms"),
    ],
)
def test_simas_released_loss_stands_alone(overrides, named):
    load("", ["objective.compat=sima", "objective.beta=0.2"])
    with pytest.raises(ValueError, match=f"released loss, of which beta alone can be set: leave {named} out"):
        load("", ["objective.compat=sima", *overrides])
