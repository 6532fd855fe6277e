"""What setup.py, CMake and the built module promise to whoever builds them elsewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from mmfast.ops.dispatch import native

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


def setup_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mmfast_setup", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands_of_a_build(monkeypatch: pytest.MonkeyPatch, folder: Path, **environment: str) -> list[list[str]]:
    """The command lines that setup.py would run in `folder` under `environment`."""
    script = setup_script()
    for name in script.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ran: list[list[str]] = []
    (folder / "build" / f"cmake-{sys.implementation.cache_tag}").mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(script, "ROOT", folder)
    monkeypatch.setattr(script, "run", ran.append)
    builder = script.CMakeBuild.__new__(script.CMakeBuild)
    builder.get_ext_fullpath = lambda name: str(folder / "out" / name)
    builder.build_extension(script.Extension("mmfast._C", sources=[]))
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
        setup_script().run(told)
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
    needed = [*(ROOT / "csrc").rglob("*"), *(ROOT / "recipes").glob("*.toml"), *(ROOT / "kernels").glob("*.py")]
    needed += (ROOT / "mmfast/engines/page").iterdir()
    wanted = {str(file.relative_to(ROOT)) for file in needed if file.is_file()} | {"CMakeLists.txt", "LICENSE"}
    assert wanted <= held, wanted - held
