"""CHAIR: which of COCO's 80 objects does a caption mention that are not in the picture?

It is several metrics of one name, and their figures cannot be compared. CHAIRs: captions with a wrong mention / all,
empty ones too. CHAIRi: wrong mentions / mentions. `original` counts every mention; `sima` takes the singular by WordNet
and counts a wrong word once a caption, yet divides by every mention; `dgpref` joins no two words ("a hot dog" is a dog)
and has classes that no image has ("cub", "jet"). Recall (objects told / objects there), words and objects a caption
stand beside, for a silent model does not hallucinate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from mmfast.engines.base import Decode
from mmfast.evals.base import Answer, Benchmark, Data, File, Mark, Question, Scoring, Sums, Wording, ratio
from mmfast.evals.coco import Vocabulary, image_id, object_table, objects_of, reading_of
from mmfast.evals.reading import json_lines, json_of

SYNONYMS = File(
    names=("synonyms.txt", "synonyms_original.txt"),
    what="the list of synonyms",
    source="github.com/LisaAnne/Hallucination (data/synonyms.txt)",
    licence="none stated",
)
OBJECTS = File(
    names=("objects.json", "objects.txt.xz", "*objects*.xz", "*_imgid_to_objects.pkl", "*sceneGraphs.json"),
    what="the objects of its images",
    source="your COCO 2014 annotations, by `mmfast eval chair-table`; or a JSON of your own, {image id: [objects]}",
    licence="COCO's annotations: CC BY 4.0",
)
IMAGES = File(
    names=("images.jsonl", "images.json", "images.txt", "*image_ids*.json"),
    what="the images to caption: ids, or rows with image_id and, if you like, image and question",
    source="you",
    licence="yours",
    optional=True,
)
OF_TABLE = {"original": "original", "sima": "sima", "dgpref": "original"}  # who read the captions for a flavour's table


class Chair(Benchmark):
    name = "chair"
    about = "objects of COCO that a caption mentions and the picture has not"
    flavours: ClassVar[tuple[str, ...]] = ("original", "sima", "dgpref")
    wordings: ClassVar = {
        "detail": Wording(suffix="Please describe this image in detail.", decode=Decode(max_tokens=512)),
        "given": Wording(decode=Decode(max_tokens=1024), about="the question of each row of the list of images"),
    }
    files: ClassVar = {"synonyms": SYNONYMS, "objects": OBJECTS, "images": IMAGES}
    missing = "wrong"  # decided in marks: without a list of images, those with a caption are scored
    layout = "chair"
    less_is_better: ClassVar[tuple[str, ...]] = ("CHAIRs", "CHAIRi")
    published = (
        "LLaVA's captions of POPE, original: 62.7 / 18.8 and 32.7 / 10.5 (CHAIRs / CHAIRi; POPE, 2305.10355); "
        "LLaVA-1.5-7B + DGPref, dgpref: 10.33 / 2.59, Qwen-VL-Chat + DGPref: 8.00 / 2.01 (DGPref's logs)"
    )

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        listed = data.path("images") is not None
        for row in image_rows(data) if listed else ({"image_id": key} for key in self._table(data, self.flavours[0])):
            key = image_id(row["image_id"])
            text = wording.suffix or str(row.get("question") or "")
            if not text:
                raise ValueError(
                    f"image {key}: the wording `given` asks the question of its row in the list of images, which has "
                    "none; choose another wording"
                )
            yield Question(
                id=key,
                turns=(text,),
                images=(data.picture(str(row.get("image") or coco_name(key))),),
                unit=key,
                truth={"listed": listed},
                official={"image_id": int(key) if key.isdigit() else key},
            )

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        vocabulary = self._vocabulary(scoring.data, scoring.flavour)
        table = self._table(scoring.data, scoring.flavour)
        made = reading_of(scoring.data.read("objects"))
        if made not in ("", OF_TABLE[scoring.flavour]):
            scoring.notes.append(
                f"the table of objects was made by the reading {made}; that of this flavour is "
                f"{OF_TABLE[scoring.flavour]}"
            )
        given = [q for q in questions if q.id in answers]
        # Images of a list are all to be captioned; of the table's, those that are
        lost = [q.id for q in questions if q.id not in answers and q.truth["listed"]]
        if lost or not given:
            told = f" (the first is {lost[0]})" if lost else ""
            raise ValueError(f"{len(lost) or 'all'} images of {self.name} have no caption{told}")
        if scoring.flavour != "sima" and not vocabulary.published:
            scoring.notes.append(
                "this list of synonyms is none of the published two: plurals of words of its own are met by the "
                "flavour sima alone"
            )
        if len(given) < len(questions):
            scoring.notes.append(f"{len(given):,} of the table's {len(questions):,} images have a caption")
        objects_of(table, (q.id for q in given), f"{self.name}'s table of objects")
        for question in given:
            text = answers[question.id].text
            yield self.mark(question, text, vocabulary.mentions(text), table[question.id], scoring)

    def mark(
        self, question: Question, text: str, said: list[tuple[str, str]], there: frozenset[str], scoring: Scoring
    ) -> Mark:
        wrong = [word for word, found in said if found not in there]
        told = {found for _, found in said}
        sums = {
            "captions": 1,
            "with_wrong": bool(wrong),
            "with_objects": bool(said),
            "mentions": len(said),
            "wrong": len(set(wrong)) if scoring.flavour == "sima" else len(wrong),
            "right_classes": len(told & there),
            "true_classes": len(there),
            "told_classes": len(told),
            "words": len(text.strip().split(" ")),
        }
        return Mark(
            id=question.id, unit=question.unit, sums={k: float(v) for k, v in sums.items()}, told={"wrong_words": wrong}
        )

    def metrics(self, sums: Sums, flavour: str) -> dict[str, Any]:
        return {
            "CHAIRs": ratio(sums["with_wrong"], sums["captions"], 100),
            "CHAIRi": ratio(sums["wrong"], sums["mentions"], 100),
            "Recall": ratio(sums["right_classes"], sums["true_classes"], 100),
            "words": ratio(sums["words"], sums["captions"]),
            "objects": ratio(sums["told_classes"], sums["captions"]),
        }

    def _vocabulary(self, data: Data, flavour: str) -> Vocabulary:
        return Vocabulary(data.read("synonyms").decode(), flavour)

    def _table(self, data: Data, flavour: str) -> dict[str, frozenset[str]]:
        path = data.path("objects")
        assert path is not None
        return object_table(data.read("objects"), path.name, self._vocabulary(data, flavour))


def image_rows(data: Data) -> Iterator[dict[str, Any]]:
    """The rows of a list of images: JSON lines, a JSON list of rows or ids, an id a line."""
    path = data.path("images")
    assert path is not None
    if path.suffix == ".json":
        rows = [(f"{path}, row {number}", row) for number, row in enumerate(json_of(data, "images"), 1)]
    elif path.suffix == ".txt":
        rows = [(f"{path}", line.strip()) for line in data.read("images").decode().splitlines() if line.strip()]
    else:
        rows = json_lines(data, "images")
    seen: set[str] = set()
    for place, row in rows:
        row = row if isinstance(row, dict) else {"image_id": row}
        if "image_id" not in row:
            raise ValueError(f"{place} has no image_id")
        key = image_id(row["image_id"])
        if key in seen:
            raise ValueError(f"{place}: image {key} is there twice")
        seen.add(key)
        yield row


def coco_name(key: str) -> str:
    """The file of an image of val2014, from which published captions are; another name is left as it is."""
    return f"COCO_val2014_{int(key):012}.jpg" if key.isdigit() else key


BENCHES = (Chair(),)
