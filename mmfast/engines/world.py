"""The engine that knows the answers: pictures of the embedded world, from its annotation, with a dial for noise.

It answers the world's caption prompts (and the presets'), its questions, and questions for yes or no; it compares and
rates answers to these (world_verdicts.py), and corrects them (world/corrections.py). With noise an answer or a verdict
is wrong with that probability, and a false claim is overlooked by a correction, drawn from the request's key, the
sample and the seed alone.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from mmfast.data.text.templates import text_of
from mmfast.engines.base import About, Picture, Reply, Request, refuse
from mmfast.engines.presets import EIGHT
from mmfast.engines.world_claims import DECOMPOSE, decomposed
from mmfast.engines.world_verdicts import TASKS, chances
from mmfast.files import sha256_of
from mmfast.world.corrections import Repair, repairs
from mmfast.world.dataset import flawed_caption, read_lines
from mmfast.world.grammar import CAPTION_PROMPTS, NUMBERS, OPPOSITE, Flaws, caption, errors
from mmfast.world.scenes import COLOURS, COLUMNS, ROWS, SHAPES, WORDS, Scene, Thing, relation

CAPTIONS = (*CAPTION_PROMPTS, *EIGHT)
SHORT = "Please answer yes or no."  # behind a question: nothing but the word is answered
CORRECT = "correct"  # the task of requests that ask for an answer's repairs
KIND = rf"(?P<colour>{'|'.join(COLOURS)}) (?P<shape>{'|'.join(SHAPES)})"
NUMBER = {word: number for number, word in NUMBERS.items()}


class Unanswerable(ValueError):
    """Why a request has no answer here."""


class World:
    can = frozenset({"sample", "labels", "images", "prefix"})

    def __init__(self, folder: str | Path, *, noise: float = 0.0) -> None:
        """folder   of a world (`write_world`): annotation.jsonl and images/
        noise    probability that an answer is wrong"""
        self.folder, self.noise = Path(folder), noise
        if not 0 <= noise <= 1:
            raise ValueError(f"--noise {noise}: a probability is from 0 to 1")
        path = self.folder / "annotation.jsonl"
        if not path.exists():
            raise ValueError(f"--model {folder}: the engine world needs a world's folder, and it has no {path.name}")
        self.scenes = {line["name"]: Scene.from_annotation(line) for line in read_lines(path)}
        self.annotation = sha256_of(path)

    def identity(self) -> dict[str, Any]:
        return {"engine": "world", "annotation": self.annotation, "noise": self.noise}

    def answer(self, requests: Iterable[Request]) -> Iterator[Reply]:
        for request in requests:
            for sample in range(max(request.n, 1)):
                try:
                    if why := refuse(self, request):
                        raise Unanswerable(why)
                    yield self._reply(request, sample)
                except (Unanswerable, OSError) as error:
                    yield Reply(key=request.key, sample=sample, finish="error", error=str(error))

    def _reply(self, request: Request, sample: int) -> Reply:
        about = request.about
        if about is not None and about.task == DECOMPOSE:  # of a text alone
            return Reply(key=request.key, text=about.say(decomposed(about.more["aspect"], about.answers[0])))
        if len(request.images) != 1:
            raise Unanswerable(f"the world answers about one picture, and the request has {len(request.images)}")
        scene = self._scene(request.images[0])
        asked = text_of(request.messages[-1]).strip()
        rng = random.Random(f"world:{request.decode.seed}:{request.key}:{sample}")
        if request.about is None:
            labels = self._labels(scene, asked, request.labels) if request.labels else {}
        else:
            labels = self._chances(scene, request.about, request.labels) if request.labels else {}
        if request.n == 0:
            return Reply(key=request.key, labels=labels)
        wrong = rng.random() < self.noise
        if about is not None and about.task == CORRECT:
            text = about.say(corrections(scene, about, lambda: rng.random() < self.noise))
        elif request.about is None:
            text = answered(scene, asked, wrong=wrong, rng=rng)
        else:
            text = request.about.say(judged(scene, request.about, wrong=wrong, rng=rng))
        # A token is a word here, and the end one more
        words, most = text.split(" "), request.decode.max_tokens
        if len(words) + 1 > most:
            cut = " ".join(words[:most])
            return Reply(key=request.key, sample=sample, text=cut, tokens=most, finish="length", labels=labels)
        return Reply(key=request.key, sample=sample, text=text, tokens=len(words) + 1, labels=labels)

    def _scene(self, picture: Picture) -> Scene:
        """By its name, where the world's own picture of that name has its bytes; else by its bytes."""
        name = Path(picture.source).stem
        own = self.folder / "images" / f"{name}.png"
        if name not in self.scenes or not own.exists() or sha256_of(own) != picture.id:
            name = self._by_content.get(picture.id, "")
        if not name:
            raise Unanswerable(f"{picture.source} is no picture of the world in {self.folder}")
        return self.scenes[name]

    @cached_property
    def _by_content(self) -> dict[str, str]:
        files = ((name, self.folder / "images" / f"{name}.png") for name in self.scenes)
        return {sha256_of(path): name for name, path in files if path.exists()}

    def _labels(self, scene: Scene, asked: str, labels: tuple[str, ...]) -> dict[str, float]:
        """log P of each; labels of one meaning ("Yes", "yes") share it."""
        said = {label: label.strip(" .").lower() for label in labels}
        if unknown := [label for label, word in said.items() if word not in ("yes", "no")]:
            raise Unanswerable(f"the label {unknown[0]!r} is neither yes nor no")
        truth = _told(yes_or_no(scene, asked))
        out = {}
        for label, word in said.items():
            share = (1 - self.noise if word == truth else self.noise) / list(said.values()).count(word)
            out[label] = math.log(share) if share else -math.inf
        return out

    def _chances(self, scene: Scene, about: About, labels: tuple[str, ...]) -> dict[str, float]:
        """log P of each verdict's label."""
        if about.task != "prefer":
            raise Unanswerable(f"a verdict of the kind {about.task!r} is no label")
        shares = chances(about, found_faults(scene, about), self.noise)
        named = {about.say(verdict): share for verdict, share in shares.items()}
        if unknown := [label for label in labels if label not in named]:
            raise Unanswerable(f"the label {unknown[0]!r} is no verdict (they are {', '.join(named)})")
        return {label: math.log(named[label]) if named[label] else -math.inf for label in labels}


