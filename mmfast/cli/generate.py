"""`mmfast generate`: a model's answers to the prompts of a file."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mmfast.engines.base import Engine
    from mmfast.job.runtime import Runtime

# An engine's name -> where it is made, and which of the options below it takes
ENGINES = {
    "local": ("mmfast.engines.local:Local", ("--adapter", "--dtype")),
    "plain": ("mmfast.engines.plain:Plain", ("--adapter", "--dtype", "--remote-code")),
    "world": ("mmfast.engines.world:World", ("--noise",)),
    "server": ("mmfast.engines.server:Server", ("--concurrency",)),
}
# What an engine may lack -> the options that ask for it
ABILITY = {
    "sample": "--temperature",
    "repetition_penalty": "--repetition-penalty",
    "beams": "--beams",
    "stop": "--stop",
}
# Options that become fields of Decode under another name
FIELDS = {"n": "samples"}


def generate(
    file: Annotated[Path, typer.Argument(help="Prompts: any file that mmfast reads, or rows without answers.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of rows; the same command goes on with it.")],
    engine: Annotated[str, typer.Option(help="local, plain, world, or the addresses of servers: URL[,URL].")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Directory or hub id; a server's name of it; a world's folder.")
    ],
    adapter: Annotated[str, typer.Option(help="A directory with a LoRA adapter (local, plain).")] = "",
    dtype: Annotated[str, typer.Option(help="Of the weights (local, plain); default: float32.")] = "",
    remote_code: Annotated[bool, typer.Option("--remote-code", help="Run the model's own code (plain).")] = False,
    concurrency: Annotated[int, typer.Option(help="Requests at once (servers); 0: 16.", min=0)] = 0,
    noise: Annotated[float, typer.Option(help="Probability of a wrong answer (world).")] = 0.0,
    preset: Annotated[str, typer.Option(help="sima, mllm_dpo, dgpref or rlaifv: how these draw their answers.")] = "",
    n: Annotated[
        int | None, typer.Option("--n", "-n", help="Samples of a prompt; default: 1 (torchrun: -n).", min=1)
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0: greedy (the default).")] = None,
    top_p: Annotated[float | None, typer.Option(help="Default: 1.")] = None,
    top_k: Annotated[int | None, typer.Option(help="0: off (the default).")] = None,
    min_p: Annotated[float | None, typer.Option(help="Default: 0.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Default: 1.")] = None,
    beams: Annotated[int | None, typer.Option(help="Beam search; default: 1.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Of an answer; default: 512.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends the answer; may be repeated.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the samples; default: 0.")] = None,
    images: Annotated[str, typer.Option(help="Root of relative image paths; default: beside the file.")] = "",
    format: Annotated[
        str, typer.Option(help="Of the file (docs/formats.md), or prompts: rows without answers.")
    ] = "auto",
    limit: Annotated[int, typer.Option(help="How many rows of the file are asked; 0: all.", min=0)] = 0,
    debug: Annotated[int, typer.Option(help="Print so many rows, each with its prompt and raw reply.", min=0)] = 0,
    allow: Annotated[float, typer.Option(help="Share of failed requests that still passes.", min=0, max=1)] = 0.0,
) -> None:
    """Write a model's answers, a row each, to a folder. A killed or stopped command goes on where it was; several GPUs:
    torchrun --nproc-per-node N -m mmfast.cli generate ... Exit code 1 if more requests failed than --allow."""
    # Every mistake in the options is told before anything is opened
    from mmfast.engines.presets import planned

    drawn = {
        "n": n, "temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p, "beams": beams,
        "repetition_penalty": repetition_penalty, "max_tokens": max_tokens, "seed": seed,
        "stop": tuple(stop or ()) or None,
    }  # fmt: skip
    given = {"--adapter": adapter, "--dtype": dtype, "--remote-code": remote_code, "--concurrency": concurrency}
    options = taken(engine, given | {"--noise": noise})
    plan = planned(preset, **{FIELDS.get(k, k): v for k, v in drawn.items() if v is not None})
    # Open, answer, count
    from mmfast.engines.generate import check_input
    from mmfast.engines.generate import generate as run
    from mmfast.job.runtime import join

    runtime, made = join(), None
    try:
        make = maker(engine)
        honoured(plan.needs, make, engine)  # before weights are read, where the kind of engine tells it
        check_input(file, out, plan, format=format)
        runtime.hold(out, "--out")
        made = opened(make, engine, model, options, runtime)
        honoured(plan.needs, made, engine)
        tally = run(file, out, made, plan, runtime, format=format, images=images, limit=limit, debug=debug, allow=allow)
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
    if engine not in ENGINES or engine == "server":
        raise ValueError(f"--engine: unknown engine {engine!r}; choose local, plain, world, or URL[,URL] of servers")
    return engine


def taken(engine: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, as the engine's arguments; one that it does not take is refused."""
    kind = kind_of(engine)
    options = {name: value for name, value in given.items() if value}
    for name in options:
        if name not in ENGINES[kind][1]:
            owners = " and ".join(other for other, (_, takes) in ENGINES.items() if name in takes)
            raise ValueError(f"{name} has no effect on the engine {kind}: it is for {owners}")
    return {name[2:].replace("-", "_"): value for name, value in options.items()}


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
    if "device" in inspect.signature(make).parameters:
        options = options | {"device": runtime.device}
    return make(model, **options)
