"""`mmfast rounds`: prompts to an aligned model, again and again."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer


def rounds(
    context: typer.Context,
    config: Annotated[
        Path, typer.Argument(help="A TOML file: a training config with sections of its own (docs/rounds.md).")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, over the file's own.")] = None,
    status: Annotated[bool, typer.Option("--status", help="Print what is done and what is to do, and end.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands of all rounds, and end.")] = False,
) -> None:
    """Answers, feedback, pairs, training, evaluation, and again. Killed anywhere, the same command goes on; a step
    whose folder was deleted is done again, with all that follows from it. On several nodes: the same command under
    torchrun on each."""
    from rich.console import Console

    from mmfast.rounds import loop, report, settings

    def all_rounds(crew: Any, console: Console) -> None:
        model = loop.run(asked, crew, console, report=report.write)
        page = report.write(asked)
        typer.echo(f"the model: {model}\nwhat came of it: {page}")

    with one_decides() as ranks:
        asked = settings.load(config, overrides or [], known_options(context))
        if status:
            _status(loop.status(asked), Console())
            return
        if dry_run:
            _commands(asked)
            return
        read_there(asked)
        carry_out(asked, all_rounds, ranks)


@contextmanager
def one_decides() -> Iterator[Any]:
    """Under torchrun what stands in it is done by rank 0 alone, which is given the ranks; the others do what these are
    told, and end as rank 0 does."""
    from mmfast.rounds.launch import Ranks

    ranks = Ranks() if "RANK" in os.environ else None
    if ranks is not None and not ranks.main:
        raise typer.Exit(ranks.serve())
    code = 1
    try:
        yield ranks
        code = 0
    except typer.Exit as ended:
        code = ended.exit_code
        raise
    finally:
        if ranks is not None:
            ranks.end(code)


def carry_out(asked: Any, work: Callable[[Any, Any], None], ranks: Any) -> NoReturn:
    """Does `work` with a crew and a console, one command at a time in a folder, and ends with what came of it as exit
    code. `ranks`: of a launch; None: the processes of this machine."""
    from rich.console import Console

    from mmfast.rounds.launch import Interrupted, Machine

    crew, code = ranks or Machine(asked.rounds.processes), 1
    try:
        console = Console(stderr=True)
        with _held(asked.folder):
            work(crew, console)
        code = 0
    except Interrupted as error:
        print(f"stopped by {error}; the same command goes on", file=sys.stderr)
        code = 130 if str(error) == "SIGINT" else 75
    except ValueError as error:
        print(f"mmfast: {error}", file=sys.stderr)
    except OSError as error:  # a full disk, mostly
        print(f"mmfast: {error.filename or asked.folder}: {error.strerror}; the same command goes on", file=sys.stderr)
    raise typer.Exit(code)


def read_there(asked: Any) -> None:
    """What is read must be there before the base is judged."""
    from mmfast.engines.inputs import input_files

    for name, path in (("prompts.path", asked.prompts.path), *(("pairs.file", one.file) for one in asked.pairs)):
        try:
            _ = path and input_files(Path(path))
        except ValueError as error:
            raise ValueError(str(error).replace("data.path", name)) from None


def _held(folder: Path) -> Any:
    """One command at a time."""
    from contextlib import closing

    from mmfast.job.runfolder import Lock

    return closing(Lock(folder))


def known_options(context: typer.Context) -> dict[str, dict[str, bool]]:
    """Of every command that a round can have."""
    from mmfast.rounds.settings import MAKERS, STAGES

    root = context.find_root().command
    return {name: options_of(root, name) for name in ("generate", "eval", *STAGES, *MAKERS)}


def options_of(root: Any, stage: str) -> dict[str, bool]:
    """The options of a command of `mmfast` by their names, and whether each may be repeated."""
    from mmfast.rounds.settings import words

    command = root
    for word in words(stage):
        command = command.commands[word]
    named = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    return {name.removeprefix("--"): bool(one.multiple) for one in named for name in one.opts if name.startswith("--")}


def _status(rows: list[dict[str, Any]], console: Any) -> None:
    from rich.table import Table

    table = Table("round", "step", "state", "seconds", "said", box=None, pad_edge=False)
    for row in rows:
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        table.add_row(str(row["round"]) if row["round"] else "base", row["step"], row["state"], seconds, row["said"])
    console.print(table)


def _commands(asked: Any) -> None:
    """Of every round, as if each started from the model of the one before."""
    import shlex

    from mmfast.rounds import choice
    from mmfast.rounds.steps import judged, round_of

    if asked.judged:
        typer.echo(f"# base\nmmfast {shlex.join(judged(asked, 0, asked.base, None).command)}")
    for number in range(1, asked.rounds.count + 1):
        typer.echo(f"# round {number}")
        for step in round_of(asked, number, *choice.model_of(asked, number - 1)):
            typer.echo(f"mmfast {shlex.join(step.command)}")
