"""Mementos: does a description of several frames name the things and actions of the people's own?

A judge lists the objects and the actions of both; a graph of synonyms makes words of the prediction words of the
reference; then sets are compared, item by item, and each domain has the means. In the official script what is left of a
prediction, once every word of the reference is found, becomes one single element, whatever its length: precision is
mostly too high. `fixed` counts each word.
"""

from __future__ import annotations

import ast
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from mmfast.engines.base import Decode, Picture
from mmfast.evals.base import Answer, Benchmark, Call, Data, File, Mark, Question, Scoring, Sums, Wording, ratio
from mmfast.evals.judge import until_parsed
from mmfast.evals.reading import json_of
from mmfast.evals.synonym_graphs import LISTS, Graph, compared, graph_of, official_lists, replaced, strict_lists

DOMAINS = {"dl": "daily life", "robo": "robotics", "cmc": "comics"}
PARTS = ("object", "action")
REPOSITORY, LICENCE = "github.com/umd-huang-lab/Mementos", "none stated"
OWN = (
    "Two paragraphs describe one sequence of images: the first by a person, the second by a model. From each, list the "
    "objects (tangible things, at most two words each) and the actions of these objects (in their base form). Where "
    "both paragraphs mean the same thing by different words, use one word for it. Reply with these four lines only:\n"
    "Object list 1: [dog, toy]\nAction list 1: [bark, look up]\nObject list 2: [dog]\nAction list 2: [play]\n\n"
    "Paragraph 1: {}\n\nParagraph 2: {}\n"
)


class Mementos(Benchmark):
    name = "mementos"
    about = "objects and actions in descriptions of several frames"
    flavours = ("official", "fixed")
    wordings: ClassVar = {
        "own": Wording(
            suffix="The images show one sequence of events, in their order. Describe in one paragraph what happens.",
            decode=Decode(max_tokens=1024),
            about="ours: the official question is on no page that we know",
        )
    }
    files: ClassVar = {
        **{
            name: File(
                names=(f"{name}_description.csv",),
                what=f"the descriptions of {domain}",
                source=REPOSITORY,
                licence=LICENCE,
                optional=True,
            )
            for name, domain in DOMAINS.items()
        },
        **{
            f"{name}.{part}": File(
                names=(f"{name}_{part}_graph_v1.json", f"{name}_{part}_graph_v1.pkl"),
                what=f"the graph of {part}s of {domain}",
                source=f"{REPOSITORY} (sym_graphs)",
                licence=LICENCE,
            )
            for name, domain in DOMAINS.items()
            for part in PARTS
        },
        "prompt": File(
            names=("GPT-4-assisted_evaluation.ipynb",),
            what="the judge's prompt",
            source=REPOSITORY,
            licence=LICENCE,
            optional=True,
        ),
    }
    judge = "gpt-4-1106-preview"
    parsers_differ = True

    def questions(self, data: Data, wording: Wording) -> Iterator[Question]:
        there = [name for name in DOMAINS if data.path(name) is not None]
        if not there:
            raise ValueError(
                f"{data.folder} has none of {', '.join(f'{n}_description.csv' for n in DOMAINS)}: {REPOSITORY}"
            )
        for domain in there:
            for row in csv.DictReader(io.StringIO(data.read(domain).decode("utf-8-sig"))):
                image, description = (
                    next((row[name] for name in names if row.get(name)), "")
                    for names in (("image_name", "image"), ("description", "gt_description"))
                )
                if not image or not description:
                    raise ValueError(f"{data.path(domain)}: a row without an image or a description")
                name = image.rsplit(".", 1)[0]
                yield Question(
                    id=name,
                    turns=(wording.suffix,),
                    images=_frames(data, image, name),
                    unit=image,
                    truth={"domain": domain, "description": description},
                    official={"image_name": image},
                )

    def marks(self, questions: Sequence[Question], answers: Mapping[str, Answer], scoring: Scoring) -> Iterator[Mark]:
        # An empty answer is not shown to the judge: it has neither objects nor actions
        prompt, calls = _prompt(scoring), []
        for question in questions:
            if text := answers[question.id].text.strip():
                message = {"role": "user", "content": prompt.format(question.truth["description"], text)}
                calls.append(Call(key=question.id, messages=(message,), decode=Decode(max_tokens=1000)))
        parse = strict_lists if scoring.strict else official_lists
        found = until_parsed(scoring.judged_by(), calls, parse, counts=scoring.counts) if calls else {}
        # Then it has lists, and these marks
        graphs: dict[str, Graph] = {}
        for question in questions:
            lists = found[question.id][0] if question.id in found else {name: [] for name in LISTS}
            if lists is not None:
                yield self._mark(question, lists, graphs, scoring)
        if lost := [key for key, (lists, _) in found.items() if lists is None]:
            scoring.notes.append(
                f"{len(lost)} items are left out, for no reply of the judge had the four lists (the first: {lost[0]})"
            )

    def _mark(
        self, question: Question, lists: Mapping[str, list[str]], graphs: dict[str, Graph], scoring: Scoring
    ) -> Mark:
        domain, fixed = question.truth["domain"], scoring.flavour == "fixed"
        sums = {f"{domain}.items": 1.0}
        for part in PARTS:
            role = f"{domain}.{part}"
            if role not in graphs:
                graphs[role] = graph_of(scoring.data.read(role), role)
            reference, said = (lists[f"{part.capitalize()} list {number}"] for number in (1, 2))
            as_said = replaced(reference, said, graphs[role], pairs=part == "action", fixed=fixed)
            for metric, value in zip(("recall", "precision", "f1"), compared(reference, as_said), strict=True):
                sums[f"{role}.{metric}"] = value
        return Mark(id=question.id, unit=question.unit, sums=sums, told=dict(lists))

    def metrics(self, sums: Sums, flavour: str) -> dict[str, Any]:
        out = {}
        for domain in DOMAINS:
            for name in [name for name in sums if name.startswith(f"{domain}.") and name != f"{domain}.items"]:
                out[name] = ratio(sums[name], sums[f"{domain}.items"], 100)
        return out


def _prompt(scoring: Scoring) -> str:
    """The official prompt is a text in the official notebook, which is read and not run."""
    if scoring.data.path("prompt") is None:
        scoring.own_prompt = True
        return OWN
    for cell in json_of(scoring.data, "prompt").get("cells", ()):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and LISTS[-1] in source:
            try:
                texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
            except SyntaxError:
                continue
            for text in texts:
                if isinstance(text, str) and LISTS[-1] in text and text.count("{}") == 2:
                    return text
    raise ValueError("GPT-4-assisted_evaluation.ipynb has no prompt for two paragraphs: give Mementos' own file")


def _frames(data: Data, image: str, name: str) -> tuple[Picture, ...]:
    """The files of a folder of that name, or the one image that holds all frames."""
    folder = data.images / name
    if not folder.is_dir():
        return (data.picture(image),)
    files = sorted((f for f in folder.iterdir() if f.is_file()), key=lambda f: (len(f.stem), f.stem))
    return tuple(Picture(str(file)) for file in files)


BENCHES = (Mementos(),)
