"""Methods that are data: pairs, rejection samples and SteerLM texts from scored answers; subsets and flipped labels.

Everything here is a pure function of its arguments; randomness comes from a seed and the group it is drawn for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from mmfast.data.problems import Problem
from mmfast.data.records import Record
from mmfast.feedback.answer import Answer, grouped
from mmfast.feedback.candidates import complete, pair_record, score_named, score_of, sft_record

Score = Callable[[Answer], float]
Pair = tuple[Answer, Answer]  # better, worse
ASKED = "\nPlease answer so that these attributes, each from 0 (lowest) to 4 (highest), hold: "  # a line of its own
ATTRIBUTES = ("Helpfulness", "Correctness", "Coherence", "Complexity", "Verbosity")


def generator(seed: int, name: str) -> np.random.Generator:
    """Of one group: the draw does not depend on the order or number of the other groups."""
    return np.random.default_rng([seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")])


# pairs


def best_against_random(group: Sequence[Answer], score: Score, margin: float, seed: int) -> list[Pair]:
    """mllm-dpo: the best answer (the first on ties) against one drawn from those at least `margin` below it."""
    values = [score(c) for c in group]
    best = max(values)
    worse = [c for c, v in zip(group, values, strict=True) if v <= best - margin]
    if not worse:
        return []
    return [(group[values.index(best)], worse[int(generator(seed, group[0].group).integers(len(worse)))])]


def best_against_worst(group: Sequence[Answer], score: Score, margin: float, seed: int) -> list[Pair]:
    """mllm-dpo's older rule: maximum against minimum (the first of each on ties)."""
    values = [score(c) for c in group]
    low, high = min(values), max(values)
    return [(group[values.index(high)], group[values.index(low)])] if high - low >= margin and high > low else []


def every_pair(group: Sequence[Answer], score: Score, margin: float, seed: int) -> list[Pair]:
    """RLAIF-V, DGPref: all combinations whose scores differ by `margin` or more, the higher one chosen.

    The numbers are compared as they are, as there: -0.4 and -0.7 differ by a little less than 0.3 in binary.
    """
    values = [score(c) for c in group]
    out = []
    for i, j in combinations(range(len(group)), 2):
        if values[i] != values[j] and abs(values[i] - values[j]) >= margin:
            a, b = (i, j) if values[i] > values[j] else (j, i)
            out.append((group[a], group[b]))
    return out


def at_most(pairs: Sequence[Pair], k: int, seed: int) -> list[Pair]:
    """k of a group's pairs, drawn without repetition, in their order."""
    if not k or len(pairs) <= k:
        return list(pairs)
    kept = generator(seed, pairs[0][0].group).choice(len(pairs), k, replace=False)
    return [pairs[i] for i in sorted(kept)]


def words(text: str) -> int:
    return len(text.split())


@dataclass(frozen=True)
class Balance:
    """A length filter: a pair whose rejected answer is longer by more than `threshold` of its length is dropped."""

    threshold: float
    chosen_words: float
    rejected_words: float


