"""The reference pass: every response's log-probs once, into the cache; and the checks before the cache is trusted."""

from __future__ import annotations

import importlib.metadata
import math
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig

from mmfast.config import Config
from mmfast.data.records import Branch, Example
from mmfast.data.store import ExampleStore
from mmfast.directory import directory
from mmfast.families import adapter_for
from mmfast.files import weight_digests
from mmfast.job.opening import LoadImages, make_loader, make_plan, open_examples, open_model
from mmfast.job.runtime import Runtime, start
from mmfast.models.parallelize import evaluating
from mmfast.models.scorer import Scorer
from mmfast.packing import Pack, response_key
from mmfast.progress import Steps
from mmfast.reference.cache import FORMAT, ReferenceCache, ShardWriter, manifest_id
from mmfast.reference.exchange import export_reference, import_reference

Model = tuple[Scorer, LoadImages]
AS_IT_COMES: dict[str, Any] = {"shuffle": "groups", "drop_last": False, "whole_step": False}  # scoring needs no order


def reference(config: Config, *, runtime: Runtime | None = None) -> Path:
    """Compute the reference log-probs of a run's data (and eval data) into its cache; returns the cache's folder.

    Killed and started again, it goes on where it stopped. `train` does the same on first use.
    """
    if config.reference.kind != "cached" or config.objective.kind != "dpo":
        raise ValueError(
            'this config reads no cached reference (reference.kind = "cached" and objective.kind = "dpo" do)'
        )
    own = runtime is None
    runtime = runtime or start(config)
    try:
        store = open_examples(config, runtime)
        stores = [store] + ([open_examples(config, runtime, config.data.eval_path)] if config.data.eval_path else [])
        named = config.reference.model
        model = open_model(config, runtime, stores, path=named, train=not named)
        cache, _ = filled_cache(config, runtime, stores, model)
        return cache.folder
    finally:
        if own:
            runtime.close()


def import_file(config: Config, path: Path) -> int:
    """Fill a run's cache from the reference log-probs in another system's file (six-tuples, with_logp), which must be
    the file that data.path names. Returns the number of responses. `train` scores a few again before it trusts them."""
    runtime = start(config)
    try:
        store = open_examples(config, runtime)
        token = adapter_for(AutoConfig.from_pretrained(directory(config.model.path))).image_token_id
        cache = open_cache(config, runtime, store)
        return import_reference(path, store, store.images, cache, image_token=token)
    finally:
        runtime.close()


def export_file(config: Config, out: Path) -> int:
    """Write data.path again with the cache's log-probs in it: .json in mllm-dpo's fields, .parquet in RLAIF-V's."""
    if not isinstance(config.data.path, str):
        raise ValueError("data.path names several sources: export them one at a time")
    runtime = start(config)
    try:
        store = open_examples(config, runtime)
        cache = open_cache(config, runtime, store)
        missing = sum(key not in cache for pair in keys_of(store) for key in pair)
        if missing:
            raise ValueError(f"{missing} responses are not in {cache.folder}: run `mmfast reference CONFIG` first")
        return export_reference(out, Path(config.data.path), store, cache)
    finally:
        runtime.close()


def branches(example: Example) -> tuple[Branch, ...]:
    return (example.chosen,) if example.rejected is None else (example.chosen, example.rejected)


def keys_of(store: ExampleStore) -> list[tuple[str, ...]]:
    """The cache keys of each example, chosen first."""
    return [tuple(map(response_key, branches(example))) for example in store]


def make_manifest(config: Config, store: ExampleStore) -> dict[str, Any]:
    """What reference log-probs depend on beside the responses' own ids."""
    m, made, remembered = config.model, store.manifest, config.cache_dir() / "digests"
    adapter = m.adapter if not config.reference.model else ""
    return {
        "format": FORMAT,
        "weights": weight_digests(directory(config.reference.model or m.path, weights=True), remembered),
        "adapter": weight_digests(directory(adapter, weights=True)) if adapter else {},
        "dtype": m.dtype,
        "quantize": m.quantize,
        "tokenizer": made["tokenizer"],
        "template": made["template_text"],
        "images": made["processor"],
        "recorded": {
            "attention": m.attention,
            **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "safetensors")},
        },
    }


def open_cache(config: Config, runtime: Runtime, store: ExampleStore) -> ReferenceCache:
    """The run's cache, made by rank 0 if it is not there."""
    manifest, cache, problem = None, None, ""
    if runtime.main:
        try:
            manifest = make_manifest(config, store)
            cache = ReferenceCache(cache_folder(config, manifest), manifest)
        except ValueError as error:
            if runtime.world == 1:
                raise
            problem = str(error)
    runtime.agree(problem)
    manifest = runtime.gather(manifest)[0]
    cache = cache or ReferenceCache(cache_folder(config, manifest), manifest)
    runtime.barrier()  # every rank has seen the same rows before one adds to them
    return cache


def cache_folder(config: Config, manifest: dict[str, Any]) -> Path:
    given = config.reference.path
    return Path(given) if given else config.cache_dir() / "reference" / manifest_id(manifest)


