"""What a run is refused for once its data and its model's config.json are known: before the model is loaded, or, for a
loss that sorts over the step, before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from transformers import AutoConfig

from mmfast.config import Config
from mmfast.data.records import Branch, Example, ImageInfo
from mmfast.directory import directory
from mmfast.families import adapter_for
from mmfast.models.loading import load
from mmfast.models.lora import ALL_LINEAR, Lora, settings_of
from mmfast.packing import Plan
from mmfast.training.objective import objective_of


def check_model(config: Config) -> None:
    """Keys that need images, for a model that reads none; an initial adapter that cannot be trained; LoRA targets that
    the model does not have (on its shapes alone)."""
    m, o = config.model, config.optim
    folder = directory(m.path)
    try:
        adapter = adapter_for(AutoConfig.from_pretrained(folder))
    except OSError as error:
        raise ValueError(f"model.path: {error}") from None
    if m.adapter:
        settings_of(m.adapter)
    if m.lora and m.lora.targets != ALL_LINEAR:
        load(str(folder), freeze=m.freeze, lora=Lora.of(config), device="meta", random_weights=True)
    if adapter.image_token_id is not None:
        return
    for key, given in (
        ("model.cache_vision", m.cache_vision),
        ("model.min_pixels", m.min_pixels),
        ("model.max_pixels", m.max_pixels),
        ('model.freeze = ["projector"]', "projector" in m.freeze),
        ("data.aspect", config.data.aspect != "auto"),
        ("optim.projector_lr", o.projector_lr),
        ("optim.vision_lr", o.vision_lr),
    ):
        if given:
            raise ValueError(f"{key} has no effect: {m.path} reads text alone; leave it out")


def check_length(config: Config, examples: Sequence[Example], images: Mapping[str, ImageInfo], world: int = 1) -> None:
    """The steps must hold the warm-up, a pack each example, and one rank a step that is sorted over."""
    if world > 1 and objective_of(config).whole_step:
        raise ValueError(
            f"objective.loss: aot and aot_unpaired sort over the whole step, which one rank must hold, and there are "
            f"{world}: run one process"
        )
    t, o = config.train, config.optim
    budget = t.tokens_per_pack
    for example in examples:
        tokens = least_tokens(example, images, budget)
        if tokens > budget:
            raise ValueError(
                f"example {example.id} ({example.source}) needs {tokens} tokens, but train.tokens_per_pack = {budget}: "
                "raise it, or lower data.max_length so that such rows are dropped or cut"
            )
    whole, rest = divmod(len(examples), t.pairs_per_step)
    total = t.steps or max(1, round((t.epochs or 3.0) * (whole + (rest > 0 and not t.drop_last))))
    if o.warmup >= 1 and o.warmup > total:
        raise ValueError(
            f"optim.warmup = {o.warmup:g} steps is more than the run's {total} ({len(examples)} examples, "
            f"train.pairs_per_step = {t.pairs_per_step}): lower it, or give a share below 1"
        )


def check_segments(config: Config, examples: Sequence[Example]) -> None:
    """objective.gamma and segments act on what the examples hold; where none holds any, the run would be plain."""
    o = config.objective
    if o.gamma == 1.0 and o.segments != "record":
        return
    for example in examples:
        for branch in (example.chosen, example.rejected):
            if branch is None:
                continue
            changed = o.gamma != 1.0 and branch.changed is not None and branch.changed.any()
            if changed or branch.weights is not None:
                return
    key = f"objective.gamma = {o.gamma:g}" if o.gamma != 1.0 else 'objective.segments = "record"'
    fix = "rows need `segments` or `weights` (docs/formats.md)" if o.segments == "record" else "set it to 1"
    raise ValueError(f"{key} has no effect: no example holds a changed or weighted segment: {fix}")


def least_tokens(example: Example, images: Mapping[str, ImageInfo], budget: int) -> int:
    """Tokens that a pair takes in a pack alone (a lower bound where its images differ): the plan's own count needs the
    model. Examples that fit without sharing are not looked at."""

    def alone(branch: Branch) -> int:
        return branch.spans[-1][1] - 1 + sum(images[i].tokens - 1 for i in branch.images)

    chosen, rejected = example.chosen, example.rejected
    if rejected is None:
        return alone(chosen)
    apart = alone(chosen) + alone(rejected)
    if apart <= budget:
        return apart
    n = min(chosen.spans[-1][1], rejected.spans[-1][1]) - 1
    differ = np.flatnonzero(chosen.ids[:n] != rejected.ids[:n])
    common = int(differ[0]) if len(differ) else n
    return apart - common - sum(images[i].tokens - 1 for i in chosen.images)


def check_whole_steps(plan: Plan, total: int) -> None:
    """A loss that sorts over the step needs it in one pack: every step of the run is planned, since each epoch has an
    order of its own. The plan names the step that does not fit."""
    for number in range(total if plan.settings.whole_step else 0):
        plan.step(number // plan.steps_per_epoch, number % plan.steps_per_epoch)
