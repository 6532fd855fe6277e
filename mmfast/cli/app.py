"""The `mmfast` command. Each command imports what it needs when it runs, so that `mmfast --help` is instant."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

from mmfast.packages import how_to_install


def missing(error: ModuleNotFoundError) -> NoReturn:
    """The ops need torch and numpy alone, the command its training packages."""
    if (error.name or "mmfast").startswith("mmfast"):
        raise error  # a fault of ours
    sys.exit(f"mmfast: the package {error.name} is not installed: {how_to_install('train')}")


try:
    import typer

    from mmfast.cli.correct import correct, corrected
    from mmfast.cli.critique import critique
    from mmfast.cli.data import app as data
    from mmfast.cli.decompose import decompose
    from mmfast.cli.eval import app as evaluate
    from mmfast.cli.experts import check
    from mmfast.cli.feedback import app as feedback
    from mmfast.cli.generate import generate
    from mmfast.cli.grade import grade
    from mmfast.cli.judge import judge
    from mmfast.cli.logprobs import logprobs
    from mmfast.cli.reproduce import reproduce
    from mmfast.cli.rounds import rounds
except ModuleNotFoundError as error:
    missing(error)

app = typer.Typer(
    help="mmfast: align vision-language models with preferences.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)

TAKES_OVERRIDES = {"ignore_unknown_options": True}  # so that --section.key=value is an override too
ConfigFile = Annotated[str, typer.Argument(help="A TOML file; docs/config.md has every key.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value, over the file's own.")]


def _say_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"mmfast {version('mmfast')}")
        except PackageNotFoundError:  # found on the path alone
            print("mmfast, not installed")
        raise typer.Exit


@app.callback()
def anything(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_say_version)
    ] = False,
) -> None:
    """mmfast: align vision-language models with preferences."""


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Show versions, devices and backends, say which would be used and why, and test each op against its oracle."""
    from mmfast.doctor import examine, show

    findings = examine()
    show(findings, as_json=as_json)
    raise typer.Exit(1 if findings.problems else 0)


@app.command(context_settings=TAKES_OVERRIDES)
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    gpus: Annotated[
        int, typer.Option(help="Processes on this machine, one a GPU; without a GPU, processes on its CPUs.", min=1)
    ] = 1,
) -> None:
    """Train, in this one process or on several GPUs of this machine. On several machines: torchrun ... -m mmfast.train
    CONFIG (docs/training.md)."""
    from mmfast.config import load

    settings = load(config, overrides or [])  # a mistake in it is told before anything heavy is imported
    if gpus > 1:
        raise typer.Exit(_several(gpus, [config, *(overrides or [])], Path(settings.output_dir)))
    from mmfast.train import train as run

    run(settings)


def _several(gpus: int, arguments: list[str], folder: Path) -> int:
    import torch

    from mmfast.rounds.launch import attached

    if "RANK" in os.environ:
        raise ValueError("--gpus starts the processes itself, and torchrun has started this one: leave one of them out")
    if 0 < (there := torch.cuda.device_count()) < gpus:
        raise ValueError(f"--gpus {gpus}: this machine has {there}")
    return attached(gpus, ["mmfast.train", *arguments], folder)


@app.command(context_settings=TAKES_OVERRIDES)
def reference(
    config: ConfigFile,
    overrides: Overrides = None,
    source: Annotated[Path | None, typer.Option("--import", help="Fill the cache from another system's file.")] = None,
    target: Annotated[
        Path | None, typer.Option("--export", help="Write data.path again with the log-probs in it: .json or .parquet.")
    ] = None,
) -> None:
    """Score the reference into the cache and print where it lies (train does this by itself on first use)."""
    from mmfast.config import load

    if source and target:
        raise ValueError("--import and --export: choose one")
    settings = load(config, overrides or [])
    if source and not source.exists():
        raise ValueError(f"--import {source}: it does not exist")
    from mmfast.reference import exchange, scoring

    if source:
        print(f"{exchange.import_file(settings, source)} responses taken from {source}")
    elif target:
        print(f"{exchange.export_file(settings, target)} pairs written to {target}")
    else:
        print(scoring.reference(settings))


