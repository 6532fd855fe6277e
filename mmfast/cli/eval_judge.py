"""Which judge a command asks: its options, and the judge, opened once answers are there. Mistakes are told before."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmfast.cli.engine import Chosen

if TYPE_CHECKING:
    from mmfast.evals.base import Judge
    from mmfast.job.runtime import Runtime

JudgeName = Annotated[
    str,
    typer.Option("--judge", help="An engine as --engine; recorded:FILE or replies:FILE for replies that are there."),
]
JudgeModel = Annotated[str, typer.Option(help="The judge's model.")]
JudgeRecord = Annotated[
    str, typer.Option("--judge-recorded", help="The judge's replies are kept here; default: beside the answers.")
]
Runs = Annotated[int, typer.Option(help="How often the judge is asked, each time with other seeds.", min=1)]


def judge_of(
    judge: str, model: str, recorded: str = "", allow: float = 0.0
) -> Callable[[Path], AbstractContextManager[Judge | None]]:
    """What opens the judge, given where its replies are kept if --judge-recorded names no file."""
    # Mistakes in the options
    kind, _, file = judge.partition(":")
    given = kind in ("recorded", "replies")
    if judge and not given and not model:
        raise ValueError("--judge asks an engine: give its model in --judge-model")
    if model and (given or not judge):
        raise ValueError("--judge-model has no effect: " + ("replies are given" if given else "there is no --judge"))
    if given and not Path(file).is_file():
        raise ValueError(f"--judge {judge}: there is no such file")
    for name, value in (("--judge-recorded", recorded), ("--allow", allow)):
        if value and (given or not judge):
            raise ValueError(f"{name} has no effect: it is for a judge that is asked")
    # An engine, a record of one, or a list of replies
    chosen = Chosen.of(judge, model) if judge and not given else None

    @contextmanager
    def opened(beside: Path) -> Iterator[Judge | None]:
        from mmfast.evals.judge import EngineJudge, ListedJudge

        if not judge:
            yield None
            return
        if kind == "replies":
            listed = ListedJudge(file)
            yield listed
            listed.close()
            return
        made: Any = chosen.open(_alone(), set()) if chosen is not None else None
        asking = EngineJudge(made, model, record=recorded or (beside if made is not None else file), allow=allow)
        try:
            yield asking
        finally:
            asking.close()
            if usage := getattr(made, "usage", None):
                typer.echo(f"judge: {usage.told()}")
            if close := getattr(made, "close", None):
                close()

    return opened


def _alone() -> Runtime:
    """This process by itself: under torchrun rank 0 alone judges, and the other ranks have left."""
    import torch

    from mmfast.job.runtime import Runtime

    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else "cpu"
    return Runtime(0, 1, 0, 1, torch.device(device))
