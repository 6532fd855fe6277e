"""A decode step whose launches are captured in a CUDA graph, one a shape, and replayed: a step of a 7B model is some
1,500 launches, which take the host several times as long as the device needs for them.

The first step of a shape runs by itself, which also compiles its kernels; the second is captured. Inputs lie in fixed
tensors. Graphs share one memory pool: nothing that a step leaves there is read after the next one.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmfast.engines.decode_attention import NAME
from mmfast.engines.pieces import Pieces, Row, Shape, Tables
from mmfast.engines.transfers import send
from mmfast.models.attention import attention
from mmfast.models.scorer import Scorer
from mmfast.ops.dispatch import available

GRAPHS = 24  # kept at once; those that were used last
FAILED: list[torch.cuda.CUDAGraph] = []


def why_not(scorer: Scorer, *, sharded: bool) -> str:
    """Why a scorer's steps cannot have fixed shapes; empty if they can."""
    if scorer.device.type != "cuda":
        return "it is not on a GPU"
    if sharded:
        return "ranks gather its weights in each forward"
    if not scorer.shared:
        return scorer.why_unshared
    return available("triton", scorer.device)


@dataclass(eq=False)
class Held:
    """Of one shape: where its inputs lie, and its graph once there is one."""

    words: Tensor
    tokens: Tensor
    pieces: Pieces
    graph: torch.cuda.CUDAGraph | None = None
    hidden: Tensor | None = None


class Captured:
    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.graphs = scorer.device.type == "cuda"  # else the same steps run one by one
        self.held: OrderedDict[Shape, Held] = OrderedDict()
        self.anchor = torch.empty(64, dtype=scorer.dtype, device=scorer.device)  # places in memory are counted from it
        self.pool: Any = None
        self.counts = {"captured": 0, "replayed": 0}

    def forward(self, tables: Tables, rows: Sequence[Row], tokens: Tensor) -> Tensor:
        """[R,D], of int64[R] tokens; good until the next one."""
        words, shape, device = torch.from_numpy(tables.advance(rows)), tables.shape, self.scorer.device
        held, new = self.held.get(shape), shape not in self.held
        if held is None:
            mine = torch.zeros(shape.size, dtype=torch.int64, device=device)
            fixed = torch.zeros(shape.rows, dtype=torch.int64, device=device)
            held = Held(mine, fixed, Pieces(shape.split(mine), shape, self.anchor, tables.stride))
            self.held[shape] = held
            if len(self.held) > GRAPHS:
                self.held.popitem(last=False)
        self.held.move_to_end(shape)
        held.words.copy_(send(words, device) if device.type == "cuda" else words)
        held.tokens[: len(rows)].copy_(tokens)
        # By itself, captured, or again
        if self.graphs and not new and held.graph is None:
            self._capture(held)
        if held.graph is not None and held.hidden is not None:
            held.graph.replay()
            self.counts["replayed"] += 1
            return held.hidden[: len(rows)]
        return self._run(held)[: len(rows)]

    def _run(self, held: Held) -> Tensor:
        scorer = self.scorer
        at = held.pieces.words.positions[:, None]
        if scorer.adapter.positions == "mrope":
            at = at.expand(3, -1, -1)
        inputs = scorer.embeddings(held.tokens)[:, None]
        with attention(scorer.decoder.config, NAME):
            output = scorer.decoder(inputs_embeds=inputs, position_ids=at, use_cache=False, tree=held.pieces)
        hidden: Tensor = output.last_hidden_state[:, 0]
        return hidden

    def _capture(self, held: Held) -> None:
        """A model whose forward cannot be captured (it waits for the device, say) is told of once, and goes on."""
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.scorer.device)
        beside = torch.cuda.Stream(self.scorer.device)
        beside.wait_stream(here)
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.stream(beside):
                graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
                try:
                    hidden = self._run(held)
                finally:
                    graph.capture_end()
        except RuntimeError as error:
            self.graphs = False
            _undo(graph, self.pool, here.device_index)
            why = str(error).partition("\n")[0]
            print(f"the decode step cannot be captured in a CUDA graph, it runs without: {why}", file=sys.stderr)
            return
        here.wait_stream(beside)
        held.graph, held.hidden = graph, hidden
        self.counts["captured"] += 1


def _undo(graph: torch.cuda.CUDAGraph, pool: Any, device: int) -> None:
    """Of a capture that failed torch (2.11) believes that it goes on: the default generator draws no more ("Offset
    increment outside graph capture"), and the allocator frees late, asking the graph, which therefore stays."""
    FAILED.append(graph)
    generator = torch.cuda.default_generators[device]
    generator.graphsafe_set_state(generator.clone_state())  # the same numbers follow; a clone is in no capture
    with suppress(RuntimeError):  # torch has done so itself
        torch._C._cuda_endAllocateToPool(device, pool)
