import json
import os
import subprocess
import sys
from unittest.mock import Mock

import pytest
from typer.testing import CliRunner

from mmfast.cli import app as cli
from mmfast.cli.app import app


def test_help_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, mmfast.cli; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_command_has_help() -> None:
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        result = CliRunner().invoke(app, [name, "--help"])
        assert result.exit_code == 0, (name, result.output)


def test_a_users_mistake_is_one_line(tmp_path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mmfast.cli", "train", str(tmp_path / "none.toml")], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.startswith("mmfast: ") and "none.toml" in result.stderr and "Traceback" not in result.stderr


def test_a_file_that_cannot_be_opened_is_one_line(tmp_path, monkeypatch) -> None:
    for error in (PermissionError(13, "Permission denied", "x"), NotADirectoryError(20, "Not a directory", "x")):
        monkeypatch.setattr(cli, "app", Mock(side_effect=error))
        with pytest.raises(SystemExit) as told:
            cli.main()
        assert str(told.value).startswith("mmfast: ") and error.strerror in str(told.value)


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
