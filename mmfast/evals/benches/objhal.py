"""Object HalBench (RLHF-V, RLAIF-V): objects that a detailed description names and the picture has not.

`rules` finds them in the text as CHAIR does, by RLHF-V's list of synonyms and WordNet's singulars. `llm`, which
papers report, has a judge list the objects first; spaCy finds the lemmas of these. CHAIRs_refine ("Response Hall")
divides by the answers that name an object at all, CHAIRs by all; CHAIRi is "Object Hall".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from mmfast.engines.base import Decode
from mmfast.evals.base import Answer, Data, File, Mark, Question, Scoring, Sums, Wording, ratio
from mmfast.evals.benches.chair import Chair, coco_name, image_rows
from mmfast.evals.coco import Vocabulary, image_id, object_table, objects_of, reading_of
from mmfast.evals.extraction import extracted
from mmfast.evals.reading import inside

REPOSITORY = "github.com/RLHF-V/RLAIF-V"
# How chain-of-hindsight models mark what they write: where one of these stands, the text before or after it counts
HINDSIGHT = (
    ("The following is a response without hallucination.", -1),
    ("The following is a response with hallucination.", 0),
    ("Generate a response without errors.", -1),
    ("Generate a response with errors.", 0),
)


class ObjHal(Chair):
    name = "objhal"
    about = "objects that a detailed description names and the picture has not"
    flavours = ("llm", "rules")
    judge = "gpt-3.5-turbo-0613, for llm"
    judged: ClassVar = ("llm",)
    wordings: ClassVar = {
        "rlhfv": Wording(decode=Decode(beams=3, max_tokens=1024), about="RLHF-V's questions, three beams"),
        "dgpref": Wording(decode=Decode(max_tokens=1024), about="RLHF-V's questions, greedy"),
    }
    files: ClassVar = {
        "images": File(
            names=("obj_halbench_300_with_image.jsonl", "*obj_halbench*.jsonl", "images.jsonl"),
            what="its questions: image_id and question, with the image in base64 or its name",
            source=f"{REPOSITORY} (eval/data)",
            licence="CC BY-NC 4.0",
        ),
        "synonyms": File(
            names=("synonyms_refine.txt", "synonyms.txt"),
            what="the list of synonyms",
            source=f"{REPOSITORY} (eval/data/synonyms_refine.txt)",
            licence="CC BY-NC 4.0",
        ),
        "objects": replace(
            Chair.files["objects"],
            source="your COCO 2014 annotations, by `mmfast eval chair-table --reading objhal`",
        ),
        "script": File(
            names=("eval_gpt_obj_halbench.py",),
            what="the judge's prompt",
            source=f"{REPOSITORY} (eval)",
            licence="Apache-2.0",
            optional=True,
        ),
    }
    options: ClassVar = {
        "spacy": "the model that finds lemmas, for llm; default: en_core_web_trf",
        "hindsight": "yes: texts of a chain-of-hindsight model lose its markers and what they call wrong",
    }
    missing = "refused"
    layout = "rlhfv"
    less_is_better = ("CHAIRs_refine", "CHAIRs", "CHAIRi")
    published = "llm, CHAIRs_refine / CHAIRi: LLaVA-1.5-13B 46.3 / 22.6, RLHF-V 12.2 / 7.5, GPT-4V 13.6 / 7.3 (RLHF-V)"

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        for row in image_rows(data):
            key, asked, image = image_id(row["image_id"]), row.get("question"), str(row.get("image") or "")
            if not asked or not isinstance(asked, str):
                raise ValueError(f"image {key} of Object HalBench has no question in the list of images")
            picture = data.picture(image or coco_name(key))
            if len(image) > 300:  # no file's name: the image itself
                picture = inside(f"image {key} of Object HalBench", f"{key}.jpg", image)
            yield Question(
                id=key,
                turns=(asked + wording.suffix,),
                images=(picture,),
                unit=key,
                truth={"asked": asked},
                official={"image_id": int(key) if key.isdigit() else key},
            )

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        data = scoring.data
        vocabulary = Vocabulary(data.read("synonyms").decode(), "objhal")
        path = data.path("objects")
        assert path is not None
        table = object_table(data.read("objects"), path.name, vocabulary)
        if reading_of(data.read("objects")) != "objhal":
            scoring.notes.append(
                "the table of objects does not say that it was made for Object HalBench (`mmfast eval chair-table "
                "--reading objhal`): another one may differ in a few objects"
            )
        objects_of(table, (q.id for q in questions), "Object HalBench's table of objects")
        texts = {q.id: self.text(answers[q.id].text, _hindsight(scoring)) for q in questions}
        if scoring.flavour == "rules":
            said = {key: vocabulary.mentions(text) for key, text in texts.items()}
        else:
            asked = {q.id: (q.truth["asked"], texts[q.id]) for q in questions}
            said = {key: vocabulary.known(named) for key, named in extracted(asked, vocabulary, scoring).items()}
        for question in questions:
            if question.id in said:
                yield self.mark(question, texts[question.id], said[question.id], table[question.id], scoring)

    def metrics(self, sums: Sums, flavour: str) -> dict[str, Any]:
        recall = ratio(sums["right_classes"], sums["true_classes"], 100)
        wrong = ratio(sums["wrong"], sums["mentions"], 100)
        return {
            "CHAIRs_refine": ratio(sums["with_wrong"], sums["with_objects"], 100),
            "CHAIRi": wrong,
            "CHAIRs": ratio(sums["with_wrong"], sums["captions"], 100),
            "obj_rec": recall,
            "obj_f1": ratio(2 * recall * (100 - wrong), recall + 100 - wrong),
            "avg_word_len": ratio(sums["words"], sums["captions"]),
        }

    def text(self, answer: str, hindsight: bool) -> str:
        text = answer.replace("Assistant:", "").strip()
        for marker, part in HINDSIGHT if hindsight else ():
            if marker in text:
                return text.split(marker)[part].strip()
        return text


def _hindsight(scoring: Scoring) -> bool:
    """Official: whether the path of the answers has "coh" in it."""
    value = str(scoring.options.get("hindsight", "no")).lower()
    if value not in ("yes", "no", "true", "false"):
        raise ValueError(f"Object HalBench's option hindsight is yes or no, not {value!r}")
    return value in ("yes", "true")


BENCHES = (ObjHal(),)
