"""What a server honours, found by asking: a 200 says only that it was heard.

Each trial is a call of a few tokens whose answer shows whether a setting acted: two seeds at temperature 2 must differ,
the same seed twice must not; a choice must be one of those given; with an image the prompt must be longer.
"""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

from PIL import Image

from mmfast.engines.base import Constraint, Decode, Picture, Request
from mmfast.engines.server_calls import Endpoint, Refused, ServerFault
from mmfast.engines.server_labels import by_ids, by_prompt, first_place, label_ids
from mmfast.engines.server_wire import (
    CONTINUED,
    FORMS,
    LENGTHS,
    SPELLINGS,
    constrained,
    kind_of,
    settings,
    wired,
)

QUESTION = "Name ten different things, in any order."
WARM = 2.0
TOKENS = 16
TRIALS = {
    "choice": Constraint(choice=("zqx", "qzx")),
    "regex": Constraint(regex="[0-9][0-9][0-9]"),
    "schema": Constraint(
        schema='{"type": "object", "properties": {"a": {"type": "string", "enum": ["zqx"]}}, "required": ["a"], '
        '"additionalProperties": false}'
    ),
}
CUTS = {"top_p": 1e-6, "top_k": 1, "min_p": 0.999}  # each leaves the likeliest token alone


@dataclass(frozen=True, kw_only=True)
class Honours:
    """What acted. A text names the way in which it did; an empty one says that none was found."""

    form: str  # how settings are sent (server_wire.FORMS)
    length: str  # what it calls max_tokens
    repeats: bool = False  # two greedy answers were the same
    sample: bool = False
    seed: bool = False
    n: bool = False
    top_p: bool = False
    top_k: bool = False
    min_p: bool = False
    repetition_penalty: bool = False
    stop: bool = False
    prefix: bool = False
    images: bool = False
    logp: bool = False  # log-probs at temperature 1, whatever the temperature
    top_logprobs: int = 0
    token_ids: bool = False  # logprob_token_ids
    prompt_logprobs: bool = False
    choice: str = ""
    regex: str = ""
    schema: str = ""
    at_once: bool = False  # requests at the same time get the answers that they get alone

    @property
    def can(self) -> frozenset[str]:
        found = {
            "sample": self.sample,
            "repetition_penalty": self.repetition_penalty,
            "stop": True,  # cut here where the server does not
            "labels": bool(self.top_logprobs or self.token_ids or self.prompt_logprobs),
            "constraint": bool(self.choice or self.regex or self.schema),
            "logp": self.logp,
            "prefix": self.prefix,
            "images": self.images,
        }
        return frozenset(name for name, acts in found.items() if acts)

    def ignored(self, request: Request) -> str:
        """The first thing that a request asks for and the server passes over; empty if there is none."""
        plain = Decode(max_tokens=request.decode.max_tokens)
        for name in CUTS:
            if getattr(request.decode, name) != getattr(plain, name) and not getattr(self, name):
                return f"this server ignores {name}"
        if request.constraint is not None and not getattr(self, kind_of(request.constraint)):
            return f"this server ignores a constraint by {kind_of(request.constraint)}"
        return ""


def common(found: list[Honours]) -> Honours:
    """What all of them honour; raises where they would have to be asked in different ways."""
    values = [asdict(one) for one in found]
    for name in ("form", "length"):
        ways = sorted({value[name] for value in values})
        if len(ways) > 1:
            raise ServerFault(f"the servers take settings in different ways ({', '.join(ways)}): give one kind of them")
    shared: dict[str, Any] = {}
    for name, first in values[0].items():
        each = [value[name] for value in values]
        shared[name] = min(each) if isinstance(first, int) else first if len(set(each)) == 1 else ""
    return Honours(**shared)


