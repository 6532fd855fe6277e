"""`mmfast reproduce`: a paper run again, with its figures beside ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def reproduce(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="mllm_dpo, sima, dgpref_llava, dgpref_qwen, rlhfv or rlaifv.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value: each is listed as differing.")
    ] = None,
    root: Annotated[Path, typer.Option(help="The folder of models, data, benchmarks and runs.")] = Path("papers"),
    scale: Annotated[float, typer.Option(help="Run every stage on a share, as a trial.", min=0.0001, max=1)] = 1.0,
    upto: Annotated[str, typer.Option(help="End after this stage: base, answers, ..., run, eval.")] = "",
    check: Annotated[bool, typer.Option("--check", help="Say what is there and what it takes, and end.")] = False,
    fetch: Annotated[bool, typer.Option("--fetch", help="Fetch what the hub has of it first.")] = False,
    accept: Annotated[
        bool, typer.Option("--accept-licences", help="You have read and accept the licences of what is fetched.")
    ] = False,
    write: Annotated[Path | None, typer.Option(help="A JSONL file that the table is added to as a row.")] = None,
) -> None:
    """Run a paper again: say what is there and what is missing, what it takes of this machine, run its rounds (killed
    anywhere, the same command goes on), and end with one table: published, ours, and all in which they differ."""
    from mmfast.cli.rounds import carry_out, known_options, one_decides, read_there
    from mmfast.reproduce import inputs, need, paper, run, table

    with one_decides() as ranks:
        # What is asked
        one, root, known = paper.load_paper(name), root.absolute(), known_options(context)
        given = [text.removeprefix("--") for text in overrides or []]
        if accept and not fetch:
            raise ValueError("--accept-licences has no effect without --fetch: nothing is fetched")
        if write is not None and upto:
            raise ValueError("--write adds the row of a whole run: leave --upto out")
        if fetch:
            from mmfast.reproduce import fetch as fetching

            wanted = fetching.to_fetch(one, root, run.settings_of(one, root, name, 1.0, given, known))
            fetching.fetch(wanted, root, accepted=accept, told=typer.echo)
        asked = run.settings_of(one, root, name, scale, given, known)
        if upto and upto not in run.stages(asked):
            raise ValueError(f"--upto {upto}: the stages of {name} are {', '.join(run.stages(asked))}")
        # What is there, and what it takes
        typer.echo(f"{one.title}\n{one.paper}; {one.code}\nasked: {one.prompts}\njudged by: {one.evaluation}\n")
        lines = inputs.look(one, root, asked)
        for found in lines:
            typer.echo(f"{'there' if found.there else 'MISSING'}  {found.what}: {found.told}")
            if found.fix and not found.there:
                typer.echo(f"         {found.fix}")
        for service in one.services:
            typer.echo(f"needs    {service.stage}: {service.what}")
        takes = need.need(one, asked, root, scale, inputs.parameters(one, asked))
        typer.echo(f"\n{need.told(takes)}")
        missing = [found for found in lines if not found.there]
        if missing:
            first = f"{missing[0].what}: {missing[0].told}"
            raise ValueError(
                f"{len(missing)} of {len(lines)} things are missing or wrong (see above), the first {first}"
            )
        read_there(asked)
        need.refuse_small_disk(takes, root)
        if check:
            return

        def work(crew: Any, console: Any) -> None:
            from mmfast.rounds import report

            run.run(asked, crew, console, report=report.write, upto=upto)
            figures, differences = table.rows(one, asked), table.differs(one, given, scale)
            typer.echo(table.markdown(figures, differences))
            if write is not None:
                write.parent.mkdir(parents=True, exist_ok=True)
                with write.open("a") as file:
                    file.write(table.line(name, scale, figures, differences) + "\n")

        carry_out(asked, work, ranks)
