"""`mmfast doctor`: what is installed, which backend each op would use and why, and a short self-test of each op."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mmfast import ops
from mmfast.ops.attention import explain
from mmfast.ops.dispatch import BACKENDS, available, cuda_half_fault, dotted, native
from mmfast.ops.oracles import logprob as oracle

PACKAGES = (
    "mmfast", "torch", "transformers", "triton", "peft", "safetensors", "numpy", "pyarrow", "pillow", "torchao",
    "flash-attn", "xformers", "trl", "liger-kernel",
)  # fmt: skip


@dataclass
class SelfTest:
    """One op on one backend: either measured against its oracle, or refused with a reason."""

    op: str
    backend: str
    error: float = 0.0  # largest absolute difference from the oracle
    bound: float = 0.0
    reason: str = ""
    used: bool = False  # the one that a call without backend= takes

    @property
    def passed(self) -> bool:
        return self.error <= self.bound


@dataclass
class Findings:
    python: str
    versions: dict[str, str]
    devices: list[str]
    native: dict[str, str]
    openmp: list[str]
    backends: dict[str, str]  # backend -> "usable" or why not, on this machine's device
    attention: dict[str, str]
    tests: list[SelfTest]
    problems: list[str]


def examine() -> Findings:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    problems: list[str] = []
    findings = Findings(
        python=f"{platform.python_version()} ({sys.executable})",
        versions={name: _version(name) for name in PACKAGES},
        devices=_devices(),
        native=_native(device, problems),
        backends={name: available(name, device) or "usable" for name in BACKENDS},
        attention=_attention(device),
        tests=_self_tests(device, problems),
        openmp=openmp_runtimes(),
        problems=problems,
    )
    if len(findings.openmp) > 1:
        problems.append(
            f"{len(findings.openmp)} OpenMP runtimes share this process and will fight for the cores: "
            f"{', '.join(findings.openmp)}. Import torch before anything that links its own, or remove that package."
        )
    return findings


def openmp_runtimes() -> list[str]:
    """The OpenMP libraries mapped into this process (Linux)."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    return sorted(set(re.findall(r"(/\S*lib(?:gomp|iomp5|omp)[^/\s]*\.so[^/\s]*)", maps)))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def _devices() -> list[str]:
    info = Path("/proc/cpuinfo")
    flags = re.search(r"^flags\s*:(.*)$", info.read_text() if info.exists() else "", re.MULTILINE)
    known = flags[1].split() if flags else []
    wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16") if flag in known]
    lines = [f"cpu: {os.cpu_count()} cores, {torch.get_num_threads()} torch threads, {' '.join(wide) or 'baseline'}"]
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        lines.append(f"cuda:{i}: {p.name}, {p.total_memory / 2**30:.0f} GiB, sm_{p.major}{p.minor}")
    return lines


def _native(device: torch.device, problems: list[str]) -> dict[str, str]:
    module = native()
    if module is None:
        problems.append(
            "mmfast._C is not built: the CPU ops fall back to plain torch (pip install . with a C++ compiler)"
        )
        return {"built": "no"}
    facts = {"built": "yes", "cpu instruction set": module.cpu_isa(), "cuda half": "yes" if module.have_cuda else "no"}
    if module.have_cuda:
        facts["cuda runtime"] = dotted(module.cuda_runtime_version())
        facts["device code"] = module.cuda_architectures
        driver = module.cuda_driver_version()
        facts["cuda driver"] = dotted(driver) if driver else "none"
        if device.type == "cuda" and (fault := cuda_half_fault(device)):
            problems.append(f"backend 'cuda' is not used: {fault}")
    elif torch.cuda.is_available():
        problems.append("a GPU is here but mmfast._C has no CUDA half: build where nvcc is (MMFAST_CUDA=1 to insist)")
    if nvcc := shutil.which("nvcc"):
        out = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
        release = re.search(r"release ([\d.]+)", out)
        facts["nvcc"] = release.group(1) if release else nvcc
    return facts


