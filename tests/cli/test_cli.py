import subprocess
import sys

from typer.testing import CliRunner

from mmfast.cli import app


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
