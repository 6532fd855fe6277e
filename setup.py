"""Drives CMake: `pip install .`, `pip install -e .` and wheels all build mmfast._C through it.

Read from the environment: MMFAST_CUDA (0, 1, auto), CMAKE_ARGS, and what CMake and nvcc read themselves (CXX, CXXFLAGS,
CUDACXX, CUDA_HOME, CUDAHOSTCXX, NVCC_CCBIN, CUDAARCHS), with TORCH_CUDA_ARCH_LIST (csrc/cuda/architectures.cmake).
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SETTINGS = (
    "MMFAST_CUDA", "CMAKE_ARGS", "CC", "CXX", "CXXFLAGS", "LDFLAGS", "CUDACXX", "CUDAFLAGS", "CUDA_HOME", "CUDAHOSTCXX",
    "NVCC_CCBIN", "CUDAARCHS", "TORCH_CUDA_ARCH_LIST",
)  # fmt: skip


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
            "give nvcc a host compiler that it supports (export NVCC_CCBIN=/path/to/g++), name another toolkit "
            "(CUDA_HOME; 12.4 to 13), name the GPUs (TORCH_CUDA_ARCH_LIST='8.0;9.0a', CUDAARCHS='80-real;90a-real', or "
            "CMAKE_ARGS=-DCMAKE_CUDA_ARCHITECTURES=80), or build the CPU half alone with MMFAST_CUDA=0",
        )
    fail(f"`{name}` failed (its output is above)", "repair what the output names, then run the same command again")


def cmake_arguments(environment) -> list:
    try:
        return shlex.split(environment.get("CMAKE_ARGS", ""))
    except ValueError as error:
        fail(f"CMAKE_ARGS cannot be split into arguments ({error})", "correct its quotes")


def settings(environment, pybind11_dir: str) -> str:
    """What a build folder was configured under: CMake keeps the compilers and flags of its first run.

    The tools' own paths are part of it, since pip's isolated builds bring new ones each time.
    """
    asked = {name: environment.get(name, "") for name in SETTINGS}
    asked |= {"python": sys.executable, "pybind11": pybind11_dir, "ninja": str(shutil.which("ninja"))}
    return "".join(f"{name}={value}\n" for name, value in asked.items())


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
            f"-DMMFAST_OUTPUT={target.parent}", *cmake_arguments(os.environ),
        ]  # fmt: skip
        asked, last = settings(os.environ, pybind11.get_cmake_dir()), build / "settings.txt"
        if not last.exists() or last.read_text() != asked:
            configure.insert(1, "--fresh")
            last.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        run(configure)
        last.write_text(asked)
        run(["cmake", "--build", str(build)])


if __name__ == "__main__":
    setup(
        packages=[
            *find_packages(include=["mmfast", "mmfast.*"]),
            *("mmfast.kernels", "mmfast.recipe_files", "mmfast.engines.page", "mmfast.feedback.prompts"),
        ],
        package_data={
            "mmfast.recipe_files": ["*.toml", "papers/*.toml"],
            "mmfast.feedback.prompts": ["*.toml"],
            "mmfast.feedback.experts": ["*.toml"],
            "mmfast.engines.page": ["*"],
            "mmfast.pages": ["*.css", "*.js"],
            "mmfast.evals.text": ["*.xz", "*.json", "WORDNET_LICENSE"],
        },
        ext_modules=[Extension("mmfast._C", sources=[])],
        cmdclass={"build_ext": CMakeBuild},
    )
