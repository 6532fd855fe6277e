"""The kernel variants that are compiled ahead of time: at least one of every kernel, in the shapes the ops launch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Variant:
    label: str
    kernel: Any
    types: dict[str, str]  # of the arguments that are not constants
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    unaligned: tuple[str, ...] = ()  # pointers that may stand at any address
    multiples_of_16: tuple[str, ...] = ()  # integers


def variants() -> Iterator[Variant]:
    yield from splice()


def splice() -> Iterator[Variant]:
    from mmfast.kernels import splice

    for dtype in ("bf16", "fp32"):
        d = f"*{dtype}"
        yield Variant(
            dtype,
            splice.splice_kernel,
            {"tokens": "*i64", "features": "*i64", "table": d, "images": d, "out": d, "width": "i64"},
            {"BLOCK": 2048},
            multiples_of_16=("width",),
        )
        yield Variant(
            dtype,
            splice.segment_sum_kernel,
            {"values": d, "order": "*i64", "offsets": "*i64", "out": d, "width": "i64"},
            {"BLOCK": 1024, "DOUBLE": False},
            multiples_of_16=("width",),
        )
