"""The table of loss kinds, which the config reads too, and the package that gives an op when it is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmfast import ops

ROOT = Path(__file__).parents[2]


def test_every_public_op_is_there():
    assert set(ops.__all__) == set(ops._HOMES) <= set(dir(ops))
    for name in ops.__all__:
        assert getattr(ops, name).__module__ == f"mmfast.ops.{ops._HOMES[name]}"
    with pytest.raises(AttributeError, match="no attribute 'logprobs'"):
        ops.logprobs  # noqa: B018


def test_a_compiled_graph_may_be_the_first_to_ask_for_an_op(monkeypatch):
    monkeypatch.delitem(vars(ops), "linear_logprob", raising=False)
    hidden, weight, targets = torch.randn(3, 8), torch.randn(20, 8), torch.tensor([0, 7, 19])
    compiled = torch.compile(lambda h: ops.linear_logprob(h, weight, targets), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(hidden), ops.linear_logprob(hidden, weight, targets))


@pytest.mark.slow
@pytest.mark.parametrize("module", ["mmfast.ops.kinds", "mmfast.config"])
def test_the_kinds_are_read_without_torch(module):
    code = f"import sys, {module}; assert 'mmfast.ops.kinds' in sys.modules; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"
