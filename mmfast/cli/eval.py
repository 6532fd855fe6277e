"""`mmfast eval`: ask a model the questions of a benchmark, score its answers, compare the scores.

`mmfast eval MODEL --bench a,b --data DIR --out FOLDER` is `eval answer` and `eval score` in one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mmfast.cli.engine import (
    Adapter,
    Allow,
    Aspect,
    Chosen,
    Concurrency,
    Debug,
    Dtype,
    Noise,
    Prices,
    PromptTemplate,
    Recorded,
    RemoteCode,
    run_stage,
)
from mmfast.cli.eval_judge import JudgeModel, JudgeName, JudgeRecord, Runs, judge_of
from mmfast.cli.eval_tables import register

if TYPE_CHECKING:
    from mmfast.engines.base import Engine
    from mmfast.engines.stage import Tally
    from mmfast.evals.answering import Asking
    from mmfast.evals.base import Result
    from mmfast.job.runtime import Runtime

BOTH = "run"  # the command that `mmfast eval MODEL` means


class _Group(TyperGroup):
    """What is no subcommand is a model: `mmfast eval MODEL ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {*self.commands, *ctx.help_option_names}
        return super().parse_args(ctx, [BOTH, *args] if args and args[0] not in known else args)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    help="Benchmarks: mmfast eval MODEL --bench a,b --data DIR --out FOLDER asks and scores; or one of the commands.",
)

Named = Annotated[str, typer.Argument(metavar="MODEL", help="Directory or hub id; a server's name of it; a world.")]
By = Annotated[str, typer.Option("--engine", help="local, plain, world, or the addresses of servers: URL[,URL].")]
Benches = Annotated[str, typer.Option("--bench", "-b", help="Benchmarks, joined by commas (docs/evaluation.md).")]
One = Annotated[str, typer.Option("--bench", "-b", help="The benchmark (docs/evaluation.md).")]
DataDir = Annotated[Path, typer.Option("--data", "-d", help="The benchmarks' files: DIR, or DIR/NAME of each.")]
OutDir = Annotated[Path, typer.Option("--out", "-o", help="FOLDER/NAME is written; the same command goes on with it.")]
Images = Annotated[str, typer.Option(help="Folder of the images; default: the data's own.")]
WordingName = Annotated[
    str, typer.Option("--wording", help="How questions are worded; default: the benchmark's first. Of several: A,B.")
]
Preset = Annotated[str, typer.Option(help="llava, rlhfv or dgpref: how these draw their answers.")]
Tokens = Annotated[int, typer.Option(help="Most tokens of an answer; 0: the wording's.", min=0)]
Attributes = Annotated[str, typer.Option(help="SteerLM's, put into each question as in training: 4,4,4,2,2.")]
First = Annotated[
    float, typer.Option("--limit", help="Only the first so many questions; below 1: so much of the images.", min=0)
]
Flavour = Annotated[
    str, typer.Option(help="Which published way of scoring; default: the benchmark's first. Of several: A,B, one each.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Our own parser instead of the official one.")]
Options = Annotated[list[str] | None, typer.Option("--option", help="NAME=VALUE of the benchmark's; may be repeated.")]
Across = Annotated[str, typer.Option(help="Parts that are meant to differ: template, for models of two families.")]
Metrics = Annotated[str, typer.Option("--metric", help="Which metrics, joined by commas; default: all.")]


@app.command(name=BOTH, hidden=True)
def both(
    model: Named,
    bench: Benches,
    data: DataDir,
    out: OutDir,
    engine: By = "local",
    adapter: Adapter = "",
    dtype: Dtype = "",
    remote_code: RemoteCode = False,
    template: PromptTemplate = "",
    aspect: Aspect = "",
    concurrency: Concurrency = 0,
    prices: Prices = "",
    noise: Noise = 0.0,
    recorded: Recorded = None,
    images: Images = "",
    wording: WordingName = "",
    preset: Preset = "",
    max_tokens: Tokens = 0,
    attributes: Attributes = "",
    limit: First = 0,
    debug: Debug = 0,
    flavour: Flavour = "",
    strict: Strict = False,
    judge: JudgeName = "",
    judge_model: JudgeModel = "",
    judge_recorded: JudgeRecord = "",
    runs: Runs = 1,
    option: Options = None,
) -> None:
    """Ask a model the questions of benchmarks and score its answers: FOLDER/NAME/answers.jsonl and result.json."""
    # Ask; every mistake in the options is told before a model is opened
    names = _listed(bench)
    given: dict[str, Any] = {"adapter": adapter, "dtype": dtype, "remote_code": remote_code, "template": template}
    given |= {"aspect": aspect, "concurrency": concurrency, "prices": prices, "noise": noise}
    chosen = Chosen.of(engine, model, recorded=recorded, **given)
    asked = _asked(names, data, images, wording, preset, max_tokens, attributes, limit)
    flavours = _each(names, flavour, "--flavour", "flavours")
    takers = _check_scoring(flavours, strict, judge, runs)
    open_judge = judge_of(judge, judge_model, judge_recorded)
    options = _options(names, option)
    try:
        _run(out, chosen, asked, debug, 0.0)
    except typer.Exit as ended:
        if ended.exit_code:
            raise
    # Score, on one rank
    if int(os.environ.get("RANK", 0)):
        return
    for name in names:
        folder = out / name
        settings = {"data": data, "images": images, "flavour": flavours[name], "strict": strict}
        settings |= {"runs": runs if name in takers else 1}
        opening = open_judge if name in takers else judge_of("", "")
        with opening(folder / "judge.jsonl") as opened:
            _scored(name, folder, folder / "result.json", judge=opened, options=options[name], **settings)


@app.command()
def answer(
    model: Named,
    bench: Benches,
    data: DataDir,
    out: OutDir,
    engine: By = "local",
    adapter: Adapter = "",
    dtype: Dtype = "",
    remote_code: RemoteCode = False,
    template: PromptTemplate = "",
    aspect: Aspect = "",
    concurrency: Concurrency = 0,
    prices: Prices = "",
    noise: Noise = 0.0,
    recorded: Recorded = None,
    images: Images = "",
    wording: WordingName = "",
    preset: Preset = "",
    max_tokens: Tokens = 0,
    attributes: Attributes = "",
    limit: First = 0,
    debug: Debug = 0,
    allow: Allow = 0.0,
) -> None:
    """Ask a model the questions of benchmarks: FOLDER/NAME/answers.jsonl. A killed command goes on where it was; on
    several GPUs: torchrun --nproc-per-node N -m mmfast.cli eval answer ..."""
    given: dict[str, Any] = {"adapter": adapter, "dtype": dtype, "remote_code": remote_code, "template": template}
    given |= {"aspect": aspect, "concurrency": concurrency, "prices": prices, "noise": noise}
    chosen = Chosen.of(engine, model, recorded=recorded, **given)
    asked = _asked(_listed(bench), data, images, wording, preset, max_tokens, attributes, limit)
    _run(out, chosen, asked, debug, allow)


@app.command()
def score(
    answers: Annotated[Path, typer.Argument(help="A file or folder of answers: ours, or of an official layout.")],
    bench: One,
    data: DataDir,
    images: Images = "",
    flavour: Flavour = "",
    wording: WordingName = "",
    strict: Strict = False,
    judge: JudgeName = "",
    judge_model: JudgeModel = "",
    judge_recorded: JudgeRecord = "",
    runs: Runs = 1,
    allow: Allow = 0.0,
    option: Options = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result here, each answer's marks too.")
    ] = None,
) -> None:
    """Score a file of answers."""
    _check_scoring({bench: flavour}, strict, judge, runs)
    options = _options([bench], option)[bench]
    beside = answers / "judge.jsonl" if answers.is_dir() else answers.with_suffix(".judge.jsonl")
    settings = {"data": data, "images": images, "flavour": flavour, "wording": wording, "strict": strict, "runs": runs}
    with judge_of(judge, judge_model, judge_recorded, allow)(beside) as opened:
        _scored(bench, answers, json_file, judge=opened, options=options, **settings)


@app.command()
def convert(
    answers: Annotated[Path, typer.Argument(help="A file or folder of answers.")],
    target: Annotated[Path, typer.Argument(help="What to write.")],
    bench: One,
    data: DataDir,
    layout: Annotated[str, typer.Option(help="docs/evaluation.md has them; upload: a server's files.")] = "",
    generator: Annotated[str, typer.Option(help="The model's name, where the layout has one.")] = "mmfast",
) -> None:
    """Write answers in an official layout, for the official script."""
    from mmfast.evals import official
    from mmfast.evals.base import Data
    from mmfast.evals.benches import bench as bench_of
    from mmfast.evals.scoring import read_answers

    one = bench_of(bench)
    home = Data(data, one)
    _, _, questions, found = read_answers(one, answers, home)
    if layout == "upload":
        official.upload(target, one, questions, found, home)
    else:
        official.write(target, layout or one.layout, questions, found, generator)
    typer.echo(f"{target}: {len(found)} answers in the layout {layout or one.layout}")


@app.command()
def table(
    results: Annotated[list[Path], typer.Argument(help="Results (eval score --json), each as FILE or LABEL=FILE.")],
    metric: Metrics = "",
    across: Across = "",
    latex: Annotated[bool, typer.Option("--latex", help="LaTeX instead of Markdown.")] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Draw bars with their intervals here too: .png, .pdf, .svg.")
    ] = None,
) -> None:
    """A table of several results of one benchmark. Those that were made in different ways are refused."""
    from mmfast.evals import tables

    found = _labelled(results)
    written = (tables.latex if latex else tables.markdown)(found, _listed(metric), _listed(across))
    if picture:
        tables.bars(found, picture, _listed(metric), _listed(across))
    typer.echo(written, nl=False)


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(help="Answers, or a result of eval score --json.")],
    after: Annotated[Path, typer.Argument(help="The same of another model.")],
    bench: Annotated[str, typer.Option("--bench", "-b", help="The benchmark, where answers are given.")] = "",
    data: Annotated[Path | None, typer.Option("--data", "-d", help="Its files, where answers are given.")] = None,
    flavour: Flavour = "",
    wording: WordingName = "",
    across: Across = "",
) -> None:
    """What changed between two models, with paired intervals over images; of two files of answers the words too."""
    from mmfast.evals import tables, words
    from mmfast.evals.scoring import score as scored

    # Two results as they are, or two files of answers, scored here
    answers = bool(bench)
    if answers != bool(data):
        raise ValueError("two files of answers need --bench and --data; two results need neither")
    if not answers and (flavour or wording):
        raise ValueError("--flavour and --wording have no effect on results, which are scored already")
    read: Callable[[Path], Result] = tables.read_result
    if answers:
        read = lambda path: scored(bench, path, data=data or "", flavour=flavour, wording=wording)  # noqa: E731
    pair = read(before), read(after)
    # The metrics, then the words
    for name, (by, low, high) in tables.changed(*pair, _listed(across)).items():
        sure = "" if low <= 0 <= high else "  *"
        typer.echo(f"{name:24} {by:+9.4f}  ({low:+.4f} to {high:+.4f}){sure}")
    typer.echo("after - before, 95% intervals, the same images compared; *: beyond chance")
    if answers:
        old, new = (_texts(path, bench, data or Path()) for path in (before, after))
        lengths = [sum(len(text.split()) for text in texts) / len(texts) for texts in (old, new)]
        typer.echo(f"{lengths[0]:.1f} -> {lengths[1]:.1f} words an answer")
        for phrase in words.changed(old, new):
            typer.echo(f"{100 * phrase.before:5.1f}% -> {100 * phrase.after:5.1f}% of answers say: {phrase.text}")


@app.command()
def agree(
    first: Annotated[Path, typer.Argument(help="A judged result (eval score --json).")],
    second: Annotated[Path, typer.Argument(help="The same answers by another judge.")],
) -> None:
    """How far two judges of the same answers agree: the share of equal verdicts, and Cohen's kappa."""
    from mmfast.evals import tables

    for name, value in tables.agreed(tables.read_result(first), tables.read_result(second)).items():
        typer.echo(f"{name:24} {value:.4g}")


# shared by the commands


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _asked(
    names: list[str], data: Path, images: str, wording: str, preset: str, max_tokens: int, attributes: str, limit: float
) -> list[Asking]:
    from mmfast.evals.answering import asking

    if not names:
        raise ValueError("--bench names no benchmark")
    wordings = _each(names, wording, "--wording", "wordings")
    settings: dict[str, Any] = {"images": images, "preset": preset, "max_tokens": max_tokens}
    settings |= {"attributes": attributes, "limit": limit}
    return [asking(name, data, wording=wordings[name], **settings) for name in names]


def _run(out: Path, chosen: Chosen, asked: list[Asking], debug: int, allow: float) -> None:
    """Ends the command."""
    from mmfast.engines.stage import Tally
    from mmfast.evals.answering import answer as ask

    def answered(made: Engine, runtime: Runtime) -> Tally:
        told = (ask(one, out / one.bench.name, made, runtime, debug=debug, allow=allow) for one in asked)
        return sum(told, Tally())

    needs = {name for one in asked for name in one.needs}
    run_stage(out, chosen, needs, lambda: None, answered, allow=allow)


def _each(names: list[str], given: str, option: str, kinds: str) -> dict[str, str]:
    from mmfast.evals.answering import each_its_own

    return each_its_own(names, given, option, kinds)


def _check_scoring(flavours: dict[str, str], strict: bool, judge: str, runs: int) -> list[str]:
    """What can be told before answers are made. Returns the benchmarks that take the judge; one must."""
    from mmfast.evals.benches import bench as bench_of
    from mmfast.evals.scoring import check_options

    found = [bench_of(name) for name in flavours]
    chosen = {one.name: flavours[one.name] or one.flavours[0] for one in found}
    takers = [one for one in found if one.asks_judge(chosen[one.name])] or found[:1]
    for one in found:
        judged = one in takers
        check_options(one, chosen[one.name], bool(judge) and judged, runs if judged else 1, strict)
    return [one.name for one in takers]


def _scored(bench: str, answers: Path, target: Path | None, **settings: Any) -> None:
    from mmfast.evals import tables
    from mmfast.evals.scoring import score as scored

    result = scored(bench, answers, **settings)
    if target is not None:
        tables.write_result(target, result)
    typer.echo("\n".join(tables.lines(result)))


def _options(benches: list[str], texts: list[str] | None) -> dict[str, dict[str, Any]]:
    """Those of each benchmark; one that none has is refused."""
    from mmfast.evals.benches import bench as bench_of
    from mmfast.evals.scoring import own_options

    found: dict[str, Any] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--option {text!r} is not NAME=VALUE")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    given = [bench_of(name) for name in benches]
    own_options(given, found)
    return {one.name: {name: value for name, value in found.items() if name in one.options} for one in given}


def _labelled(paths: list[Path]) -> dict[str, Result]:
    """Results by label: LABEL=FILE, else the name of the file's folder or of the file."""
    from mmfast.evals.tables import read_result

    found: dict[str, Result] = {}
    for path in paths:
        label, equals, file = str(path).partition("=")
        if not equals:
            file = label
            label = Path(file).parent.name if Path(file).name == "result.json" else Path(file).stem
        if label in found:
            raise ValueError(f"two results are called {label}: give labels, LABEL=FILE")
        found[label] = read_result(file)
    return found


def _texts(path: Path, bench: str, data: Path) -> list[str]:
    from mmfast.evals.base import Data
    from mmfast.evals.benches import bench as bench_of
    from mmfast.evals.scoring import read_answers

    one = bench_of(bench)
    return [" ".join(found.turns) for found in read_answers(one, path, Data(data, one))[3].values()]


register(app)
