"""An OpenAI-compatible server on this machine that misbehaves as told. Its model is exact and tiny: a word is a token,
and the next word's logits are drawn from a hash of all that stands before it."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

MODEL = "someone/stub"
SPELT = "yes no red green blue star circle square two three and one the of on big small left top end"
WORDS = [f" {word}" for word in SPELT.split()]
END = WORDS.index(" end")
OWN = {"model", "messages", "temperature", "top_p", "seed", "max_tokens", "max_completion_tokens", "stop", "n"}
OWN |= {"logprobs", "top_logprobs", "response_format"}


@dataclass
class Stub:
    ignores: set[str] = field(default_factory=set)  # settings that are heard and not followed
    refuses: set[str] = field(default_factory=set)  # settings that are a 400
    faults: list[Any] = field(default_factory=list)  # of the next chat calls: a status, (status, headers, body), a word
    always: Any = None  # the fault of each chat call
    key: str = ""  # that it wants
    samples_by: str = ""  # "generation_config": nothing else makes it sample
    most_shown: int = 20
    takes: float = 0.0  # seconds for an answer
    asked: list[dict[str, Any]] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)  # the client's, of each chat call
    at_once: int = 0
    most_at_once: int = 0
    url: str = ""
    closed: bool = False
    handshake: int = 0  # chat calls before the first question

    def questions(self) -> list[dict[str, Any]]:
        return self.asked[self.handshake :]

    # the model

    def tokens(self, messages: list[Any], opened: bool) -> list[str]:
        found: list[str] = []
        for i, message in enumerate(messages):
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            if message["role"] == "assistant" and i == len(messages) - 1 and not opened:
                return [*found, "ASSISTANT:", *(f" {w}" for w in parts[0]["text"].split())]
            found.append(message["role"])
            for part in parts:
                url = part.get("image_url", {}).get("url", "")
                images = [f"<{hashlib.sha256(url.encode()).hexdigest()}>"] * 4 if url else []
                found += [*images, *(f" {w}" for w in part.get("text", "").split())]
        return [*found, "ASSISTANT:"]

    def logps(self, before: list[str]) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256("".join(before).encode()).digest()[:8], "big")
        logits = np.random.default_rng(seed).normal(size=len(WORDS)) * 2
        logits[END] -= 2
        return logits - np.log(np.exp(logits).sum())

    def draw(self, before: list[str], s: dict[str, Any], number: int) -> tuple[list[str], list[np.ndarray]]:
        rng = np.random.default_rng([s["seed"], number] if "seed" not in self.ignores else None)
        out: list[str] = []
        shown = []
        for _ in range(s["limit"]):
            logps = self.logps(before + out)
            shown.append(logps)
            scores = logps.copy()
            if s["repetition_penalty"] != 1:
                scores[[WORDS.index(w) for w in {*before, *out} if w in WORDS]] *= s["repetition_penalty"]
                scores[0] *= s["repetition_penalty"]
                scores = np.roll(scores, 1)
            greedy = not s["temperature"] or s["top_k"] == 1 or s["top_p"] < 0.01 or s["min_p"] > 0.9
            noise = 0 if greedy else rng.gumbel(size=len(WORDS)) * s["temperature"]
            out.append(WORDS[int((scores + noise).argmax())])
            if out[-1] == WORDS[END]:
                break
        return out, shown

    def settings(self, body: dict[str, Any]) -> dict[str, Any]:
        body = {name: value for name, value in body.items() if name not in self.ignores}
        s = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 0, "n": 1}
        given = body
        if self.samples_by and "generation_config" in body:
            given = body | json.loads(body["generation_config"])
        s |= {name: given[name] for name in s if name in given}
        if self.samples_by and not given.get("do_sample"):
            s["temperature"] = 0.0
        s["limit"] = body.get("max_tokens") or body.get("max_completion_tokens") or 16
        s["stop"] = body.get("stop") or []
        return s

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        s = self.settings(body)
        continued = body.get("continue_final_message") and "prefix" not in self.ignores
        before = self.tokens(body["messages"], opened=not continued)
        if "images" in self.ignores:
            before = [t for t in before if not t.startswith("<")]
        if "pixels" in self.ignores:  # an image takes its places, and nobody looks
            before = ["<>" if t.startswith("<") else t for t in before]
        choices, written = [], 0
        for index in range(s["n"]):
            out, shown = self.draw(before, s, index)
            ended = out[-1] == WORDS[END]
            text = self.forced(body) or "".join(out[:-1] if ended else out)
            places = [text.find(stop) for stop in s["stop"] if stop in text]
            choice: dict[str, Any] = {"index": index, "finish_reason": "stop" if ended or places else "length"}
            choice["message"] = {"role": "assistant", "content": text[: min(places)] if places else text}
            if body.get("logprobs") and "logprobs" not in self.ignores:
                choice["logprobs"] = {"content": [self.place(w, p, body) for w, p in zip(out, shown, strict=True)]}
            choices.append(choice)
            written += len(out)
        usage = {"prompt_tokens": len(before), "completion_tokens": written, "total_tokens": len(before) + written}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": MODEL, "choices": choices}
        if "prompt_logprobs" in body and "prompt_logprobs" not in self.ignores:
            inside = [self.logps(before[:i]) for i in range(len(before))]
            answer["prompt_logprobs"] = [
                {str(number(w)): {"logprob": float(p[WORDS.index(w)]) if w in WORDS else -9.0}}
                for w, p in zip(before, inside, strict=True)
            ]
        return answer | {"usage": usage}

    def place(self, word: str, logps: np.ndarray, body: dict[str, Any]) -> dict[str, Any]:
        wanted = body.get("logprob_token_ids") if "logprob_token_ids" not in self.ignores else None
        top = np.argsort(-logps)[: min(body.get("top_logprobs") or 0, self.most_shown)].tolist()

        def entry(i: int) -> dict[str, Any]:
            named = f"token_id:{i}" if body.get("return_tokens_as_token_ids") else WORDS[i]
            return {"token": named, "logprob": float(logps[i]), "bytes": None}

        return entry(WORDS.index(word)) | {"top_logprobs": [entry(i) for i in (wanted or top)]}

    def forced(self, body: dict[str, Any]) -> str:
        wanted = body.get("structured_outputs", {}) if "structured_outputs" not in self.ignores else {}
        if "choice" in wanted:
            return wanted["choice"][0]
        if "regex" in wanted:
            return "123"
        if "json" in wanted:
            return '{"a": "zqx"}'
        if "response_format" in body and "response_format" not in self.ignores:
            (name, rule), *_ = body["response_format"]["json_schema"]["schema"]["properties"].items()
            return json.dumps({name: rule["enum"][0]})
        return ""


def number(token: str) -> int:
    return WORDS.index(token) if token in WORDS else 1000 + len(token)


@contextmanager
def serving(stub: Stub) -> Iterator[Stub]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            if self.allowed():
                self.give(200, {"data": [{"id": MODEL}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if stub.closed:  # of a connection that outlives the server
                self.close_connection = True
                return
            if not self.allowed():
                return
            if self.path == "/tokenize":
                tokens = stub.tokens(body["messages"], opened=not body.get("continue_final_message"))
                known = "tokenize" not in stub.ignores
                self.give(200 if known else 404, {"tokens": [number(t) for t in tokens]} if known else {})
                return
            with lock:
                stub.asked.append(body)
                stub.ports.append(self.client_address[1])
                stub.at_once += 1
                stub.most_at_once = max(stub.most_at_once, stub.at_once)
                fault = stub.faults.pop(0) if stub.faults else stub.always
            try:
                time.sleep(stub.takes)
                self.chat(body, fault)
            finally:
                with lock:
                    stub.at_once -= 1

        def chat(self, body: dict[str, Any], fault: Any) -> None:
            if callable(fault):
                fault = fault(body)
            if fault == "hang":
                time.sleep(3)
                return
            if fault == "close":
                self.close_connection = True
                return
            if fault == "half":
                self.give(200, stub.completion(body), cut=True)
            elif fault == "no json":
                self.give(200, "{not json")
            elif fault == "other json":
                self.give(200, {"hello": "world"})
            elif isinstance(fault, tuple):
                self.give(fault[0], fault[2], headers=fault[1])
            elif fault:
                self.give(fault, {"error": {"message": f"fault {fault} with key {self.headers['Authorization']}"}})
            elif body["model"] != MODEL:
                self.give(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
            elif refused := ({*body} & stub.refuses) or ({*body} - OWN if "strange" in stub.refuses else set()):
                self.give(400, {"error": {"message": f"unknown: {min(refused)}"}})
            else:
                self.give(200, stub.completion(body))

        def allowed(self) -> bool:
            if stub.key and self.headers["Authorization"] != f"Bearer {stub.key}":
                self.give(401, {"error": {"message": f"bad key {self.headers['Authorization']}"}})
                return False
            return True

        def give(self, status: int, content: Any, headers: dict[str, str] | None = None, cut: bool = False) -> None:
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if cut else data)
            self.close_connection |= cut

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield stub
    finally:
        stub.closed = True
        server.shutdown()
        server.server_close()
        thread.join()


def seen_images(body: dict[str, Any]) -> list[str]:
    return re.findall(r"data:[^\"]+", json.dumps(body["messages"]))
