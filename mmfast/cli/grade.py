"""`mmfast grade`: what was checked of answers, as scores and claims."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmfast.cli.engine import Out

Folder = Path | None


def grade(
    answers: Annotated[Path, typer.Argument(help="The answers: a folder of generate, or a file (docs/formats.md).")],
    out: Out,
    items: Annotated[Folder, typer.Option(help="Their items: a folder of mmfast decompose.")] = None,
    verdicts: Annotated[Folder, typer.Option(help="What holds of these: a folder of mmfast check.")] = None,
    aspects: Annotated[
        str, typer.Option(help="Kinds of items that count in `score`, with commas; one named twice counts twice.")
    ] = "",
    sums: Annotated[bool, typer.Option("--sum", help="`score` is the number of wrong items, not their share.")] = False,
    short: Annotated[
        int, typer.Option(help="An answer of fewer words loses the share of them that it lacks; 0: none does.", min=0)
    ] = 0,
    unjudged: Annotated[
        str, typer.Option(help="The score of an answer of which nothing was judged: none, or best (0, as in DGPref).")
    ] = "none",
    beta: Annotated[float, typer.Option(help="Give the implicit reward: beta x (policy - reference).", min=0)] = 0.0,
    policy: Annotated[
        str, typer.Option(help="The policy's log-probs: a folder of mmfast logprobs, or a field of the answers.")
    ] = "logp",
    reference: Annotated[str, typer.Option(help="The reference's: likewise.")] = "ref_logp",
    whole: Annotated[bool, typer.Option("--whole", help="The reward is the answer's, not a token's mean.")] = False,
    images: Annotated[str, typer.Option(help="Root of relative image paths of a file; default: beside it.")] = "",
) -> None:
    """Write a row of scores and claims for each answer, to a folder that `mmfast data pairs` reads. It asks no engine,
    and writes the whole folder anew."""
    # Options that would do nothing
    given = {"--aspects": bool(aspects), "--sum": sums, "--short": bool(short), "--unjudged": unjudged != "none"}
    if items is None and (idle := [name for name, said in given.items() if said]):
        raise ValueError(f"{idle[0]} counts items: it needs --items and --verdicts")
    rewards = {"--policy": policy != "logp", "--reference": reference != "ref_logp", "--whole": whole}
    if not beta and (idle := [name for name, said in rewards.items() if said]):
        raise ValueError(f"{idle[0]} is for the implicit reward: it needs --beta")
    # Read, grade, write
    from mmfast.feedback.grade import Grading
    from mmfast.feedback.grade import grade as run
    from mmfast.job.runtime import join

    grading = Grading(
        aspects=tuple(aspects.split(",")) if aspects else (), average=not sums, short=short, unjudged=unjudged,
        beta=beta, normalise=not whole, policy=policy, reference=reference,
    )  # fmt: skip
    runtime = join()
    try:
        done = run(answers, items, verdicts, out, grading, runtime, images=images)
    finally:
        runtime.close()
    typer.echo(f"{out}: " + "\n".join(done.lines()))
