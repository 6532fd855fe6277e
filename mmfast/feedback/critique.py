"""The stage `critique`: which of two answers is better. A row is one comparison, the two shown in one order.

A critic that likes what it sees first is found out by showing both orders: then a verdict counts only if they agree.
In an order that is drawn for each pair such a liking falls on both alike.
`verdicts` puts the rows of a pair together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations, islice, pairwise
from pathlib import Path
from typing import Any, Literal

from mmfast.engines.base import About, Decode, Engine, Reply
from mmfast.engines.stage import Tally
from mmfast.feedback.answers import Answer, read_answers
from mmfast.feedback.asking import Ask, Asking, Read, dialogue, drawn_order, lacking, manifest, one_question, unlike
from mmfast.feedback.compared import DISAGREE, Verdict, paired
from mmfast.feedback.folders import current
from mmfast.feedback.prompts import Prompt, prompt
from mmfast.feedback.verdicts import PARSERS, reason
from mmfast.job.runtime import Runtime

NAME, VERSION = "critique", 1
NEEDS, OFFERS = ("a", "b"), ("question", "truth")  # slots of its prompts
ORDERS = {"one": ("ab",), "both": ("ab", "ba"), "random": ()}  # orders that a pair must have; (): whichever was drawn
READS = ("text", "labels")
PAIRS = ("greedy-sample", "all", "adjacent")
PRESETS: dict[str, dict[str, Any]] = {
    # SIMA shows the sampled answer first and the greedy one second, once, and drops what its parser cannot read
    "sima": {
        "prompt": "critic_sima", "order": "one", "pairs": "greedy-sample", "retries": 0,
        "decode": Decode(max_tokens=4096),
    }
}  # fmt: skip
SWAPPED = {"a": "b", "b": "a", "tie": "tie"}


@dataclass(frozen=True, kw_only=True)
class Critic:
    """How a critic is asked."""

    prompt: Prompt
    order: Literal["one", "both", "random"] = "both"
    order_seed: int = 0  # of the orders that are drawn
    read: Literal["text", "labels"] = "text"
    pairs: Literal["greedy-sample", "all", "adjacent"] = "all"
    retries: int = 2
    decode: Decode = field(default_factory=Decode)

    @property
    def needs(self) -> set[str]:
        """Of an engine."""
        wording = self.prompt.wording
        if self.read == "labels":
            return {"labels"} | ({"prefix"} if wording.label_opening or wording.opening else set())
        drawn = self.decode.needs | ({"sample"} if self.retries else set())
        return drawn | ({"prefix"} if wording.opening else set())


def planned(preset: str = "", *, decode: dict[str, Any] | None = None, **changes: Any) -> Critic:
    """A preset, or the defaults, with `changes` (fields of Critic, and of its Decode); every mistake is told."""
    if preset and preset not in PRESETS:
        raise ValueError(f"--preset: unknown preset {preset!r}; there is {', '.join(PRESETS)}")
    settings = PRESETS.get(preset, {}) | changes
    for name, known in (("order", (*ORDERS,)), ("read", READS), ("pairs", PAIRS)):
        if (value := settings.get(name, known[0])) not in known:
            raise ValueError(f"--{name} {value}: choose {', '.join(known[:-1])} or {known[-1]}")
    # The seed is of what is drawn: orders, and replies
    decode = decode or {}
    if settings.get("order") == "random" and "seed" in decode:
        settings["order_seed"] = decode["seed"]
        decode = {k: v for k, v in decode.items() if k != "seed" or settings.get("read") != "labels"}
    # What only a text needs
    if settings.get("read") == "labels":
        given = [f"--{name.replace('_', '-')}" for name in (*decode, *(n for n in changes if n == "retries"))]
        if given:
            raise ValueError(f"{given[0]} has no effect with --read labels: nothing is generated")
        settings |= {"retries": 0, "decode": Decode()}
    elif decode:
        settings["decode"] = replace(settings.get("decode", Decode()), **decode)
    # The prompt
    said = prompt(settings.pop("prompt", "critic"), parsers=PARSERS, needs=NEEDS, offers=OFFERS)
    labels = said.wording.labels
    if not {"a", "b"} <= labels.keys() <= SWAPPED.keys() or len(set(labels.values())) < len(labels):
        raise ValueError(f"prompt {said.name}: its labels must be a, b and perhaps tie, each another text")
    return Critic(prompt=said, **settings)


def critique(
    source: Path,
    out: Path,
    engine: Engine,
    critic: Critic,
    runtime: Runtime,
    *,
    limit: int = 0,
    debug: int = 0,
    allow: float = 0.0,
) -> Tally:
    """Compare the answers of `source`. `limit`: of how many groups (0: all)."""

    def asks() -> Iterator[Ask]:
        for group in islice(one_question(read_answers(source)), limit or None):
            yield from _asks(critic, group)

    asking = Asking(
        name=NAME,
        version=VERSION,
        prompts=(critic.prompt,),
        asks=asks,
        read=lambda ask, reply: _read(critic, ask, reply),
        decode=critic.decode,
        retries=critic.retries,
        made_by={"order": critic.order, "read": critic.read}
        | ({"order_seed": critic.order_seed} if critic.order == "random" else {}),
        counts=lambda rows: counts(rows, ORDERS[critic.order]),
    )
    told = f"{source.name}, pairs {critic.pairs}"
    return asking.run(out, engine, runtime, source=told, whole=not limit, debug=debug, allow=allow)


def check_input(source: Path, critic: Critic) -> None:
    """Raises where there is nothing to compare."""
    groups, told = 0, ""
    for group in one_question(read_answers(source)):
        groups += 1
        asks = [ask for ask in _asks(critic, group) if ask.messages]
        if any(not ask.problem for ask in asks):
            return
        told = told or next((ask.problem for ask in asks), "")
    if told:
        raise ValueError(f"{source}: {told}")
    why = (
        "no answer" if not groups else "no greedy and sampled answer" if critic.pairs == PAIRS[0] else "no two answers"
    )
    raise ValueError(f"{source} has {why} to one question: nothing can be compared (--pairs {critic.pairs})")


# what is asked


def _asks(critic: Critic, group: list[Answer]) -> Iterator[Ask]:
    """Every pair of a group, in each order; an answer that says what an earlier one says is compared with none."""
    first = group[0]
    kept, same = unlike(group)
    for answer in same:
        yield Ask(row=answer.row, source=answer.source, prompt=critic.prompt, names=(answer.key,), identical=True)
    pairs = list(_paired(critic.pairs, kept))
    if not pairs and not list(_paired(critic.pairs, group)):
        lacks = "no greedy and sampled answer" if critic.pairs == PAIRS[0] else "no second answer"
        names = {"group": first.group, "a": first.key}
        yield Ask(
            row=first.row, source=first.source, prompt=critic.prompt, names=(first.key,), fields=names,
            problem=f"this question has {lacks} to compare",
        )  # fmt: skip
    for a, b in pairs:
        drawn = "ab" if drawn_order([a, b], critic.order_seed)[0] is a else "ba"
        for order in ORDERS[critic.order] or (drawn,):
            yield _ask(critic, a, b, order)


def _paired(how: str, answers: list[Answer]) -> Iterable[tuple[Answer, Answer]]:
    if how == "all":
        return combinations(answers, 2)
    if how == "adjacent":
        return pairwise(answers)
    greedy = [answer for answer in answers if answer.decode == "greedy"]
    return ((sample, one) for one in greedy for sample in answers if sample.decode == "sample")


def _ask(critic: Critic, a: Answer, b: Answer, order: str) -> Ask:
    # What is said
    wording, (first, second) = critic.prompt.wording, (a, b) if order == "ab" else (b, a)
    said = {"a": first.text, "b": second.text, "question": dialogue(a), "truth": a.reference}
    slots = {name: said[name] for name in (*wording.slots, *wording.optional)}
    labelled = critic.read == "labels"
    messages = (critic.prompt.label_messages if labelled else critic.prompt.messages)(len(a.images), **slots)
    labels = wording.labels
    # How a verdict is written, for who answers without reading
    fit = "" if labelled or wording.opening.endswith("[[") else "[["

    def say(better: int | None) -> str:
        label = labels["tie" if better is None else "ab"[better]]
        return label if labelled else f"{fit}{label}]]"

    return Ask(
        row=a.row,
        source=a.source,
        prompt=critic.prompt,
        names=(a.key, b.key),
        images=a.images,
        messages=messages,
        labels=tuple(labels.values()) if labelled else (),
        about=About(
            task="prefer",
            say=say,
            question=a.question,
            answers=(first.text, second.text),
            more={"ties": "tie" in labels},
        ),
        fields={"group": a.group, "a": a.key, "b": b.key, "order": order},
        problem=lacking(critic.prompt, said, "question", "truth"),
    )


# how it is read


def _read(critic: Critic, ask: Ask, reply: Reply) -> Read:
    wording = critic.prompt.wording
    p = None
    if ask.labels:
        said, p, problem = by_labels({m: reply.labels.get(label, -math.inf) for m, label in wording.labels.items()})
        why = ""
        if (
            said
            and (bounded := [m for m, label in wording.labels.items() if label in reply.bounded])
            and said in bounded
        ):
            said, p, problem = None, None, "the server shows no probability of the verdicts"
    else:
        said, problem = PARSERS[wording.parser](wording.opening + reply.text, wording.labels)
        why = reason(wording.opening + reply.text)
        if problem and reply.finish == "length":
            problem = f"cut at max_tokens: {problem}"
    if ask.fields["order"] == "ba":
        said, p = SWAPPED.get(said or ""), None if p is None else round(1 - p, 6)
    return Read({"verdict": said, "p": p, "reason": why}, problem)


def by_labels(logps: dict[str, float]) -> tuple[str | None, float | None, str]:
    """(The most probable verdict, P(a) and half of P(tie), why there is none) of the labels' log-probs."""
    top = max(logps.values())
    if not math.isfinite(top) or any(map(math.isnan, logps.values())):
        return None, None, "no verdict has a probability"
    shares = {meaning: math.exp(logp - top) for meaning, logp in logps.items()}
    # Rounded, so that what runs beside a row, which shows in the last bits, does not show in its record
    p = round((shares["a"] + shares.get("tie", 0.0) / 2) / sum(shares.values()), 6)
    best = [meaning for meaning, logp in logps.items() if logp == top]
    return best[0] if len(best) == 1 else "tie", p, ""


# what comes of it


def verdicts(folder: str | Path) -> Iterator[Verdict]:
    """Every pair of a folder that `mmfast critique` wrote, in the input's order."""
    made_by = manifest(folder)
    if made_by["stage"] != NAME:
        raise ValueError(f"{folder} was made by {made_by['stage']}, not by {NAME}")
    yield from paired(current(Path(folder), made_by, []), ORDERS[made_by["order"]])


def counts(rows: Iterator[dict[str, Any]], orders: tuple[str, ...]) -> dict[str, int]:
    """Of pairs; and how often the answer that was shown first won, whatever it was."""
    first: Counter[bool] = Counter()

    def watched() -> Iterator[dict[str, Any]]:
        for row in rows:
            if row["verdict"] in ("a", "b"):
                first[row["order"][0] == row["verdict"]] += 1
            yield row

    found = Counter(one.problem or one.verdict for one in paired(watched(), orders))
    return {
        "pairs with a verdict": found["a"] + found["b"],
        "ties": found["tie"],
        "pairs whose orders disagree": found[DISAGREE],
        "times the first shown won": first[True],
        "times the second": first[False],
    }
