"""The head's algorithm: one loop over vocabulary tiles, shared by all backends (folds.py is what differs).

With c_t = dL/dlogp_t, d logp_t/dx_t = G_t = (1 - p_y) (s_y W_y - sum over v != y of q_v s_v W_v) / temperature, where
q = softmax over the columns other than the target's. G does not depend on the loss, so it can be made in the forward
pass, while each tile of exponentials is still in cache, and dX_t = c_t G_t.

path        for                                   forward keeps                          GEMM passes
stats       nothing needs a gradient              nothing                                1
direct      only the input needs one              G (and the entropy's twin)             2 (3)
kept        the head too, E fits keep_budget      G, E = e^(z - m) in the compute dtype  3
recompute   the head too, E does not fit,         log-sum-exp                            4
            or the entropy needs a gradient
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmfast.ops.head.folds import CENTER, FACTOR, S2, STATS, SZ, TOTAL, ZY, Folds, FoldSpec, M, S, Tile
from mmfast.ops.rows import accumulator

ROW_BLOCK = 8192
MIB = 1 << 20
TILE_BUDGET = {"cpu": 24 * MIB, "cuda": 64 * MIB}  # narrower tiles make slower GEMMs; on CPU 64 MiB cost memory
KEEP_BUDGET = {"cpu": 256 * MIB, "cuda": 1024 * MIB}


def compute_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What tiles of probabilities are stored in. CPUs multiply fp16 no faster than fp32."""
    return torch.float32 if dtype == torch.float16 and device.type == "cpu" else dtype


def choose_path(x: Tensor, vocab: int, input_grad: bool, head_grad: bool, entropy_grad: bool, keep_budget: int) -> str:
    if not head_grad:
        return "direct" if input_grad else "stats"
    size = x.shape[0] * vocab * compute_dtype(x.dtype, x.device).itemsize
    return "recompute" if entropy_grad or size > keep_budget else "kept"