def balanced(pairs: Sequence[Pair]) -> tuple[list[Pair], Balance]:
    """RLAIF-V: the threshold of 0, .02, ..., .98 for which the mean lengths of the two sides are closest."""
    pairs = [p for p in pairs if p[0].text.strip() != p[1].text.strip()]  # blanks around an answer are no difference
    if not pairs:
        return [], Balance(1.0, 0.0, 0.0)
    lengths = np.asarray([(words(a.text), words(b.text)) for a, b in pairs], np.float64)
    excess = (lengths[:, 1] - lengths[:, 0]) / np.maximum(lengths[:, 1], 1)

    def error(threshold: float) -> float:
        kept = lengths[excess <= threshold + 1e-12]
        chosen, rejected = kept.mean(0) if len(kept) else (np.inf, 0.0)
        return abs(chosen - rejected) / max(rejected, 1e-9)

    threshold = min((step * 0.02 for step in range(50)), key=error)
    threshold = threshold if error(threshold) < np.inf else 1.0
    keep = excess <= threshold + 1e-12
    chosen, rejected = lengths[keep].mean(0) if keep.any() else (0.0, 0.0)
    return [p for p, k in zip(pairs, keep, strict=True) if k], Balance(threshold, float(chosen), float(rejected))


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How pairs are chosen. The published ones are RULES; every field can be overridden."""

    choose: Callable[[Sequence[Answer], Score, float, int], list[Pair]]
    score: str
    margin: float
    per_prompt: int = 0  # 0: all
    balance: bool = False


RULES = {
    "mllm_dpo": Rule(choose=best_against_random, score="Helpfulness + Correctness + Coherence", margin=2),
    "mllm_dpo_minmax": Rule(choose=best_against_worst, score="Helpfulness + Correctness + Coherence", margin=2),
    "rlaifv": Rule(choose=every_pair, score="claims", margin=1, per_prompt=2, balance=True),
    "dgpref": Rule(choose=every_pair, score="score", margin=0.3),
    "chair": Rule(choose=every_pair, score="chair", margin=2),
    "reward": Rule(choose=best_against_worst, score="reward", margin=0),
}


def choose_pairs(
    answers: Iterable[Answer],
    rule: Rule,
    seed: int,
    problems: list[Problem] | None = None,
    *,
    weight: float | None = None,
) -> tuple[list[Record], dict[str, Any]]:
    """Records of a rule's pairs, and what it did: groups, groups without a pair, and the length balance."""
    score = score_of(rule.score)
    groups = list(grouped(complete(answers, score, problems)))
    pairs: list[Pair] = []
    empty = 0
    for group in groups:
        kept = at_most(rule.choose(group, score, rule.margin, seed), rule.per_prompt, seed)
        kept = [p for p in kept if p[0].text != p[1].text]
        empty += not kept
        pairs += kept
    counts: dict[str, Any] = {"groups": len(groups), "groups without a pair": empty, "pairs": len(pairs)}
    if rule.balance:
        pairs, balance = balanced(pairs)
        counts |= {
            "after length balance": len(pairs),
            "threshold": round(balance.threshold, 2),
            "mean words chosen / rejected": f"{balance.chosen_words:.1f} / {balance.rejected_words:.1f}",
        }
    return [pair_record(n, a, b, (score(a), score(b)), weight=weight) for n, (a, b) in enumerate(pairs)], counts


def read_first(text: str) -> int | float:
    """A number of pairs, or a share of them; 0: all."""
    try:
        number = (int(text) if text.isdecimal() else float(text)) if text else 0
    except ValueError:
        number = -1
    if text and not (number >= 1 if isinstance(number, int) else 0 < number < 1):
        raise ValueError(f"--first {text}: a number of pairs (68414), or a share of them below 1 (0.5)")
    return number


def first_of(records: Sequence[Record], first: int | float) -> list[Record]:
    """The first so many, or this share of them, rounded down: DGPref's caps, and its HALF_VSG."""
    if isinstance(first, int) and first > len(records):
        raise ValueError(f"--first {first}: there are {len(records):,} pairs")
    return list(records if not first else records[: first if isinstance(first, int) else int(first * len(records))])


# SFT


TIES = ("first", "random", "shortest", "longest")


def rejection_sample(
    answers: Iterable[Answer],
    score: Score,
    *,
    minimum: float | None = None,
    ties: str = "first",
    seed: int = 0,
    problems: list[Problem] | None = None,
) -> list[Record]:
    """The best answer of each group, if it reaches `minimum`."""
    if ties not in TIES:
        raise ValueError(f"--ties: {ties!r} is not one of {', '.join(TIES)}")
    out: list[Record] = []
    for group in grouped(complete(answers, score, problems)):
        values = [score(c) for c in group]
        best = max(values)
        if minimum is not None and best < minimum:
            continue
        tied = [c for c, v in zip(group, values, strict=True) if v == best]
        if ties == "random":
            pick = tied[int(generator(seed, group[0].group).integers(len(tied)))]
        else:
            orders: dict[str, Any] = {"first": lambda c: 0, "shortest": lambda c: len(c.text)}
            pick = min(tied, key=orders.get(ties, lambda c: -len(c.text)))
        out.append(sft_record(len(out), pick))
    return out


def every_answer(answers: Iterable[Answer]) -> list[Record]:
    """Standard SFT: each answer once (a reference answer repeated on each of a group's rows counts once)."""
    seen = {(c.group, c.text): c for c in answers}
    return [sft_record(n, c) for n, c in enumerate(seen.values())]


