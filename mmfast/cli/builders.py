"""`mmfast data pairs|sft|steerlm`: data files made from answers and what was said of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from mmfast.cli.chair import OBJECTS, SYNONYMS, by_objects, needs_objects
from mmfast.config.schema import Data

SCORES = typer.Argument(help="Answers with scores: a folder of judge or grade (pairs: critique, correct), or a file.")
TARGET = typer.Option(..., "--out", "-o", help="The file to write, in the canonical format.")
ON_ERROR = typer.Option("raise", help="A bad row, or one without a score it needs: raise or drop.")
ANSWER = typer.Option("", help="Column of the answer; default: the usual names. reference: the true answers instead.")
ANSWERS = typer.Option(None, help="The answers that a folder names by keys; default: its input, beside it.")
QUESTIONS = typer.Option(None, help="A file of what was asked, joined by question_id or id.")
KEEP_CUT = typer.Option(False, "--keep-cut", help="Keep answers that were cut at max_tokens.")
IMAGES = typer.Option("", help=Data.model_fields["images"].description)
OPTION = typer.Option([], "--option", help="An option of the reader, NAME=VALUE (docs/formats.md); may be repeated.")
CAPTIONS = typer.Option(None, help="dgpref: the raw captions beside expert scores.")
SKIP = typer.Option(None, help="dgpref: a file of object words too vague to judge, one a line.")
FIRST = typer.Option("", help="Keep the first so many pairs (68414), or this share of them (0.5: DGPref's HALF_VSG).")
WEIGHT = typer.Option(
    None,
    help="What tokens of false claims weigh (segments = record); default: they are marked, and weigh gamma.",
    min=0,
)


def options_of(texts: list[str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--option {text!r} is not NAME=VALUE")
        try:
            out[name] = json.loads(value)
        except ValueError:
            out[name] = value
    return out


class Making:
    """A data file made from answers, which is not one of those that are read. Bad rows are listed in `problems`; where
    that is None, the first one ends the command."""

    def __init__(
        self,
        scores: Path,
        out: Path,
        images: str,
        on_error: str,
        *more: Path | None,
        keep_cut: bool = False,
        **given: Any,
    ) -> None:
        from mmfast.data.convert import Conversion

        if on_error not in ("raise", "drop"):
            raise ValueError(f"--on-error: {on_error!r} is not raise or drop")
        for source in (scores, *more):
            if source is not None:
                _apart(out, source)
        self.scores, self.out, self.result, self.keep_cut = scores, out, Conversion(), keep_cut
        self.root = Path(images) if images else scores.parent
        self.problems = self.result.problems if on_error == "drop" else None
        self.notes: list[str] = []
        self.cut = self.empty = 0
        self.reading: dict[str, Any] = {"images": images, "whole": False, **given}

    def answers(self) -> Iterator[Any]:
        from mmfast.feedback.answers import read_answers

        found = read_answers(self.scores, **self.reading, problems=self.problems, notes=self.notes)
        return (one for one in found if self.whole(one))

    def whole(self, *answers: Any) -> bool:
        """None of them says nothing or was cut (if that matters); the others are counted."""
        empty = any(not one.text.strip() for one in answers)
        cut = not empty and not self.keep_cut and any(one.finish == "length" for one in answers)
        self.empty, self.cut = self.empty + empty, self.cut + cut
        return not empty and not cut

    def write(self, records: Iterable[Any]) -> None:
        """The records, and lines on what is not among them."""
        from mmfast.data.convert import write_records

        left = [f"{self.empty} left out: they are empty"] if self.empty else []
        left += [f"{self.cut} left out: they were cut at max_tokens (--keep-cut keeps them)"] if self.cut else []
        try:
            write_records(iter(records), self.out, "trl", self.root, self.result)
        except ValueError as error:
            raise ValueError("; ".join([str(error), *left, *self.notes])) from None
        typer.echo("\n".join([*self.notes, *left, *self.result.lines()]))


def _apart(out: Path, source: Path) -> None:
    """What is read is not written over, and no folder of rows is written into."""
    from mmfast.data.convert import keep_apart
    from mmfast.feedback.reading import manifest_of

    if manifest_of(source) is None:
        keep_apart(out, source)
    elif source.resolve() in out.resolve().parents:
        raise ValueError(f"{out} lies in the folder of rows {source}: write to another place")


def pairs(
    scores: Path = SCORES,
    out: Path = TARGET,
    rule: str = typer.Option(
        ...,
        help="mllm_dpo, mllm_dpo_minmax, rlaifv, dgpref; chair: fewer objects that are not there; reward: highest "
        "implicit reward over lowest; sima: a critic's verdicts; rlhfv: people's corrections.",
    ),
    score: str = typer.Option("", help="Score expression instead of the rule's own, e.g. 'Helpfulness + Coherence'."),
    margin: float = typer.Option(-1.0, help="Least difference of a pair; default: the rule's."),
    per_prompt: int = typer.Option(-1, help="Most pairs a prompt (0: all); default: the rule's."),
    balance: bool = typer.Option(None, help="Length balance; default: the rule's."),
    captions: Path = CAPTIONS,
    aspects: str = typer.Option("", help="dgpref: comma list; one named twice counts twice."),
    sums: bool = typer.Option(False, "--sum", help="dgpref: number of wrong items instead of their share."),
    skip: Path = SKIP,
    objects: Path = OBJECTS,
    synonyms: Path = SYNONYMS,
    first: str = FIRST,
    answer: str = ANSWER,
    answers: Path = ANSWERS,
    questions: Path = QUESTIONS,
    images: str = IMAGES,
    keep_cut: bool = KEEP_CUT,
    weight: float = WEIGHT,
    on_error: str = typer.Option("", help="A bad row: raise or drop; default: raise, for sima's files drop."),
    seed: int = typer.Option(0),
    option: list[str] = OPTION,
) -> None:
    """Choose preference pairs from scored answers by a published rule, or take those of a critic or of people."""
    from mmfast.feedback.rules import RULES, choose_pairs, first_of, read_first

    given = {"answer": answer, "answers": answers, "questions": questions}
    # A critic or a person has chosen already
    if rule in CHOSEN:
        if score or margin >= 0 or per_prompt >= 0 or balance is not None or captions or answer or questions:
            raise ValueError(f"--rule {rule} takes {CHOSEN[rule]}: nothing is scored, so no option of scores applies")
        _without_captions(captions, aspects, sums, skip, option)
        needs_objects(rule, objects, synonyms)
        if first:
            raise ValueError(f"--first is for scored answers; cut what --rule {rule} makes by data convert --share")
        _taken(rule, scores, out, images, on_error, answers, keep_cut, weight)
        return
    # The rule, changed as asked
    if rule not in RULES:
        raise ValueError(f"--rule: unknown rule {rule!r}; choose one of {', '.join((*RULES, *CHOSEN))}")
    needs_objects(rule, objects, synonyms)
    most = read_first(first)
    changes: dict[str, Any] = {"score": score} if score else {}
    changes |= {k: v for k, v in (("margin", margin), ("per_prompt", per_prompt)) if v >= 0}
    changes |= {} if balance is None else {"balance": balance}
    # The answers: captions judged by experts, or scored ones
    making = Making(scores, out, images, on_error or "raise", captions, answers, questions, keep_cut=keep_cut, **given)
    if captions is not None:
        if answer or answers or questions:
            raise ValueError("--answer, --answers and --questions are for scored answers; --captions gives DGPref's")
        found = _experts(making, captions, aspects, sums, skip, option)
    else:
        _without_captions(captions, aspects, sums, skip, option)
        found = making.answers()
    if rule == "chair":
        found = by_objects(found, objects, synonyms, making.problems)
    records, counts = choose_pairs(found, replace(RULES[rule], **changes), seed, making.problems, weight=weight)
    for name, value in counts.items():
        typer.echo(f"{name}: {value}")
    kept = first_of(records, most)
    if len(kept) < len(records):
        typer.echo(f"first of them: {len(kept)}")
    making.write(kept)


CHOSEN = {"sima": "a critic's verdicts", "rlhfv": "people's corrections"}


def _taken(
    rule: str, scores: Path, out: Path, images: str, on_error: str, answers: Path | None, keep_cut: bool, weight: Any
) -> None:
    """The pairs of a folder of critique or correct, or of SIMA's own file of results."""
    from mmfast.data.convert import convert
    from mmfast.feedback.answers import answers_of
    from mmfast.feedback.candidates import pair_record
    from mmfast.feedback.folders import corrections, verdicts
    from mmfast.feedback.reading import Reading, manifest_of

    # A file
    if manifest_of(scores) is None:
        if rule != "sima":
            raise ValueError(f"{scores} is no folder of corrections (mmfast correct); files: mmfast data convert")
        if answers or keep_cut or weight is not None:
            raise ValueError("--answers, --keep-cut and --weight are for folders, and this is a file of SIMA's")
        result = convert(scores, out, to="trl", format="sima", images=images, on_error=on_error or "drop")
        typer.echo("\n".join(result.lines()))
        return
    # A folder
    if rule == "sima" and weight is not None:
        raise ValueError("--weight is for claims and corrections: a critic's verdict marks no words")
    making = Making(scores, out, images, on_error or "raise", answers, keep_cut=keep_cut)
    reading = Reading(root=making.root, whole=False, answers=answers, problems=making.problems, notes=making.notes)
    taking = verdicts if rule == "sima" else corrections
    found, counts = taking(scores, reading, lambda: answers_of(scores, reading))
    kept = [one for one in found if making.whole(*one[:2])]
    for name, number in counts.items():
        typer.echo(f"{name}: {number}")
    making.write(pair_record(n, a, b, weight=weight, **more) for n, (a, b, more) in enumerate(kept))