def tile_width(rows: int, vocab: int, budget: int) -> int:
    """Columns of a tile of `budget` bytes (at least 256): a multiple of 64, all tiles about equally wide."""
    widest = max(budget // (4 * max(rows, 1)), 256)
    tiles = -(-vocab // (widest - widest % 64))
    return min(-(-vocab // (64 * tiles)) * 64, vocab)


@dataclass
class Head:
    """The matrices of one call. With LoRA the logits are x W^T + u B^T + bias."""

    x: Tensor  # [U,D]
    weight: Tensor  # [V,D]
    bias: Tensor | None  # [V]
    u: Tensor | None  # [U,r]
    b: Tensor | None  # [V,r]
    targets: Tensor  # [U]

    def rows(self, start: int, stop: int) -> Head:
        cut = slice(start, stop)
        u = None if self.u is None else self.u[cut]
        return Head(self.x[cut], self.weight, self.bias, u, self.b, self.targets[cut])

    def take(self, rows: Tensor) -> Head:
        u = None if self.u is None else self.u[rows]
        return Head(self.x[rows], self.weight, self.bias, u, self.b, self.targets[rows])

    def inputs(self) -> list[tuple[Tensor, Tensor]]:
        """(input [U,*], matrix [V,*]) of each term of the logits."""
        terms = [(self.x, self.weight)]
        if self.u is not None and self.b is not None:
            terms.append((self.u, self.b))
        return terms

    def tile(self, folds: Folds, start: int, out: Tensor) -> Tile:
        """The logits of the columns from `start` on, as many as `out` has."""
        stop = start + out.shape[1]
        for i, (x, w) in enumerate(self.inputs()):
            folds.product(x, w[start:stop].T, out, accumulate=i > 0)
        bias = None if self.bias is None else self.bias[start:stop].to(accumulator(self.x.dtype))
        return Tile(out, bias, self.targets, start)


@dataclass
class Outcome:
    logp: Tensor
    entropy: Tensor
    logsumsq: Tensor
    mean_logit: Tensor
    top1: Tensor
    lse: Tensor
    rest: Tensor  # 1 - p_y
    slope: Tensor  # s_y / temperature
    row_factor: Tensor  # kept: (P - Y) = row_factor * kept
    kept: Tensor
    gradients: list[Tensor]  # G of x, then of u; then their entropy twins


def forward(
    head: Head, spec: FoldSpec, folds: Folds, path: str, input_grad: bool, entropy_grad: bool, tile_budget: int
) -> Outcome:
    users, vocab = head.x.shape[0], head.weight.shape[0]
    kept = None
    if path == "kept":
        kept = head.x.new_empty(users, vocab, dtype=compute_dtype(head.x.dtype, head.x.device))
    blocks = []
    for start in range(0, max(users, 1), ROW_BLOCK):
        stop = min(start + ROW_BLOCK, users)
        part = None if kept is None else kept[start:stop]
        rows = head.rows(start, stop)
        blocks.append(_forward_rows(rows, spec, folds, part, path, input_grad, entropy_grad, tile_budget))
    if len(blocks) == 1:
        return blocks[0]
    names = ("logp", "entropy", "logsumsq", "mean_logit", "top1", "lse", "rest", "slope", "row_factor")
    joined = {name: torch.cat([getattr(b, name) for b in blocks]) for name in names}
    gradients = [torch.cat(parts) for parts in zip(*(b.gradients for b in blocks), strict=True)]
    return Outcome(**joined, kept=blocks[0].kept if kept is None else kept, gradients=gradients)


def _forward_rows(
    head: Head,
    spec: FoldSpec,
    folds: Folds,
    kept: Tensor | None,
    path: str,
    input_grad: bool,
    entropy_grad: bool,
    tile_budget: int,
) -> Outcome:
    x, targets = head.x, head.targets
    users, vocab = x.shape[0], head.weight.shape[0]
    acc, store = accumulator(x.dtype), compute_dtype(x.dtype, x.device)
    in_place = kept is not None and kept.dtype == acc  # logits are made where E is kept: no tile, so no need of many
    width = tile_width(users, vocab, tile_budget * (4 if in_place else 1))
    want_g = input_grad and path in ("direct", "kept")
    want_twin = want_g and entropy_grad
    stats = x.new_zeros(STATS, users, dtype=acc)
    stats[M] = -torch.inf
    tile_buffer = None if in_place else x.new_empty(users * width, dtype=acc)
    e_buffer = x.new_empty(users * width, dtype=store) if want_g and kept is None and store != acc else None
    z_buffer = x.new_empty(users * width, dtype=store) if want_twin else None
    sums = [x.new_empty(users, w.shape[1], dtype=acc) for _, w in head.inputs()] if want_g else []
    twins = [torch.empty_like(g) for g in sums] if want_twin else []
    maxima = []
    starts = range(0, vocab, width) if users else range(0)
    for start in starts:
        stop = min(start + width, vocab)
        shape, size = (users, stop - start), users * (stop - start)
        kept_tile = None if kept is None else kept[:, start:stop]
        tile = kept_tile if tile_buffer is None else tile_buffer[:size].view(shape)
        assert tile is not None
        probs = None
        if kept_tile is not None:
            probs = kept_tile
        elif want_g:
            probs = tile if e_buffer is None else e_buffer[:size].view(shape)
        probs_z = None if z_buffer is None else z_buffer[:size].view(shape)
        folds.forward(head.tile(folds, start, tile), stats, spec, probs, probs_z)
        if kept is not None:
            maxima.append(stats[M].clone())
        for tensors, e in ((sums, probs), (twins, probs_z)):
            for g, (_, w) in zip(tensors, head.inputs(), strict=bool(tensors)):
                assert e is not None
                if start > 0:
                    folds.rescale(g, stats[FACTOR])
                folds.product(e, w[start:stop].to(e.dtype), g, accumulate=start > 0)
    out = outcome(stats, vocab, spec)
    if kept is not None:
        out.kept = kept
        out.row_factor = _finish_kept(kept, maxima, stats, out, width, targets, spec, folds)
    if want_g:
        out.gradients = _input_gradients(head, stats, out, sums, twins, spec)
    return out


def outcome(stats: Tensor, vocab: int, spec: FoldSpec) -> Outcome:
    m, s, zy = stats[M], stats[S], stats[ZY]
    empty = stats.new_empty(0)
    log_s = s.log()
    distance = (m - zy) + log_s  # lse of the others, seen from the target: exact however large the logits are
    logp = -torch.logaddexp(distance, torch.zeros_like(distance))
    rest = torch.sigmoid(distance)
    lse = torch.logaddexp(m + log_s, zy)
    tanh = zy * (spec.temperature / spec.softcap) if spec.softcap is not None else torch.zeros_like(zy)
    entropy, logsumsq = empty, empty.clone()
    if spec.entropy:
        mean_others = torch.where(s > 0, m + stats[SZ] / s, lse)
        p = logp.exp()
        entropy = rest * (lse - mean_others) - torch.where(p > 0, p * logp, 0.0)
    if spec.squares:
        log_rest = -torch.logaddexp(-distance, torch.zeros_like(distance))
        others = torch.where(s > 0, 2 * (log_rest - log_s) + stats[S2].log(), -torch.inf)
        logsumsq = torch.logaddexp(2 * logp, others)
    return Outcome(
        logp=logp,
        entropy=entropy,
        logsumsq=logsumsq,
        mean_logit=stats[TOTAL] / vocab if spec.total else empty.clone(),
        top1=zy >= m,
        lse=lse,
        rest=rest,
        slope=(1 - tanh * tanh) / spec.temperature,
        row_factor=empty.clone(),
        kept=empty.clone(),
        gradients=[],
    )


def _finish_kept(
    kept: Tensor,
    maxima: list[Tensor],
    stats: Tensor,
    out: Outcome,
    width: int,
    targets: Tensor,
    spec: FoldSpec,
    folds: Folds,
) -> Tensor:
    """Bring all tiles to the final maximum and put the target's entry in; returns the factor that makes it P - Y."""
    s = stats[S]
    inverse = torch.where(s > 0, 1 / s, 0.0)
    if not maxima:
        return s.clone()
    m = torch.stack(maxima, 1)
    scale = torch.where(m > -torch.inf, (m - stats[M, :, None]).exp(), 1.0)
    entry = -s * out.slope * spec.temperature
    if kept.dtype == torch.float16:  # s may be beyond fp16: normalise
        scale, entry, factor = scale * inverse[:, None], entry * inverse, out.rest
    else:
        factor = out.rest * inverse
    folds.finish(kept, scale, width, targets, entry)
    return factor / spec.temperature


def _input_gradients(
    head: Head, stats: Tensor, out: Outcome, sums: list[Tensor], twins: list[Tensor], spec: FoldSpec
) -> list[Tensor]:
    """d logp/d input of each term of the logits, and d entropy/d input if the twins were summed."""
    s = stats[S]
    others = (out.rest * torch.where(s > 0, 1 / s, 0.0) / spec.temperature)[:, None]
    at_target = out.slope[:, None]
    target_rows = [w[head.targets].to(s.dtype) for _, w in head.inputs()]
    store = head.x.dtype
    made = [
        (torch.addcmul(out.rest[:, None] * at_target * w, others, g, value=-1)).to(store)
        for w, g in zip(target_rows, sums, strict=True)
    ]
    if twins:
        p = out.logp.exp()
        p_log_p = torch.where(p > 0, p * (out.logp + out.entropy), 0.0)[:, None] * at_target
        shift = torch.where(s > 0, stats[CENTER] - out.lse + out.entropy, 0.0)[:, None]
        made += [
            (-(p_log_p * w + others * (twin + shift * g))).to(store)
            for w, g, twin in zip(target_rows, sums, twins, strict=True)
        ]
    return made
