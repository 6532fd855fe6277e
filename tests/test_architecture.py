"""docs/architecture.md walks through the house twice, with the config and with a record: both are held to the code."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from functools import reduce
from pathlib import Path
from types import ModuleType

from mmfast.config.schema import Section
from mmfast.train import train
from tests.make.tiny_run import make_config, write_pairs
from tests.test_house import FLOORS, height, imports, modules

NO_ROOMS = {"_C", "recipe_files", "__main__"}  # what is built, what is linked, `python -m mmfast`
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
READERS, CARRIERS = 17, 14  # at most
PARTS_OF_A_JOB = {"config", "model", "reference", "parallel"}  # the Config and its own sections


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading of the page."""
    _, part = PAGE.read_text().split(f"\n## {heading}\n")
    lines = [line for line in part.split("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def reachable(start: str) -> set[str]:
    seen, coming = set(), [start]
    while coming:
        name = coming.pop()
        if name not in seen and name in modules():
            seen.add(name)
            coming += imports(name)
    return seen


def takes_config(name: str) -> bool:
    """Does a function of the module take the Config or a section of it, or read one from the Job?"""
    module, tree = importlib.import_module(f"mmfast.{name}"), ast.parse(modules()[name].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation is not None and _names_section(node.annotation, module):
            return True
        if isinstance(node, ast.Attribute) and node.attr in PARTS_OF_A_JOB and _is_job(node.value):
            return True
    return False


def _is_job(owner: ast.expr) -> bool:
    return getattr(owner, "attr", getattr(owner, "id", "")) == "job"


def _names_section(annotation: ast.expr, module: ModuleType) -> bool:
    for part in ast.walk(annotation):
        if isinstance(part, ast.Name | ast.Attribute):
            try:
                kind = reduce(getattr, ast.unparse(part).split("."), module)
            except AttributeError:  # a builtin, or imported for type checkers alone
                continue
            if isinstance(kind, type) and issubclass(kind, Section) and kind.__module__ == Section.__module__:
                return True
    return False


def test_the_walk_of_the_config_names_every_module_that_reads_it():
    told = [module.strip("`") for _, module, *_ in rows("The walk of the config")]
    readers = {name for name in reachable("train") if name.split(".")[0] != "config" and takes_config(name)}
    readers |= {"config.toml"}  # of the room itself: what a run writes beside it
    assert set(told) == readers
    assert len(told) == len(set(told)) <= READERS


def test_nobody_else_reads_it_in_a_run(tiny, tmp_path, monkeypatch):
    """Seen while a run goes on, with LoRA, a reference, evaluation, samples and an export: who asks for a key."""
    readers: set[str] = set()
    ask = Section.__getattribute__

    def noted(section: Section, name: str) -> object:
        if type(section).__module__ == Section.__module__ and name in type(section).model_fields:
            readers.add(sys._getframe(1).f_globals["__name__"])
        return ask(section, name)

    (tmp_path / "held-out").mkdir()
    held_out = write_pairs(tmp_path / "held-out", 4)
    keys = {"train.steps": 2, "train.eval_every": 1, "train.eval_samples": 1, "train.best_metric": "eval/loss"}
    keys |= {"data.eval_path": str(held_out), "model.lora.r": 4, "export.formats": ["hf"]}
    config = make_config(tmp_path, *tiny, **keys)
    with monkeypatch.context() as patch:
        patch.setattr(Section, "__getattribute__", noted)
        train(config)
    seen = {name.removeprefix("mmfast.") for name in readers if name.startswith("mmfast.")}
    told = {module.strip("`") for _, module, *_ in rows("The walk of the config")}
    assert {name for name in seen - told if name.split(".")[0] != "config"} == set()
    assert told - seen == {"models.sharded", "config.toml"}, "of more ranks than one; asks for no single key"


def test_a_reader_of_the_config_is_seen():
    assert takes_config("training.optim"), "by a section in an annotation"
    assert takes_config("training.preflight"), "by the Job's config"
    assert not takes_config("packing.plan") and not takes_config("data.build")


def test_the_walk_of_a_record_names_what_there_is():
    table = rows("The walk of a record")
    assert [number for number, *_ in table] == [str(n) for n in range(1, len(table) + 1)] and len(table) <= CARRIERS
    for _, carrier, place, *_ in table:
        module, _, name = place.strip("`").partition(":")
        assert reduce(getattr, name.split("."), importlib.import_module(f"mmfast.{module}")), f"{carrier}: {place}"


def test_a_record_climbs():
    """The carriers are made on ever higher floors: data, packing, models, then what the loop is made of."""
    floors = [height(place.strip("`").split(".")[0]) for _, _, place, *_ in rows("The walk of a record")]
    ops = height("ops")
    above = [floor for floor in floors if floor != ops]
    assert above == sorted(above)


def test_the_picture_shows_every_room():
    picture = (PAGE.parent / "house.svg").read_text()
    shown = set(re.findall(r'class="name(?: small)?"[^>]*>([\w ,]+)<', picture))
    rooms = {room for floor in FLOORS.values() for room in floor.split()} - NO_ROOMS
    assert rooms - shown == set()


def test_each_room_has_its_sentence():
    told = {room for cells in rows("The rooms") for room in re.findall(r"`(\w+)`", cells[0])}
    assert told == {room for floor in FLOORS.values() for room in floor.split()} - NO_ROOMS
