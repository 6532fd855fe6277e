"""A judge that sees no picture: can it tell the chosen text of a pair from the rejected one?

If it can, a preference run may learn that tell instead of looking, and every measure of the run on such pairs is in
doubt. The judge is linear in the words, pairs and triples of words of a text and in its length. On the world's pairs it
must do no better than a coin: the bar is 60% (some 270 held-out pairs have a standard error of three points).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .dataset import read_lines

Pair = tuple[str, str]  # (chosen, rejected)
DECAYS = (1e-1, 1e-2, 1e-3)


def texts(records: Sequence[dict]) -> list[Pair]:
    """The last answers of preference records."""
    return [(r["chosen"][-1]["content"][-1]["text"], r["rejected"][-1]["content"][-1]["text"]) for r in records]


def grams(text: str, most: int = 3) -> Counter[str]:
    """Runs of up to `most` words, marks counting as words."""
    words = re.findall(r"\w+|[^\w\s]", text)
    return Counter(" ".join(words[i : i + n]) for n in range(1, most + 1) for i in range(len(words) - n + 1))


def _differences(pairs: Sequence[Pair], columns: dict[str, int]) -> Tensor:
    """[pairs, columns + 2]: chosen less rejected, of each gram's number, of the words and of the letters."""
    rows = torch.zeros(len(pairs), len(columns) + 2)
    for row, (chosen, rejected) in zip(rows, pairs, strict=True):
        difference = grams(chosen)
        difference.subtract(grams(rejected))
        for gram, number in difference.items():
            if number and gram in columns:
                row[columns[gram]] = number
        row[-2] = len(chosen.split()) - len(rejected.split())
        row[-1] = (len(chosen) - len(rejected)) / 5
    return rows


def _fitted(rows: Tensor, decay: float) -> Tensor:
    """The weights of a logistic regression, by L-BFGS. No bias: a pair has no first place."""
    weights = torch.zeros(rows.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.softplus(-rows @ weights).mean() + decay * weights.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return weights.detach()


def _right(rows: Tensor, weights: Tensor) -> float:
    """Share of pairs told right; where the judge sees no difference it tosses a coin."""
    said = rows @ weights
    return float(((said > 0) + 0.5 * (said == 0)).mean())


def accuracy(train: Sequence[Pair], test: Sequence[Pair]) -> float:
    """What the judge makes of `test` after `train`, its decay being the best on the last fifth of `train`."""
    seen = Counter(gram for pair in train for text in pair for gram in set(grams(text)))
    columns = {gram: n for n, gram in enumerate(sorted(g for g, times in seen.items() if times > 1))}
    rows, cut = _differences(train, columns), len(train) * 4 // 5
    decay = max(DECAYS, key=lambda d: _right(rows[cut:], _fitted(rows[:cut], d)))
    return _right(_differences(test, columns), _fitted(rows, decay))


def of_world(world: str | Path) -> tuple[float, int]:
    """(accuracy, number of held-out pairs) on a world's own pairs."""
    train, test = (texts(read_lines(Path(world) / name)) for name in ("pairs.jsonl", "eval.jsonl"))
    return accuracy(train, test), len(test)
