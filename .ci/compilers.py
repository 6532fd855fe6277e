"""`make compilers`: every host source of csrc/ through GCC 11 to 14, with CMake's own flags and no warning allowed.

GCC 11 and 12 come from the machine's own apt; 13 and 14 from a Debian trixie root under build/, which debootstrap makes
from the mirror that apt uses. Takes root for what is not yet installed. Ends non-zero if a compiler could not be tried.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "compilers"
TRIXIE = ROOT / "build" / "trixie"
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}


def main() -> None:
    commands = compile_commands()
    print(f"{len(commands)} compilations a compiler")
    missing = []
    for version in (11, 12, 13, 14):
        compiler, why_not = from_apt(version) if version < 13 else from_trixie(version)
        if why_not:
            missing.append(f"g++-{version} ({why_not})")
            continue
        if version >= 13:
            copy_into_trixie(commands)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            well = list(pool.map(lambda command: compiles(compiler, *command), commands))  # noqa: B023
        failed = [source for (source, _), good in zip(commands, well, strict=True) if not good]
        if failed:
            sys.exit(f"g++-{version}: {', '.join(failed)} failed")
        print(f"g++-{version}: all compiled, no warning", flush=True)
    if missing:
        sys.exit(f"not tried: {'; '.join(missing)}")


def compile_commands() -> list[tuple[str, str]]:
    """(source, arguments after the compiler) of each C++ compilation; the bindings of the CUDA half where nvcc is."""
    import pybind11

    cmake = [sys.executable, "-m", "cmake"]
    configure = [  # stand-ins, which nothing is linked against: csrc/portable.cpp is compiled with them alone
        *cmake, "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
        "-DMMFAST_STUBS=unused", "-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DCMAKE_MAKE_PROGRAM={Path(sys.executable).parent / 'ninja'}",
    ]  # fmt: skip
    if subprocess.run(configure, stdout=subprocess.DEVNULL).returncode:
        sys.exit("CMake could not configure the build (its output is above)")
    entries = json.loads((BUILD / "compile_commands.json").read_text())
    entries = [entry for entry in entries if not entry["file"].endswith(".cu")]
    return [(entry["file"], shlex.join(arguments(entry["command"]))) for entry in entries]


def arguments(command: str) -> list[str]:
    """The compile line without its compiler and its output: what is compiled goes nowhere."""
    words = shlex.split(command)[1:]
    at = words.index("-o")
    return [*words[:at], *words[at + 2 :], "-o", "/dev/null", "-Werror"]


def compiles(compiler: list[str], source: str, line: str) -> bool:
    done = subprocess.run([*compiler, *shlex.split(line)], cwd=BUILD if len(compiler) == 1 else "/", **QUIET)  # type: ignore[call-overload]
    if done.returncode:
        print(f"{' '.join(compiler[-1:])} {source}\n{done.stderr}", file=sys.stderr)
    return not done.returncode


def from_apt(version: int) -> tuple[list[str], str]:
    name = f"g++-{version}"
    if not shutil.which(name):
        if os.geteuid() or not shutil.which("apt-get"):
            return [], "not installed, and installing it takes root and apt-get"
        install = subprocess.run(["apt-get", "install", "-y", "-qq", name], **QUIET)  # type: ignore[call-overload]
        if install.returncode:
            return [], "apt-get has no such package; has apt-get update run?"
    return [name], ""


def from_trixie(version: int) -> tuple[list[str], str]:
    if not (TRIXIE / "usr/bin/g++-14").exists() and (why_not := make_trixie()):
        return [], why_not
    return ["chroot", str(TRIXIE), f"g++-{version}"], ""


def make_trixie() -> str:
    """Make the root, or say in a few words why not."""
    if os.geteuid() or not shutil.which("apt-get"):
        return "a trixie root takes root, apt-get and debootstrap"
    if not shutil.which("debootstrap"):
        subprocess.run(["apt-get", "install", "-y", "-qq", "debootstrap"], **QUIET)  # type: ignore[call-overload]
    if not shutil.which("debootstrap"):
        return "debootstrap is missing and could not be installed"
    mirror = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Label: Debian"],
        capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    if not mirror:
        return "apt knows no Debian mirror here"
    partial = TRIXIE.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", "--include=g++-13,g++-14", "trixie", str(partial), mirror[0]], **QUIET
    )  # type: ignore[call-overload]
    if made.returncode:
        return f"debootstrap failed: see {partial}/debootstrap/debootstrap.log"
    partial.rename(TRIXIE)
    return ""


def copy_into_trixie(commands: list[tuple[str, str]]) -> None:
    """Sources and headers at the same paths inside the root, so that the same lines compile there."""
    folders = {ROOT / "csrc", Path(sysconfig.get_paths()["include"])}
    for _, line in commands:
        words = shlex.split(line)
        folders |= {Path(word[2:]) for word in words if word.startswith("-I")}
        folders |= {Path(after) for word, after in pairwise(words) if word == "-isystem"}
    for folder in folders:
        inside = TRIXIE / folder.relative_to("/")
        shutil.rmtree(inside, ignore_errors=True)
        shutil.copytree(folder, inside)


if __name__ == "__main__":
    main()
