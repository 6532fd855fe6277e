"""A run put together from its config, before any step: examples, model, plan. Shared by train, reference and export."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoConfig

from mmfast.config import Config
from mmfast.data.binding import Stamp, stamp_of
from mmfast.data.build import DataSettings, build, reopen
from mmfast.data.images.processor import ImageProcessor
from mmfast.data.records import Example, ImageInfo
from mmfast.data.store import ExampleStore
from mmfast.directory import directory
from mmfast.families import adapter_for
from mmfast.job.runtime import Runtime
from mmfast.models.estimate import training_cost
from mmfast.models.loading import load
from mmfast.models.lora import Lora
from mmfast.models.parallelize import Parallel, make_mesh, parallelize
from mmfast.models.proof import prove
from mmfast.models.scorer import Scorer
from mmfast.models.sharded import draw_lora, load_sharded
from mmfast.models.vision_cache import VisionCache, cache_vision
from mmfast.packing import Layout, PackLoader, Plan, PlanSettings
from mmfast.packing.cost import Cost
from mmfast.training.objective import objective_of
from mmfast.training.preflight import check_model

LoadImages = Callable[[list[str]], dict[str, Tensor]]


def open_examples(config: Config, runtime: Runtime, path: Any = None) -> ExampleStore:
    """Built by rank 0 (or found in the cache) and opened by all as it stands: rank 0 alone looks at the image files.
    `path`: other data in the same form (eval)."""
    if not (path or config.data.path):
        raise ValueError("data.path is empty: name a file of examples")
    fetch_models(config, runtime, weights=False)
    settings, key = _data_settings(config, path), "data.eval_path" if path else "data.path"
    store = _built(config, runtime, settings, key, here=runtime.main)
    found = runtime.gather((store.path, store.roots, store.digest, _stamp(store.path)) if store else None)[0]
    if runtime.world > 1:
        own_disk = runtime.local_rank == 0 and _stamp(found[0]) != found[3]  # a node's first rank then does as rank 0
        mine = _built(config, runtime, settings, key, here=own_disk)
        other = mine is not None and mine.digest != found[2]
        runtime.agree(f"{key}: the data or images of a node are not those of rank 0" if other else "")
        store = store or mine or reopen(found[0], found[1], settings)
    assert store is not None
    if config.objective.kind == "dpo" and not store.preference:
        raise ValueError(f'{key} holds examples without a rejected side: objective.kind = "dpo" needs pairs')
    return store


def fetch_models(config: Config, runtime: Runtime, *, weights: bool) -> None:
    """Every model that the run reads, fetched before any rank reads it: by rank 0, whose commit is everyone's, then by
    the first rank of every other node; the other ranks find it there."""
    if not config.model.path:
        raise ValueError("model.path is empty: name a model directory or hub id")
    turns = (runtime.main, runtime.local_rank == 0 and not runtime.main, runtime.local_rank > 0)
    for key, model in (
        ("model.path", config.model.path),
        ("model.adapter", config.model.adapter),
        ("reference.model", config.reference.model),
    ):
        commit = ""
        for number, mine in enumerate(turns if model else ()):
            problem = ""
            if mine:
                try:
                    commit = directory(model, weights, commit=commit, cached=number == 2).name
                except ValueError as error:
                    problem = f"{key}: {error}"
            runtime.agree(problem)
            commit = runtime.gather(commit)[0]


def _stamp(folder: Path) -> Stamp:
    return stamp_of(str(folder / "manifest.json"))


def _built(config: Config, runtime: Runtime, settings: DataSettings, key: str, *, here: bool) -> ExampleStore | None:
    """The store, on the ranks that build or find it; a problem of one is raised on all, under the name of its key."""
    store, problem = None, ""
    if here:
        try:
            check_model(config)
            progress = config.log.progress and runtime.main
            told = partial(print, file=sys.stderr)  # stdout is the command's own: `mmfast plan --json`
            store = build(settings, config.model.path, config.cache_dir(), progress=progress, report_to=told)
        except (ValueError, OSError) as error:
            problem = (str(error) or type(error).__name__).replace("data.path", key)
    runtime.agree(problem)
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


def open_model(
    config: Config, runtime: Runtime, stores: Sequence[ExampleStore], *, path: str = "", train: bool = True
) -> tuple[Scorer, LoadImages]:
    """The policy (or, frozen, the model of `path`), proved where its family is not known, spread over the ranks; and
    what makes its images, features from disk with model.cache_vision."""
    m = config.model
    fetch_models(config, runtime, weights=True)
    path = path or m.path
    freeze = tuple(m.freeze) if train else ("vision", "projector", "language")
    lora = Lora.of(config)
    load_images = image_loader(config, stores)
    if m.cache_vision:
        load_images = _cached_features(config, runtime, stores, path, freeze, load_images)
    options: dict[str, Any] = {
        "dtype": m.dtype,
        "freeze": freeze,
        "lora": lora if train else None,
        "attention": m.attention,
    }
    arrangement, mesh = spread_over(config, runtime)
    adapter, quantize = (m.adapter, m.quantize) if train else ("", "")
    listed = adapter_for(AutoConfig.from_pretrained(directory(path))).proven
    if runtime.world > 1 and listed and not (adapter or quantize or m.cache_vision):
        assert mesh is not None
        folder = directory(path, weights=True)
        return load_sharded(folder, arrangement, mesh, device=runtime.device, seed=config.seed, **options), load_images
    scorer = load(
        path, adapter=adapter, quantize=quantize, cached_vision=m.cache_vision, device=runtime.device, **options
    )
    if lora and train and not adapter:
        draw_lora(scorer, config.seed)
    if not scorer.adapter.proven:
        why = prove(scorer, stores[0], stores[0].images, load_images)
        if why and runtime.main:
            print(f"{scorer.adapter.config.model_type}: prefixes are not shared: {why}", file=sys.stderr)
    return parallelize(scorer, arrangement, mesh, getattr(torch, m.dtype)), load_images


def _cached_features(
    config: Config,
    runtime: Runtime,
    stores: Sequence[ExampleStore],
    path: str,
    freeze: tuple[str, ...],
    pixels: LoadImages,
) -> VisionCache:
    """Rank 0 encodes what is missing, with the tower; every rank reads it, without."""
    root = config.cache_dir() / "vision"
    cache, problem = None, ""
    if runtime.main:
        try:
            cache = cache_vision(
                path,
                root,
                [name for store in stores for name in store.images],
                pixels,
                dtype=getattr(torch, config.model.dtype),
                freeze=freeze,
                processing=stores[0].manifest["processor"],
                device=runtime.device,
            )
        except (ValueError, OSError) as error:
            problem = str(error)
    runtime.agree(problem)
    folder = runtime.gather(str(cache.folder) if cache else "")[0]
    return cache or VisionCache(folder, adapter_for(AutoConfig.from_pretrained(directory(path))))


def spread_over(config: Config, runtime: Runtime) -> tuple[Parallel, DeviceMesh | None]:
    p = config.parallel
    arrangement = Parallel(
        shard=p.shard,
        shard_size=p.shard_size,
        activation_checkpointing=p.activation_checkpointing,
        compile=p.compile,
        offload=p.offload,
    )
    grouped = torch.distributed.is_initialized()
    return arrangement, make_mesh(arrangement, runtime.device.type, runtime.local_world) if grouped else None


def image_loader(config: Config, stores: Sequence[ExampleStore], *, prepared: bool = True) -> LoadImages:
    """image ids -> the tensors the family's tower reads, for images in that order. `prepared`: with what the family's
    adapter adds to them (index tensors), which the model's own forward does not take."""
    m = config.model
    adapter = adapter_for(AutoConfig.from_pretrained(directory(m.path)))
    if adapter.image_token_id is None:
        return lambda ids: {}
    processor = ImageProcessor.from_model_dir(directory(m.path), config.data.aspect, m.min_pixels, m.max_pixels)
    owner = {name: store for store in stores for name in store.images}

    def load_images(ids: list[str]) -> dict[str, Tensor]:
        images = processor.collate([processor.load(owner[i].open_image(i)) for i in ids])
        return adapter.prepare(images) if prepared else images

    return load_images


