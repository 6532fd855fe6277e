"""A training step against TRL's DPOTrainer on the same model directory and pairs: python -m bench.step [--write]

Both sides train everything but the vision tower, in the same dtype, with the same optimiser, and take the same steps:
their losses are compared. Each side is a process of its own; steps alternate between the sides, the waiting side does
nothing. TRL recomputes the reference in each step and takes no cached one with images; mmfast's row gives the time with
the cache and with the reference pass counted. "cpu" is processor time of the whole step over all threads: on a machine
that others use too, compare that, with --threads 1. Peak memory is that of the process since before its model was
loaded. The floor is the flops of the weights' products over the rate of a large matrix product, in processor time.

With --before CHECKOUT (a folder with an mmfast._C of its own) the peer is that checkout, a step each by turns. Then a
step of ours is profiled: "x_products" is its time over that of its own matrix products.

cases    isolated     4 images, one pair each
         group        one image, 8 responses, all 28 pairs; TRL's time a pair is taken from the isolated case
shapes   llava-64m    hidden 512, 8 layers, 32000 words, 576 image tokens (CPU)
         llava-7b, qwen2.5-vl-7b    random weights made from the real configs (CUDA); --lora or full (SGD)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import torch

from bench.packing import cpu_name

RESULTS = Path(__file__).parent / "results" / "step.jsonl"
ISOLATED = {"groups": 4, "responses": 2, "words": (29, 59), "question": 50}
GROUP = {"groups": 1, "responses": 8, "words": (29, 59), "question": 50}


class Side:
    """A process that runs a step when told to."""

    def __init__(self, name: str, settings: dict, folder: Path, checkout: Path | None = None):
        threads = {"OMP_NUM_THREADS": str(settings["threads"])} if settings["threads"] else {}
        path = folder / f"{name}-{len(list(folder.iterdir()))}.json"
        path.write_text(json.dumps(settings))
        environment = {**os.environ, "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false", **threads}
        self.log = open(path.with_suffix(".log"), "w")  # noqa: SIM115  (lives as long as the process)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.step_sides", name, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log, text=True, env=environment, cwd=checkout,
        )  # fmt: skip
        self.ready = self.read()
        self.steps: list[dict] = []

    def read(self) -> dict[str, Any]:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise RuntimeError(
            f"a side of the bench ended: see {self.log.name}\n" + Path(self.log.name).read_text()[-3000:]
        )

    def step(self, kind: str = "go") -> None:
        assert self.process.stdin
        self.process.stdin.write(kind + "\n")
        self.process.stdin.flush()
        self.steps.append(self.read())

    def close(self) -> int:
        assert self.process.stdin
        self.process.stdin.close()
        found = self.read()["peak"]
        self.process.wait()
        self.log.close()
        return found

    def median(self, what: str) -> float:
        """The median over the steps but the first, which allocates."""
        return statistics.median(s[what] for s in self.steps[1:])


def make_directory(shape: str, folder: Path) -> Path:
    import transformers as hf

    from mmfast.world import models as world

    if shape == "llava-64m":
        return world.tiny_model("llava", folder / shape, size="bench")
    size = world.Size(image_size=336, vocab=32064)
    path = folder / shape
    config: hf.PreTrainedConfig
    token: Any  # its type says that it may give a list
    if shape == "llava-7b":
        tokenizer = world.tiny_tokenizer("llava", size.vocab)
        images = world.tiny_image_processor("llava", size)
        processor = world.tiny_processor("llava", tokenizer, images, size)
        token = tokenizer.convert_tokens_to_ids
        config = hf.LlavaConfig(
            vision_config=hf.CLIPVisionConfig(
                hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
                patch_size=14, projection_dim=768,
            ),
            text_config=hf.LlamaConfig(vocab_size=32064),
            image_token_index=token("<image>"),
            image_seq_length=576,
        )  # fmt: skip
    else:
        tokenizer = world.tiny_tokenizer("qwen2_5_vl", size.vocab)
        images = world.tiny_image_processor("qwen2_5_vl", size)
        processor = hf.Qwen2_5_VLProcessor(images, tokenizer, hf.Qwen2VLVideoProcessor())  # needs torchvision
        token = tokenizer.convert_tokens_to_ids
        config = hf.Qwen2_5_VLConfig(
            text_config={
                "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
                "num_key_value_heads": 4, "vocab_size": 152064,
                "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
            },
            vision_config={
                "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
                "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
            },
            image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
            vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        )  # fmt: skip
    path.mkdir(parents=True)
    config.architectures = [
        "LlavaForConditionalGeneration" if shape == "llava-7b" else "Qwen2_5_VLForConditionalGeneration"
    ]
    config.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def gemm_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Flops a second of a large matrix product here and now; on CPU a second of processor time."""
    import time

    n = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    for _ in range(4):
        start = clock()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, clock() - start)
    return 2 * n**3 / best


