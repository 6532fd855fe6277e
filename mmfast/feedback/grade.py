"""The stage `grade`: what was checked of an answer's items becomes its claims and scores. It asks no engine.

    claims   minus the number of claims that do not hold (RLAIF-V's rule takes this)
    score    minus their share of the judged ones, or their number; aspects that are named twice count twice (DGPref's)
    reward   beta x (policy's log-prob - reference's), a token's mean unless asked otherwise (RLAIF-V's best of N);
             log-probs come from folders of `mmfast logprobs`, or from columns

An answer of which nothing was judged has no `claims` and no `score`: it is neither good nor bad, and is counted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmfast.engines.base import Picture
from mmfast.engines.stage import rows
from mmfast.feedback.answer import Answer, Claim, false_claims
from mmfast.feedback.answers import read_answers
from mmfast.feedback.computed import Done, write_folder
from mmfast.feedback.folders import current, whole_rows
from mmfast.feedback.items import KINDS, Item
from mmfast.feedback.logprobs import Scored
from mmfast.feedback.reading import manifest_of
from mmfast.feedback.seeds.rlaifv import question_of
from mmfast.job.runtime import Runtime

NAME, VERSION = "grade", 1
TRUE, FALSE = 1, -1  # verdicts; 0 and -2 (its thing is not there) judge nothing


@dataclass(frozen=True, kw_only=True)
class Grading:
    """How items are counted."""

    aspects: tuple[str, ...] = ()  # kinds of items that count, one named twice twice; empty: all of them, once
    average: bool = True  # the share of wrong items; else their number
    short: int = 0  # answers of fewer words lose the missing share of them; 0: length does not matter
    unjudged: str = "none"  # the score of an answer of which nothing was judged: "none", or "best" (0) as in DGPref
    beta: float = 0.0  # of the implicit reward; 0: none
    normalise: bool = True  # the reward is a token's mean
    policy: str = "logp"  # a folder of logprobs; or the field of meta, or of the row, that holds the log-prob
    reference: str = "ref_logp"

    def __post_init__(self) -> None:
        for name, good, told in (
            ("--short", self.short >= 0, "a number of words"),
            ("--unjudged", self.unjudged in ("none", "best"), "none or best"),
            ("--beta", self.beta >= 0, "at least 0"),
        ):
            if not good:
                raise ValueError(f"{name}: it must be {told}")
        if unknown := [aspect for aspect in self.aspects if aspect not in KINDS]:
            raise ValueError(f"--aspects: unknown aspect {unknown[0]!r}; known are {', '.join(KINDS)}")


def grade(
    answers: Path,
    items: Path | None,
    verdicts: Path | None,
    out: Path,
    grading: Grading,
    runtime: Runtime,
    *,
    images: str = "",
) -> Done:
    """Grade `answers` into the folder `out`, by the folders of decompose and check; or by their log-probs alone."""
    _check(items, verdicts, grading)
    apart = [path for path in (answers, items, verdicts) if path is not None]
    if any(out.resolve() in (path.resolve(), *path.resolve().parents) for path in apart):
        raise ValueError(f"--out {out} is or holds what is read: name another folder")
    # What was said, and what was found of it
    done = Done()
    rewards = Rewards(grading, done) if grading.beta else None
    by_answer = None if items is None else items_of(items, done.notes)
    checked = None if verdicts is None else Checked(verdicts, done.notes)
    grader = _Grader(grading, by_answer, checked, rewards, done)
    found = read_answers(answers, images=images, notes=done.notes)
    # A folder of rows, written whole
    made_by = {
        "stage": NAME,
        "version": VERSION,
        **asdict(grading),
        "policy": Path(grading.policy).name,
        "reference": Path(grading.reference).name,
        "input": answers.name,
        "items": "" if items is None else items.name,
        "verdicts": "" if verdicts is None else verdicts.name,
    }
    runtime.hold(out, "--out")
    runtime.from_main(lambda: write_folder(out, made_by, map(grader.row, found), done))
    if not done.counts["answers"]:
        raise ValueError(f"{answers} holds no answer")
    return done


def _check(items: Path | None, verdicts: Path | None, grading: Grading) -> None:
    """What can be said before anything is read."""
    if (items is None) != (verdicts is None):
        raise ValueError("--items and --verdicts go together: what was claimed, and whether it holds")
    if items is None and not grading.beta:
        raise ValueError("nothing to grade by: give --items and --verdicts, or --beta for the implicit reward")
    for path, stage, option in ((items, "decompose", "--items"), (verdicts, "check", "--verdicts")):
        if path is None:
            continue
        manifest = manifest_of(path)
        if manifest is None or manifest.get("stage") != stage:
            is_ = "is no folder of rows" if manifest is None else f"is a folder of {manifest.get('stage')}"
            raise ValueError(f"{option} {path} {is_}: a folder of mmfast {stage} is needed")


def items_of(folder: Path, notes: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The items of each answer, by its key."""
    _told(folder, notes)
    found = whole_rows(current(folder, manifest_of(folder) or {}, notes), folder, answer_key=str, items=list)
    return {row["answer_key"]: row["items"] for row in found}


