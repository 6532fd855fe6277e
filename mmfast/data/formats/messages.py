"""Messages of {role, content}: made of the turns, markers and image columns of a file, and written as those again."""

from __future__ import annotations

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
