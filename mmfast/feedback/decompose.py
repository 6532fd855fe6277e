"""The stage `decompose`: an answer as items, the smallest things that can be checked alone, each with its characters.

A model reads the answer's text, not the image: once for each aspect, a row each. What is quoted needs no model, and of
claims a second reply makes questions. A reply that cannot be read is asked for again with other seeds; where none can
be read the row has no items and says why.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from mmfast.engines.base import About, Constraint, Decode, Engine, Finish, Reply, Request
from mmfast.engines.stage import Tally
from mmfast.feedback.answers import Answer, read_answers
from mmfast.feedback.asking import Ask, Asking, Read
from mmfast.feedback.items import ASPECTS, Item, item_of, quoted
from mmfast.feedback.parsers import BETWEEN, PARSERS, QUOTED, Pieces, claims_of, shape, written
from mmfast.feedback.prompts import Prompt, prompt
from mmfast.feedback.spans import span_of
from mmfast.job.runtime import Runtime

NAME, VERSION = "decompose", 1
CLAIMS, QUESTIONS = "claims", "questions"
TOGETHER = 512  # requests of one window
PROMPTS = {aspect: f"decompose_{aspect}" for aspect in ASPECTS} | {CLAIMS: "split_claims", QUESTIONS: "claim_questions"}
INSTRUCTION = 70  # words of RLAIF-V's own instruction, which its cut counts too
EMPTY = "the answer is empty"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How answers are taken apart. compat: parsers, wording and cuts as in the system of that name."""

    preset: str
    aspects: tuple[str, ...]
    compat: bool = False
    words: int = 0  # of instruction, question and answer: what is beyond is not read; 0: all is read
    retries: int = 2
    decode: Decode = field(default_factory=lambda: Decode(max_tokens=1024))
    prompts: dict[str, Prompt] = field(default_factory=dict)

    def made_by(self) -> dict[str, Any]:
        told = asdict(replace(self, prompts={}))
        return {name: told[name] for name in ("preset", "aspects", "compat", "words")}

    def read_of(self, answer: Answer) -> str:
        """What is read of an answer."""
        if not self.words:
            return answer.text
        room = max(self.words - INSTRUCTION - len(answer.question.split(" ")), 0)
        return " ".join(answer.text.split(" ")[:room])

    def parsed(self, aspect: str, reply: str, cut: bool) -> Pieces | None:
        name = self.prompts[aspect].wording.parser.removesuffix("_compat") + ("_compat" if self.compat else "")
        return PARSERS[name](reply, aspect, cut)


def _compat(preset: str, aspects: tuple[str, ...], temperature: float, words: int = 0) -> Plan:
    decode = Decode(temperature=temperature, top_p=0.9, max_tokens=256)
    return Plan(preset=preset, aspects=aspects, compat=True, words=words, retries=0, decode=decode)


PRESETS = {
    "dgpref": Plan(preset="dgpref", aspects=ASPECTS),
    "rlaifv": Plan(preset="rlaifv", aspects=(CLAIMS,)),
    "dgpref_compat": _compat("dgpref_compat", ASPECTS, 0.6),
    "rlaifv_compat": _compat("rlaifv_compat", (CLAIMS,), 0.2, words=300),
}


def planned(
    preset: str,
    *,
    aspects: Iterable[str] = (),
    prompts: dict[str, str] | None = None,
    retries: int | None = None,
    **decode: Any,
) -> Plan:
    """A preset with what is given in its place. `prompts`: aspect -> name or file."""
    if preset not in PRESETS:
        raise ValueError(f"--preset: there is no {preset!r}; choose {', '.join(PRESETS)}")
    plan, aspects = PRESETS[preset], tuple(dict.fromkeys(aspects))
    if unknown := [aspect for aspect in aspects if aspect not in (*ASPECTS, CLAIMS)]:
        raise ValueError(f"--aspects: there is no {unknown[0]!r}; there are {', '.join((*ASPECTS, CLAIMS))}")
    plan = replace(plan, aspects=aspects or plan.aspects, decode=replace(plan.decode, **decode))
    plan = replace(plan, retries=plan.retries if retries is None else retries)
    needed = (*plan.aspects, QUESTIONS) if CLAIMS in plan.aspects else plan.aspects
    if unknown := sorted((prompts or {}).keys() - set(needed)):
        raise ValueError(f"--prompt {unknown[0]}=...: this plan asks for {', '.join(needed)}")
    found = {aspect: prompt((prompts or {}).get(aspect, PROMPTS[aspect]), parsers=PARSERS) for aspect in needed}
    return replace(plan, prompts=found)


