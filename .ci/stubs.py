"""Stand-ins for the system's libraries, for the linker alone: each exports what its original does, less every symbol
version newer than manylinux_2_28 has. What is linked against them binds to the older version where there is one, and
stays undefined where there is none, which .ci/wheels.py then names."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

# The newest versions of manylinux_2_28: of glibc 2.28, and of libstdc++, libgcc and libgomp of GCC 8.
NEWEST = {
    "GLIBC": (2, 28),
    "GLIBCXX": (3, 4, 24),
    "CXXABI": (1, 3, 11),
    "GCC": (7, 0, 0),
    "GOMP": (4, 5),
    "OMP": (4, 5),
}
LIBRARIES = ("libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1")
# No part of libc.so.6 before glibc 2.34, and nearly empty since: a wheel must load them by name (CMakeLists.txt).
ONCE_APART = ("libpthread.so.0", "libdl.so.2", "librt.so.1")


def make(folder: Path, compiler: str = "cc") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for library in (*LIBRARIES, *ONCE_APART):
        _link(folder, library, _exported(_found(compiler, library)), compiler)
    # What -lc, -lm, -lgcc_s and -lstdc++ find: linker scripts, as the system has them.
    here = folder.resolve()
    beside = {"c": [_found(compiler, "libc_nonshared.a"), _found(compiler, "ld-linux-x86-64.so.2")], "gcc_s": ["-lgcc"]}
    for library in LIBRARIES:
        name = library.removeprefix("lib").split(".so")[0]
        more = " ".join(beside.get(name, []))
        (folder / f"lib{name}.so").write_text(f"GROUP ( {here / library} {more} )\n")


def version_of(name: str) -> tuple[str, tuple[int, ...]] | None:
    """Of "GLIBC_2.17": ("GLIBC", (2, 17)); None for a version without numbers, such as GLIBC_PRIVATE."""
    match = re.fullmatch(r"([A-Z]+)_([\d.]+)", name)
    return (match[1], tuple(map(int, match[2].split(".")))) if match else None


def allowed(version: str) -> bool:
    known = version_of(version)
    return known is not None and known[0] in NEWEST and known[1] <= NEWEST[known[0]]


def _found(compiler: str, name: str) -> str:
    path = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
    if "/" not in path:
        raise SystemExit(f"{compiler} does not find {name}")
    return path.strip()


def _exported(library: str) -> dict[str, tuple[str, str]]:
    """Symbol -> (its kind, the newest version of it that is allowed)."""
    found: dict[str, tuple[str, str]] = {}
    for kind, _, place, name, version in _symbols(library):
        known = version_of(version)
        if place == "UND" or kind == "TLS" or known is None or not allowed(version):
            continue
        before = found.get(name)
        if before is None or version_of(before[1])[1] < known[1]:  # type: ignore[index]
            found[name] = "function" if kind in ("FUNC", "IFUNC") else "object", version
    return found


def missing(library: str | Path) -> list[str]:
    """What a built module asks for and manylinux_2_28 does not have: symbols of newer versions, and symbols of no
    version, which nobody has, less Python's own and those that may be absent."""
    found = []
    for _, bound, place, name, version in _symbols(library):
        if place != "UND" or not name:
            continue
        if (version and not allowed(version)) or not (version or bound == "WEAK" or re.match("_?Py", name)):
            found.append(f"{name}@{version}".rstrip("@"))
    return found


def _symbols(library: str | Path) -> Iterator[list[str]]:
    """Of a library: kind, bound (GLOBAL, WEAK), place (UND: elsewhere), name and version ("" where it has none)."""
    command = ["readelf", "--dyn-syms", "--wide", str(library)]
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        columns = line.split()
        if len(columns) > 7 and columns[0].rstrip(":").isdigit():
            name, _, version = columns[7].partition("@")
            yield [columns[3], columns[4], columns[6], name, version.lstrip("@")]


def _link(folder: Path, library: str, symbols: dict[str, tuple[str, str]], compiler: str) -> None:
    source, versions = folder / f"{library}.s", folder / f"{library}.map"
    lines = [".data"]
    for i, (name, (kind, version)) in enumerate(symbols.items()):
        lines += [f".globl s{i}", f".type s{i}, @{kind}", f".size s{i}, 8", f"s{i}: .quad 0"]
        lines.append(f".symver s{i}, {name}@@{version}, remove")
    source.write_text("\n".join(lines) + '\n.section .note.GNU-stack,"",@progbits\n')
    nodes = sorted({version for _, version in symbols.values()})
    versions.write_text("".join(f"{node} {{ }};\n" for node in nodes))
    command = [compiler, "-shared", "-nostdlib", f"-Wl,-soname,{library}", f"-Wl,--version-script={versions}"]
    subprocess.run([*command, str(source), "-o", str(folder / library)], check=True)
