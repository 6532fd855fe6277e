"""The kinds of preference loss and their traits: the one table, readable without torch (the config reads it too).

A kind's place is its code in csrc/preference.h; docs/ops/preference_loss.md has every formula with its paper.
"""

from __future__ import annotations

from typing import NamedTuple


class Traits(NamedTuple):
    reference: bool = True  # reads the reference's log-probs
    smoothed: bool = False  # label_smoothing acts on it
    diverging: bool = False  # other divergences than the reverse KL are defined for it
    per_token: bool = False  # S / n inside the loss, whatever `average` says
    sorting: bool = False  # sorts over the batch: all pairs of a step in one call
    whole: bool = False  # a likelihood of whole answers: ld_alpha does not go with it


TRAITS = {
    "sigmoid": Traits(smoothed=True, diverging=True),
    "hinge": Traits(diverging=True),
    "ipo": Traits(diverging=True, per_token=True),
    "sigmoid_norm": Traits(smoothed=True, diverging=True, per_token=True),
    "robust": Traits(smoothed=True, diverging=True),
    "exo_pair": Traits(smoothed=True, diverging=True),
    "nca_pair": Traits(),
    "bco_pair": Traits(),
    "sppo_hard": Traits(),
    "apo_zero": Traits(),
    "apo_down": Traits(),
    "discopop": Traits(diverging=True),
    "orpo": Traits(reference=False, per_token=True, whole=True),
    "simpo": Traits(reference=False, smoothed=True, per_token=True),
    "sft": Traits(reference=False, whole=True),
    "aot": Traits(smoothed=True, sorting=True),
    "aot_unpaired": Traits(smoothed=True, sorting=True),
}
KINDS = tuple(TRAITS)
REFERENCE_FREE = tuple(kind for kind, traits in TRAITS.items() if not traits.reference)
SMOOTHED = tuple(kind for kind, traits in TRAITS.items() if traits.smoothed)
DIVERGING = tuple(kind for kind, traits in TRAITS.items() if traits.diverging)
PER_TOKEN = tuple(kind for kind, traits in TRAITS.items() if traits.per_token)
SORTING = tuple(kind for kind, traits in TRAITS.items() if traits.sorting)
WHOLE = tuple(kind for kind, traits in TRAITS.items() if traits.whole)
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")  # by their codes
