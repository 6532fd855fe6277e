"""The folds' copies for older CPUs, which are chosen once a process: each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmfast.ops.dispatch import native

ROOT = Path(__file__).parents[2]
CHECK = """
import torch
from mmfast.ops.dispatch import native
from mmfast.ops.head.folds_native import has_bf16_gemm
from tests.ops.logprob_cases import error, make, run, run_reference
assert native().cpu_isa() == "{isa}" and not has_bf16_gemm()
for dtype, limit in ((torch.float64, 1e-11), (torch.float32, 2e-5), (torch.bfloat16, 2e-2)):
    for trained, entropy_grad in ((False, True), (True, False), (True, True)):
        case = make(13, 20, 700, 17, dtype, trained=trained, softcap=9.0, temperature=0.8, bias=True)
        ours, grads = run(case, entropy_grad=entropy_grad, tile_budget=1, backend="cpu")
        truth, true_grads = run_reference(case.clone(torch.float64), entropy_grad=entropy_grad)
        assert (ours["logp"] - truth["logp"]).abs().max() < 1e-4
        for got, want in zip(grads, true_grads, strict=True):
            assert error(got, want) < limit, (dtype, trained, entropy_grad)
"""


@pytest.mark.skipif(native() is None, reason="mmfast._C was not built")
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_older_instruction_sets(isa: str) -> None:
    if isa == "avx2" and native().cpu_isa() == "baseline":  # type: ignore[union-attr]
        pytest.skip("this CPU has no AVX2")
    environment = {**os.environ, "MMFAST_CPU": isa, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHECK.format(isa=isa)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
