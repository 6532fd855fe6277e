"""TextVQA: short answers about texts in pictures, counted as VQA's (vqa.py).

LLaVA shows OCR words in the prompt (of Rosetta, in its own question file or TextVQA's OCR file); without them the
figures are others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from mmfast.evals.base import Data, File, Question, Wording
from mmfast.evals.benches.vqa import GREEDY, Vqa, people_said
from mmfast.evals.reading import SHORT, need, rows, value


class TextVqa(Vqa):
    name = "textvqa"
    about = "reading: short answers about texts in pictures"
    published = "LLaVA-1.5 7B 58.2, 13B 61.3 (LLaVA docs/MODEL_ZOO.md)"
    wordings: ClassVar = {
        "llava": Wording(suffix="\nReference OCR token: {ocr}" + SHORT, decode=GREEDY, about="LLaVA's, with OCR words"),
        "no-ocr": Wording(suffix=SHORT, decode=GREEDY, about="the same without OCR words"),
    }
    files: ClassVar = {
        "questions": File(
            names=("TextVQA_[0-9]*_val.json",),
            what="its validation questions with answers",
            source="textvqa.org/dataset (TextVQA_0.5.1_val.json)",
            licence="CC BY 4.0",
        ),
        "ocr": File(
            names=("TextVQA_Rosetta_OCR_*_val.json",),
            what="its OCR words (Rosetta)",
            source="textvqa.org/dataset",
            licence="CC BY 4.0",
            optional=True,
        ),
        "llava": File(
            names=("llava_textvqa_val_v051_ocr.jsonl",),
            what="LLaVA's questions with OCR words",
            source="LLaVA's eval.zip (docs/Evaluation.md of haotian-liu/LLaVA)",
            licence="CC BY 4.0",
            optional=True,
        ),
    }

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        words = _ocr(data) if "{ocr}" in wording.suffix else {}
        for row in value(data, "questions", "data:list")["data"]:
            need(row, ("question_id:id", "image_id", "question"), data, "questions")
            text = row["question"].capitalize()
            key = (row["image_id"], row["question"].lower())
            if "{ocr}" in wording.suffix and key not in words and (row["image_id"], "") not in words:
                raise ValueError(f"the OCR words of {data.folder} have none for image {row['image_id']}")
            ocr = words.get(key, words.get((row["image_id"], ""), ""))
            yield Question(
                id=str(row["question_id"]),
                turns=(text + wording.suffix.replace("{ocr}", ocr),),
                images=(data.picture(f"{row['image_id']}.jpg"),),
                unit=row["image_id"],
                official={"question_id": row["image_id"]},  # LLaVA's; prompts tell an image's questions apart
                truth={"people": people_said(row.get("answers", []), data), "row": row["question_id"]},
            )


def _ocr(data: Data) -> dict[tuple[str, str], str]:
    """OCR words as LLaVA lists them: by (image, question) of its own file, by (image, "") of TextVQA's."""
    if data.path("llava"):
        found = {}
        for row in rows(data, "llava"):
            need(row, ("question_id", "text"), data, "llava")
            question, _, rest = row["text"].removesuffix(SHORT).partition("\nReference OCR token: ")
            found[row["question_id"], question.lower()] = rest
        return found
    if data.path("ocr"):
        found = {}
        for row in value(data, "ocr", "data:list")["data"]:
            need(row, ("image_id", "ocr_tokens:texts"), data, "ocr")
            found[row["image_id"], ""] = ", ".join(row["ocr_tokens"])
        return found
    names = [*data.bench.files["llava"].names, *data.bench.files["ocr"].names]
    raise ValueError(
        f"{data.folder} has no {' or '.join(names)}: LLaVA's wording shows OCR words (from LLaVA's eval.zip or "
        "textvqa.org/dataset); --wording no-ocr asks without them, and its figures are others"
    )


BENCHES = (TextVqa(),)
