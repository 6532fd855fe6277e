"""A model over examples, in planned packs: training, evaluation, the reference, and the checks of either."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from mmfast.data.store import ExampleStore
from mmfast.job.opening import Job, Model
from mmfast.models.estimate import training_cost
from mmfast.packing import Loaded, PackLoader, Plan
from mmfast.packing.build import Logps


class Pass:
    """`reference`: the log-probs that packs carry; it may be given once the plan stands. `together`: every rank runs
    the same packs. `changes`: of the plan's settings, where they are not training's."""

    def __init__(
        self,
        job: Job,
        store: ExampleStore,
        model: Model,
        *,
        reference: Logps | None = None,
        together: bool = False,
        **changes: Any,
    ) -> None:
        self.job, self.store, self.model, self.reference = job, store, model, reference
        self.rank, self.world = (0, 1) if together else (job.runtime.rank, job.runtime.world)
        scorer = model.scorer
        self.layout = replace(scorer.adapter.layout(), share=scorer.shared)
        self.cost = training_cost(
            scorer, checkpointing=job.parallel.activation_checkpointing, cached_vision=job.model.cache_vision
        )
        settings = replace(job.steps, **changes)
        self.plan = Plan(store, store.images, self.layout, settings, cost=self.cost, gamma=job.gamma)

    def run(self, first: int = 0, last: int | None = None) -> Iterator[Loaded]:
        """This rank's packs of the steps [first, last), counted through all epochs; None: to the epoch's end."""
        loader = PackLoader(
            self.plan,
            self.store,
            self.store.images,
            self.layout,
            rank=self.rank,
            world=self.world,
            gamma=self.job.gamma,
            reference=self.reference,
            load_images=self.model.load_images,
            workers=self.job.data.workers,
            device=self.job.runtime.device,
        )
        return loader.run(first, last)

    def normaliser(self) -> float:
        """Of a whole epoch taken as one step."""
        return sum(self.plan.step(0, k, self.world).normaliser for k in range(self.plan.steps_per_epoch))
