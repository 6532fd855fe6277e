"""The plan: which examples go to which step, rank and micro-batch. A pure function of token ids and settings; every
rank computes it for itself and finds the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from mmfast.data.records import Example, ImageInfo
from mmfast.data.symbols import Symbols, collapse
from mmfast.families.layout import Layout
from mmfast.ops.dispatch import native
from mmfast.packing.build import step_normaliser
from mmfast.packing.cost import UNIT, Cost, node_costs
from mmfast.packing.order import SHUFFLES, blocks, epoch_order, groups
from mmfast.packing.tree import Forest, prefix_forest


@runtime_checkable
class HasSymbols(Protocol):
    """A store of examples: it holds their flat arrays already."""

    @property
    def symbols(self) -> Symbols: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """The keys of [train] that shape a plan, with the seed."""

    pairs_per_step: int  # over all ranks; examples for SFT
    tokens_per_pack: int
    seed: int = 0
    shuffle: str = "groups"
    drop_last: bool = False
    whole_step: bool = False  # the step in one pack, on rank 0: losses that sort over the batch

    def __post_init__(self) -> None:
        for name in ("pairs_per_step", "tokens_per_pack"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} = {getattr(self, name)}: it must be at least 1")
        if self.shuffle not in SHUFFLES:
            raise ValueError(f"train.shuffle = {self.shuffle!r}: choose one of {', '.join(SHUFFLES)}")


@dataclass(frozen=True)
class StepPlan:
    """One optimiser step. packs[rank][micro_batch] holds example numbers; a pack may be empty."""

    epoch: int
    step: int  # within the epoch
    examples: np.ndarray  # of the step, in order
    packs: tuple[tuple[np.ndarray, ...], ...]
    normaliser: float  # what the step's summed loss is divided by
    tokens: np.ndarray  # int64[ranks, micro_batches] that run
    costs: np.ndarray  # float64[ranks, micro_batches], in tokens through the decoder's linear layers
    unshared_tokens: int  # what its branches would have run one by one

    @property
    def micro_batches(self) -> int:
        return len(self.packs[0])


class Plan:
    """plan = Plan(examples, images, layout, settings); plan.step(epoch, step, world) for any step, in any order."""

    def __init__(
        self,
        examples: Sequence[Example] | HasSymbols,
        images: Mapping[str, ImageInfo],
        layout: Layout,
        settings: PlanSettings,
        *,
        cost: Cost | None = None,
        gamma: float = 1.0,
    ) -> None:
        if not len(examples):
            raise ValueError("there is nothing to plan: the data has no examples")
        self.settings, self.share = settings, layout.share
        self.symbols = symbols_of(examples, images, layout)
        self.is_pairs = self.symbols.is_pairs
        if not self.is_pairs and np.any(self.symbols.branch_of[:, 1] >= 0):
            raise ValueError("the data mixes pairs with examples that have no rejected side: plan them apart")
        self.cost = cost or Cost()
        check_sizes(self.symbols, settings.tokens_per_pack, share=layout.share, longest=layout.longest)
        self._normalisers = self.symbols.normalisers(gamma)
        self._blocks = blocks(groups(self.symbols), settings.pairs_per_step)
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))
        n, size = len(self.symbols), settings.pairs_per_step
        self.examples = n
        self.steps_per_epoch = n // size if settings.drop_last else -(-n // size)
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"train.drop_last with train.pairs_per_step = {size} drops all {n} examples: "
                "lower pairs_per_step or set drop_last = false"
            )

    def order(self, epoch: int) -> np.ndarray:
        """Example numbers in the order of one epoch."""
        if self._order[0] != epoch:
            s = self.settings
            self._order = (epoch, epoch_order(self._blocks, self.examples, s.shuffle, s.seed, epoch))
        return self._order[1]

    def step(self, epoch: int, step: int, world: int = 1) -> StepPlan:
        """Step `step` of an epoch, packed for `world` ranks."""
        if not 0 <= step < self.steps_per_epoch:
            raise ValueError(f"step {step}: an epoch has {self.steps_per_epoch}")
        size = self.settings.pairs_per_step
        numbers = self.order(epoch)[step * size : (step + 1) * size]
        forest, tokens, cost = self.forest(numbers)
        pack_of, micro_batches, sizes = self._pack(forest, tokens, cost, world)
        if self.settings.whole_step:
            needed, budget = int(tokens.sum()), self.settings.tokens_per_pack
            if needed > budget:
                raise ValueError(
                    f"this loss needs a whole step in one pack, and step {step} of epoch {epoch} has {needed} tokens, "
                    f"above train.tokens_per_pack = {budget}: raise it, or lower train.pairs_per_step"
                )
            pack_of, micro_batches, sizes = np.zeros_like(pack_of), 1, np.zeros((2, world, 1), np.int64)
            sizes[:, 0, 0] = tokens.sum(), cost.sum()
        packs = [[numbers[pack_of == m * world + r] for m in range(micro_batches)] for r in range(world)]
        branches = self.symbols.branch_of[numbers].reshape(-1)
        return StepPlan(
            epoch=epoch,
            step=step,
            examples=numbers,
            packs=tuple(tuple(rank) for rank in packs),
            normaliser=step_normaliser(self._normalisers[numbers]),
            tokens=sizes[0],
            costs=sizes[1] / UNIT,
            unshared_tokens=int(self.symbols.unshared[branches[branches >= 0]].sum()),
        )

    def forest(self, numbers: np.ndarray) -> tuple[Forest, np.ndarray, np.ndarray]:
        """The forest of some examples, with tokens and cost of its nodes."""
        return forest_of(self.symbols.cut(numbers), self.cost, share=self.share)

    def _pack(
        self, forest: Forest, tokens: np.ndarray, cost: np.ndarray, world: int
    ) -> tuple[np.ndarray, int, np.ndarray]:
        """Pack of each example, micro-batches, and (tokens, cost) of each [rank, micro-batch]; a pack's number is
        micro-batch * world + rank."""
        module = native()
        if module is None:
            raise ValueError("planning needs mmfast._C, which was not built: pip install . with a C++ compiler")
        sides = forest.leaf.reshape(-1, 2 if self.is_pairs else 1)
        leaves = np.full((len(sides), 2), -1, np.int32)
        leaves[:, : sides.shape[1]] = sides
        pack_of = np.empty(len(sides), np.int32)
        sizes = np.zeros((2, -(-len(sides) // world), world), np.int64)
        parent = np.ascontiguousarray(forest.parent)
        micro_batches: int = module.pack_step(
            parent.ctypes.data, tokens.ctypes.data, cost.ctypes.data, len(parent), leaves.ctypes.data, len(sides),
            world, self.settings.tokens_per_pack, pack_of.ctypes.data, sizes[0].ctypes.data, sizes[1].ctypes.data,
        )  # fmt: skip
        assert micro_batches > 0, "a pair above the budget was let through"
        return pack_of, micro_batches, sizes[:, :micro_batches].transpose(0, 2, 1)


def symbols_of(examples: Sequence[Example] | HasSymbols, images: Mapping[str, ImageInfo], layout: Layout) -> Symbols:
    """A store's own arrays; Example objects made by hand are flattened."""
    if isinstance(examples, HasSymbols):
        return examples.symbols
    return collapse(examples, images, layout.image_token_id, keys=False)


