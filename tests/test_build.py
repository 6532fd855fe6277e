"""What setup.py, CMake and the built module promise to whoever builds them elsewhere."""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from mmfast.ops.dispatch import native
from mmfast.packages import tomllib

ROOT = Path(__file__).parents[1]
needs_native = pytest.mark.skipif(native() is None, reason="mmfast._C was not built")


@needs_native
def test_the_module_asks_for_no_libgcc_newer_than_gcc_11s_and_no_libgomp_newer_than_torchs() -> None:
    module = Path(native().__file__).read_bytes()  # type: ignore[union-attr, arg-type]
    versions = {int(v) for v in re.findall(rb"GCC_(\d+)\.", module)}
    assert versions and max(versions) <= 11
    assert not re.findall(rb"\0G?OMP_5[.\d]*\0", module)  # torch's wheels carry that of GCC 8


@needs_native
@pytest.mark.parametrize("imports", ["import mmfast._C\nimport torch", "import torch\nimport mmfast._C"])
def test_the_module_can_be_imported_before_and_after_torch_with_one_openmp_runtime(imports: str) -> None:
    run = (
        "from mmfast.doctor import openmp_runtimes\n"
        "from mmfast.ops.rows import segment_sum\n"
        "x = torch.ones(4000, 1000)\n"  # large enough for both to wake their threads
        "sums = segment_sum(x, torch.arange(4000), torch.arange(0, 4001, 2), 'cpu')\n"
        "assert (sums == 2).all() and (x @ x.T == 1000).all()\n"
        "assert len(openmp_runtimes()) == 1, openmp_runtimes()\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", f"{imports}\n{run}"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


SMALL = """
#include <cmath>
#include <exception>
#include <stdexcept>
extern "C" double newer(double x) { return std::exp(x) + std::log(x); }
extern "C" int copies(int n) {  // of a caught exception, each thrown again from an array whose length is checked
  std::exception_ptr* held = new std::exception_ptr[n];
  try { throw std::runtime_error("once"); } catch (...) { held[0] = std::current_exception(); }
  for (int i = 1; i < n; ++i) held[i] = held[i - 1];
  int caught = 0;
  for (int i = 0; i < n; ++i) try { std::rethrow_exception(held[i]); } catch (const std::runtime_error&) { ++caught; }
  delete[] held;
  return caught;
}
"""


@pytest.mark.skipif(not shutil.which("g++") or platform.libc_ver()[0] != "glibc", reason="needs g++ and glibc")
def test_what_is_linked_against_the_stand_ins_needs_no_system_newer_than_manylinux_2_28(tmp_path: Path) -> None:
    stubs = script(".ci/stubs.py")
    stubs.make(tmp_path / "stubs", "g++")
    (tmp_path / "small.cpp").write_text(SMALL)
    common = ["g++", "-O2", "-fno-math-errno", "-shared", "-fPIC", str(tmp_path / "small.cpp")]
    against, portable = [f"-L{tmp_path / 'stubs'}"], [str(ROOT / "csrc/portable.cpp")]
    asks = {}
    for name, more in {"plain": [], "bare": against, "wheel": [*portable, *against]}.items():
        subprocess.run([*common, *more, "-o", str(tmp_path / name)], check=True)
        asks[name] = set(stubs.missing(tmp_path / name))
    newer = {symbol for symbol in asks["plain"] if symbol.startswith(("exp@", "log@"))}
    if float(platform.libc_ver()[1]) >= 2.29:  # so that the test can fail where it matters
        assert len(newer) == 2
    assert {symbol.split("@")[0] for symbol in asks["plain"] - newer} == asks["bare"]
    assert asks["wheel"] == set()
    library = ctypes.CDLL(str(tmp_path / "wheel"))
    library.newer.restype, library.newer.argtypes = ctypes.c_double, [ctypes.c_double]
    assert library.newer(2.0) == math.exp(2.0) + math.log(2.0)
    assert library.copies(1000) == 1000


@pytest.mark.parametrize("wheel", sorted((ROOT / "dist").glob("*manylinux*.whl")), ids=lambda path: path.name)
def test_the_wheels_that_were_built_need_no_newer_system(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        (name,) = (name for name in content.namelist() if name.endswith(".so"))
        assert script(".ci/stubs.py").missing(content.extract(name, tmp_path)) == []


@pytest.mark.parametrize("command", ["build", "check"])
def test_a_wheel_is_made_and_tried_for_a_python_that_is_there(command: str) -> None:
    asked = [sys.executable, ".ci/wheels.py", command, "no-such-python"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith("no-such-python is no program on the PATH: name those")


def test_the_version_is_written_in_pyproject_alone() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and newest[1] == project["version"]
    sources = [*(ROOT / "mmfast").rglob("*.py"), ROOT / "setup.py", ROOT / "CMakeLists.txt", ROOT / "CITATION.cff"]
    assert [path for path in sources if f'"{project["version"]}"' in path.read_text()] == []
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["license"] == project["license"] and cited["title"].startswith(project["name"])
    assert not cited.keys() & {"version", "date-released"}


def test_the_workflow_makes_and_tries_the_pythons_that_the_package_promises() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = [name.split(" :: ")[2] for name in project["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert project["requires-python"] == f">={promised[0]}"
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    assert workflow["newcomer"]["strategy"]["matrix"]["python"] == promised
    (made,) = (
        step["with"]["python-version"]
        for step in workflow["wheels"]["steps"]
        if "with" in step and "python-version" in step["with"]
    )
    assert made.split() == promised
    defaults = re.search(r"^WHEELS \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert defaults and defaults[1].split() == [f"python{version}" for version in promised]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("mmfast_script", ROOT / name)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands_of_a_build(monkeypatch: pytest.MonkeyPatch, folder: Path, **environment: str) -> list[list[str]]:
    """The command lines that setup.py would run in `folder` under `environment`."""
    setup = script("setup.py")
    for name in setup.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ran: list[list[str]] = []
    (folder / "build" / f"cmake-{sys.implementation.cache_tag}").mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(setup, "ROOT", folder)
    monkeypatch.setattr(setup, "run", ran.append)
    builder = setup.CMakeBuild.__new__(setup.CMakeBuild)
    builder.get_ext_fullpath = lambda name: str(folder / "out" / name)
    builder.build_extension(setup.Extension("mmfast._C", sources=[]))
    return ran


def test_cmake_args_reach_cmake_and_a_build_under_other_settings_starts_afresh(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configure, build = commands_of_a_build(monkeypatch, tmp_path, CMAKE_ARGS="-DA=1 '-DB=two words'")
    assert configure[-2:] == ["-DA=1", "-DB=two words"] and "--fresh" in configure
    assert build[:2] == ["cmake", "--build"]
    again, _ = commands_of_a_build(monkeypatch, tmp_path, CMAKE_ARGS="-DA=1 '-DB=two words'")
    assert "--fresh" not in again
    compiler = sys.executable  # any program: CMake is not run
    for change in ({"CXX": compiler}, {"CUDA_HOME": "/elsewhere/cuda"}, {"TORCH_CUDA_ARCH_LIST": "8.0"}, {}):
        configure, _ = commands_of_a_build(monkeypatch, tmp_path, **change)
        assert "--fresh" in configure, change
    with pytest.raises(SystemExit, match="CMAKE_ARGS cannot be split"):
        commands_of_a_build(monkeypatch, tmp_path, CMAKE_ARGS="'-DA=1")


def test_a_failure_of_the_cuda_half_names_every_switch_for_it() -> None:
    told = [sys.executable, "-c", "print('nvcc fatal: Unsupported gpu architecture'); raise SystemExit(1)"]
    with pytest.raises(SystemExit) as failure:
        script("setup.py").run(told)
    for switch in ("NVCC_CCBIN", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "CUDAARCHS", "CMAKE_ARGS", "MMFAST_CUDA=0"):
        assert switch in str(failure.value)


def architectures(folder: Path, codes: str, *, given: str = "", **environment: str) -> str:
    """What CMake says and chooses beside an nvcc that knows `codes`."""
    nvcc = folder / "nvcc"
    nvcc.write_text(f'#!/bin/sh\n[ "$1" = --list-gpu-code ] && printf "%s\\n" {codes}\n')
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)
    command = [sys.executable, "-m", "cmake", f"-DNVCC={nvcc}"]
    command += [f"-DCMAKE_CUDA_ARCHITECTURES={given}"] if given else []
    command += ["-P", str(ROOT / "csrc/cuda/architectures.cmake")]
    clean = {k: v for k, v in os.environ.items() if k not in ("CUDAARCHS", "TORCH_CUDA_ARCH_LIST")}
    done = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True)
    return " ".join((done.stdout + done.stderr).split())


CUDA_12_4 = "sm_50 sm_70 sm_75 sm_80 sm_86 sm_89 sm_90"  # as the real one prints it: no letters
CUDA_13_0 = "sm_75 sm_80 sm_86 sm_89 sm_90 sm_100 sm_103 sm_120"


def test_device_code_is_what_this_nvcc_knows_of_ours(tmp_path: Path) -> None:
    pytest.importorskip("cmake")
    assert architectures(tmp_path, CUDA_13_0).endswith("architectures: 80-real;90a-real;100-real;80-virtual")
    said = architectures(tmp_path, CUDA_12_4)
    assert said.endswith("architectures: 80-real;90a-real;80-virtual") and "does not know 100-real" in said


@pytest.mark.parametrize(
    "asked, chosen",
    [
        ({"TORCH_CUDA_ARCH_LIST": "8.0 8.6;9.0a+PTX"}, "80-real;86-real;90a-real;90a-virtual"),
        ({"TORCH_CUDA_ARCH_LIST": "8.9", "CUDAARCHS": "80"}, "80"),
        ({"TORCH_CUDA_ARCH_LIST": "8.9", "CUDAARCHS": ""}, "89-real"),
        ({"CUDAARCHS": "all-major"}, "all-major"),
        ({"TORCH_CUDA_ARCH_LIST": "8.9", "CUDAARCHS": "80", "given": "86-real"}, "86-real"),
        ({"TORCH_CUDA_ARCH_LIST": "", "CUDAARCHS": ""}, "80-real;90a-real;80-virtual"),
    ],
)
def test_device_code_can_be_asked_for(tmp_path: Path, asked: dict[str, str], chosen: str) -> None:
    pytest.importorskip("cmake")
    assert architectures(tmp_path, CUDA_12_4, **asked).endswith(f"architectures: {chosen}")


@pytest.mark.parametrize(
    "asked, complaint",
    [
        ({"TORCH_CUDA_ARCH_LIST": "8.0;10.0"}, "TORCH_CUDA_ARCH_LIST asks for 100-real"),
        ({"CUDAARCHS": "130"}, "CUDAARCHS asks for 130"),
        ({"given": "120-real"}, "CMAKE_CUDA_ARCHITECTURES asks for 120-real"),
        ({"TORCH_CUDA_ARCH_LIST": "Hopper"}, '"Hopper" is not understood'),
    ],
)
def test_device_code_that_nvcc_does_not_know_is_refused_by_name(
    tmp_path: Path, asked: dict[str, str], complaint: str
) -> None:
    pytest.importorskip("cmake")
    said = architectures(tmp_path, CUDA_12_4, **asked)
    assert complaint in said and "architectures:" not in said


def test_a_source_distribution_holds_all_that_the_build_reads(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path), "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("mmfast-*.tar.gz")
    with tarfile.open(archive) as content:
        held = {name.split("/", 1)[1] for name in content.getnames() if "/" in name}
    folders = [ROOT / name for name in ("csrc", "kernels", "recipes", "mmfast")]
    needed = [file for folder in folders for file in folder.rglob("*") if file.is_file() and file.suffix]
    wanted = {str(f.relative_to(ROOT)) for f in needed if f.suffix != ".so" and "__pycache__" not in f.parts}
    wanted |= {"CMakeLists.txt", "LICENSE", "mmfast/evals/text/WORDNET_LICENSE"}
    assert wanted <= held, wanted - held
    assert not [name for name in held if name.startswith("tests")], "some tests, which cannot run alone"
