"""The local engine against transformers' generate and its own floors: rows in results/generate.jsonl.

python -m bench.generate [--quick] [--write] [--device cuda]

A 64M model with 576 image tokens, 64 new tokens an answer, greedy or drawn, one thread, peers interleaved. Per answer:
one row at a time, the best padded batch of transformers, the engine on one image and on four. Then the bars: prefill
against the trainer's forward of the same pack; a decode step against the larger of its weights' bytes over the measured
copy bandwidth and its GEMMs alone, beside the time of its own attention; and, of a world's tiny model with answers as
long as its captions, the rows that were run for nothing. Ratios stand in processor time too, which a loaded machine
distorts less. On a GPU bench/generate_device.py takes over: a model of the 7B shape. --base: bench/generate_trained.py.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from bench.timing import interleave, machine, summary, write_rows
from mmfast.data.symbols import expanded
from mmfast.engines import decode_attention, decoding, prefill
from mmfast.engines.base import Decode, Picture, Request
from mmfast.engines.local import Local
from mmfast.models.attention import attention
from mmfast.models.proof import own_inputs
from mmfast.pages import png
from mmfast.world import models as world
from mmfast.world.grammar import CAPTION_PROMPTS, Flaws, caption
from mmfast.world.scenes import render, scenes

QUESTIONS = [
    *CAPTION_PROMPTS,
    *(f"{q} Be exact." for q in CAPTION_PROMPTS),
    *(f"{q} Be brief." for q in CAPTION_PROMPTS),
]
YES_NO = [f"Is there a {c} {k}? Please answer yes or no." for c in ("red", "green", "blue", "yellow", "orange")
          for k in ("circle", "star")]  # fmt: skip


class Bench:
    def __init__(self, size: str, tokens: int, images: int, engine: Local | None = None) -> None:
        folder = tempfile.mkdtemp()
        self.engine = engine or Local(str(world.tiny_model("llava", folder, size=size)))
        self.engine.ends = [len(self.engine.prompts.tokenizer.hf) - 1]  # a token that hardly ever comes
        self.tokens, self.pictures = tokens, []
        for scene in scenes(0, "test", images):
            path = Path(folder) / f"{scene.name}.png"
            render(scene).save(path)
            self.pictures.append(Picture(str(path)))

    def request(self, image: int, question: str, n: int = 1, **fields: Any) -> Request:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        decode = Decode(temperature=0.8 if n > 1 else 0.0, max_tokens=self.tokens)
        fields = {"n": n, "decode": decode, **fields}
        messages = ({"role": "user", "content": content},)
        return Request(key=f"{image} {question}", messages=messages, images=(self.pictures[image],), **fields)

    def ours(self, requests: list[Request]) -> list[Any]:
        return list(self.engine.answer(requests))

    def theirs(self, requests: list[Request], **settings: Any) -> torch.Tensor:
        """transformers' generate, one batch padded on the left; the new tokens."""
        engine, made = self.engine, self.engine.prompts
        ids: list[list[int]] = []
        pictures: list[Picture] = []
        for one in requests:
            prompt = made.read(one)
            ids.append(expanded(prompt.example(engine.ends).chosen, made.infos, made.image_id)[0][:-1])
            pictures += prompt.pictures
        inputs = own_inputs(engine.scorer, ids[0], made.load_images(pictures), engine.scorer.dtype)
        longest = max(map(len, ids))
        padded = [([0] * (longest - len(row)) + row, [0] * (longest - len(row)) + [1] * len(row)) for row in ids]
        rows, mask = torch.tensor(padded, device=engine.scorer.device).unbind(1)
        inputs["input_ids"], inputs["attention_mask"] = rows, mask
        model: Any = engine.scorer.model
        with attention(engine.scorer.decoder.config, engine.scorer.own_attention), torch.no_grad():
            out: torch.Tensor = model.generate(
                **inputs, max_new_tokens=settings.pop("most", self.tokens), eos_token_id=engine.ends, pad_token_id=0,
                top_k=0, **settings,
            )  # fmt: skip
        return out[:, longest:]


