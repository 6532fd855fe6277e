"""Messages of {role, content}: made of the turns, markers and image columns of a file, and written as those again."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from mmfast.data.problems import BadRow


def with_markers(text: str, marker: str = "<image>") -> list[dict] | str:
    """A question whose images are written as markers, as content parts; a newline beside a marker goes with it.

    The chat template (or the named one) decides what stands around an image.
    """
    if marker not in text:
        return text
    out: list[dict] = []
    pieces = text.split(marker)
    for i, piece in enumerate(pieces):
        if i:
            out.append({"type": "image"})
            piece = piece.removeprefix("\n")
        if i < len(pieces) - 1 and not piece.strip():
            piece = ""
        if piece:
            out.append({"type": "text", "text": piece})
    if out and out[-1]["type"] == "image" and len(out) > 1 and out[-2]["type"] == "text":
        out[-2] = {"type": "text", "text": out[-2]["text"].removesuffix("\n")}
    return out


def to_markers(message: dict, marker: str = "<image>") -> str:
    """The inverse for writing: every image where it stands, with a newline after it."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(f"{marker}\n" if p["type"] == "image" else p["text"] for p in content)


def question(text: str, images: int, marker: str = "<image>") -> dict:
    """A user turn of a format whose images stand in their own column: markers are kept, else images come first."""
    content = with_markers(text, marker)
    if isinstance(content, str) and images:
        content = [{"type": "image"}] * images + [{"type": "text", "text": content}]
    return {"role": "user", "content": content}


def answer(text: Any) -> dict:
    if not isinstance(text, str):
        raise BadRow("format", f"an answer is a {type(text).__name__}, not a text")
    return {"role": "assistant", "content": text}


SPEAKERS = ("system", "user", "assistant")


def chat(value: Any, name: str, inside: list, roles: Sequence[str] = SPEAKERS) -> list[dict]:
    """Messages of {role, content} as they come (Parquet fills absent part fields with null), reduced to these two.

    Images that stand in a content part are added to `inside`, and the part gets its index there.
    """
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(m, dict) and "role" in m and "content" in m for m in value):
        raise BadRow("format", f"{name} is not a list of messages with role and content")
    out = []
    for message in value:
        content = message["content"]
        if isinstance(content, list):
            content = [_part(p, name, inside) for p in content]
            if message["role"] != "user" and all(p["type"] == "text" for p in content):
                content = "".join(p["text"] for p in content)
        elif not isinstance(content, str):
            raise BadRow("format", f"{name}: a message's content is a {type(content).__name__}")
        if message["role"] not in roles:
            raise BadRow("format", f"{name}: unknown role {message['role']!r}")
        out.append({"role": message["role"], "content": content})
    last = value[-1] if value and value[-1]["role"] == "assistant" else {}
    if (weight := last.get("loss_weight")) not in (None, 1):
        raise BadRow("weight", f"{name}: the last answer has loss_weight {weight}: weigh a row by its column weight")
    return out


PLACES = ("image", "image_url", "url", "path", "value", "base64")  # of an image, in a part of content


def _part(part: Any, name: str, inside: list) -> dict:
    """A part of content: of TRL and transformers {type, text or image}, of OpenAI {type, image_url}, of LLaMA-Factory
    {type, value}."""
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("value") if kind == "text" and part.get("text") is None else kind and part.get("text")
    if kind == "text" and isinstance(text, str):
        return {"type": "text", "text": text}
    if kind in ("image", "image_url"):
        place = next((k for k in PLACES if part.get(k) is not None), None)
        if place is None:
            return {"type": "image"} if part.get("index") is None else {"type": "image", "index": part["index"]}
        image = part[place]
        if isinstance(image, dict) and "url" in image:
            image = image["url"]
        if place == "base64":
            image = f"base64:{image}"
        if image not in inside:
            inside.append(image)
        return {"type": "image", "index": inside.index(image)}
    raise BadRow("format", f"{name}: a content part is neither text nor image: {str(part)[:80]}")


