"""Options of the commands that ask an engine about answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Answers = Annotated[Path, typer.Argument(help="A folder of answers, as mmfast generate writes it.")]
PromptName = Annotated[str, typer.Option("--prompt", help="A prompt of mmfast, or a .toml file (docs/feedback.md).")]
Retries = Annotated[
    int | None, typer.Option(help="How often a reply that cannot be read is asked for again, with other seeds.", min=0)
]
Temperature = Annotated[float | None, typer.Option(help="0: greedy (the default); retries are then drawn at 0.7.")]
MaxTokens = Annotated[int | None, typer.Option(help="Of a reply.", min=1)]
Seed = Annotated[int | None, typer.Option(help="Of the replies, and of orders that are drawn; default: 0.")]
Groups = Annotated[int, typer.Option("--limit", help="How many groups of answers are asked about; 0: all.", min=0)]


def given(**options: Any) -> dict[str, Any]:
    """Those that were given."""
    return {name: value for name, value in options.items() if value is not None and value != ""}
