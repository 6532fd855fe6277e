"""`mmfast data prompts`: a set of prompts drawn from a published data set."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from mmfast.config.schema import Data

SOURCE = typer.Argument(help="A file of the data set, as it is published.")
OUT = typer.Option(..., "--out", "-o", help="The prompts to write: .jsonl.")
KIND = typer.Option("auto", help="llava, lrv, scigraphqa, coco, graphs, rows (what generate reads); default: told.")
TAKE = typer.Option(0, help="How many; 0: all. Images, where lines are asked about them.", min=0)
IMAGES = typer.Option("", help=Data.model_fields["images"].description)
TURNS = typer.Option("", help="Of conversations: first (default), or all questions, each asked alone.")
LINES = typer.Option("", help="Of images without questions: eight (default), none (a preset asks), or a file of lines.")
PER_IMAGE = typer.Option(0, help="Most prompts of an image, drawn by the seed; 0: all.", min=0)
ROWS = typer.Option("", help="Only rows FROM:TO of the file, counted from 0, as mllm-dpo took 10000:13000 of LRV.")


def prompts(
    source: Path = SOURCE,
    out: Path = OUT,
    take: int = TAKE,
    seed: int = typer.Option(0),
    images: str = IMAGES,
    kind: str = KIND,
    turns: str = TURNS,
    lines: str = LINES,
    per_image: int = PER_IMAGE,
    rows: str = ROWS,
    on_error: str = typer.Option("raise", help="A bad row: raise or drop."),
) -> None:
    """Draw prompts from a published data set: distinct images and questions, true answers where there are such."""
    from mmfast.data.containers.write import WRITERS
    from mmfast.data.convert import Conversion, keep_apart
    from mmfast.engines.presets import EIGHT
    from mmfast.feedback.published import found_in, kind_of
    from mmfast.feedback.published.base import Taking
    from mmfast.feedback.published.draw import Drawing, drawn, lines_of
    from mmfast.files import whole

    # What is asked for, before anything large is read
    if out.suffix.lower() != ".jsonl":
        raise ValueError(f"{out.name}: prompts are written as .jsonl")
    if on_error not in ("raise", "drop"):
        raise ValueError(f"--on-error: {on_error!r} is not raise or drop")
    if turns not in ("", "first", "all"):
        raise ValueError(f"--turns: {turns!r} is not first or all")
    keep_apart(out, source)
    asked = lines_of(lines or "eight", EIGHT)
    root = Path(images) if images else source if source.is_dir() else source.parent
    if not root.is_dir():
        raise ValueError(f"--images {root}: there is no such folder")
    result = Conversion()
    taking = Taking(root=root, turns=turns or "first", rows=_rows(rows))
    taking.problems = result.problems if on_error == "drop" else None
    # What the data set is, and options that would do nothing to it
    which = kind_of(source, kind)
    idle = {"--turns": bool(turns) and not which.turns, "--lines": bool(lines) and which.asks}
    idle["--per-image"] = per_image > 0 and not which.asks and not asked
    for name, useless in idle.items():
        if useless:
            raise ValueError(f"{name} has no effect on {which.name}: {WHY[name]}")
    # The draw
    how = Drawing(root=root, take=take, seed=seed, per_image=per_image, lines=None if which.asks else asked)
    made = drawn(found_in(source, which, taking), how)
    out.parent.mkdir(parents=True, exist_ok=True)

    def read_again(keep: Callable[[str, bytes], None]) -> None:
        again = replace(taking, keep=keep, left=Counter(), problems=None if taking.problems is None else [])
        deque(found_in(source, which, again), maxlen=0)

    _bring(made, root, out, read_again)
    with whole(out) as temporary:
        WRITERS[".jsonl"](temporary, iter(made))
    typer.echo("\n".join(_told(which.name, made, taking, how, result)))


def _bring(made: list[dict[str, Any]], root: Path, out: Path, read_again: Callable[[Any], None]) -> None:
    """Images as the new file can name them. Those inside rows of the data set are read again, and become files."""
    from mmfast.data.convert import moved_image
    from mmfast.feedback.published.base import INSIDE

    named = {image for row in made for image in row.get("images", [row.get("image")])}
    inside = {image for image in named if image.startswith(INSIDE)}
    moved = {image: moved_image(image, root, out) for image in named - inside}

    def keep(name: str, data: bytes) -> None:
        if name in inside and name not in moved:
            moved[name] = moved_image(data, root, out)

    if inside:
        read_again(keep)
    for row in made:
        if "image" in row:
            row["image"] = moved[row["image"]]
        else:
            row["images"] = [moved[image] for image in row["images"]]


WHY = {
    "--turns": "it has no conversations",
    "--lines": "it has its own questions",
    "--per-image": "--lines none asks nothing",
}


def _rows(text: str) -> tuple[int, int | None]:
    first, colon, last = text.partition(":")
    if not text:
        return 0, None
    if not colon or not all(part.isdecimal() or not part for part in (first, last)):
        raise ValueError(f"--rows {text}: write FROM:TO, counted from 0: --rows 10000:13000")
    begin, end = int(first or 0), int(last) if last else None
    if end is not None and end <= begin:
        raise ValueError(f"--rows {text}: there is no row from {begin} to {end}")
    return begin, end


def _told(name: str, made: list[dict[str, Any]], taking: Any, how: Any, result: Any) -> list[str]:
    """What was drawn, and all that is not among it."""
    truths = sum("reference" in row for row in made)
    several = sum("references" in row for row in made)
    lines = [f"{name}: {len(made):,} prompts about {how.images:,} images, {truths:,} with a true answer"]
    if several:
        lines.append(
            f"{several:,} have several true answers: the most frequent is the reference, all stand in references"
        )
    if how.missing:
        first = next(iter(how.missing))
        lines.append(f"passed over: {len(how.missing):,} images missing under {how.root} (the first: {first})")
    lines += [f"left out: {count:,} {why}" for why, count in sorted((taking.left + how.left).items())]
    if result.problems:
        lines += [f"left out: {len(result.problems):,} bad rows", *(f"left out: {one}" for one in result.problems)]
    return lines
