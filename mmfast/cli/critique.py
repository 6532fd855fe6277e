"""`mmfast critique`: which of two answers is better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mmfast.cli.asking import Answers, Groups, MaxTokens, PromptName, Retries, Seed, Temperature, given
from mmfast.cli.engine import (
    Adapter,
    Allow,
    Aspect,
    Chosen,
    Concurrency,
    Debug,
    Dtype,
    Engines,
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


def critique(
    answers: Answers,
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
    preset: Annotated[str, typer.Option(help="sima: its self-critic's conditions.")] = "",
    prompt: PromptName = "",
    pairs: Annotated[str, typer.Option(help="all (the default), adjacent, greedy-sample.")] = "",
    order: Annotated[str, typer.Option(help="both (the default): a verdict counts if they agree; one; random.")] = "",
    read: Annotated[str, typer.Option(help="text (the default), or labels: the probability of either verdict.")] = "",
    retries: Retries = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    limit: Groups = 0,
    debug: Debug = 0,
    allow: Allow = 0.0,
) -> None:
    """Let a critic say which of two answers to a question is better, a row each comparison. A killed or stopped command
    goes on where it was; several GPUs: torchrun --nproc-per-node N -m mmfast.cli critique ..."""
    # Every mistake in the options is told before anything is opened
    from mmfast.feedback.asking import apart
    from mmfast.feedback.critique import check_input, planned
    from mmfast.feedback.critique import critique as run

    chosen = Chosen.of(
        engine,
        model,
        adapter=adapter,
        dtype=dtype,
        remote_code=remote_code,
        template=template,
        aspect=aspect,
        concurrency=concurrency,
        noise=noise,
        prices=prices,
        recorded=recorded,
    )
    changes = given(prompt=prompt, pairs=pairs, order=order, read=read, retries=retries)
    critic = planned(preset, decode=given(temperature=temperature, max_tokens=max_tokens, seed=seed), **changes)

    def check() -> None:
        apart(answers, out)
        check_input(answers, critic)

    # Open, ask, count
    def asked(made: Engine, runtime: Runtime) -> Tally:
        return run(answers, out, made, critic, runtime, limit=limit, debug=debug, allow=allow)

    run_stage(out, chosen, critic.needs, check, asked, allow=allow)
