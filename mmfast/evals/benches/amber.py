"""AMBER: what a description names that is not there (generative), and questions by yes or no about what is
(discriminative). A file of answers may hold only one of the two, or some kinds of questions, each whole.

Generative: nouns of a vocabulary of 418 words are compared with what annotators saw and what they thought a model would
make up. Which words are alike is a table, for the vectors that decide it come with spaCy's en_core_web_lg.
Discriminative: only "Yes" and "No" themselves are answers, and "No" is the positive class. The official figures are
rounded, F1 is made of rounded ones, and each count begins at 0.001; the flavour `exact` does without all that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mmfast.engines.base import Decode
from mmfast.evals.amber_words import MODEL, describer
from mmfast.evals.base import Answer, Benchmark, Data, File, Mark, Question, Scoring, Sums, Wording, ratio
from mmfast.evals.benches.pope import SHORT, strictly
from mmfast.evals.reading import json_of

GENERATIVE = "generative"
KINDS = {
    "discriminative-hallucination": "Existence",
    "discriminative-attribute-state": "State",
    "discriminative-attribute-number": "Number",
    "discriminative-attribute-action": "Action",
    "discriminative-relation": "Relation",
    "relation": "Relation",
}
GROUPS = {kind: (kind,) for kind in KINDS.values()} | {"Attribute": ("State", "Number", "Action")}
SOURCE, LICENCE = "github.com/junyangwang0410/AMBER (data)", "Apache-2.0"


class Amber(Benchmark):
    name = "amber"
    about = "what descriptions make up, and yes or no about existence, attributes and relations"
    flavours = ("official", "exact")
    wordings: ClassVar = {
        "bare": Wording(decode=Decode(max_tokens=1024), about="the question alone"),
        "short": Wording(
            suffix=SHORT, decode=Decode(max_tokens=1024), about="LLaVA's suffix to questions by yes or no"
        ),
    }
    files: ClassVar = {
        "questions": File(names=("query_all.json",), what="its questions", source=SOURCE, licence=LICENCE),
        "annotations": File(names=("annotations.json",), what="its annotations", source=SOURCE, licence=LICENCE),
        "relation": File(names=("relation.json",), what="its associated words", source=SOURCE, licence=LICENCE),
        "safe": File(names=("safe_words.txt",), what="its safe words", source=SOURCE, licence=LICENCE),
        "similar": File(
            names=("similarity*.json",),
            what="a table of its words that are alike",
            source=f"`mmfast eval amber-table`, once, where spaCy has {MODEL} (github.com/explosion/spacy-models)",
            licence="the model: MIT",
        ),
        "tagger": File(
            names=("averaged_perceptron_tagger_eng.zip",),
            what="nltk's tagger",
            source="github.com/nltk/nltk_data (packages/taggers)",
            licence="not stated",
        ),
    }
    parsers_differ = True
    missing = "wrong"  # decided in marks: a whole kind of questions may be left out
    layout = "amber"
    less_is_better = ("CHAIR", "Hal", "Cog")
    published = "Qwen-VL-Chat + DGPref: CHAIR 1.5, Cover 54.0; LLaVA-1.5-7B + DGPref: CHAIR 1.2, Cover 51.2 (its logs)"

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        truths, rows = json_of(data, "annotations"), json_of(data, "questions")
        asked, annotated = (
            [row.get("id") for row in each if isinstance(row, dict) and names <= row.keys()]
            for each, names in ((rows, {"id", "image", "query"}), (truths, {"id", "type", "truth"}))
        )
        if not asked or asked != annotated or len(asked) != len(rows):
            raise ValueError(f"{data.folder}: query_all.json and annotations.json are not of one version of AMBER")
        for row, truth in zip(rows, truths, strict=True):
            asks = truth["type"] != GENERATIVE
            yield Question(
                id=str(row["id"]),
                turns=(row["query"] + (wording.suffix if asks else ""),),
                images=(data.picture(row["image"]),),
                unit=row["image"],
                truth={**truth, "kind": KINDS.get(truth["type"], "Relation") if asks else GENERATIVE},
                official={"id": row["id"]},
            )

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        # A kind of questions is answered whole or not at all
        lost = {q.truth["kind"]: q.id for q in reversed(questions) if q.id not in answers}
        given = [q for q in questions if q.id in answers]
        kinds = Counter(q.truth["kind"] for q in given)
        if half := [kind for kind in kinds if kind in lost]:
            number = sum(q.truth["kind"] == half[0] and q.id not in answers for q in questions)
            raise ValueError(
                f"AMBER: {number} of the {number + kinds[half[0]]} {half[0].lower()} items have no answer (the first: "
                f"{lost[half[0]]}): a kind may be left out as a whole only"
            )
        if lost:
            scoring.notes.append(f"not answered, as a whole: {', '.join(lost)}")
        describe = describer(scoring) if GENERATIVE in kinds else None
        for question in given:
            text, kind = answers[question.id].text, question.truth["kind"]
            if kind == GENERATIVE:
                assert describe is not None
                sums, told = describe(text, question.truth)
            else:
                sums, told = _verdict(text, kind, question.truth["truth"] == "no", scoring)
            yield Mark(id=question.id, unit=question.unit, sums=sums, told=told)

    def metrics(self, sums: Sums, flavour: str) -> dict[str, Any]:
        exact = flavour == "exact"
        out: dict[str, Any] = {}
        if "items" in sums:
            out |= generative(sums, exact)
        there = [kind for kind in KINDS.values() if f"{kind}.all" in sums]
        if set(there) == set(KINDS.values()):
            out |= discriminative(sums, tuple(GROUPS)[:5], exact, counts=1)
        for name, kinds in GROUPS.items():
            if set(kinds) <= set(there):
                out |= {f"{name}.{k}": v for k, v in discriminative(sums, kinds, exact).items()}
        if "CHAIR" in out and "F1" in out:
            out["AMBER"] = (100 - out["CHAIR"] + out["F1"]) / 2
        return out


def _verdict(text: str, kind: str, true_no: bool, scoring: Scoring) -> tuple[dict[str, float], dict[str, Any]]:
    said = strictly(text) if scoring.strict else {"Yes": True, "No": False}.get(text)
    scoring.counts["unparsed"] += said is None
    no = said is False
    sums = {
        "all": 1,
        "right": said is (not true_no),
        "true_no": true_no,
        "said_no": no,
        "no_right": no and true_no,
    }
    return {f"{kind}.{name}": float(value) for name, value in sums.items()}, {"said": said, "true": not true_no}


def generative(sums: Sums, exact: bool = False) -> dict[str, Any]:
    def share(above: str, below: str) -> Any:
        return _share(sums.get(above, 0.0), sums.get(below, 0.0), 0 if exact else 1)

    return {
        "CHAIR": _rounded(share("wrong", "nouns"), exact),
        "Cover": _rounded(share("covered", "truths"), exact),
        "Hal": _rounded(100 - share("clean", "items"), exact),
        "Cog": _rounded(share("hit", "feared"), exact),
    }


def discriminative(sums: Sums, kinds: Sequence[str], exact: bool = False, counts: int = 0) -> dict[str, Any]:
    """`counts`: how many counters the official script adds up for these kinds, each of which begins at 0.001."""

    def share(above: str, below: str) -> Any:
        one, other = (sum(sums.get(f"{kind}.{name}", 0.0) for kind in kinds) for name in (above, below))
        return _rounded(_share(one, other, 0 if exact else counts or len(kinds)), exact)

    accuracy, precision, recall = share("right", "all"), share("no_right", "said_no"), share("no_right", "true_no")
    never_zero = 0 if exact else 0.001 if kinds == ("Existence",) else 0.0001
    f1 = ratio(2 * (precision / 100) * (recall / 100), precision / 100 + recall / 100 + never_zero, 100)
    return {"Accuracy": accuracy, "Precision": precision, "Recall": recall, "F1": _rounded(f1, exact)}


def _share(above: Any, below: Any, counters: int) -> Any:
    return ratio(above, below + 0.001 * counters) * 100


def _rounded(value: Any, exact: bool) -> Any:
    if exact:
        return value
    return np.round(value, 1) if isinstance(value, np.ndarray) else round(value, 1)


BENCHES = (Amber(),)
