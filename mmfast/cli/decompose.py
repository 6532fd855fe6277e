"""`mmfast decompose`: answers as items that can be checked alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmfast.cli.engine import (
    Adapter,
    Allow,
    Chosen,
    Concurrency,
    Debug,
    Dtype,
    Engines,
    Limit,
    Model,
    Noise,
    Out,
    Prices,
    Recorded,
    RemoteCode,
    run_stage,
)

if TYPE_CHECKING:
    from mmfast.engines.base import Engine
    from mmfast.engines.stage import Tally
    from mmfast.job.runtime import Runtime


def decompose(
    file: Annotated[Path, typer.Argument(help="A folder of answers (mmfast generate).")],
    out: Out,
    engine: Engines,
    model: Model,
    adapter: Adapter = "",
    dtype: Dtype = "",
    remote_code: RemoteCode = False,
    concurrency: Concurrency = 0,
    prices: Prices = "",
    noise: Noise = 0.0,
    recorded: Recorded = None,
    preset: Annotated[
        str, typer.Option(help="dgpref or rlaifv; with _compat: to the letter, its cuts and faults included.")
    ] = "dgpref",
    aspects: Annotated[
        str, typer.Option(help="Some of entity,attribute,count,relation,text,claims; default: the preset's.")
    ] = "",
    prompt: Annotated[
        list[str] | None, typer.Option(help="ASPECT=FILE.toml: a prompt of your own; may be repeated.")
    ] = None,
    retries: Annotated[
        int | None, typer.Option(help="Of a reply that cannot be read; default: the preset's.", min=0)
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Of a reply; default: the preset's.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Of the draws; default: 0.", min=0)] = None,
    limit: Limit = 0,
    debug: Debug = 0,
    allow: Allow = 0.0,
) -> None:
    """Take answers apart into objects, attributes, counts, relations, texts or claims, each with its place in the
    answer and its question. A stopped command goes on where it was. Exit code 1 if more requests failed than
    --allow."""
    # Every mistake in the options is told before anything is opened
    from mmfast.feedback.decompose import decompose as run
    from mmfast.feedback.decompose import planned

    chosen = Chosen.of(
        engine,
        model,
        adapter=adapter,
        dtype=dtype,
        remote_code=remote_code,
        concurrency=concurrency,
        noise=noise,
        prices=prices,
        recorded=recorded,
    )
    own = dict(_named(text) for text in prompt or ())
    drawn = {name: value for name, value in (("max_tokens", max_tokens), ("seed", seed)) if value is not None}
    wanted = tuple(name.strip() for name in aspects.split(",") if name.strip())
    plan = planned(preset, aspects=wanted, prompts=own, retries=retries, **drawn)

    # Open, ask, count
    def check_input() -> None:
        from mmfast.feedback.answers import read_answers

        if out.resolve() == file.resolve() or out.resolve() in file.resolve().parents:
            raise ValueError(f"--out {out} holds the input {file}: name another folder")
        if next(read_answers(file), None) is None:
            raise ValueError(f"{file} holds no answer")

    def answered(made: Engine, runtime: Runtime) -> Tally:
        return run(file, out, made, plan, runtime, limit=limit, debug=debug, allow=allow)

    needs = set() if engine == "world" else plan.decode.needs
    run_stage(out, chosen, needs, check_input, answered, allow=allow)


def _named(text: str) -> tuple[str, str]:
    aspect, equals, path = text.partition("=")
    if not equals:
        raise ValueError(f"--prompt {text!r} is not ASPECT=FILE.toml")
    return aspect, path