# SteerLM


def _attributes(one: Answer, names: Sequence[str]) -> str:
    """Its scores as "Helpfulness:4,Correctness:3"."""
    return _listed({n: score_named(n, one.scores) for n in names})


def _asked_more(one: Answer, more: str) -> tuple[dict[str, Any], ...]:
    """Its prompt with more text behind the last question."""
    *before, last = one.prompt
    if isinstance(last["content"], str):
        return (*before, last | {"content": last["content"] + more})
    *parts, end = last["content"]
    joined = (
        [end | {"text": end["text"] + more}] if end["type"] == "text" else [end, {"type": "text", "text": more[1:]}]
    )
    return (*before, last | {"content": [*parts, *joined]})


def _listed(scores: Mapping[str, float]) -> str:
    return ",".join(f"{name}:{score:g}" for name, score in scores.items())


def steered(question: str, scores: Mapping[str, float]) -> str:
    """A question as SteerLM trains it: behind it stand the scores that its answer has, or is to have."""
    return question + ASKED + _listed(scores)


def steerlm(
    answers: Iterable[Answer], names: Sequence[str] = ATTRIBUTES, problems: list[Problem] | None = None
) -> list[Record]:
    """Every answer, asked for by its own scores; at inference the wanted ones stand there."""
    return [
        sft_record(n, replace(c, prompt=_asked_more(c, ASKED + _attributes(c, names))))
        for n, c in enumerate(complete(answers, lambda c: _attributes(c, names), problems))
    ]


def hindsight_turn(scores: Mapping[str, float], wanted: Mapping[str, float]) -> str:
    """What is said to a worse answer: the scores that it has, and those that the next one is to have."""
    return f"On a scale from 0 to 4 that answer has {_listed(scores)}. Give one that has {_listed(wanted)}"


def hindsight(
    answers: Iterable[Answer],
    score: Score,
    margin: float,
    seed: int,
    names: Sequence[str] = ATTRIBUTES,
    problems: list[Problem] | None = None,
) -> list[Record]:
    """Chain of hindsight in two turns: a worse answer, what it scored and what is wanted, the better answer.

    The worse answer carries loss only with data.turns = "all".
    """
    out: list[Record] = []
    whole = complete(answers, lambda c: (score(c), _attributes(c, names)), problems)
    for group in grouped(whole):
        for better, worse in best_against_random(group, score, margin, seed):
            turn = hindsight_turn(*({n: score_named(n, c.scores) for n in names} for c in (worse, better)))
            record = sft_record(len(out), better)
            history = ({"role": "assistant", "content": worse.text}, {"role": "user", "content": turn})
            out.append(replace(record, prompt=(*record.prompt, *history)))
    return out


# ablations


def flip_labels(records: Sequence[Record], share: float, seed: int) -> list[Record]:
    """Chosen and rejected exchanged in exactly round(share x n) records, drawn by the seed."""
    flipped = set(np.random.default_rng([seed, 1]).permutation(len(records))[: round(share * len(records))].tolist())
    return [_flipped(r) if i in flipped else r for i, r in enumerate(records)]


def _flipped(record: Record) -> Record:
    if record.rejected is None:
        raise ValueError(f"{record.source}: an SFT record has no label to flip")
    swap = {"chosen": "rejected", "rejected": "chosen"}
    segments = record.segments and {swap[k]: v for k, v in record.segments.items()}
    claims = {swap.get(k, k): v for k, v in (record.meta.get("claims") or {}).items()}
    scores = record.scores and {
        re.sub("^(chosen|rejected)", lambda m: swap[m[0]], k): v for k, v in record.scores.items()
    }
    return replace(
        record,
        chosen=record.rejected,
        rejected=record.chosen,
        chosen_prompt=record.rejected_prompt,
        rejected_prompt=record.chosen_prompt,
        segments=segments,
        scores=scores,
        meta={**record.meta, **({"claims": claims} if claims else {}), "flipped": True},
    )


def subset(records: Sequence[Record], share: float, seed: int) -> list[Record]:
    """round(share x n) records in their order. A smaller share is a part of a larger one of the same seed."""
    kept = np.random.default_rng([seed, 2]).permutation(len(records))[: round(share * len(records))]
    return [records[i] for i in sorted(kept)]
