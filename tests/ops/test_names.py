"""One word an op, from the wrapper to the bench: the table of docs/ops/README.md, held to the files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmfast import ops

ROOT = Path(__file__).parents[2]
WORDS = sorted(set(ops._HOMES.values()))
SHARED = {"gemm", "isa", "scratch", "image", "plan", "tree", "half"}
SHARED |= {"bindings", "common", "emulate", "version", "ops", "decode", "__init__"}
PAGE = (ROOT / "docs/ops/README.md").read_text()


@pytest.mark.parametrize("folder", ["kernels", "csrc/cpu", "csrc/cuda"])
def test_a_native_file_has_the_word_of_its_op(folder: str) -> None:
    for path in (ROOT / folder).iterdir():
        if path.suffix in (".py", ".cpp", ".cu", ".h", ".cuh"):
            name = path.name.split(".")[0]
            assert any(name == w or name.startswith(w + "_") for w in [*WORDS, *SHARED]), path


@pytest.mark.parametrize("word", WORDS)
def test_every_op_has_a_row_and_the_tests_of_its_word(word: str) -> None:
    (row,) = (line for line in PAGE.splitlines() if re.match(rf"\| \[\w+\]\(\w+\.md\) \| {word} \|", line))
    wrapper, native, triton, _, bench = row.split(" | ")[2:]
    assert (ROOT / "tests/ops" / f"test_{word}.py").exists()
    folders = ("mmfast/ops", "csrc", "kernels", "bench")
    for folder, column in zip(folders, (wrapper, native, triton, bench), strict=True):
        for name in re.findall(r"`([^`]+)`", column):
            assert list((ROOT / folder).glob(name)), f"{word}: {folder}/{name} is not there"
