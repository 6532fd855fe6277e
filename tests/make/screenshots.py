"""The pictures of docs/correcting.md: `python -m tests.make.screenshots FOLDER`. Captions of the embedded world are
corrected by its own annotation, so that what the pictures show is right."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from mmfast.engines.people_desk import Desk
from mmfast.engines.people_server import Page
from mmfast.feedback.answers import read_answers
from mmfast.feedback.correct import KINDS, TASKS, Plan, fill, prepare
from mmfast.world.dataset import WorldSpec, write_world
from mmfast.world.grammar import NUMBERS
from tests.make.browser import Tab, browser
from tests.make.people_cases import Client

CAPTIONS = 8


def flaws(record: dict[str, Any]) -> list[str]:
    """The wrong words of a record's rejected caption."""
    text = record["rejected"][0]["content"][0]["text"]
    return [text[a:b].strip() for a, b, _ in record["segments"]["rejected"]]


def write_captions(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Flawed captions as answers, two of each picture: the flawed one and the true one; and the world's records."""
    world = write_world(folder / "world", WorldSpec(base=1, pairs=40, groups=1, group_size=2, test=1))
    records = [json.loads(line) for line in (world / "pairs.jsonl").read_text().splitlines()]
    records = [r for r in records if len({kind(words) for words in flaws(r)}) > 1][:CAPTIONS]
    out = folder / "answers"
    out.mkdir()
    (out / "manifest.json").write_text(json.dumps({"stage": "generate", "complete": True}))
    with (out / "rows-0.jsonl").open("w") as file:
        for n, record in enumerate(records):
            for sample, side in enumerate(("rejected", "chosen")):
                row = {"key": f"k{n}.{sample}", "row": n, "group": f"g{n}", "sample": sample, "meta": {}}
                row |= {"images": [str(world / record["images"][0])], "prompt": record["prompt"]}
                row["answer"] = record[side][0]["content"][0]["text"]
                file.write(json.dumps(row) + "\n")
    return out, records


class Shown:
    """A page on the captions, for one task."""

    def __init__(self, folder: Path, answers: Path, task: str, only: str = "") -> None:
        plan = Plan(task=task)
        some = (answer for answer in read_answers(answers) if not only or answer.key.endswith(only))
        cards, _ = prepare(folder, plan, some, "answers")
        self.desk = Desk(folder)
        fill(self.desk, cards, plan)
        self.page = Page(self.desk, title=TASKS[task])
        self.url = self.page.url

    def close(self) -> None:
        self.page.close()
        self.desk.close()


def kind(words: str) -> str:
    """Of a flaw of the world."""
    if words.isupper():
        return "text"
    places = ("left", "right", "above", "below")
    return "position" if words.split()[0] in places else "count" if words in NUMBERS.values() else "object"


def main(target: Path) -> None:
    with tempfile.TemporaryDirectory() as made, browser() as chromium:
        folder = Path(made)
        answers, records = write_captions(folder)

        # A few cards are done, so that there is a pace; the next one is marked by its true words
        shown = Shown(folder / "correct", answers, "correct", only=".0")
        anna = Client(shown.url, "anna")
        anna.act("look")
        for n in range(3):
            anna.act("done", work={"segments": []}, seconds=31 + 9 * n)
        record = records[3]
        old, new = (record[side][0]["content"][0]["text"] for side in ("rejected", "chosen"))
        sides = [record["segments"][side] for side in ("rejected", "chosen")]
        wrong = []
        for (a, b, _), (c, d, _) in zip(*sides, strict=True):
            blanks = len(old[a:b]) - len(old[a:b].lstrip())  # the world's spans have some on both sides
            wrong.append((a + blanks, old[a:b].strip(), new[c:d].strip()))
        first, words, told = wrong[0]
        marked = {"span": [first, first + len(words)], "kind": kind(words), "to": told}
        anna.act("draft", work={"segments": [marked]}, push=True)
        for name, options in (("marking", {}), ("dark", {"color_scheme": "dark"})):
            tab = Tab(chromium, shown.url, "anna", device_scale_factor=1.25, **options)
            # Go to the second wrong word as a person would, and rewrite it
            first, words, told = wrong[1]
            while tab.page.get_attribute(".answer .cursor", "data-from") != str(first):
                tab.keys("ArrowRight")
            tab.keys(*["Shift+ArrowRight"] * (len(words.split()) - 1), str(KINDS.index(kind(words)) + 1))
            tab.type(told)
            if name == "dark":
                tab.keys("Enter")
            tab.saved()
            tab.page.screenshot(path=target / f"correct-{name}.png")
            if name == "marking":
                tab.keys("Enter", "u")
                tab.saved()
            tab.close()
        shown.close()

        for task in ("compare", "rate"):
            shown = Shown(folder / task, answers, task)
            tab = Tab(chromium, shown.url, "anna", device_scale_factor=1.25)
            if task == "rate":
                tab.keys("2", "1", "4")
                tab.saved()
            tab.page.screenshot(path=target / f"correct-{task}.png")
            tab.close()
            shown.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
