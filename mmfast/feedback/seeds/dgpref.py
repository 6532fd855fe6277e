"""DGPref's pickles: captions {idx_k: text}, what a model decomposed them to, and what experts found of that.

Names and prompts are not in them: names.json and prompts.txt lie beside (docs/formats.md). Decompositions and experts'
tables go with the captions that they are about (--answers).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfast.data.containers.read import Row
from mmfast.data.formats.dgpref import ASPECTS, image_name, image_path, prompt_line
from mmfast.data.formats.dgpref import kind_of as kind_of_value
from mmfast.data.problems import BadRow
from mmfast.feedback.answer import Answer
from mmfast.feedback.expert_scores import CHECKS, NUMBERS
from mmfast.feedback.seeds.leaving import Leaf, Leaving
from mmfast.files import write_bytes

if TYPE_CHECKING:
    from mmfast.feedback.tables import Table

INSTEAD = {
    "experts": "are scored with their captions: mmfast data pairs FILE --rule dgpref --captions CAPTIONS",
    "decomposition": "go with their captions: mmfast feedback import FILE --answers CAPTIONS --out FOLDER",
    "pairs": "are pairs already: mmfast data convert",
    "details": "are DGPref's own report, which nothing reads",
    "logps": "are log-probs, which nothing reads",
}


# Kinds of our items -> the aspect that the decomposing model tells them in
ASPECT_OF = {"object": "entity", "attribute": "attribute", "scale": "attribute", "count": "count",
             "relation": "relation", "spatial": "relation"}  # fmt: skip


def kind_of(row: dict[str, Any]) -> str:
    return kind_of_value(row["value"]) if set(row) == {"key", "value"} else ""


def answers(rows: Iterable[Row], kind: str, table: Table) -> Iterator[Answer]:
    if kind != "captions":
        raise ValueError(f"these are no answers: DGPref's {kind} {INSTEAD[kind]}")
    options = {"root": table.reading.root, **table.reading.options}
    yield from table.each(rows, lambda row: [caption(row, options, table)])


def caption(row: Row, options: dict[str, Any], table: Table) -> Answer:
    """A caption: those of an image compete, whatever they answer."""
    if kind_of(row.value) != "captions":
        raise BadRow("format", f"the value of {row.value.get('key')!r} is no caption")
    name, k = image_name(row, options)
    return table.answer(
        row, prompt_line(row, options, k), row.value["value"], (image_path(name, options),),
        group=name, prompt_id=row.value["key"], sample=0, meta={"name": name, "k": k},
    )  # fmt: skip


# written


class _Numbers:
    """Captions by image and prompt: idx counts the images, k the prompts, in the order in which they come. Those that
    came from DGPref's files keep their prompt's number."""

    def __init__(self, leaving: Leaving) -> None:
        self.names: dict[str, int] = {}  # image name -> idx
        self.prompts: dict[int, str] = {}
        self.captions: dict[tuple[str, int], Answer] = {}
        self.images: dict[str, str | None] = {}
        for one in leaving.answers:
            image, asked = leaving.image(one), leaving.question(one)
            name = str(one.meta.get("name") or Path(image or one.group).stem)
            if any(mark in asked for mark in "\r\n"):
                leaving.lost["prompts of several lines"] += 1
                continue
            k = one.meta["k"] if isinstance(one.meta.get("k"), int) else self._number(asked)
            if self.prompts.setdefault(k, asked) != asked or (name, k) in self.captions:
                leaving.lost["captions beside the first of an image and prompt"] += 1
                continue
            self.names.setdefault(name, len(self.names))
            self.captions[name, k], self.images[name] = one, image

    def _number(self, asked: str) -> int:
        return next((k for k, known in self.prompts.items() if known == asked), len(self.prompts))

    def keyed(self) -> Iterator[tuple[str, Answer]]:
        for (name, k), one in self.captions.items():
            yield f"{self.names[name]}_{k}", one

    def of(self, name: str) -> list[tuple[int, Answer]]:
        """An image's captions in the order of their prompts."""
        return sorted(((k, one) for (own, k), one in self.captions.items() if own == name), key=lambda each: each[0])

    def write_beside(self, out: Path) -> None:
        """names.json and prompts.txt, which the pickles do not hold. Others that stand there are not written over."""
        lines = [self.prompts.get(k, f"(no prompt {k})") for k in range(max(self.prompts, default=-1) + 1)]
        for name, text in (("names.json", json.dumps(list(self.names))), ("prompts.txt", "\n".join(lines) + "\n")):
            path = out.parent / name
            if path.exists() and path.read_text(encoding="utf-8") != text:
                raise ValueError(f"{path} is of other captions: write to another folder")
            write_bytes(path, text.encode())


