"""`mmfast judge`: all answers of a group rated in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mmfast.cli.asking import Answers, Groups, MaxTokens, PromptName, Retries, Seed, Temperature, given
from mmfast.cli.engine import (
    Adapter,
    Allow,
    Chosen,
    Concurrency,
    Debug,
    Dtype,
    Engines,
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


def judge(
    answers: Answers,
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
    preset: Annotated[str, typer.Option(help="mllm_dpo: five metrics from 0 to 4.")] = "",
    prompt: PromptName = "",
    order: Annotated[
        str,
        typer.Option(help="one (the default): as answers come; random: drawn for each group; both: and turned round."),
    ] = "",
    retries: Retries = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    limit: Groups = 0,
    debug: Debug = 0,
    allow: Allow = 0.0,
) -> None:
    """Let a judge rate all answers to a question in one call, a row each question, with a reference answer. A killed or
    stopped command goes on where it was; several GPUs: torchrun --nproc-per-node N -m mmfast.cli judge ..."""
    # Every mistake in the options is told before anything is opened
    from mmfast.feedback.asking import apart
    from mmfast.feedback.judge import check_input, planned
    from mmfast.feedback.judge import judge as run

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
    how = planned(
        preset,
        decode=given(temperature=temperature, max_tokens=max_tokens, seed=seed),
        **given(prompt=prompt, order=order, retries=retries),
    )

    def check() -> None:
        apart(answers, out)
        check_input(answers)

    # Open, ask, count
    def asked(made: Engine, runtime: Runtime) -> Tally:
        return run(answers, out, made, how, runtime, limit=limit, debug=debug, allow=allow)

    run_stage(out, chosen, how.needs, check, asked, allow=allow)
