"""MHumanEval (RLHF-V): people mark what is wrong in answers, segment by segment and by kind; RLHF-V's headline figure.

Judgements are JSON lines {"id", "annotator", "segments": [{"kind", "from", "to"}]}, as `mmfast correct` writes them: an
answer's id, who judged it, and its wrong segments as places of characters, `to` being the first one after. An answer
without a wrong segment has a line too. "text", where a line has it, must be the answer that is scored.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

from mmfast.engines.base import Decode
from mmfast.evals.base import Answer, Benchmark, Data, File, Mark, Question, Scoring, Sums, Wording, ratio
from mmfast.evals.reading import inside, json_lines

Judgement = dict[str, Any]
KINDS = ("object", "position", "number", "others")  # RLHF-V's; others may be given, too


class MHumanEval(Benchmark):
    name = "mhumaneval"
    about = "share of answers in which people marked something wrong, by kind"
    wordings: ClassVar = {
        "rlhfv": Wording(decode=Decode(beams=3, max_tokens=1024), about="RLHF-V's questions, three beams"),
        "greedy": Wording(decode=Decode(max_tokens=1024), about="RLHF-V's questions, greedy"),
    }
    files: ClassVar = {
        "questions": File(
            names=("obj_halbench_mhumaneval_data_with_image.jsonl", "*mhumaneval*.jsonl", "questions.jsonl"),
            what="its questions: question, image (base64 or a file's name), and id or question_id if you like",
            source="github.com/RLHF-V/RLAIF-V (eval/data)",
            licence="CC BY-NC 4.0",
        ),
        "judgements": File(
            names=("judgements*.jsonl",),
            what="what people marked",
            source="`mmfast correct`; or name a file by the option judgements",
            licence="yours",
            optional=True,
        ),
    }
    options: ClassVar = {"judgements": "the file of judgements, where it does not lie in --data"}
    layout = "rlhfv"
    less_is_better = ("All", *(kind.capitalize() for kind in KINDS), "segments", "marked")

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        for number, (place, row) in enumerate(json_lines(data, "questions")):
            if not isinstance(row, dict) or not row.get("question") or not isinstance(row["question"], str):
                raise ValueError(f"{place} has no question")
            name, image = str(row.get("id", row.get("question_id", number))), str(row.get("image") or "")
            picture = data.picture(image)
            if len(image) > 300:  # no file's name: the image itself
                picture = inside(place, f"{name}.jpg", image)
            unit = picture.id if len(image) > 300 else image or name
            yield Question(id=name, turns=(row["question"] + wording.suffix,), images=(picture,), unit=unit)

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        judgements = self._judgements(scoring, {q.id: answers[q.id].text for q in questions})
        for question in questions:
            yield _mark(question, answers[question.id].text, judgements[question.id])

    def metrics(self, sums: Sums, flavour: str) -> dict[str, Any]:
        answers, segments = sums["answers"], sums["segments"]
        out = {"All": ratio(sums["wrong"], answers, 100)}
        kinds = [name.removeprefix("wrong:") for name in sums if name.startswith("wrong:")]
        out |= {kind.capitalize(): ratio(sums[f"wrong:{kind}"], answers, 100) for kind in kinds}
        out |= {f"share.{kind}": ratio(sums[f"segments:{kind}"], segments, 100) for kind in kinds}
        out |= {"segments": ratio(segments, answers), "marked": ratio(sums["marked"], sums["characters"], 100)}
        if "pairs" in sums:
            equal, wrong = ratio(sums["equal"], sums["pairs"]), ratio(sums["pairs_wrong"], sums["pairs"])
            chance = wrong**2 + (1 - wrong) ** 2
            out |= {
                "agreement": 100 * equal,
                "kappa": ratio(equal - chance, 1 - chance),
                "agreement.characters": ratio(sums["both"], sums["either"], 100),
            }
        return out

    def _judgements(self, scoring: Scoring, texts: Mapping[str, str]) -> dict[str, list[Judgement]]:
        """Those of each answer. They belong to a model's answers, so their hash is told and is none of the data's."""
        named = scoring.options.get("judgements")
        path = Path(named) if named else scoring.data.path("judgements")
        if path is None or not path.is_file():
            raise ValueError(
                f"{path or scoring.data.folder}: MHumanEval needs what people marked: judgements.jsonl in --data, or a "
                "file named by the option judgements (`mmfast correct` makes one)"
            )
        content = path.read_bytes()
        found: dict[str, list[Judgement]] = defaultdict(list)
        for number, line in enumerate(content.decode().splitlines(), 1):
            if line.strip():
                row = _checked(line, texts, f"{path}:{number}")
                if row["annotator"] in {other["annotator"] for other in found[row["id"]]}:
                    raise ValueError(f"{path}:{number}: {row['annotator']} judged the answer to {row['id']} before")
                found[row["id"]].append(row)
        if lost := [name for name in texts if name not in found]:
            raise ValueError(f"{path} has no judgement of {len(lost)} answers (the first: {lost[0]})")
        people = {row["annotator"] for rows in found.values() for row in rows}
        digest = hashlib.sha256(content).hexdigest()
        scoring.notes.append(f"judged by {len(people)} people: {path.name}, sha256 {digest[:12]}")
        return dict(found)


def _checked(line: str, texts: Mapping[str, str], where: str) -> Judgement:
    try:
        row = json.loads(line)
        name, segments = str(row["id"]), row["segments"]
        spans = [(str(s["kind"]).strip().lower(), int(s["from"]), int(s["to"])) for s in segments]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{where} is no judgement: it has id, annotator, and segments of kind, from and to") from None
    if name not in texts:
        raise ValueError(f"{where}: there is no answer {name}")
    if row.get("text", texts[name]) != texts[name]:
        raise ValueError(f"{where}: another answer to {name} was judged than the one that is scored")
    for kind, start, end in spans:
        if not kind or not 0 <= start < end <= len(texts[name]):
            raise ValueError(
                f"{where}: a segment {kind!r} from {start} to {end} is not within the {len(texts[name])} characters of "
                f"the answer to {name}"
            )
    return {"id": name, "annotator": str(row.get("annotator", "")), "spans": spans}


def _mark(question: Question, text: str, judgements: Sequence[Judgement]) -> Mark:
    """Of several people's judgements each counts its part of one."""
    number = len(judgements)
    kinds = dict.fromkeys([*KINDS, *sorted({span[0] for row in judgements for span in row["spans"]})])
    marked = [{at for _, start, end in row["spans"] for at in range(start, end)} for row in judgements]
    sums = {
        "answers": 1.0,
        "wrong": sum(bool(row["spans"]) for row in judgements) / number,
        "segments": sum(len(row["spans"]) for row in judgements) / number,
        "characters": float(len(text)),
        "marked": sum(map(len, marked)) / number,
    }
    for kind in kinds:
        counts = [sum(span[0] == kind for span in row["spans"]) for row in judgements]
        sums[f"wrong:{kind}"], sums[f"segments:{kind}"] = sum(map(bool, counts)) / number, sum(counts) / number
    for one, other in combinations(marked, 2):
        added = {"pairs": 1, "equal": bool(one) == bool(other), "pairs_wrong": (bool(one) + bool(other)) / 2}
        added |= {"both": 2 * len(one & other), "either": len(one) + len(other)}
        sums |= {name: sums.get(name, 0.0) + value for name, value in added.items()}
    return Mark(id=question.id, unit=question.unit, sums=sums, told={"judgements": number})


BENCHES = (MHumanEval(),)
