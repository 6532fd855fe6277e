"""The Pack: flat tensors that data, model and ops agree on (docs/packing.md has the picture).

Letters: T stream tokens, M runs, K key/value rows, U distinct (row, target), N scored tokens of all response entries,
R response entries, P pairs, F feature rows, S rows
of runs' tails, W runner-up tokens (0 but for objective.compat = "sima").
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(kw_only=True)
class Pack:
    tokens: Tensor  # int64[T], tree nodes in depth-first order; image slots hold the image token id
    features: Tensor  # int64[T], row of the image features for an image slot, -1 for text
    positions: Tensor  # int64[T] or int64[3,T]; a child starts at 1 + the largest position on its path
    q_offsets: Tensor  # int32[M+1], boundaries of runs in the stream
    k_index: Tensor  # int64[K], stream index of every key/value row: a run's ancestors, then its own tokens
    k_offsets: Tensor  # int32[M+1], boundaries in k_index
    k_copies: Tensor  # int64[K], rows of k_index sorted by stream index (stable): the inverse of k_index
    k_copy_offsets: Tensor  # int64[T+1], where the copies of stream token t stand in k_copies
    max_q: int
    max_k: int
    tails: Tensor | None = None  # int64[S], stream rows of each run from its first predicting one on; None: not known
    tail_offsets: Tensor | None = None  # int32[M+1], boundaries of runs in `tails`
    rows: Tensor  # int64[U], ascending; stream index whose hidden state predicts target u; may repeat
    targets: Tensor  # int64[U]
    index: Tensor  # int64[N], the u (or, from U on, the runner-up) that scores each token of each response entry
    responses: Tensor  # int32[R+1], boundaries of the entries in index/weights/ref_logps
    weights: Tensor  # float32[N]
    ref_logps: Tensor | None  # float32[N]; None: reference-free, SFT, or the reference pass itself
    pairs: Tensor  # int64[P,2], (chosen entry, rejected entry); int64[0,2] for SFT
    pair_weights: Tensor | None  # float32[P]; None: all one
    normaliser: float  # of the whole optimiser step over all ranks: its pairs; for SFT its tokens' weights, summed
    index_copies: Tensor | None = (
        None  # int64[N], tokens sorted by the u that scores them (stable): the inverse of index
    )
    runner_up: Tensor | None = None  # int64[W], the u whose likeliest other token is scored too, behind the U
    index_offsets: Tensor | None = None  # int64[U+W+1], where those of u stand in index_copies; None, like it: for SFT
    response_ids: list[str] = field(default_factory=list)  # R names, the reference cache's keys
    sample_ids: list[str] = field(default_factory=list)  # P (or R for SFT) example ids
    images: dict[str, Tensor] = field(default_factory=dict)  # what the family's tower reads; empty: no image
    image_ids: list[str] = field(default_factory=list)
    unshared_tokens: int = 0  # tokens that separate sequences would have run: 2 x prompts and so on

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Pack:
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Pack:
        return self._map(Tensor.pin_memory)

    def tensors(self) -> list[Tensor]:
        values = [getattr(self, item.name) for item in fields(self)]
        return [v for v in values if isinstance(v, Tensor)] + list(self.images.values())

    def _map(self, f: Any) -> Pack:
        changes: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                changes[item.name] = f(value)
        changes["images"] = {name: f(t) for name, t in self.images.items()}
        return replace(self, **changes)
