"""The preference losses: their specification, and the kinds that sort. The formulas are kernels/preference_terms.py."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mmfast.kernels.preference_terms import smoothed

from .kinds import DIVERGENCES, DIVERGING, KINDS, PER_TOKEN, REFERENCE_FREE, SMOOTHED, SORTING, WHOLE

DEFAULT_TAU = 0.05
DEFAULT_SIMPO_MARGIN = 0.5


class PreferenceSpec(NamedTuple):
    """Everything about the loss that is not a tensor. `kind` and `divergence` index KINDS and DIVERGENCES."""

    kind: int
    divergence: int
    average: bool
    sft_average: bool
    beta: float
    smoothing: float
    sft_weight: float
    f_alpha: float
    tau: float
    simpo_margin: float
    ld_alpha: float
    scale: float  # 1 / pair_count

    @staticmethod
    def of(options: list[float]) -> PreferenceSpec:
        """Back from the list that the op takes: on its way through torch's dispatcher all became floats."""
        kind, divergence, average, sft_average, *numbers = options
        return PreferenceSpec(int(kind), int(divergence), bool(average), bool(sft_average), *numbers)

    @property
    def name(self) -> str:
        return KINDS[self.kind]

    def formula(self) -> tuple[tuple[float, ...], str, str, bool]:
        """What the formulas take: the numbers from b to margin, kind, divergence, and whether S / n is in them."""
        eps, divergence = self.smoothing, DIVERGENCES[self.divergence]
        if divergence == "alpha_divergence" and abs(self.f_alpha - 1) < 1e-6:
            divergence = "reverse_kl"  # its limit at 1
        logs = math.log(eps) if eps > 0 else -math.inf, math.log1p(-eps)
        numbers = (self.beta, eps, *logs, self.f_alpha, self.tau, self.simpo_margin)
        return numbers, self.name, divergence, self.name in PER_TOKEN and not self.average


def make_spec(
    loss: str = "sigmoid", *, beta: float = 0.1, average: bool = False, label_smoothing: float = 0.0,
    sft_weight: float = 0.0, sft_average: bool = False, f_divergence: str | None = None, f_alpha: float | None = None,
    tau: float | None = None, simpo_margin: float | None = None, ld_alpha: float | None = None, pairs: int = 1,
    pair_count: float | None = None, has_reference: bool = True, has_pair_weights: bool = False,
    has_delta: bool = False, op: str = "preference_loss",
) -> PreferenceSpec:  # fmt: skip
    """Refuses what cannot take effect, with the reason; fills in the defaults."""

    def refuse(problem: str) -> None:
        raise ValueError(f"{op}: {problem}")

    # What each option may be, by itself and beside the kind of loss.
    if loss not in KINDS:
        refuse(f"unknown loss {loss!r}: choose one of {', '.join(KINDS)}")
    if not (beta > 0 and math.isfinite(beta)):
        refuse(f"beta must be positive, not {beta}")
    if loss in REFERENCE_FREE and has_reference:
        refuse(f"loss {loss!r} has no reference model: leave ref_logps out")
    if loss not in REFERENCE_FREE and not has_reference:
        refuse(f"loss {loss!r} needs ref_logps; {', '.join(REFERENCE_FREE)} do without")
    low, high = (0.0, 0.5) if loss == "robust" else (0.0, 1.0)
    if label_smoothing and loss not in SMOOTHED:
        refuse(f"label_smoothing has no effect on {loss!r}; it acts on {', '.join(SMOOTHED)}")
    if not low <= label_smoothing < high:
        refuse(f"label_smoothing must be in [{low:g}, {high:g}) for {loss!r}, not {label_smoothing}")
    if loss == "exo_pair" and label_smoothing == 0:
        refuse("exo_pair needs label_smoothing > 0 (it takes the logarithm of it); 1e-3 is usual")
    divergence = f_divergence or "reverse_kl"
    if divergence not in DIVERGENCES:
        refuse(f"unknown f_divergence {f_divergence!r}: choose one of {', '.join(DIVERGENCES)}")
    if divergence != "reverse_kl" and loss not in DIVERGING:
        refuse(f"f_divergence {divergence!r} is not defined for {loss!r}, only for {', '.join(DIVERGING)}")
    if (f_alpha is not None) != (divergence == "alpha_divergence"):
        refuse("f_alpha goes with f_divergence='alpha_divergence', which needs it")
    for name, value, kind in (("tau", tau, "discopop"), ("simpo_margin", simpo_margin, "simpo")):
        if value is not None and loss != kind:
            refuse(f"{name} has no effect on {loss!r}, only on {kind!r}")
    if tau is not None and not tau > 0:
        refuse(f"tau must be positive, not {tau}")
    if has_delta and loss != "bco_pair":
        refuse(f"delta has no effect on {loss!r}, only on 'bco_pair'")
    if ld_alpha is not None and not 0 <= ld_alpha <= 1:
        refuse(f"ld_alpha must be in [0, 1], not {ld_alpha}")
    if ld_alpha not in (None, 1.0) and loss in WHOLE:
        refuse(f"ld_alpha does not go with {loss!r}, which is a likelihood of whole answers")
    if sft_average and not sft_weight:
        refuse("sft_average has no effect without sft_weight")
    if pair_count is not None and not pair_count > 0:
        refuse(f"pair_count must be positive, not {pair_count}")
    # A kind that sorts compares all pairs of a step at once.
    if loss in SORTING:
        if pair_count is not None and pair_count != pairs:
            refuse(
                f"{loss!r} sorts over the whole batch: pair_count is {pair_count}, but {pairs} pairs are here. "
                "Put the step into one pack"
            )
        if has_pair_weights:
            refuse(f"pair_weights are not defined for {loss!r}, which compares sorted lists, not pairs")
    return PreferenceSpec(
        KINDS.index(loss), DIVERGENCES.index(divergence), bool(average), bool(sft_average), float(beta),
        float(label_smoothing), float(sft_weight), float(f_alpha or 0.0),
        float(DEFAULT_TAU if tau is None else tau),
        float(DEFAULT_SIMPO_MARGIN if simpo_margin is None else simpo_margin),
        float(1.0 if ld_alpha is None else ld_alpha), 1.0 / float(pair_count or max(pairs, 1)),
    )  # fmt: skip


def aot_terms(
    spec: PreferenceSpec, s_c: Tensor, s_r: Tensor, ref_c: Tensor, ref_r: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Optimal transport compares sorted with sorted. The i-th loss goes to the pair whose (chosen) ratio ranks i."""
    paired = spec.name == "aot"
    ours, order_c = (s_c - (s_r if paired else ref_c)).sort(stable=True)
    other, order_r = ((ref_c if paired else s_r) - ref_r).sort(stable=True)
    value, slope = smoothed(spec.beta * (ours - other), spec.smoothing)
    at_c = torch.empty_like(value).scatter_(0, order_c, spec.beta * slope)
    at_r = -at_c if paired else torch.empty_like(value).scatter_(0, order_r, -spec.beta * slope)
    return torch.empty_like(value).scatter_(0, order_c, value), at_c, at_r