def answers(bench: Bench, repeats: int) -> Iterator[dict[str, Any]]:
    """Seconds an answer: samples of a prompt, prompts of an image, yes/no questions of an image."""
    images = range(len(bench.pictures))
    drawn = {"do_sample": True, "temperature": 0.8}
    eight = [[bench.request(k, q) for q in QUESTIONS[:8]] for k in images]
    samples = [bench.request(k, QUESTIONS[0], n=8) for k in images]
    asked = [[bench.request(k, q, n=0, labels=("yes", "no")) for q in YES_NO] for k in images]
    every = len(images)
    shapes: dict[str, dict[str, tuple[Callable[[], Any], int]]] = {
        "8 samples of a prompt": {
            "transformers, a row at a time": (lambda: bench.theirs([eight[0][0]], **drawn), 1),
            "transformers, one batch": (lambda: bench.theirs([eight[0][0]], num_return_sequences=8, **drawn), 8),
            "mmfast, 1 image": (lambda: bench.ours(samples[:1]), 8),
            f"mmfast, {every} images": (lambda: bench.ours(samples), 8 * every),
        },
        "8 prompts of an image": {
            "transformers, a row at a time": (lambda: bench.theirs(eight[0][:1], do_sample=False), 1),
            "transformers, one batch": (lambda: bench.theirs(eight[0], do_sample=False), 8),
            "mmfast, 1 image": (lambda: bench.ours(eight[0]), 8),
            f"mmfast, {every} images": (lambda: bench.ours([*chain(*eight)]), 8 * every),
        },
        "10 yes/no questions of an image": {
            "transformers, a row at a time": (lambda: bench.theirs(asked[0][:1], most=1, do_sample=False), 1),
            "transformers, one batch": (lambda: bench.theirs(asked[0], most=1, do_sample=False), 10),
            "mmfast, 1 image": (lambda: bench.ours(asked[0]), 10),
            f"mmfast, {every} images": (lambda: bench.ours([*chain(*asked)]), 10 * every),
        },
    }
    for shape, peers in shapes.items():
        times = interleave({name: run for name, (run, _) in peers.items()}, repeats)
        each = {name: min(seconds) / peers[name][1] for name, seconds in times.items()}
        busy = {name: min(seconds.processor) / peers[name][1] for name, seconds in times.items()}
        row, batch = (f"transformers, {how}" for how in ("a row at a time", "one batch"))
        for name, seconds in times.items():
            yield {
                "op": "generate", "shape": shape, "peer": name, **summary(seconds),
                "s_an_answer": each[name], "times_row": each[row] / each[name], "times_batch": each[batch] / each[name],
                "processor_s_an_answer": busy[name], "processor_times_row": busy[row] / busy[name],
                "processor_times_batch": busy[batch] / busy[name],
            }  # fmt: skip


def prefills(bench: Bench, repeats: int) -> Iterator[dict[str, Any]]:
    """A group's prefill, pictures included, against the trainer's forward of the same pack."""
    engine = bench.engine
    prompts = [engine.prompts.read(bench.request(0, q)) for q in QUESTIONS[:8]]
    plan = prefill.plan(prompts, engine.prompts, engine.scorer, engine.ends[0])
    whole = replace(plan.pack, images=engine.prompts.load_images(plan.pictures))
    with torch.no_grad():
        times = interleave(
            {
                "trainer's forward": lambda: engine.scorer(whole),
                "prefill": lambda: prefill.run(plan, engine.prompts.load_images(plan.pictures), engine.scorer),
            },
            3 * repeats,
        )
    ratio = min(times["prefill"]) / min(times["trainer's forward"])
    yield {"op": "prefill", "shape": f"{len(plan.pack.tokens)} tokens", "peer": "mmfast", **summary(times["prefill"]),
           "floor_s": min(times["trainer's forward"]), "times_floor": ratio, "bar": 1.2}  # fmt: skip


