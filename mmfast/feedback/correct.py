"""The stage `correct`: people mark what is wrong in answers and rewrite it, compare answers, or rate them.

actions.jsonl    what people did, a row an action, on disk before the page goes on: the state
cards.jsonl      what they were shown: answers with their prompts and images
rows-0.jsonl     what holds at the last start, end or `mmfast corrected`, a row a card and person
manifest.json    what is asked of them
page.json        the page's token and port, for this user's eyes alone
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

from mmfast.data.images.decode import image_size
from mmfast.data.problems import BadRow
from mmfast.engines.asked import Pictures
from mmfast.engines.base import Picture, canonical
from mmfast.engines.people import spoken
from mmfast.engines.people_desk import Card, Desk, Work, actions
from mmfast.engines.people_forms import Form, choices, scale
from mmfast.engines.shards import parsed, read
from mmfast.engines.stage import MANIFEST, compare
from mmfast.feedback.answers import Answer, grouped
from mmfast.feedback.rules import ATTRIBUTES
from mmfast.files import write_bytes, write_json

NAME, VERSION = "correct", 1
CARDS = "cards.jsonl"
KINDS = ("object", "position", "count", "attribute", "relation", "text", "other")
TASKS = {
    "correct": "mark each wrong segment, name its kind and rewrite it",
    "mark": "mark each wrong segment and name its kind",
    "compare": "say which of two answers is better",
    "rate": "rate an answer by several metrics",
}
VERDICTS = ("a", "b", "tie")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked of people. `metrics`, `low`, `high`: of ratings; `per_prompt`: comparisons a prompt (0: all)."""

    task: str = "correct"
    metrics: tuple[str, ...] = ATTRIBUTES
    low: int = 0
    high: int = 4
    per_prompt: int = 0
    by: str = ""  # what corrects in people's place, as its identity tells
    overlap: int = 1  # people who do a card
    share: float = 1.0  # of the cards that so many people do; the others are done by one
    prompts: float = 1.0  # the share of prompts whose answers are shown
    seed: int = 0  # of what is drawn: prompts, which cards overlap, which answer stands left, which pairs are compared

    def __post_init__(self) -> None:
        for name, good, told in (
            ("--task", self.task in TASKS, f"one of {', '.join(TASKS)}"),
            ("--overlap", self.overlap >= 1, "at least 1"),
            ("--overlap-share", 0 <= self.share <= 1, "from 0 to 1"),
            ("--share", 0 < self.prompts <= 1, "above 0, and at most 1"),
            ("--scale", 0 <= self.low < self.high <= 9, "two digits, the lower first: 0-4"),
            ("--metrics", self.metrics and all(map(str.strip, self.metrics)), "names between commas"),
            ("--metrics", len(set(self.metrics)) == len(self.metrics), "names that differ"),
        ):
            if not good:
                raise ValueError(f"{name}: it must be {told}")

    def made_by(self) -> dict[str, Any]:
        """For the manifest: what may not change within a folder."""
        asked: dict[str, Any] = {"stage": NAME, "version": VERSION, "task": self.task}
        asked |= {"by": self.by} if self.by else {}
        if self.task == "rate":
            asked |= {"metrics": list(self.metrics), "scale": [self.low, self.high]}
        return asked | ({"seed": self.seed} if self.task == "compare" else {})

    def people(self, card: str) -> int:
        return self.overlap if _drawn(f"overlap:{self.seed}:{card}") < self.share else 1


@dataclass(kw_only=True)
class Shown:
    """A card as cards.jsonl keeps it: enough to make files of what people did, without the answers' folder."""

    key: str
    row: int
    task: str
    group: str
    prompt_id: str
    images: list[Any]  # in the file: whole paths, or paths in the folder
    prompt: list[dict[str, Any]]
    answers: dict[str, str]  # key -> text: one, or the two that are compared, in the order in which they are shown
    order: str = ""  # "ab" or "ba": which stands left
    metrics: list[str] = field(default_factory=list)  # of a rating
    meta: dict[str, Any] = field(default_factory=dict)


def shown(answers: Iterable[Answer], plan: Plan, counts: Counter[str] | None = None) -> Iterator[Shown]:
    """What people are to be shown, in the order of the answers. `counts` is told what is left out."""
    left = Counter[str]() if counts is None else counts
    groups = grouped(answers)
    if plan.prompts < 1:
        groups = _share(list(groups), plan, left)
    for group in groups:
        if plan.task != "compare":
            for one in group:
                if not one.text.strip():
                    left["empty answers"] += 1
                else:
                    yield _shown(plan, [one])
            continue
        pairs = [(a, b) for a, b in combinations(group, 2) if a.text.strip() != b.text.strip()]
        left["pairs of equal answers"] += len(group) * (len(group) - 1) // 2 - len(pairs)
        if plan.per_prompt and len(pairs) > plan.per_prompt:
            left["pairs beyond --per-prompt"] += len(pairs) - plan.per_prompt
            drawn = sorted(pairs, key=lambda pair: _drawn(f"pair:{plan.seed}:{pair[0].key}:{pair[1].key}"))
            kept = {(a.key, b.key) for a, b in drawn[: plan.per_prompt]}
            pairs = [(a, b) for a, b in pairs if (a.key, b.key) in kept]
        for a, b in pairs:
            turned = _drawn(f"side:{plan.seed}:{a.key}:{b.key}") < 0.5
            yield _shown(plan, [b, a] if turned else [a, b], "ba" if turned else "ab")


