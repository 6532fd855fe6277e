"""The stages of feedback against a row at a time and the best padded batch: rows in results/feedback.jsonl.

python -m bench.feedback [--quick] [--only critique|logprobs] [--answers 8] [--tokenizer FOLDER] [--write]

A 64M model with 576 image tokens and a Llama tokenizer, one thread, peers interleaved. A case is a table of peers: what
each runs, and how many items (comparisons, checks) that is. `times_row` is against the seed's own way, a row at a time;
`times_batch` against transformers' best padded batch that answers the same question.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from bench.generate import Bench
from bench.timing import interleave, machine, summary, write_rows
from mmfast.data.symbols import expanded
from mmfast.engines.base import Decode, Picture, Request
from mmfast.engines.local import Local
from mmfast.engines.prompts import ANSWER
from mmfast.feedback import critique as critics
from mmfast.feedback.answers import Answer
from mmfast.models.attention import attention
from mmfast.models.proof import own_inputs
from mmfast.world.dataset import flawed_caption
from mmfast.world.grammar import Flaws
from mmfast.world.scenes import Scene, render, scenes

ANSWERS = (2, 4, 8)  # of an image, all pairs compared
LARGEST = 12  # rows of a padded batch: more need more memory, and are no faster on a CPU
ROW, BATCH = "a row at a time", "one padded batch"


@dataclass(frozen=True)
class Case:
    op: str
    shape: str
    peers: dict[str, tuple[Callable[[], Any], int]]  # name -> (what it runs, of how many items)
    row: str  # the peer that is the seed's way
    batch: str  # the best padded batch
    bar: float  # times the seed's way


class Models(Bench):
    """The engine, and transformers on the same weights."""

    def __init__(
        self, size: str, tokens: int, images: int, tokenizer: Path | None, numbers: tuple[int, ...] = ANSWERS
    ) -> None:
        from tests.make.prompt_models import llava

        folder = Path(tempfile.mkdtemp())
        self.engine = Local(llava(folder, tokenizer, size=size))
        self.engine.ends = [len(self.engine.prompts.tokenizer.hf) - 1]  # a token that hardly ever comes
        self.tokens, self.pictures, self.numbers = tokens, [], numbers
        self.scenes: list[Scene] = list(scenes(0, "test", images))
        for scene in self.scenes:
            path = folder / f"{scene.name}.png"
            render(scene).save(path)
            self.pictures.append(Picture(str(path)))

    def answers(self, image: int, number: int) -> list[Answer]:
        """Of about 100 tokens each, the first one greedy."""
        rng = random.Random(f"answers:{image}")
        told = [
            " ".join(caption.text for _ in range(3) if (caption := flawed_caption(self.scenes[image], rng, Flaws())))
            for _ in range(number)
        ]
        asked = ({"role": "user", "content": "Describe the image in detail."},)
        return [
            Answer(
                key=f"{image}.{n}", row=image, source="bench", group=f"{image}", prompt=asked, text=f"{n}: {text}",
                images=(self.pictures[image].source,), decode="sample" if n else "greedy",
            )
            for n, text in enumerate(told)
        ]  # fmt: skip

    def requests(self, critic: critics.Critic, image: int, answers: int) -> list[Request]:
        """What the stage asks about the answers of an image."""
        asks = critics._asks(critic, self.answers(image, answers))
        return [
            Request(
                key=f"{image} {n}", messages=ask.messages, images=(self.pictures[image],), n=0 if ask.labels else 1,
                labels=ask.labels, decode=Decode(max_tokens=self.tokens),
            )
            for n, ask in enumerate(asks)
        ]  # fmt: skip

    def finished(self, answer: Answer, image: int) -> Request:
        content = [{"type": "image"}, {"type": "text", "text": answer.question}]
        messages = ({"role": "user", "content": content}, {"role": "assistant", "content": answer.text})
        return Request(key=answer.key, messages=messages, images=(self.pictures[image],), n=0, scored=True)

    def scored(self, requests: list[Request]) -> list[float]:
        """transformers' forward, one batch padded on the left; logits of the answers' places alone."""
        engine, made = self.engine, self.engine.prompts
        prompts = [made.read(one) for one in requests]
        own = [prompt.labels[ANSWER] for prompt in prompts]
        branches = [prompt.example(ids).chosen for prompt, ids in zip(prompts, own, strict=True)]
        ids = [expanded(branch, made.infos, made.image_id)[0] for branch in branches]
        pictures = [picture for prompt in prompts for picture in prompt.pictures]
        inputs = own_inputs(engine.scorer, ids[0], made.load_images(pictures), engine.scorer.dtype)
        longest, most = max(map(len, ids)), max(map(len, own))
        inputs["input_ids"] = torch.tensor([[0] * (longest - len(row)) + row for row in ids])
        inputs["attention_mask"] = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
        model: Any = engine.scorer.model
        with attention(engine.scorer.decoder.config, engine.scorer.own_attention), torch.no_grad():
            logits = model(**inputs, use_cache=False, logits_to_keep=most + 1).logits[:, :-1]
        logps = logits.log_softmax(-1)
        return [
            float(logps[n, -len(row) :].gather(1, torch.tensor(row)[:, None]).double().sum())
            for n, row in enumerate(own)
        ]


def critique(models: Models) -> Iterator[Case]:
    """Two answers an image, as SIMA has them, and more. The seed's critic writes a reason and a verdict, greedily, in
    one order; ours reads the verdict's labels, in one order or in both."""
    sima, ours = critics.planned("sima"), critics.planned(read="labels")
    text = replace(ours, read="text")
    images = range(len(models.pictures))
    for number in models.numbers:
        pairs = number * (number - 1) // 2
        seed = models.requests(sima, 0, 2)[:1]
        labels = [models.requests(ours, k, number) for k in images]
        single = [models.requests(replace(ours, order="one"), k, number) for k in images]
        written = models.requests(text, 0, number)
        batch = labels[0][:LARGEST]
        assert len(labels[0]) == 2 * pairs

        def theirs(batches: list[list[Request]], most: int) -> None:
            for batch in batches:
                models.theirs(batch, most=most, do_sample=False)

        yield Case(
            "critique", f"{number} answers an image, {models.tokens} tokens where a reason is written",
            {
                f"transformers, {ROW}, one order, written": (partial(theirs, [seed], models.tokens), 1),
                f"transformers, {ROW}, both orders, labels": (partial(theirs, [[one] for one in labels[0][:2]], 1), 1),
                f"transformers, {BATCH}, both orders, labels": (partial(theirs, [batch], 1), len(batch) // 2),
                "mmfast, 1 image, both orders, written": (partial(models.ours, written), pairs),
                "mmfast, 1 image, both orders, labels": (partial(models.ours, labels[0]), pairs),
                f"mmfast, {len(images)} images, one order, labels": (
                    partial(models.ours, [*chain(*single)]), pairs * len(images),
                ),
                f"mmfast, {len(images)} images, both orders, labels": (
                    partial(models.ours, [*chain(*labels)]), pairs * len(images),
                ),
            },
            row=f"transformers, {ROW}, one order, written", batch=f"transformers, {BATCH}, both orders, labels", bar=10,
        )  # fmt: skip


def logprobs(models: Models) -> Iterator[Case]:
    """Answers of about 100 tokens that are there already, scored."""
    images = range(len(models.pictures))
    for number in models.numbers:
        asked = [[models.finished(answer, image) for answer in models.answers(image, number)] for image in images]
        yield Case(
            "logprobs", f"{number} answers an image",
            {
                f"transformers, {ROW}": (partial(models.scored, asked[0][:1]), 1),
                f"transformers, {BATCH}": (partial(models.scored, asked[0]), number),
                "mmfast, 1 image": (partial(models.ours, asked[0]), number),
                f"mmfast, {len(images)} images": (partial(models.ours, [*chain(*asked)]), number * len(images)),
            },
            row=f"transformers, {ROW}", batch=f"transformers, {BATCH}", bar=0,  # the issue names none
        )  # fmt: skip


CASES: dict[str, Callable[[Models], Iterator[Case]]] = {"critique": critique, "logprobs": logprobs}


def measured(case: Case, repeats: int) -> Iterator[dict[str, Any]]:
    """A row a peer: items a second, and how many times the seed's way and the batch that is."""
    times = interleave({name: run for name, (run, _) in case.peers.items()}, repeats)
    each = {name: min(seconds) / case.peers[name][1] for name, seconds in times.items()}
    busy = {name: min(seconds.processor) / case.peers[name][1] for name, seconds in times.items()}
    for name, seconds in times.items():
        yield {
            "op": case.op, "shape": case.shape, "peer": name, **summary(seconds), "rows_a_second": 1 / each[name],
            "times_row": each[case.row] / each[name], "times_batch": each[case.batch] / each[name],
            "processor_times_row": busy[case.row] / busy[name],
            "processor_times_batch": busy[case.batch] / busy[name], "bar_times_row": case.bar,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model and few tokens: does it run?")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64, help="of a written reason and verdict")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--answers", type=int, help=f"of an image, in critique; default: {ANSWERS}")
    parser.add_argument("--only", default="", help=", ".join(CASES))
    parser.add_argument("--tokenizer", type=Path, help="a folder with a Llama tokenizer; default: one made here")
    parser.add_argument("--write", action="store_true", help="append to bench/results/feedback.jsonl")
    given = parser.parse_args()
    torch.set_num_threads(1)
    few = {"tokens": 4, "images": 2} if given.quick else {"tokens": given.tokens, "images": given.images}
    numbers = (given.answers,) if given.answers else ANSWERS
    models = Models("tiny" if given.quick else "bench", tokenizer=given.tokenizer, numbers=numbers, **few)
    for name, cases in CASES.items():
        if given.only in ("", name):
            for case in cases(models):
                made = list(measured(case, given.repeats))
                for row in made:
                    print(row, flush=True)
                if given.write:
                    write_rows(Path(__file__).parent / "results" / "feedback.jsonl", [row | machine() for row in made])


if __name__ == "__main__":
    main()
