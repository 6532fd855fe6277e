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
    arches: tuple[int, ...] = ()  # launched on these only; empty: on all


def variants() -> Iterator[Variant]:
    yield from splice()
    yield from fused_logprob()
    yield from fold()
    yield from preference()
    yield from decode()
    yield from noise()


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


def fused_logprob() -> Iterator[Variant]:
    from mmfast.kernels import logprob_fused as fused

    floats = {name: "*fp32" for name in ("part_max", "part_sum", "part_target")}
    scalars = {name: "i32" for name in ("U", "V", "D")} | {"softcap": "fp32", "scale": "fp32"}
    scalars |= {"hidden_stride": "i64", "weight_stride": "i64"}
    blocks = {"M": fused.BLOCK_M, "K": fused.BLOCK_K, "GROUP": fused.GROUP, "PROGRAMS": 132, "UPCAST": False}
    for dtype, columns, options in (
        ("bf16", 128, True),
        ("fp16", 128, False),
        ("bf16", 256, False),
        ("fp16", 256, True),
    ):
        yield Variant(
            f"{dtype}, {columns} columns{', bias, softcap' if options else ''}",
            fused.fused_logprob_kernel,
            {"hidden": f"*{dtype}", "weight": f"*{dtype}", "bias": f"*{dtype}", "targets": "*i64"} | floats | scalars,
            blocks | {"HAS_BIAS": options, "HAS_SOFTCAP": options, "N": columns},
            num_warps=8,
            multiples_of_16=("D", "hidden_stride", "weight_stride"),
            arches=(90,) if columns == 256 else (),
        )
    ones = {"U": 1, "V": 1}  # Triton makes constants of arguments that are 1
    yield Variant(
        "bf16, sizes of 1",
        fused.fused_logprob_kernel,
        {"hidden": "*bf16", "weight": "*bf16", "bias": "*bf16", "targets": "*i64"}
        | floats
        | {name: kind for name, kind in scalars.items() if name not in ones},
        ones | blocks | {"HAS_BIAS": False, "HAS_SOFTCAP": False, "N": 128},
        num_warps=8,
        multiples_of_16=("hidden_stride", "weight_stride"),
    )
    yield Variant(
        "fp32",
        fused.fused_merge_kernel,
        floats | {"logp": "*fp32", "U": "i32", "parts": "i32"},
        {"BLOCK": 32, "PARTS": 64},
    )


def fold() -> Iterator[Variant]:
    from mmfast.kernels import logprob

    scalars = {name: "fp32" for name in ("softcap", "inverse_temperature", "to_tanh")}
    tile = {"tile_stride": "i64", "bias": "*fp32", "targets": "*i64", "first": "i64", "width": "i32"} | scalars
    outputs = {name: "*fp32" for name in ("stats", "base_to", "sums")}
    outputs |= {name: "i64" for name in ("U", "probs_stride", "probs_z_stride", "sums_stride", "sums_width")}
    strides = ("tile_stride", "probs_stride", "probs_z_stride", "sums_stride")
    for label, dtype, out, options, one_pass in (
        ("fp32 -> bf16", "fp32", "bf16", False, True),
        ("fp32 -> bf16, all options", "fp32", "bf16", True, True),
        ("fp32 -> fp16", "fp32", "fp16", False, False),
        ("fp32 in place, all options", "fp32", "fp32", True, False),
        ("bf16, nothing written", "bf16", "", False, True),
    ):
        flags = {"HAS_BIAS": options, "HAS_SOFTCAP": options}
        to = f"*{out or dtype}"
        yield Variant(
            label,
            logprob.fold_forward_kernel,
            tile | outputs | {"tile": f"*{dtype}", "probs": to, "probs_z": to},
            flags
            | {"EXTRAS": options, "PROBS": bool(out), "PROBS_Z": options, "HAS_BASE": bool(out), "HAS_SUMS": bool(out)}
            | {"BEGINS": not out, "ONE_PASS": one_pass, "BLOCK": logprob.STEP},
            num_warps=8,
            multiples_of_16=strides,
        )
        if not one_pass and not options:
            continue
        yield Variant(
            label,
            logprob.fold_gradient_kernel,
            tile
            | {name: "*fp32" for name in ("lse", "a", "b", "d")}
            | {"tile": f"*{dtype}", "out": to, "out_stride": "i64"},
            flags | {"HAS_B": options, "BLOCK": 2048},
            multiples_of_16=("tile_stride", "width", "out_stride"),
        )
    yield Variant(
        "sizes of 1",
        logprob.fold_forward_kernel,
        {name: kind for name, kind in tile.items() if name not in ("width", "first", "tile_stride")}
        | {
            "tile": "*fp32",
            "stats": "*fp32",
            "probs": "*fp32",
            "probs_z": "*fp32",
            "base_to": "*fp32",
            "sums": "*fp32",
        },
        dict.fromkeys(("width", "first", "U", "sums_width", *strides), 1)
        | dict.fromkeys(("HAS_BIAS", "HAS_SOFTCAP", "EXTRAS", "PROBS", "PROBS_Z", "HAS_BASE", "HAS_SUMS"), True)
        | {"BEGINS": False, "ONE_PASS": True, "BLOCK": 32},
    )
    yield Variant(
        "bf16",
        logprob.fold_finish_kernel,
        {"kept": "*bf16", "stride": "i64", "columns": "i64", "scale": "*fp32", "width": "i64"}
        | {"targets": "*i64", "entry": "*fp32"},
        {"BLOCK": 2048},
        multiples_of_16=("stride", "columns", "width"),
    )