def decompose(
    source: Path,
    out: Path,
    engine: Engine,
    plan: Plan,
    runtime: Runtime,
    *,
    limit: int = 0,
    debug: int = 0,
    allow: float = 0.0,
) -> Tally:
    """Take the answers of `source` apart into `out`. `limit`: how many answers are read (0: all)."""
    constrained = not plan.compat and follows_regex(engine)
    asking = Asking(
        name=NAME,
        version=VERSION,
        prompts=tuple(plan.prompts.values()),
        asks=lambda: asks(islice(read_answers(source), limit or None), plan, constrained),
        read=partial(read, plan),
        decode=plan.decode,
        retries=plan.retries,
        made_by=plan.made_by() | {"constrained": constrained},
        counts=counted,
    )
    reader = Reader(engine, plan, constrained)
    return asking.run(out, reader, runtime, source=source.name, whole=not limit, debug=debug, allow=allow)


def asks(answers: Iterable[Answer], plan: Plan, constrained: bool) -> Iterator[Ask]:
    for answer in answers:
        text = plan.read_of(answer)
        for aspect in plan.aspects:
            own = plan.prompts[aspect]
            given = {"answer": text, "question": answer.question}
            constraint = Constraint(regex=shape(aspect)) if constrained and own.wording.parser != QUOTED else None
            yield Ask(
                row=answer.row,
                source=answer.source,
                prompt=own,
                names=(answer.key, aspect),
                messages=own.messages(0, **{name: given[name] for name in own.wording.slots}),
                constraint=constraint,
                about=About(
                    task=NAME,
                    say=partial(written, aspect),
                    question=answer.question,
                    answers=(text,),
                    more={"aspect": aspect},
                ),
                fields={"answer_key": answer.key, "aspect": aspect, "images": list(answer.images)},
                more=answer,
            )


class Reader:
    """The engine, with what it need not be asked: quotations, and answers that are empty. Claims are asked for
    twice."""

    def __init__(self, engine: Engine, plan: Plan, constrained: bool) -> None:
        self.engine, self.plan, self.constrained, self.can = engine, plan, constrained, engine.can

    def identity(self) -> dict[str, Any]:
        return self.engine.identity()

    @property
    def usage(self) -> Any:
        return getattr(self.engine, "usage", None)

    def answer(self, requests: Iterable[Request]) -> Iterator[Reply]:
        source = iter(requests)
        while window := list(islice(source, TOGETHER)):
            asked: dict[str, Request] = {}
            for request in window:
                known = self._known(request)
                if known is None:
                    asked[request.key] = request
                else:
                    yield Reply(key=request.key, text=known)
            claims: dict[str, Reply] = {}
            for reply in self.engine.answer(asked.values()):
                if asked[reply.key].about.more["aspect"] == CLAIMS and reply.finish != "error":  # type: ignore[union-attr]
                    claims[reply.key] = reply
                else:
                    yield reply
            yield from self._questions(asked, claims)

    def _known(self, request: Request) -> str | None:
        """A reply that needs no model; None where one is needed."""
        assert request.about is not None
        (text,), aspect = request.about.answers, request.about.more["aspect"]
        if not text.strip():
            return ""
        if _is_world(self.engine):
            from mmfast.feedback.experts.world import decomposed

            return request.about.say(decomposed(aspect, text))
        return "" if self.plan.prompts[aspect].wording.parser == QUOTED else None

    def _questions(self, asked: dict[str, Request], claims: dict[str, Reply]) -> Iterator[Reply]:
        """A second request for each answer that claims something."""
        more: dict[str, Request] = {}
        for key, reply in claims.items():
            pieces = self.plan.parsed(CLAIMS, reply.text, reply.finish == "length")
            if pieces is None or not pieces.found:
                yield reply
                continue
            listed = "\n".join(f"- {claim}" for (claim,) in pieces.found)
            regex = shape(QUESTIONS, len(pieces.found)) if self.constrained else ""
            messages = self.plan.prompts[QUESTIONS].messages(0, claims=listed)
            constraint = Constraint(regex=regex) if regex else None
            more[key] = replace(asked[key], messages=messages, constraint=constraint)
        for reply in self.engine.answer(more.values()):
            if reply.finish != "error":
                first = claims[reply.key]
                finish: Finish = "length" if "length" in (first.finish, reply.finish) else "stop"
                tokens = first.tokens + reply.tokens
                reply = replace(reply, text=first.text + BETWEEN + reply.text, tokens=tokens, finish=finish)
            yield reply


