"""`mmfast feedback import|export|prompts`: into our stages from the seeds' own files, and out of them again; what is
said to models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmfast.cli.builders import ANSWER, OPTION, QUESTIONS, options_of

app = typer.Typer(
    help="Enter and leave at any stage of a published pipeline (docs/pipelines.md); prompts of the stages.",
    no_args_is_help=True,
)

Images = Annotated[str, typer.Option(help="Root of relative image paths; default: beside the file of answers.")]
Target = Annotated[Path, typer.Option("--out", "-o", help="The file to write.")]
File = Path | None


@app.command("import")
def enter(
    file: Annotated[Path, typer.Argument(help="Answers; RLAIF-V's facts; DGPref's decompositions.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder, as of mmfast generate or mmfast decompose.")],
    answers: Annotated[File, typer.Option(help="DGPref: the captions that were decomposed.")] = None,
    questions: Path = QUESTIONS,
    answer: str = ANSWER,
    images: Images = "",
    option: list[str] = OPTION,
) -> None:
    """Make a folder of a stage of what another system wrote: of its answers (joined with their questions), or of the
    items that it decomposed them to."""
    from mmfast.feedback.enter import enter as run
    from mmfast.job.runtime import join

    runtime = join()
    try:
        done = run(
            file,
            out,
            runtime,
            answers=answers,
            questions=questions,
            answer=answer,
            images=images,
            options=options_of(option),
        )
    finally:
        runtime.close()
    typer.echo(f"{out}: " + "\n".join(done.lines()))


@app.command("export")
def leave(
    source: Annotated[Path, typer.Argument(help="Answers: a folder of generate, judge, grade or critique, or a file.")],
    out: Target,
    name: Annotated[
        str,
        typer.Option(
            "--as",
            help="rlaifv.answers, .facts, .questions, .autocheck; sima.responses, .results; mllm_dpo.questions, "
            ".answers, .judged; dgpref.captions, .decomposition, .experts.",
        ),
    ],
    answers: Annotated[File, typer.Option(help="What judge or critique names by keys; default: its input.")] = None,
    items: Annotated[File, typer.Option(help="A folder of mmfast decompose.")] = None,
    verdicts: Annotated[File, typer.Option(help="A folder of mmfast check.")] = None,
    images: Annotated[str, typer.Option(help="Tell image paths from this folder on; default: whole.")] = "",
    option: list[str] = OPTION,
) -> None:
    """Write a file of a published pipeline, and say what it has no place for."""
    from mmfast.feedback.leave import leave as run

    left = run(
        source, out, name, answers=answers, items=items, verdicts=verdicts, images=images, options=options_of(option)
    )
    typer.echo("\n".join([f"{out}: {left.rows} rows", *left.lines]))


@app.command()
def prompts(
    name: Annotated[str, typer.Argument(help="Show this one; default: list them.")] = "",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Copy it to this .toml file, to be edited.")] = None,
) -> None:
    """List the prompts of critics, judges and decomposing models, show one, or copy one out for --prompt FILE."""
    from mmfast.feedback.prompts import known, place, prompt

    if not name:
        if out is not None:
            raise ValueError("--out copies one prompt: name it (mmfast feedback prompts NAME --out FILE.toml)")
        for each in known():
            typer.echo(f"{each:20} {prompt(each).wording.about}")
        return
    prompt(name)  # an unknown one is told
    if out is None:
        typer.echo(place(name).read_text(encoding="utf-8"), nl=False)
        return
    if out.suffix != ".toml":
        raise ValueError(f"{out.name}: a prompt is a .toml file")
    if out.exists():
        raise ValueError(f"{out} is there already: remove it, or name another file")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(place(name).read_bytes())
    typer.echo(f"{out}: edit it, and give it with --prompt (docs/feedback.md)")