def preference() -> Iterator[Variant]:
    from mmfast.kernels import preference

    tensors = {name: "*fp32" for name in ("logps", "weights", "ref", "pair_weights", "delta", "metrics")}
    tensors |= {name: "*fp64" for name in ("values", "by_s", "by_whole", "by_token")}
    tensors |= {"index": "*i64", "pairs": "*i64", "responses": "*i32", "P": "i64"}
    settings = ("beta", "smoothing", "log_eps", "log1m_eps", "f_alpha", "tau", "margin")
    tensors |= dict.fromkeys((*settings, "sft_weight", "ld_alpha", "scale"), "fp64")
    flags = dict.fromkeys(("HAS_INDEX", "HAS_WEIGHTS", "HAS_REF", "HAS_PAIR_WEIGHTS", "HAS_DELTA"), True)
    flags |= {"PER_TOKEN": True, "AVERAGE": False, "SFT_AVERAGE": True, "BLOCK": preference.BLOCK}
    for kind, divergence in (("ipo", "reverse_kl"), ("discopop", "alpha_divergence"), ("orpo", "reverse_kl")):
        yield Variant(
            f"{kind}, {divergence}",
            preference.preference_pair_kernel,
            tensors,
            flags | {"KIND": kind, "DIVERGENCE": divergence},
        )
    one = flags | {"KIND": "bco_pair", "DIVERGENCE": "reverse_kl", "P": 1}
    less = {name: kind for name, kind in tensors.items() if name != "P"}
    yield Variant("bco_pair, one pair", preference.preference_pair_kernel, less, one)
    few = {"HAS_WEIGHTS": True, "SIDES": preference.SIDES, "BLOCK": preference.TOKENS}
    yield Variant("fp64 sums", preference.preference_gradient_kernel, tensors, few)


def decode() -> Iterator[Variant]:
    from mmfast.kernels import decode

    numbers = {name: "*i64" for name in ("keys", "values", "pieces", "ordinals", "begin", "place")}
    unaligned = tuple(numbers)  # they are views of one array
    types = numbers | {"heads": "i32", "stride": "i32", "window": "i64", "scale": "fp32"}
    types |= {name: "*fp32" for name in ("top", "total", "out")}
    constants = {name: getattr(decode, name) for name in ("TILE", "SPAN", "HEAD", "PARTS")} | {"ALIGNED": 16}
    for label, size, each, dtype in (
        ("bf16, heads of 128", 128, 1, "bf16"),
        ("bf16, seven a key", 128, 7, "bf16"),
        ("fp32, heads of 80", 80, 4, "fp32"),
    ):
        types |= {name: f"*{dtype}" for name in ("key", "value", "query", "anchor", "result")}
        constants |= {"SIZE": size, "BLOCK": 1 << (size - 1).bit_length(), "GROUP": each}
        constants |= {"LANES": max(16, 1 << (decode.SPAN * each - 1).bit_length())}
        most = 8 if dtype == "fp32" else 4
        for kernel, warps in ((decode.write_kernel, 1), (decode.pieces_kernel, most), (decode.parts_kernel, 2)):
            own = {name: value for name, value in constants.items() if name in kernel.arg_names}
            yield Variant(label, kernel, dict(types), own, num_warps=warps, unaligned=unaligned)


def noise() -> Iterator[Variant]:
    from mmfast.kernels import decode_noise as noise

    types = {"names": "*i64", "out": "*fp32", "length": "i32"}
    yield Variant("", noise.noise_kernel, types, {"BLOCK": noise.BLOCK}, multiples_of_16=("length",))
