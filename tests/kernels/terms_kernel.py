"""A kernel that is the formulas of preference_loss and nothing else, for test_preference_terms.py."""

import triton
import triton.language as tl

from mmfast.kernels.preference import double, pair_terms


@triton.jit
def terms_kernel(
    a_c, a_r, n_c, n_r, value, d_c, d_r, shift: tl.float64, b: tl.float64, eps: tl.float64, log_eps: tl.float64,
    log1m_eps: tl.float64, f_alpha: tl.float64, tau: tl.float64, margin: tl.float64,
    KIND: tl.constexpr, DIVERGENCE: tl.constexpr, PER_TOKEN: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, N)
    results = pair_terms(
        tl.load(a_c + i), tl.load(a_r + i), tl.load(n_c + i), tl.load(n_r + i), double(shift), double(b), double(eps),
        double(log_eps), double(log1m_eps), double(f_alpha), double(tau), double(margin), KIND, DIVERGENCE, PER_TOKEN,
    )  # fmt: skip
    tl.store(value + i, results[0])
    tl.store(d_c + i, results[1])
    tl.store(d_r + i, results[2])
