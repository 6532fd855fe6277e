"""Building examples: python -m bench.data [--rows 10000] [--peer-rows 400] [--write]

Pairs of LLaVA-1.5 size: a 640 x 480 JPEG of its own for each row, a question, two answers of 30 to 120 words. Ours
opens, hashes, decodes and measures every image, tokenises both sides and finds spans and changed tokens; no pixels are
kept. The peer is transformers' own LlavaProcessor, called with one row at a time (image + chosen text, then the
rejected text alone, so that it prepares the image once), in one process and in as many as ours. Both run in turns of
one session, medians are kept.
The floor is what opening, hashing and decoding the same files costs in one process (Pillow), spread over the cores.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmfast.data.build import build
from mmfast.data.settings import DataSettings
from mmfast.world.grammar import corpus
from mmfast.world.models import SIZES, tiny_image_processor, tiny_processor, tiny_tokenizer

RESULTS = Path(__file__).parent / "results" / "data.jsonl"


def make_rows(folder: Path, count: int, pictures: int = 64) -> Path:
    """Files of their own content: a comment at a JPEG's end changes its hash and not its decoding."""
    rng = np.random.default_rng(0)
    words = " ".join(corpus()).split()
    bases = []
    for _ in range(pictures):
        small = rng.integers(0, 255, (24, 32, 3), np.uint8)
        noise = rng.normal(0, 6, (480, 640, 3))
        pixels = np.asarray(Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC)) + noise
        out = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
        bases.append(out.getvalue())

    def text(low: int, high: int) -> str:
        at = int(rng.integers(0, len(words) - high))
        return " ".join(words[at : at + int(rng.integers(low, high))])

    path = folder / "pairs.jsonl"
    with open(path, "w") as f:
        for i in range(count):
            (folder / f"{i}.jpg").write_bytes(bases[i % pictures] + i.to_bytes(8, "little"))
            row = {
                "images": [f"{i}.jpg"],
                "prompt": text(8, 25) + "?",
                "chosen": text(30, 120),
                "rejected": text(30, 120),
            }
            f.write(json.dumps(row) + "\n")
    return path


def model_folder(folder: Path) -> Path:
    """Tokenizer, image processor and configuration of LLaVA-1.5's shapes, without weights."""
    tokenizer = tiny_tokenizer("llava", 1024)
    images = tiny_image_processor("llava", SIZES["bench"])
    processor = tiny_processor("llava", tokenizer, images, SIZES["bench"])
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    images.save_pretrained(folder)
    config = {
        "model_type": "llava",
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "vision_config": {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14},
        "text_config": {"model_type": "llama"},
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "image_seq_length": 576,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


_peer: dict[str, Any] = {}


def peer_row(row: dict) -> int:
    processor, folder = _peer["processor"], _peer["folder"]
    ask = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["prompt"]}]}
    total = 0
    for side in ("chosen", "rejected"):
        messages = [ask, {"role": "assistant", "content": [{"type": "text", "text": row[side]}]}]
        text = processor.apply_chat_template(messages, tokenize=False)
        if side == "chosen":
            with Image.open(folder / row["images"][0]) as image:
                found = processor(images=image, text=text, return_tensors="pt", add_special_tokens=False)
        else:
            found = processor.tokenizer(text, return_tensors="pt", add_special_tokens=False)
        total += found["input_ids"].shape[1]
    return total


def peer_rate(rows: list[dict], processes: int) -> float:
    """Rows a second."""
    if processes == 1:
        start = time.perf_counter()
        for row in rows:
            peer_row(row)
        return len(rows) / (time.perf_counter() - start)
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        pool.map(peer_row, rows[: 2 * processes])  # warm
        start = time.perf_counter()
        pool.map(peer_row, rows, chunksize=8)
        return len(rows) / (time.perf_counter() - start)


def floor_rate(folder: Path, count: int) -> float:
    """Open, hash and decode alone, one process."""
    start = time.perf_counter()
    for i in range(count):
        data = (folder / f"{i}.jpg").read_bytes()
        hashlib.sha256(data).hexdigest()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    return count / (time.perf_counter() - start)


def our_rate(path: Path, model: Path, cache: Path, count: int, processes: int, segments: str = "clean") -> float:
    data = DataSettings(path=str(path), workers=processes, segments=segments, limit=count)
    start = time.perf_counter()
    store = build(data, model, cache, progress=False, report_to=lambda text: None)
    rate = len(store) / (time.perf_counter() - start)
    assert len(store) == count
    return rate


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10000)
    parser.add_argument("--peer-rows", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path, model = make_rows(folder, args.rows), model_folder(folder / "model")
        tokenizer = tiny_tokenizer("llava", 1024)
        images = tiny_image_processor("llava", SIZES["bench"])
        _peer.update(processor=tiny_processor("llava", tokenizer, images, SIZES["bench"]), folder=folder)
        rows = [json.loads(line) for line in path.read_text().splitlines()[: args.peer_rows]]
        for row in rows[:5]:
            peer_row(row)
        rates: dict[str, list[float]] = {}
        for turn in range(args.repeats):
            measured = {
                "peer, one process": peer_rate(rows, 1),
                f"peer, {cores} processes": peer_rate(rows, cores),
                "floor, one process": floor_rate(folder, args.peer_rows),
                "ours, one process": our_rate(path, model, folder / f"a{turn}", args.peer_rows * 2, 1),
                f"ours, {cores} processes": our_rate(path, model, folder / f"b{turn}", args.peer_rows * 4, cores),
            }
            for name, rate in measured.items():
                rates.setdefault(name, []).append(rate)
        start = time.perf_counter()
        our_rate(path, model, folder / "whole", args.rows, cores)
        whole = time.perf_counter() - start
        start = time.perf_counter()
        our_rate(path, model, folder / "whole", args.rows, cores)
        again = time.perf_counter() - start
        rates["peer, one process"].append(peer_rate(rows, 1))  # the long build stands between two measurements
        rates[f"peer, {cores} processes"].append(peer_rate(rows, cores))
    middle = {name: statistics.median(values) for name, values in rates.items()}
    ours = args.rows / whole
    result = {
        "what": "build examples", "rows": args.rows, "peer_rows": args.peer_rows,
        "rows_per_s": {k: round(v, 1) for k, v in middle.items()},
        "whole_build_s": round(whole, 2), "whole_rows_per_s": round(args.rows / whole, 1),
        "second_start_s": round(again, 2),
        "ratio_to_peer": round(ours / middle["peer, one process"], 2),
        "ratio_to_peer_in_as_many_processes": round(ours / middle[f"peer, {cores} processes"], 2),
        "ratio_one_process_each": round(middle["ours, one process"] / middle["peer, one process"], 2),
        "share_of_floor": round(middle["ours, one process"] / middle["floor, one process"], 2),
        "command": "python -m bench.data", "cores": cores, "device": _device(), "date": date.today().isoformat(),
        "python": platform.python_version(), "transformers": _version("transformers"), "pillow": _version("pillow"),
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if args.write:
        RESULTS.parent.mkdir(exist_ok=True)
        with open(RESULTS, "a") as f:
            f.write(json.dumps(result) + "\n")


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name)


def _device() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or sys.platform


if __name__ == "__main__":
    main()
