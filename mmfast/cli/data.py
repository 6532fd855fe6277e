"""`mmfast data ...`: look at data, check it, convert it, make it from scored answers."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import typer

from mmfast.config.schema import Data

app = typer.Typer(help="Look at data, check it, convert it, make it from scored answers.", no_args_is_help=True)

FILE = typer.Argument(help="A data file, or a directory of shards.")
MODEL = typer.Option(..., "--model", "-m", help="Model directory or hub id: its tokenizer, template and image sizes.")
IMAGES = typer.Option("", help=Data.model_fields["images"].description)
OPTION = typer.Option([], "--option", help="An option of the reader, NAME=VALUE (docs/formats.md); may be repeated.")
HTML = typer.Option(None, help="Write a page instead.")
CACHE = typer.Option(Path(".cache"), help="Where the built examples are kept.")
CONVERTED = typer.Argument(help="What to write: .jsonl, .json, .parquet, .tsv (rlhfv) or .pkl (dgpref).")
CAPTIONS = typer.Option(None, help="dgpref: the raw captions beside expert scores.")
SKIP = typer.Option(None, help="dgpref: a file of object words too vague to judge, one a line.")
SEGMENTS = typer.Option("clean", help="Changed tokens: none, clean, compat or record.")

KEYS = ("format", "images", "template", "turns", "max_length", "max_words", "truncate")


def _options(texts: list[str]) -> dict[str, Any]:
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


def reads_data(*keys: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command that reads FILE gets an option for each of these keys of [data], with the key's default and meaning;
    it takes them, path and reader options as `data`, the arguments of DataSettings."""
    fields = {key: Data.model_fields[key] for key in keys}
    taken = {k: (type(f.default), typer.Option(f.default, help=f.description)) for k, f in fields.items()}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(file: Path, option: list[str], **values: Any) -> None:
            data = {key: values.pop(key) for key in keys}
            command({"path": str(file), "options": _options(option), **data}, **values)

        _, *own = inspect.signature(command, eval_str=True).parameters.values()
        asked = {"file": (Path, FILE), **{p.name: (p.annotation, p.default) for p in own}, **taken}
        parameters = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
            for name, (kind, default) in (asked | {"option": (list[str], OPTION)}).items()
        ]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
        return run

    return decorate


@app.command()
@reads_data(*KEYS)
def show(
    data: dict[str, Any],
    model: str = MODEL,
    count: int = typer.Option(3, "-n", help="How many."),
    first: int = typer.Option(0, help="From which record on."),
    segments: str = SEGMENTS,
    html: Path = HTML,
) -> None:
    """Print examples as the model reads them: the prompt, and each response token by side, label and weight. Exit code
    1 if every row is bad."""
    from rich.console import Console

    from mmfast.data.preview import page, preview, print_shown
    from mmfast.data.problems import Problem
    from mmfast.data.settings import DataSettings

    tokenizer, items = preview(DataSettings(**data, segments=segments), model, count, first)
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
        html.write_text(page(Path(data["path"]).name, tokenizer, kept), encoding="utf-8")
        typer.echo(f"wrote {html}")
    raise typer.Exit(1 if kinds == {Problem} else 0)


@app.command()
@reads_data(*KEYS, "workers")
def check(
    data: dict[str, Any],
    model: str = MODEL,
    cache: Path = CACHE,
    allow: float = typer.Option(0.0, help="Share of bad rows that still passes."),
    as_json: bool = typer.Option(False, "--json", help="Print the findings as JSON."),
) -> None:
    """Build every example and report on them. Exit code 1 if more rows are bad than --allow."""
    from mmfast.cli.check import examine
    from mmfast.data.build import NoExamples, build
    from mmfast.data.settings import DataSettings

    # Build, bad rows left out and counted
    settings, bar = DataSettings(**data, on_error="drop"), sys.stderr.isatty() and not as_json
    try:
        store = build(settings, model, cache, progress=bar, report_to=lambda text: None)
        report, findings = store.report, examine(store)
    except NoExamples as error:
        report = error.report
        findings = {"rows": report.rows, "examples": 0, "dropped": report.counts()}
    # Print
    if as_json:
        findings["problems"] = [str(p) for p in report.dropped]
        typer.echo(json.dumps(findings, indent=1, ensure_ascii=False))
    else:
        for name, value in findings.items():
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
    raise typer.Exit(1 if len(report.dropped) > allow * report.rows or not findings["examples"] else 0)


