"""Who judges answers: an engine with a record of its replies in front, or replies that were given before.

A judge that fails is asked again a few times; what still fails ends the scoring, for a missing verdict is no verdict.
What was answered is in the record by then, and the next start asks for the rest alone.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from mmfast.engines.base import Engine, Reply, Request, canonical
from mmfast.engines.recorded import Recorded
from mmfast.evals.base import Call, Judge

T = TypeVar("T")
TRIES = 3  # of a call that fails; of a reply that does not parse
CONTENTS = ("content", "judgment", "review", "raw", "text")  # columns of review files


class EngineJudge:
    """Calls go to an engine. `record`: the file of its replies; what is there is not asked again."""

    def __init__(
        self, engine: Engine | None, name: str = "", *, record: str | Path = "", tries: int = TRIES, allow: float = 0.0
    ) -> None:
        """`allow`: the share of calls that may fail for good; their replies then have an error."""
        assert engine is not None or record, "a judge needs an engine or a record"
        self.counted = None if engine is None else _Counted(engine)
        self.recorded = Recorded(record, self.counted) if record else None
        answering = self.recorded or self.counted
        assert answering is not None
        self.engine, self.record, self.tries, self.allow = answering, record, tries, allow
        identity = self.engine.identity()
        told = str(identity.get("model") or identity.get("engine") or "judge")
        self.name = name or told
        self.made_by = {"name": self.name, "identity": _digest(identity)}
        self.seed = 0  # of this run: added to every call's
        self.given: dict[tuple[str, int], Reply] = {}  # one that is asked for twice (by our parser too) is asked once

    @property
    def asked(self) -> int:
        """Calls that the engine itself was given: none that is recorded."""
        return self.counted.asked if self.counted else 0

    def ask(self, calls: Iterable[Call]) -> dict[str, Reply]:
        waiting: dict[str, Request] = {}
        replies: dict[str, Reply] = {}
        for call in calls:
            assert call.key not in waiting and call.key not in replies, f"two calls have the key {call.key}"
            if (call.key, self.seed) in self.given:
                replies[call.key] = self.given[call.key, self.seed]
                continue
            decode = replace(call.decode, seed=call.decode.seed + self.seed)
            waiting[call.key] = Request(key=call.key, messages=call.messages, decode=decode, labels=call.labels)
        for _ in range(self.tries):
            for reply in self.engine.answer(iter(list(waiting.values()))) if waiting else ():
                replies[reply.key] = reply
                if reply.finish != "error":
                    self.given[reply.key, self.seed] = reply
                    waiting.pop(reply.key, None)
        for key in waiting:
            replies.setdefault(key, Reply(key=key, finish="error", error="the engine gave no answer"))
        if len(waiting) > self.allow * max(len(replies), 1):
            first = replies[next(iter(waiting))].error
            told = f"the judge {self.name} failed at {len(waiting)} of {len(replies)} calls ({first})"
            if self.record:
                told += f"; what it answered is kept in {self.record}, and the same command asks for the rest"
            raise ValueError(told)
        return replies

    def close(self) -> None:
        if self.recorded:
            self.recorded.close()


def as_judge(judge: Judge | Engine | None) -> Judge | None:
    """A judge as it is; an engine as one without a record."""
    return EngineJudge(cast(Engine, judge)) if hasattr(judge, "answer") else judge


class _Counted:
    """An engine that counts what it is asked."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.can, self.asked = engine, engine.can, 0

    def identity(self) -> dict[str, Any]:
        return self.engine.identity()

    def answer(self, requests: Iterable[Request]) -> Iterator[Reply]:
        def counted() -> Iterator[Request]:
            for request in requests:
                self.asked += 1
                yield request

        yield from self.engine.answer(counted())