def forest_of(symbols: Symbols, cost: Cost, *, share: bool) -> tuple[Forest, np.ndarray, np.ndarray]:
    forest = prefix_forest(symbols.flat, symbols.starts, symbols.ends, share=share)
    return forest, *node_costs(symbols, forest, cost)


def check_sizes(symbols: Symbols, budget: int, *, share: bool, longest: int = 0) -> None:
    """A pair is whole in one pack, so each must fit the budget alone, and each side the `longest` sequence."""
    a, b = symbols.branch_of.T
    most = np.maximum(symbols.unshared[a], np.where(b >= 0, symbols.unshared[b], 0))
    for e in np.flatnonzero(most > longest)[:1].tolist() if longest else ():
        raise ValueError(
            f"{symbols.told(e)} has {most[e]} tokens, but the model is trained with {longest} at most: it reads longer "
            "ones in another way; lower data.max_length so that such rows are dropped or cut"
        )
    apart = symbols.unshared[a] + np.where(b >= 0, symbols.unshared[b], 0)  # never less than the pair's tree
    for e in np.flatnonzero(apart > budget).tolist():
        tokens = int(forest_of(symbols.cut(np.asarray([e])), Cost(), share=share)[1].sum())
        if tokens > budget:
            raise ValueError(
                f"{symbols.told(e)} needs {tokens} tokens, but train.tokens_per_pack = {budget}: raise it, or lower "
                "data.max_length so that such rows are dropped or cut"
            )
