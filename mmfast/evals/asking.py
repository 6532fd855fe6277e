"""Asks a benchmark's judge: what it says, tried again a bounded number of times where it cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from mmfast.engines.base import Decode, Reply
from mmfast.evals.base import Call, Scoring
from mmfast.evals.reading import prompts

T = TypeVar("T")


def call(key: str, text: str, *, system: str = "", temperature: float = 0.0, max_tokens: int = 1024) -> Call:
    messages = ({"role": "system", "content": system},) if system else ()
    return Call(
        key=key,
        messages=(*messages, {"role": "user", "content": text}),
        decode=Decode(temperature=temperature, max_tokens=max_tokens),
    )


def answered(scoring: Scoring, calls: Iterable[Call]) -> dict[str, Reply]:
    """The judge's reply to each call that did not fail. Where one failed the score waits, unless the judge allows it:
    what it has said is recorded already."""
    calls = list(calls)
    judge = scoring.judged_by()
    said = judge.ask(calls) if calls else {}
    failed = [key for key in (c.key for c in calls) if key not in said or said[key].error]
    if failed and not getattr(judge, "allow", 0):
        first = said[failed[0]].error if failed[0] in said else "no reply"
        raise ValueError(
            f"{scoring.data.bench.name}: the judge failed at {len(failed)} of {len(calls)} calls (first: {failed[0]}: "
            f"{first}); what it said is recorded, and the same command again asks only for the rest"
        )
    scoring.counts["failed"] += len(failed)
    scoring.counts["judge calls"] += len(calls)
    return {c.key: said[c.key] for c in calls if c.key not in failed}


def replies(scoring: Scoring, calls: Iterable[Call]) -> dict[str, str]:
    """What the judge says to each call that did not fail."""
    return {key: reply.text for key, reply in answered(scoring, calls).items()}


def read(
    scoring: Scoring, calls: Iterable[Call], parse: Callable[[str, str], T | None], tries: int = 1
) -> dict[str, tuple[T | None, str]]:
    """What `parse` makes of each (key, reply), and the reply. One that it cannot read (None) is asked for again with
    another seed, so many times in all; then it stays None, and is counted. So does a call that failed."""
    waiting = {c.key: c for c in calls}
    found: dict[str, tuple[T | None, str]] = dict.fromkeys(waiting, (None, ""))
    for number in range(tries):
        # Keys of their own, for a judge may keep replies by them
        again = [_again(c, number) for c in waiting.values()]
        said = replies(scoring, again)
        for c, key in zip(again, waiting, strict=True):
            if c.key in said:
                found[key] = (parse(key, said[c.key]), said[c.key])
        waiting = {
            key: c
            for (key, c), a in zip(waiting.items(), again, strict=True)
            if found[key][0] is None and a.key in said
        }
        if waiting and number + 1 < tries:
            scoring.counts["asked again"] += len(waiting)
    scoring.counts["unparsed"] += len(waiting)
    return found


def _again(one: Call, number: int) -> Call:
    return replace(one, key=f"{one.key}#{number}" if number else one.key, decode=replace(one.decode, seed=number))


def script(scoring: Scoring, role: str) -> Mapping[str, str]:
    """The official prompts in the user's copy of a script; without it none, and the result says so."""
    if scoring.data.path(role) is not None:
        return prompts(scoring.data, role)
    own(scoring, role)
    return {}


def own(scoring: Scoring, role: str) -> None:
    """Notes that the judge is asked in our words."""
    file = scoring.data.bench.files[role]
    scoring.own_prompt = True
    scoring.notes.append(
        f"own prompt: {scoring.data.folder} has no {' or '.join(file.names)} ({file.source}), so the judge is asked in "
        "mmfast's words; no official figure can stand beside this"
    )
