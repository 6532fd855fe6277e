"""Pages of HTML that need nothing beside themselves: one style, tables, and pictures inside the page."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:66rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{border-bottom:1px solid #ddd;padding:.25rem .8rem;text-align:right}
td:first-child,th:first-child{text-align:left}img{max-width:100%}mark{background:#ffc9c9}
pre{white-space:pre-wrap;background:#f7f7f7;padding:.6rem;border-radius:.3rem}"""


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


def page(title: str, parts: Iterable[str], *, heading: str = "", style: str = "") -> str:
    """`parts` are HTML, `title` and `heading` (default: the title) are text; `style` comes after the common one."""
    top = f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}\n{style}</style>"
    return "\n".join([top, f"<h1>{html.escape(heading or title)}</h1>", *parts, ""])


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
