"""The stage `check`: does the image show what answers say of it? A row for each distinct item of an image, however many
answers say it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rich.console import Console

from mmfast.data.problems import BadRow
from mmfast.engines import stage
from mmfast.engines.asked import Pictures
from mmfast.engines.base import Picture, Reply, Request, canonical, key_of
from mmfast.engines.manifests import agreed
from mmfast.engines.stage import MANIFEST, Owned, Stage, Tally
from mmfast.feedback.experts import FALSE, OPEN, TRUE, UNSEEN, Verdict, names_of
from mmfast.feedback.items import Decomposed, Item, read_items
from mmfast.feedback.panel import Panel, Question
from mmfast.feedback.routing import Routing
from mmfast.job.runtime import Runtime
from mmfast.progress import Parts

NAME, VERSION = "check", 1


@dataclass
class Wanted:
    """All that is said of one image, or of the images of one answer: distinct items in the order in which answers say
    them, each with the row and place of its first answer."""

    paths: tuple[str, ...]
    images: tuple[Picture, ...] = ()
    problem: str = ""
    items: dict[str, tuple[Item, int, str]] = field(default_factory=dict)
    said: Counter[str] = field(default_factory=Counter)  # item -> answers that say it


def check(
    source: Path, out: Path, panel: Panel, runtime: Runtime, *, limit: int = 0, debug: int = 0, allow: float = 0.0
) -> Tally:
    """Check the items of a folder that `decompose` wrote. `limit`: how many answers are read (0: all)."""
    # What is to be checked, and by whom
    wanted = gathered(source, Pictures(Path("/"), out), limit)
    check_routes(panel.opened.routing, {item.kind for some in wanted.values() for item, _, _ in some.items.values()})
    routing, identity = panel.opened.routing, agreed(panel, runtime)
    digest = {"identity": hashlib.sha256(canonical(identity).encode()).hexdigest()}

    def items(owned: Owned) -> Iterator[stage.Item | None]:
        for some in wanted.values():
            yield from _items(some, panel, digest, owned)

    def row(item: stage.Item, reply: Reply) -> dict[str, Any]:
        assert item.request is not None
        return item.fields | _row(panel.verdicts.pop(item.request.key))

    made_by = {
        "stage": NAME,
        "version": VERSION,
        "engine": identity,
        "template": {routing.name: {"digest": routing.digest}},
        "input": source.name,
    }
    work = Stage(out=out, made_by=made_by, items=items, row=row, whole=not limit, counts=counted)
    # Check
    total = sum(len(some.items) for some in wanted.values())
    with Parts(Console(stderr=True)) as progress:
        bar = progress.part("check" + (f" (rank 0 of {runtime.world})" if runtime.world > 1 else ""))

        def follow(waiting: int, note: str) -> None:
            bar(min(max(len(panel.questions) - waiting, 0), total), total, note)

        return stage.run(
            work, panel, runtime, debug=debug, allow=allow, follow=follow if runtime.main else lambda *_: None
        )


def gathered(source: Path, pictures: Pictures, limit: int = 0) -> dict[str, Wanted]:
    """By image, in the order of the answers."""
    by_paths: dict[tuple[str, ...], Wanted] = {}
    found: dict[str, Wanted] = {}
    for answer in islice(read_items(source), limit or None):
        if answer.images not in by_paths:
            looked = _looked_up(answer, pictures)
            name = canonical([picture.id for picture in looked.images] if looked.images else list(answer.images))
            by_paths[answer.images] = found.setdefault(name, looked)
        some = by_paths[answer.images]
        for item in answer.items:
            some.items.setdefault(item.name, (replace(item, span=None), answer.row, answer.source))
            some.said[item.name] += 1
    return found


def _looked_up(answer: Decomposed, pictures: Pictures) -> Wanted:
    if not answer.images:
        return Wanted((), problem="the answer has no image to check it by")
    try:
        return Wanted(answer.images, tuple(pictures.look_up(path)[0] for path in answer.images))
    except (BadRow, OSError) as error:
        return Wanted(answer.images, problem=str(error))


def kinds_of(source: Path, limit: int = 0) -> set[str]:
    """The kinds of items of a folder, which must hold some answer."""
    answers = iter(islice(read_items(source), limit or None))
    first = next(answers, None)
    if first is None:
        raise ValueError(f"{source} holds no answer that was taken apart (mmfast decompose writes them)")
    return {item.kind for answer in chain([first], answers) for item in answer.items}


def check_routes(routing: Routing, kinds: set[str]) -> None:
    if missing := sorted(kinds - set(routing.content.route)):
        raise ValueError(
            f"--experts {routing.name}: no expert is given the kind {missing[0]}: add it to [route] "
            f'({missing[0]} = "skip" leaves it unchecked)'
        )


def _items(some: Wanted, panel: Panel, digest: dict[str, Any], owned: Owned) -> Iterator[stage.Item | None]:
    mine = owned(some.images[0].id if some.images else canonical(list(some.paths)))
    names = [name for item, _, _ in some.items.values() for name in names_of(item, panel.whole)]
    for item, row, source in some.items.values():
        if not mine:
            yield None
            continue
        fields: dict[str, Any] = {"images": list(some.paths), "image": "+".join(picture.id for picture in some.images)}
        fields |= {name: value for name, value in item.row().items() if name != "span"}
        fields |= {"expert": panel.content.route[item.kind].expert, "answers": some.said[item.name]}
        if some.problem:
            yield stage.Item(row=row, source=source, problem=some.problem, fields=fields)
            continue
        shown = [{"type": "image"}] * len(some.images)
        text = {"type": "text", "text": item.question or f"{item.kind}: {item.claim}"}
        request = Request(key="", messages=({"role": "user", "content": [*shown, text]},), images=some.images)
        key = key_of(stage=NAME, version=VERSION, engine=digest, request=request, template=item.name)
        request = replace(request, key=key)
        panel.questions[key] = Question(item, some.images, tuple(dict.fromkeys(names)))
        yield stage.Item(row=row, source=source, request=request, fields=fields)


def _row(verdict: Verdict) -> dict[str, Any]:
    return {
        "verdict": verdict.value,
        "p_yes": verdict.p_yes,
        "question_ok": verdict.question_ok,
        "evidence": verdict.evidence,
    }


def counted(rows: Iterator[dict[str, Any]]) -> dict[str, int]:
    """Verdicts by kind, and why some are open."""
    names = {TRUE: "true", FALSE: "false", OPEN: "open", UNSEEN: "of things not there"}
    found: Counter[str] = Counter()
    why: Counter[str] = Counter()
    for row in rows:
        found[f"{row['kind']} {names[row['verdict']]}"] += 1
        if row["verdict"] == OPEN:
            why[f"open: {row['evidence'].get('why', '?')}"] += 1
    return dict(sorted(found.items())) | dict(why.most_common(5))


class Verdicts:
    """The rows of a checked folder, by image and item."""

    def __init__(self, folder: str | Path) -> None:
        if not (Path(folder) / MANIFEST).is_file():
            raise ValueError(f"{folder} is no folder of verdicts: it has no {MANIFEST} (mmfast check writes one)")
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        for row in stage.rows(folder):
            self.rows[row["image"], Item.of(row).name] = row
        self.pictures = Pictures(Path("/"), Path(folder))

    def of(self, images: tuple[str, ...], item: Item) -> dict[str, Any] | None:
        """None where it was not checked."""
        ids = "+".join(self.pictures.look_up(path)[0].id for path in images)
        return self.rows.get((ids, item.name))
