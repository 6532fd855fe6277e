"""A panel of experts, as an engine: requests are items of images; each goes to the expert that its kind is routed to.

Requests of one image should come together. Items that cannot be judged are told apart from wrong ones: 0, with the
reason, for what names nothing that could be seen, -2 for what is said of a thing that is not there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from mmfast.engines.base import ABILITIES, Picture, Reply, Request, canonical
from mmfast.feedback.experts import UNSEEN, Case, Verdict
from mmfast.feedback.items import Item
from mmfast.feedback.routing import SKIP, Opened, Route

TOGETHER = 512  # items of one window, and the rest of its last image


@dataclass(frozen=True)
class Question:
    """What a request is about."""

    item: Item
    images: tuple[Picture, ...]
    names: tuple[str, ...]  # of all items of these images

    @property
    def key(self) -> str:
        return canonical([picture.id for picture in self.images])


class Panel:
    can = frozenset(ABILITIES)

    def __init__(self, opened: Opened) -> None:
        self.opened, self.content = opened, opened.routing.content
        self.whole = frozenset(word.lower() for word in self.content.skip.whole)
        self.unseen = frozenset(word.lower() for word in self.content.skip.attributes)
        self.questions: dict[str, Question] = {}  # request key -> what it is about; put there by who asks
        self.verdicts: dict[str, Verdict] = {}  # request key -> its verdict; taken by who asks

    def identity(self) -> dict[str, Any]:
        routes = {kind: route.model_dump() for kind, route in self.content.route.items()}
        experts = {name: expert.identity() for name, expert in self.opened.experts.items()}
        return {
            "engine": "experts",
            "route": routes,
            "skip": self.content.skip.model_dump(mode="json"),
            "experts": experts,
        }

    @property
    def usage(self) -> Any:
        return next((engine.usage for engine in self.opened.engines if getattr(engine, "usage", None)), None)

    def close(self) -> None:
        self.opened.close()

    def answer(self, requests: Iterable[Request]) -> Iterator[Reply]:
        window: list[Request] = []
        last = ""
        for request in requests:
            image = self.questions[request.key].key
            if len(window) >= TOGETHER and image != last:
                yield from self._answers(window)
                window = []
            window.append(request)
            last = image
        yield from self._answers(window)

    def _answers(self, window: list[Request]) -> Iterator[Reply]:
        found: dict[str, Verdict] = {}
        routed: dict[Route, list[Request]] = {}
        for request in window:
            item = self.questions[request.key].item
            if why := self.unfit(item):
                found[request.key] = Verdict(evidence={"why": why})
            else:
                routed.setdefault(self.content.route[item.kind], []).append(request)
        for route, some in routed.items():
            found |= self._checked(route, some)
        for request in window:
            verdict = found[request.key]
            self.verdicts[request.key] = verdict
            told = f"{verdict.value:+d}" if not verdict.error else ""
            finish: Any = "error" if verdict.error else "stop"
            yield Reply(key=request.key, text=told, finish=finish, error=verdict.error)

    def unfit(self, item: Item) -> str:
        """Why an item is not checked; empty if it is."""
        if self.content.route[item.kind].expert == SKIP:
            return f"the table skips the kind {item.kind}"
        if not re.search(r"\w|[^\x00-\x7f]", " ".join(item.args) or item.claim):
            return "it names nothing"
        about = {"object": 0, "attribute": 1, "scale": 1, "count": 1, "relation": 0, "spatial": 0}.get(item.kind)
        if about is not None and (about >= len(item.args) or not item.args[about].strip()):
            return "it names nothing"
        if about is not None and item.args[about].lower() in self.whole:
            return "it is about the picture as a whole"
        if item.kind == "attribute" and item.args[0].lower() in self.unseen:
            return f"{item.args[0]!r} is nothing that can be seen of one thing"
        return ""

    def _checked(self, route: Route, requests: list[Request]) -> dict[str, Verdict]:
        """Its subjects must be there, its question must pass, and then the expert is asked."""
        found: dict[str, Verdict] = {}
        left = list(requests)
        if route.subjects:
            left = [r for r in left if not self._unseen(route, r, found)]
        scores: dict[str, float] = {}
        if route.filter and left:
            asked = [self.questions[r.key].item.question for r in left]
            passed = self.opened.experts[route.filter].passed(asked)
            for request, one in zip(left, passed, strict=True):
                scores[request.key] = one.score
                if one.error:
                    found[request.key] = Verdict(error=one.error)
                elif not one.good:
                    why = {"why": "the question did not pass", "question_score": round(one.score, 4)}
                    found[request.key] = Verdict(question_ok=False, evidence=why)
            left = [r for r in left if r.key not in found]
        # One case an image, in the order of the requests
        cases: dict[str, list[Request]] = {}
        for request in left:
            cases.setdefault(self.questions[request.key].key, []).append(request)
        verdicts = self.opened.experts[route.expert].check([self._case(some) for some in cases.values()])
        for some, own in zip(cases.values(), verdicts, strict=True):
            for request, verdict in zip(some, own, strict=True):
                if request.key in scores:
                    more = verdict.evidence | {"question_score": round(scores[request.key], 4)}
                    verdict = replace(verdict, question_ok=True, evidence=more)
                found[request.key] = verdict
        return found

    def _unseen(self, route: Route, request: Request, found: dict[str, Verdict]) -> bool:
        case = self._case([request])
        try:
            missing = self.opened.experts[route.subjects].missing(case, case.items[0])
        except (ValueError, OSError) as error:
            found[request.key] = Verdict(error=str(error))
            return True
        if missing:
            found[request.key] = Verdict(value=UNSEEN, evidence={"missing": missing})
        return bool(missing)

    def _case(self, requests: list[Request]) -> Case:
        first = self.questions[requests[0].key]
        items = tuple(self.questions[request.key].item for request in requests)
        return Case(images=first.images, items=items, names=first.names, whole=self.whole)
