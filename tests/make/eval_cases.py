"""Two benchmarks of our own, small enough to know every number: Toy asks for yes or no about pictures, Talk has two
turns and a judge. And POPE's questions about the embedded world."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from mmfast.engines.base import Decode, Reply, Request
from mmfast.evals.answering import Asking, answer, asking
from mmfast.evals.base import Answer, Benchmark, Call, Data, File, Mark, Question, Scoring, Wording, ratio
from mmfast.evals.judge import until_parsed
from mmfast.job.runtime import join
from mmfast.world.scenes import COLOURS, SHAPES, Scene, render, scenes
from tests.make.engine_cases import Fake


class Toy(Benchmark):
    name = "toy"
    about = "is it so?"
    flavours: ClassVar = ("official", "other")
    wordings: ClassVar = {
        "short": Wording(suffix=" Say yes or no.", decode=Decode(max_tokens=8)),
        "bare": Wording(decode=Decode(max_tokens=8)),
        "drawn": Wording(decode=Decode(max_tokens=8, temperature=0.7)),
    }
    files: ClassVar = {
        "questions": File(names=("toy.jsonl",), what="its questions", source="example.org", licence="CC0"),
        "more": File(names=("more.txt",), what="nothing", source="example.org", licence="CC0", optional=True),
    }
    parsers_differ = True

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        for row in map(json.loads, data.read("questions").decode().splitlines()):
            yield Question(
                id=row["id"],
                turns=(row["text"] + wording.suffix,),
                images=(data.picture(row["image"]),),
                unit=row["image"],
                truth={"yes": row["yes"]},
                official={"question_id": row["number"], "image_id": int(row["image"].split(".")[0])},
            )

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        for q in questions:
            text = answers[q.id].text if q.id in answers else ""
            said = text.strip().lower().startswith("yes") if scoring.strict else text.startswith("yes")
            right = float(said == q.truth["yes"])
            yield Mark(id=q.id, unit=q.unit, sums={"right": right, "asked": 1.0}, told={"said": said})

    def metrics(self, sums: Mapping[str, Any], flavour: str) -> dict[str, Any]:
        times = 100.0 if flavour == "other" else 1.0
        return {"accuracy": ratio(sums["right"], sums["asked"], times), "wrong": sums["asked"] - sums["right"]}


class Talk(Benchmark):
    options: ClassVar = {"official": "say so"}
    name = "talk"
    about = "two turns, judged"
    judge = "gpt-0"
    files: ClassVar = {"questions": File(names=("talk.json",), what="its turns", source="example.org", licence="CC0")}
    layout = "mtbench"

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        for number, turns in enumerate(json.loads(data.read("questions"))):
            drawn = {"temperature": 0.7, "seed": number} if number % 2 else {}
            yield Question(id=str(number), turns=tuple(turns), decode=drawn, system="Be brief.")

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        scoring.own_prompt = not scoring.options.get("official", False)
        calls = [
            Call(
                key=f"{q.id}/{turn}",
                messages=({"role": "user", "content": f"Rate: {answers[q.id].turns[turn]}"},),
                decode=Decode(max_tokens=8),
            )
            for q in questions
            for turn in range(len(q.turns))
        ]
        replies = until_parsed(scoring.judged_by(), calls, rating, tries=2, counts=scoring.counts)
        for q in questions:
            for turn in range(len(q.turns)):
                said, _ = replies[f"{q.id}/{turn}"]
                sums = {} if said is None else {"points": float(said), "rated": 1.0}
                yield Mark(id=f"{q.id}/{turn}", unit=q.unit, sums=sums, told={"verdict": said})

    def metrics(self, sums: Mapping[str, Any], flavour: str) -> dict[str, Any]:
        return {"rating": ratio(sums["points"], sums["rated"])}


def rating(text: str) -> int | None:
    return int(text.removeprefix("Rating: ")) if text.startswith("Rating: ") else None


class Rater:
    """A judge's engine: its ratings follow from what it is asked and the seed. `fails`: words at which it has errors;
    `mumbles`: words at which its first reply does not parse."""

    can = frozenset({"sample", "logp"})

    def __init__(self, *, fails: str = "-", mumbles: str = "-", name: str = "rater", steady: bool = True) -> None:
        self.fails, self.mumbles, self.name, self.steady, self.asks = fails, mumbles, name, steady, 0

    def identity(self) -> dict[str, Any]:
        return {"engine": "rater", "model": self.name}

    def answer(self, requests: Iterable[Request]) -> Iterator[Reply]:
        for request in requests:
            self.asks += 1
            said = request.messages[-1]["content"]
            if self.fails in said:
                yield Reply(key=request.key, finish="error", error="the line is busy")
            elif self.mumbles in said and request.decode.seed % 1000 == 0:
                yield Reply(key=request.key, text="Well...")
            else:
                more = 0 if self.steady else request.decode.seed // 1000
                yield Reply(key=request.key, text=f"Rating: {(len(said) + len(self.name) + more) % 10}")


def write_toy(folder: Path, images: int = 4, each: int = 3) -> Path:
    """Its data; the questions of an image do not stand together."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(images):
        pixels = np.random.default_rng(k).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    rows = [
        {
            "id": f"q{n}",
            "number": n + 100,
            "image": f"{n % images}.png",
            "text": f"Is it so? {n // images}",
            "yes": n % 3 == 0,
        }
        for n in range(images * each)
    ]
    (folder / "toy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_talk(folder: Path, number: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    turns = [[f"What is {n}?", f"And {n} more?"][: 2 if n else 1] for n in range(number)]
    (folder / "talk.json").write_text(json.dumps(turns))
    return folder


def write_pope(folder: Path, number: int = 4) -> tuple[Path, list[Scene]]:
    """POPE about pictures of the world, three parts with the same objects that are there: (its folder, the scenes)."""
    folder.mkdir(parents=True, exist_ok=True)
    found, rows = list(scenes(0, "test", number)), []
    for scene in found:
        render(scene).save(folder / f"{scene.name}.png")
    for at, part in enumerate(("random", "popular", "adversarial")):
        for scene in found:
            absent = [kind for kind in ((c, s) for c in COLOURS for s in SHAPES) if kind not in scene.kinds]
            for (colour, shape), label in ((scene.things[0].kind, "yes"), (absent[at], "no")):
                text = f"Is there {'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}?"
                rows.append(
                    {
                        "question_id": len(rows) + 1,
                        "image": f"{scene.name}.png",
                        "text": text,
                        "label": label,
                        "category": part,
                    }
                )
    (folder / "llava_pope_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, found


def ask(asked: Asking, out: Path, engine: Any = None, **options: Any) -> Any:
    """What the command does, without its options; also in another process."""
    runtime = join()
    try:
        runtime.hold(out, "--out")
        return answer(asked, out, engine or Fake(), runtime, show=False, **options)
    finally:
        runtime.close()


def toy(folder: Path, **options: Any) -> Asking:
    return asking(Toy(), folder, **options)
