"""Which engine a command asks: its options, opened once they are known to be good; and how a stage's command runs, ends
and says what became of it. One home for all stages."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mmfast.engines.base import Engine
    from mmfast.engines.stage import Tally
    from mmfast.job.runtime import Runtime

# An engine's name -> where it is made, and which of the options below it takes
ENGINES = {
    "local": ("mmfast.engines.local:Local", ("--adapter", "--dtype", "--template", "--aspect")),
    "plain": ("mmfast.engines.plain:Plain", ("--adapter", "--dtype", "--remote-code", "--template")),
    "world": ("mmfast.engines.world:World", ("--noise",)),
    "server": ("mmfast.engines.server:Server", ("--concurrency", "--prices")),
    "people": ("mmfast.engines.people:People", ()),
}
# What an engine may lack -> the options that ask for it
ABILITY = {
    "sample": "--temperature",
    "repetition_penalty": "--repetition-penalty",
    "beams": "--beams",
    "stop": "--stop",
    "score": "mmfast logprobs",
}

# The options, for the signatures of commands
Engines = Annotated[str, typer.Option("--engine", help="local, plain, world, people[:K], or servers: URL[,URL].")]
Model = Annotated[
    str, typer.Option("--model", "-m", help="Directory or hub id; a server's name of it; a world's or people's folder.")
]
Adapter = Annotated[str, typer.Option(help="A directory with a LoRA adapter (local, plain).")]
Dtype = Annotated[str, typer.Option(help="Of the weights (local, plain); default: float32.")]
PromptTemplate = Annotated[
    str, typer.Option("--template", help="A named template, as data.template (local, plain); default: the model's own.")
]
Aspect = Annotated[str, typer.Option(help="How images are fitted, as data.aspect (local); default: the model's own.")]
RemoteCode = Annotated[bool, typer.Option("--remote-code", help="Run the model's own code (plain).")]
Concurrency = Annotated[int, typer.Option(help="Requests at once (servers); 0: 16.", min=0)]
Prices = Annotated[
    str, typer.Option(help="IN,OUT: of a million tokens read and written, where a server tells no costs.")
]
Recorded = Annotated[
    Path | None, typer.Option(help="A file of replies: what it holds is not asked for, the others are added.")
]
Noise = Annotated[float, typer.Option(help="Probability of a wrong answer (world).")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The folder of rows; the same command goes on with it.")]
Limit = Annotated[int, typer.Option(help="How many rows of the input are asked; 0: all.", min=0)]
Debug = Annotated[int, typer.Option(help="Print so many rows, each with its prompt and raw reply.", min=0)]
Allow = Annotated[float, typer.Option(help="Share of failed requests that still passes.", min=0, max=1)]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """An engine as a command's options name it; made before anything is opened, so that mistakes are told first."""

    engine: str
    model: str
    options: dict[str, Any]
    recorded: Path | None = None

    @classmethod
    def of(cls, engine: str, model: str, *, recorded: Path | None = None, prices: str = "", **given: Any) -> Chosen:
        """`given`: the engine options by their names in Python, those that were not given empty."""
        options = {f"--{k.replace('_', '-')}": v for k, v in {**given, "prices": two_prices(prices)}.items()}
        chosen = taken(engine, options)
        if template := chosen.get("template"):
            from mmfast.data.text.templates import NAMES

            if template not in NAMES:
                raise ValueError(f"--template: unknown template {template!r}; choose one of {', '.join(NAMES)}")
        if aspect := chosen.get("aspect"):
            from mmfast.data.images.processor import ASPECTS

            if aspect not in ASPECTS:
                raise ValueError(f"--aspect: unknown aspect {aspect!r}; choose one of {', '.join(ASPECTS)}")
        return cls(engine=engine, model=model, options=chosen, recorded=recorded)

    def check(self, needs: set[str]) -> None:
        """Refuse what the kind of engine cannot do, before weights are read."""
        honoured(needs, maker(self.engine), self.engine)

    def open(self, runtime: Runtime, needs: set[str]) -> Engine:
        try:
            made = opened(maker(self.engine), self.engine, self.model, self.options, runtime)
        except ValueError as error:  # in the words of a command, where a config's key has another name
            told = str(error).replace("data.template", "--template").replace("data.aspect", "--aspect")
            raise ValueError(told) from error
        honoured(needs, made, self.engine)
        return behind(self.recorded, made, runtime) if self.recorded else made


