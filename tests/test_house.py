"""The house: every module has a floor, none imports from a floor above its own, and no imports run in a circle."""

from __future__ import annotations

import ast
import importlib.util
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"

# From the top. A name stands for a module or a folder of mmfast/; the longest name that fits a module is its place.
FLOORS = {
    "commands": "__main__ cli demo papers",
    "rounds": "rounds reproduce",
    "train": "train",
    "training": "training",
    "feedback and evals": "feedback evals",
    "reference and engines": "reference engines",
    "job": "job",
    "models": "models",
    "packing and world": "packing world",
    "data and config": "data config doctor",
    "families": "families",
    "ops": "ops",
    "tools": "files directory packages progress pages",
    "native": "_C kernels csrc recipe_files",
}
# Lines of each room: its size when the house was put in order, and 5% more (`python tests/test_house.py` counts).
BUDGETS: dict[str, int] = {
    "__main__": 7,  # 6
    "cli": 654,  # 622
    "demo": 205,  # 195
    "train": 426,  # 405
    "training": 1811,  # 1724
    "feedback": 658,  # 626
    "evals": 437,  # 416
    "reference": 636,  # 605
    "engines": 4576,  # 4358
    "job": 1154,  # 1099
    "models": 1935,  # 1842
    "packing": 910,  # 866
    "world": 1130,  # 1076
    "data": 5392,  # 5135
    "config": 818,  # 779
    "doctor": 319,  # 303
    "families": 1193,  # 1136
    "ops": 3400,  # 3238
    "files": 172,  # 163
    "directory": 79,  # 75
    "packages": 70,  # 66
    "progress": 113,  # 107
    "pages": 60,  # 57
    "kernels": 758,  # 721
    "csrc": 3350,  # 3190
    "rounds": 1087,  # 1035
    "papers": 2150,  # 2047
    "reproduce": 904,  # 861
}
# What a room was given beyond that: lines and the reason, which every run of these tests prints.
RAISES: dict[str, list[tuple[int, str]]] = {
    "cli": [
        (155, "mmfast generate, a command of its own with some twenty options"),
        (1450, "a command for each stage of feedback, mmfast correct and mmfast eval, each with its options"),
        (330, "mmfast rounds and logprobs; orders, records and prices for the stages, a template for evaluations"),
        (150, "mmfast init, import, train --gpus, demo --papers, corrections by an engine"),
        (290, "mmfast reproduce, data prompts with an option for each thing a paper chose, pairs by CHAIR"),
    ],
    "engines": [
        (1400, "people as an engine, the page's server, retries of what cannot be read, stored prompts"),
        (520, "a decode step of fixed shapes for CUDA graphs, finished answers scored, the world's own claims"),
    ],
    "evals": [
        (6800, "the protocol, some twenty-five benchmarks, and the words under CHAIR and AMBER"),
        (150, "GQA's further figures, Q-Bench's judge, the best checkpoint by a margin"),
    ],
    "feedback": [
        (6400, "the stages critique to correct, the experts, and the files of five published pipelines"),
        (200, "log-probs of finished answers and the implicit reward, orders of a judge, added words"),
        (600, "prompt sets as four papers drew theirs from six published data sets, pairs by CHAIR"),
    ],
    "training": [
        (80, "[evaluate]: benchmarks inside a run"),
        (130, "staging of checkpoints (torch 2.11's dies at its second use), a margin for the best, cached towers"),
        (110, "SIMA's released loss, the native layout, recipes of whole systems"),
        (
            800,
            "a report with curves, samples side by side and what differs; signs of collapse; what is said while a run "
            "goes on and at its end; samples and tables for three trackers",
        ),
    ],
    "models": [
        (180, "the last layer for the rows that are read; float32 without TF32"),
        (420, "mmfast import, the native layout in and out, blocks of a tower that train"),
    ],
    "kernels": [(350, "Triton kernels of a decode step; the formulas of the losses, which ops had")],
    "csrc": [
        (60, "tree_attention on CPU and what follows the head's last tile, less what bindings by declaration saved")
    ],
    "config": [
        (
            120,
            "every key of two other trainers' DPO configs, with its name here or why it has none; SIMA's released loss",
        ),
        (25, "keys of hub data sets, names of ms-swift"),
    ],
    "data": [
        (60, "the marks of Qwen-VL and Muffin, runner-up tokens"),
        (
            750,
            "data sets by hub id, six more formats of other trainers, pictures with words among their slots, progress",
        ),
    ],
    "job": [(45, "the commit of a hub's data set is kept, errors that are one line, what of a report lies in a run")],
    "packages": [(12, "warnings of others that mean nothing for a run; TOML on Python 3.10")],
    "progress": [(50, "one bar that fits its line, plain lines without a terminal, the time that is left")],
    "pages": [(210, "charts, differences and tiles that every page shares: matplotlib is gone from a run's report")],
    "directory": [
        (800, "LLaVA's native layout: its folders, pickles as tensors alone, its tokenizer without a slow one")
    ],
    "families": [(1200, "Qwen-VL and Muffin, whose models transformers does not have")],
    "files": [(15, "digests of a native folder's weights")],
    "packing": [(30, "runner-up tokens in a Pack, words among an image's slots")],
    "rounds": [(420, "judges, costs and curves of rounds, pairs that are there, full disks")],
    "world": [
        (150, "corrections of what a model itself said"),
        (25, "which words of a caption are wrong, for the demo's page"),
    ],
}
# setup.py and CMake; the package as a whole, and what stands beside it
ABOUT_ALL = ("test_build.py", "test_house.py", "test_architecture.py", "test_examples.py")
LONGEST = 420  # lines of a file

