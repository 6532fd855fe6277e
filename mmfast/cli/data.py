"""`mmfast data ...`: look at data, check it, convert it, make it from scored answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

app = typer.Typer(help="Look at data, check it, convert it, make it from scored answers.", no_args_is_help=True)

FILE = typer.Argument(help="A data file, or a directory of shards.")
MODEL = typer.Option(..., "--model", "-m", help="Model directory or hub id: its tokenizer, template and image sizes.")
FORMAT = typer.Option("auto", help="Format of the file; told from its content by default.")
IMAGES = typer.Option("", help="Root of relative image paths; default: beside the file.")
OPTION = typer.Option([], "--option", help="An option of the reader, NAME=VALUE (docs/formats.md); may be repeated.")
TEMPLATE = typer.Option("auto", help="auto: the model's chat template; or a named one (docs/templates.md).")
TURNS = typer.Option("last", help="Which answers are scored: last or all.")
LENGTH = typer.Option(4096, help="Longest example in tokens, image tokens included.")
WORDS = typer.Option(0, help="Cut answers after so many words (0: never).")
TRUNCATE = typer.Option("never", help="What becomes of a longer one: never (an error) or response.")
HTML = typer.Option(None, help="Write a page instead.")
CACHE = typer.Option(Path(".cache"), help="Where the built examples are kept.")
CONVERTED = typer.Argument(help="What to write: .jsonl, .json, .parquet, .tsv (rlhfv) or .pkl (dgpref).")
CAPTIONS = typer.Option(None, help="dgpref: the raw captions beside expert scores.")
SKIP = typer.Option(None, help="dgpref: a file of object words too vague to judge, one a line.")
SEGMENTS = typer.Option("clean", help="Changed tokens: none, clean, compat or record.")


def _options(given: list[str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--option {item!r} is not NAME=VALUE")
        try:
            out[name] = json.loads(value)
        except ValueError:
            out[name] = value
    return out


@app.command()
def show(
    file: Path = FILE,
    model: str = MODEL,
    count: int = typer.Option(3, "-n", help="How many."),
    first: int = typer.Option(0, help="From which record on."),
    format: str = FORMAT,
    images: str = IMAGES,
    template: str = TEMPLATE,
    turns: str = TURNS,
    max_length: int = LENGTH,
    max_words: int = WORDS,
    truncate: str = TRUNCATE,
    segments: str = SEGMENTS,
    html: Path = HTML,
    option: list[str] = OPTION,
) -> None:
    """Print examples as the model reads them: the prompt, and each response token by side, label and weight. Exit code
    1 if every row is bad."""
    from rich.console import Console

    from mmfast.data.preview import page, preview, print_shown
    from mmfast.data.problems import Problem
    from mmfast.data.settings import DataSettings

    data = DataSettings(path=str(file), format=format, images=images, template=template, turns=turns,
                        max_length=max_length, max_words=max_words, truncate=truncate, segments=segments,
                        options=_options(option))  # fmt: skip
    tokenizer, items = preview(data, model, count, first)
    console, kinds, kept = Console(), set(), []
    for item in items:
        kinds.add(type(item))
        if html is not None:
            kept.append(item)
        elif isinstance(item, Problem):
            console.print(f"[red]{item.source}[/red]: {item.message} ({item.kind})", highlight=False)
        else:
            print_shown(console, tokenizer, item)
    if html is not None:
        html.write_text(page(file.name, tokenizer, kept), encoding="utf-8")
        typer.echo(f"wrote {html}")
    raise typer.Exit(1 if kinds == {Problem} else 0)


@app.command()
def check(
    file: Path = FILE,
    model: str = MODEL,
    format: str = FORMAT,
    images: str = IMAGES,
    template: str = TEMPLATE,
    turns: str = TURNS,
    max_length: int = LENGTH,
    max_words: int = WORDS,
    truncate: str = TRUNCATE,
    workers: int = typer.Option(2, help="Processes."),
    cache: Path = CACHE,
    allow: float = typer.Option(0.0, help="Share of bad rows that still passes."),
    as_json: bool = typer.Option(False, "--json", help="Print the findings as JSON."),
    option: list[str] = OPTION,
) -> None:
    """Build every example and report on them. Exit code 1 if more rows are bad than --allow."""
    from mmfast.cli.check import examine
    from mmfast.data.build import NoExamples, build
    from mmfast.data.settings import DataSettings

    data = DataSettings(path=str(file), format=format, images=images, template=template, turns=turns,
                        max_length=max_length, max_words=max_words, truncate=truncate, on_error="drop",
                        workers=workers, options=_options(option))  # fmt: skip
    try:
        store = build(data, model, cache, progress=sys.stderr.isatty() and not as_json, report_to=lambda text: None)
        report, found = store.report, examine(store)
    except NoExamples as error:
        report = error.report
        found = {"rows": report.rows, "examples": 0, "dropped": report.counts()}
    bad = len(report.dropped)
    if as_json:
        found["problems"] = [str(p) for p in report.dropped]
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        for name, value in found.items():
            if name == "lengths":
                for side, bins in value.items():
                    most = max(n for _, _, n in bins)
                    typer.echo(f"tokens of {side}:")
                    for low, high, n in bins:
                        typer.echo(f"  {low:>6}-{high:<6} {'█' * round(30 * n / most)} {n}")
            else:
                typer.echo(f"{name}: {_line(value)}")
        for problem in report.dropped:
            typer.echo(f"bad row {problem}")
    raise typer.Exit(1 if bad > allow * report.rows or not found["examples"] else 0)


def _line(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{k}: {v:.1f}" if isinstance(v, float) else f"{k}: {v}" for k, v in value.items()) or "none"


@app.command()
def convert(
    file: Path = FILE,
    target: Path = CONVERTED,
    to: str = typer.Option(
        "trl", help="Format to write; trl is canonical and carries everything; rows: any table as it is."
    ),
    format: str = FORMAT,
    images: str = IMAGES,
    on_error: str = typer.Option("raise", help="A bad row: raise or drop."),
    share: float = typer.Option(1.0, help="Keep this share of the records, drawn by the seed."),
    flip: float = typer.Option(0.0, help="Exchange chosen and rejected in this share of the pairs."),
    seed: int = typer.Option(0),
    option: list[str] = OPTION,
) -> None:
    """Write a file in another format, and say what could not be carried."""
    from mmfast.data.convert import convert as run
    from mmfast.feedback.rules import flip_labels, subset

    def ablated(records: list[Any]) -> list[Any]:
        return flip_labels(subset(records, share, seed), flip, seed)

    change = ablated if share != 1.0 or flip else None
    result = run(
        file, target, to=to, format=format, images=images, options=_options(option), on_error=on_error, change=change
    )
    for line in result.lines():
        typer.echo(line)


SCORES = typer.Argument(help="Scored answers, one a row (docs/formats.md).")
TARGET = typer.Option(..., "--out", "-o", help="The file to write, in the canonical format.")
ON_ERROR = typer.Option("raise", help="A bad row, or one without a score it needs: raise or drop.")
ANSWER = typer.Option("", help="Column of the answer; default: the usual names.")


def _problems(on_error: str, target: Path, *sources: Path) -> list[Any] | None:
    """Where bad rows are listed, None where the first one ends the command; and the file to write is not one read."""
    from mmfast.data.convert import keep_apart

    if on_error not in ("raise", "drop"):
        raise ValueError(f"--on-error: {on_error!r} is not raise or drop")
    keep_apart(target, *sources)
    return [] if on_error == "drop" else None


def _write(records: Iterable[Any], target: Path, scores: Path, images: str, problems: list[Any] | None) -> None:
    from mmfast.data.convert import Conversion, write_records

    result = Conversion(problems=problems or [])
    root = Path(images) if images else scores.parent
    write_records(iter(records), target, "trl", root, result)
    for line in result.lines():
        typer.echo(line)


@app.command()
def pairs(
    scores: Path = SCORES,
    out: Path = TARGET,
    rule: str = typer.Option(..., help="mllm_dpo, mllm_dpo_minmax, rlaifv, dgpref; sima for a critic's results."),
    score: str = typer.Option("", help="Score expression instead of the rule's own, e.g. 'Helpfulness + Coherence'."),
    margin: float = typer.Option(-1.0, help="Least difference of a pair; default: the rule's."),
    per_prompt: int = typer.Option(-1, help="Most pairs a prompt (0: all); default: the rule's."),
    balance: bool = typer.Option(None, help="Length balance; default: the rule's."),
    captions: Path = CAPTIONS,
    aspects: str = typer.Option("", help="dgpref: comma list; one named twice counts twice."),
    sums: bool = typer.Option(False, "--sum", help="dgpref: number of wrong items instead of their share."),
    skip: Path = SKIP,
    answer: str = ANSWER,
    images: str = IMAGES,
    on_error: str = typer.Option("", help="A bad row: raise or drop; default: raise, for sima drop."),
    seed: int = typer.Option(0),
    option: list[str] = OPTION,
) -> None:
    """Choose preference pairs from scored answers by a published rule."""
    from mmfast.data.convert import convert as run
    from mmfast.data.formats.known import FORMATS, known_options
    from mmfast.feedback.candidates import read_candidates
    from mmfast.feedback.expert_scores import ASPECTS, expert_candidates
    from mmfast.feedback.rules import RULES, choose_pairs

    if rule == "sima":
        if score or margin >= 0 or per_prompt >= 0 or balance is not None or captions or answer:
            raise ValueError("--rule sima takes a critic's verdicts: nothing is scored, so only --images, --on-error")
        _without_captions(captions, aspects, sums, skip, option)
        for line in run(scores, out, to="trl", format="sima", images=images, on_error=on_error or "drop").lines():
            typer.echo(line)
        return
    if rule not in RULES:
        raise ValueError(f"--rule: unknown rule {rule!r}; choose one of {', '.join(RULES)}, sima")
    chosen = RULES[rule]
    chosen = replace(
        chosen,
        score=score or chosen.score,
        margin=chosen.margin if margin < 0 else margin,
        per_prompt=chosen.per_prompt if per_prompt < 0 else per_prompt,
        balance=chosen.balance if balance is None else balance,
    )
    problems = _problems(on_error or "raise", out, scores, *([captions] if captions else []))
    if captions is not None:
        if answer:
            raise ValueError("--answer names a column of scored answers; --captions gives the answers")
        known_options([FORMATS["dgpref"]], _options(option))
        root = Path(images) if images else scores.parent
        candidates: Iterator[Any] = expert_candidates(
            scores,
            captions,
            options={"root": root, **_options(option)},
            aspects=aspects.split(",") if aspects else ASPECTS,
            average=not sums,
            skip=[line.strip() for line in skip.read_text(encoding="utf-8").splitlines()] if skip else (),
            problems=problems,
        )
    else:
        _without_captions(captions, aspects, sums, skip, option)
        candidates = read_candidates(scores, answer_column=answer, problems=problems)
    records, told = choose_pairs(candidates, chosen, seed, problems)
    for name, value in told.items():
        typer.echo(f"{name}: {value}")
    _write(records, out, scores, images, problems)


def _without_captions(captions: Path | None, aspects: str, sums: bool, skip: Path | None, option: list[str]) -> None:
    given = {"--aspects": aspects, "--sum": sums, "--skip": skip, "--option": option}
    idle = [name for name, value in given.items() if value]
    if captions is None and idle:
        raise ValueError(f"{idle[0]} belongs to DGPref's expert scores: it needs --captions")


@app.command()
def sft(
    scores: Path = SCORES,
    out: Path = TARGET,
    score: str = typer.Option("", help="Rejection sampling: the best answer by this expression; else every answer."),
    minimum: float = typer.Option(None, help="Least score of a kept answer."),
    ties: str = typer.Option("first", help="first, random, shortest or longest."),
    answer: str = ANSWER,
    images: str = IMAGES,
    on_error: str = ON_ERROR,
    seed: int = typer.Option(0),
) -> None:
    """Make an SFT set: the best answer of each prompt (rejection sampling), or every (reference) answer."""
    from mmfast.feedback.candidates import read_candidates, score_of
    from mmfast.feedback.rules import every_answer, rejection_sample

    problems = _problems(on_error, out, scores)
    candidates = read_candidates(scores, answer_column=answer, problems=problems)
    if score:
        records = rejection_sample(
            candidates, score_of(score), minimum=minimum, ties=ties, seed=seed, problems=problems
        )
    elif minimum is not None or ties != "first":
        raise ValueError(f"--{'minimum' if minimum is not None else 'ties'} needs --score")
    else:
        records = every_answer(candidates)
    _write(records, out, scores, images, problems)


@app.command()
def steerlm(
    scores: Path = SCORES,
    out: Path = TARGET,
    attributes: str = typer.Option("", help="Comma list of score columns; default: mllm-dpo's five."),
    hindsight: bool = typer.Option(False, help="Two turns: a worse answer, its scores, the better answer."),
    margin: float = typer.Option(None, help="hindsight: least difference of the summed attributes; default: 2."),
    answer: str = ANSWER,
    images: str = IMAGES,
    on_error: str = ON_ERROR,
    seed: int = typer.Option(0),
) -> None:
    """Make a SteerLM set: every answer behind its question and its own scores."""
    from mmfast.feedback.candidates import read_candidates, score_of
    from mmfast.feedback.rules import ATTRIBUTES
    from mmfast.feedback.rules import hindsight as two_turns
    from mmfast.feedback.rules import steerlm as one_turn

    names = attributes.split(",") if attributes else ATTRIBUTES
    if margin is not None and not hindsight:
        raise ValueError("--margin needs --hindsight")
    margin = 2.0 if margin is None else margin
    problems = _problems(on_error, out, scores)
    candidates = read_candidates(scores, answer_column=answer, problems=problems)
    if hindsight:
        records = two_turns(candidates, score_of(" + ".join(names)), margin, seed, names, problems)
    else:
        records = one_turn(candidates, names, problems)
    _write(records, out, scores, images, problems)