def read(plan: Plan, ask: Ask, reply: Reply) -> Read:
    """The items of a reply."""
    answer: Answer = ask.more
    aspect, text = ask.fields["aspect"], plan.read_of(answer)
    malformed, problem, items = 0, "", []
    if not text.strip():
        problem = EMPTY
    elif plan.prompts[aspect].wording.parser == QUOTED:
        items = _texts(text, reply.text, plan.compat)
    elif aspect == CLAIMS:
        items, malformed, problem = _claims(plan, reply)
    else:
        pieces = plan.parsed(aspect, reply.text, reply.finish == "length")
        problem = _unread(reply.text) if pieces is None else ""
        items = [item_of(aspect, piece, compat=plan.compat) for piece in pieces.found] if pieces else []
        malformed = pieces.malformed if pieces else 0
    laid = [replace(item, span=span_of(answer.text, item.claim)).row() for item in items]
    return Read({"items": laid, "malformed": malformed, "unread": len(answer.text) - len(text)}, problem)


def _texts(text: str, said: str, compat: bool) -> list[Item]:
    """Quotations; and what one who knows without quotations says is written, and on what."""
    known = [item_of("text", tuple(group.split(", "))) for group in re.findall(r"\((.*?)\)", said)]
    return known + [item_of("text", (quote,), compat=compat) for quote in quoted(text, compat=compat)]


def _claims(plan: Plan, reply: Reply) -> tuple[list[Item], int, str]:
    first, asked, second = reply.text.partition(BETWEEN)
    cut = reply.finish == "length"
    claims = plan.parsed(CLAIMS, first, cut and not asked)
    if claims is None:
        return [], 0, _unread(first)
    texts = [claim for (claim,) in claims.found]
    if not texts:
        return [], claims.malformed, ""
    questions = plan.parsed(QUESTIONS, second, cut)
    listed = [question for (question,) in questions.found] if questions else []
    malformed = claims.malformed + (questions.malformed if questions else 0)
    if plan.compat:  # RLAIF-V pairs them up to the end of the shorter list
        return claims_of(texts[: len(listed)], listed[: len(texts)]), malformed, ""
    problem = "" if len(listed) == len(texts) else f"{len(listed)} questions for {len(texts)} claims"
    return claims_of(texts, listed), malformed, problem


def _unread(reply: str) -> str:
    return "the reply holds no item and no NONE" if reply.strip() else "the reply is empty"


def follows_regex(engine: Engine) -> bool:
    """Can replies be held to a regular expression here?"""
    if "constraint" not in engine.can:
        return False
    local = getattr(engine, "constraints", None)
    return local is None or not local.why_not(Constraint(regex="a"))


def _is_world(engine: Engine) -> bool:
    from mmfast.engines.world import World

    return isinstance(engine, World)


def counted(rows: Iterator[dict[str, Any]]) -> dict[str, int]:
    """Items by kind, and everything that is not as it should be."""
    kinds: Counter[str] = Counter()
    odd: Counter[str] = Counter()
    for row in rows:
        kinds.update(item["kind"] for item in row["items"])
        odd["items without words of their own in the answer (span null)"] += sum(not i["span"] for i in row["items"])
        odd["claims without a question"] += sum(i["kind"] == "claim" and not i["question"] for i in row["items"])
        odd["pieces of replies that were no items"] += row["malformed"]
        odd["replies about an answer whose end was not read"] += row["unread"] > 0
        odd[f"replies: {row['problem']}"] += bool(row["problem"])
    named = {f"items of the kind {kind}": number for kind, number in kinds.most_common()}
    return named | {told: number for told, number in odd.items() if number}
