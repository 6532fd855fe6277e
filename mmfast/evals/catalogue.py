"""The benchmarks as docs/evaluation.md lists them: `python -m mmfast.evals.catalogue` prints the table, and with the
page's path it writes it there."""

from __future__ import annotations

import sys
from pathlib import Path

from mmfast.evals.base import Benchmark
from mmfast.evals.benches import benches

HEAD = ("benchmark", "about", "flavours", "wordings", "needs", "judge", "published")


def catalogue() -> str:
    """A row each: flavours, what must be fetched from where, the judge, published figures with their source."""
    lines = [HEAD, ("---",) * len(HEAD), *(_row(one) for one in benches().values())]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _row(one: Benchmark) -> tuple[str, ...]:
    needs = [
        f"{file.what}{', optional' if file.optional else ''}: {file.source} ({file.licence})"
        for file in one.files.values()
    ]
    flavours, wordings = ", ".join(one.flavours), ", ".join(one.wordings)
    told = (f"`{one.name}`", one.about, flavours, wordings, "; ".join(needs) or "nothing")
    return (*told, one.judge or "none", one.published or "none given")


def written(page: Path) -> None:
    """The page with the table of now: it is the last thing there."""
    text = page.read_text(encoding="utf-8")
    page.write_text(text[: text.index("| " + " | ".join(HEAD))] + catalogue() + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        written(Path(sys.argv[1]))
    else:
        print(catalogue())