class Handshake:
    def __init__(self, endpoint: Endpoint, model: str) -> None:
        self.endpoint, self.model = endpoint, model
        self.form, self.length = FORMS[0], LENGTHS[0]

    async def run(self) -> Honours:
        """Trials in order: each stands on what those before it found."""
        listed = await self._listed()
        greedy = await self._opened(listed)
        repeats = await self._text(seed=2) == greedy
        sample = await self._acts(self._samples)
        if not sample:
            form, self.form = self.form, FORMS[1]
            sample = await self._acts(self._samples)
            self.form = self.form if sample else form
        found: dict[str, Any] = {"repeats": repeats, "sample": sample}
        for name, trial in (
            ("seed", self._seeds),
            ("n", self._several),
            ("stop", lambda: self._stops(greedy)),
            ("prefix", lambda: self._continues(greedy)),
            ("repetition_penalty", lambda: self._penalises(greedy)),
            ("logp", self._logps),
            ("images", lambda: self._looks(found["logp"])),
            ("token_ids", self._shows_ids),
            ("prompt_logprobs", self._shows_prompt),
            ("at_once", lambda: self._at_once(found["seed"])),
        ):
            found[name] = (sample or name not in ("seed", "n")) and await self._acts(trial)
        for name, value in CUTS.items():
            found[name] = sample and await self._acts(partial(self._cuts, greedy, name, value))
        found["top_logprobs"] = await self._top()
        for kind, constraint in TRIALS.items():
            found[kind] = await self._spelling(constraint)
        return Honours(form=self.form, length=self.length, **found)

    # calls

    async def _ask(self, messages: Any = None, *, more: dict[str, Any] | None = None, **decode: Any) -> Any:
        messages = messages or [{"role": "user", "content": QUESTION}]
        seed = decode.pop("seed", 1)
        said = settings(Decode(**{"max_tokens": TOKENS} | decode), seed, self.form, self.length)
        body = {"model": self.model, "messages": messages, **said, **(more or {})}
        return await self.endpoint.chat(body, retries=1)

    async def _text(self, messages: Any = None, *, more: dict[str, Any] | None = None, **decode: Any) -> str:
        return text_of((await self._ask(messages, more=more, **decode)).choices[0])

    async def _acts(self, trial: Callable[[], Awaitable[bool]]) -> bool:
        try:
            return bool(await trial())
        except Refused:
            return False

    async def _listed(self) -> list[str]:
        """The models that the server names; none where it names none. Finds out whether it is there at all."""
        try:
            answer = await self.endpoint.get("/models")
            return [str(entry["id"]) for entry in answer["data"]]
        except (Refused, LookupError, TypeError):
            return []

    async def _opened(self, listed: list[str]) -> str:
        """A greedy answer, by the first way of saying settings that the server takes."""
        refusal = Refused("")
        for form, length in [(f, n) for f in (FORMS[0], FORMS[2]) for n in LENGTHS]:
            self.form, self.length = form, length
            try:
                return await self._text()
            except Refused as error:
                refusal = refusal if refusal.args[0] else error
                if error.status not in (400, 422):
                    break
        if listed and self.model not in listed:
            raise ServerFault(f"{self.endpoint.url} serves no model {self.model!r}; it serves {', '.join(listed[:8])}")
        raise ServerFault(f"the first question to {self.model!r} failed: {refusal}")

    # trials

    async def _samples(self) -> bool:
        return await self._text(temperature=WARM, seed=1) != await self._text(temperature=WARM, seed=2)

    async def _seeds(self) -> bool:
        return await self._text(temperature=WARM, seed=1) == await self._text(temperature=WARM, seed=1)

    async def _several(self) -> bool:
        answer = await self._ask(more={"n": 2}, temperature=WARM)
        return len(answer.choices) == 2 and text_of(answer.choices[0]) != text_of(answer.choices[1])

    async def _cuts(self, greedy: str, name: str, value: float) -> bool:
        settings: dict[str, Any] = {"temperature": WARM, name: value}
        return await self._text(**settings) == greedy

    async def _penalises(self, greedy: str) -> bool:
        return await self._text(repetition_penalty=8.0) != greedy

    async def _stops(self, greedy: str) -> bool:
        words = re.findall(r"[A-Za-z]{2}", greedy[1:])
        if not words:
            return False
        text = await self._text(stop=(words[-1],))
        return text.rstrip() == greedy[: greedy.index(words[-1])].rstrip()

    async def _continues(self, greedy: str) -> bool:
        """Where the server tells tokens, the prompt grows by those of the answer's beginning and no more; else, with
        its first words given, the greedy answer goes on as before and does not begin anew."""
        words = greedy.split()
        half = len(words) // 2
        start, rest = " ".join(words[:half]) or "yes", " ".join(words[half:])
        messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": start}]
        answer = await self._ask(messages, more=CONTINUED)
        try:
            ids = await label_ids(self.endpoint, self._body(), start)
            plain = await self._ask(max_tokens=1)
            return bool(answer.usage.prompt_tokens - plain.usage.prompt_tokens == len(ids))
        except (Refused, AttributeError):
            text = " ".join(text_of(answer.choices[0]).split())
            anew = not half or greedy.strip().startswith(rest[:12])
            return not anew and bool(text) and (text.startswith(rest[:12]) or rest.startswith(text[:12]))

    async def _looks(self, shows: bool) -> bool:
        """An image makes the prompt longer; and where log-probs are shown, another image makes others."""
        more = {"logprobs": True, "top_logprobs": 5} if shows else {}
        question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
        one, other = [await self._ask(wired(question, [sight(i)]), more=more, max_tokens=1) for i in (0, 1)]
        without = await self._ask(max_tokens=1)
        if shows and first_place(one) == first_place(other):
            return False
        return one.usage is None or without.usage is None or one.usage.prompt_tokens > without.usage.prompt_tokens

    async def _logps(self) -> bool:
        """The log-probs of the likeliest first tokens are the same at any temperature."""
        cold, warm = [
            first_place(await self._ask(more={"logprobs": True, "top_logprobs": 5}, max_tokens=1, temperature=t))
            for t in (0.0, WARM)
        ]
        both = cold.keys() & warm.keys()
        return len(both) > 1 and all(abs(cold[token] - warm[token]) < 0.05 for token in both)

    async def _top(self) -> int:
        for most in (20, 5):
            try:
                answer = await self._ask(more={"logprobs": True, "top_logprobs": most}, max_tokens=1)
                content = getattr(answer.choices[0].logprobs, "content", None)
                return min(most, len(content[0].top_logprobs or ())) if content else 0
            except Refused:
                continue
        return 0

    def _body(self) -> dict[str, Any]:
        said = settings(Decode(max_tokens=1), 1, self.form, self.length)
        return {"model": self.model, "messages": [{"role": "user", "content": QUESTION}], **said}

    async def _shows_ids(self) -> bool:
        ids = await label_ids(self.endpoint, self._body(), "yes")
        return bool(await by_ids(self.endpoint, self._body(), ids[:1]))

    async def _shows_prompt(self) -> bool:
        ids = await label_ids(self.endpoint, self._body(), "yes")
        return await by_prompt(self.endpoint, self._body(), "yes", ids) < 0

    async def _at_once(self, seeded: bool) -> bool:
        """`transformers serve` sets its one seed when a request comes in, for whatever is drawn next."""
        drawn: list[dict[str, Any]] = [{"temperature": WARM, "seed": seed} for seed in (1, 2, 3)] if seeded else [{}]
        trials = [{}, *drawn]
        alone = [await self._text(**trial) for trial in trials]
        self.endpoint.gate = asyncio.Semaphore(len(trials))
        try:
            return [*await asyncio.gather(*(self._text(**trial) for trial in trials))] == alone
        finally:
            self.endpoint.gate = asyncio.Semaphore(1)

    async def _spelling(self, constraint: Constraint) -> str:
        """The first spelling by which a constraint acts; the answer may end before the constraint is met."""
        for spelling in SPELLINGS:
            more = constrained(constraint, spelling)
            if not more:
                continue
            try:
                text = re.sub(r"\s", "", await self._text(more=more, max_tokens=32))
            except Refused:
                continue
            if text and _meets(text, constraint, spelling):
                return spelling
        return ""


def _meets(text: str, constraint: Constraint, spelling: str) -> bool:
    if constraint.regex:
        return re.fullmatch(constraint.regex, text) is not None
    wrapped = spelling == "response_format"
    choices = [f'{{"answer":"{choice}"}}' if wrapped else choice for choice in constraint.choice]
    return any(whole.startswith(text) for whole in (choices or ['{"a":"zqx"}']))


def text_of(choice: Any) -> str:
    return getattr(choice.message, "content", None) or ""


@cache
def sight(number: int) -> Picture:
    """A small picture of two colours, one of two."""
    colours = [(200, 30, 30), (30, 30, 200)]
    image = Image.new("RGB", (64, 64), colours[number])
    image.paste(colours[1 - number], (0, 0, 24, 64))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Picture(f"the handshake's picture {number}", buffer.getvalue())
