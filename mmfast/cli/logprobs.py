"""`mmfast logprobs`: how probable a model finds answers that are there already."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmfast.cli.engine import (
    Adapter,
    Allow,
    Chosen,
    Debug,
    Dtype,
    Engines,
    Model,
    Out,
    Recorded,
    RemoteCode,
    run_stage,
)

if TYPE_CHECKING:
    from mmfast.engines.base import Engine
    from mmfast.engines.stage import Tally
    from mmfast.job.runtime import Runtime


def logprobs(
    answers: Annotated[Path, typer.Argument(help="A folder of generate, judge or grade, or a file (docs/formats.md).")],
    out: Out,
    engine: Engines,
    model: Model,
    adapter: Adapter = "",
    dtype: Dtype = "",
    remote_code: RemoteCode = False,
    recorded: Recorded = None,
    images: Annotated[str, typer.Option(help="Root of relative image paths of a file; default: beside it.")] = "",
    limit: Annotated[int, typer.Option(help="How many answers are scored; 0: all.", min=0)] = 0,
    debug: Debug = 0,
    allow: Allow = 0.0,
) -> None:
    """Score answers by a model (local or plain): a row each of the sum of their log-probs and the number of tokens. A
    killed or stopped command goes on where it was; several GPUs: torchrun --nproc-per-node N -m mmfast.cli logprobs"""
    from mmfast.feedback.asking import apart
    from mmfast.feedback.logprobs import NEEDS, check_input
    from mmfast.feedback.logprobs import logprobs as run

    chosen = Chosen.of(engine, model, adapter=adapter, dtype=dtype, remote_code=remote_code, recorded=recorded)

    def check() -> None:
        apart(answers, out)
        check_input(answers, images)

    def asked(made: Engine, runtime: Runtime) -> Tally:
        return run(answers, out, made, runtime, images=images, limit=limit, debug=debug, allow=allow)

    run_stage(out, chosen, NEEDS, check, asked, allow=allow)
