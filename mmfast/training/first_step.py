"""The first step before any training: does the policy start from the reference?"""

from __future__ import annotations

import math

import numpy as np
import torch

from mmfast.job.opening import Job
from mmfast.job.passes import Pass
from mmfast.models.parallelize import evaluating
from mmfast.models.scorer import Scorer
from mmfast.packing import Pack
from mmfast.reference.live import LiveReference
from mmfast.reference.scoring import tolerance
from mmfast.training.objective import Objective


def check_first_loss(job: Job, scorer: Scorer, objective: Objective, training: Pass, live: LiveReference | None) -> str:
    """The first step before any training: the policy is the reference, so each pair's margin is zero but for rounding.
    Says the largest, and the loss beside its own value at zero margin (ln 2 for sigmoid); raises with the likely cause
    where a single pair is off. A mean would hide it: errors of either sign leave a loss where it was."""
    runtime = job.runtime
    sums, known = torch.zeros(2, dtype=torch.float64, device=runtime.device), True
    worst, problem = 0.0, ""
    for loaded in training.run(0, 1):
        pack = loaded.pack
        if live is not None:
            live.fill(pack)
        with evaluating(scorer):
            logps = scorer(pack)
            sums[0] += objective(logps, pack)[0]
        at_zero = objective.at_zero_margin(pack)
        known = known and at_zero is not None
        sums[1] += at_zero or 0.0
        for margin, off, allowed, name in margins(job, logps, pack):
            worst = max(worst, margin)
            if not off <= allowed and not problem:
                problem = f"the pair {name} is {off:.3g} nat from zero margin ({allowed:.3g} allowed)"
    loss, expected = runtime.sum(sums)
    worst = max(runtime.gather(worst))
    told = f"step 0: loss {loss:.6f}" + (f", at zero margin {expected:.6f}" if known else "")
    told += f"; the largest margin of a pair is {worst:.2g} nat"
    if problem:
        problem = (
            f"{told}: {problem}: the policy does not start from the reference. Likely causes: the reference cache was "
            "made from other weights or in another dtype (remove it), reference.model is not the starting policy (name "
            "it in reference.model), or the initial adapter is not part of it (model.adapter)"
        )
    runtime.agree(problem)
    return told


def margins(job: Job, logps: torch.Tensor, pack: Pack) -> list[tuple[float, float, float, str]]:
    """Of each pair of a pack, unweighted and in nat: |margin|, its distance from the reference, the distance that is
    allowed, the example's id."""
    assert pack.ref_logps is not None
    now, there = (x.float().cpu().numpy() for x in (logps[pack.index], pack.ref_logps))
    bounds = pack.responses.tolist()
    pairs = []
    for (chosen, rejected), name in zip(pack.pairs.tolist(), pack.sample_ids, strict=True):
        c, r = slice(bounds[chosen], bounds[chosen + 1]), slice(bounds[rejected], bounds[rejected + 1])
        margin = abs(float((now[c] - there[c]).sum(dtype=np.float64) - (now[r] - there[r]).sum(dtype=np.float64)))
        apart = math.hypot(*(float(np.linalg.norm((now[side] - there[side]).astype(np.float64))) for side in (c, r)))
        allowed = sum(tolerance(job, side.stop - side.start) for side in (c, r))
        pairs.append((margin, max(margin, apart), allowed, name))
    return pairs
