"""linear_logprob whole, on the GPU's folds: every path, forward and backward, against fp64.

Without a device the CUDA kernels stand in for the torch folds (emulated on the host), Triton runs in its interpreter.
"""

import pytest
import torch

from tests.kernels.emulation import folds_on_a_gpu
from tests.ops.logprob_cases import make, problems

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PATHS = {
    "stats": (False, False, 0),
    "direct": (True, False, 0),
    "kept": (True, True, 1 << 30),
    "recompute": (True, True, 0),
}
OPTIONS = {"bias": True, "softcap": 8.0, "temperature": 0.7}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "all options"])
@pytest.mark.parametrize("path", list(PATHS))
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_every_path(
    backend: str, path: str, options: dict, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain call asks for log-probs alone, the other for all outputs and the entropy's gradient."""
    backend = folds_on_a_gpu(backend, monkeypatch)
    input_grad, head_grad, keep = PATHS[path]
    with DEVICE:
        case = make(12, 40, 203, 12, dtype, trained=head_grad, confidence=(0.5, 0.99, 0.9999), **options)
        case.tensors["hidden"].requires_grad_(input_grad)
        entropy = bool(options) and input_grad
        assert not problems(case, backend, logp_only=not options, keep_budget=keep, tile_budget=1, entropy_grad=entropy)


@pytest.mark.parametrize("rise", [20.0, 60.0])  # within a base's reach, and beyond it
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", ["direct", "kept"])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_maxima_that_rise_from_tile_to_tile(
    backend: str, path: str, dtype: torch.dtype, rise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What earlier tiles gave, G and the kept E alike, is brought to the last base; five tiles, the last ragged."""
    backend = folds_on_a_gpu(backend, monkeypatch)
    input_grad, head_grad, keep = PATHS[path]
    with DEVICE:
        case = make(6, 24, 1037, 6, dtype, trained=head_grad, bias=True)
        case.tensors["hidden"].requires_grad_(input_grad)
        with torch.no_grad():
            case.tensors["bias"] += torch.arange(1037, device=DEVICE) // 256 * rise
        case.targets[:3] = torch.tensor([0, 300, 1036])
        assert not problems(case, backend, logp_only=True, keep_budget=keep, tile_budget=1)