def asked(text: Any, history: Any, images: int) -> list[dict]:
    """The turns before an answer: a history of [question, answer] pairs, and what is asked now."""
    try:
        history = ast.literal_eval(history) if isinstance(history, str) and history.strip() else history or []
        pairs = [(before, said) for before, said in history]
    except (SyntaxError, TypeError, ValueError):
        pairs = [(None, None)]
    if not all(isinstance(side, str) for pair in pairs for side in pair):
        raise BadRow("format", "history is not a list of [question, answer] pairs of texts")
    if not isinstance(text, str):
        raise BadRow("format", f"the question is a {type(text).__name__}, not a text")
    turns = [message for before, said in pairs for message in ({"role": "user", "content": before}, answer(said))]
    return place_images([*turns, {"role": "user", "content": text}], images)


def as_history(prompt: Sequence[dict]) -> tuple[str, list[list[str]], str] | None:
    """The other way: system text, history and question; None where turns do not alternate."""
    system = to_markers(prompt[0]) if prompt and prompt[0]["role"] == "system" else ""
    turns = [*prompt[1:]] if prompt and prompt[0]["role"] == "system" else [*prompt]
    roles = [message["role"] for message in turns]
    if roles != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        return None
    texts = [to_markers(message) for message in turns]
    return system, [[q, a] for q, a in zip(texts[:-1:2], texts[1::2], strict=True)], texts[-1]


ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "chatgpt": "assistant",
    "bard": "assistant",
}


def from_value(turns: Any, marker: str = "<image>") -> list[dict]:
    """LLaVA's {"from", "value"} turns as messages. Markers count in user turns only: in an answer they are words."""
    if not isinstance(turns, list) or not turns:
        raise BadRow("format", "the conversation is not a list of turns")
    out = []
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str) or turn.get("from") not in ROLES:
            known = ", ".join(ROLES)
            raise BadRow("format", f"a turn is not {{from, value}} with a role of {known}: {str(turn)[:80]}")
        role = ROLES[turn["from"]]
        out.append({"role": role, "content": with_markers(turn["value"], marker) if role == "user" else turn["value"]})
    return out


def to_value(messages: Any) -> list[dict]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[m["role"]], "value": to_markers(m)} for m in messages]


def image_list(value: Any) -> tuple[Any, ...]:
    """One image or several, in any of their guises; none for null and empty."""
    if value is None or value == "" or value == []:
        return ()
    if isinstance(value, list | tuple):
        return tuple(v for v in value if v is not None)
    return (value,)


def split_answer(messages: list[dict]) -> tuple[tuple[dict, ...], tuple[dict, ...]]:
    """An SFT conversation: what leads to the last answer, and that answer."""
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise BadRow("empty-response", "the conversation does not end with an answer")
    return tuple(messages[:-1]), tuple(messages[-1:])


def split_pair(chosen: list[dict], rejected: list[dict]) -> tuple[list[dict], list[dict], list[dict]]:
    """The messages that two conversations begin with, and what follows in each: their last answers at the least."""
    n = 0
    while n < min(len(chosen), len(rejected)) and chosen[n] == rejected[n]:
        n += 1
    while n and (n == len(chosen) or n == len(rejected) or chosen[n]["role"] != "assistant"):
        n -= 1  # the prompt ends before an answer
    return chosen[:n], chosen[n:], rejected[n:]


def place_images(messages: list[dict], images: int) -> list[dict]:
    """Plain-text content with images in their own column: markers in user turns, else all before the first question."""
    if any(isinstance(m["content"], list) for m in messages) or not images:
        return messages
    users = [i for i, m in enumerate(messages) if m["role"] == "user"]
    marked = sum(messages[i]["content"].count("<image>") for i in users)
    out = list(messages)
    for i in users:
        first = images if i == users[0] and not marked else 0
        out[i] = question(messages[i]["content"], first) if marked or first else messages[i]
    return out
