"""Wrong, torn and foreign files of a benchmark end in one line: a ValueError, never another error."""

import json
import random

import pytest

from mmfast.evals.base import Data
from mmfast.evals.benches import benches
from tests.make.marking import golden

NAMES = (
    *("alpacaeval", "gqa", "hallusionbench", "llava-bench-coco", "llava-bench-wild", "mm-vet", "mmbench", "mmbench-cn"),
    *("mme", "mmhal", "mmstar", "mt-bench", "pope", "qbench", "refomb", "scienceqa", "seed", "textvqa", "vizwiz"),
    *("vqav2", "world"),
)
WRONG = (
    *("", "\n\n", "[]", "{}", "[1]", "[[]]", "[null]", "null", "3", '"text"', '{"a": 1}', '{"a": {}}', '{"a": []}'),
    *('[{"question_id": 1}]', '{"question_id": 1}\n{"question_id": 2}\n', '[{"image": "a", "question": 3}]', "\udcff"),
    *('{"data": 3}', '{"data": [1]}', '{"questions": {}}', '{"questions": [[]], "question_type": {}}', "<html>"),
    *('{"test": ["1"]}', '{"1": {"question": "q"}}', '{"question_type": [], "questions": []}', "a\tb\n1\t2\n"),
    *("index\tquestion\timage\tA\n1\t2\n", "a\tq\tYes\nb\tq\tNo\n", "version https://git-lfs.github.com/spec/v1\n"),
)
ITEMS = {name.partition("@")[0]: files for name, files in golden("prompts/items.json").items() if "/" not in name}


def ends_in_one_line(bench, folder):
    try:
        found = list(bench.questions(Data(folder, bench), next(iter(bench.wordings.values()))))
    except ValueError as error:
        assert str(error)
    else:
        assert all(question.turns for question in found)


@pytest.mark.parametrize("name", NAMES)
def test_every_wrong_file(name, tmp_path):
    bench = benches()[name]
    for content in WRONG:
        for file in bench.files.values():
            path = tmp_path / file.names[0].replace("[0-9]*", "1").replace("*", "")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, errors="surrogateescape")
        ends_in_one_line(bench, tmp_path)


def changed(value, rng):
    """A file's content with one thing in it lost or of another kind."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.3:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        return [*value[:place], changed(value[place], rng), *value[place + 1 :]]
    return rng.choice((None, 3, -1, 2.5, "", "x", [], {}, [1], {"a": 1}, True))


@pytest.mark.parametrize("name", ITEMS)
def test_files_with_one_thing_changed(name, tmp_path):
    bench, rng = benches()[name], random.Random(name)
    for _ in range(60):
        torn = rng.choice(list(ITEMS[name]))
        for file, content in ITEMS[name].items():
            if file == torn and file.endswith(".jsonl"):
                rows = changed([json.loads(line) for line in content.splitlines()], rng)
                content = "".join(json.dumps(row) + "\n" for row in (rows if isinstance(rows, list) else [rows]))
            elif file == torn and content.lstrip()[:1] in ("[", "{") and "\n" not in content.strip():
                content = json.dumps(changed(json.loads(content), rng))
            elif file == torn:
                place = rng.randrange(len(content))
                content = content[:place] + rng.choice(("", "\t", "\n", '"', "x")) + content[place + rng.randrange(9) :]
            (tmp_path / file).write_text(content)
        ends_in_one_line(bench, tmp_path)