def _share(groups: list[list[Answer]], plan: Plan, left: Counter[str]) -> Iterator[list[Answer]]:
    """At least one prompt, with all its answers; what a smaller share draws, a larger one draws too."""
    drawn = sorted(groups, key=lambda group: _drawn(f"prompt:{plan.seed}:{group[0].group}"))
    kept = {group[0].group for group in drawn[: max(1, round(plan.prompts * len(groups)))]}
    left["prompts beyond --share"] += len(groups) - len(kept)
    return (group for group in groups if group[0].group in kept)


def _shown(plan: Plan, answers: list[Answer], order: str = "") -> Shown:
    """Named by the answers and their texts: what was said of another text is not said of this one."""
    one = answers[0]
    texts = sorted((answer.key, answer.text) for answer in answers)
    return Shown(
        key=hashlib.sha256(canonical(texts).encode()).hexdigest()[:32],
        row=min(answer.row for answer in answers),
        task=plan.task,
        group=one.group,
        prompt_id=one.prompt_id,
        images=list(one.images),
        prompt=list(one.prompt),
        answers={answer.key: answer.text for answer in answers},
        order=order,
        metrics=list(plan.metrics) if plan.task == "rate" else [],
        meta=one.meta,
    )


def _drawn(name: str) -> float:
    """A number from 0 to below 1 that follows from the name."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:12], 16) / 16**12


def card(one: Shown, plan: Plan, folder: Path) -> Card:
    """As the page shows it."""
    texts = list(one.answers.values())
    messages = spoken(one.prompt)
    known: dict[str, Any] = {"id": one.key, "pictures": tuple(map(Picture, paths(one, folder)))}
    known["people"] = plan.people(one.key)
    if plan.task in ("correct", "mark"):
        asked = {"messages": messages, "answer": texts[0], "kinds": KINDS}
        return Card(task=plan.task, shown=asked, checked=_checks(texts[0], plan.task), **known)
    if plan.task == "compare":
        fields: list[dict[str, Any]] = [choices("Which answer is better?", VERDICTS, "123")]
        for option, told in zip(fields[0]["options"], ("A is better", "B is better", "Tie"), strict=True):
            option["label"] = told
        labels = [{"label": label, "text": text} for label, text in zip("AB", texts, strict=True)]
    else:
        fields = [scale(metric, plan.low, plan.high) for metric in plan.metrics]
        labels = [{"label": "Answer", "text": texts[0]}]
    fields.append({"kind": "text", "label": "Why, if you like", "required": False})
    asked = {"messages": messages, "answers": labels, "fields": fields}
    return Card(task="form", shown=asked, checked=Form(tuple(fields), lambda values: "").checked, **known)


# segments


def _checks(answer: str, task: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def checked(work: dict[str, Any]) -> dict[str, Any]:
        return {"segments": segments(answer, work.get("segments", []), rewritten=task == "correct")}

    return checked


def segments(answer: str, given: Any, *, rewritten: bool) -> list[dict[str, Any]]:
    """Segments in the answer's order: {span, kind, from, to}, spans in code points. They do not overlap; `rewritten`:
    each must say something else than before (or nothing), and one without characters adds words at its place."""
    if not isinstance(given, list):
        raise ValueError("segments are a list")
    out = []
    for one in given:
        try:
            (first, end), kind, told = one["span"], one["kind"], one["to"]
        except (KeyError, TypeError, ValueError):
            raise ValueError("a segment has a span, a kind and what it is rewritten to") from None
        least = 0 if rewritten else 1
        if any(type(n) is not int for n in (first, end)) or not (
            0 <= first <= end <= len(answer) and end - first >= least
        ):
            raise ValueError(f"the segment {[first, end]} is not within the answer's {len(answer)} characters")
        if kind not in KINDS:
            raise ValueError(f"“{answer[first:end]}” has no kind: name one of {', '.join(KINDS)}")
        if not isinstance(told, str):
            raise ValueError(f"“{answer[first:end]}” is rewritten to no text")
        if first == end and not told.strip():
            raise ValueError("words are to be added, and there are none: write them, or unmark the place")
        if rewritten and told == answer[first:end]:
            raise ValueError(f"“{answer[first:end]}” is marked, but not rewritten: rewrite it, or unmark it")
        out.append({"span": [first, end], "kind": kind, "from": answer[first:end], "to": told})
    out.sort(key=lambda one: one["span"])
    for one, other in pairwise(out):
        if one["span"][1] > other["span"][0] or one["span"] == other["span"]:
            said, beside = (f"“{part['from']}”" if part["from"] else "what is added" for part in (one, other))
            raise ValueError(f"{said} and {beside} overlap: they are one segment")
    return out


def corrected(answer: str, found: list[dict[str, Any]]) -> tuple[str, list[tuple[int, int]]]:
    """The answer with its segments rewritten, and where these then lie; an empty one has an empty span."""
    text, at, spans = "", 0, []
    for one in found:
        first, end = one["span"]
        text += answer[at:first]
        spans.append((len(text), len(text) + len(one["to"])))
        text, at = text + one["to"], end
    return text + answer[at:], spans


# the folder


def prepare(out: Path, plan: Plan, answers: Iterable[Answer], source: str) -> tuple[list[Shown], list[str]]:
    """The cards of today, those of earlier starts behind them kept in the file; and lines on what is left out."""
    # Every card's pictures are looked at now: a person must not meet a hole. Those inside rows are kept as files
    counts, pictures, cards = Counter[str](), _Pictures(out), []
    for one in shown(answers, plan, counts):
        try:
            cards.append(replace(one, images=[pictures.named(image) for image in one.images]))
        except BadRow as error:
            counts[f"cards: {error}"] += 1
    lines = [f"left out: {number} {name}" for name, number in counts.items() if number]
    if not cards:
        raise ValueError("; ".join([f"{source} has nothing to {plan.task}", *lines]))
    # The folder is of this task
    out.mkdir(parents=True, exist_ok=True)
    path = out / MANIFEST
    if path.exists():
        manifest = parsed(path.read_bytes())
        if manifest is None or manifest.get("stage") != NAME:
            raise ValueError(f"{out} is of another stage, or its {MANIFEST} is damaged: give another --out")
        if differences := compare(manifest, plan.made_by()):
            raise ValueError(f"{out} was made otherwise: {'; '.join(differences)}. Give another --out")
    kept = {one.key: one for one in [*cards, *read_cards(out)]}
    lines_of = (json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in kept.values())
    write_bytes(out / CARDS, "".join(lines_of).encode(), durable=True)
    write_json(path, {**plan.made_by(), "input": source, "complete": False, "counts": {}})
    return cards, lines


class _Pictures:
    """What pictures are called in cards.jsonl; raises for one that cannot be shown, each looked at once."""

    def __init__(self, out: Path) -> None:
        self.out, self.pictures = out, Pictures(Path("/"), out)
        self.problems: dict[str, str] = {}  # by name

    def named(self, image: Any) -> str:
        picture, name = self.pictures.look_up(image)
        if name not in self.problems:
            try:
                image_size(Path(picture.source).read_bytes())
                self.problems[name] = ""
            except (BadRow, OSError) as error:
                self.problems[name] = f"image {picture.source}: {getattr(error, 'strerror', None) or error}"
        if problem := self.problems[name]:
            raise BadRow("image-corrupt", problem)
        return name


def fill(desk: Desk, cards: Iterable[Shown], plan: Plan) -> None:
    for one in cards:
        desk.add(card(one, plan, desk.folder))


def paths(one: Shown, folder: Path) -> list[str]:
    return [os.path.abspath(folder / image) for image in one.images]


def read_cards(folder: Path) -> list[Shown]:
    path = folder / CARDS
    try:
        return [Shown(**row) for _, row in read(path)] if path.exists() else []
    except TypeError:
        raise ValueError(f"{path} is no file of cards, or of another version: give another --out") from None


def works(folder: Path) -> dict[str, dict[str, Work]]:
    """What people did, by card and name, as the journal tells it."""
    out: dict[str, dict[str, Work]] = {}
    for action in actions(folder):
        out.setdefault(action["card"], {}).setdefault(action["name"], Work()).play(action)
    return out


def row_of(one: Shown, name: str, work: Work) -> dict[str, Any]:
    """What a person said of a card, as later stages read it."""
    keys = list(one.answers)
    told: dict[str, Any] = {"key": f"{one.key}.{name}"}
    if one.task in ("correct", "mark"):
        found = work.result["segments"]
        told |= {"answer_key": keys[0], "corrected": corrected(one.answers[keys[0]], found)[0], "segments": found}
    elif one.task == "compare":
        left = work.result["values"][0]  # "a" is what stood left
        verdict = left if left == "tie" or one.order == "ab" else {"a": "b", "b": "a"}[left]
        a, b = keys if one.order == "ab" else reversed(keys)
        told |= {"a": a, "b": b, "order": one.order, "verdict": verdict}
    else:
        scores = dict(zip(one.metrics, work.result["values"], strict=False))
        told |= {"answer_key": keys[0], "scores": scores}
    if one.task in ("compare", "rate"):
        told["reason"] = work.result["values"][-1] or ""
    return told | {"annotator": name, "seconds": work.seconds, "row": one.row}
