"""Matrix products with fp32 accumulation and an fp32 result: torch's wherever torch has such a product."""

from __future__ import annotations

import torch
from torch import Tensor


def torch_product(a: Tensor, b: Tensor, out: Tensor, accumulate: bool = False) -> None:
    """Makes out = a b, or out += a b. a and b share a dtype; out has it too or is fp32."""
    if out.dtype == a.dtype:
        if accumulate:
            torch.addmm(out, a, b, out=out)
        else:
            torch.mm(a, b, out=out)
    elif a.device.type == "cuda":
        if accumulate:
            torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
        else:
            torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:  # no mixed product on CPU: rounding to bf16 first would cost 5e-2 nat a token
        torch_product(a.to(out.dtype), b.to(out.dtype), out, accumulate)
