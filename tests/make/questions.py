"""Requests about pictures of the embedded world."""

from __future__ import annotations

import io
from functools import cache

from mmfast.engines.base import Picture, Request
from mmfast.world.scenes import render, scenes


@cache
def picture(number: int = 0) -> Picture:
    buffer = io.BytesIO()
    render(next(s for i, s in enumerate(scenes(0, "test", number + 1)) if i == number)).save(buffer, "PNG")
    return Picture(f"scene {number}", buffer.getvalue())


def ask(text: str, *pictures: Picture, key: str = "", begins: str = "", **settings) -> Request:
    """`begins`: the beginning of the answer."""
    content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    if begins:
        messages.append({"role": "assistant", "content": begins})
    return Request(key=key or text, messages=tuple(messages), images=pictures, **settings)