def _line(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{k}: {v:.1f}" if isinstance(v, float) else f"{k}: {v}" for k, v in value.items()) or "none"


@app.command()
@reads_data("format", "images")
def convert(
    data: dict[str, Any],
    target: Path = CONVERTED,
    to: str = typer.Option(
        "trl", help="Format to write; trl is canonical and carries everything; rows: any table as it is."
    ),
    on_error: str = typer.Option("raise", help="A bad row: raise or drop."),
    share: float = typer.Option(1.0, help="Keep this share of the records, drawn by the seed."),
    flip: float = typer.Option(0.0, help="Exchange chosen and rejected in this share of the pairs."),
    seed: int = typer.Option(0),
) -> None:
    """Write a file in another format, and say what could not be carried."""
    from mmfast.data.convert import convert as run
    from mmfast.feedback.rules import flip_labels, subset

    def ablated(records: list[Any]) -> list[Any]:
        return flip_labels(subset(records, share, seed), flip, seed)

    change = ablated if share != 1.0 or flip else None
    result = run(data.pop("path"), target, to=to, on_error=on_error, change=change, **data)
    typer.echo("\n".join(result.lines()))


SCORES = typer.Argument(help="Scored answers, one a row (docs/formats.md).")
TARGET = typer.Option(..., "--out", "-o", help="The file to write, in the canonical format.")
ON_ERROR = typer.Option("raise", help="A bad row, or one without a score it needs: raise or drop.")
ANSWER = typer.Option("", help="Column of the answer; default: the usual names.")


class Making:
    """A data file made from scored answers, which is not one of those that are read. Bad rows are listed in `problems`;
    where that is None, the first one ends the command."""

    def __init__(self, scores: Path, out: Path, images: str, on_error: str, *more: Path) -> None:
        from mmfast.data.convert import Conversion, keep_apart

        if on_error not in ("raise", "drop"):
            raise ValueError(f"--on-error: {on_error!r} is not raise or drop")
        keep_apart(out, scores, *more)
        self.scores, self.out, self.result = scores, out, Conversion()
        self.root = Path(images) if images else scores.parent
        self.problems = self.result.problems if on_error == "drop" else None

    def candidates(self, answer: str) -> Iterator[Any]:
        from mmfast.feedback.candidates import read_candidates

        return read_candidates(self.scores, answer_column=answer, problems=self.problems)

    def write(self, records: Iterable[Any]) -> None:
        from mmfast.data.convert import write_records

        write_records(iter(records), self.out, "trl", self.root, self.result)
        typer.echo("\n".join(self.result.lines()))


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
    from mmfast.feedback.expert_scores import ASPECTS, expert_candidates
    from mmfast.feedback.rules import RULES, choose_pairs

    # SIMA's critic has chosen already
    if rule == "sima":
        if score or margin >= 0 or per_prompt >= 0 or balance is not None or captions or answer:
            raise ValueError("--rule sima takes a critic's verdicts: nothing is scored, so only --images, --on-error")
        _without_captions(captions, aspects, sums, skip, option)
        result = run(scores, out, to="trl", format="sima", images=images, on_error=on_error or "drop")
        typer.echo("\n".join(result.lines()))
        return
    # The rule, changed as asked
    if rule not in RULES:
        raise ValueError(f"--rule: unknown rule {rule!r}; choose one of {', '.join(RULES)}, sima")
    changes: dict[str, Any] = {"score": score} if score else {}
    changes |= {k: v for k, v in (("margin", margin), ("per_prompt", per_prompt)) if v >= 0}
    changes |= {} if balance is None else {"balance": balance}
    # The candidates: captions judged by experts, or scored answers
    making = Making(scores, out, images, on_error or "raise", *([captions] if captions else []))
    if captions is not None:
        if answer:
            raise ValueError("--answer names a column of scored answers; --captions gives the answers")
        known_options([FORMATS["dgpref"]], _options(option))
        candidates: Iterator[Any] = expert_candidates(
            scores,
            captions,
            options={"root": making.root, **_options(option)},
            aspects=aspects.split(",") if aspects else ASPECTS,
            average=not sums,
            skip=[line.strip() for line in skip.read_text(encoding="utf-8").splitlines()] if skip else (),
            problems=making.problems,
        )
    else:
        _without_captions(captions, aspects, sums, skip, option)
        candidates = making.candidates(answer)
    records, counts = choose_pairs(candidates, replace(RULES[rule], **changes), seed, making.problems)
    for name, value in counts.items():
        typer.echo(f"{name}: {value}")
    making.write(records)


def _without_captions(captions: Path | None, aspects: str, sums: bool, skip: Path | None, option: list[str]) -> None:
    options = {"--aspects": aspects, "--sum": sums, "--skip": skip, "--option": option}
    idle = [name for name, value in options.items() if value]
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
    from mmfast.feedback.candidates import score_of
    from mmfast.feedback.rules import every_answer, rejection_sample

    making = Making(scores, out, images, on_error)
    candidates, problems = making.candidates(answer), making.problems
    if score:
        records = rejection_sample(
            candidates, score_of(score), minimum=minimum, ties=ties, seed=seed, problems=problems
        )
    elif minimum is not None or ties != "first":
        raise ValueError(f"--{'minimum' if minimum is not None else 'ties'} needs --score")
    else:
        records = every_answer(candidates)
    making.write(records)


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
    from mmfast.feedback.candidates import score_of
    from mmfast.feedback.rules import ATTRIBUTES
    from mmfast.feedback.rules import hindsight as two_turns
    from mmfast.feedback.rules import steerlm as one_turn

    names = attributes.split(",") if attributes else ATTRIBUTES
    if margin is not None and not hindsight:
        raise ValueError("--margin needs --hindsight")
    margin = 2.0 if margin is None else margin
    making = Making(scores, out, images, on_error)
    candidates, problems = making.candidates(answer), making.problems
    if hindsight:
        records = two_turns(candidates, score_of(" + ".join(names)), margin, seed, names, problems)
    else:
        records = one_turn(candidates, names, problems)
    making.write(records)
