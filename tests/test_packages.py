"""What a user is told who lacks a package: one line with a command that can work (mmfast is on no index)."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from mmfast.config import Optim
from mmfast.packages import how_to_install, packages, tomllib
from mmfast.training import metrics, optim

ROOT = Path(__file__).parents[1]
# A Python in which pydantic and transformers are neither found nor listed as installed.
WITHOUT = """
import importlib.abc, importlib.metadata, runpy, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pydantic", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
distribution = importlib.metadata.distribution
def listed(name):
    if name in ("pydantic", "transformers"):
        raise importlib.metadata.PackageNotFoundError(name)
    return distribution(name)
importlib.metadata.distribution = listed
sys.argv = ["MODULE", *ARGUMENTS]
runpy.run_module("MODULE", run_name="__main__", alter_sys=True)
"""


def run_without(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = WITHOUT.replace("MODULE", module).replace("ARGUMENTS", repr(list(arguments)))
    clean = {name: value for name, value in os.environ.items() if name != "RANK"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True
    )


def test_a_module_started_by_name_says_in_one_line_what_is_missing() -> None:
    done = run_without("mmfast.train", "my.toml")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "(transformers, pydantic)" in line and "pip install 'transformers>=" in line and "mmfast[" not in line
    other_rank = run_without("mmfast.train", "my.toml", RANK="1")
    assert other_rank.returncode == 1 and not other_rank.stderr


def test_the_command_says_in_one_line_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("")
    done = run_without("mmfast.cli", "train", str(tmp_path / "my.toml"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("mmfast: the package pydantic is not installed: pip install ")


def test_hints_name_the_packages_of_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in ("train", "triton", "eightbit", "wandb", "tensorboard", "trackio"):
        assert packages(extra) == extras[extra]
    assert how_to_install("wandb") == f"pip install '{extras['wandb'][0]}'"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=re.escape(f"log.trackers: 'wandb' is not installed: {how_to_install('wandb')}")
    ):
        metrics.check_trackers(["wandb"])
    with pytest.raises(ValueError, match=re.escape(how_to_install("eightbit"))):
        optim.check_optimizer(Optim(name="adamw8bit"))


def test_a_python_without_tomllib_reads_toml_by_the_package_that_is_a_dependency_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (
        "tomli>=2; python_version < '3.11'"
        in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    )
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    monkeypatch.setitem(sys.modules, "tomli", tomllib)
    monkeypatch.setitem(sys.modules, "tomllib", None)  # an import of it fails
    assert runpy.run_path(str(ROOT / "mmfast/packages.py"))["tomllib"] is tomllib


def test_no_text_of_ours_installs_mmfast_from_an_index() -> None:
    files = [*(ROOT / "mmfast").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "setup.py"]
    for file in files:
        assert not re.search(r"pip install [^\n`]*mmfast(\[|==|$|')", file.read_text()), file