class Checked:
    """The rows of a folder of check, by image and item."""

    def __init__(self, folder: Path, notes: list[str]) -> None:
        _told(folder, notes)
        self.notes = notes
        found = whole_rows(rows(folder), folder, image=str, kind=str, claim=str, verdict=int)
        self.rows = {(row["image"], Item.of(row).name): row for row in found}
        self.ids: dict[Any, str] = {}  # image -> id: each file is read once

    def of(self, one: Answer, item: dict[str, Any]) -> dict[str, Any] | None:
        """None where it was not checked."""
        return self.rows.get(("+".join(self._id(picture) for picture in one.images), Item.of(item).name))

    def _id(self, image: Any) -> str:
        """The image's name in the rows; "" where it is gone, so that nothing is found of it."""
        if image not in self.ids:
            try:
                self.ids[image] = (Picture(image) if isinstance(image, str) else Picture("", bytes(image))).id
            except OSError as error:
                self.ids[image] = ""
                self.notes.append(f"image {image} cannot be read ({error.strerror}): its verdicts are not found")
        return self.ids[image]


def _told(folder: Path, notes: list[str]) -> None:
    if (manifest_of(folder) or {}).get("complete") is not True:
        notes.append(f"{folder} is not complete: what it holds is read")


class _Grader:
    def __init__(
        self,
        grading: Grading,
        items: dict[str, list[dict[str, Any]]] | None,
        checked: Checked | None,
        rewards: Rewards | None,
        done: Done,
    ) -> None:
        self.grading, self.items, self.checked, self.rewards, self.done = grading, items, checked, rewards, done

    def row(self, one: Answer) -> dict[str, Any]:
        """The row of an answer."""
        # As it came
        counts = self.done.counts
        counts["answers"] += 1
        told: dict[str, Any] = {
            "key": one.key, "group": one.group, "prompt_id": one.prompt_id, "images": list(one.images),
            "prompt": list(one.prompt), "answer": one.text, "decode": one.decode, "sample": one.sample,
            "finish": one.finish, "scores": dict(one.scores), "claims": None, "meta": one.meta, "row": one.row,
        }  # fmt: skip
        # What it claims
        if self.items is not None and self.checked is not None:
            claims = self._claims(one, self.items, self.checked)
            counts["answers that were not decomposed"] += claims is None
            scores = {} if claims is None else self._scores(one, claims)
            counts["answers without a judged claim that counts"] += claims is not None and "score" not in scores
            told["scores"] |= scores
            if claims is not None:
                rows_of = [
                    [text, holds, None if span is None else list(span), p] for _, (text, holds, span, p) in claims
                ]
                told |= {"claims": rows_of, "questions": [question_of(item) for item in self.items[one.key]]}
        if self.rewards is not None:
            told["scores"] |= self.rewards.of(one)
        return told

    def _claims(
        self, one: Answer, items: dict[str, list[dict[str, Any]]], checked: Checked
    ) -> list[tuple[str, Claim]] | None:
        """(kind, claim) of each item; an item that was not checked is a claim that was not judged."""
        if one.key not in items:
            return None
        out = []
        for item in items[one.key]:
            row = checked.of(one, item)
            self.done.counts["items"] += 1
            self.done.counts["items not checked"] += row is None
            verdict, p = (row.get("verdict"), row.get("p_yes")) if row else (0, None)
            holds = {TRUE: True, FALSE: False}.get(verdict if isinstance(verdict, int) else 0)
            if p is not None and item.get("negated"):
                p = 1 - p
            span = item.get("span")
            out.append((item["kind"], Claim(item["claim"], holds, None if span is None else (span[0], span[1]), p)))
            self.done.counts["claims without a span"] += span is None
        return out

    def _scores(self, one: Answer, claims: list[tuple[str, Claim]]) -> dict[str, float]:
        """`claims` of all, `score` of the aspects that count."""
        every = [claim for _, claim in claims]
        aspects = self.grading.aspects or tuple(dict.fromkeys(kind for kind, _ in claims))
        counted = [claim for aspect in aspects for kind, claim in claims if kind == aspect and claim.holds is not None]
        if not any(claim.holds is not None for claim in every) and self.grading.unjudged == "none":
            return {}
        scores = {"claims": 0.0 - false_claims(every)}
        if counted or self.grading.unjudged == "best":
            wrong = false_claims(counted)
            share = wrong / (len(counted) or 1) if self.grading.average else wrong
            scores["score"] = 0.0 - share - self._missing(one)
        return scores

    def _missing(self, one: Answer) -> float:
        """The share of the words that a short answer lacks."""
        words, least = len(one.text.split()), self.grading.short
        self.done.counts["short answers"] += words < least
        return (least - words) / least if words < least else 0.0


