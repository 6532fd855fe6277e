"""What the rows of a critique say together: one verdict a pair of answers, or why there is none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

DISAGREE = "the two orders disagree"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """On a pair of answers, by all orders in which they were shown."""

    group: str
    a: str
    b: str
    verdict: str | None  # "a", "b", "tie"; None: the orders disagree, or one has no verdict
    p: float | None  # that a is better, the mean of the orders; of labels only
    problem: str
    rows: tuple[dict[str, Any], ...] = field(repr=False)  # one an order

    @property
    def outcome(self) -> str:
        """ "a" or "b", or what a pair without a better answer is counted as."""
        if self.verdict in ("a", "b"):
            return self.verdict
        if self.verdict == "tie":
            return "ties"
        return "orders disagree" if self.problem == DISAGREE else "without a verdict"


def paired(rows: Iterable[dict[str, Any]], orders: tuple[str, ...]) -> Iterator[Verdict]:
    """Every pair once, in the order of its first row. `orders`: those that were asked for; a verdict counts only if all
    agree. None: each pair was shown in one that was drawn."""
    pairs: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        pairs.setdefault((row["a"], row["b"]), {})[row.get("order", "ab")] = row
    for (a, b), shown in pairs.items():
        yield _together(a, b, shown, orders)


def _together(a: str, b: str, shown: dict[str, dict[str, Any]], orders: tuple[str, ...]) -> Verdict:
    """A verdict that all orders agree in, or why there is none."""
    found = tuple(shown.values())
    problems = [row["problem"] for row in found if row.get("problem")]
    problems += [f"the order {order} has no reply" for order in orders if order not in shown]
    said = {row.get("verdict") for row in found}
    if not problems and not said <= {"a", "b", "tie"}:
        problems = ["a row has no verdict"]
    if not problems and len(said) > 1:
        problems = [DISAGREE]
    ps = [row["p"] for row in found if row.get("p") is not None]
    return Verdict(
        group=found[0].get("group", ""),
        a=a,
        b=b,
        verdict=None if problems else said.pop(),
        p=sum(ps) / len(ps) if len(ps) == max(len(orders), 1) else None,
        problem=problems[0] if problems else "",
        rows=found,
    )
