"""Scores of answers, and the records that chosen answers become."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmfast.data.formats.messages import answer
from mmfast.data.problems import BadRow, Problem, pass_over
from mmfast.data.records import Record
from mmfast.data.text.segments import without_blanks
from mmfast.feedback.answer import Answer


@contextmanager
def bad_rows(problems: list[Problem] | None, source: str) -> Iterator[None]:
    """A bad row inside is an error that names `source`, or, where `problems` is given, is listed and passed over."""
    try:
        yield
    except BadRow as error:
        pass_over(source, error, problems)


def complete(
    answers: Iterable[Answer], needed: Callable[[Answer], Any], problems: list[Problem] | None
) -> Iterator[Answer]:
    """The answers that have what is needed of them; the others are bad rows."""
    for one in answers:
        with bad_rows(problems, one.source):
            needed(one)
            yield one


OPERATORS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


def score_named(name: str, scores: Mapping[str, float]) -> float:
    """By its name, however that is capitalised: judges call one metric Helpfulness or helpfulness."""
    found = [name] if name in scores else [own for own in scores if own.casefold() == name.casefold()]
    if len(found) != 1:
        raise BadRow("score", f"no score {name} (it has {', '.join(sorted(scores)) or 'none'})")
    return scores[found[0]]


def score_of(expression: str) -> Any:
    """ "Helpfulness + 0.5 * Correctness" as a function of an answer: numbers, score names, + - * /, min and max."""
    try:
        tree = ast.parse(expression, mode="eval").body
    except SyntaxError:
        raise ValueError(f"--score: {expression!r} is not an expression") from None

    def value(node: ast.AST, scores: Mapping[str, float]) -> float:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return node.value
        if isinstance(node, ast.Name):
            return score_named(node.id, scores)
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.left, scores), value(node.right, scores))
        if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.operand, scores))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("min", "max"):
            return {"min": min, "max": max}[node.func.id](value(a, scores) for a in node.args)
        raise ValueError(f"--score: {ast.unparse(node)!r} is not a number, a score, + - * / or min and max")

    def score(answer: Answer) -> float:
        try:
            return value(tree, answer.scores)
        except ZeroDivisionError:
            raise BadRow("score", f"{expression} divides by zero") from None

    return score


def pair_record(
    number: int,
    better: Answer,
    worse: Answer,
    scores: tuple[float, float] | None = None,
    *,
    weight: float | None = None,
    spans: dict[str, list[tuple[int, int]]] | None = None,
    meta: dict[str, Any] | None = None,
) -> Record:
    """`spans`: the characters of each side that matter, by default those of its false claims. `weight`: what they
    weigh; without one they are marked, and weigh objective.gamma."""
    # What was claimed, and where
    same = better.prompt == worse.prompt
    sides = {"chosen": better, "rejected": worse}
    claims = {side: [claim.as_row() for claim in one.claims] for side, one in sides.items() if one.claims is not None}
    spans = spans or {side: false_spans(one) for side, one in sides.items()}
    segments = {
        side: [span if weight is None else (*span, weight) for span in found if span[0] < span[1]]
        for side, found in spans.items()
    }
    return Record(
        id=f"pair:{number}",
        source=better.source,
        images=better.images,
        prompt=better.prompt if same else (),
        chosen_prompt=None if same else better.prompt,
        rejected_prompt=None if same else worse.prompt,
        chosen=(answer(better.text),),
        rejected=(answer(worse.text),),
        segments={side: found for side, found in segments.items() if found} or None,
        scores=None if scores is None else {"chosen": scores[0], "rejected": scores[1]},
        meta={**({"claims": claims} if claims else {}), **_numbered(better, worse), **(meta or {})},
    )


def _numbered(better: Answer, worse: Answer) -> dict[str, Any]:
    """DGPref's captions go by their image's name and the number of their prompt."""
    if not {"name", "k"} <= better.meta.keys() & worse.meta.keys():
        return {}
    return {"name": better.meta["name"], "prefer_idx": better.meta["k"], "reject_idx": worse.meta["k"]}


def false_spans(one: Answer) -> list[tuple[int, int]]:
    """The characters of the claims that do not hold, each stretch once, in the answer's order."""
    spans = {claim.span for claim in one.claims or () if claim.holds is False and claim.span is not None}
    return sorted({without_blanks(one.text, *span) for span in spans})


def sft_record(number: int, one: Answer) -> Record:
    return Record(
        id=f"sft:{number}",
        source=one.source,
        images=one.images,
        prompt=one.prompt,
        chosen=(answer(one.text),),
        scores=one.scores or None,
    )