class ListedJudge:
    """Replies of another system, in the order of the questions: a JSON list of texts or of completions (DGPref's and
    RLHF-V's reviews), or a row a reply (LLaVA's)."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.replies = list(map(self._text, self._values()))
        self.name = f"replies of {self.path.name}"
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        self.made_by = {"name": self.name, "identity": digest[:24]}
        self.given: dict[str, Reply] = {}
        self.seed = 0

    def ask(self, calls: Iterable[Call]) -> dict[str, Reply]:
        out = {}
        for call in calls:
            if call.key not in self.given:
                if len(self.given) == len(self.replies):
                    raise ValueError(f"{self.path} has {len(self.replies)} replies, and more are asked for")
                self.given[call.key] = Reply(key=call.key, text=self.replies[len(self.given)])
            out[call.key] = self.given[call.key]
        return out

    def close(self) -> None:
        """Replies that no question took mean that the list is another set's."""
        if len(self.given) != len(self.replies):
            raise ValueError(f"{self.path} has {len(self.replies)} replies, and {len(self.given)} were asked for")

    def _values(self) -> list[Any]:
        text = self.path.read_text(encoding="utf-8")
        try:
            value = json.loads(text)
            return value if isinstance(value, list) else [value]
        except json.JSONDecodeError:
            pass
        try:
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        except json.JSONDecodeError:
            raise ValueError(f"{self.path} is neither a JSON list nor JSON lines of replies") from None

    def _text(self, value: Any) -> str:
        if isinstance(value, dict) and value.get("choices"):
            value = value["choices"][0].get("message", {}).get("content")
        elif isinstance(value, dict):
            value = next((value[name] for name in CONTENTS if isinstance(value.get(name), str)), None)
        if not isinstance(value, str):
            raise ValueError(f"{self.path} holds something that is no reply: texts or completions are wanted")
        return value


def until_parsed(
    judge: Judge,
    calls: Iterable[Call],
    parse: Callable[[str], T | None],
    *,
    tries: int = TRIES,
    again: Callable[[Call, int], Call] | None = None,
    counts: Counter[str] | None = None,
) -> dict[str, tuple[T | None, Reply]]:
    """What each call's reply says, by its key, with the reply. One that does not parse is asked again, never more than
    `tries` times in all: by another seed, or as `again(call, number)` says. `counts`: gets "asked again", "unparsed"
    and "failed", the calls without a reply (where the judge allows some)."""
    counts = Counter() if counts is None else counts
    asked = list(calls)
    found: dict[str, tuple[T | None, Reply]] = {}
    waiting = {call.key: call for call in asked}
    for number in range(tries):
        now = {key: _again(call, number, again) for key, call in waiting.items()}
        counts["asked again"] += len(now) if number else 0
        replies = judge.ask(now.values()) if now else {}
        for key, call in now.items():
            reply = replies[call.key]
            said = None if reply.finish == "error" else parse(reply.text)
            found[key] = said, reply
        counts["failed"] += sum(found[key][1].finish == "error" for key in now)
        waiting = {k: call for k, call in waiting.items() if found[k][0] is None and found[k][1].finish != "error"}
    counts["unparsed"] += len(waiting)
    return {call.key: found[call.key] for call in asked}


def _again(call: Call, number: int, again: Callable[[Call, int], Call] | None) -> Call:
    if number == 0:
        return call
    if again is not None:
        return replace(again(call, number), key=f"{call.key}#{number}")
    return replace(call, key=f"{call.key}#{number}", decode=replace(call.decode, seed=call.decode.seed + number))


# agreement


def agreement(first: dict[str, Any], second: dict[str, Any]) -> dict[str, float]:
    """Of two judges' verdicts by item: the share of equal ones, and Cohen's kappa, which takes off chance."""
    if first.keys() != second.keys():
        raise ValueError("two judges are compared item by item: they must have judged the same")
    if not first:
        raise ValueError("no item was judged by both")
    equal = sum(first[key] == second[key] for key in first) / len(first)
    one, other = Counter(map(str, first.values())), Counter(map(str, second.values()))
    chance = sum(one[name] * other[name] for name in one) / len(first) ** 2
    kappa = 1.0 if chance == 1 else (equal - chance) / (1 - chance)
    return {"items": float(len(first)), "share": equal, "kappa": kappa}


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:24]
