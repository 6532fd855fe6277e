"""Which token comes next: penalties, temperature, cuts, and a draw that depends on nothing but the answer's own name.

Drawn by the Gumbel-max rule in the form of a race: token t wins that has the largest p_t / e_t, where e_t is
exponential noise of (request key, sample, step, token), from Philox with that name as its key and the step as its
counter. An inverse distribution function would turn logits that differ by rounding into another token a thousand times
more often.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mmfast.engines.base import Decode
from mmfast.engines.transfers import send
from mmfast.ops.dispatch import available


class Drawn(Protocol):
    """What a draw must know of an answer."""

    @property
    def decode(self) -> Decode: ...
    @property
    def stream(self) -> tuple[int, int]: ...  # of `stream_of`
    @property
    def seen(self) -> Sequence[int] | None: ...  # prompt and answer, where a penalty asks for them
    @property
    def allowed(self) -> Callable[[], Tensor | None] | None: ...  # a constraint's mask: bool[V]
    @property
    def step(self) -> int: ...


def stream_of(key: str, sample: int, seed: int) -> tuple[int, int]:
    digest = hashlib.blake2b(f"{seed} {sample} {key}".encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def count(stream: tuple[int, int], step: int, out: np.ndarray) -> None:
    """Fills float32 [V] with k + 1/2, k drawn from the whole numbers below 2^32."""
    philox = np.random.Philox(key=np.asarray(stream, np.uint64), counter=np.asarray([0, 0, 0, step], np.uint64))
    bits = philox.random_raw((len(out) + 1) // 2).view(np.uint32)[: len(out)]
    np.add(bits, np.float32(0.5), out=out, dtype=np.float32, casting="unsafe")


def noise(rows: Sequence[Drawn], length: int, device: torch.device) -> Tensor:
    """fp32 [R, length]: what `count` gives for each row, made on the device where it can be."""
    if device.type == "cuda" and not available("triton", device):
        from mmfast.kernels.decode_noise import noise as made

        names = np.array([(*row.stream, row.step) for row in rows], np.uint64).view(np.int64)
        return made(send(torch.from_numpy(names), device), length)
    counted = np.empty((len(rows), length), np.float32)
    for row, out in zip(rows, counted, strict=True):
        count(row.stream, row.step, out)
    return send(torch.from_numpy(counted), device)


@lru_cache(maxsize=1024)
def _kind(decode: Decode) -> Decode:
    return replace(decode, seed=0, stop=(), max_tokens=1)


def choose(logits: Tensor, rows: Sequence[Drawn]) -> tuple[list[int], list[float]]:
    """What `draw` gives, read."""
    tokens, logps = draw(logits, rows)
    return tokens.tolist(), logps.tolist()


def draw(logits: Tensor, rows: Sequence[Drawn]) -> tuple[Tensor, Tensor]:
    """(token, its log-prob at temperature 1, before penalties and cuts) of each row of fp32 logits [R,V]. Nothing is
    read from the device."""
    scores, device = adjusted(logits, rows), logits.device
    tokens = torch.empty(len(rows), dtype=torch.int64, device=device)
    # Rows of one kind together
    kinds: dict[Decode, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        kinds[_kind(row.decode)].append(number)
    for decode, numbers in kinds.items():
        index = slice(None) if len(numbers) == len(rows) else send(numbers, device)
        some = scores[index]
        if decode.temperature:
            counted = noise([rows[n] for n in numbers], logits.shape[1], device)
            picked = race(cut(some / decode.temperature, decode), counted)
        else:
            picked = some.argmax(-1)
        tokens[index] = picked
    return tokens, logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]


def adjusted(logits: Tensor, rows: Sequence[Drawn]) -> Tensor:
    """Logits after repetition penalties, and -inf where a constraint says so."""
    scores = logits
    for number, row in enumerate(rows):
        mask = row.allowed() if row.allowed else None
        if row.decode.repetition_penalty == 1 and mask is None:
            continue
        if scores is logits:
            scores = logits.clone()
        if row.decode.repetition_penalty != 1:
            scores[number] = penalised(scores[number], row.seen or (), row.decode.repetition_penalty)
        if mask is not None:
            scores[number].masked_fill_(~send(mask, scores.device), -torch.inf)
    return scores


def penalised(scores: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    """transformers' rule: what was seen is divided by the penalty where it is positive, else multiplied."""
    index = send(sorted(set(seen)), scores.device)
    values = scores[index]
    return scores.index_copy(0, index, torch.where(values < 0, values * penalty, values / penalty))


def cut(scores: Tensor, decode: Decode) -> Tensor:
    """top-k, then top-p of what is left, then min-p: -inf for what is cut, in transformers' order."""
    if 0 < decode.top_k < scores.shape[1]:
        scores = scores.masked_fill(scores < scores.topk(decode.top_k).values[:, -1:], -torch.inf)
    if decode.top_p < 1:
        ordered, index = scores.sort(descending=False)
        out = ordered.softmax(-1).cumsum(-1) <= 1 - decode.top_p
        out[:, -1] = False
        scores = scores.masked_fill(torch.zeros_like(out).scatter(1, index, out), -torch.inf)
    if decode.min_p:
        shares = scores.softmax(-1)
        out = shares < decode.min_p * shares.amax(-1, keepdim=True)
        scores = scores.masked_fill(out, -torch.inf)
    return scores


def race(scores: Tensor, counted: Tensor) -> Tensor:
    """int64[R]: the winner of each row. -log(1 - u) is exponential, and small values, which decide, are exact: u is
    `counted` by 2^32. Where that rounds to 1, once in 2^25 times, a token is not drawn."""
    times = scores.softmax(-1).div_(counted.mul_(-(2.0**-32)).log1p_())
    if times.device.type == "cpu":  # numpy's is several times as fast
        return torch.from_numpy(times.numpy().argmin(-1))
    return times.argmin(-1)
