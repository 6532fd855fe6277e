"""Benchmarks asked and scored: rows in results/evals.jsonl.

python -m bench.evals [--quick] [--write]
python -m bench.evals --only scores --data DIR [--write]     DIR/amber, DIR/chair: the benchmarks' own files

Answers a second on POPE's shape (6 questions an image, a word each) and AMBER's (14): one row at a time and the best
padded batch of transformers, the engine on one image and on four, one thread, peers interleaved; a 64M model with 576
image tokens. Then the time of scoring answers that are made up of the data's own words: POPE's 9,000 (made up too),
and, where their files are given, AMBER's 15,220 (bar: 10 s) and CHAIR's captions of 5,000 images (bar: 20 s).
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from bench.generate import Bench
from bench.timing import interleave, machine, summary, write_rows
from mmfast.engines.base import Decode
from mmfast.evals.answering import questions_of, worded
from mmfast.evals.base import Answer, Data, Question
from mmfast.evals.benches import bench as bench_of
from mmfast.evals.scoring import score
from mmfast.world.scenes import COLOURS, SHAPES

SHAPES_ASKED = {"pope": 6, "amber": 14}  # questions an image
ANSWER = 2  # tokens: a word and the end
SIZES = {"pope": 9000, "amber": 15220, "chair": 5000}
BARS = {"amber": 10.0, "chair": 20.0}  # seconds
LENGTH = 60  # words of a made-up caption
KINDS = [(colour, shape) for colour in COLOURS for shape in SHAPES]


def asked(bench: Bench, repeats: int) -> Iterator[dict[str, Any]]:
    """Seconds an answer, by shape and peer."""
    every = len(bench.pictures)
    for shape, number in SHAPES_ASKED.items():
        kinds = (KINDS * (number // len(KINDS) + 1))[:number]
        questions = [f"Is there a {colour} {thing} in the image?" for colour, thing in kinds]
        decode = Decode(max_tokens=ANSWER)
        groups = [[bench.request(k, q, decode=decode) for q in questions] for k in range(every)]

        def one(groups: list[Any] = groups) -> Any:
            return bench.theirs(groups[0][:1], most=ANSWER, do_sample=False)

        def batch(groups: list[Any] = groups) -> Any:
            return bench.theirs(groups[0], most=ANSWER, do_sample=False)

        def image(groups: list[Any] = groups) -> Any:
            return bench.ours(groups[0])

        def images(groups: list[Any] = groups) -> Any:
            return bench.ours([*chain(*groups)])

        peers: dict[str, tuple[Callable[[], Any], int]] = {
            "transformers, a row at a time": (one, 1),
            "transformers, one batch": (batch, number),
            "mmfast, 1 image": (image, number),
            f"mmfast, {every} images": (images, number * every),
        }
        yield from _rows(shape, number, peers, repeats)


def _rows(
    shape: str, number: int, peers: dict[str, tuple[Callable[[], Any], int]], repeats: int
) -> Iterator[dict[str, Any]]:
    times = interleave({name: run for name, (run, _) in peers.items()}, repeats)
    each = {name: min(seconds) / peers[name][1] for name, seconds in times.items()}
    busy = {name: min(seconds.processor) / peers[name][1] for name, seconds in times.items()}
    row, batch = (f"transformers, {how}" for how in ("a row at a time", "one batch"))
    for name, seconds in times.items():
        yield {
            "op": "ask",
            "shape": f"{shape}: {number} questions an image",
            "peer": name,
            **summary(seconds),
            "answers_per_s": 1 / each[name],
            "times_row": each[row] / each[name],
            "times_batch": each[batch] / each[name],
            "processor_times_row": busy[row] / busy[name],
            "processor_times_batch": busy[batch] / busy[name],
        }


def scores(folder: str, repeats: int) -> Iterator[dict[str, Any]]:
    """Seconds of scoring, marks, metrics and intervals included."""
    with tempfile.TemporaryDirectory() as made:
        homes = {"pope": _pope(Path(made))}
        given = {name: Path(folder) / name for name in ("amber", "chair") if folder}
        homes |= {name: home for name, home in given.items() if home.is_dir()}
        for name, home in homes.items():
            answers = answers_to(name, home)
            best, busy = 1e9, 1e9
            for _ in range(repeats):
                began, ran = time.perf_counter(), time.process_time()
                result = score(name, answers, data=home)
                best, busy = min(best, time.perf_counter() - began), min(busy, time.process_time() - ran)
            yield {
                "op": "score",
                "shape": f"{name}: {result.counts['questions']} answers",
                "peer": "mmfast",
                "best_s": best,
                "processor_s": busy,
                "bar": BARS.get(name),
                "notes": result.notes,
            }


def answers_to(name: str, home: Path) -> dict[str, Answer]:
    """Yes or no to what asks so; else a caption of words that stand in the benchmark's own files."""
    one, rng = bench_of(name), random.Random(0)
    data = Data(home, one)
    questions = questions_of(one, data, worded(one, "")[0])[: SIZES[name]]
    files = [path for role in one.files if (path := data.path(role)) is not None and path.suffix in (".json", ".txt")]
    words = sorted({word for path in files for word in re.findall(r"[a-z]{3,}", path.read_text()) if len(word) < 12})
    return {q.id: Answer(id=q.id, turns=tuple(_text(q, words, rng) for _ in q.turns)) for q in questions}


def _text(question: Question, words: list[str], rng: random.Random) -> str:
    if re.match(r"(Is|Are|Do|Does) ", question.turns[0]):
        return rng.choice(("Yes", "No"))
    said = [rng.choice(words) for _ in range(LENGTH // 6)]
    return " ".join(f"There is a {word} in it." for word in said)


def _pope(folder: Path) -> Path:
    """Three parts of 500 images with 6 questions."""
    rows = [
        {
            "question_id": n,
            "image": f"{n // 6 % 500}.jpg",
            "text": f"Is there a thing {n}?",
            "category": part,
            "label": "yes" if n % 2 else "no",
        }
        for part_at, part in enumerate(("random", "popular", "adversarial"))
        for n in range(3000 * part_at, 3000 * part_at + 3000)
    ]
    (folder / "llava_pope_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it run?")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--data", default="", help="a folder with amber/, chair/ or both")
    parser.add_argument("--only", default="", help="asked or scores")
    parser.add_argument("--write", action="store_true", help="append to bench/results/evals.jsonl")
    given = parser.parse_args()
    torch.set_num_threads(1)
    made: list[dict[str, Any]] = []
    if given.only in ("", "scores"):  # first: what is wrong with the files is told before the long part
        made += scores(given.data, given.repeats)
    if given.only in ("", "asked"):
        made += asked(Bench("tiny" if given.quick else "bench", ANSWER, 2 if given.quick else 4), given.repeats)
    for row in made:
        print(row, flush=True)
    if given.write:
        write_rows(Path(__file__).parent / "results" / "evals.jsonl", [row | machine() for row in made])


if __name__ == "__main__":
    main()
