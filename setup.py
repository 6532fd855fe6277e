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
    compiler = os.environ.get("CXX", "").split()[:1] or [c for c in ("c++", "g++", "clang++") if shutil.which(c)]
    if not compiler or not shutil.which(compiler[0]):
        fail("no C++ compiler was found", "install one (Debian: apt install g++), or set CXX")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        fail(
            "the Python headers (Python.h) are missing",
            f"install them (Debian: apt install python{version}-dev)",
        )


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        check_machine()
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        cuda = os.environ.get("MMFAST_CUDA", "auto")
        if cuda not in ("0", "1", "auto"):
            fail(f"MMFAST_CUDA={cuda} is not understood", "set it to 0, 1 or auto")
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DMMFAST_CUDA={cuda}", f"-DMMFAST_SUFFIX={sysconfig.get_config_var('EXT_SUFFIX')}",
            f"-DMMFAST_OUTPUT={target.parent}",
        ]  # fmt: skip
        target.parent.mkdir(parents=True, exist_ok=True)
        for command in (configure, ["cmake", "--build", str(build)]):
            if subprocess.run(command).returncode:
                fail(
                    f"`{' '.join(command[:3])}` failed (its output is above)",
                    "repair what it names; if nvcc is the trouble, MMFAST_CUDA=0 builds the CPU half alone",
                )


packages = [*find_packages(include=["mmfast", "mmfast.*"]), "mmfast.kernels"]
setup(packages=packages, ext_modules=[Extension("mmfast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