def _experts(
    making: Making, captions: Path, aspects: str, sums: bool, skip: Path | None, option: list[str]
) -> Iterator[Any]:
    from mmfast.data.formats.known import FORMATS, known_options
    from mmfast.feedback.expert_scores import ASPECTS, expert_answers

    known_options([FORMATS["dgpref"]], options_of(option))
    return expert_answers(
        making.scores,
        captions,
        options={"root": making.root, **options_of(option)},
        aspects=aspects.split(",") if aspects else ASPECTS,
        average=not sums,
        skip=[line.strip() for line in skip.read_text(encoding="utf-8").splitlines()] if skip else (),
        problems=making.problems,
    )


def _without_captions(captions: Path | None, aspects: str, sums: bool, skip: Path | None, option: list[str]) -> None:
    options = {"--aspects": aspects, "--sum": sums, "--skip": skip, "--option": option}
    idle = [name for name, value in options.items() if value]
    if captions is None and idle:
        raise ValueError(f"{idle[0]} belongs to DGPref's expert scores: it needs --captions")


def sft(
    scores: Path = SCORES,
    out: Path = TARGET,
    score: str = typer.Option("", help="Rejection sampling: the best answer by this expression; else every answer."),
    minimum: float = typer.Option(None, help="Least score of a kept answer."),
    ties: str = typer.Option("first", help="first, random, shortest or longest."),
    answer: str = ANSWER,
    answers: Path = ANSWERS,
    questions: Path = QUESTIONS,
    images: str = IMAGES,
    keep_cut: bool = KEEP_CUT,
    on_error: str = ON_ERROR,
    seed: int = typer.Option(0),
) -> None:
    """Make an SFT set: the best answer of each prompt (rejection sampling), or every (reference) answer."""
    from mmfast.feedback.candidates import score_of
    from mmfast.feedback.rules import every_answer, rejection_sample

    # The answers, then the best of each prompt or all
    given = {"answer": answer, "answers": answers, "questions": questions}
    making = Making(scores, out, images, on_error, answers, questions, keep_cut=keep_cut, **given)
    found, problems = making.answers(), making.problems
    if score:
        if answer == "reference":
            raise ValueError("--score ranks a model's answers: with --answer reference there is nothing to rank")
        records = rejection_sample(found, score_of(score), minimum=minimum, ties=ties, seed=seed, problems=problems)
    elif minimum is not None or ties != "first":
        raise ValueError(f"--{'minimum' if minimum is not None else 'ties'} needs --score")
    else:
        records = every_answer(found)
    making.write(records)


