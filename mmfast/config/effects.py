"""When a key takes effect. A key that is set where it could not raises, before any model is loaded.

"Set" means: away from its default. The resolved config beside a run writes every key, so that a key was written says
nothing, and a default that does nothing promises nothing. Keys that are not listed always act, or act on data or
devices that no config knows (`images` on relative paths, `shard` on several ranks). A test holds the whole schema
against this table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mmfast.config.rules import losses_of
from mmfast.config.schema import Config
from mmfast.ops.kinds import DIVERGING, PER_TOKEN, SMOOTHED, WHOLE


class Effect(NamedTuple):
    when: Callable[[Config], bool]
    fix: str


def _dpo(c: Config) -> bool:
    return c.objective.kind == "dpo"


def _cached(c: Config) -> bool:
    return _dpo(c) and c.reference.kind == "cached"


def _has_loss(c: Config, *names: str) -> bool:
    return _dpo(c) and any(name in names for name in losses_of(c))


def _has_other_loss(c: Config, *names: str) -> bool:
    return _dpo(c) and any(name not in names for name in losses_of(c))


def _named_runs(c: Config) -> bool:
    return any(name in ("wandb", "trackio") for name in c.log.trackers)


PAIRS = 'objective.kind = "sft" is cross entropy alone: leave it out, or train on pairs with kind = "dpo"'
CACHED = 'only a cached reference of pairs reads it: set reference.kind = "cached" and objective.kind = "dpo"'
EVAL = "nothing is evaluated: name held-out data in data.eval_path"

EFFECTS: dict[str, Effect] = {
    "reference.kind": Effect(lambda c: _dpo(c) or c.reference.kind == "none", PAIRS),  # "none" is what SFT does
    "reference.model": Effect(_cached, CACHED),
    "reference.path": Effect(_cached, CACHED),
    "reference.check": Effect(_cached, CACHED),
    "reference.tolerance": Effect(
        lambda c: _dpo(c) and c.reference.kind != "none", 'nothing is compared: set reference.kind = "cached"'
    ),
    "objective.loss": Effect(_dpo, PAIRS),
    "objective.beta": Effect(
        lambda c: _has_other_loss(c, "sft"), 'neither objective.kind = "sft" nor the loss "sft" alone has a beta'
    ),
    "objective.gamma": Effect(_dpo, PAIRS),
    "objective.segments": Effect(
        lambda c: c.objective.segments == "record" or (_dpo(c) and c.objective.gamma != 1.0),
        "changed segments weigh 1: set objective.gamma above 1 (DDPO)",
    ),
    "objective.average": Effect(
        lambda c: _has_other_loss(c, *PER_TOKEN),
        f'the losses {", ".join(PER_TOKEN)} are per token whatever it says, and so is kind = "sft": leave it out',
    ),
    "objective.label_smoothing": Effect(
        lambda c: _has_loss(c, *SMOOTHED), f"it acts on {', '.join(SMOOTHED)} only: choose one in objective.loss"
    ),
    "objective.sft_weight": Effect(_dpo, PAIRS),
    "objective.sft_average": Effect(
        lambda c: _dpo(c) and c.objective.sft_weight > 0 and not c.objective.average,
        "there is no SFT term, or objective.average has divided it already: give objective.sft_weight without average",
    ),
    "objective.terms": Effect(_dpo, PAIRS),
    "objective.divergence": Effect(
        lambda c: _dpo(c) and c.objective.loss in DIVERGING,
        f"it is defined for {', '.join(DIVERGING)}: choose one in objective.loss",
    ),
    "objective.alpha": Effect(
        lambda c: _dpo(c) and c.objective.divergence == "alpha_divergence",
        'it is the parameter of objective.divergence = "alpha_divergence"',
    ),
    "objective.ld_alpha": Effect(
        lambda c: _has_other_loss(c, *WHOLE), f"{' and '.join(WHOLE)} are likelihoods of whole answers: leave it out"
    ),
    "objective.tau": Effect(lambda c: _has_loss(c, "discopop"), 'it is the temperature of objective.loss = "discopop"'),
    "objective.simpo_margin": Effect(
        lambda c: _has_loss(c, "simpo"), 'it is the target margin of objective.loss = "simpo"'
    ),
    "objective.compat": Effect(_cached, CACHED),
    "optim.projector_lr": Effect(
        lambda c: "projector" not in c.model.freeze, 'the projector is frozen: take "projector" out of model.freeze'
    ),
    "optim.vision_lr": Effect(
        lambda c: "vision" not in c.model.freeze and not c.model.adapts,
        'the vision tower is frozen: take "vision" out of model.freeze (it never trains beside LoRA)',
    ),
    "optim.min_lr": Effect(
        lambda c: c.optim.schedule != "constant", 'optim.schedule = "constant" ends at the peak: choose another'
    ),
    "optim.decay_share": Effect(lambda c: c.optim.schedule == "wsd", 'it belongs to optim.schedule = "wsd"'),
    "train.best_metric": Effect(
        lambda c: bool(c.data.eval_path) and c.train.eval_every > 0,
        "there is no choice between evaluations: set data.eval_path and train.eval_every",
    ),
    "train.eval_every": Effect(lambda c: bool(c.data.eval_path), EVAL),
    "train.eval_samples": Effect(lambda c: bool(c.data.eval_path), EVAL),
    "train.eval_tokens": Effect(
        lambda c: c.train.eval_samples > 0, "no answer is generated: set train.eval_samples above 0"
    ),
    "data.options": Effect(lambda c: not unread_options(c), "see the key's own message"),
    "parallel.shard_size": Effect(
        lambda c: c.parallel.shard == "hybrid", 'it is the size of the groups of parallel.shard = "hybrid"'
    ),
    "log.project": Effect(_named_runs, 'only "wandb" and "trackio" have projects: add one to log.trackers'),
    "log.name": Effect(
        lambda c: _named_runs(c) or bool(c.export.formats),
        'nothing bears the name: add "wandb" or "trackio" to log.trackers, or a format to export.formats',
    ),
    "export.merge": Effect(
        lambda c: c.model.adapts and "hf" in c.export.formats,
        'it merges an adapter into the "hf" format: there is no [model.lora] and no model.adapter, or no "hf" in '
        "export.formats",
    ),
}

DGPREF_OPTIONS = ("prompts", "names", "image", "compat_newlines")  # docs/formats.md


def unread_options(c: Config) -> str:
    """Why an option of data.options would not be read; empty if all are."""
    for name in c.data.options:
        if name == "claims":
            if c.objective.segments != "record":
                return (
                    'data.options.claims has no effect: claims become weighted spans with objective.segments = "record"'
                )
        elif name not in DGPREF_OPTIONS:
            known = ", ".join(("claims", *DGPREF_OPTIONS))
            return f"data.options.{name} has no effect: no reader has it (docs/formats.md); there are {known}"
        elif c.data.format != "dgpref":
            return f'data.options.{name} has no effect: it is an option of data.format = "dgpref"'
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
    for key, (when, fix) in EFFECTS.items():
        value, default = value_of(c, key)
        if value != default and not when(c):
            yield unread_options(c) if key == "data.options" else f"{key} = {value!r} has no effect: {fix}"
