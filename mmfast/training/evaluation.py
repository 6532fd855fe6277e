"""Evaluation in the run: held-out loss, accuracy and margins, and a few generated answers with their images."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

from mmfast.config.schema import Train
from mmfast.data.store import ExampleStore
from mmfast.data.symbols import expanded
from mmfast.directory import directory
from mmfast.job.opening import Job, Model
from mmfast.job.passes import Pass
from mmfast.models.parallelize import evaluating
from mmfast.models.proof import own_inputs
from mmfast.packing.build import Logps
from mmfast.pages import png, small
from mmfast.reference.live import LiveReference
from mmfast.training.objective import Objective


class Evaluation:
    def __init__(
        self,
        job: Job,
        store: ExampleStore,
        model: Model,
        objective: Objective,
        settings: Train,
        *,
        values: Logps | None = None,
        live: LiveReference | None = None,
    ) -> None:
        """`values` or `live`: the reference's log-probs, where the objective reads them."""
        self.job, self.store, self.scorer, self.settings = job, store, model.scorer, settings
        self.objective, self.live = objective, live
        whole, budget = job.steps.whole_step, job.steps.tokens_per_pack
        size = len(store) if whole else min(job.steps.pairs_per_step, len(store))
        self.once = Pass(
            job, store, model, reference=values, shuffle="groups", drop_last=False, seed=0, pairs_per_step=size
        )
        if whole and (tokens := int(self.once.plan.forest(self.once.plan.order(0))[1].sum())) > budget:
            raise ValueError(
                f"data.eval_path: aot sorts over the whole set, whose {tokens} tokens are more than "
                f"train.tokens_per_pack = {budget}: raise it, or take fewer rows"
            )

    def run(self) -> dict[str, float]:
        """The metrics of the whole held-out set, named eval/..."""
        runtime, normaliser = self.job.runtime, self.once.normaliser()
        total = torch.zeros(len(self.objective.names), dtype=torch.float64, device=runtime.device)
        with evaluating(self.scorer):
            for loaded in self.once.run():
                pack = replace(loaded.pack, normaliser=normaliser)
                if self.live is not None:
                    self.live.fill(pack)
                total += self.objective(self.scorer(pack), pack)[1]
        values = self.objective.averages(runtime.sum(total), 1)
        return {f"eval/{name}": value for name, value in values.items()}

    def samples(self) -> list[dict[str, Any]]:
        """Greedy answers to the first held-out prompts. All ranks generate the same ones, in step."""
        from transformers import AutoTokenizer

        count = min(self.settings.eval_samples, len(self.store))
        if not count:
            return []
        tokenizer = AutoTokenizer.from_pretrained(directory(self.job.model.path))
        load_images, dtype = self.job.image_loader(prepared=False), getattr(torch, self.job.model.dtype)
        samples = []
        with evaluating(self.scorer), self.scorer.generating() as model:
            generate: Any = model.generate
            if isinstance(self.scorer, FSDPModule):
                self.scorer.unshard()  # embeddings and head: generate() does not go through the root's forward
            for number in range(count):
                # The prompt with its images' slots, and their pixels
                branch = self.store[number].chosen
                begin, end = branch.spans[-1]
                ids, starts = expanded(branch, self.store.images, self.scorer.adapter.image_token_id)
                prompt = ids[: starts[begin]]
                images = load_images(list(branch.images)) if branch.images else {}
                inputs = own_inputs(self.scorer, prompt, images, dtype)
                inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
                # The answer, beside the one in the data
                answer = generate(**inputs, do_sample=False, max_new_tokens=self.settings.eval_tokens)[0, len(prompt) :]
                pictures = [png(small(self.store.open_image(name), 320)) for name in branch.images]
                samples.append(
                    {
                        "images": [base64.b64encode(picture).decode() for picture in pictures],
                        "prompt": tokenizer.decode(branch.ids[:begin].tolist()),
                        "answer": tokenizer.decode(answer, skip_special_tokens=True),
                        "chosen": tokenizer.decode(branch.ids[begin:end], skip_special_tokens=True),
                    }
                )
        return samples

    def write(self, samples: list[dict[str, Any]], step: int, folder: Path) -> None:
        with (folder / "samples.jsonl").open("a", encoding="utf-8") as file:
            for sample in samples:
                file.write(json.dumps({"step": step, **sample}) + "\n")