def judged(scene: Scene, about: About, *, wrong: bool, rng: random.Random) -> Any:
    """The true verdict on some answers, or a wrong one, as its task has it."""
    if about.task not in TASKS:
        raise Unanswerable(f"the world has no verdict of the kind {about.task!r} (it has {', '.join(TASKS)})")
    verdict = TASKS[about.task](about, found_faults(scene, about), wrong, rng)
    return verdict | {"reference": _truth(scene, about.question)} if isinstance(verdict, dict) else verdict


def corrections(scene: Scene, about: About, overlooked: Callable[[], bool]) -> list[Repair]:
    """What a person would rewrite in an answer: the false claims of a caption, each overlooked where that says so; an
    answer to another question whole."""
    text = about.answers[0]
    if (found := repairs(text, scene, overlooked)) is not None:
        return found
    if about.question in CAPTIONS:
        raise Unanswerable("the world's grammar does not read this text as a caption")
    truth = _truth(scene, about.question)
    return [] if text.strip() == truth or overlooked() else [Repair(0, len(text), truth, "other")]


def found_faults(scene: Scene, about: About) -> list[int]:
    """Of each answer: a caption's false claims; of an answer to any other question, whether it is not the true one."""
    if about.question in CAPTIONS:
        return [sum(errors(text, scene).values()) for text in about.answers]
    return [int(text.strip() != _truth(scene, about.question)) for text in about.answers]


def _truth(scene: Scene, asked: str) -> str:
    return answered(scene, asked, wrong=False, rng=random.Random(scene.name))


