"""Evaluation in the run: held-out loss, accuracy and margins, and a few generated answers with their images."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from mmfast.config.schema import Train
from mmfast.data.records import Branch
from mmfast.data.store import ExampleStore
from mmfast.engines.base import Decode
from mmfast.engines.local import Local
from mmfast.job.opening import Job, Model
from mmfast.job.passes import Pass
from mmfast.models.parallelize import evaluating
from mmfast.packing.build import Logps
from mmfast.pages import png, small
from mmfast.progress import Follow
from mmfast.reference.live import LiveReference
from mmfast.training.metrics import EDGE
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
        self.job, self.store, self.settings = job, store, settings
        self.scorer, self.load_images = model
        self.objective, self.live, self.told = objective, live, set[str]()
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

    def run(self, follow: Follow = lambda done, of: None) -> dict[str, float]:
        """The metrics of the whole held-out set, named eval/..."""
        runtime, normaliser, done = self.job.runtime, self.once.normaliser(), 0
        total = torch.zeros(len(self.objective.names), dtype=torch.float64, device=runtime.device)
        with evaluating(self.scorer):
            for loaded in self.once.run():
                pack = replace(loaded.pack, normaliser=normaliser)
                if self.live is not None:
                    self.live.fill(pack)
                total += self.objective(self.scorer(pack), pack)[1]
                if loaded.ends_step:
                    done += len(loaded.step.examples)
                    follow(done, len(self.store))
        values = self.objective.averages(runtime.sum(total), 1)
        return {f"eval/{name}": value for name, value in values.items()}

    @cached_property
    def engine(self) -> Local:
        job, m = self.job, self.job.model
        return Local(
            m.path,
            template=job.data.template,
            aspect=job.data.aspect,
            min_pixels=m.min_pixels,
            max_pixels=m.max_pixels,
            scorer=self.scorer,
            runtime=job.runtime,
            features=self.load_images if m.cache_vision else None,
        )

    def tried_samples(self, step: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
        """`samples`; that they fail is told once and ends nothing."""
        samples, problem = list[dict[str, Any]](), ""
        try:
            samples = self.samples()
        except Exception as error:  # whatever a model's generate() raises
            problem = f"{type(error).__name__}: {error}".split("\n")[0]
        told = [text for text in self.job.runtime.gather(problem) if text]
        if told and told[0] not in self.told:
            say(f"warning: no samples at step {step}: {told[0]}")
            self.told.add(told[0])
        return [] if told else samples

    def samples(self) -> list[dict[str, Any]]:
        """Greedy answers to the first held-out prompts, which the ranks share out among them; on every rank all."""
        count, runtime = min(self.settings.eval_samples, len(self.store)), self.job.runtime
        if not count:
            return []
        # This rank's prompts; what cannot be read is told before a rank waits for another
        decode, prompts, problem = Decode(max_tokens=self.settings.eval_tokens), [], ""
        try:
            for number in range(runtime.rank, count, runtime.world):
                prompts.append(self.engine.prompts.stored(str(number), self.store[number].chosen, self.store, decode))
        except (ValueError, OSError) as error:
            problem = str(error)
        runtime.agree(problem)
        mine = list(self.engine.answer(prompts))
        runtime.agree(next((reply.error for reply in mine if reply.error), ""))
        answers = {int(reply.key): reply.text for some in runtime.gather(mine) for reply in some}
        # Beside the responses in the data
        samples = []
        for number in range(count):
            example = self.store[number]
            pictures = [png(small(self.store.open_image(name), EDGE)) for name in example.chosen.images]
            sample: dict[str, Any] = {"images": [base64.b64encode(picture).decode() for picture in pictures]}
            sample |= {"prompt": self._said(example.chosen, prompt=True), "answer": answers[number]}
            sample["chosen"] = self._said(example.chosen)
            if example.rejected is not None:
                sample["rejected"] = self._said(example.rejected)
            samples.append(sample)
        return samples

    def _said(self, branch: Branch, *, prompt: bool = False) -> str:
        """The text of a branch's last response, or of all before it."""
        begin, end = branch.spans[-1]
        ids = branch.ids[:begin] if prompt else branch.ids[begin:end]
        return self.engine.prompts.tokenizer.hf.decode(ids.tolist(), skip_special_tokens=True)
