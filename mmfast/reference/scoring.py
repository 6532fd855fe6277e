"""The reference pass: every response's log-probs once, into the cache; and the checks before the cache is trusted."""

from __future__ import annotations

import importlib.metadata
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mmfast.config import Config
from mmfast.data.store import ExampleStore
from mmfast.directory import adapter_directory, directory
from mmfast.files import weight_digests
from mmfast.job.opening import Job, Model
from mmfast.job.passes import Pass
from mmfast.job.runtime import Runtime, start
from mmfast.models.parallelize import evaluating
from mmfast.models.scorer import Scorer
from mmfast.packing import Pack
from mmfast.progress import Parts
from mmfast.reference.cache import FORMAT, ReferenceCache, ShardWriter, manifest_id

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
        job = Job(config, runtime)
        return filled_cache(job, reference_model(job))[0].folder
    finally:
        if own:
            runtime.close()


def reference_model(job: Job) -> Model:
    """The starting policy, or the model that the config names, frozen."""
    return job.open_model(job.reference.model) if job.reference.model else job.policy


def make_manifest(job: Job) -> dict[str, Any]:
    """What reference log-probs depend on beside the responses' own ids."""
    m, named, made = job.model, job.reference.model, job.store.manifest
    adapter = m.adapter if not named else ""
    return {
        "format": FORMAT,
        "weights": weight_digests(directory(named or m.path, weights=True), job.cache / "digests"),
        "adapter": weight_digests(adapter_directory(adapter, weights=True)) if adapter else {},
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


def open_cache(job: Job) -> ReferenceCache:
    """The run's cache, made by rank 0 if it is not there."""
    made: list[ReferenceCache] = []

    def make() -> tuple[Path, dict[str, Any]]:
        manifest = make_manifest(job)
        folder = Path(job.reference.path or job.cache / "reference" / manifest_id(manifest))
        made.append(ReferenceCache(folder, manifest))
        return folder, manifest

    folder, manifest = job.runtime.from_main(make)
    cache = made[0] if made else ReferenceCache(folder, manifest)
    job.runtime.barrier()  # every rank has seen the same rows before one adds to them
    return cache


def filled_cache(job: Job, model: Model) -> tuple[ReferenceCache, set[str]]:
    """(the cache with every response of the job's data, the keys that were scored in this start)."""
    cache = open_cache(job)
    scored: set[str] = set()
    for store in job.stores:
        missing = [(e, keys) for e, keys in enumerate(store.symbols.named()) if any(key not in cache for key in keys)]
        if missing:
            broken = [e for e, keys in missing if any(key in cache.dropped for key in keys)]
            if broken and job.runtime.main:
                name, source = store.symbols.name(broken[0])
                print(
                    f"reference: the cached rows of {len(broken)} examples are not finite (the first is {name}, "
                    f"{source}): dropped, and scored again",
                    file=sys.stderr,
                    flush=True,
                )
            scored.update(key for _, keys in missing for key in keys if key not in cache)
            _score(job, store.subset([e for e, _ in missing]), model, cache)
        job.runtime.barrier()
        cache.reload()
    return cache, scored


def _score(job: Job, store: ExampleStore, model: Model, cache: ReferenceCache) -> None:
    """Score a store's examples, every rank its packs."""
    runtime, every = job.runtime, Pass(job, store, model, pairs_per_step=1024, **AS_IT_COMES)
    writer, known = ShardWriter(cache), set(cache.values)
    if runtime.main:
        print(f"reference: {len(store)} examples to score into {cache.folder}", file=sys.stderr, flush=True)
    done, problem = 0, ""
    with Parts(Console(stderr=True), show=job.progress and len(store) > 64, width=9) as bars:
        bar = bars.part("reference")
        for loaded in every.run():
            for key, values, name in responses(model.scorer, loaded.pack):
                if key in known:
                    continue  # a row that is there stays; `rescore` judges it
                if np.isfinite(values).all():
                    writer.put(key, values)
                else:  # never written: a later start would take it for another model's row
                    problem = problem or f"the reference log-probs of example {name} are not finite"
            if loaded.ends_step:
                done += len(loaded.step.examples)
                bar(done, len(store))
                if any(runtime.gather(problem)):
                    writer.flush()  # what was good is kept for the next start
                runtime.agree(problem)
    writer.flush()


def responses(scorer: Scorer, pack: Pack) -> list[tuple[str, np.ndarray, str]]:
    """(key, log-probs, example id) of each response entry of a pack."""
    with evaluating(scorer):
        logps = scorer(pack)[pack.index].float().cpu().numpy()
    bounds = pack.responses.tolist()
    owner = dict.fromkeys(range(len(pack.response_ids)), "")
    for (chosen, rejected), name in zip(pack.pairs.tolist(), pack.sample_ids, strict=False):
        owner[chosen] = owner[rejected] = name
    return [(key, logps[bounds[r] : bounds[r + 1]], owner[r]) for r, key in enumerate(pack.response_ids)]


def tolerance(job: Job, tokens: int) -> float:
    """How far a response of so many tokens may lie from its cached log-probs, in nat (docs/reference-cache.md)."""
    if job.reference.tolerance:
        return job.reference.tolerance
    return (0.3 if job.model.dtype == "bfloat16" else 1e-4) * max(1.0, tokens / 64)


def distance(now: np.ndarray, there: np.ndarray) -> float:
    """Nat between two scorings of a response: of their sums, or the root of the summed squares of their tokens'
    differences, whichever is larger. Errors of either sign cancel in a sum and add up in the other."""
    difference = now.astype(np.float64) - there.astype(np.float64)
    return max(abs(float(difference.sum())), math.sqrt(float(difference @ difference)))


def rescore(job: Job, model: Model, cache: ReferenceCache, scored: set[str]) -> str:
    """Score `reference.check` random examples of each store again, of those whose responses this start found in the
    cache and did not score itself; raises where the cache is off. All ranks score the same ones. Says what it found."""
    worst, count = 0.0, 0
    for number, store in enumerate(job.stores if job.reference.check else []):
        cached = np.asarray([any(key not in scored for key in keys) for keys in store.symbols.named()])
        order = np.random.default_rng([job.seed, number]).permutation(len(store))
        if len(rows := order[cached[order]][: job.reference.check]):
            worst = max(worst, _compare(job, store.subset(rows), model, cache))
            count += len(rows)
    return f"reference: {count} cached rows scored again, off by {worst:.2g} nat at most" if count else ""


def _compare(job: Job, store: ExampleStore, model: Model, cache: ReferenceCache) -> float:
    """The largest distance of the responses of a store's examples from the cache."""
    once = Pass(job, store, model, together=True, pairs_per_step=len(store), **AS_IT_COMES)
    worst, problem = 0.0, ""
    for loaded in once.run():
        for key, values, name in responses(model.scorer, loaded.pack):
            there = cache[key]
            off, allowed = distance(values, there), tolerance(job, len(values))
            worst = max(worst, off)
            if not off <= allowed and not problem:
                problem = (
                    f"the reference cache {cache.folder} does not fit this model: a response of example {name} scores "
                    f"{values.sum():.4f} now and {there.sum():.4f} in the cache ({off:.3g} nat off over its "
                    f"{len(values)} tokens, {allowed:.3g} allowed). It was made by other weights or with another "
                    "attention, dtype or device: remove it (or reference.path) to make it again"
                )
    job.runtime.agree(problem)
    return worst