def step_flops(path: Path, tokens: int, rows: int, checkpointing: bool, lora: bool) -> float:
    """Products of the decoder's weights over distinct tokens and of the head over scored rows (attention left out)."""
    from transformers import AutoConfig

    c = AutoConfig.from_pretrained(path).get_text_config()
    head_dim = c.hidden_size // c.num_attention_heads
    layer = c.hidden_size * (2 * c.hidden_size + 2 * c.num_key_value_heads * head_dim + 3 * c.intermediate_size)
    passes = (2 if lora else 3) + checkpointing
    return 2.0 * c.num_hidden_layers * layer * tokens * passes + 2.0 * c.hidden_size * c.vocab_size * rows * (
        2 if lora else 3
    )


def run(arguments: argparse.Namespace, folder: Path) -> list[dict]:
    path = make_directory(arguments.shape, folder)
    cuda = arguments.device != "cpu"
    settings = {
        "path": str(path), "device": arguments.device, "dtype": "bfloat16" if cuda else "float32",
        "checkpointing": arguments.checkpointing, "lora": {"r": 128, "alpha": 256} if arguments.lora else None,
        "random_weights": cuda, "optimizer": "sgd" if cuda and not arguments.lora else "adamw", "lr": 1e-4,
        "work": str(folder / "trl"), "threads": arguments.threads,
        "compile": arguments.compile,
    }  # fmt: skip
    (folder / "sides").mkdir()
    isolated = {**settings, "pairs": ISOLATED}
    if arguments.before:
        return beside(arguments, isolated, folder / "sides")
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    rate = gemm_rate(torch.device(arguments.device), getattr(torch, settings["dtype"]))
    if cuda:  # both would not fit beside each other
        ours, theirs, group = (
            alone(name, chosen, folder / "sides", arguments.steps)
            for name, chosen in (("mmfast", isolated), ("trl", isolated), ("mmfast", {**settings, "pairs": GROUP}))
        )
    else:
        sides = [Side("trl", isolated, folder / "sides"), Side("mmfast", isolated, folder / "sides")]
        for _ in range(arguments.steps):
            for side in sides:
                side.step()
        theirs, ours = ((side, side.close()) for side in sides)
        group = alone("mmfast", {**settings, "pairs": GROUP}, folder / "sides", arguments.steps)
    gap = max(abs(a["loss"] - b["loss"]) for a, b in zip(ours[0].steps, theirs[0].steps, strict=True))
    if not cuda and gap > 1e-3:
        raise RuntimeError(f"the sides do not take the same steps: losses differ by {gap}")
    rows = []
    trl_seconds, trl_peak = theirs[0].median("seconds"), theirs[1]
    trl_cpu = theirs[0].median("cpu")
    rows.append(
        {"what": "trl isolated", "pairs": 4, "seconds": trl_seconds, "cpu": trl_cpu, "peak_gib": trl_peak / 2**30}
    )
    for what, pairs, (side, memory) in (("isolated", 4, ours), ("group", 28, group)):
        seconds, reference = side.median("seconds"), side.ready["reference_seconds"]
        last = side.steps[-1]
        flops = step_flops(path, last["tokens"], last["rows"], arguments.checkpointing, arguments.lora)
        cpu, reference_cpu = side.median("cpu"), side.ready["reference_cpu"]
        each, each_cpu = trl_seconds / 4 * pairs, trl_cpu / 4 * pairs
        rows.append(
            {
                "what": f"mmfast {what}", "pairs": pairs, "seconds": seconds, "peak_gib": memory / 2**30,
                "floor_cpu" if not cuda else "floor_seconds": flops / rate, "reference_seconds": reference,
                "trl_over_mmfast": each / seconds, "trl_over_mmfast_with_reference": each / (seconds + reference),
                "cpu": cpu, "reference_cpu": reference_cpu, "trl_over_mmfast_cpu": each_cpu / cpu,
                "trl_over_mmfast_cpu_with_reference": each_cpu / (cpu + reference_cpu),
                "trl_memory_over_mmfast": trl_peak / memory, "largest_loss_gap": gap if what == "isolated" else None,
                "tokens": last["tokens"], "rows": last["rows"],
                **{k: statistics.median(s[k] for s in side.steps[1:]) for k in last if k.endswith("_seconds")},
            }
        )  # fmt: skip
    return rows


