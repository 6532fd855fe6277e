"""The `mmfast` command. Each command imports what it needs when it runs, so that `mmfast --help` is instant."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

try:
    import typer
except ImportError:  # the ops alone need only torch and numpy
    sys.exit("the mmfast command needs its training packages: pip install 'mmfast[train]'")

from mmfast.data.cli import app as data

app = typer.Typer(
    help="mmfast: align vision-language models with preferences.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
app.add_typer(data, name="data")

ConfigFile = Annotated[str, typer.Argument(help="A TOML file; docs/config.md has every key.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value, over the file's own.")]


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Show versions, devices and backends, say which would be used and why, and test each op against its oracle."""
    from mmfast.doctor import examine, show

    findings = examine()
    show(findings, as_json=as_json)
    raise typer.Exit(1 if findings.problems else 0)


@app.command()
def train(config: ConfigFile, overrides: Overrides = None) -> None:
    """Train in this one process. On several GPUs: torchrun --nproc-per-node N -m mmfast.train CONFIG."""
    from mmfast.config import load
    from mmfast.train import train as run

    run(load(config, overrides or []))


@app.command()
def reference(config: ConfigFile, overrides: Overrides = None) -> None:
    """Score the reference into the cache and print where it lies (train does this by itself on first use)."""
    from mmfast.config import load
    from mmfast.reference import reference as run

    print(run(load(config, overrides or [])))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several are compared.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the report; default: the run's own.")] = None,
) -> None:
    """Plot a run's metrics, or compare several runs: report.html and report.png."""
    from mmfast.report import report as run

    print(run(runs, out))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    formats: Annotated[list[str] | None, typer.Option("--format", help="hf, peft, llava; default: the run's.")] = None,
    step: Annotated[int, typer.Option(help="Which checkpoint; 0: the last.")] = 0,
) -> None:
    """Write a checkpoint as files that transformers, peft or LLaVA load."""
    from mmfast.export import export as write

    print(write(run, tuple(formats or ()), step))


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="A folder with a PEFT adapter.")],
    out: Annotated[Path, typer.Argument(help="Where the merged model goes.")],
    base: Annotated[str, typer.Option(help="The base model; default: the one the adapter names.")] = "",
) -> None:
    """Merge a LoRA adapter into its base model, shard by shard, and check a few rows' log-probs before and after."""
    from mmfast.export import merge as run

    worst = run(adapter, out, base)
    print(f"{out}: merged; log-probs differ by {worst:.2g} nat at most")


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="Where everything is kept.")] = "runs/demo",
    seed: Annotated[int, typer.Option(help="Of the world and the training.")] = 0,
    processes: Annotated[int, typer.Option(min=0, help="Training processes (0: one a GPU, else 2).")] = 0,
) -> None:
    """Make a small VLM that hallucinates, align it with DDPO, and report its hallucination before and after."""
    from mmfast.demo import demo as run

    run(out, seed=seed, processes=processes)


def main() -> None:
    """Entry point. A user's mistake (ValueError, a missing file) is one line; anything else keeps its traceback."""
    try:
        app()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"mmfast: {error}")


if __name__ == "__main__":
    main()