def answered(scene: Scene, asked: str, *, wrong: bool, rng: random.Random) -> str:
    """The true answer, or a wrong one."""
    if asked in CAPTIONS:
        return _wrong_caption(scene, rng) if wrong else caption(scene, rng, Flaws.none()).truth
    if asked.endswith(SHORT):
        return _told(yes_or_no(scene, asked) != wrong)
    if found := re.fullmatch(rf"How many {KIND}(?:e?s) are there\?", asked):
        thing = _thing(scene, found)
        number = rng.choice([n for n in NUMBERS if n != thing.count]) if wrong else thing.count
        name = f"{thing.colour} {thing.shape}" + ("" if number == 1 else "es" if thing.shape.endswith("s") else "s")
        return f"There {'is' if number == 1 else 'are'} {NUMBERS[number]} {name}."
    if found := re.fullmatch(rf"What does the {KIND} say\?", asked):
        thing = _thing(scene, found)
        if not thing.word:
            raise Unanswerable(f"nothing is written on the {thing.colour} {thing.shape}")
        return f"It says {rng.choice([w for w in WORDS if w != thing.word]) if wrong else thing.word}."
    if found := re.fullmatch(rf"Where is the {KIND}\?", asked):
        thing = _thing(scene, found)
        if thing.count > 1:
            raise Unanswerable(f"there are {thing.count} of {thing.colour} {thing.shape}: where is not one place")
        cell = rng.choice([n for n in range(9) if n != thing.cells[0]]) if wrong else thing.cells[0]
        return f"It is in the {ROWS[cell // 3]} {COLUMNS[cell % 3]}."
    truth = yes_or_no(scene, asked) != wrong
    if found := re.fullmatch(rf"Is there (?P<article>an?) {KIND}\?", asked):
        name = f"{found['colour']} {found['shape']}"
        return f"Yes, there is {found['article']} {name}." if truth else f"No, there is no {name}."
    return "Yes." if truth else "No."


def _thing(scene: Scene, asked: re.Match[str]) -> Thing:
    kind = asked["colour"], asked["shape"]
    thing = next((thing for thing in scene.things if thing.kind == kind), None)
    if thing is None:
        raise Unanswerable(f"there is no {' '.join(kind)} in the picture")
    return thing


def _told(truth: bool) -> str:
    return "yes" if truth else "no"


# Questions to be answered by yes or no, each with what makes the answer yes for a thing of the kind that is there.
YES: dict[str, Callable[[Thing, re.Match[str]], bool]] = {
    rf"Is there an? {KIND}\?": lambda thing, said: True,
    rf"(?:Is|Are) there (?P<number>{'|'.join(NUMBER)}) {KIND}(?:e?s)?\?": lambda t, said: (
        t.count == NUMBER[said["number"]]
    ),
    rf"Is the {KIND} (?P<where>{'|'.join(OPPOSITE)}) the centre\?": lambda t, said: (
        t.count == 1 and relation(t) == said["where"]
    ),
    rf"Does the {KIND} say (?P<word>{'|'.join(WORDS)})\?": lambda t, said: t.word == said["word"],
}


def yes_or_no(scene: Scene, asked: str) -> bool:
    """The truth of a question that has one of these forms; what is asked of a thing that is not there is not so."""
    question = asked.removesuffix(SHORT).strip()
    for form, holds in YES.items():
        if said := re.fullmatch(form, question):
            kind = said["colour"], said["shape"]
            return any(holds(thing, said) for thing in scene.things if thing.kind == kind)
    raise Unanswerable(
        f"the world has no answer to {asked!r}: it knows captions and its own questions (docs/engines.md)"
    )


def _wrong_caption(scene: Scene, rng: random.Random) -> str:
    """A caption with a flaw; of a scene without a trigger, one that names a colour of a thing wrongly."""
    flawed = flawed_caption(scene, rng, Flaws())
    if flawed is not None:
        return flawed.text
    thing = rng.choice(scene.things)
    others = [colour for colour in COLOURS if (colour, thing.shape) not in scene.kinds]
    old, new = f"{thing.colour} {thing.shape}", f"{rng.choice(others)} {thing.shape}"
    return caption(scene, rng, Flaws.none()).truth.replace(old, new, 1)
