"""What the model says in a report: answers to the same prompts at the first evaluation and at the last (or of several
runs), beside the data's own responses, with the words that differ marked; then what changed in the words of all."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

from mmfast import pages
from mmfast.evals import words as phrases

OPEN = 8  # samples that are not folded away
STYLE = """
.sample{display:grid;grid-template-columns:12rem minmax(0,1fr);gap:1.2rem;padding:1rem 0}
.sample{border-top:1px solid var(--line)}.sample.bare{grid-template-columns:minmax(0,1fr)}
.sample img{width:100%;border:1px solid var(--line);border-radius:.4rem}
.said{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(18rem,100%),1fr));gap:.7rem}.said+.said{margin-top:.7rem}
.said div{background:var(--field);border-radius:.4rem;padding:.5rem .7rem}.said h4{margin:0;font-size:.82rem}
.said p{margin:.2rem 0 0;white-space:pre-wrap}.said .yes h4{color:var(--good)}.said .no h4{color:var(--bad)}
.sample .asked{color:var(--soft);margin:0 0 .6rem;white-space:pre-line}.sample details{margin-top:.6rem}
@media (max-width:44rem){.sample{grid-template-columns:minmax(0,1fr)}.sample img{max-width:12rem}}"""


class Run(Protocol):
    @property
    def label(self) -> str: ...
    @property
    def samples(self) -> list[dict[str, Any]]: ...


Prompt = tuple[str, tuple[str, ...], int]  # text, pictures, and which of those that are alike in both


def parts(told: Sequence[Run]) -> Iterator[str]:
    """HTML; nothing where no run has samples."""
    told = [run for run in told if run.samples]
    if not told:
        return
    answers = [of_prompts(run.samples) for run in told]
    cards = [_card(prompt, told, answers) for prompt in dict.fromkeys(p for some in answers for p in some)]
    yield (
        '<h2>Samples</h2><p class="soft">Greedy answers to held-out prompts. Marked are the words that differ: '
        "<del>gone</del> and <ins>come</ins> from the first answer to the last, and between rejected and chosen.</p>"
    )
    yield from cards[:OPEN]
    if len(cards) > OPEN:
        yield f"<details><summary>{len(cards) - OPEN} more</summary>{''.join(cards[OPEN:])}</details>"
    yield '<h2>What changed in the words</h2><p class="soft">Share of the answers that have a phrase.</p>'
    for run in told:
        yield _words(run, heading=len(told) > 1)


def of_prompts(samples: Sequence[dict[str, Any]]) -> dict[Prompt, list[dict[str, Any]]]:
    """The rows of each prompt, by their steps."""
    found: dict[Prompt, list[dict[str, Any]]] = {}
    for row in samples:
        prompt, number = (str(row["prompt"]), tuple(row.get("images", ()))), 0
        while (known := found.get((*prompt, number))) and known[-1]["step"] == row["step"]:
            number += 1
        found.setdefault((*prompt, number), []).append(row)
    return found


def _card(prompt: Prompt, told: Sequence[Run], answers: Sequence[dict[Prompt, list[dict[str, Any]]]]) -> str:
    text, pictures, _ = prompt
    asked = re.sub(r"\s*\n\s*", "\n", text.strip())
    rows = [(run.label, some[prompt]) for run, some in zip(told, answers, strict=True) if prompt in some]
    first = rows[0][1][0]
    # Answers: the earliest, then the last of each run, marked against it
    boxes, begun = [], _answer(first)
    lasts = [(label, own[-1]) for label, own in rows if own[-1] is not first]
    marked = [pages.differing(begun, _answer(row)) for _, row in lasts]
    names = [f"{label}, step {row['step']}" if len(told) > 1 else f"step {row['step']}" for label, row in lasts]
    old = marked[0][0] if len(marked) == 1 else html.escape(begun)
    one = len(told) == 1 or (not first["step"] and all(_answer(own[0]) == begun for _, own in rows))  # base model
    origin = "" if one else f"{rows[0][0]}, "
    boxes.append(_box(f"{origin}step {first['step']}", old))
    boxes += [_box(name, new) for name, (_, new) in zip(names, marked, strict=True)]
    # The data's own
    chosen, rejected = (str(first.get(side) or "").strip() for side in ("chosen", "rejected"))
    no, yes = pages.differing(rejected, chosen) if rejected else ("", html.escape(chosen))
    own = _box("rejected, in the data", no, "no") if rejected else ""
    own += _box("chosen, in the data", yes, "yes") if chosen else ""
    between = "".join(_between(label if len(told) > 1 else "", rows_of) for label, rows_of in rows)
    shown = "".join(pages.picture(one, "the picture that is asked about") for one in pictures)
    left = f"<div>{shown}</div>" if pictures else ""
    return (
        f'<section class="sample{"" if pictures else " bare"}">{left}<div><p class="asked">{html.escape(asked)}</p>'
        f'<div class="said">{"".join(boxes)}</div><div class="said">{own}</div>{between}</div></section>'
    )


def _answer(row: dict[str, Any]) -> str:
    return str(row["answer"]).strip()


def _box(title: str, said: str, kind: str = "") -> str:
    return f'<div class="{kind}"><h4>{html.escape(title)}</h4><p>{said or "<i>nothing</i>"}</p></div>'


def _between(label: str, rows: Sequence[dict[str, Any]]) -> str:
    """The answers of the steps between, each marked against the one before it."""
    if len(rows) < 3:
        return ""
    boxes = [
        _box(f"step {row['step']}", pages.differing(_answer(before), _answer(row))[1])
        for before, row in pairwise(rows[:-1])
    ]
    steps = ", ".join(str(row["step"]) for row in rows[1:-1])
    title = f"{label + ': ' if label else ''}between, at step {steps}"
    return f'<details><summary>{html.escape(title)}</summary><div class="said">{"".join(boxes)}</div></details>'


def _words(run: Run, *, heading: bool) -> str:
    """Of the answers, from the first step with samples to the last; with one such step, from the truths to it."""
    answers: dict[int, list[str]] = {}
    for row in run.samples:
        answers.setdefault(row["step"], []).append(str(row["answer"]))
    first, last = min(answers), max(answers)
    truths = [str(row["chosen"]) for row in run.samples if row["step"] == last and row.get("chosen")]
    before = answers[first] if first < last else truths
    of = f"{len(answers[last])} answers, and {len(truths)} truths"
    changes = phrases.changed(before, answers[last], truths)
    title = f"{run.label}: {of}" if heading else of
    return phrases.as_html(changes, title, f"step {first}" if first < last else "truths", f"step {last}")