class Rewards:
    """beta x (log pi - log ref) of answers: a token's mean, or the whole."""

    def __init__(self, grading: Grading, done: Done) -> None:
        self.grading, self.done = grading, done
        self.policy, self.reference = (
            Scored(Path(name), done.notes) if manifest_of(Path(name)) is not None else name
            for name in (grading.policy, grading.reference)
        )
        for option, side in (("--policy", self.policy), ("--reference", self.reference)):
            if isinstance(side, str) and Path(side).name != side:
                raise ValueError(f"{option} {side} is no folder of mmfast logprobs, and no name of a field")
        sides = [side for side in (self.policy, self.reference) if isinstance(side, Scored)]
        if len(sides) == 2 and sides[0].same_model(sides[1]):
            raise ValueError("--policy and --reference were scored by the same model: every reward would be 0")

    def of(self, one: Answer) -> dict[str, float]:
        """Nothing where a log-prob is missing, or where the two are of other tokens: that is counted."""
        logp, tokens = _logp(self.policy, one)
        ref, own = _logp(self.reference, one)
        if logp is None or ref is None or (self.grading.normalise and not tokens):
            self.done.counts["without log-probs"] += 1
            return {}
        if isinstance(self.reference, Scored) and tokens and tokens != own:
            self.done.counts["whose tokens are others for policy and reference: without a reward"] += 1
            return {}
        return {"reward": self.grading.beta * (logp - ref) / (tokens if self.grading.normalise else 1)}


def _logp(side: Scored | str, one: Answer) -> tuple[float | None, float]:
    """(The answer's log-prob, its number of tokens; 0 where that is not known.)"""
    if isinstance(side, Scored):
        return side.rows.get(one.key, (None, 0))
    logp, tokens = (
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
        for value in (one.meta.get(side), one.meta.get("tokens"))
    )
    return logp, tokens if tokens and tokens > 0 else 0