def beside(arguments: argparse.Namespace, isolated: dict, folder: Path) -> list[dict]:
    """Steps of another checkout and of this one by turns; then one of ours under the profiler."""
    sides = {
        name: Side("mmfast", isolated, folder, path) for name, path in (("before", arguments.before), ("now", None))
    }
    for _ in range(arguments.steps):
        for side in sides.values():
            side.step()
    gap = max(abs(a["loss"] - b["loss"]) for a, b in zip(*(s.steps for s in sides.values()), strict=True))
    if gap > 1e-3:
        raise RuntimeError(
            f"the sides do not take the same steps: losses differ by {gap} (is its bench.step_data this one?)"
        )
    sides["now"].step("profile")
    last = sides["now"].steps.pop()
    rows = []
    for name, side in sides.items():
        row: dict[str, Any] = {"what": f"mmfast isolated, {name}", "pairs": 4, "largest_loss_gap": gap}
        for what in ("seconds", "cpu"):
            row |= {what: side.median(what), f"best_{what}": min(s[what] for s in side.steps[1:])}
        rows.append(row | {"peak_gib": side.close() / 2**30})
    before, now = rows
    now |= {f"x_before_{key}": now[key] / before[key] for key in ("seconds", "best_seconds", "cpu", "best_cpu")}
    now |= {"x_products": last["seconds"] / last["products"], "products_seconds": last["products"]}
    return rows


def alone(name: str, settings: dict, folder: Path, steps: int) -> tuple[Side, int]:
    side = Side(name, settings, folder)
    for _ in range(steps):
        side.step()
    ended = side, side.close()
    print(f"# {name}: {side.median('seconds'):.4g} s a step, {ended[1] / 2**30:.4g} GiB", flush=True)
    return ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["llava-64m", "llava-7b", "qwen2.5-vl-7b"], default="llava-64m")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--steps", type=int, default=4, help="steps of each side; the first is not counted")
    parser.add_argument("--threads", type=int, default=0, help="of each side; 0: torch's default")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true", help="torch.compile the decoder's blocks on our side")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--before", type=Path, help="another checkout of mmfast: its steps alternate with ours (CPU)")
    parser.add_argument("--write", action="store_true", help=f"append the rows to {RESULTS.name}")
    arguments = parser.parse_args()
    if arguments.shape != "llava-64m" and arguments.device == "cpu":
        parser.error("a 7B shape needs --device cuda")
    if arguments.before and arguments.device != "cpu":
        parser.error("--before compares steps on a CPU")
    import transformers
    import trl

    device = cpu_name() if arguments.device == "cpu" else torch.cuda.get_device_name()
    given = ["CHECKOUT" if a == str(arguments.before) else a for a in sys.argv[1:] if a != "--write"]
    command = ["python -m bench.step", *given]
    common = {
        "shape": arguments.shape, "steps": arguments.steps, "command": " ".join(command), "date": str(date.today()),
        "device": device, "threads": arguments.threads or torch.get_num_threads(), "load": os.getloadavg()[0],
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for row in run(arguments, Path(folder)):
            row = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}
            print(row)
            if arguments.write:
                RESULTS.parent.mkdir(exist_ok=True)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row | common) + "\n")


if __name__ == "__main__":
    main()