@app.command(context_settings=TAKES_OVERRIDES)
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    ranks: Annotated[int, typer.Option(help="Of how many ranks the run will be.", min=1)] = 1,
    gpus_per_node: Annotated[
        int | None,
        typer.Option(help='Ranks of a node, which parallel.shard = "hybrid" shards over; default: 8.', min=1),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda: whose memory is estimated.")] = "cuda",
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show before a run: tokens saved by sharing, packs, balance between ranks, time by part, memory by part."""
    from mmfast.config import load

    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device {device!r}: choose cpu or cuda")
    settings = load(config, overrides or [])
    if gpus_per_node is not None and (settings.parallel.shard != "hybrid" or settings.parallel.shard_size):
        raise ValueError('--gpus-per-node has no effect: it is for parallel.shard = "hybrid" without shard_size')
    from mmfast.training import forecast as planning

    nodes = {} if gpus_per_node is None else {"gpus_per_node": gpus_per_node}
    report = planning.plan(settings, ranks=ranks, device=device, **nodes)
    if as_json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        planning.show(report)


@app.command()
def init(
    data: Annotated[str, typer.Argument(help="A data file, a directory of shards, or a data set's hub id.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Model directory or hub id.")],
    images: Annotated[str, typer.Option(help="Root of relative image paths; default: beside the file.")] = "",
    split: Annotated[str, typer.Option(help="Of a folder or hub id that has several: which is read.")] = "",
    gpus: Annotated[int, typer.Option(help="Of how many GPUs of a machine the run will be.", min=1)] = 1,
    memory: Annotated[float, typer.Option(help="GiB of each GPU; 0: what is here.", min=0)] = 0,
) -> None:
    """Print a config to start from, filled in from the data, the model and the memory: mmfast init ... > my.toml"""
    from mmfast.training.starting import starting_config

    print(starting_config(data, model, images=images, split=split, gpus=gpus, memory_gib=memory), end="")


@app.command()
def recipes() -> None:
    """List the recipes: what each reproduces, and an estimate of its memory on a GPU."""
    from rich.console import Console
    from rich.table import Table

    from mmfast.training.recipes import FOLDER
    from mmfast.training.recipes import recipes as found

    table = Table("recipe", "GPUs", "GiB each", "reproduces", box=None, pad_edge=False)
    for row in found():
        table.add_row(*(str(row.get(key, "-")) for key in ("name", "gpus", "gib_per_gpu", "about")))
    Console().print(table)
    print(f"\nThe files: {FOLDER}/NAME.toml")


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="Where everything is kept; default: runs/demo, or runs/papers.")] = "",
    seed: Annotated[int, typer.Option(help="Of the world and the training.", min=0)] = 0,
    processes: Annotated[int, typer.Option(help="Training processes; 0: one a GPU, else 2.", min=0)] = 0,
    papers: Annotated[bool, typer.Option("--papers", help="All four papers in miniature instead.")] = False,
) -> None:
    """Make a small VLM that hallucinates, align it, and judge it before and after: the whole system in minutes. With
    --papers: every method of the four papers beside its blind control (docs/papers-world.md)."""
    if papers:
        from mmfast.papers.run import papers as all_four

        all_four(out or "runs/papers", seed=seed, workers=processes)
        return
    from mmfast.demo import demo as run

    run(out or "runs/demo", seed=seed, processes=processes)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several are compared.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the report; default: the run's own.")] = None,
) -> None:
    """Write a run's page, report.html; or compare several runs, what differs first: compare.html."""
    from mmfast.training.report import report as run

    print(run(runs, out))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    formats: Annotated[list[str] | None, typer.Option("--format", help="hf, peft, llava; default: the run's.")] = None,
    step: Annotated[int, typer.Option(help="Which checkpoint; 0: the last.")] = 0,
    merge: Annotated[bool, typer.Option("--merge", help="Merge a run's adapter into the hf format.")] = False,
) -> None:
    """Write a checkpoint as files that transformers, peft or LLaVA load, to RUN/export/step-N/FORMAT."""
    from mmfast.training.export import export as write

    out = write(run, tuple(formats or ()), step, merge)
    for folder in sorted(out.iterdir()):
        print(folder)


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="A folder with a PEFT adapter.")],
    out: Annotated[Path, typer.Argument(help="Where the merged model goes.")],
    base: Annotated[str, typer.Option(help="The base model; default: the one the adapter names.")] = "",
) -> None:
    """Merge a LoRA adapter into its base model, shard by shard, and check a few rows' log-probs before and after."""
    from mmfast.models.merge import merge as run

    worst = run(adapter, out, base)
    print(f"{out}: merged; log-probs differ by {worst:.2g} nat at most")


@app.command("import")
def import_(
    model: Annotated[str, typer.Argument(help="A folder or hub id, as it was published.")],
    out: Annotated[Path, typer.Argument(help="Where the new folder goes.")],
) -> None:
    """Make a published model one that mmfast reads: .bin shards to safetensors, and what transformers lacks of it."""
    from mmfast.models.importing import import_model

    print(f"{import_model(model, out)}: imported")


# Behind the commands of a training, in the order of `mmfast --help`
app.add_typer(data, name="data")
app.add_typer(evaluate, name="eval")
app.command()(generate)
app.command()(critique)
app.command()(judge)
app.command()(correct)
app.command()(corrected)
app.add_typer(feedback, name="feedback")
app.command()(grade)
app.command()(decompose)
app.command()(check)
app.command(context_settings=TAKES_OVERRIDES)(rounds)
app.command(context_settings=TAKES_OVERRIDES)(reproduce)
app.command()(logprobs)


def main() -> None:
    """Entry point. A user's mistake (ValueError, a file that cannot be opened) is one line; anything else keeps its
    traceback."""
    try:
        app()
    except (ValueError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        sys.exit(f"mmfast: {error}")
    except ModuleNotFoundError as error:
        missing(error)
    except RuntimeError as error:
        if not type(error).__module__.startswith("mmfast."):
            raise  # a fault of ours, or of torch
        sys.exit(f"mmfast: {error}")


if __name__ == "__main__":
    main()