def run_stage(
    out: Path,
    chosen: Chosen,
    needs: set[str],
    check: Callable[[], None],
    run: Callable[[Engine, Runtime], Tally],
    *,
    allow: float = 0.0,
) -> None:
    """Open, answer, count; ends the command. `check`: what can be said to be wrong without an engine."""
    from mmfast.job.runtime import join

    # Open and run
    runtime, made = join(), None
    try:
        chosen.check(needs)
        check()
        runtime.hold(out, "--out")
        made = chosen.open(runtime, needs)
        tally = run(made, runtime)
    except (ValueError, OSError) as error:
        if runtime.marked(error).told:  # type: ignore[attr-defined]  # once a launch, not once a rank
            raise typer.Exit(1) from None
        raise
    except KeyboardInterrupt:
        if runtime.main:
            print(f"\nstopped: what was answered stands in {out}; the same command goes on with it", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        if close := getattr(made, "close", None):
            close()
        runtime.close()
    # What became of it
    if runtime.main:
        usage = getattr(made, "usage", None)
        typer.echo(f"{out}: " + "; ".join(tally.lines() + ([usage.told()] if usage else [])))
        if tally.failed:
            typer.echo(f"failed, with the reasons: {out / 'failed.jsonl'}; the same command tries them again")
    raise typer.Exit(1 if tally.share > allow else 0)


def kind_of(engine: str) -> str:
    if "://" in engine:
        return "server"
    kind, colon, number = engine.partition(":")
    if kind not in ENGINES or kind == "server" or (colon and not (kind == "people" and number.isdecimal())):
        known = "local, plain, world, people, people:K, or URL[,URL] of servers"
        raise ValueError(f"--engine: unknown engine {engine!r}; choose {known}")
    return kind


def taken(engine: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, as the engine's arguments; one that it does not take is refused."""
    kind = kind_of(engine)
    options = {name: value for name, value in given.items() if value}
    for name in options:
        if name not in ENGINES[kind][1]:
            owners = " and ".join(other for other, (_, takes) in ENGINES.items() if name in takes)
            raise ValueError(f"{name} has no effect on the engine {kind}: it is for {owners}")
    return {name[2:].replace("-", "_"): value for name, value in options.items()}


def two_prices(text: str) -> tuple[float, ...]:
    try:
        values = tuple(map(float, text.split(","))) if text else ()
    except ValueError:
        values = (-1.0,)
    if values and (len(values) != 2 or not all(0 <= value < math.inf for value in values)):
        raise ValueError(f"--prices {text}: give two numbers, of a million tokens read and written: --prices 0.5,1.5")
    return values


def behind(file: Path, engine: Engine, runtime: Runtime) -> Engine:
    """The engine behind its recorded replies; several ranks have a file each."""
    from mmfast.engines.recorded import Recorded

    return Recorded(file.with_stem(f"{file.stem}-{runtime.rank}") if runtime.world > 1 else file, engine)


def honoured(needs: set[str], engine: Any, named: str) -> None:
    """Refuse what the engine cannot do. A class may not know it yet."""
    can = getattr(engine, "can", None)
    if isinstance(can, frozenset) and (lacking := sorted(needs - can)):
        asked = ", ".join(ABILITY.get(name, name) for name in lacking)
        raise ValueError(f"{asked}: the engine {named} has no {', '.join(lacking)}: leave it out, or take another")


def maker(engine: str) -> Any:
    home, _, name = ENGINES[kind_of(engine)][0].partition(":")
    return getattr(importlib.import_module(home), name)


def opened(make: Any, engine: str, model: str, options: dict[str, Any], runtime: Runtime) -> Engine:
    if kind_of(engine) == "server":
        return make([url.strip() for url in engine.split(",") if url.strip()], model, **options)
    if ":" in engine:  # people:K
        options = options | {"overlap": int(engine.partition(":")[2])}
    if "device" in inspect.signature(make).parameters:
        options = options | {"device": runtime.device}
    return make(model, **options)
