"""The stage `decompose`: an answer as items, the smallest things that can be checked alone, each with its characters.

A model reads the answer's text, not the image: once for each aspect. What is quoted needs no model, and of claims a
second reply makes questions. A reply that cannot be read is asked for again with other seeds; where none can
be read the aspect has no items, and the row says why.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from mmfast.engines.base import About, Constraint, Decode, Engine, Reply, Request, canonical
from mmfast.engines.stage import Tally
from mmfast.feedback.answers import Answer, read_answers
from mmfast.feedback.asking import Ask, Asking, Read
from mmfast.feedback.items import ASPECTS, Item, item_of, quoted
from mmfast.feedback.parsers import PARSERS, QUOTED, Pieces, claims_of, shape, written
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

    @property
    def whole(self) -> Prompt:
        """All its prompts as one, for keys and manifests."""
        digests = [[aspect, own.digest] for aspect, own in self.prompts.items()]
        digest = hashlib.sha256(canonical(digests).encode()).hexdigest()
        wording = self.prompts[self.aspects[0]].wording
        return Prompt("+".join(own.name for own in self.prompts.values()), digest, wording)

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
    reader = Reader(engine, plan)
    whole = plan.whole
    asking = Asking(
        name=NAME,
        version=VERSION,
        prompts=(whole,),
        asks=lambda: asks(islice(read_answers(source), limit or None), plan, whole),
        read=partial(read, plan),
        decode=plan.decode,
        retries=plan.retries,
        made_by=plan.made_by() | {"constrained": reader.constrained},
        counts=counted,
    )
    return asking.run(out, reader, runtime, source=source.name, whole=not limit, debug=debug, allow=allow)


def asks(answers: Iterable[Answer], plan: Plan, whole: Prompt) -> Iterator[Ask]:
    for answer in answers:
        text = plan.read_of(answer)
        yield Ask(
            row=answer.row,
            source=answer.source,
            prompt=whole,
            names=(answer.key,),
            messages=({"role": "user", "content": text or EMPTY},),
            about=About(task=NAME, say=json.dumps, question=answer.question, answers=(text,)),
            fields={"answer_key": answer.key, "images": list(answer.images)},
            more=answer,
        )


class Reader:
    """An engine whose requests are whole answers: it asks another one for each aspect, and for the questions of claims
    once these are there. Its replies are JSON: {aspect: reply}, and `cut`, the aspects whose reply reached max_tokens.
    What needs no model is not asked: quotations, and answers that are empty."""

    def __init__(self, engine: Engine, plan: Plan) -> None:
        self.engine, self.plan, self.can = engine, plan, engine.can
        self.constrained = not plan.compat and follows_regex(engine)
        # Also behind a record, and where that alone is left of it
        self.world = engine.identity().get("engine") == "world"
        self.kept: dict[str, dict[str, Reply]] = {}  # what could be read of answers that are asked for again

    def identity(self) -> dict[str, Any]:
        return self.engine.identity()

    @property
    def usage(self) -> Any:
        return getattr(self.engine, "usage", None)

    def answer(self, requests: Iterable[Request]) -> Iterator[Reply]:
        source = iter(requests)
        while window := list(islice(source, TOGETHER)):
            found = {request.key: self.kept.pop(request.key, {}) for request in window}
            self._ask([(r, aspect) for r in window for aspect in self._open(r, found[r.key])], found)
            self._ask([(r, QUESTIONS) for r in window if self._claims(found[r.key])], found)
            for request in window:
                yield self._whole(request, found[request.key])

    def _open(self, request: Request, found: dict[str, Reply]) -> list[str]:
        """The aspects that a model is to be asked for."""
        assert request.about is not None
        (text,) = request.about.answers
        return [aspect for aspect in self.plan.aspects if text.strip() and aspect not in found]

    def _claims(self, found: dict[str, Reply]) -> list[str]:
        """Those that have no questions yet."""
        reply = found.get(CLAIMS)
        if reply is None or reply.finish == "error" or QUESTIONS in found:
            return []
        pieces = self.plan.parsed(CLAIMS, reply.text, reply.finish == "length")
        return [claim for (claim,) in pieces.found] if pieces else []

    def _ask(self, wanted: list[tuple[Request, str]], found: dict[str, dict[str, Reply]]) -> None:
        asked = {}
        for request, aspect in wanted:
            if self.plan.prompts[aspect].wording.parser == QUOTED and not self.world:
                found[request.key][aspect] = Reply(key=request.key)
            else:
                made = self._request(request, aspect, self._claims(found[request.key]))
                asked[made.key] = made, request.key, aspect
        for reply in self.engine.answer(made for made, *_ in asked.values()):
            _, key, aspect = asked[reply.key]
            found[key][aspect] = reply

    def _request(self, request: Request, aspect: str, claims: list[str]) -> Request:
        own, about = self.plan.prompts[aspect], request.about
        assert about is not None
        given = {"answer": about.answers[0], "question": about.question, CLAIMS: "\n".join(f"- {c}" for c in claims)}
        regex = shape(aspect, len(claims) if aspect == QUESTIONS else 0) if self.constrained else ""
        return replace(
            request,
            key=f"{request.key}:{aspect}",
            messages=own.messages(0, **{name: given[name] for name in own.wording.slots}),
            constraint=Constraint(regex=regex) if regex else None,
            about=replace(about, say=partial(written, aspect), more={"aspect": aspect}),
        )

    def _whole(self, request: Request, found: dict[str, Reply]) -> Reply:
        silent = Reply(key="", finish="error", error="the engine gave no answer")
        due = [*self._open(request, {}), *([QUESTIONS] if self._claims(found) else [])]
        replies = {aspect: found.get(aspect, silent) for aspect in dict.fromkeys([*due, *found])}
        if wrong := [f"{aspect}: {reply.error}" for aspect, reply in replies.items() if reply.finish == "error"]:
            return Reply(key=request.key, finish="error", error="; ".join(wrong))
        cut = [aspect for aspect, reply in replies.items() if reply.finish == "length"]
        said: dict[str, Any] = {aspect: reply.text for aspect, reply in replies.items()}
        tokens = sum(reply.tokens for reply in replies.values())
        unread = read_all(self.plan, said | {"cut": cut}).problems
        if unread:  # what is asked for again next time
            self.kept[request.key] = {aspect: reply for aspect, reply in replies.items() if aspect not in unread}
        text = json.dumps(said | {"cut": cut}, ensure_ascii=False) if said else ""
        return Reply(key=request.key, text=text, tokens=tokens, finish="length" if cut else "stop")


@dataclass(frozen=True)
class Found:
    """All that the replies about an answer hold."""

    items: list[Item]
    malformed: int
    problems: dict[str, str]  # aspect -> why it could not be read


def read(plan: Plan, ask: Ask, reply: Reply) -> Read:
    """The items of an answer, each laid on the characters that it came from."""
    answer: Answer = ask.more
    text = plan.read_of(answer)
    if not text.strip():
        return Read({"items": [], "malformed": 0, "not_read": len(answer.text)}, EMPTY)
    found = read_all(plan, json.loads(reply.text), text)
    laid = [replace(item, span=span_of(answer.text, item.claim)).row() for item in found.items]
    fields = {"items": laid, "malformed": found.malformed, "not_read": len(answer.text) - len(text)}
    return Read(fields, "; ".join(f"{aspect}: {why}" for aspect, why in found.problems.items()))


def read_all(plan: Plan, said: dict[str, Any], text: str = "") -> Found:
    items: list[Item] = []
    malformed, problems = 0, {}
    for aspect in plan.aspects:
        reply, cut = said.get(aspect, ""), aspect in said["cut"]
        if plan.prompts[aspect].wording.parser == QUOTED:
            items += _texts(text, reply, plan.compat)
        elif (pieces := plan.parsed(aspect, reply, cut)) is None:
            problems[aspect] = "the reply holds no item and no NONE" if reply.strip() else "the reply is empty"
        elif aspect == CLAIMS:
            claims = [claim for (claim,) in pieces.found]
            made, odd, why = _questions(plan, claims, said.get(QUESTIONS, ""), QUESTIONS in said["cut"])
            items, malformed = items + made, malformed + pieces.malformed + odd
            problems |= {QUESTIONS: why} if why else {}
        else:
            items += [item_of(aspect, piece, compat=plan.compat) for piece in pieces.found]
            malformed += pieces.malformed
    return Found(items, malformed, problems)


def _texts(text: str, said: str, compat: bool) -> list[Item]:
    """Quotations; and what one who knows without quotations says is written, and on what."""
    known = [item_of("text", tuple(group.split(", "))) for group in re.findall(r"\((.*?)\)", said)]
    return known + [item_of("text", (quote,), compat=compat) for quote in quoted(text, compat=compat)]


def _questions(plan: Plan, claims: list[str], reply: str, cut: bool) -> tuple[list[Item], int, str]:
    """Claims with their questions; how many pieces of the reply were none; and why they could not be read."""
    pieces = plan.parsed(QUESTIONS, reply, cut) if claims else Pieces()
    listed = [question for (question,) in pieces.found] if pieces else []
    malformed = pieces.malformed if pieces else 0
    if plan.compat:  # RLAIF-V pairs them up to the end of the shorter list
        return claims_of(claims[: len(listed)], listed[: len(claims)]), malformed, ""
    problem = "" if len(listed) == len(claims) else f"{len(listed)} questions for {len(claims)} claims"
    return claims_of(claims, listed), malformed, problem


def follows_regex(engine: Engine) -> bool:
    """Can replies be held to a regular expression here?"""
    if "constraint" not in engine.can:
        return False
    local = getattr(getattr(engine, "engine", None) or engine, "constraints", None)  # also behind a record
    return local is None or not local.why_not(Constraint(regex="a"))


def counted(rows: Iterator[dict[str, Any]]) -> dict[str, int]:
    """Items by kind, and everything that is not as it should be."""
    kinds: Counter[str] = Counter()
    odd: Counter[str] = Counter()
    for row in rows:
        kinds.update(item["kind"] for item in row["items"])
        odd["items without words of their own in the answer (span null)"] += sum(not i["span"] for i in row["items"])
        odd["claims without a question"] += sum(i["kind"] == "claim" and not i["question"] for i in row["items"])
        odd["pieces of replies that were no items"] += row["malformed"]
        odd["answers whose end was not read"] += row["not_read"] > 0
        odd["answers without items"] += not row["items"]
        odd.update(f"answers: {why}" for why in row["problem"].split("; ") if why)
    named = {f"items of the kind {kind}": number for kind, number in kinds.most_common()}
    return named | {told: number for told, number in odd.items() if number}
