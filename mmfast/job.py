"""A run put together from its config, before any step: examples, model, plan. Shared by train, reference and export."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mmfast.config import Config
from mmfast.data.build import DataSettings, build
from mmfast.data.store import ExampleStore
from mmfast.models.loading import load
from mmfast.models.lora import Lora
from mmfast.models.parallelize import Parallel, make_mesh, parallelize
from mmfast.models.scorer import Scorer
from mmfast.packing import Layout, Plan, PlanSettings
from mmfast.packing.cost import Cost
from mmfast.runtime import Runtime


def open_examples(config: Config, runtime: Runtime, path: Any = None) -> ExampleStore:
    """Built by rank 0 (or found in the cache), then opened by all. `path`: other data in the same form (eval)."""
    if not (path or config.data.path):
        raise ValueError("data.path is empty: name a file of examples")
    if not config.model.path:
        raise ValueError("model.path is empty: name a model directory or hub id")
    settings = _data_settings(config, path)
    store, problem = None, ""
    if runtime.main:
        try:
            store = build(settings, config.model.path, config.cache_dir(), progress=config.log.progress)
        except ValueError as error:
            if runtime.world == 1:
                raise
            problem = str(error)
    runtime.agree(problem)
    if store is None:
        store = build(settings, config.model.path, config.cache_dir(), progress=False, report_to=lambda _: None)
    pairs = store.preference
    if config.objective.kind == "dpo" and not pairs:
        raise ValueError('data.path holds examples without a rejected side: objective.kind = "dpo" needs pairs')
    return store


def _data_settings(config: Config, path: Any) -> DataSettings:
    d, o = config.data, config.objective
    given = path or (d.path if isinstance(d.path, str) else [source.model_dump() for source in d.path])
    return DataSettings(
        path=given,
        format=d.format,
        images=d.images,
        aspect=d.aspect,
        template=d.template,
        turns=d.turns,
        max_length=d.max_length,
        max_words=d.max_words,
        truncate=d.truncate,
        on_error=d.on_error,
        limit=0 if path else d.limit,
        workers=d.workers,
        segments=o.segments if o.segments == "record" or o.gamma != 1.0 else "none",
        min_pixels=config.model.min_pixels,
        max_pixels=config.model.max_pixels,
        options=d.options,
        seed=config.seed,
    )


def open_model(config: Config, runtime: Runtime, *, path: str = "", train: bool = True) -> Scorer:
    """The policy (or, frozen, the model of `path`), spread over the ranks."""
    m = config.model
    lora = Lora(**m.lora.model_dump()) if m.lora and train else None
    scorer = load(
        path or m.path,
        dtype=m.dtype,
        freeze=tuple(m.freeze) if train else ("vision", "projector", "language"),
        lora=lora,
        adapter="" if path else m.adapter,
        attention=m.attention,
        cached_vision=m.cache_vision,
        device=runtime.device,
    )
    return spread(scorer, config, runtime)


def spread(scorer: Scorer, config: Config, runtime: Runtime) -> Scorer:
    p = config.parallel
    arrangement = Parallel(
        shard=p.shard,
        shard_size=p.shard_size,
        activation_checkpointing=p.activation_checkpointing,
        compile=p.compile,
        offload=p.offload,
    )
    grouped = torch.distributed.is_initialized()
    mesh = make_mesh(arrangement, runtime.device.type, runtime.local_world) if grouped else None
    return parallelize(scorer, arrangement, mesh, getattr(torch, config.model.dtype))


def needs_group(config: Config) -> bool:
    """One process trains in fp32 without a process group; FSDP2 does the casting and the offloading."""
    return config.model.dtype != "float32" or config.parallel.offload


def layout_of(scorer: Scorer) -> Layout:
    adapter = scorer.adapter
    return Layout(
        image_token_id=adapter.image_token_id,
        mrope=adapter.positions == "mrope",
        merge=adapter.merge_size,
        share=scorer.shared,
    )


def cost_of(scorer: Scorer) -> Cost:
    c = scorer.adapter.text_config
    head_dim = c.to_dict().get("head_dim") or c.hidden_size // c.num_attention_heads
    return Cost.of_decoder(
        hidden=c.hidden_size,
        layers=c.num_hidden_layers,
        heads=c.num_attention_heads,
        kv_heads=c.to_dict().get("num_key_value_heads") or c.num_attention_heads,
        head_dim=head_dim,
        intermediate=c.intermediate_size,
        vocab=c.vocab_size,
    )


def make_plan(config: Config, store: ExampleStore, scorer: Scorer, **changes: Any) -> Plan:
    t = config.train
    settings = PlanSettings(
        **{
            "pairs_per_step": t.pairs_per_step,
            "tokens_per_pack": t.tokens_per_pack,
            "seed": config.seed,
            "shuffle": t.shuffle,
            "drop_last": t.drop_last,
            **changes,
        }
    )
    examples = list(store)
    return Plan(examples, store.images, layout_of(scorer), settings, cost=cost_of(scorer), gamma=config.objective.gamma)


def total_steps(config: Config, plan: Plan) -> int:
    t = config.train
    return t.steps if t.steps is not None else max(1, round((t.epochs or 3.0) * plan.steps_per_epoch))


def place(plan: Plan, step: int) -> tuple[int, int]:
    """(epoch, step within it) of optimiser step `step`, from 1."""
    return divmod(step - 1, plan.steps_per_epoch)


def runs_folder(config: Config) -> Path:
    folder = Path(config.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output_dir: cannot make {folder}: {error.strerror}") from None
    return folder


def steps_from(plan: Plan, first: int, last: int, world: int) -> Iterator[tuple[int, Any]]:
    for step in range(first, last + 1):
        epoch, within = place(plan, step)
        yield step, plan.step(epoch, within, world)
