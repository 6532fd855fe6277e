"""Folders as the stages write them, made by hand: rows and a manifest."""

import json
from pathlib import Path

from mmfast.engines.base import Picture, canonical


def folder(path: Path, stage: str, rows: list[dict], **manifest) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"row": n} | row, ensure_ascii=False) + "\n" for n, row in enumerate(rows))
    (path / "rows-0.jsonl").write_text(lines, encoding="utf-8")
    told = {"stage": stage, "version": 1, "complete": True, "counts": {}} | manifest
    (path / "manifest.json").write_text(json.dumps(told))
    return path


def asked(question: str = "What is this?", images: int = 1, system: str = "") -> list[dict]:
    first = [{"role": "system", "content": system}] if system else []
    parts = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    return [*first, {"role": "user", "content": parts}]


def answer(key: str, text: str, image: Path | str = "a.png", group: str = "g", **more) -> dict:
    """A row of generate."""
    return {
        "key": key, "group": group, "prompt_id": group, "images": [str(image)], "prompt": asked(), "answer": text,
        "decode": "sample", "sample": 0, "seed": 7, "finish": "stop", "tokens": 9, "logp": -3.5, "meta": {},
    } | more  # fmt: skip


def item(claim: str, kind: str = "claim", *args: str, span: tuple[int, int] | None = None, **more) -> dict:
    told = {"question": f"Is it true that {claim}?", "negated": False} | more
    return {"kind": kind, "args": list(args), "claim": claim, "span": span and list(span)} | told


def decomposed(key: str, answer_key: str, items: list[dict], image: Path | str = "a.png") -> dict:
    return {"key": key, "answer_key": answer_key, "images": [str(image)], "items": items, "raw": {}}


def checked(image: Path, one: dict, verdict: int, p_yes: float | None = None) -> dict:
    told = {name: value for name, value in one.items() if name != "span"}
    picture = Picture(str(image)).id
    key = canonical([picture, told])
    return {"key": key, "images": [str(image)], "image": picture, **told, "verdict": verdict, "p_yes": p_yes}
