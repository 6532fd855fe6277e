"""What MT-Bench's judge is asked about a turn, in the official prompts or ours, and what its reply says."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence

from mmfast.evals.asking import call
from mmfast.evals.base import Call, Question

MOST = 1e9  # a larger "rating" is a number of something else
NAMES = {"single": ("single-v1", "single-math-v1"), "pairwise": ("pair-v2", "pair-math-v1")}


def turn_call(
    key: str,
    question: Question,
    turn: int,
    kind: str,
    templates: Mapping[str, Mapping[str, str]],
    sides: Mapping[str, Sequence[str]],
) -> Call:
    """The judge's call about a turn, of one answer or of two; the second turn is shown with the first."""
    reference = question.truth["reference"]
    name = NAMES[kind][reference is not None] + ("-multi-turn" if turn == 2 else "")
    if name not in templates:
        raise ValueError(f"judge_prompts.jsonl has no prompt {name}: is it of another version?")
    filled = {f"ref_answer_{n}": text for n, text in enumerate(reference or (), 1)}
    for side, turns in sides.items():
        stem = f"answer_{side}" if side else "answer"
        filled |= {f"{stem}_{n}": text for n, text in enumerate(turns, 1)} if turn == 2 else {stem: turns[0]}
    asked = {f"question_{n}": text for n, text in enumerate(question.turns, 1)}
    filled |= asked if turn == 2 else {"question": question.turns[0]}
    try:
        text = templates[name]["prompt_template"].format(**filled)
    except (KeyError, IndexError) as error:
        raise ValueError(f"judge_prompts.jsonl, {name}: its template asks for {error}, an unknown place") from None
    return call(key, text, system=templates[name]["system_prompt"], max_tokens=2048)


def rated(reply: str) -> float | None:
    """The official rating: the first number in double brackets, else the first in single ones."""
    found = re.search(r"\[\[(\d+\.?\d*)\]\]", reply) or re.search(r"\[(\d+\.?\d*)\]", reply)
    try:
        rating = ast.literal_eval(found[1]) if found else None
    except (SyntaxError, ValueError):  # "08", on which the official script stops
        return None
    return rating if rating is None or rating < MOST else None


def strictly(reply: str) -> float | None:
    """The last number in double brackets, if it is from 1 to 10."""
    found = re.findall(r"\[\[\s*(\d+(?:\.\d+)?)(?:/10)?\s*\]\]", reply, re.ASCII)
    return float(found[-1]) if found and 1 <= float(found[-1]) <= 10 else None


def winner(reply: str) -> str | None:
    """A, B or C (a tie): the first of them in this order that is in the reply in double brackets."""
    return next((name for name in "ABC" if f"[[{name}]]" in reply), None)


def _own(kind: str, math: bool, both: bool) -> dict[str, str]:
    """Our words for one of the eight prompts."""
    sides = ("",) if kind == "single" else ("_a", "_b")
    numbers = ("_1", "_2") if both else ("",)
    parts = []
    for number in numbers:
        parts.append(f"Question:\n{{question{number}}}")
        if math:
            parts.append(f"A reference answer:\n{{ref_answer{number or '_1'}}}")
        parts += [f"Answer{side.upper().replace('_', ' ')}:\n{{answer{side}{number}}}" for side in sides]
    what = "the answer to the last question" if both else "the answer"
    ask = (
        f"Explain in a few sentences how good {what} is, then rate it from 1 to 10 in double brackets, as in [[5]]."
        if kind == "single"
        else f"Explain in a few sentences for which of the two {what} is better, whichever comes first or is longer; "
        "then end with [[A]], [[B]] or, for a tie, [[C]]."
    )
    return {"system_prompt": "You judge answers fairly.", "prompt_template": "\n\n".join([*parts, ask])}


OWN = {
    name + end: _own(kind, "math" in name, bool(end))
    for kind, names in NAMES.items()
    for name in names
    for end in ("", "-multi-turn")
}
