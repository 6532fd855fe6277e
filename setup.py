"""Drives CMake: `pip install .`, `pip install -e .` and wheels all build mmfast._C through it."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def fail(problem: str, fix: str) -> None:
    raise SystemExit(f"\nmmfast cannot be built: {problem}\n  fix: {fix}\n")


def check_machine() -> None:
    """Name what is missing before CMake buries it in a page of output."""
    if sys.version_info < (3, 10):  # noqa: UP036  (an old pip may ignore requires-python)
        fail(f"Python {sys.version.split()[0]} is too old", "use Python 3.10 to 3.13")
    asked = os.environ.get("CXX", "").split()
    if asked and not shutil.which(asked[0]):
        fail(f"CXX={asked[0]} is no program on the PATH", "correct or unset CXX")
    if not asked and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        fail("no C++ compiler was found", "install one (Debian: apt install g++), or set CXX")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        fail(
            "the Python headers (Python.h) are missing",
            f"install them (Debian: apt install python{version}-dev)",
        )


def cuda_switch(environment) -> str:
    cuda = environment.get("MMFAST_CUDA", "auto")
    if cuda not in ("0", "1", "auto"):
        fail(f"MMFAST_CUDA={cuda} is not understood", "set it to 0, 1 or auto")
    return cuda


def run(command: list) -> None:
    """Run one build command; on failure say which of the two compilers it was, and what to do."""
    log: list = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            log.append(line)
            sys.stdout.write(line)
    if not process.returncode:
        return
    name = " ".join(command[:2])
    if any(sign in line for line in log for sign in ("nvcc", "CMAKE_CUDA_COMPILER", ".cu.o")):
        fail(
            f"`{name}` failed at the CUDA half (its output is above)",
            "give nvcc a host compiler that it supports (export NVCC_CCBIN=/path/to/g++), repair the CUDA toolkit, "
            "or build the CPU half alone with MMFAST_CUDA=0",
        )
    fail(f"`{name}` failed (its output is above)", "repair what the output names, then run the same command again")


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        check_machine()
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        cuda = cuda_switch(os.environ)
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DMMFAST_CUDA={cuda}", f"-DMMFAST_SUFFIX={sysconfig.get_config_var('EXT_SUFFIX')}",
            f"-DMMFAST_OUTPUT={target.parent}",
        ]  # fmt: skip
        target.parent.mkdir(parents=True, exist_ok=True)
        for command in (configure, ["cmake", "--build", str(build)]):
            run(command)


if __name__ == "__main__":
    setup(
        packages=[*find_packages(include=["mmfast", "mmfast.*"]), "mmfast.kernels", "mmfast.recipe_files"],
        package_data={"mmfast.recipe_files": ["*.toml"]},
        ext_modules=[Extension("mmfast._C", sources=[])],
        cmdclass={"build_ext": CMakeBuild},
    )
