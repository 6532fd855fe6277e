"""The stage `judge`: all answers to a question rated in one call, by the metrics of its prompt, and a reference answer.

Answers with the same text are shown once, and rated alike. A metric that was not rated, or not by a number of the
range, is null: nothing is filled in. Answers are shown as they come, in an order drawn for each group, or as they come
and turned round (a row each, whose numbers are averaged by who reads them).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from mmfast.engines.base import About, Constraint, Decode, Engine, Reply
from mmfast.engines.stage import Tally
from mmfast.feedback.answers import Answer, read_answers
from mmfast.feedback.asking import Ask, Asking, Read, dialogue, drawn_order, lacking, one_question, unlike
from mmfast.feedback.prompts import Prompt, prompt
from mmfast.feedback.ratings import PARSERS, schema, written
from mmfast.job.runtime import Runtime

NAME, VERSION = "judge", 1
NEEDS, OFFERS = ("answers",), ("question", "count", "truth")  # slots of its prompts
ORDERS = ("one", "random", "both")
PRESETS: dict[str, dict[str, Any]] = {"mllm_dpo": {"prompt": "judge_five"}}


@dataclass(frozen=True, kw_only=True)
class Judge:
    """How a judge is asked."""

    prompt: Prompt
    order: Literal["one", "random", "both"] = "one"
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
    if (order := settings.get("order", ORDERS[0])) not in ORDERS:
        raise ValueError(f"--order {order}: choose {', '.join(ORDERS[:-1])} or {ORDERS[-1]}")
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
        made_by={"schema": constrained, "order": how.order},
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
    engine = getattr(engine, "engine", None) or engine  # behind a record
    own, honours = getattr(engine, "constraints", None), getattr(engine, "honours", None)
    return not (own and own.why_not(Constraint(schema="{}"))) and not (honours and not honours.schema)


def _asks(how: Judge, group: list[Answer], constrained: bool) -> Iterator[Ask]:
    """A request for all of a group in each order; an answer that says what another says is shown once."""
    kept, same = unlike(group)
    for answer in same:
        yield Ask(row=answer.row, source=answer.source, prompt=how.prompt, names=(answer.key,), identical=True)
    shown = drawn_order(kept, how.decode.seed) if how.order == "random" else kept
    yield _ask(how, group, shown, constrained)
    if how.order == "both" and len(kept) > 1:
        yield _ask(how, group, kept[::-1], constrained)


def _ask(how: Judge, group: list[Answer], shown: list[Answer], constrained: bool) -> Ask:
    """`shown`: the answers of the group in the order in which they are shown."""
    said, wording, first = how.prompt, how.prompt.wording, group[0]
    keys = [[a.key for a in group if a.text.strip() == one.text.strip()] for one in shown]
    texts = tuple(answer.text for answer in shown)
    slots = {
        "question": dialogue(first), "count": str(len(shown)), "answers": said.listed(texts), "truth": first.reference
    }  # fmt: skip
    rated = (tuple(wording.metrics), wording.low, wording.high)
    more = {"metrics": rated[0], "low": wording.low, "high": wording.high}
    return Ask(
        row=first.row,
        source=first.source,
        prompt=said,
        names=tuple(answer.key for answer in group),
        images=first.images,
        messages=said.messages(len(first.images), **{n: slots[n] for n in (*wording.slots, *wording.optional)}),
        constraint=Constraint(schema=schema(len(shown), *rated)) if constrained else None,
        about=About(task="rate", say=lambda v: written(**v), question=first.question, answers=texts, more=more),
        fields={
            "group": first.group,
            "answers": [answer.key for answer in group],
            "shown": [answer.key for answer in shown],
        },
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


PLACES = {"first": "times the best rated was shown first", "last": "times last", "between": "times between"}


def counts(rows: Iterator[dict[str, Any]]) -> dict[str, int]:
    """Of answers; and where the best rated one stood: a judge that likes a place shows it here."""
    found = dict.fromkeys(("answers rated", "answers with a metric missing", "values out of range", "no reference"), 0)
    places = dict.fromkeys((*PLACES.values(), "times none was best"), 0)
    best_of: dict[tuple[str, ...], set[str]] = {}  # group -> the best of each order
    several: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        # What is there
        for score in row["scores"].values():
            missing = sum(value is None for value in score.values())
            found["answers rated"] += not missing
            found["answers with a metric missing"] += bool(missing)
        found["values out of range"] += row["out_of_range"]
        found["no reference"] += not row["reference"]
        # Where the best one stood
        shown = row["shown"]
        sums = {key: list(row["scores"][key].values()) for key in shown}
        if len(shown) < 2 or any(None in values for values in sums.values()):
            continue
        top = max(sum(values) for values in sums.values())
        best = [key for key, values in sums.items() if sum(values) == top]
        place = "first" if best == shown[:1] else "last" if best == shown[-1:] else "between"
        places[PLACES[place] if len(best) == 1 else "times none was best"] += 1
        group = tuple(row["answers"])
        several[group] += 1
        best_of.setdefault(group, set()).add(best[0] if len(best) == 1 else "")
    both = {group for group, number in several.items() if number > 1}
    differ = sum(len(best_of[group]) > 1 for group in both)
    return found | places | ({"groups whose orders differ in the best": differ} if both else {})
