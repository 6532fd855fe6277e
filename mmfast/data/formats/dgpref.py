"""DGPref's pickles: image name -> caption pairs, and the tables its earlier steps leave (captions, claims, scores).

Its 8 captions of an image answer 8 different prompts, so a pair has a prompt for each side. The prompts are not in the
pickles: they are lines of `prompts.txt` beside the file (or of the option `prompts`), caption k answering line k.
Images are `{name}.jpg` under the image root, in it or in VG_100K, VG_100K_2 (or after the option `image`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmfast.data.containers.read import Row
from mmfast.data.formats.base import Format, Uncarried, Written, need, record_of
from mmfast.data.formats.messages import answer
from mmfast.data.problems import BadRow
from mmfast.data.records import Record

BESIDE = ("prompts.txt", "names.json")  # files that rows are read from, beside the pickle
PLACES = ("{name}.jpg", "VG_100K/{name}.jpg", "VG_100K_2/{name}.jpg")
ASPECTS = ("attribute", "count", "entity", "relation")
KINDS = {
    "pairs": "a dict with sample_pair",
    "captions": "a caption",
    "decomposition": f"a dict of {', '.join(ASPECTS)}",
    "experts": "a dict with all_program and expert_scores",
    "details": "a dict of ..._result tables",
    "logps": "a dict with logp, avg_logp and per_token_logp",
}


def kind_of(value: Any) -> str:
    """Which of the pipeline's tables a value stands in; "" if in none."""
    if isinstance(value, str):
        return "captions"
    if not isinstance(value, dict) or not value:
        return ""
    if "sample_pair" in value:
        return "pairs"
    if {"all_program", "expert_scores"} <= set(value):
        return "experts"
    if {"logp", "avg_logp"} <= set(value):
        return "logps"
    if set(value) <= set(ASPECTS):
        return "decomposition"
    return "details" if all(str(k).endswith("_result") for k in value) else ""


@lru_cache(maxsize=8)
def _lines(path: Path, written: int, newlines: bool) -> tuple[str, ...]:
    text = path.read_text(encoding="utf-8").splitlines(keepends=newlines)
    return tuple(line for line in text if line.strip())


def prompt_line(row: Row, options: dict[str, Any], k: int) -> str:
    path = Path(options.get("prompts") or row.file.parent / "prompts.txt")
    if not path.exists():
        raise BadRow("format", f"captions answer numbered prompts: put their lines into {path} (docs/formats.md)")
    # compat_newlines: every prompt but the last kept its line's newline in DGPref
    lines = _lines(path, path.stat().st_mtime_ns, bool(options.get("compat_newlines", False)))
    if not 0 <= k < len(lines):
        raise BadRow("format", f"caption {k} has no prompt: {path.name} holds {len(lines)} lines")
    return lines[k]


@lru_cache(maxsize=2)
def _names(path: Path, written: int) -> tuple[str, ...]:
    return tuple(json.loads(path.read_text(encoding="utf-8")))  # a list, or an object whose keys are in order


def image_name(row: Row, options: dict[str, Any]) -> tuple[str, int]:
    """A caption's key "{idx}_{k}" as (image name, k): idx counts the names of the option `names`."""
    index, _, k = row.value["key"].rpartition("_")
    if not (index.isdecimal() and k.isdecimal()):
        raise BadRow("format", f"the key {row.value['key']!r} is not idx_k")
    path = Path(options.get("names") or row.file.parent / "names.json")
    if not path.exists():
        raise BadRow("format", f"captions count images by position: put the names, in order, into {path}")
    names = _names(path, path.stat().st_mtime_ns)
    if int(index) >= len(names):
        raise BadRow("format", f"caption {row.value['key']} counts past the {len(names)} names of {path.name}")
    return names[int(index)], int(k)


def image_path(name: str, options: dict[str, Any]) -> str:
    places = [options["image"]] if "image" in options else PLACES
    candidates = [place.format(name=name) for place in places]
    root = Path(options.get("root", "."))
    return next((c for c in candidates if (root / c).exists()), candidates[0])


def _asked(line: str) -> tuple[dict, ...]:
    return ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": line}]},)


def read(row: Row, options: dict[str, Any]) -> Iterator[Record]:
    key, value = need(row.value, "key", "value")
    kind = kind_of(value)
    # A caption alone
    if kind == "captions":
        name, k = image_name(row, options)
        images, prompt = (image_path(name, options),), _asked(prompt_line(row, options, k))
        yield record_of(
            row, row.value, id=key, images=images, prompt=prompt, chosen=[answer(value)], meta={"name": name}
        )
        return
    if kind != "pairs":
        what = f"holds {KINDS[kind]}" if kind else "is of no known kind"
        raise BadRow("format", f"the value of {key!r} {what}; pairs and captions can be trained on (mmfast data pairs)")
    # Pairs of an image, each with the scores of its two captions
    scores = value.get("cap_avg_scores") or value.get("cap_scores")
    for n, pair in enumerate(value["sample_pair"]):
        better, worse, i, j = need(pair, "prefer", "reject", "prefer_idx", "reject_idx")
        yield record_of(
            row,
            row.value,
            id=f"{key}:{n}",
            images=(image_path(key, options),),
            chosen_prompt=_asked(prompt_line(row, options, i)),
            rejected_prompt=_asked(prompt_line(row, options, j)),
            chosen=[answer(better)],
            rejected=[answer(worse)],
            scores={"chosen": float(scores[i]), "rejected": float(scores[j])} if scores else None,
            meta={
                "name": key,
                "prefer_idx": int(i),
                "reject_idx": int(j),
                **{k: list(value[k]) for k in ("cap_scores", "cap_avg_scores") if k in value},
            },
        )


def write(record: Record) -> Written:
    """One pair under its image's name; the file writer joins the pairs of a name."""
    assert record.rejected is not None
    lost = Uncarried(record)
    lost.unless({"prefer_idx", "reject_idx", "name"} <= set(record.meta), "prompt numbers (prefer_idx, reject_idx)")
    lost.unless(len(record.chosen) == 1, "turns before the last answer")
    name = record.meta.get("name") or (Path(str(record.images[0])).stem if record.images else record.id)
    pair = {
        "prefer": record.chosen[-1]["content"],
        "reject": record.rejected[-1]["content"],
        "prefer_idx": record.meta.get("prefer_idx", 0),
        "reject_idx": record.meta.get("reject_idx", 0),
    }
    value = {k: record.meta[k] for k in ("cap_scores", "cap_avg_scores") if k in record.meta}
    return {"key": name, "value": {**value, "sample_pair": [pair]}}, lost.names


FORMAT = Format(
    name="dgpref",
    columns=frozenset(("key", "value")),
    options=("prompts", "names", "image", "compat_newlines"),
    looks_for="a pickled dict: image name -> sample_pair, or idx_k -> caption",
    accepts=lambda row: set(row) == {"key", "value"} and bool(kind_of(row["value"])),
    read=read,
    write=write,
    pairs_only=True,
)
