"""The command: help without torch, and a mistake is one line."""

import subprocess
import sys
from importlib import metadata
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


def test_the_version_is_the_packages() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0 and done.stdout == f"mmfast {metadata.version('mmfast')}\n"
    assert "--version" not in CliRunner().invoke(app, ["doctor", "--help"]).output
    run = subprocess.run([sys.executable, "-m", "mmfast", "--version"], capture_output=True, text=True)
    assert run.stdout == done.stdout, run.stderr


def test_a_file_to_import_that_is_not_there_is_named(tmp_path) -> None:
    (tmp_path / "c.toml").write_text('[model]\npath = "m"\n')
    with pytest.raises(ValueError, match=r"--import nowhere.parquet: it does not exist"):
        CliRunner().invoke(
            app, ["reference", str(tmp_path / "c.toml"), "--import", "nowhere.parquet"], catch_exceptions=False
        )
