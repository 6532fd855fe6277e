"""A few examples made readable: the decoded prompt, response tokens coloured by side and weight, the images."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mmfast import pages
from mmfast.data.containers.read import iterate
from mmfast.data.examples import ExampleBuilder
from mmfast.data.formats.known import format_of, known_options, read_row
from mmfast.data.images.index import ImageIndex, image_bytes
from mmfast.data.images.processor import ImageProcessor
from mmfast.data.problems import BadRow, Problem
from mmfast.data.records import Branch, Example
from mmfast.data.settings import DataSettings
from mmfast.data.text.templates import Template
from mmfast.data.text.tokens import Tokenizer
from mmfast.directory import directory


@dataclass(frozen=True, slots=True)
class Token:
    text: str
    scored: bool
    weight: float  # explicit weight, or 1
    changed: bool

    @property
    def marked(self) -> bool:
        return self.changed or self.weight != 1.0


@dataclass(frozen=True, slots=True)
class Shown:
    example: Example
    images: list[bytes]
    notes: list[Problem]

    def sides(self) -> Iterator[tuple[str, Branch]]:
        yield "chosen", self.example.chosen
        if self.example.rejected is not None:
            yield "rejected", self.example.rejected


def pieces(tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    """The text each token adds; bytes of one character are shown with its last token."""
    out: list[str] = []
    context = shown = 0  # decoded again with each token, and up to where the text is out
    for k in range(1, len(ids) + 1):
        text = tokenizer.special.decode(ids[context:k].tolist(), skip_special_tokens=False)
        if text.endswith("\ufffd") and k < len(ids):
            out.append("")
            continue
        before = tokenizer.special.decode(ids[context:shown].tolist(), skip_special_tokens=False)
        out.append(text[len(before) :])
        context, shown = shown, k
    return out


def tokens_of(tokenizer: Tokenizer, branch: Branch) -> list[Token]:
    scored = {p: i for i, p in enumerate(p for a, b in branch.spans for p in range(a, b))}
    out = []
    for position, text in enumerate(pieces(tokenizer, branch.ids)):
        i = scored.get(position)
        weight = 1.0 if i is None or branch.weights is None else float(branch.weights[i])
        changed = i is not None and branch.changed is not None and bool(branch.changed[i])
        out.append(Token(text, i is not None, weight, changed))
    return out


def preview(data: DataSettings, model: str | Path, count: int, first: int = 0) -> tuple[Tokenizer, Iterator[Any]]:
    """The tokenizer, and `count` Shown examples (or Problems) from record `first` on. Nothing is kept."""
    folder, data = directory(model), data.here()
    (path, _), *more = data.files()
    if more:
        raise ValueError("show takes one file")
    fmt = format_of(path, data.format)
    known_options([fmt], data.options)
    template = Template(data.template, Tokenizer.load(folder))
    builder = ExampleBuilder(template, data)
    (root,) = data.roots()

    def shown() -> Iterator[Any]:
        with tempfile.TemporaryDirectory() as keep:
            processor = partial(ImageProcessor.from_model_dir, folder, data.aspect, data.min_pixels, data.max_pixels)
            index = ImageIndex(processor if template.tokenizer.image_token_id is not None else None, Path(keep))
            for row in iterate(path):
                try:
                    for record in read_row(fmt, row, {"root": root, **data.options}):
                        infos = [index.look_up(i, root) for i in record.images]
                        example, notes = builder.build(record, infos)
                        yield Shown(example, [image_bytes(i, root)[0] for i in record.images], notes)
                except BadRow as error:
                    yield Problem(row.source, error.kind, str(error))

    return template.tokenizer, islice(shown(), first, first + count)


# in a terminal

STYLES = {"chosen": "green", "rejected": "red"}


def thumbnail(data: bytes, columns: int = 36) -> Any:
    """The picture in half blocks: two pixels a character."""
    from rich.style import Style
    from rich.text import Text

    pixels = np.asarray(pages.small(data, columns))
    if len(pixels) % 2:
        pixels = np.concatenate([pixels, pixels[-1:]])
    text = Text()
    for top, bottom in zip(pixels[::2], pixels[1::2], strict=True):
        for a, b in zip(top, bottom, strict=True):
            upper, lower = (f"#{c[0]:02x}{c[1]:02x}{c[2]:02x}" for c in (a, b))
            text.append("▀", Style(color=upper, bgcolor=lower))
        text.append("\n")
    return text


def print_shown(console: Any, tokenizer: Tokenizer, shown: Shown) -> None:
    from rich.text import Text

    example = shown.example
    console.rule(f"{example.source}  id {example.id}  weight {example.weight:g}")
    plain = not (console.is_terminal and console.color_system)  # then brackets say what is scored
    for data in () if plain else shown.images:
        console.print(thumbnail(data))
    for name, branch in shown.sides():
        text, inside = Text(), False
        for token in tokens_of(tokenizer, branch):
            if plain and token.scored != inside:
                text.append("⟧" if inside else "⟦")
            style, inside = "dim", token.scored
            if token.scored:
                style = STYLES[name] + (" bold underline" if token.marked else "")
            text.append(token.text, style)
            if token.weight != 1.0:
                text.append(f"×{token.weight:g}", "dim italic")
            elif plain and token.changed:
                text.append("×γ")  # what objective.gamma is for
        text.append("⟧" if plain and inside else "")
        n = sum(b - a for a, b in branch.spans)
        changed = 0 if branch.changed is None else int(branch.changed.sum())
        console.print(f"[b]{name}[/b]: {len(branch.ids)} ids, {n} scored, {changed} changed", highlight=False)
        console.print(text, soft_wrap=True)
    for note in shown.notes:
        console.print(f"[yellow]note[/yellow] {note.message}", highlight=False)


# as a page

STYLE = """body{max-width:84rem}section{border-top:1px solid var(--line);padding:1rem 0}
img{max-height:14rem;margin-right:.5rem;border:1px solid var(--line)}pre{color:var(--soft)}
.sides{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(22rem,100%),1fr));gap:0 1rem}
.c{color:var(--good);background:var(--come)}.r{color:var(--bad);background:var(--gone)}
.x{font-weight:700;text-decoration:underline}sub{color:var(--soft)}.note{background:var(--warn)}"""
LEGEND = (
    '<p class="soft">This grey is read and not scored; what is scored is coloured: <span class="c">chosen</span>, '
    '<span class="r">rejected</span>; '
    '<span class="x">underlined</span> is what differs or has a weight, which stands behind it.</p>'
)


def _span(side: str, token: Token) -> str:
    text = html.escape(token.text)
    if not token.scored:
        return text
    weight = f"<sub>{token.weight:g}</sub>" if token.weight != 1.0 else ""
    return f'<span class="{side[0]}{" x" if token.marked else ""}">{text}</span>{weight}'


def page(title: str, tokenizer: Tokenizer, items: list[Any]) -> str:
    body = [LEGEND]
    for item in items:
        if isinstance(item, Problem):
            body.append(f'<section><p class="note">{html.escape(str(item))}</p></section>')
            continue
        example = item.example
        head = f"{example.source} &middot; {example.id} &middot; weight {example.weight:g}"
        images = "".join(pages.picture(data, kind="") for data in item.images)
        sides = []
        for name, branch in item.sides():
            spans = [_span(name, token) for token in tokens_of(tokenizer, branch)]
            sides.append(f"<div><h3>{name}</h3><pre>{''.join(spans)}</pre></div>")
        notes = "".join(f'<p class="note">{html.escape(n.message)}</p>' for n in item.notes)
        shown = f'<div class="sides">{"".join(sides)}</div>'
        body.append(f"<section><h2>{head}</h2>{images}{shown}{notes}</section>")
    return pages.page(title, body, style=STYLE)
