"""The stage `judge`: all answers to a question rated in one call, by the metrics of its prompt, and a reference answer.

Answers with the same text are shown once, and rated alike. A metric that was not rated, or not by a number of the
range, is null: nothing is filled in.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from mmfast.engines.base import About, Constraint, Decode, Engine, Reply
from mmfast.engines.stage import Tally
from mmfast.feedback.answers import Answer, read_answers
from mmfast.feedback.asking import Ask, Asking, Read, dialogue, lacking, one_question, unlike
from mmfast.feedback.prompts import Prompt, prompt
from mmfast.feedback.ratings import PARSERS, schema, written
from mmfast.job.runtime import Runtime

NAME, VERSION = "judge", 1
NEEDS, OFFERS = ("answers",), ("question", "count", "truth")  # slots of its prompts
PRESETS: dict[str, dict[str, Any]] = {"mllm_dpo": {"prompt": "judge_five"}}


@dataclass(frozen=True, kw_only=True)
class Judge:
    """How a judge is asked."""

    prompt: Prompt
    retries: int = 2
    decode: Decode = field(default_factory=lambda: Decode(max_tokens=2048))

    @property
    def needs(self) -> set[str]:
        """Of an engine."""
        drawn = self.decode.needs | ({"sample"} if self.retries else set())
        return drawn | ({"prefix"} if self.prompt.wording.opening else set())


def planned(preset: str = "", *, decode: dict[str, Any] | None = None, **changes: Any) -> Judge:
    """A preset, or the defaults, with `changes` (fields of Judge, and of its Decode); every mistake is told."""
    if preset and preset not in PRESETS:
        raise ValueError(f"--preset: unknown preset {preset!r}; there is {', '.join(PRESETS)}")
    settings = PRESETS.get(preset, {}) | changes
    said = prompt(settings.pop("prompt", "judge_five"), parsers=PARSERS, needs=NEEDS, offers=OFFERS)
    if not said.wording.metrics or not said.wording.each:
        raise ValueError(f"prompt {said.name}: a judge's prompt has [metrics] with low and high, and `each`")
    made = Judge(prompt=said, **settings)
    return replace(made, decode=replace(made.decode, **(decode or {})))


def judge(
    source: Path,
    out: Path,
    engine: Engine,
    how: Judge,
    runtime: Runtime,
    *,
    limit: int = 0,
    debug: int = 0,
    allow: float = 0.0,
) -> Tally:
    """Rate the answers of `source`. `limit`: of how many groups (0: all)."""
    # How the reply is held to its form
    constrained = follows_schemas(engine)
    if not constrained and runtime.main:
        print("judge: this engine follows no JSON schema: ratings are read from its text", file=sys.stderr)

    def asks() -> Iterator[Ask]:
        for group in islice(one_question(read_answers(source)), limit or None):
            yield from _asks(how, group, constrained)

    # Ask
    asking = Asking(
        name=NAME,
        version=VERSION,
        prompts=(how.prompt,),
        asks=asks,
        read=lambda ask, reply: _read(how, ask, reply),
        decode=how.decode,
        retries=how.retries,
        made_by={"schema": constrained},
        counts=counts,
    )
    return asking.run(out, engine, runtime, source=source.name, whole=not limit, debug=debug, allow=allow)


def check_input(source: Path) -> None:
    if next(iter(one_question(read_answers(source))), None) is None:
        raise ValueError(f"{source} holds no answer: nothing can be judged")


def follows_schemas(engine: Engine) -> bool:
    """An engine may know constraints and lack the package, or be a server that honours choices alone."""
    if "constraint" not in engine.can:
        return False
    own, honours = getattr(engine, "constraints", None), getattr(engine, "honours", None)
    return not (own and own.why_not(Constraint(schema="{}"))) and not (honours and not honours.schema)


def _asks(how: Judge, group: list[Answer], constrained: bool) -> Iterator[Ask]:
    """One request for all of a group; an answer that says what another says is shown once."""
    said, wording, first = how.prompt, how.prompt.wording, group[0]
    kept, same = unlike(group)
    for answer in same:
        yield Ask(row=answer.row, source=answer.source, prompt=said, names=(answer.key,), identical=True)
    keys = [[a.key for a in group if a.text.strip() == shown.text.strip()] for shown in kept]
    texts = tuple(answer.text for answer in kept)
    slots = {
        "question": dialogue(first), "count": str(len(kept)), "answers": said.listed(texts), "truth": first.reference
    }  # fmt: skip
    rated = (tuple(wording.metrics), wording.low, wording.high)
    more = {"metrics": rated[0], "low": wording.low, "high": wording.high}
    yield Ask(
        row=first.row,
        source=first.source,
        prompt=said,
        names=tuple(answer.key for answer in group),
        images=first.images,
        messages=said.messages(len(first.images), **{n: slots[n] for n in (*wording.slots, *wording.optional)}),
        constraint=Constraint(schema=schema(len(kept), *rated)) if constrained else None,
        about=About(task="rate", say=lambda v: written(**v), question=first.question, answers=texts, more=more),
        fields={"group": first.group, "answers": [answer.key for answer in group]},
        more=keys,
        problem=lacking(said, slots, "question", "truth"),
    )


def _read(how: Judge, ask: Ask, reply: Reply) -> Read:
    wording = how.prompt.wording
    parse = PARSERS[wording.parser]
    found = parse(wording.opening + reply.text, len(ask.more), tuple(wording.metrics), wording.low, wording.high)
    named = {key: number for number, keys in enumerate(ask.more) for key in keys}
    problem = "; ".join(found.problems)
    if problem and reply.finish == "length":
        problem = f"cut at max_tokens: {problem}"
    return Read(
        {
            "scores": {key: found.scores[named[key]] for key in ask.fields["answers"]},
            "reference": found.reference,
            "reason": {key: found.reasons[named[key]] for key in ask.fields["answers"]},
            "out_of_range": found.foreign,
        },
        problem,
    )


def counts(rows: Iterator[dict[str, Any]]) -> dict[str, int]:
    found = dict.fromkeys(("answers rated", "answers with a metric missing", "values out of range", "no reference"), 0)
    for row in rows:
        for score in row["scores"].values():
            missing = sum(value is None for value in score.values())
            found["answers rated"] += not missing
            found["answers with a metric missing"] += bool(missing)
        found["values out of range"] += row["out_of_range"]
        found["no reference"] += not row["reference"]
    return found