def _attention(device: torch.device) -> dict[str, str]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    reasons = explain(device=device, dtype=dtype, head_dim=128)
    first = next(name for name, reason in reasons.items() if not reason)
    return {name: reason or ("used" if name == first else "usable") for name, reason in reasons.items()}


def _self_tests(device: torch.device, problems: list[str]) -> list[SelfTest]:
    """Every op on every backend. A call without `backend=` takes the first usable one, in the order of BACKENDS."""
    results = []
    for op, (test, backends) in _tests(device).items():
        taken = False
        for backend in backends:
            if backend in BACKENDS and (available(backend, device) or (backend == "triton" and device.type == "cpu")):
                continue  # said once, under the backends; Triton's interpreter is for tests
            try:
                error, bound = test(device, backend)
            except ValueError as refused:
                results.append(SelfTest(op, backend, reason=str(refused).split("cannot be used: ")[-1]))
                continue
            except Exception as failure:  # a library or a compiler that does not run on this machine
                told = f"{type(failure).__name__}: {str(failure).strip().split(chr(10))[0]}"
                results.append(SelfTest(op, backend, reason=f"FAILS: {told}"))
                problems.append(f"{op} on {backend} fails: {told}")
                continue
            result = SelfTest(op, backend, error, bound, used=not taken)
            taken = True
            results.append(result)
            if not result.passed:
                problems.append(f"{op} on {backend} is {error:.2g} away from its oracle, more than {bound:.2g}")
    return results


Test = Callable[[torch.device, str], tuple[float, float]]


def _tests(device: torch.device) -> dict[str, tuple[Test, tuple[str, ...]]]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    attention = tuple(name for name, reason in explain(device, dtype, 32).items() if not reason)
    return {
        "linear_logprob": (_test_linear_logprob, BACKENDS),
        "selective_logprob": (_test_selective_logprob, BACKENDS),
        "preference_loss": (_test_preference_loss, BACKENDS),
        "linear_preference_loss": (_test_linear_preference_loss, BACKENDS),
        "splice_embeddings": (_test_splice, BACKENDS),
        "tree_attention": (_test_attention, attention),
        "changed_segments": (_test_segments, ("cpu", "python")),
    }


