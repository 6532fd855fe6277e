"""The local engine on a GPU, of a LLaVA of the 7B shape with random weights: python -m bench.generate --device cuda.

A decode step captured, not captured, and by torch's batched products, beside its floor: the bytes of the weights it
reads over 3 TB/s. Tokens a second of whole answers beside transformers' generate, a row at a time and as one padded
batch. Prefill beside the trainer's forward of the same pack.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from bench.generate import QUESTIONS, Bench
from bench.step import make_directory
from mmfast.engines import decoding, prefill
from mmfast.engines.base import Decode, Reply
from mmfast.engines.captured import Captured
from mmfast.engines.local import Local
from mmfast.models import load
from mmfast.models.loading import PARTS
from mmfast.world import models as world

BANDWIDTH = 3e12  # bytes a second


def opened(device: str, quick: bool) -> Local:
    folder = Path(tempfile.mkdtemp())
    if quick:
        return Local(str(world.tiny_model("llava", folder, size="tiny")), device=device)
    path = str(make_directory("llava-7b", folder))
    scorer = load(path, dtype="bfloat16", freeze=PARTS, device=device, random_weights=True)
    engine = Local(path, scorer=scorer.eval())
    engine.live = False  # nobody trains it: graphs are kept
    return engine


def wait() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(run: Callable[[], Any], times: int = 1) -> float:
    begin = wait()
    for _ in range(times):
        run()
    return (wait() - begin) / times


def begun(bench: Bench, rows: int, captured: Captured | None, tokens: int) -> decoding.Decoding:
    """Rows of eight samples each of a picture's prompt, prefilled."""
    engine, drawn = bench.engine, Decode(temperature=0.8, max_tokens=tokens)
    asked = [bench.request(k % len(bench.pictures), QUESTIONS[k // 4], n=8, decode=drawn) for k in range(rows // 8)]
    plan = prefill.plan([engine.prompts.read(r) for r in asked], engine.prompts, engine.scorer, engine.ends[0])
    run = decoding.Decoding(engine.scorer, engine.tokens, 1, captured=captured)
    with torch.no_grad():
        found = prefill.run(plan, engine.prompts.load_images(plan.pictures), engine.scorer)
    run.waiting.extend(engine._answer(one, sample) for one in found for sample in range(8))
    return run


def steps(bench: Bench, times: int) -> Iterator[dict[str, Any]]:
    engine = bench.engine
    linears = [m.weight for m in engine.scorer.decoder.modules() if isinstance(m, torch.nn.Linear)]
    floor = sum(w.nbytes for w in [*linears, engine.scorer.model.get_output_embeddings().weight]) / BANDWIDTH
    for rows in (32, 8, 128):
        row: dict[str, Any] = {"op": "decode step", "shape": f"{rows} rows", "peer": "mmfast", "floor_s": floor}
        for name in ("captured", "pieces", "batched products"):
            captured = Captured(engine.scorer) if name != "batched products" else None
            if captured is not None:
                captured.graphs &= name == "captured"
            run = begun(bench, rows, captured, times + 8)
            with torch.no_grad():
                for _ in range(4):
                    run.step()
                row[f"{name}_s"] = seconds(run.step, times)
                held = next(reversed(captured.held.values())) if captured is not None else None
                if held is not None and held.graph is not None:  # on the device alone
                    row["replay_s"] = seconds(held.graph.replay, times)
        yield row | {"times_floor": row["captured_s"] / floor}


def prefills(bench: Bench, times: int) -> Iterator[dict[str, Any]]:
    engine = bench.engine
    prompts = [engine.prompts.read(bench.request(k, QUESTIONS[0])) for k in range(len(bench.pictures))]
    plan = prefill.plan(prompts, engine.prompts, engine.scorer, engine.ends[0])
    images = engine.prompts.load_images(plan.pictures)
    whole = replace(plan.pack, images=engine.scorer.adapter.prepare(images)).to(engine.scorer.device)
    runs: dict[str, Callable[[], Any]] = {
        "floor_s": lambda: engine.scorer(whole),
        "prefill_s": lambda: prefill.run(plan, images, engine.scorer),
        "with_pictures_s": lambda: prefill.run(plan, engine.prompts.load_images(plan.pictures), engine.scorer),
    }
    row: dict[str, Any] = {"op": "prefill", "shape": f"{len(plan.pack.tokens)} tokens", "peer": "mmfast"}
    with torch.no_grad():
        for name, run in runs.items():
            run()
            row[name] = seconds(run, times)
    yield row | {"times_floor": row["prefill_s"] / row["floor_s"]}


def answers(bench: Bench) -> Iterator[dict[str, Any]]:
    """Tokens a second: answers have all the same length."""
    images, drawn = range(len(bench.pictures)), {"do_sample": True, "temperature": 0.8}
    samples = [bench.request(k, QUESTIONS[0], n=8) for k in images]
    eight = [[bench.request(k, q) for q in QUESTIONS[:8]] for k in images]
    copies = [replace(one, n=1) for one in samples for _ in range(8)]
    shapes: dict[str, dict[str, tuple[Callable[[int], Any], int]]] = {
        "8 samples of a prompt": {
            "transformers, a row at a time": (lambda most: bench.theirs([samples[0]], most=most, **drawn), 1),
            f"transformers, one batch of {len(copies)}": (
                lambda most: bench.theirs(copies, most=most, **drawn), len(copies)),
            "mmfast, 1 image": (lambda most: bench.ours(samples[:1]), 8),
            f"mmfast, {len(images)} images": (lambda most: bench.ours(samples), len(copies)),
        },
        "8 prompts of an image": {
            "transformers, one batch of 8": (lambda most: bench.theirs(eight[0], most=most, do_sample=False), 8),
            "mmfast, 1 image": (lambda most: bench.ours(eight[0]), 8),
            f"mmfast, {len(images)} images": (lambda most: bench.ours([*chain(*eight)]), len(copies)),
        },
    }  # fmt: skip
    for shape, peers in shapes.items():
        first = None
        for name, (run, count) in peers.items():
            run(4)
            each = seconds(lambda run=run: run(bench.tokens)) / count  # type: ignore[misc]
            first = first or each
            row = {"op": "generate", "shape": shape, "peer": name, "s_an_answer": each}
            yield row | {"tokens_a_second": bench.tokens / each, f"times_{next(iter(peers))}": first / each}


def same_as_generate(device: str) -> Iterator[dict[str, Any]]:
    """Greedy answers of a tiny model in fp32 against transformers' generate on the same device."""
    bench = Bench("tiny", 24, 3, Local(str(world.tiny_model("llava", tempfile.mkdtemp())), device=device))
    asked, equal = [bench.request(k % 3, question) for k, question in enumerate(QUESTIONS[:9])], 0
    found: dict[str, list[int]] = {}
    reply = bench.engine._reply

    def caught(answer: decoding.Answer) -> Reply:
        found[answer.of.prompt.key] = answer.tokens
        return reply(answer)

    bench.engine._reply = caught  # type: ignore[method-assign]
    bench.ours(asked)
    for one in asked:
        want = bench.theirs([one], do_sample=False)[0]
        equal += want.tolist() == found[one.key]
    yield {"op": "generate", "shape": "greedy, tiny, fp32", "peer": "transformers", "equal": equal, "of": len(asked)}


def measured(device: str, *, quick: bool, tokens: int) -> Iterator[dict[str, Any]]:
    begin = wait()
    bench = Bench("", 8 if quick else tokens, 4, opened(device, quick))
    print(f"opened in {wait() - begin:.1f} s")
    for part in (steps(bench, 4 if quick else 20), answers(bench), prefills(bench, 3), same_as_generate(device)):
        for row in part:
            print(told(row), flush=True)
            yield row


def told(row: dict[str, Any]) -> str:
    return "  ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items())