def layout_of(scorer: Scorer) -> Layout:
    return replace(scorer.adapter.layout(), share=scorer.shared)


def step_cost(config: Config, scorer: Scorer) -> Cost:
    """What balances the packs: the time of each part of a step."""
    return training_cost(
        scorer,
        checkpointing=config.parallel.activation_checkpointing,
        cached_vision=config.model.cache_vision,
    )


def make_plan(
    config: Config, examples: Sequence[Example], images: Mapping[str, ImageInfo], scorer: Scorer, **changes: Any
) -> Plan:
    t = config.train
    settings = PlanSettings(
        **{
            "pairs_per_step": t.pairs_per_step,
            "tokens_per_pack": t.tokens_per_pack,
            "seed": config.seed,
            "shuffle": t.shuffle,
            "drop_last": t.drop_last,
            "whole_step": objective_of(config).whole_step,
            **changes,
        }
    )
    return Plan(
        examples, images, layout_of(scorer), settings, cost=step_cost(config, scorer), gamma=config.objective.gamma
    )


def total_steps(config: Config, steps_per_epoch: int) -> int:
    t = config.train
    return t.steps if t.steps is not None else max(1, round((t.epochs or 3.0) * steps_per_epoch))


def examples_of(config: Config, store: ExampleStore) -> list[Example]:
    """What is trained on; SFT on a file of pairs takes the chosen side."""
    if config.objective.kind == "sft" and store.preference:
        return [replace(example, rejected=None) for example in store]
    return list(store)


def make_loader(
    config: Config,
    runtime: Runtime,
    plan: Plan,
    examples: Sequence[Example],
    store: ExampleStore,
    scorer: Scorer,
    load_images: LoadImages,
    reference: Mapping[str, Any] | None,
    *,
    together: bool = False,
) -> PackLoader:
    """This rank's packs of a plan. `together`: every rank builds the same ones."""
    return PackLoader(
        plan,
        examples,
        store.images,
        layout_of(scorer),
        rank=0 if together else runtime.rank,
        world=1 if together else runtime.world,
        gamma=config.objective.gamma,
        reference=reference,
        load_images=load_images,
        workers=config.data.workers,
        device=runtime.device,
    )


def flops_per_token(scorer: Scorer) -> float:
    """Of a step, per token that runs: forward, gradients of activations, gradients of what trains. Recomputation is
    not counted, nor attention over keys."""
    layers = [p for layer in scorer.adapter.layers(scorer.model) for p in layer.parameters()]
    return 4.0 * sum(p.numel() for p in layers) + 2.0 * sum(p.numel() for p in layers if p.requires_grad)