def steerlm(
    scores: Path = SCORES,
    out: Path = TARGET,
    attributes: str = typer.Option("", help="Comma list of score columns; default: mllm-dpo's five."),
    hindsight: bool = typer.Option(False, help="Two turns: a worse answer, its scores, the better answer."),
    margin: float = typer.Option(None, help="hindsight: least difference of the summed attributes; default: 2."),
    answer: str = ANSWER,
    answers: Path = ANSWERS,
    questions: Path = QUESTIONS,
    images: str = IMAGES,
    keep_cut: bool = KEEP_CUT,
    on_error: str = ON_ERROR,
    seed: int = typer.Option(0),
) -> None:
    """Make a SteerLM set: every answer behind its question and its own scores."""
    from mmfast.feedback.candidates import score_of
    from mmfast.feedback.rules import ATTRIBUTES
    from mmfast.feedback.rules import hindsight as two_turns
    from mmfast.feedback.rules import steerlm as one_turn

    names = attributes.split(",") if attributes else ATTRIBUTES
    # Options that would do nothing
    if margin is not None and not hindsight:
        raise ValueError("--margin needs --hindsight")
    if answer == "reference":
        raise ValueError("SteerLM asks for an answer by its own scores: --answer reference has none")
    margin = 2.0 if margin is None else margin
    given = {"answer": answer, "answers": answers, "questions": questions}
    making = Making(scores, out, images, on_error, answers, questions, keep_cut=keep_cut, **given)
    found, problems = making.answers(), making.problems
    if hindsight:
        records = two_turns(found, score_of(" + ".join(names)), margin, seed, names, problems)
    else:
        records = one_turn(found, names, problems)
    making.write(records)
