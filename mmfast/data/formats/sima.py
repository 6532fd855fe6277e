"""SIMA's four kinds of rows: prompts, responses (and the critic prompts made of them), critic results, pairs.

Pairs and critic results are preference data. Prompts and responses carry a ground truth, which is read as an SFT
answer; the candidates stay in meta.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmfast.data.containers.read import Row
from mmfast.data.formats.base import ONE_SIDED, Format, Uncarried, Written, need, record_of
from mmfast.data.formats.messages import answer, from_value, image_list, question, split_pair, to_value
from mmfast.data.problems import BadRow
from mmfast.data.records import Record

SAMPLE, GREEDY = "temperature_decodes_1", "greedy_decodes"  # response 1 and response 2 of a critic prompt

PAIRS = ("id", "image", "conversations", "rejected_conversations")
ASKED = ("image_path", "text", "question", "ground_truth", SAMPLE, GREEDY, "rank_result", "model_id")


def kind_of(row: dict) -> str:
    """The kind of a row: pairs, critic, responses or prompts; "" if none of them."""
    if {"conversations", "rejected_conversations"} <= set(row):
        return "pairs"
    if {"rank_result", SAMPLE, GREEDY} <= set(row):
        return "critic"
    if {"text", "ground_truth", SAMPLE, GREEDY} <= set(row):
        return "responses"
    if {"image", "text", "ground_truth"} <= set(row) and "question" not in row:
        return "prompts"
    return ""


def verdict(text: str) -> str | None:
    """What stands between the last "[[" and the "]]" after it: "1", "2", or None where it is neither."""
    found = text.rpartition("[[")[2].partition("]]")
    return found[0] if found[1] and found[0] in ("1", "2") and "[[" in text else None


def asked_in(critic_prompt: str) -> str:
    """The question inside a critic prompt: between its last "Question: [" and the next "]" at a line's end."""
    tail = critic_prompt.rpartition("Question: [")
    end = tail[2].find("]\n")
    if not tail[1] or end < 0:
        raise BadRow("format", 'the critic prompt holds no "Question: [...]" line')
    return tail[2][:end]


def read(row: Row, options: dict[str, Any]) -> Iterator[Record]:
    value = row.value
    kind = kind_of(value)
    if not kind:
        raise BadRow("format", f"none of SIMA's four kinds of row (it has {', '.join(sorted(value))})")
    # Pairs, a critic's verdict on two answers, or answers yet to be judged
    if kind == "pairs":
        both = from_value(value["conversations"]), from_value(value["rejected_conversations"])
        prompt, chosen, rejected = split_pair(*both)
        image = image_list(value.get("image"))
        yield record_of(row, PAIRS, images=image, prompt=prompt, chosen=chosen, rejected=rejected)
    elif kind == "critic":
        sample, greedy, result = need(value, SAMPLE, GREEDY, "rank_result")
        winner = verdict(result)
        if winner is None:
            raise BadRow("no-verdict", "the critic's reply holds no [[1]] or [[2]]")
        image = image_list(value.get("id"))
        better, worse = (sample, greedy) if winner == "1" else (greedy, sample)
        yield record_of(
            row,
            (SAMPLE, GREEDY),
            ids=(),  # its own is the image's name, which repeats
            images=image,
            prompt=[question(asked_in(value["question"]), len(image))],
            chosen=[answer(better)],
            rejected=[answer(worse)],
            meta={"kind": "critic", "winner": winner},
        )
    else:
        text, truth = need(value, "question" if "question" in value else "text", "ground_truth")
        image = image_list(value.get("image_path", value.get("image")))
        meta = {"kind": kind, "candidates": [value[c] for c in (SAMPLE, GREEDY) if c in value]}
        known, prompt = ("image", "image_path", "ground_truth"), [question(text, len(image))]
        yield record_of(row, known, images=image, prompt=prompt, chosen=[answer(truth)], meta=meta)


def write(record: Record) -> Written:
    """A record goes back to the kind it came from; others become pairs."""
    lost = Uncarried(record, "scores", "chosen_prompt and rejected_prompt", "images after the first")
    kind = record.meta.get("kind")
    rest = {k: v for k, v in record.meta.items() if k not in ("kind", "candidates", "winner")}
    image = record.images[0] if record.images else None
    if kind == "critic" and record.rejected:
        sides = [record.chosen[-1]["content"], record.rejected[-1]["content"]]
        sides = sides if record.meta["winner"] == "1" else sides[::-1]
        return {**rest, SAMPLE: sides[0], GREEDY: sides[1]}, lost.names
    if kind in ("prompts", "responses"):
        name = "image" if kind == "prompts" or "question" in rest else "image_path"
        return {name: image, **rest, "ground_truth": record.chosen[-1]["content"]}, lost.names
    if record.rejected is None:
        return None, [ONE_SIDED]
    lost.unless(not rest, f"meta ({', '.join(rest)})")
    row: dict[str, Any] = {"id": record.id, "image": image}
    row["conversations"] = to_value([*record.prompt, *record.chosen])
    row["rejected_conversations"] = to_value([*record.prompt, *record.rejected])
    return {k: v for k, v in row.items() if v is not None}, lost.names


FORMAT = Format(
    name="sima",
    columns=frozenset((*PAIRS, *ASKED)),
    looks_for="conversations + rejected_conversations, or rank_result, or text + ground_truth (+ two decodes)",
    accepts=lambda row: bool(kind_of(row)),
    read=read,
    write=write,
)
