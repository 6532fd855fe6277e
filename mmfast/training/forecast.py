"""`mmfast plan CONFIG`: what a run will take, before it takes it. Nothing is trained and no weight is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig

from mmfast.config import Config
from mmfast.files import write_json
from mmfast.job.opening import Job, Model
from mmfast.job.passes import Pass
from mmfast.job.runtime import Runtime
from mmfast.models.estimate import Memory, Setting, estimate
from mmfast.models.loading import load
from mmfast.models.lora import settings_of
from mmfast.models.parallelize import checkpoint_blocks, mesh_shape
from mmfast.models.scorer import Scorer
from mmfast.packing import Plan, StepPlan, build_pack
from mmfast.packing.cost import UNIT, Cost, node_costs
from mmfast.packing.plan import forest_of
from mmfast.training.preflight import check_length, check_segments, check_whole_steps

GPUS_PER_NODE = 8
PLAN = "plan.json"
MOST_STEPS = 256  # planned for the report: an epoch, or so many steps spread over it


@dataclass(frozen=True)
class Report:
    examples: int
    steps_per_epoch: int
    steps_planned: int
    ranks: int
    tokens_one_by_one: int  # of the steps planned
    tokens: int
    padding: int
    packs: int
    empty_packs: int
    micro_batches: float  # mean of a step
    largest_pack: int
    balance: float  # mean rank over slowest rank: 1 is perfect
    time_share: dict[str, float]
    last_layer: str  # why it runs for all rows; "": only for those that predict
    memory: Memory

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"memory": asdict(self.memory) | {"total": self.memory.total}}


def alone(config: Config) -> Job:
    """A job of one process, to look at."""
    return Job(config, Runtime(rank=0, world=1, local_rank=0, local_world=1, device=torch.device("cpu")))


def plan(config: Config, *, ranks: int = 1, device: str = "cpu", gpus_per_node: int = GPUS_PER_NODE) -> Report:
    """Plans the first epoch of `config` for `ranks` ranks of `device` ("cpu" or "cuda"), `gpus_per_node` of them on a
    node (or all, where there are fewer)."""
    return plan_of(alone(config), ranks=ranks, device=device, gpus_per_node=gpus_per_node)


def plan_of(job: Job, *, ranks: int, device: str, gpus_per_node: int) -> Report:
    check_length(job, ranks)
    check_segments(job)
    scorer = sketch(job)
    once = Pass(job, job.store, Model(scorer, lambda ids: {}))
    schedule, cost = once.plan, once.cost
    check_whole_steps(job, schedule)
    steps = some_steps(schedule, ranks)
    tokens = np.concatenate([s.tokens.reshape(-1) for s in steps])
    mean = sum(float(s.costs.sum()) / ranks for s in steps)
    slowest = sum(float(s.costs.max(axis=0).sum()) for s in steps)
    return Report(
        examples=len(job.store),
        steps_per_epoch=schedule.steps_per_epoch,
        steps_planned=len(steps),
        ranks=ranks,
        tokens_one_by_one=sum(s.unshared_tokens for s in steps),
        tokens=int(tokens.sum()),
        padding=0,
        packs=len(tokens),
        empty_packs=int((tokens == 0).sum()),
        micro_batches=float(np.mean([s.micro_batches for s in steps])),
        largest_pack=int(tokens.max()),
        balance=mean / slowest,
        time_share=shares(schedule, steps, cost),
        last_layer=scorer.last_layer.why_whole(),
        memory=memory_of(job, scorer, once, steps, ranks=ranks, device=device, gpus_per_node=gpus_per_node),
    )


def some_steps(schedule: Plan, ranks: int) -> list[StepPlan]:
    """Of the first epoch."""
    every = max(1, -(-schedule.steps_per_epoch // MOST_STEPS))
    return [schedule.step(0, s, ranks) for s in range(0, schedule.steps_per_epoch, every)]


def memory_of(
    job: Job, scorer: Scorer, once: Pass, steps: list[StepPlan], *, ranks: int, device: str, gpus_per_node: int
) -> Memory:
    """Of a rank, by the largest pack of the steps."""
    largest = max(steps, key=lambda s: int(s.tokens.max()))
    r, m = np.unravel_index(int(largest.tokens.argmax()), largest.tokens.shape)
    part = job.store.symbols.cut(largest.packs[r][m])
    pack = build_pack(part, job.store.images, once.layout, gamma=job.gamma)
    return estimate(scorer, pack, setting_of(job, scorer, ranks, gpus_per_node, device, largest.micro_batches))


def write_expected(job: Job, steps: int) -> None:
    """plan.json of a run of so many steps: what its report compares it with. That no plan can be made is told there and
    ends nothing."""
    runtime = job.runtime
    told: dict[str, Any] = {"steps": steps, "ranks": runtime.world}
    try:
        scorer = sketch(job)
        once = Pass(job, job.store, Model(scorer, lambda ids: {}))
        where: dict[str, Any] = {"device": runtime.device.type, "gpus_per_node": runtime.local_world}
        some = some_steps(once.plan, runtime.world)
        parts = asdict(memory := memory_of(job, scorer, once, some, ranks=runtime.world, **where))
        told["memory_gib"] = {name: size / 2**30 for name, size in (parts | {"total": memory.total}).items()}
    except Exception as error:  # of whatever kind of model
        told["problem"] = f"no plan of the memory: {type(error).__name__}: {error}".split("\n")[0]
    write_json(job.folder / PLAN, told)


def sketch(job: Job, model: PretrainedConfig | None = None) -> Scorer:
    """The policy on the meta device: shapes without weights. `model`: in place of the config.json of its directory."""
    m = job.model
    scorer = load(
        model or m.path,
        dtype=m.dtype,
        freeze=tuple(m.freeze),
        lora=settings_of(m.adapter) if m.adapter else job.lora,
        attention=m.attention,
        cached_vision=m.cache_vision,
        device="meta",
        random_weights=True,
    )
    if job.parallel.activation_checkpointing:
        checkpoint_blocks(scorer)
    return scorer


def setting_of(job: Job, scorer: Scorer, ranks: int, gpus_per_node: int, device: str, micro_batches: int) -> Setting:
    config, p = job.config, job.parallel
    local = min(ranks, gpus_per_node)
    if p.shard == "hybrid" and not p.shard_size and ranks % local:
        raise ValueError(
            f'parallel.shard = "hybrid" shards over the ranks of a node, and {ranks} ranks are no whole nodes of '
            f"{local}: give --gpus-per-node or parallel.shard_size"
        )
    _, shards = mesh_shape(p, ranks, local)
    half = config.optim.master == "bf16-stochastic"
    state = 2 * (2 if half else 4) if config.optim.name == "adamw" else 2 * 1.02  # 8 bits and a scale a block
    return Setting(
        device=device,
        dtype=getattr(torch, config.model.dtype),
        shards=shards,
        wrapped=ranks > 1 or config.model.dtype != "float32" or p.offload,
        micro_batches=micro_batches,
        optimiser_bytes=state,
        master_bytes=2 if half else 4,
        offload=p.offload,
        cached_vision=config.model.cache_vision,
        quantized=config.model.quantize != "",
    )


def shares(schedule: Plan, steps: list[Any], cost: Cost) -> dict[str, float]:
    """Expected time by part, summed over the packs of `steps`."""
    parts = {"attention": 0.0, "head": 0.0, "vision": 0.0}
    linear = 0.0
    for step in steps:
        for pack in (p for rank in step.packs for p in rank if len(p)):
            symbols = schedule.symbols.cut(pack)
            forest, tokens, _ = forest_of(symbols, Cost(), share=schedule.share)
            linear += float(tokens.sum())
            for name in parts:
                units = node_costs(symbols, forest, Cost(**{name: getattr(cost, name)}))[1]
                parts[name] += float(units.sum()) / UNIT - float(tokens.sum())
    total = linear + sum(parts.values())
    return {"decoder linear": linear / total} | {name: value / total for name, value in parts.items()}


def show(report: Report) -> None:
    """Print the report as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    facts = Table(show_header=False, box=None, pad_edge=False)
    saved = 1 - report.tokens / max(report.tokens_one_by_one, 1)
    for name, value in (
        ("examples", f"{report.examples:,} in {report.steps_per_epoch:,} steps an epoch"),
        ("tokens one by one", f"{report.tokens_one_by_one:,} (in the {report.steps_planned} steps planned)"),
        ("tokens that run", f"{report.tokens:,} ({saved:.1%} shared), padding {report.padding}"),
        ("packs", f"{report.packs:,} on {report.ranks} ranks, {report.empty_packs} empty"),
        ("micro-batches a step", f"{report.micro_batches:.2f}"),
        ("largest pack", f"{report.largest_pack:,} tokens"),
        ("balance", f"{report.balance:.3f} (mean rank / slowest rank)"),
        ("last layer", f"runs for all rows: {report.last_layer}" if report.last_layer else "runs for predicting rows"),
    ):
        facts.add_row(name, value)
    console.print(facts)
    table = Table("part", "share of step time", title="expected time", title_justify="left")
    for name, share in report.time_share.items():
        table.add_row(name, f"{share:.1%}")
    console.print(table)
    table = Table("part", "MiB", title="memory of one rank at its peak", title_justify="left")
    for name, value in (asdict(report.memory) | {"total": report.memory.total}).items():
        table.add_row(name, f"{value / 2**20:,.0f}")
    console.print(table)


def out_of_memory(job: Job, error: BaseException) -> str:
    """What the plan expected of a rank, by part, and the settings that would help."""
    runtime = job.runtime
    try:
        told = plan_of(job, ranks=runtime.world, device=runtime.device.type, gpus_per_node=runtime.local_world)
        memory = asdict(told.memory).items()
        expected = "\nThe plan expects of a rank, in GiB: "
        expected += ", ".join(f"{name} {size / 2**30:.1f}" for name, size in memory if size)
    except Exception:  # advice must never take the place of what happened
        expected = ""
    return (
        f"out of memory: {error}{expected}\nWhat would help, in this order: "
        f"train.tokens_per_pack = {job.steps.tokens_per_pack // 2} (it changes no result); "
        'parallel.activation_checkpointing = true; parallel.shard = "full" over more GPUs, [model.lora] or '
        "parallel.offload = true"
    )
