"""Compile every Triton kernel to machine code without a GPU: `python -m tests.kernels.aot 80 90 100 [--write]`.

Prints one JSON line a kernel variant and architecture: registers, shared memory, spilled bytes. Triton reports spills
only where a device loads the kernel, so they are read here from ptxas -v on the PTX. With --write the lines become
bench/results/triton-aot.jsonl.
"""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.kernels.variants import Variant, variants

RESULTS = Path(__file__).parents[2] / "bench/results/triton-aot.jsonl"


def newest_ptxas() -> str:
    """The newest of the ptxas that Triton ships."""
    from triton import knobs

    tools = [knobs.nvidia.ptxas, knobs.nvidia.ptxas_blackwell]
    return max(tools, key=lambda tool: [int(part) for part in re.findall(r"\d+", tool.version)]).path


def resources(ptx: str, arch: int, ptxas: str) -> dict[str, int]:
    """Registers and spilled bytes as ptxas reports them."""
    name = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [ptxas, "-v", "--regAllocOptLevel=2", f"--gpu-name={name}", str(source), "-o", f"{folder}/kernel.o"]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    stores, loads = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log).groups()  # type: ignore[union-attr]
    registers = re.search(r"Used (\d+) registers", log).group(1)  # type: ignore[union-attr]
    return {"registers": int(registers), "spill_stores": int(stores), "spill_loads": int(loads)}


def compile_variant(variant: Variant, arch: int, ptxas: str) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    fn = variant.kernel
    signature = {name: variant.types.get(name, "constexpr") for name in fn.arg_names}
    missing = [name for name, kind in signature.items() if kind == "constexpr" and name not in variant.constants]
    assert not missing, f"{variant.label}: no type and no value for {missing}"
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(fn.arg_names)
        if (signature[name].startswith("*") and name not in variant.unaligned) or name in variant.multiples_of_16
    }
    source = ASTSource(fn, signature, constexprs=variant.constants, attrs=aligned)
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    row: dict[str, Any] = {"kernel": fn.__name__, "variant": variant.label, "arch": arch}
    row |= resources(compiled.asm["ptx"], arch, ptxas)
    row |= {"shared": compiled.metadata.shared, "cubin_bytes": len(compiled.asm["cubin"])}
    return row


def main(arches: list[int], write: bool) -> None:
    import triton

    ptxas, lines = newest_ptxas(), []
    release = subprocess.run([ptxas, "--version"], capture_output=True, text=True, check=True).stdout
    made_by = {
        "command": f"python -m tests.kernels.aot {' '.join(map(str, arches))}",
        "triton": triton.__version__,
        "ptxas": re.search(r"release ([\d.]+)", release).group(1),  # type: ignore[union-attr]
        "device": "none (compiled ahead of time)",
        "date": datetime.date.today().isoformat(),
    }
    for variant in variants():
        for arch in (arch for arch in arches if not variant.arches or arch in variant.arches):
            lines.append(json.dumps(compile_variant(variant, arch, ptxas) | made_by))
            print(lines[-1], flush=True)
    if write:
        RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main([int(arch) for arch in sys.argv[1:] if arch.isdigit()] or [80, 90, 100], "--write" in sys.argv)