# What breaks a rule today -> the step of issue 10 that ends it. It shrinks: what is mended must leave the list.
UPWARD: dict[tuple[str, str], str] = {}
CIRCLES: dict[tuple[str, ...], str] = {}
LONG: dict[str, str] = {}


@cache
def modules() -> dict[str, Path]:
    """The modules of mmfast by their names without "mmfast."; a folder's __init__ has the folder's name."""
    return {_name(path): path for path in sorted((ROOT / "mmfast").rglob("*.py"))}


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT / "mmfast").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of mmfast that a module imports anywhere, except for type checkers alone."""
    path = modules()[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return frozenset(imported_by(path.read_text(), package)) - {module, ""}


def imported_by(source: str, package: str = "") -> Iterator[str]:
    for node in _nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            home = node.module or ""
            if node.level:
                home = importlib.util.resolve_name("." * node.level + home, f"mmfast.{package}".rstrip("."))
            inside = [f"{home}.{alias.name}" for alias in node.names]
            names = [name if _is_module(name) else home for name in inside]
        else:
            continue
        yield from (name.removeprefix("mmfast").removeprefix(".") for name in names if name.split(".")[0] == "mmfast")


def _is_module(name: str) -> bool:
    short = name.removeprefix("mmfast.")
    return short in modules() or short.split(".")[0] in ("kernels", "_C")


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for other in node.orelse:
                yield other
                yield from _nodes(other)
            continue
        yield node
        yield from _nodes(node)


def place(module: str) -> str:
    """The longest name in the table that the module lies in; "" where there is none."""
    names = {name for floor in FLOORS.values() for name in floor.split()}
    while module and module not in names:
        module = module.rpartition(".")[0]
    return module


def height(name: str) -> int:
    """Floors below: the larger, the higher."""
    return next(len(FLOORS) - i for i, floor in enumerate(FLOORS.values()) if name in floor.split())


def lines(room: str) -> int:
    """Of a folder or module of mmfast/, or of a folder beside it."""
    home = ROOT / "mmfast" / room
    home = home if home.is_dir() else home.with_suffix(".py") if home.with_suffix(".py").exists() else ROOT / room
    files = [home] if home.is_file() else [p for p in home.rglob("*") if p.suffix in (".py", ".cpp", ".h", ".cu")]
    return sum(len(path.read_text().splitlines()) for path in files)


def budget(room: str) -> int:
    return BUDGETS[room] + sum(more for more, _ in RAISES.get(room, []))


def table() -> str:
    """The floors as CONTRIBUTING.md shows them."""
    rows = ["| floor, from the top | its rooms, and how many lines each may have |", "|---|---|"]
    for floor, rooms in FLOORS.items():
        rows.append(f"| {floor} | {', '.join(f'{room} {budget(room)}' for room in rooms.split() if room in BUDGETS)} |")
    return "\n".join(rows)


def circles(arrows: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """The groups of names of which each can reach each other."""
    reach = {name: set(ends) for name, ends in arrows.items()}
    for middle in arrows:
        for name, ends in reach.items():
            if middle in ends and name != middle:
                ends |= reach[middle]
    return sorted({tuple(sorted(b for b in reach[a] if a in reach[b])) for a in reach if a in reach[a]})


def test_every_module_has_a_floor():
    assert [name for name in modules() if name and not place(name)] == []
    named = {name for floor in FLOORS.values() for name in floor.split()}
    gone = {name for name in named if not any(name == m or m.startswith(name + ".") for m in modules())}
    assert gone == {"_C", "kernels", "csrc", "recipe_files"}, "a floor names what is no longer there"


def test_what_is_imported_is_there():
    native = FLOORS["native"].split()
    ends = {(a, b) for a in modules() for b in imports(a) if b.split(".")[0] not in native}
    assert {(a, b) for a, b in ends if b not in modules()} == set()


def test_no_module_imports_from_a_floor_above_its_own():
    upward = {(a, b) for a in modules() if a for b in imports(a) if height(place(b)) > height(place(a))}
    assert {(a, b) for a, b in upward if (a, b) not in UPWARD} == set()
    assert set(UPWARD) - upward == set(), "mended: take it off the list"


def test_no_imports_run_in_a_circle():
    found = circles({name: set(imports(name)) & set(modules()) for name in modules()})
    assert [circle for circle in found if circle not in CIRCLES] == []
    assert set(CIRCLES) - set(found) == set(), "mended: take it off the list"


def test_no_rooms_import_in_a_circle():
    rooms: dict[str, set[str]] = {}
    for name in filter(None, modules()):
        ends = {b.split(".")[0] for b in imports(name) if (name, b) not in UPWARD}
        rooms.setdefault(name.split(".")[0], set()).update(ends - {name.split(".")[0]})
    assert circles({room: ends & rooms.keys() for room, ends in rooms.items()}) == []


def test_few_files_stand_outside_a_room():
    assert len(list((ROOT / "mmfast").glob("*.py"))) <= 9


def test_a_file_is_read_in_one_sitting():
    files = [path for folder in ("mmfast", "kernels", "bench") for path in sorted((ROOT / folder).rglob("*.py"))]
    long = {path.relative_to(ROOT).as_posix() for path in files if len(path.read_text().splitlines()) > LONGEST}
    assert long - set(LONG) == set()
    assert set(LONG) - long == set(), "mended: take it off the list"


def test_a_room_keeps_to_its_budget(capsys):
    rooms = {name for floor in FLOORS.values() for name in floor.split()} - {"_C", "recipe_files"}
    assert set(BUDGETS) == rooms and set(RAISES) <= rooms
    with capsys.disabled():
        for room, raises in RAISES.items():
            print("".join(f"\n{room}: {more} lines more: {reason}" for more, reason in raises))
    over = {room: (lines(room), budget(room)) for room in BUDGETS if lines(room) > budget(room)}
    assert over == {}, "make it shorter, or raise its budget in RAISES with the reason"


def test_contributing_shows_the_floors():
    assert table() in (ROOT / "CONTRIBUTING.md").read_text(), f"put this table there:\n{table()}"


def test_a_long_function_says_its_steps():
    """Above 30 lines without its docstring: whole-line comments name the steps."""
    silent = []
    for name, path in modules().items():
        lines = path.read_text().splitlines()
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            own = lines[node.lineno - 1 : node.end_lineno]
            first = node.body[0]
            told = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(node) is not None else 0
            if len(own) - told > 30 and not any(line.lstrip().startswith("#") for line in own):
                silent.append(f"{name}.{node.name}")
    assert silent == []


def test_the_ops_stand_alone():
    """Another trainer imports an op and pulls in nothing else: no other module of mmfast, not even in a function."""
    assert imports("") == frozenset()
    outside = {(a, b) for a in modules() if place(a) == "ops" for b in imports(a) if height(place(b)) > height("_C")}
    assert {(a, b) for a, b in outside if place(b) != "ops"} == set()


def test_the_tests_mirror_the_house():
    """A folder or a file at the top is named after what it tests: a room of mmfast, or one of the folders beside it."""
    inside = [path for path in TESTS.rglob("*") if path.is_dir() and path.name[0] not in "_."]
    folders = [path for path in inside if "golden" not in path.relative_to(TESTS).parts]  # data, no tests
    files = [path for path in TESTS.glob("test_*.py") if path.name not in ABOUT_ALL]
    names = {path.relative_to(TESTS).with_suffix("").as_posix().removeprefix("test_") for path in folders + files}
    rooms = {name.replace(".", "/") for name in modules()} | {"make", "kernels", "bench"}
    assert names - rooms == set()


def test_the_page_of_claims_names_every_file_of_tests_and_no_other():
    told = set(re.findall(r"`([\w/]+/test_\w+\.py|test_\w+\.py|\w+/\w+\.json)`", (TESTS / "README.md").read_text()))
    there = {path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")}
    assert there - told == set(), "say in tests/README.md what they prove"
    assert {name for name in told if not (TESTS / name).exists()} == set()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from mmfast.train import train", ["train"]),
        ("def f():\n    import mmfast.train", ["train"]),
        ("if TYPE_CHECKING:\n    from mmfast.train import train", []),
        ("if typing.TYPE_CHECKING:\n    import mmfast.train\nelse:\n    import mmfast.doctor", ["doctor"]),
        ("from mmfast import train, doctor", ["train", "doctor"]),
        ("from . import train", ["train"]),
        ("from .. import train", ["train"]),
        ("from .dispatch import choose", ["ops.dispatch"]),
        ("import torch, mmfaster", []),
    ],
)
def test_an_import_is_seen_wherever_it_stands(source, found):
    package = "ops" if "dispatch" in source or ".." in source else ""
    assert list(imported_by(source, package)) == found


def test_a_circle_is_seen_however_long_it_is():
    arrows = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "e"}, "e": set()}
    assert circles(arrows) == [("a", "b", "c")]


@pytest.mark.slow
def test_an_imported_op_loads_no_other_module():
    code = "import sys; from mmfast.ops import *; print(*[m for m in sys.modules if m.startswith('mmfast.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {name.split(".")[1] for name in done.stdout.split()}
    assert loaded <= {"ops", "_C", "kernels"}


if __name__ == "__main__":  # the rooms' sizes, as a new table of budgets and as CONTRIBUTING's
    sizes = {room: lines(room) for room in BUDGETS}
    RAISES.clear()
    BUDGETS = {room: math.ceil(1.05 * size) for room, size in sizes.items()}
    print(
        "BUDGETS = {" + "".join(f'\n    "{room}": {BUDGETS[room]},  # {size}' for room, size in sizes.items()) + "\n}"
    )
    print(f"{sum(sizes.values())} lines in all, {sum(BUDGETS.values())} allowed\n\n{table()}")
