"""`mmfast generate`: a model's answers to the prompts of a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmfast.cli.engine import (
    Adapter,
    Allow,
    Aspect,
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
    PromptTemplate,
    Recorded,
    RemoteCode,
    run_stage,
)

if TYPE_CHECKING:
    from mmfast.engines.base import Engine
    from mmfast.engines.stage import Tally
    from mmfast.job.runtime import Runtime

# Options that become fields of Decode under another name
FIELDS = {"n": "samples"}


def generate(
    file: Annotated[Path, typer.Argument(help="Any file that mmfast reads, rows without answers, a folder of images.")],
    out: Out,
    engine: Engines,
    model: Model,
    adapter: Adapter = "",
    dtype: Dtype = "",
    remote_code: RemoteCode = False,
    template: PromptTemplate = "",
    aspect: Aspect = "",
    concurrency: Concurrency = 0,
    prices: Prices = "",
    noise: Noise = 0.0,
    recorded: Recorded = None,
    preset: Annotated[str, typer.Option(help="sima, mllm_dpo, dgpref or rlaifv: how these draw their answers.")] = "",
    ask: Annotated[
        list[str] | None,
        typer.Option(help="Ask this about each image, instead of the input's own prompts; may be repeated."),
    ] = None,
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
    part: Annotated[str, typer.Option(help="K/N: only the K-th of N parts of the input, whole images.")] = "",
    limit: Limit = 0,
    debug: Debug = 0,
    allow: Allow = 0.0,
) -> None:
    """Write a model's answers, a row each, to a folder. A killed or stopped command goes on where it was; several GPUs:
    torchrun --nproc-per-node N -m mmfast.cli generate ... Exit code 1 if more requests failed than --allow."""
    # Every mistake in the options is told before anything is opened
    from mmfast.engines.generate import read_part
    from mmfast.engines.presets import planned

    drawn = {
        "n": n, "temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p, "beams": beams,
        "repetition_penalty": repetition_penalty, "max_tokens": max_tokens, "seed": seed,
        "stop": tuple(stop or ()) or None,
    }  # fmt: skip
    chosen = Chosen.of(
        engine,
        model,
        adapter=adapter,
        dtype=dtype,
        remote_code=remote_code,
        template=template,
        aspect=aspect,
        concurrency=concurrency,
        prices=prices,
        noise=noise,
        recorded=recorded,
    )
    one = read_part(part) if part else (1, 1)
    plan = planned(preset, ask or (), **{FIELDS.get(k, k): v for k, v in drawn.items() if v is not None})
    # Open, answer, count
    from mmfast.engines.generate import check_input
    from mmfast.engines.generate import generate as run

    def answered(made: Engine, runtime: Runtime) -> Tally:
        reading: dict[str, Any] = {"format": format, "images": images, "limit": limit, "part": one}
        return run(file, out, made, plan, runtime, debug=debug, allow=allow, **reading)

    run_stage(out, chosen, plan.needs, lambda: check_input(file, out, plan, format=format), answered, allow=allow)
