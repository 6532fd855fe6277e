"""Wrong, torn and foreign files of a benchmark end in one line that names the file: a ValueError, never another error."""

import pytest

from mmfast.evals.base import Data
from mmfast.evals.benches import benches

NAMES = (
    *("alpacaeval", "gqa", "hallusionbench", "llava-bench-coco", "llava-bench-wild", "mm-vet", "mmbench", "mmbench-cn"),
    *("mme", "mmhal", "mmstar", "mt-bench", "pope", "qbench", "refomb", "scienceqa", "seed", "textvqa", "vizwiz"),
    *("vqav2", "world"),
)
WRONG = (
    b"",
    b"\n\n",
    b"[]",
    b"{}",
    b"[1]",
    b"[[]]",
    b"[null]",
    b"null",
    b"3",
    b'"text"',
    b'{"a": 1}',
    b'{"a": {}}',
    b'{"a": []}',
    b'[{"question_id": 1}]',
    b'{"question_id": 1}\n{"question_id": 2}\n',
    b'[{"image": "a", "question": 3}]',
    b"\xff\xfe\x00",
    b'{"data": 3}',
    b'{"data": [1]}',
    b'{"questions": {}}',
    b'{"questions": [[]], "question_type": {}}',
    b'{"test": ["1"]}',
    b'{"1": {"question": "q"}}',
    b'{"question_type": [], "questions": []}',
    b"a\tb\n1\t2\n",
    b"index\tquestion\timage\tA\n1\t2\n",
    b"a\tq\tYes\nb\tq\tNo\n",
    b"<html>",
    b"version https://git-lfs.github.com/spec/v1\n",
)


@pytest.mark.parametrize("name", NAMES)
def test_every_wrong_file_ends_in_one_line(name, tmp_path):
    bench = benches()[name]
    for content in WRONG:
        for file in bench.files.values():
            path = tmp_path / file.names[0].replace("[0-9]*", "1").replace("*", "")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            found = list(bench.questions(Data(tmp_path, bench), next(iter(bench.wordings.values()))))
        except ValueError as error:
            assert str(error)
        else:
            assert all(question.turns for question in found)
