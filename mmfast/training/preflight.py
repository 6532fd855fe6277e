"""What a run is refused for once its data are known: before the model is loaded, or, for a loss that sorts over the
step, before the first step."""

from __future__ import annotations

from mmfast.job.opening import Job
from mmfast.packing import Plan
from mmfast.packing.plan import check_sizes


def check_length(job: Job, world: int) -> None:
    """The steps must hold the warm-up, a pack each example (the plan, which knows the model, looks again), and one rank
    a step that is sorted over."""
    config, symbols = job.config, job.store.symbols
    if world > 1 and job.steps.whole_step:
        raise ValueError(
            f"objective.loss: aot and aot_unpaired sort over the whole step, which one rank must hold, and there are "
            f"{world}: run one process"
        )
    t, warmup = config.train, config.optim.warmup
    check_sizes(symbols, job.steps.tokens_per_pack, share=True, longest=job.adapter.longest)
    whole, rest = divmod(len(symbols), t.pairs_per_step)
    total = t.total_steps(whole + (rest > 0 and not t.drop_last))
    if warmup >= 1 and warmup > total:
        raise ValueError(
            f"optim.warmup = {warmup:g} steps is more than the run's {total} ({len(symbols)} examples, "
            f"train.pairs_per_step = {t.pairs_per_step}): lower it, or give a share below 1"
        )


def check_segments(job: Job) -> None:
    """objective.gamma and segments act on what the examples hold; where none holds any, the run would be plain."""
    o, symbols = job.config.objective, job.store.symbols
    if o.gamma == 1.0 and o.segments != "record":
        return
    branches = symbols.branch_of[symbols.branch_of >= 0]
    if symbols.has_weights[branches].any() or (o.gamma != 1.0 and symbols.any_changed(branches)):
        return
    key = f"objective.gamma = {o.gamma:g}" if o.gamma != 1.0 else 'objective.segments = "record"'
    fix = "rows need `segments` or `weights` (docs/formats.md)" if o.segments == "record" else "set it to 1"
    raise ValueError(f"{key} has no effect: no example holds a changed or weighted segment: {fix}")


def check_whole_steps(job: Job, plan: Plan) -> None:
    """A loss that sorts over the step needs it in one pack: every step of the run is planned, since each epoch has an
    order of its own. The plan names the step that does not fit."""
    for number in range(job.config.train.total_steps(plan.steps_per_epoch) if plan.settings.whole_step else 0):
        plan.step(number // plan.steps_per_epoch, number % plan.steps_per_epoch)


def length(job: Job, steps_per_epoch: int, total: int) -> str:
    """Says how long the run is, where more epochs than were meant, or less than a whole step, would be seen."""
    examples, size, epochs = len(job.store.symbols), job.config.train.pairs_per_step, total / steps_per_epoch
    what = "pairs" if job.pairs else "examples"
    each = f"{size} {what} a step" if size <= examples else f"all in one step (train.pairs_per_step = {size} is more)"
    return f"{examples} {what}, {each}: {total} step{'s' * (total != 1)}, {epochs:.3g} epoch{'s' * (epochs != 1)}"
