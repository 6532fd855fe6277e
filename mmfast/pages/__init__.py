"""Pages of HTML that need nothing beside themselves: one style, tables, and pictures inside the page."""

from __future__ import annotations

import base64
import difflib
import html
import io
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

HOME = Path(__file__).parent
STYLE = (HOME / "page.css").read_text(encoding="utf-8")


def small(data: bytes, edge: int) -> Image:
    """An image file's picture, at most `edge` pixels wide and high."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        picture = image.convert("RGB")
    picture.thumbnail((edge, edge))
    return picture


def png(image: Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def page(
    title: str, parts: Iterable[str], *, heading: str = "", style: str = "", script: bool = False, renew: int = 0
) -> str:
    """`parts` are HTML, `title` and `heading` (default: the title) are text; `style` comes after the common one.
    `script`: with what charts do at the pointer. `renew`: seconds after which the page is read again."""
    again = f'<noscript><meta http-equiv="refresh" content="{renew}"></noscript>' if renew else ""
    top = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>{again}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}\n{style}</style></head>"
    )
    body = f'<body data-renew="{renew}" data-written="{time.time():.0f}">' if renew else "<body>"
    own = [f"<script>{(HOME / 'page.js').read_text(encoding='utf-8')}</script>"] if script else []
    return "\n".join([top + body, f"<h1>{html.escape(heading or title)}</h1>", *parts, *own, "</body></html>", ""])


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of HTML cells under headings of text."""
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def texts(row: Iterable[object]) -> list[str]:
    """A table's row of texts and numbers."""
    return [html.escape(f"{cell:.5g}" if isinstance(cell, float) else str(cell)) for cell in row]


def picture(data: bytes | str, alt: str = "", kind: str = "image/png") -> str:
    """An image of the page's own, from its file's bytes or their base64."""
    text = data if isinstance(data, str) else base64.b64encode(data).decode()
    return f'<img alt="{html.escape(alt)}" src="data:{kind};base64,{text}">'


def tiles(facts: Iterable[tuple[str, str]]) -> str:
    """A few (name, value) texts, large."""
    cells = (f"<div><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>" for name, value in facts)
    return f'<div class="tiles">{"".join(cells)}</div>'


def differing(before: str, after: str) -> tuple[str, str]:
    """HTML of both texts: words that only the first has are <del>, those that only the second has are <ins>."""
    a, b = (re.findall(r"\s+|[^\W\u3040-\u30ff\u3400-\u9fff]+|.", text, re.DOTALL) for text in (before, after))
    left, right = "", ""
    for kind, i, j, k, m in difflib.SequenceMatcher(str.isspace, a, b, autojunk=False).get_opcodes():
        gone, come = html.escape("".join(a[i:j])), html.escape("".join(b[k:m]))
        left += gone if kind == "equal" or not gone else f"<del>{gone}</del>"
        right += come if kind == "equal" or not come else f"<ins>{come}</ins>"
    return left, right
