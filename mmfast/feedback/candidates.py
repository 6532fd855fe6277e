"""Tables of scored answers: one row an answer, grouped by what it answers. What pairs and SFT sets are chosen from."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmfast.data.containers.read import iterate
from mmfast.data.formats.base import not_unpaired
from mmfast.data.formats.messages import answer, image_list, question
from mmfast.data.problems import BadRow, Problem
from mmfast.data.records import Record

QUESTION = ("question", "prompt", "text")
ANSWER = ("answer", "response", "cur_candidate_answer", "output", "caption")
IMAGE = ("image", "image_path", "images")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One answer. Those with the same `group` compete; in DGPref they answer different questions about one image."""

    group: str
    images: tuple[Any, ...]
    question: str
    text: str
    scores: dict[str, float]
    source: str = ""
    claims: tuple[tuple[str, bool], ...] | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def prompt(self) -> tuple[dict, ...]:
        return (question(self.question, len(self.images)),)


def _first(row: dict, names: tuple[str, ...]) -> Any:
    return next((row[n] for n in names if row.get(n) is not None), None)


def read_candidates(
    path: str | Path, *, answer_column: str = "", problems: list[Problem] | None = None
) -> Iterator[Candidate]:
    """Rows with a question, an answer and numbers. Every column of numbers, as such or as text, is a score; `claims` is
    [[text, holds], ...] and gives the score `claims`: minus the number of those that do not hold."""
    for row in iterate(path):
        with bad_rows(problems, row.source):
            if isinstance(row.value, BadRow):
                raise row.value
            yield _candidate(row.value, row.source, (answer_column,) if answer_column else ANSWER)


@contextmanager
def bad_rows(problems: list[Problem] | None, source: str) -> Iterator[None]:
    """A bad row inside is an error that names `source`, or, where `problems` is given, is listed and passed over."""
    try:
        yield
    except BadRow as error:
        if problems is None:
            raise ValueError(f"{source}: {error}") from None
        problems.append(Problem(source, error.kind, str(error)))


def _candidate(value: dict, source: str, answers: tuple[str, ...]) -> Candidate:
    asked, text = _first(value, QUESTION), _first(value, answers)
    if not isinstance(asked, str) or not isinstance(text, str):
        raise BadRow(
            "format",
            f"a scored answer needs a question ({', '.join(QUESTION)}) and an answer ({', '.join(answers)}) as texts; "
            f"the row has {', '.join(sorted(value))}",
        )
    not_unpaired(value)
    texts = {*QUESTION, *ANSWER, *answers, *IMAGE, *(k for k in value if k in ("id", "idx") or k.endswith("_id"))}
    scores = {k: n for k, v in value.items() if k not in texts and (n := _number(v)) is not None}
    claims = None
    if value.get("claims") is not None:
        claims = tuple((str(c[0]), bool(c[1])) for c in value["claims"])
        facts = value.get("facts")
        if facts is not None and len(facts) != len(claims):
            raise BadRow("claims", f"{len(claims)} judged claims for {len(facts)} facts")
        scores["claims"] = -float(sum(not holds for _, holds in claims))
    images = image_list(_first(value, IMAGE))
    return Candidate(
        group=f"{images!r}\n{asked}",
        images=images,
        question=asked,
        text=text,
        scores=scores,
        source=source,
        claims=claims,
    )


def _number(value: Any) -> float | None:
    """A number, or one written as text ("4"), as judges' tables have them; none that is not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def complete(
    candidates: Iterable[Candidate], needed: Callable[[Candidate], Any], problems: list[Problem] | None
) -> Iterator[Candidate]:
    """The candidates that have what is needed of them; the others are bad rows."""
    for candidate in candidates:
        with bad_rows(problems, candidate.source):
            needed(candidate)
            yield candidate


def grouped(candidates: Iterable[Candidate]) -> dict[str, list[Candidate]]:
    """Groups in order of their first answer."""
    out: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        out.setdefault(candidate.group, []).append(candidate)
    return out


OPERATORS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


def score_of(expression: str) -> Any:
    """ "Helpfulness + 0.5 * Correctness" as a function of a candidate: numbers, score names, + - * /, min and max."""
    try:
        tree = ast.parse(expression, mode="eval").body
    except SyntaxError:
        raise ValueError(f"--score: {expression!r} is not an expression") from None

    def value(node: ast.AST, scores: Mapping[str, float]) -> float:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return node.value
        if isinstance(node, ast.Name):
            if node.id not in scores:
                raise BadRow("score", f"no score {node.id} (it has {', '.join(sorted(scores)) or 'none'})")
            return scores[node.id]
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.left, scores), value(node.right, scores))
        if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.operand, scores))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("min", "max"):
            return {"min": min, "max": max}[node.func.id](value(a, scores) for a in node.args)
        raise ValueError(f"--score: {ast.unparse(node)!r} is not a number, a score, + - * / or min and max")

    def score(candidate: Candidate) -> float:
        try:
            return value(tree, candidate.scores)
        except ZeroDivisionError:
            raise BadRow("score", f"{expression} divides by zero") from None

    return score


def pair_record(number: int, better: Candidate, worse: Candidate, scores: tuple[float, float]) -> Record:
    same = better.question == worse.question
    claims = {k: c.claims for k, c in (("chosen", better), ("rejected", worse)) if c.claims is not None}
    return Record(
        id=f"pair:{number}",
        source=better.source,
        images=better.images,
        prompt=better.prompt() if same else (),
        chosen_prompt=None if same else better.prompt(),
        rejected_prompt=None if same else worse.prompt(),
        chosen=(answer(better.text),),
        rejected=(answer(worse.text),),
        scores={"chosen": scores[0], "rejected": scores[1]},
        meta={**({"claims": {k: [list(c) for c in v] for k, v in claims.items()}} if claims else {})},
    )


def sft_record(number: int, candidate: Candidate) -> Record:
    return Record(
        id=f"sft:{number}",
        source=candidate.source,
        images=candidate.images,
        prompt=candidate.prompt(),
        chosen=(answer(candidate.text),),
        scores=candidate.scores or None,
    )
