"""Evaluation in the run: held-out loss, accuracy and margins, and a few generated answers with their images."""

from __future__ import annotations

import base64
import inspect
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.distributed.fsdp import FSDPModule

from mmfast.config import Config
from mmfast.data.store import ExampleStore
from mmfast.directory import directory
from mmfast.job.opening import LoadImages, examples_of, image_loader, make_loader, make_plan
from mmfast.job.runtime import Runtime
from mmfast.models.parallelize import evaluating
from mmfast.models.scorer import Scorer
from mmfast.reference.live import LiveReference
from mmfast.training.objective import Minimised


class Evaluation:
    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        store: ExampleStore,
        scorer: Scorer,
        load_images: LoadImages,
        objective: Minimised,
        reference: Mapping[str, Any] | None,
        live: LiveReference | None,
    ) -> None:
        self.config, self.runtime, self.store, self.scorer, self.live = config, runtime, store, scorer, live
        self.objective = objective
        self.examples = examples_of(config, store)
        whole, budget = objective.whole_step, config.train.tokens_per_pack
        size = len(self.examples) if whole else min(config.train.pairs_per_step, len(self.examples))
        self.plan = make_plan(
            config, self.examples, store.images, scorer, shuffle="groups", drop_last=False, seed=0, pairs_per_step=size
        )
        if whole and (tokens := int(self.plan.forest(self.plan.order(0))[1].sum())) > budget:
            raise ValueError(
                f"data.eval_path: aot sorts over the whole set, whose {tokens} tokens are more than "
                f"train.tokens_per_pack = {budget}: raise it, or take fewer rows"
            )
        self.loader = make_loader(config, runtime, self.plan, self.examples, store, scorer, load_images, reference)

    def run(self) -> dict[str, float]:
        """The metrics of the whole held-out set, named eval/..."""
        steps = self.plan.steps_per_epoch
        whole = sum(self.plan.step(0, k, self.runtime.world).normaliser for k in range(steps))
        total = torch.zeros(len(self.objective.names), dtype=torch.float64, device=self.runtime.device)
        with evaluating(self.scorer):
            for loaded in self.loader.run(0, steps):
                pack = replace(loaded.pack, normaliser=whole)
                if self.live is not None:
                    self.live.fill(pack)
                total += self.objective(self.scorer(pack), pack)[1]
        values = self.objective.averages(self.runtime.sum(total), 1)
        return {f"eval/{name}": value for name, value in values.items()}

    def samples(self) -> list[dict[str, Any]]:
        """Greedy answers to the first held-out prompts. All ranks generate the same ones, in step."""
        from transformers import AutoTokenizer

        count = min(self.config.train.eval_samples, len(self.examples))
        if not count:
            return []
        tokenizer = AutoTokenizer.from_pretrained(directory(self.config.model.path))
        load_images = image_loader(self.config, [self.store], prepared=False)
        adapter, device = self.scorer.adapter, self.runtime.device
        found = []
        accepted = inspect.signature(type(self.scorer.model).forward).parameters  # generate() refuses any other name
        dtype = getattr(torch, self.config.model.dtype)
        with evaluating(self.scorer), self.scorer.generating() as model:
            if isinstance(self.scorer, FSDPModule):
                self.scorer.unshard()  # embeddings and head: generate() does not go through the root's forward
            for number in range(count):
                branch = self.examples[number].chosen
                begin, end = branch.spans[-1]
                prompt = branch.ids[:begin].tolist()
                sizes = iter(self.store.images[name].tokens for name in branch.images)
                ids = [t for i in prompt for t in ([i] * next(sizes) if i == adapter.image_token_id else [i])]
                tokens = torch.tensor([ids], device=device)
                inputs = load_images(list(branch.images)) if branch.images else {}
                if "pixel_values" in inputs:
                    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
                inputs |= {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
                inputs |= adapter.plain_inputs(tokens)
                inputs = {name: t.to(device) for name, t in inputs.items() if name in accepted}
                out = model.generate(**inputs, do_sample=False, max_new_tokens=self.config.train.eval_tokens)
                found.append(
                    {
                        "images": [_thumbnail(self.store.open_image(name)) for name in branch.images],
                        "prompt": tokenizer.decode(prompt),
                        "answer": tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True),
                        "chosen": tokenizer.decode(branch.ids[begin:end], skip_special_tokens=True),
                    }
                )
        return found

    def write(self, samples: list[dict[str, Any]], step: int, folder: Path) -> None:
        with (folder / "samples.jsonl").open("a", encoding="utf-8") as file:
            for sample in samples:
                file.write(json.dumps({"step": step, **sample}) + "\n")


def _thumbnail(data: bytes) -> str:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.thumbnail((320, 320))
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()
