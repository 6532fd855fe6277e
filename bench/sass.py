"""Counts machine instructions of the head's CUDA folds, without a GPU: python -m bench.sass [80 90a 100] [--write]

An innermost loop that handles N logits in I instructions has I / N a logit; the loops for the target's chunk and the
row's end are not counted, since all but a few hundred of 152,064 columns go by the others. special_functions of them
(exponentials and reciprocals) go to a unit with 16 lanes a multiprocessor where 128 are issued: each takes as long as 8
others. Needs nvcc, and the cuobjdump that triton ships. Rows go to bench/results/sass.jsonl.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.timing import machine

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "csrc/cuda/logprob.cu"
FLAGS = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-cubin", f"-I{ROOT / 'csrc'}"]
RESULTS = ROOT / "bench/results/sass.jsonl"
ARCHITECTURES = ("80", "90a", "100")

# The variants that bf16 calls at V = 152064 launch: template flags of logprob.cu, and the logits that a thread has in
# flight. A trained head launches the same kernel as a frozen one; two passes are for fp16.
BIAS, SOFTCAP, EXTRAS, WRITE = 1, 2, 4, 16
VARIANTS = {
    "frozen, trained": (WRITE, 16),
    "bias": (WRITE | BIAS, 16),
    "entropy": (WRITE | EXTRAS, 16),
    "softcap": (WRITE | SOFTCAP, 8),
    "no gradient": (0, 16),
}


@dataclass(frozen=True)
class Loop:
    """An innermost loop."""

    instructions: int
    loads: int  # of 16 bytes
    stores: int
    special: int  # MUFU: exponentials and reciprocals


def cuobjdump() -> str:
    """The path of cuobjdump: the toolkit's, or the one inside triton; "" where there is neither."""
    found = shutil.which("cuobjdump")
    if found:
        return found
    try:
        import triton
    except ModuleNotFoundError:
        return ""
    inside = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return str(inside) if inside.exists() else ""


def missing() -> str:
    """Names what is not here and needed, or ""."""
    if not shutil.which("nvcc"):
        return "nvcc is not here"
    return "" if cuobjdump() else "cuobjdump is neither beside nvcc nor inside triton"


def disassembled(architecture: str, source: Path = SOURCE) -> dict[str, str]:
    """Compiles for one architecture; returns the machine code of each kernel by its mangled name."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        subprocess.run(["nvcc", *FLAGS, f"-arch=sm_{architecture}", str(source), "-o", str(cubin)], check=True)
        command = [cuobjdump(), "-sass", str(cubin)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    parts = text.split("Function : ")[1:]
    return {part.split("\n", 1)[0].strip(): part for part in parts}


def loops(code: str) -> list[Loop]:
    """The innermost loops: what lies between a backward branch and its target, and holds no other such pair."""
    lines = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+([^;]+);", code)]
    branches = [(at, re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)) for at, text in lines]
    spans = [(int(to[1], 16), at) for at, to in branches if to and int(to[1], 16) < at]
    inner = [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    bodies = [[text for at, text in lines if first <= at <= last] for first, last in inner]
    kinds = ("LDG.E.128", "STG", "MUFU")
    return [Loop(len(body), *(sum(kind in text for text in body) for kind in kinds)) for body in bodies]


def fold_rows(architecture: str) -> Iterator[dict[str, Any]]:
    """One row a variant: instructions a logit with one pass over the row, and with two."""
    kernels = disassembled(architecture)
    for name, (flags, logits) in VARIANTS.items():
        out = "13__nv_bfloat16" if flags & WRITE else "f"
        (code,) = (code for kernel, code in kernels.items() if f"fold_forward_kernelIf{out}Li{flags}E" in kernel)
        loads = logits // 4 * (2 if flags & (BIAS | SOFTCAP) else 1)  # a softcap's variant looks for a bias itself
        found = [loop for loop in loops(code) if loop.loads == loads]
        sums = max(found, key=lambda loop: loop.special)
        maximum = min((loop for loop in found if not loop.stores), key=lambda loop: loop.special)
        assert sums.special == logits * (3 if flags & SOFTCAP else 1) and maximum is not sums, (name, found)
        one, both = (n / logits for n in (sums.instructions, sums.instructions + maximum.instructions))
        row = {"arch": architecture, "variant": name, "one_pass": round(one, 2), "two_passes": round(both, 2)}
        yield row | {"special_functions": sums.special / logits, "loads_in_flight": loads}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="*", default=ARCHITECTURES)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if reason := missing():
        parser.error(reason)
    version = subprocess.run(["nvcc", "--version"], check=True, capture_output=True, text=True).stdout
    made_by = {"op": "linear_logprob", "nvcc": version.split("release ")[1].split(",")[0]}
    how = {key: value for key, value in machine().items() if key in ("date", "command")}
    how["device"] = "none (compiled ahead of time)"
    lines = []
    for architecture in options.architectures:
        for row in fold_rows(architecture):
            lines.append(json.dumps(made_by | row | how))
            print(lines[-1], flush=True)
    if options.write:
        RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
