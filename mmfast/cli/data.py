"""`mmfast data ...`: look at data, check it, convert it, make it from scored answers."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import typer

from mmfast.cli.builders import OPTION, options_of, pairs, sft, steerlm
from mmfast.cli.prompts import prompts
from mmfast.config.schema import Data

app = typer.Typer(help="Look at data, check it, convert it, make it from scored answers.", no_args_is_help=True)
for command in (prompts, pairs, sft, steerlm):
    app.command()(command)

FILE = typer.Argument(help="A data file, a directory of shards, or a data set's hub id.")
MODEL = typer.Option(..., "--model", "-m", help="Model directory or hub id: its tokenizer, template and image sizes.")
HTML = typer.Option(None, help="Write a page instead.")
CACHE = typer.Option(Path(".cache"), help="Where the built examples are kept.")
CONVERTED = typer.Argument(help="What to write: .jsonl, .json, .parquet, .tsv (rlhfv) or .pkl (dgpref).")
SEGMENTS = typer.Option("clean", help="Changed tokens: none, clean, compat or record.")

WHERE = ("split", "subset", "revision")
KEYS = (*WHERE, "format", "images", "template", "turns", "max_length", "max_words", "truncate")


def reads_data(*keys: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command that reads FILE gets an option for each of these keys of [data], with the key's default and meaning;
    it takes them, path and reader options as `data`, the arguments of DataSettings."""
    fields = {key: Data.model_fields[key] for key in keys}
    taken = {k: (type(f.default), typer.Option(f.default, help=f.description)) for k, f in fields.items()}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(file: str, option: list[str], **values: Any) -> None:
            data = {key: values.pop(key) for key in keys}
            command({"path": file, "options": options_of(option), **data}, **values)

        _, *own = inspect.signature(command, eval_str=True).parameters.values()
        asked = {"file": (str, FILE), **{p.name: (p.annotation, p.default) for p in own}, **taken}
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
    settings, bar = DataSettings(**data, on_error="drop"), not as_json
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
                    for low, high, n in filter(lambda one: one[2], bins):
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
@reads_data(*WHERE, "format", "images")
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
