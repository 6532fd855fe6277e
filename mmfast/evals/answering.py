"""A benchmark's questions, asked of a model: a stage for each turn, and one file of answers.

    OUT/turn-1/        a folder of rows (engines/stage.py): what is there is not asked again
    OUT/turn-2/        the second turns, each behind the model's own answer to the first
    OUT/answers.jsonl  a header that says what made them, then {id, text} or {id, turns} for each question

The questions about one image are asked together, so that they share its prefix, and a question that stands in several
parts of a benchmark (POPE's objects that are there) is answered once.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from mmfast.engines import stage
from mmfast.engines.base import Decode, Engine, Picture, Reply, Request, canonical, key_of
from mmfast.engines.manifests import agreed
from mmfast.engines.stage import Item, Owned, Stage, Tally
from mmfast.evals import layouts
from mmfast.evals.base import Benchmark, Data, Question, Wording
from mmfast.evals.benches import bench as bench_of
from mmfast.feedback.rules import ATTRIBUTES, steered
from mmfast.files import write_bytes
from mmfast.job.runtime import Runtime
from mmfast.progress import Parts

NAME, VERSION = "answer", 1
ANSWERS = "answers.jsonl"
LEAST = 8  # images of a share: fewer make no interval
# How the published evaluations draw their answers, over what a benchmark's wording says
PRESETS: dict[str, dict[str, Any]] = {
    "llava": {"temperature": 0.0, "beams": 1},  # greedy; the most tokens are the benchmark's: 128 or 1024
    "rlhfv": {"temperature": 0.0, "beams": 3, "max_tokens": 1024},  # RLAIF-V's too
    "dgpref": {"temperature": 0.0, "beams": 1, "max_tokens": 1024},
}


@dataclass(frozen=True, kw_only=True)
class Asking:
    """A benchmark as it is asked: made before an engine is opened, so that mistakes are told first."""

    bench: Benchmark
    data: Data
    wording: str
    decode: Decode
    questions: tuple[Question, ...]
    attributes: str = ""
    limit: float = 0  # only so many questions; below 1: that share of the images; 0: all

    @property
    def needs(self) -> set[str]:
        """The abilities that the engine must have."""
        own = {name for q in self.questions if q.decode for name in self.drawn(q).needs}
        return self.decode.needs | own | ({"images"} if any(q.images for q in self.questions) else set())

    def drawn(self, question: Question) -> Decode:
        return replace(self.decode, **question.decode) if question.decode else self.decode

    def made_by(self) -> dict[str, Any]:
        """What answers depend on beside the engine."""
        return {
            "bench": self.bench.name,
            "wording": self.wording,
            "decode": asdict(self.decode),
            "attributes": self.attributes,
            "data": dict(sorted(self.data.hashes.items())),
        }


def asking(
    bench: str | Benchmark,
    data: str | Path,
    *,
    images: str | Path = "",
    wording: str = "",
    preset: str = "",
    max_tokens: int = 0,
    attributes: str = "",
    limit: float = 0,
) -> Asking:
    """Reads the questions. `wording`, `preset` and `attributes` (SteerLM's, "4,4,4,2,2") change how they are asked."""
    one = bench_of(bench) if isinstance(bench, str) else bench
    found, name = worded(one, wording)
    decode = found.decode
    if preset:
        if preset not in PRESETS:
            raise ValueError(f"--preset: unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
        decode = replace(decode, **PRESETS[preset])
    decode = replace(decode, max_tokens=max_tokens) if max_tokens else decode
    home, limit = Data(data, one, images), _limit(limit)
    wanted = attributes_of(attributes) if attributes else {}
    questions = [
        replace(q, turns=tuple(steered(turn, wanted) for turn in q.turns)) if wanted else q
        for q in questions_of(one, home, found, limit)
    ]
    _check_images(home, questions)
    asked = tuple(questions)
    return Asking(
        bench=one, data=home, wording=name, decode=decode, questions=asked, attributes=attributes, limit=limit
    )


def _limit(limit: float) -> float:
    """So many questions, or a share below 1."""
    if limit >= 1 and limit != int(limit):
        raise ValueError(f"limit = {limit:g}: write a whole number of questions, or a share below 1")
    return int(limit) if limit >= 1 else limit


def worded(bench: Benchmark, name: str) -> tuple[Wording, str]:
    """A wording of the benchmark with its name; the first one where none is named."""
    name = name or next(iter(bench.wordings))
    if name not in bench.wordings:
        raise ValueError(f"--wording: {bench.name} has no wording {name!r}; there are {', '.join(bench.wordings)}")
    return bench.wordings[name], name


def each_its_own(names: Sequence[str], given: str, option: str, kinds: str) -> dict[str, str]:
    """Of each benchmark the one of the names given (joined by commas) that it has, "" for its first; one that none of
    them has is refused. `kinds`: "flavours" or "wordings"."""
    if len(names) == 1:
        return {names[0]: given}
    listed = [one.strip() for one in given.split(",") if one.strip()]
    known = {name: list(getattr(bench_of(name), kinds)) for name in names}
    for one in listed:
        if not any(one in own for own in known.values()):
            raise ValueError(f"{option}: none of {', '.join(names)} has {one!r}")
    return {name: next((one for one in listed if one in own), "") for name, own in known.items()}


def questions_of(bench: Benchmark, data: Data, wording: Wording, limit: float = 0) -> list[Question]:
    """Each with its unit, and with an id of its own."""
    found = islice(bench.questions(data, wording), int(limit) or None)
    questions = [q if q.unit else replace(q, unit=q.id) for q in found]
    questions = spread(questions, limit) if 0 < limit < 1 else questions
    if not questions:
        raise ValueError(f"{data.folder}: {bench.name} has no question there")
    ids = {q.id for q in questions}
    if len(ids) < len(questions):
        seen: set[str] = set()
        twice = next(q.id for q in questions if q.id in seen or seen.add(q.id))  # type: ignore[func-returns-value]
        raise ValueError(f"{data.folder}: {bench.name} has two questions {twice!r}: is a file there twice?")
    return questions


def spread(questions: list[Question], share: float) -> list[Question]:
    """All questions of a share of the images, evenly through the benchmark: each of its kinds is among them."""
    units = list(dict.fromkeys(q.unit for q in questions))
    wanted = min(len(units), max(LEAST, math.ceil(len(units) * share)))
    kept = {units[n * len(units) // wanted] for n in range(wanted)}
    return [q for q in questions if q.unit in kept]


def attributes_of(text: str) -> dict[str, float]:
    """SteerLM's: five numbers, in the order of training; or NAME:NUMBER of some others."""
    parts = [part.strip() for part in text.split(",")]
    if not any(":" in part for part in parts):
        if len(parts) != len(ATTRIBUTES):
            raise ValueError(f"--attributes {text}: five numbers are wanted, of {', '.join(ATTRIBUTES)}")
        parts = [f"{name}:{part}" for name, part in zip(ATTRIBUTES, parts, strict=True)]
    found: dict[str, float] = {}
    for part in parts:
        name, _, number = part.partition(":")
        try:
            found[name.strip()] = float(number)
        except ValueError:
            raise ValueError(f"--attributes: {part!r} is not NAME:NUMBER") from None
        if not name.strip() or not 0 <= found[name.strip()] <= 4:
            raise ValueError(f"--attributes: {part!r}: an attribute has a name and is from 0 to 4")
    return found


def _check_images(data: Data, questions: list[Question]) -> None:
    """The first image tells whether the folder is the right one."""
    first = next((picture for q in questions for picture in q.images), None)
    if first is not None and first.content is None and not Path(first.source).is_file():
        raise ValueError(f"{first.source} is not there: name the folder of {data.bench.name}'s images with --images")


# asking


def answer(
    asked: Asking, out: Path, engine: Engine, runtime: Runtime, *, debug: int = 0, allow: float = 0.0, show: bool = True
) -> Tally:
    """Ask what is missing in OUT, turn by turn, and write its answers.jsonl. Every rank calls it."""
    # All ranks have one engine and one set of questions
    identity = agreed(engine, runtime)
    digest = {"identity": _digest(identity)}
    turns = max(len(q.turns) for q in asked.questions)
    told: dict[str, list[str]] = {}  # what was answered so far, by question
    tally = Tally()
    # Each turn is a stage
    with Parts(Console(stderr=True, quiet=not show)) as progress:
        for turn in range(turns):
            asker = _Turn(asked, turn, digest, told)
            made_by = {"stage": NAME, "version": VERSION, "turn": turn + 1, "engine": identity, **asked.made_by()}
            folder = out / f"turn-{turn + 1}"
            runtime.from_main(lambda folder=folder: folder.mkdir(parents=True, exist_ok=True))  # type: ignore[misc]
            work = Stage(out=folder, made_by=made_by, items=asker.items, row=asker.row, whole=not asked.limit)
            title = f"{asked.bench.name}{f', turn {turn + 1}' if turns > 1 else ''}"
            bar, total = progress.part(title), len(asker.grouped())

            def follow(waiting: int, note: str, bar: Any = bar, total: int = total, asker: _Turn = asker) -> None:
                bar(min(max(asker.begun - waiting, 0), total), total, note)

            done = stage.run(
                work, engine, runtime, debug=debug, allow=allow, follow=follow if runtime.main else lambda *_: None
            )
            tally += done
            told = asker.taken(folder, runtime)
    # One file of all that was answered
    whole = {q.id: told[q.id] for q in asked.questions if len(told.get(q.id, ())) == len(q.turns)}
    runtime.from_main(lambda: write_answers(out / ANSWERS, header_of(asked, identity), whole))
    return tally


class _Turn:
    """One turn of every question as requests, and replies as rows."""

    def __init__(self, asked: Asking, turn: int, engine: dict[str, Any], told: Mapping[str, list[str]]) -> None:
        self.asked, self.turn, self.engine, self.told = asked, turn, engine, told
        self.begun = 0  # of the questions that have this turn
        self.keys: dict[str, str] = {}  # question -> its request's key
        self.known: dict[str, str] = {}  # an image's file -> its id

    def grouped(self) -> list[tuple[int, Question]]:
        """Those that have this turn and an answer to the one before, with their numbers: image by image."""
        images: dict[tuple[str, ...], list[tuple[int, Question]]] = {}
        for number, q in enumerate(self.asked.questions):
            if len(q.turns) > self.turn and len(self.told.get(q.id, ())) == self.turn:
                images.setdefault(tuple(p.source for p in q.images), []).append((number, q))
        return [entry for entries in images.values() for entry in entries]

    def items(self, owned: Owned) -> Iterator[Item | None]:
        for number, q in self.grouped():
            self.begun += 1
            if not owned(Path(q.images[0].source).name if q.images else q.id):
                yield None
                continue
            place = f"{self.asked.bench.name}:{q.id}"
            try:
                request = self._request(q)
            except OSError as error:
                problem = f"{error.filename}: {error.strerror}"
                yield Item(row=number, source=place, problem=problem, fields={"id": q.id})
                continue
            self.keys[q.id] = request.key
            yield Item(row=number, source=place, request=request, fields={"id": q.id})

    def _request(self, q: Question) -> Request:
        pictures = tuple(self._named(picture) for picture in q.images)
        messages: list[dict[str, Any]] = [{"role": "system", "content": q.system}] if q.system else []
        for turn, text in enumerate(q.turns[: self.turn + 1]):
            shown: list[dict[str, Any]] = [{"type": "image"}] * len(pictures) if turn == 0 else []
            messages.append({"role": "user", "content": [*shown, {"type": "text", "text": text}]})
            if turn < self.turn:
                said = self.told[q.id][turn]
                messages.append({"role": "assistant", "content": [{"type": "text", "text": said}]})
        request = Request(key="", messages=tuple(messages), images=pictures, decode=self.asked.drawn(q))
        return replace(request, key=key_of(stage=NAME, version=VERSION, engine=self.engine, request=request))

    def _named(self, picture: Picture) -> Picture:
        """One whose bytes were read for its name and are not held while many requests wait."""
        if picture.content is not None:
            return picture
        if picture.source not in self.known:
            self.known[picture.source] = Picture(picture.source).id
        named = Picture(picture.source)
        vars(named)["id"] = self.known[picture.source]  # what its cached property would find
        return named

    @staticmethod
    def row(item: Item, reply: Reply) -> dict[str, Any]:
        return {"id": item.fields["id"], "answer": reply.text, "finish": reply.finish, "tokens": reply.tokens}

    def taken(self, folder: Path, runtime: Runtime) -> dict[str, list[str]]:
        """All answers so far, this turn's behind the earlier ones: the same on every rank."""
        keys = {name: key for part in runtime.gather(self.keys) for name, key in part.items()}
        said = runtime.from_main(lambda: {row["key"]: row["answer"] for row in stage.rows(folder)})
        told = {name: list(texts) for name, texts in self.told.items()}
        for q in self.asked.questions:
            if (key := f"{keys.get(q.id)}.0") in said:
                told[q.id] = [*self.told.get(q.id, ()), said[key]]
        return told


# the file


def header_of(asked: Asking, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What made answers, in few words: weights and templates by their digests."""
    weights = [identity.get(name) for name in ("weights", "adapter", "model", "annotation")]
    return {
        "mmfast": "answers",
        "version": layouts.VERSION,
        **asked.made_by(),
        "limit": asked.limit,
        "engine": identity.get("engine", ""),
        "weights": "" if isinstance(identity.get("weights"), str) else _digest(weights)[:24],  # a run's have no name
        "template": _digest(identity["template"])[:24] if identity.get("template") else "",
        "made_by": _digest(identity)[:24],
    }


def write_answers(path: Path, header: Mapping[str, Any], told: Mapping[str, list[str]]) -> None:
    rows: list[Mapping[str, Any]] = [header]
    rows += [{"id": name} | ({"text": t[0]} if len(t) == 1 else {"turns": t}) for name, t in told.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()
