"""`mmfast doctor`: every op tried on this machine, and which backend of it is used."""

import json
import os
import subprocess
import sys
import time

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


def test_doctors_milliseconds_are_not_a_first_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def slow_at_first(device: torch.device, backend: str) -> tuple[float, float]:
        if not calls:
            time.sleep(1.0)
        calls.append(backend)
        return 0.0, 1.0

    monkeypatch.setattr(doctor, "_tests", lambda device: {"some_op": (slow_at_first, ("cpu",))})
    (result,) = doctor._self_tests(torch.device("cpu"), [])
    assert result.passed and result.used and result.milliseconds < 900


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
