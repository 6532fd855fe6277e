"""One small call of every public op, with its oracle in plain torch: what layouts.py walks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmfast import ops
from mmfast.ops.oracles.logprob import linear_logprob as head_oracle
from mmfast.ops.oracles.logprob import selective_logprob as selective_oracle
from mmfast.ops.oracles.preference import preference_reference
from mmfast.ops.preference import METRICS
from mmfast.ops.preference_math import make_spec
from mmfast.ops.rows import invert
from mmfast.ops.splice import splice_torch
from tests.ops.layouts import Arguments, Subject, normal
from tests.ops.places import generator
from tests.ops.trees import DEEP


def nested(arguments: Arguments) -> dict[str, Any]:
    """lora[0] and lora[1] as the pair that the op takes."""
    plain: dict[str, Any] = {k: v for k, v in arguments.items() if "[" not in k}
    if "lora[0]" in arguments:
        plain["lora"] = (arguments["lora[0]"], arguments["lora[1]"])
    return plain


# A sum over rows whose signs are drawn: what is left of it may be a tenth of its parts, whose bf16 rounding stays.
BF16_CANCELS = 5e-2
SIZES = {  # tokens, width, vocabulary, rows, rank
    "usual": (5, 6, 300, 7, 3),
    "one row": (1, 6, 300, 1, 3),
    "one column": (5, 1, 300, 7, 1),
    "one word": (5, 6, 1, 7, 3),
}
PATHS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {  # who is trained, options
    "stats": ((), {"return_entropy": True, "tile_budget": 1}),
    "direct": (("hidden", "lora[0]"), {"softcap": 5.0, "temperature": 0.7, "tile_budget": 1}),
    "kept": (("hidden", "weight", "bias", "lora[0]", "lora[1]"), {"tile_budget": 1}),
    "recompute": (
        ("hidden", "weight", "bias", "lora[0]", "lora[1]"),
        {"return_entropy": True, "entropy_grad": True, "tile_budget": 1},
    ),
    "recompute, no entropy": (("hidden", "weight", "bias", "lora[1]"), {"keep_budget": 0, "tile_budget": 1}),
}


def head_arguments(sizes: tuple[int, ...], dtype: torch.dtype) -> Arguments:
    tokens, width, vocab, scored, rank = sizes
    g = generator(1)
    return {
        "hidden": normal(tokens, width, dtype=dtype, seed=1),
        "weight": normal(vocab, width, dtype=dtype, seed=2),
        "targets": torch.randint(0, vocab, (scored,), generator=g),
        "rows": torch.randint(0, tokens, (scored,), generator=g),
        "bias": normal(vocab, seed=3),
        "lora[0]": normal(tokens, rank, dtype=dtype, seed=4),
        "lora[1]": normal(vocab, rank, dtype=dtype, scale=0.5, seed=5),
    }


def nobody(a: Arguments) -> Arguments:
    return {"targets": a["targets"][:0], "rows": a["rows"][:0]}


def no_tokens(a: Arguments) -> Arguments:
    return {"hidden": a["hidden"][:0], "lora[0]": a["lora[0]"][:0], **nobody(a)}


def no_rank(a: Arguments) -> Arguments:
    return {"lora[0]": a["lora[0]"][:, :0], "lora[1]": a["lora[1]"][:, :0]}


def linear_logprob(path: str, size: str = "usual", dtype: torch.dtype = torch.float32) -> Subject:
    trained, options = PATHS[path]
    wants_entropy = bool(options.get("return_entropy"))

    def oracle(a: Arguments) -> list[Tensor]:
        maps = {k: options[k] for k in ("softcap", "temperature") if k in options}
        found = head_oracle(**nested(a), **maps)
        return [found["logp"], found["entropy"]] if wants_entropy else [found["logp"]]

    def call(a: Arguments, backend: str | None) -> list[Tensor]:
        found = ops.linear_logprob(**nested(a), **options, backend=backend)
        return list(found) if isinstance(found, tuple) else [found]

    return Subject(
        ops.linear_logprob, head_arguments(SIZES[size], dtype), oracle, call, trained,
        empty={"hidden": no_tokens, "targets": nobody, "rows": nobody, "lora[0]": no_rank, "lora[1]": no_rank},
        limit=1e-4, gradient_limit=BF16_CANCELS if dtype == torch.bfloat16 else 5e-5,
    )  # fmt: skip


def fused_logprob(size: str = "usual", dtype: torch.dtype = torch.bfloat16) -> Subject:
    """backend="triton-fused": the same op, with the arguments that this backend takes."""
    given = head_arguments(SIZES[size], dtype)
    given = {k: v for k, v in given.items() if "lora" not in k}
    return Subject(
        ops.linear_logprob, given, lambda a: [head_oracle(**a)["logp"]],
        lambda a, _: [ops.linear_logprob(**a, backend="triton-fused")], (),
        empty={"hidden": lambda a: {"hidden": a["hidden"][:0], **nobody(a)}, "targets": nobody, "rows": nobody},
        limit=1e-4,
    )  # fmt: skip


def selective_logprob(inplace: bool, dtype: torch.dtype = torch.float32, scored: int = 6, vocab: int = 70) -> Subject:
    options = {"softcap": 6.0, "return_entropy": True, "entropy_grad": True}

    def call(a: Arguments, backend: str | None) -> list[Tensor]:
        return list(ops.selective_logprob(**a, **options, inplace_backward=inplace, backend=backend))

    def oracle(a: Arguments) -> list[Tensor]:
        found = selective_oracle(**a, softcap=6.0)
        return [found["logp"], found["entropy"]]

    logits = normal(scored, vocab, dtype=dtype, scale=2.0)
    targets = torch.randint(0, vocab, (scored,), generator=generator())
    nothing = lambda a: {"logits": a["logits"][:0], "targets": a["targets"][:0]}  # noqa: E731
    return Subject(
        ops.selective_logprob, {"logits": logits, "targets": targets}, oracle, call, ("logits",),
        empty={"logits": nothing, "targets": nothing}, limit=1e-4,
        gradient_limit=1e-2 if dtype == torch.bfloat16 else 2e-5, leaves=not inplace,
    )  # fmt: skip


def preference_arguments(scored: int = 9, dtype: torch.dtype = torch.float32) -> Arguments:
    """Four entries of 11 tokens in all, over `scored` log-probs; no pair holds one entry twice."""
    g = generator(2)
    index = torch.randint(0, scored, (11,), generator=g)
    copies, offsets = invert(index, scored)
    return {
        "logps": normal(scored, dtype=dtype, seed=6) - 3,
        "ref_logps": normal(11, dtype=dtype, seed=7) - 3,
        "responses": torch.tensor([0, 3, 5, 9, 11]),
        "pairs": torch.tensor([[0, 1], [2, 1], [3, 0], [1, 2]]),
        "index": index,
        "index_copies": copies,
        "index_offsets": offsets,
        "weights": normal(11, dtype=dtype, seed=8).abs() + 0.5,
        "pair_weights": normal(4, dtype=dtype, seed=9).abs() + 0.2,
        "delta": torch.tensor(0.3, dtype=dtype),
    }


OBJECTIVE = {"loss": "bco_pair", "average": True, "sft_weight": 0.2}


def preference_oracle(a: Arguments) -> list[Tensor]:
    spec = make_spec(
        "bco_pair", pairs=a["pairs"].shape[0], has_reference=True, has_delta=True, has_pair_weights=True,
        average=True, sft_weight=0.2,
    )  # fmt: skip
    names = ("logps", "index", "weights", "ref_logps", "responses", "pairs", "pair_weights", "delta")
    loss, metrics = preference_reference(*(a[n] for n in names), spec)
    return [loss, *metrics.unbind(0)]


def no_pairs(a: Arguments) -> Arguments:
    return {"pairs": a["pairs"][:0], "pair_weights": a["pair_weights"][:0]}


def no_scored_tokens(a: Arguments) -> Arguments:
    gone = {name: a[name][:0] for name in ("index", "index_copies", "weights", "ref_logps")}
    return gone | {"responses": torch.zeros(1, dtype=torch.int64).expand(5), "index_offsets": a["index_offsets"] * 0}


def no_entries(a: Arguments) -> Arguments:
    return no_scored_tokens(a) | no_pairs(a) | {"responses": a["responses"][:1]}


PREFERENCE_EMPTY = {
    "ref_logps": no_scored_tokens, "index": no_scored_tokens, "weights": no_scored_tokens, "responses": no_entries,
    "pairs": no_pairs, "pair_weights": no_pairs, "index_copies": no_scored_tokens,
}  # fmt: skip
INVERSE = ("index", "index_copies", "index_offsets")  # none can take one value without the others


def no_logps(a: Arguments) -> Arguments:
    return no_entries(a) | {"index_offsets": a["index_offsets"][:1]}


def preference_loss(dtype: torch.dtype = torch.float32) -> Subject:
    def call(a: Arguments, backend: str | None) -> list[Tensor]:
        found = ops.preference_loss(**a, **OBJECTIVE, backend=backend)
        return [found.loss, *(getattr(found, name) for name in METRICS)]

    return Subject(
        ops.preference_loss, preference_arguments(dtype=dtype), preference_oracle, call, ("logps",),
        ("responses", *INVERSE), PREFERENCE_EMPTY | {"logps": lambda a: {"logps": a["logps"][:0], **no_logps(a)}},
    )  # fmt: skip


def linear_preference_loss(recompute: bool, size: str = "usual", dtype: torch.dtype = torch.float32) -> Subject:
    head = head_arguments(SIZES[size], dtype)
    loss = preference_arguments(head["targets"].shape[0])
    del loss["logps"]
    budget = {"keep_budget": 0} if recompute else {}

    def oracle(a: Arguments) -> list[Tensor]:
        names = set(head)
        logps = head_oracle(**nested({k: v for k, v in a.items() if k in names}))["logp"]
        return preference_oracle({"logps": logps, **{k: v for k, v in a.items() if k not in names}})

    def call(a: Arguments, backend: str | None) -> list[Tensor]:
        found = ops.linear_preference_loss(**nested(a), **OBJECTIVE, **budget, tile_budget=1, backend=backend)
        return [found.loss, *(getattr(found, name) for name in METRICS)]

    rowless = lambda a: no_logps(a) | nobody(a)  # noqa: E731
    return Subject(
        ops.linear_preference_loss, head | loss, oracle, call,
        ("hidden", "weight", "bias", "lora[0]", "lora[1]"), ("responses", *INVERSE),
        PREFERENCE_EMPTY
        | {"targets": rowless, "rows": rowless, "lora[0]": no_rank, "lora[1]": no_rank}
        | {"hidden": lambda a: rowless(a) | no_tokens(a)},
        limit=1e-4, gradient_limit=BF16_CANCELS if dtype == torch.bfloat16 else 5e-5,
    )  # fmt: skip


def splice_embeddings(dtype: torch.dtype = torch.float32, width: int = 6) -> Subject:
    features = torch.tensor([-1, 0, 1, 2, -1, -1, 2, 1])
    tokens = torch.randint(0, 11, features.shape, generator=generator())
    arguments = {
        "tokens": tokens, "table": normal(11, width, dtype=dtype, seed=1),
        "image_features": normal(3, width, dtype=dtype, seed=2), "features": features,
    }  # fmt: skip
    nothing = lambda a: {"tokens": a["tokens"][:0], "features": a["features"][:0]}  # noqa: E731
    return Subject(
        ops.splice_embeddings, arguments, lambda a: [splice_torch(**a)],
        lambda a, backend: [ops.splice_embeddings(**a, backend=backend)], ("table", "image_features"),
        empty={
            "tokens": nothing, "features": nothing,
            "image_features": lambda a: {"image_features": a["image_features"][:0],
                                         "features": torch.full_like(a["features"], -1)},
        },
        limit=0.0, gradient_limit=1e-2 if dtype == torch.bfloat16 else 2e-6,
    )  # fmt: skip


def attention_oracle(a: Arguments, scale: float = 0.4, window: int = 4) -> list[Tensor]:
    q, k, v = a["q"], a["k"], a["v"]
    outputs = []
    for m in range(len(a["q_offsets"]) - 1):
        (s, e), (c, d) = (a[n][m : m + 2].tolist() for n in ("q_offsets", "k_offsets"))
        rows = a["k_index"][c:d]
        i, j = torch.arange(e - s)[:, None] + (d - c) - (e - s), torch.arange(d - c)[None]
        keys, values = (x[rows].repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        scores = torch.einsum("ihd,jhd->hij", q[s:e], keys) * scale
        seen = (j <= i) & (j > i - window)
        outputs.append(torch.einsum("hij,jhd->ihd", scores.masked_fill(~seen, -torch.inf).softmax(-1), values))
    return [torch.cat(outputs) if outputs else q * 0]


def tree_attention(dtype: torch.dtype = torch.float32, width: int = 8) -> Subject:
    t = DEEP.to(torch.get_default_device())
    copies, copy_offsets = t.inverse()
    arguments = {
        "q": normal(t.size, 4, width, dtype=dtype, seed=1), "k": normal(t.size, 2, width, dtype=dtype, seed=2),
        "v": normal(t.size, 2, width, dtype=dtype, seed=3), "q_offsets": t.q_offsets, "k_index": t.k_index,
        "k_offsets": t.k_offsets, "k_copies": copies, "k_copy_offsets": copy_offsets,
    }  # fmt: skip

    def nothing(a: Arguments) -> Arguments:
        gone = {name: a[name][:0] for name in ("q", "k", "v", "k_index", "k_copies")}
        return gone | {name: a[name][:1] for name in ("q_offsets", "k_offsets", "k_copy_offsets")}

    def call(a: Arguments, backend: str | None) -> list[Tensor]:
        return [ops.tree_attention(**a, max_q=t.max_q, max_k=t.max_k, scale=0.4, window=4)]

    bf16 = dtype == torch.bfloat16
    return Subject(
        ops.tree_attention, arguments, attention_oracle, call, ("q", "k", "v"),
        # k_copies is the inverse of k_index: neither can take one value without the other
        ("q_offsets", "k_offsets", "k_index", "k_copies", "k_copy_offsets"), dict.fromkeys(arguments, nothing),
        limit=2e-2 if bf16 else 1e-5, gradient_limit=4e-2 if bf16 else 1e-5,
    )  # fmt: skip


def without(subject: Subject, *names: str) -> Subject:
    """The same call with these arguments left out."""
    left = {k: v for k, v in subject.arguments.items() if k not in names}
    return replace(subject, arguments=left, trained=tuple(n for n in subject.trained if n not in names))
