"""`mmfast correct`: people correct, compare and rate answers on a local page; `mmfast corrected`: what they made."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer


def correct(
    answers: Annotated[Path, typer.Argument(help="A folder or file of answers (mmfast generate writes one).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the work; the same command goes on with it.")],
    task: Annotated[str, typer.Option(help="correct, mark, compare or rate.")] = "correct",
    annotator: Annotated[
        list[str] | None, typer.Option(help="Who may work here; may be repeated. Default: whoever gives a name.")
    ] = None,
    overlap: Annotated[int, typer.Option(help="How many people do a card, each for themselves.", min=1)] = 1,
    overlap_share: Annotated[
        float, typer.Option(help="The share of cards that so many people do; the others are done by one.")
    ] = 1.0,
    metrics: Annotated[str, typer.Option(help="rate: names between commas; default: mllm-dpo's five.")] = "",
    scale: Annotated[str, typer.Option(help="rate: LOW-HIGH; default: 0-4.")] = "",
    per_prompt: Annotated[int, typer.Option(help="compare: how many pairs of a prompt's answers; 0: all.", min=0)] = 0,
    share: Annotated[float, typer.Option(help="Show a share of the prompts, drawn, each with all its answers.")] = 1.0,
    engine: Annotated[
        str, typer.Option(help="world: its annotation corrects in people's place, and there is no page.")
    ] = "",
    model: Annotated[str, typer.Option("--model", "-m", help="--engine world: the world's folder.")] = "",
    noise: Annotated[
        float, typer.Option(help="--engine world: the probability that a false claim is overlooked.")
    ] = 0.0,
    seed: Annotated[
        int, typer.Option(help="Of what is drawn: prompts, sides, overlap, pairs, what is overlooked.")
    ] = 0,
    limit: Annotated[int, typer.Option(help="How many answers are read; 0: all.", min=0)] = 0,
    port: Annotated[int, typer.Option(help="Of 127.0.0.1; 0: the last one, or any free one.", min=0, max=65535)] = 0,
) -> None:
    """Show answers with their images on a local page, where people mark what is wrong and rewrite it, compare or rate
    (--engine world: the embedded world's annotation corrects them, and no page opens). Every action is on disk before
    the page goes on; Ctrl-C ends the page, and the same command opens it again."""
    # Every mistake in the options is told before anything is read
    from itertools import islice

    from mmfast.engines.people_desk import Desk, named
    from mmfast.engines.people_server import Page
    from mmfast.feedback.answers import read_answers
    from mmfast.feedback.correct import TASKS, Plan, fill, prepare
    from mmfast.feedback.corrected import Folder
    from mmfast.feedback.corrected_by import NAME, correct_all
    from mmfast.job.runfolder import Lock

    corrector = _corrector(engine, model, noise, task, bool(annotator or overlap > 1 or port)) if engine else None
    if not engine and (model or noise):
        raise ValueError(f"--{'model' if model else 'noise'} has no effect without --engine world")
    for name, given, owner in (
        ("--metrics", metrics, "rate"),
        ("--scale", scale, "rate"),
        ("--per-prompt", per_prompt, "compare"),
    ):
        if given and task != owner:
            raise ValueError(f"{name} has no effect on --task {task}: it is for {owner}")
    if overlap_share != 1.0 and overlap == 1:
        raise ValueError("--overlap-share has no effect without --overlap K, K above 1")
    if seed and task != "compare" and overlap_share == share == 1.0 and not noise:
        raise ValueError("--seed has no effect: it draws sides and pairs (--task compare), --share, what is overlooked")
    drawn: dict[str, Any] = {"share": overlap_share, "prompts": share, "seed": seed}
    by = json.dumps(corrector.identity() | {"seed": seed}) if corrector else ""
    plan = Plan(task=task, overlap=overlap, per_prompt=per_prompt, by=by, **drawn, **_rated(metrics, scale))
    names = [NAME] if corrector else list(map(named, annotator or ()))
    if names and len(set(names)) < overlap:
        raise ValueError(f"--overlap {overlap}: there are only {len(set(names))} annotators")
    # The folder is ours; its cards are ready; the page is open
    lock = Lock(out, "--out")
    try:
        cards, left = prepare(out, plan, islice(read_answers(answers), limit or None), answers.name)
        for line in left:
            typer.echo(line)
        desk = Desk(out, names)
        fill(desk, cards, plan)
        try:
            if corrector:
                correct_all(corrector, desk, cards, seed)
            else:
                page = Page(desk, title=f"{TASKS[task]}", port=port)
                try:
                    _serve(page.url, names, len(cards))
                finally:
                    page.close()
        finally:
            desk.close()
        folder = Folder(out)
        folder.write_rows()
        typer.echo("\n".join(_told(folder.report())))
    finally:
        lock.close()


def _corrector(engine: str, model: str, noise: float, task: str, peopled: bool) -> Any:
    """The engine that corrects in people's place."""
    from mmfast.cli.engine import kind_of
    from mmfast.engines.world import World

    if kind_of(engine) != "world":
        raise ValueError(
            f"--engine {engine}: it corrects nothing; world does, and without --engine people do, on a page"
        )
    if task != "correct":
        raise ValueError(f"--engine world has no effect on --task {task}: it is for correct")
    if peopled:
        raise ValueError("--annotator, --overlap and --port have no effect with --engine: nobody else corrects there")
    return World(model, noise=noise)


def _serve(url: str, names: list[str], cards: int) -> None:
    """Until Ctrl-C or a SIGTERM."""
    from urllib.parse import quote

    typer.echo(f"{cards} cards; open, and end with Ctrl-C:")
    for one in [f"{url}?name={quote(name)}" for name in names] or [url]:
        typer.echo(f"  {one}")
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell started us in the background
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    typer.echo("")


def _rated(metrics: str, scale: str) -> dict[str, Any]:
    given: dict[str, Any] = {"metrics": tuple(name.strip() for name in metrics.split(","))} if metrics else {}
    if scale:
        low, dash, high = scale.partition("-")
        if not (dash and low.isdecimal() and high.isdecimal()):
            raise ValueError(f"--scale {scale!r} is not LOW-HIGH, such as 0-4")
        given |= {"low": int(low), "high": int(high)}
    return given


def corrected(
    folder: Annotated[Path, typer.Argument(help="A folder of mmfast correct; people may work on meanwhile.")],
    pairs: Annotated[Path | None, typer.Option(help="Write pairs (canonical): .jsonl, .json or .parquet.")] = None,
    rlhfv: Annotated[Path | None, typer.Option(help="Write RLHF-V's format: .parquet, .jsonl or .tsv.")] = None,
    mhumaneval: Annotated[Path | None, typer.Option(help="Write MHumanEval judgements: .jsonl.")] = None,
    scores: Annotated[
        Path | None, typer.Option(help="rate: write scored answers for mmfast data pairs: .jsonl.")
    ] = None,
    annotator: Annotated[list[str] | None, typer.Option(help="Only this person's work; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Report on what people did (progress, pace, kinds, agreement), and write it as files to train on or judge by."""
    from mmfast.feedback.corrected import WRITERS, Folder

    found = Folder(folder, annotator or ())
    if not annotator:
        found.write_rows()
    report = found.report()
    typer.echo(json.dumps(report, indent=1, ensure_ascii=False) if as_json else "\n".join(_told(report)))
    given = {"--pairs": pairs, "--rlhfv": rlhfv, "--mhumaneval": mhumaneval, "--scores": scores}
    for name, target in given.items():
        if target is not None:
            typer.echo(f"{target}: " + "; ".join(WRITERS[name](found, target)), err=as_json)


def _told(report: dict[str, Any]) -> Iterator[str]:
    """The report as lines."""
    yield f"{report['task']}: {report['done']} of {report['cards']} cards done"
    for name, own in report["people"].items():
        pace = f", {own['seconds']} s each" if own["seconds"] is not None else ""
        yield f"  {name}: {own['done']} done, {own['skipped']} skipped, {own['open']} open{pace}"
    for name in (
        "skipped",
        "segments",
        "places where words were added",
        "segments an answer",
        "rates",
        "verdicts",
        "mean scores",
    ):
        if value := report.get(name):
            yield f"{name}: {_line(value)}"
    for name, value in report["agreement"].items():
        yield f"agreement, {name.replace('_', ' ')}: {_line(value)}"


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_line(part)}" for name, part in value.items())
    return f"{value:.3f}" if isinstance(value, float) else str(value)
