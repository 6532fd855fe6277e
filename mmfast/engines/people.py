"""The engine of people: a person answers each request on a local page (docs/correcting.md).

Free text is a box, labels and choices are buttons, a JSON schema is a form. n samples of a request are n people's
answers. What was answered lies in the folder's journal before the page goes on, and a later start takes it from there.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median_low
from typing import Any

from mmfast.data.text.templates import parts
from mmfast.engines.base import Reply, Request, refuse
from mmfast.engines.people_desk import Card, Desk, Work
from mmfast.engines.people_forms import Form, choices, form_of
from mmfast.engines.people_server import Page
from mmfast.job.runfolder import Lock

VERSION = 1
AHEAD = 64  # cards that lie ready


class People:
    can = frozenset({"sample", "labels", "constraint", "prefix", "images"})

    def __init__(self, folder: str | Path, *, overlap: int = 1, port: int = 0, tell: Any = None) -> None:
        """folder    where what they answer is kept; its name stands for the people in manifests and keys
        overlap   how many people answer each request: of labels the log of the share is told, of choices the most
                  frequent one, of whole numbers the median, of texts the first
        tell      is given the page's address; default: a line on stderr"""
        if overlap < 1:
            raise ValueError(f"--engine people:{overlap}: at least one person answers a request")
        if not str(folder):
            raise ValueError("--model: the engine people needs a folder for what they answer")
        self.folder, self.overlap = Path(folder), overlap
        self.lock = Lock(self.folder, "--model")
        try:
            self.desk = Desk(self.folder)
            self.page = Page(self.desk, title=self.folder.resolve().name, port=port)
        except BaseException:
            self.lock.close()
            raise
        # What was skipped is asked for again, as every stage tries again what failed
        for works in self.desk.works.values():
            for work in works.values():
                work.state = "open" if work.state == "skipped" else work.state
        (tell or _tell)(self.page.url)

    def identity(self) -> dict[str, Any]:
        return {
            "engine": "people",
            "version": VERSION,
            "people": self.folder.resolve().name,
            "overlap": self.overlap,
        }

    def close(self) -> None:
        self.page.close()
        self.desk.close()
        self.lock.close()

    def answer(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """A reply leaves when its people have gone on to another card, so that each can still take back their last
        one; at the end they hand in."""
        left, waiting = iter(requests), dict[str, Request]()
        self.desk.more, self.desk.hands_in, self.desk.handed_in = True, True, False
        while True:
            while self.desk.more and len(waiting) < AHEAD:
                request = next(left, None)
                if request is None:
                    self.desk.more = False
                elif why := self._refused(request):
                    yield from _failed(request, dict.fromkeys(range(max(request.n, 1)), why))
                else:
                    card = self._card(request)
                    self.desk.add(card)
                    if self.desk.complete(card.id):  # answered before this start
                        self.desk.sealed.add(card.id)
                        yield from self._replies(request)
                    else:
                        waiting[card.id] = request
            for name in self._ready(waiting):
                yield from self._replies(waiting.pop(name))
            if not waiting and not self.desk.more:
                return
            with self.desk.changed:
                if not self._ready(waiting, look=True):
                    self.desk.changed.wait(1.0)

    def _refused(self, request: Request) -> str:
        if why := refuse(self, request):
            return why
        if request.n > 1 and self.overlap > 1:
            return f"{request.n} samples are {request.n} people's answers: of --engine people:{self.overlap} ask one"
        try:
            _forms(request)
        except ValueError as error:
            return f"its constraint cannot be read: {error}"
        return ""

    def _ready(self, waiting: dict[str, Request], *, look: bool = False) -> list[str]:
        with self.desk.changed:
            last = {cards[-1] for cards in self.desk.order.values() if cards and not self.desk.handed_in}
            ready = [name for name in waiting if self.desk.complete(name) and name not in last]
            if not look:
                self.desk.sealed.update(ready)
            return ready

    def _card(self, request: Request) -> Card:
        form = _joined(_forms(request))
        shown = {"messages": spoken(request.messages), "fields": form.fields}
        return Card(
            id=request.key,
            task="form",
            shown=shown,
            checked=form.checked,
            pictures=request.images,
            people=request.n if request.n > 1 else self.overlap,
        )

    def _replies(self, request: Request) -> Iterator[Reply]:
        done = self.desk.finished(request.key)
        skipped = [f"{name} skipped it: {work.reason}" for name, work in self.desk.finished(request.key, "skipped")]
        if request.n <= 1 and done:
            yield _together(request, [work for _, work in done])
            return
        for sample, (_, work) in enumerate(done[: max(request.n, 1)]):
            yield _together(request, [work], sample)
        missing = range(len(done), max(request.n, 1))
        yield from _failed(request, dict.fromkeys(missing, "; ".join(skipped) or "nobody answered"))


def spoken(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as the page shows them: texts, and images by their numbers."""
    out, images = [], 0
    for message in messages:
        said: list[dict[str, Any]] = []
        for part in parts(message):
            if part["type"] == "image":
                images += 1
                said.append({"image": images})
            else:
                said.append({"text": part["text"]})
        out.append({"role": message["role"], "parts": said})
    return out


def _forms(request: Request) -> list[Form]:
    """One for the labels, one for the answer."""
    labels = [Form((choices("Answer", request.labels),), lambda values: values[0])] if request.labels else []
    return labels + ([form_of(request.constraint)] if request.n else [])


def _joined(forms: list[Form]) -> Form:
    def told(values: list[Any]) -> str:
        at = 0
        for form in forms:
            form.told(values[at : at + len(form.fields)])
            at += len(form.fields)
        return ""

    return Form(tuple(field for form in forms for field in form.fields), told)


def _together(request: Request, works: list[Work], sample: int = 0) -> Reply:
    """What several people said, as one reply."""
    said = [work.result["values"] for work in works]
    labels: dict[str, float] = {}
    if request.labels:
        votes = Counter(values[0] for values in said)
        labels = {label: math.log(votes[label] / len(said)) if votes[label] else -math.inf for label in request.labels}
    if not request.n:
        return Reply(key=request.key, sample=sample, labels=labels)
    form = _forms(request)[-1]
    first = len(request.labels[:1])
    one = [_one(field, [values[first + n] for values in said]) for n, field in enumerate(form.fields)]
    text = form.told(one)
    return Reply(key=request.key, sample=sample, text=text, tokens=len(text.split()), labels=labels)


def _one(field: dict[str, Any], values: list[Any]) -> Any:
    """The value that stands for several: always one that somebody gave."""
    given = [value for value in values if value is not None]
    if not given:
        return None
    if all(isinstance(value, int) and not isinstance(value, bool) for value in given):
        return median_low(given)
    return Counter(map(_hashable, given)).most_common(1)[0][0] if field["kind"] == "choice" else given[0]


def _hashable(value: Any) -> Any:
    return value if value.__hash__ is not None else str(value)


def _failed(request: Request, problems: dict[int, str]) -> Iterator[Reply]:
    for sample, problem in problems.items():
        yield Reply(key=request.key, sample=sample, finish="error", error=problem)


def _tell(url: str) -> None:
    print(f"people answer at {url}", file=sys.stderr, flush=True)
