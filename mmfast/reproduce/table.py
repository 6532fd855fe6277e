"""One table at the end: what was published, what came out here with its interval, and all in which the two differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmfast.evals.base import Result
from mmfast.evals.tables import number, read_result
from mmfast.reproduce.paper import UNKNOWN, Figure, Paper
from mmfast.rounds import loop
from mmfast.rounds.settings import Settings

HEAD = ("model", "metric", "published", "ours (95% interval)", "source")


def rows(paper: Paper, settings: Settings) -> list[dict[str, Any]]:
    """A row a published figure: its own value, and ours where it was measured."""
    ended = loop.ended(settings)
    kept = int(ended["kept"]) if ended else _last(settings)
    return [_row(figure, settings, 0 if figure.of == "base" else kept) for figure in paper.published]


def _last(settings: Settings) -> int:
    """The newest round that was judged; 0 where none was."""
    made = [n for n in range(1, settings.rounds.count + 1) if any(_home(settings, n).glob("*/result.json"))]
    return made[-1] if made else 0


def _home(settings: Settings, round: int) -> Path:
    return loop.home_of(settings, round) / "eval"


def _row(figure: Figure, settings: Settings, round: int) -> dict[str, Any]:
    bench, _, metric = figure.metric.partition(".")
    told: dict[str, Any] = {"of": figure.of, "metric": figure.metric, "published": figure.value, "round": round}
    told |= {"table": figure.table, "source": figure.source, "ours": None, "low": None, "high": None, "why": ""}
    if bench not in settings.evaluate.bench:
        return told | {"why": "not asked"}
    if figure.of == "aligned" and round == 0:
        ended = loop.ended(settings)
        return told | {"why": "no round was better than the base" if ended else "not yet"}
    file = _home(settings, round) / bench / "result.json"
    if not file.is_file():
        return told | {"why": "not yet"}
    result: Result = read_result(file)
    if metric not in result.metrics:
        return told | {"why": "not measured: a kind of questions was left out, or has no judge"}
    ends = result.intervals.get(metric)
    low, high = (None, None) if ends is None else (ends[0] * figure.times, ends[1] * figure.times)
    return told | {"ours": result.metrics[metric] * figure.times, "low": low, "high": high}


def differs(paper: Paper, given: Sequence[str], scale: float) -> list[dict[str, str]]:
    """The paper's list, but what the user's own overrides have undone; and what these have added."""
    out = []
    if scale != 1:
        told = {"what": "share", "theirs": "all", "here": f"{scale:g} of the prompts and questions"}
        out.append(told | {"effect": "nothing here can be compared with a published figure"})
    for one in paper.differs:
        if not (one.as_theirs and set(one.as_theirs) <= set(given)):
            out.append({"what": one.what, "theirs": one.theirs, "here": one.here, "effect": one.effect})
    undone = {text for one in paper.differs if set(one.as_theirs) <= set(given) for text in one.as_theirs}
    for text in [text for text in given if text not in undone]:
        out.append({"what": text.partition("=")[0], "theirs": "the recipe's", "here": text, "effect": "yours to say"})
    return out


def markdown(found: Sequence[dict[str, Any]], differences: Sequence[dict[str, str]]) -> str:
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    for row in found:
        published = row["published"] if row["published"] == UNKNOWN else f"{row['published']:g}"
        table = "" if row["table"] == UNKNOWN else f", {row['table']}"
        cells = (row["of"], row["metric"], published, _ours(row), row["source"] + table)
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Differs from the paper:", ""]
    for one in differences:
        lines.append(f"- {one['what']}: there {one['theirs']}; here {one['here']}. Effect: {one['effect']}.")
    return "\n".join(lines)


def _ours(row: dict[str, Any]) -> str:
    if row["ours"] is None:
        return str(row["why"])
    ends = "no interval" if row["low"] is None else f"{number(row['low'])} to {number(row['high'])}"
    return f"{number(row['ours'])} ({ends})"


def line(name: str, scale: float, found: Sequence[dict[str, Any]], differences: Sequence[dict[str, str]]) -> str:
    """A row of bench/results/reproduce.jsonl."""
    from importlib.metadata import version

    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    versions = {"mmfast": version("mmfast"), "torch": torch.__version__}
    told = {"paper": name, "scale": scale, "device": device, "versions": versions, "figures": list(found)}
    return json.dumps(told | {"differs": list(differences)}, ensure_ascii=False)
