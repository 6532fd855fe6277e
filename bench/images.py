"""Decode and preprocess an image, one thread, beside transformers' Pillow processors: python -m bench.images [--write]

Rows: seconds an image; x_hf is the time over that of the Hugging Face processor called on the opened file, both from
the same bytes, turn by turn. The floor is Pillow's decoder alone.
"""

from __future__ import annotations

import argparse
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from bench.timing import Run, interleave, machine, summary, write_rows
from mmfast.data.images.processor import from_config

EDGE: dict[str, Any] = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
PROCESSORS = {
    "llava crop": ("llava", CLIPImageProcessorPil(**EDGE)),
    "llava pad": ("llava", LlavaImageProcessorPil(**EDGE, do_pad=True)),
    "llava_next": ("llava_next", LlavaNextImageProcessorPil(**EDGE, image_grid_pinpoints=PINPOINTS)),
    "qwen2.5-vl": ("qwen2_5_vl", Qwen2VLImageProcessorPil()),
}


def photo(width: int, height: int) -> bytes:
    """A JPEG with a photograph's mix of smooth parts, texture and edges."""
    r = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    image = np.stack([np.sin(x / 60 + c) * np.cos(y / (40 + 9 * c)) for c in range(3)], -1) * 80 + 128
    image += np.kron(r.normal(0, 25, (height // 8 + 1, width // 8 + 1, 1)), np.ones((8, 8, 1)))[:height, :width]
    image += r.normal(0, 6, image.shape)
    out = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def decoded(data: bytes) -> None:
    Image.open(io.BytesIO(data)).load()


def theirs(processor: Any, data: bytes) -> Any:
    return processor(Image.open(io.BytesIO(data)), return_tensors="np")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for size in [(640, 480), (1280, 960)]:
        data = photo(*size)
        for name, (kind, hf) in PROCESSORS.items():
            model = {"model_type": kind, "vision_config": {"image_size": 336, "patch_size": 14}}
            ours = from_config(model, json.loads(hf.to_json_string()), "auto", 0, 0)
            runs: dict[str, Run] = {
                "transformers": partial(theirs, hf, data),
                "mmfast": partial(ours.load, data),
                "decoder alone": partial(decoded, data),
            }
            times = interleave(runs, options.repeats)
            rows = []
            for peer, seconds in times.items():
                row: dict[str, Any] = {"op": f"image {name}", "peer": peer, "shape": f"{size[0]}x{size[1]} JPEG"}
                row |= {"mode": "decode and preprocess", **summary(seconds)}
                row["x_hf"] = min(seconds) / min(times["transformers"])
                rows.append(row | machine())
                print(
                    " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True
                )
            if options.write:
                write_rows(Path(__file__).parent / "results" / "images.jsonl", rows)


if __name__ == "__main__":
    main()
