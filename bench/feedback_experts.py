"""Experts against a row at a time and the best batch: rows in results/feedback_experts.jsonl.

python -m bench.feedback_experts [--quick] [--only check] [--write]

check    10 yes/no questions of an image, on a 64M model with 576 image tokens: RLAIF-V's way (one token generated, a
         question a row), transformers' padded batch, the expert on one image and on four
detect   40 names of an image, on an OWL-ViT of 1,024 patches: DGPref's way (8 names a call, the image encoded in each),
         one call with all names, the expert with names that it meets for the first time and that it knows
One thread, peers interleaved. Ratios stand in processor time too, which a loaded machine distorts less.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.generate import YES_NO, Bench
from bench.timing import interleave, machine, summary, write_rows
from mmfast.engines.base import Picture
from mmfast.feedback.experts import Case
from mmfast.feedback.experts.owl import Owl
from mmfast.feedback.experts.weights import picture_of, pixels_of
from mmfast.feedback.experts.yesno import YesNo
from mmfast.feedback.items import Item
from mmfast.feedback.prompts import prompt
from mmfast.world.scenes import COLOURS, KINDS, SHAPES, render, scenes

RESULTS = Path(__file__).parent / "results" / "feedback_experts.jsonl"
Peers = dict[str, tuple[Callable[[], Any], int]]  # name -> what it runs, and of how many items


def check(quick: bool) -> tuple[Peers, str, str]:
    bench = Bench("tiny" if quick else "bench", tokens=1, images=4)
    labels = {"yes": "yes", "no": "no"}
    expert = YesNo(bench.engine, prompt("yes_no"), labels=labels)
    asked = [question.removesuffix(" Please answer yes or no.") for question in YES_NO]
    items = tuple(Item(kind="claim", claim=question, question=question) for question in asked)
    cases = [Case(images=(picture,), items=items) for picture in bench.pictures]
    rows = [bench.request(0, question) for question in YES_NO]
    peers: Peers = {
        "transformers, a row at a time": (lambda: bench.theirs(rows[:1], most=1, do_sample=False), 1),
        "transformers, one batch": (lambda: bench.theirs(rows, most=1, do_sample=False), len(rows)),
        "mmfast, 1 image": (lambda: list(expert.check(cases[:1])), len(rows)),
        "mmfast, 4 images": (lambda: list(expert.check(cases)), 4 * len(rows)),
    }
    return peers, "transformers, a row at a time", "transformers, one batch"


def detect(quick: bool) -> tuple[Peers, str, str]:
    from tests.make.detectors import write_owl

    folder = Path(tempfile.mkdtemp())
    sizes: dict[str, Any] = {
        "hidden_size": 32 if quick else 128,
        "intermediate_size": 128 if quick else 512,
        "num_hidden_layers": 4,
    }
    owl = Owl(str(write_owl(folder / "owl", edge=96 if quick else 384, patch=12, spread=False, **sizes)))
    render(next(scenes(0, "test", 1))).save(folder / "one.png")
    picture = Picture(str(folder / "one.png"))
    names = [*(" ".join(kind) for kind in KINDS), *COLOURS, *SHAPES][:40]

    owl.threshold = float(owl.logits(picture_of(picture), names)[0].sigmoid().quantile(0.98))  # two boxes of a hundred

    def theirs(step: int) -> None:
        for first in range(0, len(names), step):
            call(owl, picture, names[first : first + step])

    def fresh() -> Any:
        owl.known.clear()
        return owl.find(picture, names)

    peers: Peers = {
        "transformers, 8 names a call": (lambda: theirs(8), len(names)),
        "transformers, one call": (lambda: theirs(len(names)), len(names)),
        "mmfast, new names": (fresh, len(names)),
        "mmfast, known names": (lambda: owl.find(picture, names), len(names)),
    }
    return peers, "transformers, 8 names a call", "transformers, one call"


def call(owl: Owl, picture: Picture, names: Sequence[str]) -> Any:
    """transformers' forward and post-processing of an image and names."""
    padded = {"padding": "max_length", "truncation": True, "max_length": owl.length, "return_tensors": "pt"}
    tokens = owl.tokenizer(list(names), **padded)
    image = picture_of(picture)
    pixels = pixels_of(owl.images, image, owl.model)
    with torch.no_grad():
        out = owl.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=pixels)
    return owl.images.post_process_object_detection(out, owl.threshold, [image.size[::-1]])


CASES = {"check": (check, "10 questions of an image", 8.0), "detect": (detect, "40 names of an image", 4.0)}


def measured(name: str, quick: bool, repeats: int) -> Iterator[dict[str, Any]]:
    make, shape, bar = CASES[name]
    peers, row, batch = make(quick)
    times = interleave({peer: run for peer, (run, _) in peers.items()}, repeats)
    each = {peer: min(seconds) / peers[peer][1] for peer, seconds in times.items()}
    busy = {peer: min(seconds.processor) / peers[peer][1] for peer, seconds in times.items()}
    for peer, seconds in times.items():
        yield {
            "op": name,
            "shape": shape,
            "peer": peer,
            **summary(seconds),
            "s_an_item": each[peer],
            "times_row": each[row] / each[peer],
            "times_batch": each[batch] / each[peer],
            "processor_times_row": busy[row] / busy[peer],
            "processor_times_batch": busy[batch] / busy[peer],
            "bar": bar,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small shapes: does it run?")
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="append to results/feedback_experts.jsonl")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for name in CASES:
        if given.only in (None, name):
            for row in measured(name, given.quick, 1 if given.quick else given.repeats):
                print(
                    f"{row['op']:7} {row['peer']:32} {row['s_an_item'] * 1e3:9.2f} ms an item"
                    f"   {row['times_row']:6.2f} x row   {row['times_batch']:6.2f} x batch"
                    f"   ({row['processor_times_row']:.2f}, {row['processor_times_batch']:.2f} in processor time)"
                )
                found.append(row | machine())
    if given.write:
        write_rows(RESULTS, found)


if __name__ == "__main__":
    main()
