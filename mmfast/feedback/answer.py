"""What an answer is: one reply to a prompt about images, its scores, and what it claims. Answers of a group compete."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

from mmfast.data.problems import BadRow
from mmfast.data.text.templates import text_of


class Claim(NamedTuple):
    """One thing that an answer says; in rows [text, holds, span, p]."""

    text: str
    holds: bool | None  # None: it was not judged
    span: tuple[int, int] | None = None  # the characters of the answer that say it, where there are such
    p: float | None = None  # that it holds

    def as_row(self) -> list[Any]:
        """Without the parts at its end that are not known."""
        parts = [self.text, self.holds, None if self.span is None else list(self.span), self.p]
        return parts if self.p is not None else parts[:3] if self.span is not None else parts[:2]


@dataclass(frozen=True, kw_only=True)
class Answer:
    key: str  # names it in the rows of later stages
    row: int  # of the input: later stages keep its order
    source: str  # for messages
    group: str
    prompt_id: str = ""
    images: tuple[Any, ...] = ()  # whole paths, in the order of their parts; or bytes that a row of a file holds
    prompt: tuple[dict[str, Any], ...] = ()  # messages; the last is the user's
    text: str = ""
    sample: int = 0
    decode: str = ""
    finish: str = "stop"  # "length": cut
    scores: dict[str, float] = field(default_factory=dict)  # the only numbers that answers may be ranked by
    claims: tuple[Claim, ...] | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """The text of the last question."""
        return text_of(self.prompt[-1]).strip()

    @property
    def reference(self) -> str:
        """A true answer that came with the prompt, or that a judge gave; empty if there is none."""
        return str(self.meta.get("reference") or "")


def grouped(answers: Iterable[Answer]) -> Iterator[list[Answer]]:
    """The answers of each group, in the order of its first one. Rows of a group stand together in a folder of answers,
    except where one prompt was asked in several rows: then the group comes back, and is put together here."""
    found: dict[str, list[Answer]] = {}
    for group, some in groupby(answers, key=lambda answer: answer.group):
        found.setdefault(group, []).extend(some)
    yield from found.values()


def read_claims(value: Any, answer: str) -> tuple[Claim, ...] | None:
    """A row's claims, [[text, holds(, span(, p))], ...], checked against the answer that makes them."""
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise BadRow("claims", f"claims are a list of [text, holds, span, p], not a {type(value).__name__}")
    return tuple(_claim(one, answer) for one in value)


def _claim(value: Any, answer: str) -> Claim:
    if not isinstance(value, list | tuple) or not 2 <= len(value) <= 4 or not isinstance(value[0], str):
        raise BadRow("claims", f"a claim is [text, holds, span, p], not {str(value)[:80]}")
    text, holds, span, p = (*value, None, None)[:4]
    if span is not None:
        if not (isinstance(span, Sequence) and len(span) == 2 and all(type(n) is int for n in span)):
            raise BadRow("claims", f"the span of the claim {text[:60]!r} is not [from, to): {str(span)[:40]}")
        if not 0 <= span[0] < span[1] <= len(answer):
            raise BadRow("claims", f"the span {list(span)} of the claim {text[:60]!r} lies outside the answer")
        span = span[0], span[1]
    return Claim(text, None if holds is None else bool(holds), span, None if p is None else float(p))


def false_claims(claims: Iterable[Claim]) -> int:
    return sum(claim.holds is False for claim in claims)
