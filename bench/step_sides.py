"""One side of bench.step, in a process of its own: `python -m bench.step_sides SIDE SETTINGS.json`.

Speaks lines of JSON: says "ready" when loaded, runs one step for each line it reads, answers with seconds and loss,
and at the end of its input says the peak memory.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def say(**fields: Any) -> None:
    print("@" + json.dumps(fields), flush=True)


def resident() -> int:
    """Bytes resident now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def peak(device: torch.device, before: int) -> int:
    """Peak bytes since before the model was loaded."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def make_optimizer(settings: dict, parameters: list) -> torch.optim.Optimizer:
    if settings["optimizer"] == "sgd":
        return torch.optim.SGD(parameters, lr=settings["lr"])
    return torch.optim.AdamW(parameters, lr=settings["lr"], weight_decay=0.0, fused=True)


def mmfast_side(settings: dict) -> None:
    from transformers import AutoProcessor

    from bench.step_data import infos_of, load_images, make_pairs
    from mmfast.job.runtime import keep_freed_memory
    from mmfast.models import Lora, Parallel, load, parallelize
    from mmfast.ops.preference import preference_loss
    from mmfast.packing import build_pack

    device = torch.device(settings["device"])
    if device.type == "cpu":
        keep_freed_memory()  # as a run does
    processor = AutoProcessor.from_pretrained(settings["path"])
    made = make_pairs(processor, **settings["pairs"])
    before = resident()
    lora = Lora(**settings["lora"]) if settings["lora"] else None
    scorer = load(
        settings["path"], dtype=settings["dtype"], lora=lora, device=device, random_weights=settings["random_weights"]
    )
    if settings["dtype"] != "float32":  # the peer keeps its parameters in bf16 too; masters would be twice as large
        scorer.to(torch.bfloat16)
    parallel = Parallel(activation_checkpointing=settings["checkpointing"], compile=settings["compile"])
    parallelize(scorer, parallel, None, torch.float32)
    infos = infos_of(scorer.adapter, processor, made)
    optimizer = make_optimizer(settings, [p for p in scorer.parameters() if p.requires_grad])

    def pack_of(reference):
        return build_pack(
            made.examples,
            infos,
            scorer.adapter.layout(),
            reference=reference,
            load_images=lambda names: scorer.adapter.prepare(load_images(processor, made, names)),
        ).to(device)

    @torch.no_grad()
    def score() -> dict:
        pack = pack_of(None)
        logps = scorer(pack)[pack.index].float().cpu().numpy()
        bounds = pack.responses.tolist()
        return {key: logps[a:b] for key, a, b in zip(pack.response_ids, bounds, bounds[1:], strict=False)}

    start, cpu = clock(device), time.process_time()
    reference = score()
    say(ready=True, reference_seconds=clock(device) - start, reference_cpu=time.process_time() - cpu)
    for asked in sys.stdin:
        recorded = profile(activities=[ProfilerActivity.CPU]) if asked.strip() == "profile" else nullcontext()
        start, cpu = clock(device), time.process_time()
        with recorded:
            pack = pack_of(reference)
            packed = clock(device)
            out = preference_loss(
                scorer(pack),
                pack.ref_logps,
                pack.responses,
                pack.pairs,
                index=pack.index,
                weights=pack.weights,
                beta=0.1,
            )
            forward = clock(device)
            out.loss.backward()
            backward = clock(device)
            optimizer.step()
            optimizer.zero_grad()
            end = clock(device)
        say(
            products=products(recorded),
            seconds=end - start, cpu=time.process_time() - cpu, loss=float(out.loss),
            pack_seconds=packed - start, forward_seconds=forward - packed,
            backward_seconds=backward - forward, optimizer_seconds=end - backward, tokens=len(pack.tokens),
            rows=len(pack.targets),
        )  # fmt: skip
    say(peak=peak(device, before))


def products(recorded: Any) -> float:
    """Seconds of a profiled step in torch's matrix products; 0 of any other."""
    if not isinstance(recorded, profile):
        return 0.0
    events = recorded.key_averages()
    return sum(e.self_cpu_time_total for e in events if e.key in ("aten::mm", "aten::addmm", "aten::bmm")) / 1e6


def trl_side(settings: dict) -> None:
    from datasets import Dataset, Image, List
    from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from bench.step_data import make_pairs

    device = torch.device(settings["device"])
    processor = AutoProcessor.from_pretrained(settings["path"])
    made = make_pairs(processor, **settings["pairs"])
    before = resident()
    dtype = getattr(torch, settings["dtype"])
    if settings["random_weights"]:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(settings["path"])
        with torch.device(device):
            drawn = partial(AutoModelForImageTextToText.from_config, config, dtype=dtype)
            model, reference = drawn(), None if settings["lora"] else drawn()
    else:
        model = AutoModelForImageTextToText.from_pretrained(settings["path"], dtype=dtype)
        reference = None  # TRL loads it from the same directory
    for name, p in model.named_parameters():  # the tower is frozen on both sides
        if "vision_tower" in name or ("visual" in name and "merger" not in name):
            p.requires_grad_(False)
    peft = None
    if settings["lora"]:
        from peft import LoraConfig

        spec = settings["lora"]
        peft = LoraConfig(
            r=spec["r"],
            lora_alpha=spec["alpha"],
            target_modules=r".*language_model.*\.(q|k|v|o|gate|up|down)_proj",
            modules_to_save=None,
        )

    class Gate(TrainerCallback):
        """Holds each step until a line arrives."""

        start = 0.0

        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 0:
                say(ready=True)
            if not sys.stdin.readline():
                say(peak=peak(device, before))
                sys.exit(0)
            self.start, self.cpu = clock(device), time.process_time()

        def on_step_end(self, args, state, control, **_):
            self.seconds, self.cpu = clock(device) - self.start, time.process_time() - self.cpu

        def on_log(self, args, state, control, logs=None, **_):
            if logs and "loss" in logs:
                say(seconds=self.seconds, cpu=self.cpu, loss=logs["loss"])

    config = DPOConfig(
        output_dir=settings["work"], per_device_train_batch_size=len(made.rows), max_steps=1000,
        learning_rate=settings["lr"], lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, max_grad_norm=0.0,
        optim="sgd" if settings["optimizer"] == "sgd" else "adamw_torch_fused", beta=0.1, max_length=None,
        use_cpu=device.type == "cpu", bf16=False, gradient_checkpointing=settings["checkpointing"],
        logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=model,
        ref_model=reference,
        args=config,
        train_dataset=Dataset.from_list(made.rows).cast_column("images", List(Image())),
        processing_class=processor,
        peft_config=peft,
        callbacks=[Gate()],
    )
    trainer.train()


if __name__ == "__main__":
    with open(sys.argv[2]) as file:
        chosen = json.load(file)
    {"mmfast": mmfast_side, "trl": trl_side}[sys.argv[1]](chosen)
