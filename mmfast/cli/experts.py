"""`mmfast check`: do images show what answers say of them?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmfast.cli.engine import (
    Adapter,
    Allow,
    Chosen,
    Concurrency,
    Debug,
    Dtype,
    Limit,
    Noise,
    Out,
    RemoteCode,
    run_stage,
)

if TYPE_CHECKING:
    from mmfast.engines.base import Engine
    from mmfast.engines.stage import Tally
    from mmfast.feedback.routing import Routing
    from mmfast.job.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class Panelled(Chosen):
    """The experts of a table; those that ask an engine and name none ask the command's own."""

    routing: Routing
    own: dict[str, Any] = field(default_factory=dict)  # options of the command's engine

    def check(self, needs: set[str]) -> None:
        for use, options in self._engines():
            chosen = self._chosen(options)
            if use == "world" and chosen.engine != "world":
                raise ValueError(f"--engine {chosen.engine}: the expert world is the annotation: give --engine world")
            chosen.check(needs)

    def open(self, runtime: Runtime, needs: set[str]) -> Engine:
        from mmfast.feedback.panel import Panel
        from mmfast.feedback.routing import open_experts

        def engine(options: Mapping[str, Any]) -> Engine:
            return self._chosen(options).open(runtime, needs)

        return Panel(open_experts(self.routing, engine, runtime.device))

    def _engines(self) -> list[tuple[str, dict[str, Any]]]:
        from mmfast.feedback.routing import ENGINES, OF_ENGINE

        used = [self.routing.content.experts[name] for name in self.routing.used]
        asking = [own for own in used if own["use"] in ENGINES]
        return [(own["use"], {key: own[key] for key in OF_ENGINE if key in own}) for own in asking]

    def _chosen(self, options: Mapping[str, Any]) -> Chosen:
        given = dict(options) or {"engine": self.engine, "model": self.model, **self.own}
        engine, model = given.pop("engine", ""), given.pop("model", "")
        return Chosen.of(engine, model, **given)


def check(
    file: Annotated[Path, typer.Argument(help="A folder of items (mmfast decompose).")],
    out: Out,
    experts: Annotated[
        str,
        typer.Option(help="dgpref, dgpref_compat, rlaifv, asked, world, or a .toml file: which expert checks what."),
    ],
    engine: Annotated[
        str, typer.Option(help="For experts that ask and name none: local, plain, world, or URL[,URL].")
    ] = "",
    model: Annotated[str, typer.Option("--model", "-m", help="Of that engine.")] = "",
    adapter: Adapter = "",
    dtype: Dtype = "",
    remote_code: RemoteCode = False,
    concurrency: Concurrency = 0,
    noise: Noise = 0.0,
    limit: Limit = 0,
    debug: Debug = 0,
    allow: Allow = 0.0,
) -> None:
    """Check each distinct item of an image once: verdict 1 (true), -1 (false), 0 (cannot be judged), -2 (what it is
    about is not there). A stopped command goes on where it was. Exit code 1 if more items failed than --allow."""
    # Every mistake in the options and the table is told before anything is opened
    from mmfast.feedback.routing import read_routing

    routing = read_routing(experts)
    own: dict[str, Any] = {
        "adapter": adapter,
        "dtype": dtype,
        "remote_code": remote_code,
        "concurrency": concurrency,
        "noise": noise,
    }
    given = {name: value for name, value in {"engine": engine, "model": model, **own}.items() if value}
    if routing.asks and not (engine and model):
        raise ValueError(f"--experts {routing.name}: its experts ask an engine: give --engine and --model")
    if not routing.asks and given:
        raise ValueError(
            f"--{next(iter(given)).replace('_', '-')} has no effect: every expert of {routing.name} brings its own"
        )
    chosen = Panelled(engine=engine, model=model, options={}, routing=routing, own=own)
    if routing.asks:
        Chosen.of(engine, model, **own)

    # Open, ask, count
    def check_input() -> None:
        from mmfast.feedback.check import check_routes, kinds_of

        if out.resolve() == file.resolve() or out.resolve() in file.resolve().parents:
            raise ValueError(f"--out {out} holds the input {file}: name another folder")
        check_routes(routing, kinds_of(file, limit))

    def answered(made: Engine, runtime: Runtime) -> Tally:
        from mmfast.feedback.check import check as run
        from mmfast.feedback.panel import Panel

        assert isinstance(made, Panel)
        return run(file, out, made, runtime, limit=limit, debug=debug, allow=allow)

    run_stage(out, chosen, {"labels"}, check_input, answered, allow=allow)