def write_captions(leaving: Leaving) -> Iterator[dict[str, Any]]:
    numbers = _Numbers(leaving)
    numbers.write_beside(leaving.out)
    for key, one in numbers.keyed():
        yield {"key": key, "value": one.text}


def write_decomposition(leaving: Leaving) -> Iterator[dict[str, Any]]:
    """The decomposing model's four answers. Quoted text is not among them: DGPref finds it in the caption."""
    numbers = _Numbers(leaving)
    numbers.write_beside(leaving.out)
    for key, one in numbers.keyed():
        if one.key not in leaving.items:
            leaving.lost["captions that were not decomposed"] += 1
            continue
        found: dict[str, list[tuple[str, ...]]] = {aspect: [] for aspect in ASPECTS}
        for item in leaving.items[one.key]:
            aspect, parts = ASPECT_OF.get(item["kind"]), tuple(map(str, item.get("args") or ()))
            if aspect is None or not parts or any(mark in part for part in parts for mark in ("(", ")", ", ")):
                leaving.lost[
                    f"items of the kind {item['kind']}" if aspect is None else "items with brackets inside"
                ] += 1
                continue
            leaving.lost["spans of items"] += item.get("span") is not None
            found[aspect].append(parts)
        yield {"key": key, "value": {aspect: _told(aspect, parts) for aspect, parts in found.items()}}


def _told(aspect: str, parts: list[tuple[str, ...]]) -> str:
    if not parts:
        return " NONE"
    if aspect == "entity":
        return f" ({', '.join(dict.fromkeys(part for (part,) in parts))})"
    return " " + "; ".join(f"({', '.join(part)})" for part in dict.fromkeys(parts))


def write_experts(leaving: Leaving) -> Iterator[dict[str, Any]]:
    """What was checked of each image's captions, for pref_data_gen.py. Counts are made there of a thing's boxes:
    without boxes in the evidence they are not carried."""
    numbers = _Numbers(leaving)
    numbers.write_beside(leaving.out)
    for name, image in numbers.images.items():
        tables: dict[str, Any] = {f"{aspect}_result": {} for aspect in ("object", "count")}
        tables |= {f"{aspect}_result": {"scores": {}} for aspect in ("attribute", "relation", "text")}
        tables |= {"scale_result": {}, "spatial_result": {}}
        captions = dict(numbers.of(name))
        programs: list[dict[str, list[Any]]] = []
        for k in range(max(captions) + 1):  # a program's place is its caption's number, though a caption be missing
            programs.append({check: [] for check in CHECKS.values()})
            for item in leaving.items.get(captions[k].key, ()) if k in captions else ():
                _expert(leaving, captions[k], item, programs[k], tables)
        value = {"image_path": image, "all_program": programs, "expert_scores": tables}
        yield {"key": name, "value": value}


def _expert(
    leaving: Leaving, one: Answer, item: dict[str, Any], program: dict[str, list[Any]], tables: dict[str, Any]
) -> None:
    """One item into its caption's program, and what was found of it into the image's tables."""
    kind, args, row = item["kind"], tuple(map(str, item.get("args") or ())), leaving.found(one, item)
    if kind not in CHECKS or not args:
        leaving.lost[f"items of the kind {kind}"] += 1
        return
    if row is None:
        leaving.lost["items that were not checked"] += 1
        return
    boxes = (row.get("evidence") or {}).get("boxes") or {}
    scores = (row.get("evidence") or {}).get("scores") or {}
    table = tables[f"{kind}_result"]
    if kind == "object":
        found = list(scores.get(args[0], [])) or ([row.get("p_yes") or 1.0] if row["verdict"] == 1 else [])
        table[args[0]] = {"scores": found, "bboxs": list(boxes.get(args[0], []))}
        program["obj_check"].append(args[0])
    elif kind == "count":
        number = int(args[0]) if args[0].isdecimal() else NUMBERS.get(args[0].lower())
        if number is None or args[1] not in boxes:
            leaving.lost["counts without boxes"] += 1
            return
        tables["object_result"].setdefault(
            args[1], {"scores": list(scores.get(args[1], [1.0] * len(boxes[args[1]]))), "bboxs": list(boxes[args[1]])}
        )
        program["count_check"].append((number, args[1]))
    else:
        table.get("scores", table)["###".join(args)] = int(row["verdict"])
        program[CHECKS[kind]].append(args[0] if kind == "text" else args)


WRITES = {
    "captions": Leaf(suffixes=(".pkl",), about="idx_k: caption; names.json, prompts.txt beside", write=write_captions),
    "decomposition": Leaf(
        suffixes=(".pkl",), about="a model's four answers a caption", write=write_decomposition, needs=("items",)
    ),
    "experts": Leaf(
        suffixes=(".pkl",), about="programs and what experts found", write=write_experts, needs=("items", "verdicts")
    ),
}