def steps(bench: Bench, repeats: int) -> Iterator[dict[str, Any]]:
    """One decode step of some rows, its attention timed inside it."""
    engine, model = bench.engine, bench.engine.scorer.model
    linears = [m for m in engine.scorer.decoder.modules() if isinstance(m, torch.nn.Linear)]
    linears.append(model.get_output_embeddings())
    weights = sum(m.weight.nbytes for m in linears)
    source = torch.empty(2**26)
    target = torch.empty_like(source)
    for rows in (4, 8, 32):
        drawn = Decode(temperature=0.8, max_tokens=20 * repeats + 20)
        some = range(max(rows // 8, 1))
        requests = [bench.request(k % len(bench.pictures), QUESTIONS[0], n=8, decode=drawn) for k in some]
        run = decoding.Decoding(engine.scorer, engine.tokens, 1)
        plan = prefill.plan([engine.prompts.read(r) for r in requests], engine.prompts, engine.scorer, engine.ends[0])
        found = prefill.run(plan, engine.prompts.load_images(plan.pictures), engine.scorer)
        run.waiting.extend([engine._answer(one, s) for one in found for s in range(8)][:rows])
        inputs = [torch.randn(rows, m.in_features) for m in linears]
        attention: list[tuple[float, float]] = []
        with torch.no_grad(), timed_attention(attention):
            run.step()
            attention.clear()

            def gemms(inputs: list[torch.Tensor] = inputs) -> None:
                for module, x in zip(linears, inputs, strict=True):
                    module(x)

            peers: dict[str, Callable[[], Any]] = {"gemms": gemms, "step": run.step}
            peers["copy"] = lambda: target.copy_(source)
            times = interleave(peers, 10 * repeats)
        attention = attention[len(attention) // (10 * repeats + 1) :]  # without the warm-up
        layers = len(attention) // len(times["step"])
        own, own_busy = (
            min(sum(pair[clock] for pair in attention[k : k + layers]) for k in range(0, len(attention), layers))
            for clock in (0, 1)
        )
        bandwidth = 2 * source.nbytes / min(times["copy"])
        floor = max(weights / bandwidth, min(times["gemms"]))
        yield {"op": "decode step", "shape": f"{rows} rows", "peer": "mmfast", **summary(times["step"]),
               "floor_s": floor, "gemms_s": min(times["gemms"]), "weights_s": weights / bandwidth, "attention_s": own,
               "times_floor": (min(times["step"]) - own) / floor, "bar": 1.3,
               "processor_times_gemms":
               (min(times["step"].processor) - own_busy) / min(times["gemms"].processor)}  # fmt: skip


def lengths(bench: Bench, repeats: int) -> Iterator[dict[str, Any]]:
    """Answers as long as the world's captions, 8 samples of each of 16 pictures: a row leaves when its answer ends, a
    padded batch runs to the longest. `waste`: rows run for nothing, of all rows run."""
    engine, generator = bench.engine, random.Random(0)
    encode = engine.prompts.tokenizer.encode
    pictures = [Picture(scene.name, png(render(scene))) for scene in scenes(0, "test", 16)]
    captions = [caption(scene, generator, Flaws()).text for scene in scenes(0, "test", 128)]
    most = [len(encode(text).ids) + 1 for text in captions]
    bench.pictures = pictures
    requests = [
        replace(bench.request(k // 8, QUESTIONS[0], 1), key=f"{k}", decode=Decode(temperature=0.8, max_tokens=most[k]))
        for k in range(128)
    ]
    drawn = {"do_sample": True, "temperature": 0.8}
    mean = round(sum(most) / len(most))
    times = interleave(
        {
            "transformers, a row at a time": lambda: bench.theirs(requests[:1], most=mean, **drawn),
            "transformers, one batch": lambda: bench.theirs(requests, most=max(most), **drawn),
            "mmfast": lambda: bench.ours(requests),
        },
        repeats,
    )
    counts = engine.counts
    run = counts["rows"] + counts["spare"]
    each = {name: min(seconds.processor) / (1 if "row" in name else 128) for name, seconds in times.items()}
    for name, seconds in times.items():
        yield {
            "op": "generate", "shape": f"16 pictures, 8 samples, captions of {mean} tokens", "peer": name,
            **summary(seconds), "processor_s_an_answer": each[name],
            "processor_times_row": each["transformers, a row at a time"] / each[name],
            "processor_times_batch": each["transformers, one batch"] / each[name],
            **({"waste": (counts["spare"] + counts["ended"]) / run, "bar_waste": 0.05} if name == "mmfast" else {}),
        }  # fmt: skip


class timed_attention:
    """Seconds of each call of the decode attention, the clock's and the processor's, appended to a list."""

    def __init__(self, seconds: list[tuple[float, float]]) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            start = time.perf_counter(), time.process_time()
            out = decode_attention.attend(*arguments, **keywords)
            self.seconds.append((time.perf_counter() - start[0], time.process_time() - start[1]))
            return out

        decode_attention.AttentionInterface.register(decode_attention.NAME, timed)

    def __exit__(self, *_: Any) -> None:
        decode_attention.AttentionInterface.register(decode_attention.NAME, decode_attention.attend)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model and few tokens: does it run?")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--only", default="", help="answers, prefills, steps or lengths")
    parser.add_argument("--write", action="store_true", help="append to bench/results/generate.jsonl")
    parser.add_argument(
        "--device", default="cpu", help="cuda: a random LLaVA of the 7B shape in bf16 (--quick: a tiny one)"
    )
    parser.add_argument("--base", help="base/export/hf of a run of `mmfast demo`: captions that end themselves")
    given = parser.parse_args()
    if given.device != "cpu":
        from bench.generate_device import measured

        made = list(measured(given.device, quick=given.quick, tokens=given.tokens))
        if given.write:
            write_rows(Path(__file__).parent / "results" / "generate.jsonl", [row | machine() for row in made])
        return
    torch.set_num_threads(1)
    if given.base:
        from bench.generate_trained import captions

        made = list(captions(given.base, given.repeats))
        if given.write:
            write_rows(Path(__file__).parent / "results" / "generate.jsonl", [row | machine() for row in made])
        return
    large = Bench("tiny", 6, 2) if given.quick else Bench("bench", given.tokens, 4)
    for part in (answers, prefills, steps, lengths):
        if given.only in ("", part.__name__):
            made = list(part(Bench("tiny", 6, 1) if part is lengths else large, given.repeats))
            for row in made:
                print(row, flush=True)
            if given.write:
                write_rows(Path(__file__).parent / "results" / "generate.jsonl", [row | machine() for row in made])


if __name__ == "__main__":
    main()
