"""16-bit floats by integer arithmetic (csrc/cpu/half.h): every half, and what decides a rounding, to the bit."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from mmfast.ops.dispatch import native
from mmfast.ops.rows import segment_sum

ROOT = Path(__file__).parents[2]
PROGRAM = """
#include "cpu/half.h"
#include <cstdio>
#include <vector>
int main(int, char** names) {  // halves -> floats, floats -> halves: one file each, in and out
  std::vector<uint16_t> halves(65536);
  std::vector<float> wide(65536);
  for (int i = 0; i < 65536; ++i) wide[i] = float(mmfast::Float16{uint16_t(i)});
  std::FILE* out = std::fopen(names[1], "wb");
  std::fwrite(wide.data(), 4, wide.size(), out);
  std::fclose(out);
  std::FILE* in = std::fopen(names[2], "rb");
  out = std::fopen(names[3], "wb");
  for (size_t n; (n = std::fread(wide.data(), 4, 65536, in)) > 0;) {
    for (size_t i = 0; i < n; ++i) halves[i] = mmfast::Float16::from(wide[i]).bits;
    std::fwrite(halves.data(), 2, n, out);
  }
  return std::fclose(out);
}
"""


def every_half() -> torch.Tensor:
    return torch.from_numpy(np.arange(65536, dtype=np.uint16).view(np.float16).copy())


def same_bits(ours: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Equal to the bit; a NaN need only be one."""
    nan = wanted.isnan()
    return bool(
        torch.equal(ours.isnan(), nan) and torch.equal(ours[~nan].view(torch.int16), wanted[~nan].view(torch.int16))
    )


@pytest.mark.skipif(native() is None, reason="mmfast._C was not built")
def test_sums_of_every_half_with_many_others_are_torchs() -> None:
    halves = every_half()
    n = len(halves)
    copies = torch.stack((torch.arange(n), n + torch.arange(n)), 1).flatten()
    offsets = torch.arange(0, 2 * n + 1, 2)
    others = [
        -0.0,
        0.0,
        6e-8,
        -6e-8,
        6.1e-5,
        0.1,
        1.0,
        -1 / 3,
        1000.5,
        2047.0,
        32752.0,
        -65504.0,
        float("inf"),
        float("nan"),
    ]
    for other in others:
        right = torch.full_like(halves, other)
        ours = segment_sum(torch.cat((halves, right))[:, None], copies, offsets, "cpu")[:, 0]
        assert same_bits(ours, (halves.float() + right.float()).half()), other


def test_conversions_of_every_half_and_of_every_rounding_between_two_are_numpys(tmp_path: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler is here")
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    finite = np.sort(halves[np.isfinite(halves)].astype(np.float32))
    middle = (finite[1:] + finite[:-1]) / 2  # exact: between two halves a float has room
    edges = np.array([65520, np.nextafter(np.float32(65520), np.float32(0)), 1e38, np.inf, 1e-45, 1e-38], np.float32)
    random = np.random.default_rng(0).integers(0, 2**32, 200_000, np.uint32).view(np.float32)
    asked = np.concatenate([finite, middle, np.nextafter(middle, np.float32(-np.inf)),
                            np.nextafter(middle, np.float32(np.inf)), edges, -edges, random])  # fmt: skip
    (tmp_path / "program.cpp").write_text(PROGRAM)
    (tmp_path / "floats").write_bytes(asked.tobytes())
    program = tmp_path / "program"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
    subprocess.run([compiler, *flags, str(tmp_path / "program.cpp"), "-o", str(program)], check=True)
    files = [str(tmp_path / name) for name in ("wide", "floats", "narrow")]
    subprocess.run([str(program), *files], check=True)

    wide = np.frombuffer((tmp_path / "wide").read_bytes(), np.uint32)
    wanted_wide = halves.astype(np.float32)
    numbers = ~np.isnan(wanted_wide)
    assert np.array_equal(wide[numbers], wanted_wide[numbers].view(np.uint32))
    # A NaN keeps its sign and payload and becomes quiet, as the processor's own instruction does.
    payload = (halves.view(np.uint16)[~numbers].astype(np.uint32) & 0x3FF) << 13
    sign = (halves.view(np.uint16)[~numbers].astype(np.uint32) & 0x8000) << 16
    assert np.array_equal(wide[~numbers], sign | 0x7FC00000 | payload)

    narrow = np.frombuffer((tmp_path / "narrow").read_bytes(), np.uint16)
    with np.errstate(over="ignore"):
        wanted = asked.astype(np.float16)
    numbers = ~np.isnan(asked)
    assert len(narrow) == len(asked) and np.array_equal(narrow[numbers], wanted[numbers].view(np.uint16))
    bits = asked[~numbers].view(np.uint32)
    assert np.array_equal(narrow[~numbers], (bits >> 16 & 0x8000) | 0x7E00 | (bits >> 13 & 0x3FF))
