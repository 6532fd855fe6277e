"""When a key takes effect. A key that is set where it could not raises, before any model is loaded.

"Set" means: away from its default. The resolved config beside a run writes every key, so that a key was written says
nothing, and a default that does nothing promises nothing. Keys that are not listed always act, or act on data or
devices that no config knows (`images` on relative paths, `shard` on several ranks). A test holds the whole schema
against this table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmfast.config.rules import losses_of
from mmfast.config.schema import Config
from mmfast.ops.kinds import DIVERGING, PER_TOKEN, SMOOTHED, WHOLE

PAIRS = 'objective.kind = "sft" is cross entropy alone: leave it out, or train on pairs with kind = "dpo"'
CACHED = 'only a cached reference of pairs reads it: set reference.kind = "cached" and objective.kind = "dpo"'
EVAL = "nothing is evaluated: name held-out data in data.eval_path"
BENCH = "no benchmark is asked: name one in evaluate.bench"


def effects(c: Config) -> dict[str, tuple[bool, str]]:
    """For each key, whether it acts in this config, and the way out where it does not."""
    m, o, r, t = c.model, c.objective, c.reference, c.train
    pairs = o.kind == "dpo"
    losses = set(losses_of(c)) if pairs else set()
    cached = pairs and r.kind == "cached"
    held_out, benched = bool(c.data.eval_path), bool(c.evaluate.bench)
    named_runs = bool({"wandb", "trackio"} & set(c.log.trackers))
    return {
        # What pairs alone have: a reference, a loss and its parameters
        "data.eval_split": (held_out, EVAL),
        "reference.kind": (pairs or r.kind == "none", PAIRS),  # "none" is what SFT does
        "reference.model": (cached, CACHED),
        "reference.path": (cached, CACHED),
        "reference.check": (cached, CACHED),
        "reference.tolerance": (pairs and r.kind != "none", 'nothing is compared: set reference.kind = "cached"'),
        "objective.loss": (pairs, PAIRS),
        "objective.beta": (
            bool(losses - {"sft"}),
            'neither objective.kind = "sft" nor the loss "sft" alone has a beta',
        ),
        "objective.gamma": (pairs, PAIRS),
        "objective.segments": (
            o.segments == "record" or (pairs and o.gamma != 1.0),
            "changed segments weigh 1: set objective.gamma above 1 (DDPO)",
        ),
        "objective.average": (
            bool(losses - set(PER_TOKEN)),
            f'the losses {", ".join(PER_TOKEN)} are per token whatever it says, and so is kind = "sft": leave it out',
        ),
        "objective.label_smoothing": (
            bool(losses & set(SMOOTHED)),
            f"it acts on {', '.join(SMOOTHED)} only: choose one in objective.loss",
        ),
        "objective.sft_weight": (pairs, PAIRS),
        "objective.sft_average": (
            pairs and o.sft_weight > 0 and not o.average,
            "there is no SFT term, or objective.average has divided it already: give objective.sft_weight without "
            "average",
        ),
        "objective.terms": (pairs, PAIRS),
        "objective.divergence": (
            pairs and o.loss in DIVERGING,
            f"it is defined for {', '.join(DIVERGING)}: choose one in objective.loss",
        ),
        "objective.alpha": (
            pairs and o.divergence == "alpha_divergence",
            'it is the parameter of objective.divergence = "alpha_divergence"',
        ),
        "objective.ld_alpha": (
            bool(losses - set(WHOLE)),
            f"{' and '.join(WHOLE)} are likelihoods of whole answers: leave it out",
        ),
        "objective.tau": ("discopop" in losses, 'it is the temperature of objective.loss = "discopop"'),
        "objective.simpo_margin": ("simpo" in losses, 'it is the target margin of objective.loss = "simpo"'),
        "objective.compat": (cached or (pairs and o.compat == "sima" and r.kind != "none"), CACHED),
        # Rates of parts that may be frozen, and the schedule's own keys
        "optim.projector_lr": (
            "projector" not in m.freeze,
            'the projector is frozen: take "projector" out of model.freeze',
        ),
        "optim.vision_lr": (
            "vision" not in m.freeze and not m.adapts,
            'the vision tower is frozen: take "vision" out of model.freeze (it never trains beside LoRA)',
        ),
        "optim.min_lr": (
            c.optim.schedule != "constant",
            'optim.schedule = "constant" ends at the peak: choose another',
        ),
        "optim.decay_share": (c.optim.schedule == "wsd", 'it belongs to optim.schedule = "wsd"'),
        # Evaluation, data, ranks, trackers, export
        "train.best_metric": (
            held_out and t.eval_every > 0,
            "there is no choice between evaluations: set data.eval_path and train.eval_every",
        ),
        "train.eval_every": (held_out, EVAL),
        "train.eval_samples": (held_out, EVAL),
        "train.eval_tokens": (t.eval_samples > 0, "no answer is generated: set train.eval_samples above 0"),
        **dict.fromkeys((f"evaluate.{key}" for key in ("data", "images", "limit", "every")), (benched, BENCH)),
        "evaluate.start": (
            benched and c.evaluate.every > 0,
            "the end alone is evaluated: set evaluate.every, the steps between evaluations",
        ),
        "evaluate.best": (
            benched and c.evaluate.every > 0,
            "there is no choice between evaluations: set evaluate.bench and evaluate.every",
        ),
        "evaluate.margin": (bool(c.evaluate.best), "no checkpoint is chosen: name a metric in evaluate.best"),
        "data.options": (not unread_options(c), unread_options(c)),
        "parallel.shard_size": (
            c.parallel.shard == "hybrid",
            'it is the size of the groups of parallel.shard = "hybrid"',
        ),
        "log.project": (named_runs, 'only "wandb" and "trackio" have projects: add one to log.trackers'),
        "log.name": (
            named_runs or bool(c.export.formats),
            'nothing bears the name: add "wandb" or "trackio" to log.trackers, or a format to export.formats',
        ),
        "export.merge": (
            m.adapts and "hf" in c.export.formats,
            'it merges an adapter into the "hf" format: there is no [model.lora] and no model.adapter, or no "hf" in '
            "export.formats",
        ),
    }


DGPREF_OPTIONS = ("prompts", "names", "image", "compat_newlines")  # docs/formats.md


def unread_options(c: Config) -> str:
    """Why an option of data.options would not be read; empty if all are."""
    for name in c.data.options:
        unread = f"data.options.{name} has no effect"
        if name not in ("claims", *DGPREF_OPTIONS):
            return f"{unread}: no reader has it (docs/formats.md); there are {', '.join(('claims', *DGPREF_OPTIONS))}"
        if name == "claims" and c.objective.segments != "record":
            return f'{unread}: claims become weighted spans with objective.segments = "record"'
        if name != "claims" and c.data.format != "dgpref":
            return f'{unread}: it is an option of data.format = "dgpref"'
    return ""


def value_of(c: Config, key: str) -> tuple[Any, Any]:
    """(value, default) of a dotted key."""
    section: Any = c
    *path, name = key.split(".")
    for part in path:
        section = getattr(section, part)
    return getattr(section, name), type(section).model_fields[name].get_default(call_default_factory=True)


def idle(c: Config) -> Iterator[str]:
    """A line for each key that is set and cannot take effect."""
    for key, (acts, fix) in effects(c).items():
        value, default = value_of(c, key)
        if value != default and not acts:
            yield fix if key == "data.options" else f"{key} = {value!r} has no effect: {fix}"
