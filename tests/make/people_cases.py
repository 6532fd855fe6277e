"""Answers for people to work on, a client that does what the page does, and servers in processes that can be killed."""

from __future__ import annotations

import http.client
import json
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from mmfast.cli.correct import correct
from mmfast.engines.people_server import HOST, REMEMBERED
from tests.make.rank_processes import CONTEXT

TEXTS = (
    "Two red cats sit left of a dog.",
    "猫が二匹います。🐈‍⬛🎉 A 𝒃lue mug stands on the table.",
    "<b>bold</b> <img src=x onerror=\"document.title='owned'\"> & a café.",
    "A man reads.\n\nHe wears a hat.",
)


def write_answers(folder: Path, texts: tuple[str, ...] = TEXTS, *, group: int = 1, size: int = 8) -> Path:
    """A folder as `mmfast generate` writes it; `group` answers compete for each prompt."""
    out = folder / "answers"
    out.mkdir(parents=True)
    (out / "manifest.json").write_text(json.dumps({"stage": "generate", "complete": True}))
    rows = []
    for n, text in enumerate(texts):
        image = folder / f"picture-{n // group}.png"
        if not image.exists():
            pixels = np.random.default_rng(n).integers(0, 255, (size, size, 3), np.uint8)
            Image.fromarray(pixels).save(image)
        prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is here?"}]}]
        row = {"key": f"k{n}", "row": n // group, "group": f"g{n // group}", "prompt_id": f"q{n // group}"}
        row |= {"images": [str(image)], "prompt": prompt, "answer": text, "sample": n % group, "meta": {}}
        rows.append(json.dumps(row) + "\n")
    (out / "rows-0.jsonl").write_text("".join(rows))
    return out


class Client:
    """One person before the page."""

    def __init__(self, url: str, name: str = "") -> None:
        at = urlsplit(url)
        self.host, self.port, self.path, self.name = at.hostname or "", at.port or 0, at.path, name
        self.view: dict[str, Any] = {}

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes, dict]:
        """`path` as it stands in the request line; headers with _ for -."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, given)
        reply = connection.getresponse()
        out = reply.status, reply.read(), dict(reply.headers)
        connection.close()
        return out

    def post(self, action: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        body = json.dumps(action).encode()
        status, told, _ = self.ask("POST", f"{self.path}act", body, Content_Type="application/json")
        return status, json.loads(told)

    def act(self, do: str, **more: Any) -> dict[str, Any]:
        """What the page would send, and then show; what is refused raises."""
        card = self.view.get("card") or {}
        action = {"name": self.name, "do": do, "card": card.get("id"), "step": card.get("step"), "seconds": 1} | more
        status, told = self.post(action)
        if status != 200:
            raise ValueError(f"{status}: {told['error']}")
        self.view = told
        return told

    def mark(self, *segments: tuple[str, str, str]) -> dict[str, Any]:
        """Draft (words, kind, rewritten) of the answer in front; the work that the page would send."""
        answer = self.view["card"]["answer"]
        made = []
        for words, kind, to in segments:
            at = answer.index(words)
            made.append({"span": [at, at + len(words)], "kind": kind, "to": to})
        work = {"segments": made}
        self.act("draft", work=work, push=True)
        return work

    def correct(self, *segments: tuple[str, str, str]) -> dict[str, Any]:
        return self.act("done", work=self.mark(*segments) if segments else {"segments": []})


def start(answers: Path, out: Path, **options: Any) -> BaseProcess:
    """`mmfast correct` in a process of its own, ready to be asked."""
    process = CONTEXT.Process(target=correct, args=(answers, out), kwargs=options)
    process.start()
    for _ in range(600):
        try:
            Client(url_of(out), "").ask("GET", "/")
            return process
        except (OSError, ValueError, KeyError):
            if not process.is_alive():
                break
            time.sleep(0.05)
    raise AssertionError(f"the server does not answer (exit code {process.exitcode})")


def url_of(out: Path) -> str:
    found = json.loads((out / REMEMBERED).read_text())
    return f"http://{HOST}:{found['port']}/{found['token']}/"
