"""AlpacaEval's length-controlled win rate: what the win rate would be if both answers were of one length.

A logistic model predicts the judge's preference from tanh of the (standardised) difference in length, the instruction's
difficulty, and a constant for the pair of models; rows of two baselines that gamed the judge hold the first two in
place. Its mean prediction at no difference in length is the figure. The fit is scikit-learn's (liblinear, which stops
short of the optimum by more than the digits that are printed), so that the figure is the official one.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import numpy as np

from mmfast.packages import how_to_install

FOLDS, SEED = 5, 123
OF_GAMED = 0.2 / 2  # the weight of a row of the two gamed baselines
TINY = 1e-15


def win_rate(
    preferences: Sequence[float], lengths: np.ndarray, difficulty: np.ndarray, gamed: np.ndarray | None
) -> tuple[float, float]:
    """The figure and its standard error, in percent. `preferences`: 0 to 1 for the model, nan where there is none;
    `lengths`: [n, 2] characters of the baseline's and the model's answer; `gamed`: rows (preference, standardised
    difference, difficulty), or None for a fit without them."""
    difference = (lengths[:, 0] - lengths[:, 1]).astype(float)
    if not difference.std():
        raise ValueError("all answers are as long as the baseline's: there is no length to control for")
    difference /= difference.std(ddof=1)
    given = np.asarray(preferences, float)
    features = np.stack([np.tanh(difference), difficulty, np.ones(len(given))], 1)
    weights = np.ones(len(given))
    if gamed is not None:
        others = np.stack([np.tanh(gamed[:, 1]), gamed[:, 2], np.zeros(len(gamed))], 1)
        features, given = np.concatenate([others, features]), np.concatenate([gamed[:, 0], given])
        weights = np.concatenate([np.full(len(gamed), OF_GAMED), weights])
    there = ~np.isnan(given)
    fitted = _fitted(features[there], given[there], None if gamed is None else weights[there])
    same = np.stack([np.zeros(len(difficulty)), difficulty, np.ones(len(difficulty))], 1)
    predicted = fitted.predict_proba(same)[:, 1]
    return float(predicted.mean() * 100), float(predicted.std(ddof=1) / np.sqrt(len(predicted)) * 100)


def _fitted(features: np.ndarray, given: np.ndarray, weights: np.ndarray | None) -> Any:
    """The model: a preference p is a row of label 1 with weight p and one of label 0 with weight 1 - p. The strength
    of the L1 penalty is the one of ten whose loss on held-out rows is least, over five folds of whole preferences."""
    try:
        import sklearn
        from sklearn.linear_model import LogisticRegressionCV
        from sklearn.metrics import make_scorer
        from sklearn.model_selection import GroupKFold
    except ImportError:
        told = how_to_install("alpaca")
        raise ValueError(f"the length-controlled win rate is fitted by scikit-learn: {told}") from None
    # Since 1.8 the penalty has another name
    new = "use_legacy_attributes" in signature(LogisticRegressionCV).parameters
    penalty: dict[str, Any] = {"l1_ratios": (1.0,), "use_legacy_attributes": False} if new else {"penalty": "l1"}
    # Each preference twice, by its weight and the rest of it
    likely = np.concatenate([given, 1 - given])
    truly = None if weights is None else np.concatenate([weights, weights])

    def loss(label: np.ndarray, told: np.ndarray, likely: np.ndarray, truly: np.ndarray | None = None) -> float:
        p, told = np.where(label == 1, likely, 1 - likely), np.clip(told, TINY, 1 - TINY)
        each = p * np.log(told) + (1 - p) * np.log(1 - told)
        return -np.mean(each if truly is None else each * truly)

    # The fit, with weights and preferences handed on to folds and losses
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = make_scorer(loss, response_method="predict_proba", greater_is_better=False)
        model = LogisticRegressionCV(
            cv=GroupKFold(n_splits=FOLDS),
            scoring=scorer.set_score_request(likely=True, truly=True),
            random_state=SEED,
            **penalty,
            solver="liblinear",
            fit_intercept=False,
        ).set_fit_request(sample_weight=True)
        return model.fit(
            np.concatenate([features, features]),
            np.concatenate([np.ones(len(given)), np.zeros(len(given))]),
            sample_weight=likely if truly is None else likely * truly,
            groups=np.tile(np.arange(len(given)), 2),
            likely=likely,
            truly=truly,
        )