def filled_cache(
    config: Config, runtime: Runtime, stores: list[ExampleStore], model: Model
) -> tuple[ReferenceCache, set[str]]:
    """(the cache with every response of `stores`, the keys that were scored in this start)."""
    cache = open_cache(config, runtime, stores[0])
    scored: set[str] = set()
    for store in stores:
        keys = keys_of(store)
        missing = [i for i, pair in enumerate(keys) if any(key not in cache for key in pair)]
        if missing:
            broken = [i for i in missing if any(key in cache.dropped for key in keys[i])]
            if broken and runtime.main:
                example = store[broken[0]]
                print(
                    f"reference: the cached rows of {len(broken)} examples are not finite (the first is {example.id}, "
                    f"{example.source}): dropped, and scored again",
                    file=sys.stderr,
                    flush=True,
                )
            scored.update(key for i in missing for key in keys[i] if key not in cache)
            _score(config, runtime, store, missing, model, cache)
        runtime.barrier()
        cache.reload()
    return cache, scored


def _score(
    config: Config, runtime: Runtime, store: ExampleStore, missing: list[int], model: Model, cache: ReferenceCache
) -> None:
    """Score the examples `missing`, every rank its packs."""
    scorer, load_images = model
    subset = [store[i] for i in missing]
    plan = make_plan(config, subset, store.images, scorer, pairs_per_step=1024, **AS_IT_COMES)
    loader = make_loader(config, runtime, plan, subset, store, scorer, load_images, None)
    writer, known = ShardWriter(cache), set(cache.values)
    if runtime.main:
        print(f"reference: {len(subset)} examples to score into {cache.folder}", file=sys.stderr, flush=True)
    bar = Steps(len(subset), 0, show=runtime.main and config.log.progress and len(subset) > 64, title="reference")
    done, problem = 0, ""
    for step, micro_batch, pack in loader.run(0, plan.steps_per_epoch):
        for key, values, name in responses(scorer, pack):
            if key in known:
                continue  # a row that is there stays; `rescore` judges it
            if np.isfinite(values).all():
                writer.put(key, values)
            else:  # never written: a later start would take it for another model's row
                problem = problem or f"the reference log-probs of example {name} are not finite"
        if micro_batch == step.micro_batches - 1:
            done += len(step.examples)
            bar.update(done, {})
            if any(runtime.gather(problem)):
                writer.flush()  # what was good is kept for the next start
            runtime.agree(problem)
    writer.flush()
    bar.close()


def responses(scorer: Scorer, pack: Pack) -> list[tuple[str, np.ndarray, str]]:
    """(key, log-probs, example id) of each response entry of a pack."""
    with evaluating(scorer):
        logps = scorer(pack)[pack.index].float().cpu().numpy()
    bounds = pack.responses.tolist()
    owner = dict.fromkeys(range(len(pack.response_ids)), "")
    for (chosen, rejected), name in zip(pack.pairs.tolist(), pack.sample_ids, strict=False):
        owner[chosen] = owner[rejected] = name
    return [(key, logps[bounds[r] : bounds[r + 1]], owner[r]) for r, key in enumerate(pack.response_ids)]


def tolerance(config: Config, tokens: int) -> float:
    """How far a response of so many tokens may lie from its cached log-probs, in nat (docs/reference-cache.md)."""
    if config.reference.tolerance:
        return config.reference.tolerance
    return (0.3 if config.model.dtype == "bfloat16" else 1e-4) * max(1.0, tokens / 64)


def distance(now: np.ndarray, there: np.ndarray) -> float:
    """Nat between two scorings of a response: of their sums, or the root of the summed squares of their tokens'
    differences, whichever is larger. Errors of either sign cancel in a sum and add up in the other."""
    difference = now.astype(np.float64) - there.astype(np.float64)
    return max(abs(float(difference.sum())), math.sqrt(float(difference @ difference)))


def rescore(
    config: Config,
    runtime: Runtime,
    stores: list[ExampleStore],
    model: Model,
    cache: ReferenceCache,
    scored: set[str],
) -> str:
    """Score `reference.check` random examples of each store again, of those whose responses this start found in the
    cache and did not score itself; raises where the cache is off. All ranks score the same ones. Says what it found."""
    worst, count = 0.0, 0
    for number, store in enumerate(stores):
        order = np.random.default_rng([config.seed, number]).permutation(len(store)).tolist()
        found = (i for i in order if any(response_key(b) not in scored for b in branches(store[i])))
        if rows := list(islice(found, config.reference.check)):
            worst = max(worst, _compare(config, runtime, store, rows, model, cache))
            count += len(rows)
    return f"reference: {count} cached rows scored again, off by {worst:.2g} nat at most" if count else ""


def _compare(
    config: Config, runtime: Runtime, store: ExampleStore, rows: list[int], model: Model, cache: ReferenceCache
) -> float:
    """The largest distance of the responses of some examples from the cache."""
    scorer, load_images = model
    subset = [store[i] for i in rows]
    plan = make_plan(config, subset, store.images, scorer, pairs_per_step=len(rows), **AS_IT_COMES)
    loader = make_loader(config, runtime, plan, subset, store, scorer, load_images, None, together=True)
    worst, problem = 0.0, ""
    for loaded in loader.run(0, 1):
        for key, values, name in responses(scorer, loaded.pack):
            there = cache[key]
            off = distance(values, there)
            worst = max(worst, off)
            if not off <= tolerance(config, len(values)) and not problem:
                problem = (
                    f"the reference cache {cache.folder} does not fit this model: a response of example {name} scores "
                    f"{values.sum():.4f} now and {there.sum():.4f} in the cache ({off:.3g} nat off over its "
                    f"{len(values)} tokens, {tolerance(config, len(values)):.3g} allowed). It was made by other "
                    "weights or with another attention, dtype or device: remove it (or reference.path) to make it again"
                )
    runtime.agree(problem)
    return worst
