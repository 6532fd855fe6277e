"""`mmfast doctor`: every op tried on this machine, and which backend of it is used."""

import json
import os
import subprocess
import sys

import pytest
import torch

from mmfast import doctor


def test_doctor_tests_every_op_and_says_which_backend_is_used() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "mmfast.cli", "doctor", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(result.stdout)
    tests = found["tests"]
    ops = {"linear_logprob", "selective_logprob", "preference_loss", "linear_preference_loss", "splice_embeddings"}
    assert {t["op"] for t in tests} == ops | {"tree_attention", "changed_segments"}
    for op in ops:
        assert sum(t["used"] for t in tests if t["op"] == op) == 1
    assert all(t["error"] <= t["bound"] for t in tests if not t["reason"])
    assert len(found["openmp"]) == 1


def test_doctors_table_shows_what_was_measured_and_what_is_allowed_and_no_times(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A time of a tiny call, or of a first one, made the backend that is used look broken."""
    tests = [
        doctor.SelfTest("some_op", "cpu", 2.5e-7, 1e-4, used=True),
        doctor.SelfTest("some_op", "torch", 0.5, 1e-4),
        doctor.SelfTest("some_op", "triton", reason="needs a GPU"),
    ]
    doctor.show(doctor.Findings("3", {}, [], {}, [], {}, {}, tests, []))
    shown = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert ["op", "backend", "error", "allowed"] in shown
    assert ["some_op", "cpu*", "ok", "2.5e-07", "1e-04"] in shown
    assert ["some_op", "torch", "WRONG", "5.0e-01", "1e-04"] in shown
    assert ["some_op", "triton", "needs", "a", "GPU"] in shown


def test_a_backend_that_fails_is_a_problem_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """xformers without operators raised NotImplementedError at its first call."""

    def fails(device: torch.device, backend: str) -> tuple[float, float]:
        if backend == "first":
            raise NotImplementedError("no operator found\nfor these inputs")
        return 0.0, 1.0

    monkeypatch.setattr(doctor, "_tests", lambda device: {"some_op": (fails, ("first", "second"))})
    problems: list[str] = []
    first, second = doctor._self_tests(torch.device("cpu"), problems)
    assert first.reason == "FAILS: NotImplementedError: no operator found" and not first.used
    assert second.passed and second.used
    assert problems == ["some_op on first fails: NotImplementedError: no operator found"]
