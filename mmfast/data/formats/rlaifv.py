"""RLAIF-V's rows: question, chosen and rejected in columns of their own. Its with_logp shards add `logps`, as JSON.

Rows of its feedback step carry `org_infos`: the facts of both answers, and what was judged of each. They stay in meta,
and become `claims` there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from mmfast.data.containers.read import Row
from mmfast.data.formats.base import Format, Written, need, with_meta
from mmfast.data.formats.messages import image_list
from mmfast.data.formats.rlhfv import CARRIED, PLAIN, origin, pair, write_pair
from mmfast.data.problems import BadRow
from mmfast.data.records import Record

KNOWN = (*PLAIN, "id", "idx", "image", "question", "chosen", "rejected", "origin_split", "logps", "claims", "org_infos")
ASKING = " Please answer yes or no."  # behind a fact's question, in the name of its judgement


def read(row: Row, options: dict[str, Any]) -> Iterator[Record]:
    value = row.value
    asked, chosen, rejected = need(value, "question", "chosen", "rejected")
    if not isinstance(asked, str):
        raise BadRow("format", f"the question is a {type(asked).__name__}, not a text")
    image = value.get("image")
    images = image_list(value.get("image_path") if image is None else image)
    logps = value.get("logps")
    logps = json.loads(logps) if isinstance(logps, str) and logps else logps
    meta = {
        **{name: value.get(name) for name in PLAIN},
        "origin_split": origin(value.get("origin_split")),
        "logps": logps["logps"] if isinstance(logps, dict) else logps or None,
        "claims": value.get("claims") or judged_facts(value.get("org_infos")),
        "org_infos": value.get("org_infos"),
        **{k: v for k, v in value.items() if k not in KNOWN},
    }
    yield pair(row, images, asked, chosen, rejected, meta)


def judged_facts(infos: Any) -> dict[str, list[list[Any]]] | None:
    """The facts of the two answers as claims [text, holds]. A fact's judgement goes by its question; one whose question
    was not judged, or that has none, is left as it is: not judged."""
    infos = json.loads(infos) if isinstance(infos, str) and infos else infos
    if not isinstance(infos, dict) or not isinstance(infos.get("scores"), dict):
        return None
    out: dict[str, list[list[Any]]] = {}
    for side in ("chosen", "rejected"):
        told, scores = infos.get(f"{side}_infos") or {}, infos["scores"].get(side) or {}
        facts, asked, judged = told.get("facts") or [], told.get("changed_facts") or [], scores.get("judge") or {}
        if not isinstance(facts, list) or not isinstance(asked, list) or not isinstance(judged, dict):
            raise BadRow("claims", f"org_infos: the facts of {side} are no list, or their judgements no object")
        verdicts = [judged.get(question + ASKING, judged.get(question)) for question in map(str, asked)]
        holds = [None if verdict is None else str(verdict) == "1" for verdict in verdicts]
        out[side] = [[str(fact), good] for fact, good in zip(facts, [*holds, *[None] * len(facts)], strict=False)]
    return {side: claims for side, claims in out.items() if claims} or None


def claims_as_infos(claims: dict[str, Any]) -> dict[str, Any]:
    """The other way: claims as facts, judged by name. Without questions of their own the facts are asked about."""
    infos: dict[str, Any] = {"scores": {}}
    for side in ("chosen", "rejected"):
        told = [(str(text), holds) for text, holds, *_ in claims.get(side) or []]
        facts = [text for text, _ in told]
        judge = {text + ASKING: str(int(bool(holds))) for text, holds in told if holds is not None}
        infos[f"{side}_infos"] = {"facts": facts, "changed_facts": facts}
        wrong = sum(holds is False for _, holds in told)
        infos["scores"][side] = {"judge": judge, "score": str(-wrong)}
    return infos


def write(record: Record) -> Written:
    row, lost = write_pair(record)
    for name in record.meta:
        lost.unless(name in CARRIED or name not in row, f"meta[{name}]")
    row = with_meta(row | {"idx": str(record.id)}, record)
    if (claims := row.get("claims")) and row.get("org_infos") is None:
        row["org_infos"] = claims_as_infos(claims)
    if claims and claims == judged_facts(row["org_infos"]):
        del row["claims"]  # they say no more
    if row.get("logps") is not None:
        row["logps"] = json.dumps({"logps": row["logps"]})
    return row, lost.names


FORMAT = Format(
    name="rlaifv",
    columns=frozenset(KNOWN),
    looks_for="question, chosen and rejected as columns of text, with image or image_path",
    accepts=lambda row: (
        isinstance(row.get("question"), str)
        and isinstance(row.get("chosen"), str)
        and isinstance(row.get("rejected"), str)
        and not row["chosen"].lstrip().startswith("{'from'")
    ),
    read=read,
    write=write,
    pairs_only=True,
)