def _random(*shape: int, device: torch.device, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def _farthest(ours: torch.Tensor, oracle: torch.Tensor) -> float:
    return (ours.double() - oracle.double()).abs().max().item()


def _head(device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden, weight = _random(24, 64, device=device, seed=1), 0.3 * _random(500, 64, device=device, seed=2)
    return hidden, weight, torch.randint(0, 500, (24,), generator=torch.Generator().manual_seed(3)).to(device)


def _test_linear_logprob(device: torch.device, backend: str) -> tuple[float, float]:
    hidden, weight, targets = _head(device)
    ours = ops.linear_logprob(hidden, weight, targets, backend=backend)
    return _farthest(ours, oracle.linear_logprob(hidden, weight, targets)["logp"]), 1e-4


def _test_selective_logprob(device: torch.device, backend: str) -> tuple[float, float]:
    hidden, weight, targets = _head(device)
    logits = hidden @ weight.T
    ours = ops.selective_logprob(logits, targets, backend=backend)
    return _farthest(ours, oracle.selective_logprob(logits, targets)["logp"]), 1e-4


def _pairs(device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    responses = torch.tensor([0, 6, 12, 18, 24], dtype=torch.int32, device=device)
    pairs = torch.tensor([[0, 1], [2, 3]], device=device)
    return 0.1 * _random(24, device=device, seed=4) - 1.0, responses, pairs


def _dpo(logps: torch.Tensor, reference: torch.Tensor, beta: float = 0.1) -> torch.Tensor:
    sums = (logps.double() - reference.double()).view(4, 6).sum(1)
    return -torch.nn.functional.logsigmoid(beta * (sums[0::2] - sums[1::2])).mean()


def _test_preference_loss(device: torch.device, backend: str) -> tuple[float, float]:
    reference, responses, pairs = _pairs(device)
    logps = 0.1 * _random(24, device=device, seed=5) - 1.0
    ours = ops.preference_loss(logps, reference, responses, pairs, backend=backend).loss
    return _farthest(ours, _dpo(logps, reference)), 1e-5


def _test_linear_preference_loss(device: torch.device, backend: str) -> tuple[float, float]:
    hidden, weight, targets = _head(device)
    reference, responses, pairs = _pairs(device)
    ours = ops.linear_preference_loss(hidden, weight, targets, reference, responses, pairs, backend=backend).loss
    return _farthest(ours, _dpo(oracle.linear_logprob(hidden, weight, targets)["logp"], reference)), 1e-4


def _test_splice(device: torch.device, backend: str) -> tuple[float, float]:
    table, images = _random(50, 16, device=device, seed=6), _random(4, 16, device=device, seed=7)
    tokens = torch.arange(12, device=device)
    features = torch.tensor([-1, -1, 0, 1, 2, 3, -1, -1, -1, -1, -1, -1], device=device)
    ours = ops.splice_embeddings(tokens, table, images, features, backend=backend)
    return _farthest(ours, torch.where(features[:, None] >= 0, images[features.clamp(min=0)], table[tokens])), 0.0


def _test_attention(device: torch.device, backend: str) -> tuple[float, float]:
    dtype = torch.float32 if backend in ("cpu", "loop") else torch.bfloat16
    q, k, v = (_random(10, 2, 32, device=device, seed=s).to(dtype) for s in (8, 9, 10))
    # A prompt of 4, a first answer of 3 in the same run, and a second answer of 3 that sees the prompt and itself.
    q_offsets = torch.tensor([0, 7, 10], dtype=torch.int32, device=device)
    k_offsets = torch.tensor([0, 7, 14], dtype=torch.int32, device=device)
    k_index = torch.tensor([0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 7, 8, 9], device=device)
    ours = ops.tree_attention(q, k, v, q_offsets, k_index, k_offsets, max_q=7, max_k=7, backend=backend)
    seen = torch.ones(10, 10, device=device).tril().bool()
    seen[7:, 4:7] = False
    scores = torch.einsum("qhd,khd->hqk", q.double(), k.double()) / 32**0.5
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return _farthest(ours, torch.einsum("hqk,khd->qhd", weights, v.double())), 1e-4 if dtype == torch.float32 else 3e-2


def _test_segments(device: torch.device, backend: str) -> tuple[float, float]:
    rejected, chosen = ops.changed_segments(
        [1, 2, 3, 4, 50, 5, 6, 7, 8], [1, 2, 3, 4, 99, 98, 5, 6, 7, 8], backend=backend
    )
    return float((list(rejected), list(chosen)) != ([4], [4, 5])), 0.0


def show(findings: Findings, as_json: bool = False) -> None:
    if as_json:
        print(json.dumps(asdict(findings), indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()

    def table(title: str, rows: list[tuple[str, str]]) -> None:
        grid = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
        for row in rows:
            grid.add_row(*row)
        console.print(grid)
        console.print()

    table("Versions", [("python", findings.python), *findings.versions.items()])
    table("Devices", [(name, rest) for name, _, rest in (line.partition(": ") for line in findings.devices)])
    table("Native module", list(findings.native.items()))
    table("Backends in order of preference (MMFAST_BACKEND overrides)", list(findings.backends.items()))
    table("Attention backends", list(findings.attention.items()))
    table("OpenMP runtimes in this process", [("", path) for path in findings.openmp])
    # Each op by backend, and what is wrong
    grid = Table(
        title="Ops against their oracles (* is used; how fast they are: python -m bench.ops in a checkout)",
        title_justify="left",
        box=None,
        padding=(0, 2),
    )
    for column in ("op", "backend", "", "error", "allowed"):
        grid.add_column(column)
    for t in findings.tests:
        verdict = t.reason or ("ok" if t.passed else "WRONG")
        numbers = ("", "") if t.reason else (f"{t.error:.1e}", f"{t.bound:.0e}")
        grid.add_row(t.op, t.backend + ("*" if t.used else ""), verdict, *numbers)
    console.print(grid)
    console.print()
    for problem in findings.problems:
        console.print(f"[red]problem:[/red] {problem}", highlight=False)
    if not findings.problems:
        console.print("[green]no problems found[/green]")
