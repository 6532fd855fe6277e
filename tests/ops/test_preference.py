"""preference_loss: every kind and option against the oracle (autograd over the papers' formulas) and against TRL."""

import math
from contextlib import nullcontext

import pytest
import torch

from mmfast.ops.kinds import KINDS, REFERENCE_FREE, SORTING
from mmfast.ops.oracles.preference import preference_reference
from mmfast.ops.preference import METRICS, preference_loss
from mmfast.ops.preference_math import make_spec
from tests.ops.places import generator

EXTRA = {
    "robust": {"label_smoothing": 0.2}, "exo_pair": {"label_smoothing": 0.1}, "discopop": {"tau": 0.3},
    "simpo": {"simpo_margin": 0.4, "label_smoothing": 0.1}, "bco_pair": {"delta": 0.3},
}  # fmt: skip


def data(dtype=torch.float64, seed=0, low=-3.0):
    """Five entries of lengths 3, 1, 4, 2, 5 over 11 log-probs that several of them share; six pairs."""
    g = generator(seed)
    make = lambda *shape: torch.rand(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    responses = torch.tensor([0, 3, 4, 8, 10, 15], dtype=torch.int32)
    return {
        "logps": (make(11) * low - 0.01).to(dtype).requires_grad_(),
        "ref_logps": (make(15) * low - 0.01).to(dtype),
        "responses": responses,
        "pairs": torch.tensor([[0, 1], [2, 1], [4, 3], [0, 4], [3, 0], [1, 2]]),
        "index": torch.tensor([0, 1, 2, 3, 0, 1, 4, 5, 6, 7, 0, 8, 9, 10, 5]),
        "weights": (make(15) + 0.5).to(dtype),
        "pair_weights": (make(6) + 0.2).to(dtype),
    }


def here(change):
    """The tensors of a case, on the place's device."""
    return {k: v.to(torch.get_default_device()) if isinstance(v, torch.Tensor) else v for k, v in change.items()}


def options(loss, **changes):
    extra = dict(EXTRA.get(loss, {})) | changes
    if "delta" in extra:
        extra["delta"] = torch.tensor(extra["delta"], dtype=torch.float64)
    return extra


def compare(arguments, backend, rtol=1e-10, atol=1e-12, **extra):
    logps, ref = arguments["logps"], arguments["ref_logps"]
    spec_names = ("loss", "beta", "average", "label_smoothing", "sft_weight", "sft_average", "f_divergence", "f_alpha",
                  "tau", "simpo_margin", "ld_alpha", "pair_count")  # fmt: skip
    spec = make_spec(
        **{k: v for k, v in extra.items() if k in spec_names}, pairs=len(arguments["pairs"]),
        has_reference=ref is not None, has_delta=extra.get("delta") is not None,
    )  # fmt: skip
    out = preference_loss(**arguments, **extra, backend=backend)
    wide = {k: v.detach().double() if v is not None and v.is_floating_point() else v for k, v in arguments.items()}
    wide["logps"].requires_grad_()
    wanted, metrics = preference_reference(
        wide["logps"], wide.get("index"), wide.get("weights"), wide["ref_logps"], wide["responses"].long(),
        wide["pairs"], wide.get("pair_weights"), extra.get("delta"), spec,
    )  # fmt: skip
    torch.testing.assert_close(out.loss.double(), wanted, rtol=rtol, atol=atol)
    for name, row in zip(METRICS, metrics, strict=True):
        found = getattr(out, name)
        assert not found.requires_grad and found.dtype == logps.dtype
        torch.testing.assert_close(found.double(), row, rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")
    (found,) = torch.autograd.grad(out.loss * 1.7, logps)
    (wanted,) = torch.autograd.grad(wanted * 1.7, wide["logps"])
    torch.testing.assert_close(found.double(), wanted, rtol=rtol, atol=atol)


def without(arguments, *names):
    return {k: (None if k == "ref_logps" and k in names else v) for k, v in arguments.items()
            if k == "ref_logps" or k not in names}  # fmt: skip


def suited(loss):
    arguments = data()
    if loss in REFERENCE_FREE:
        arguments = without(arguments, "ref_logps")
    return without(arguments, "pair_weights") if loss in SORTING else arguments


@pytest.fixture
def sorted_too(backend, loss):
    """The backend; a loss that sorts refuses all but torch, and is compared there."""
    if loss not in SORTING or backend == "torch":
        return backend
    with pytest.raises(ValueError, match="sorts over the batch"):
        preference_loss(**suited(loss), loss=loss, backend=backend, **options(loss))
    return "torch"


@pytest.mark.parametrize("loss", KINDS)
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("beta", [0.1, 1.5])
def test_every_kind_equals_the_oracle(loss, sorted_too, average, beta):
    compare(suited(loss), sorted_too, loss=loss, average=average, beta=beta, **options(loss))


@pytest.mark.parametrize("loss", KINDS)
def test_every_kind_with_an_sft_term_and_ld_alpha(loss, sorted_too):
    cut = {} if loss in ("orpo", "sft") else {"ld_alpha": 0.3}
    count = {} if loss in SORTING else {"pair_count": 17.0}
    for sft_average in (False, True):
        more = {"sft_weight": 0.7, "sft_average": sft_average, **cut, **count}
        compare(suited(loss), sorted_too, loss=loss, **options(loss), **more)
        compare(suited(loss), sorted_too, loss=loss, average=True, **options(loss), **more)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"])
@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop"])
def test_divergences(backend, divergence, loss):
    alpha = {"f_alpha": 0.4} if divergence == "alpha_divergence" else {}
    compare(data(low=-0.3), backend, loss=loss, f_divergence=divergence, beta=0.5, **alpha, **options(loss))


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "orpo", "discopop"])
def test_fp32_stays_within_rounding_of_the_exact_sums(backend, loss):
    g = generator(3)
    arguments = suited(loss) | data(torch.float32) | {
        "logps": (torch.rand(400, generator=g) * -4).requires_grad_(),
        "ref_logps": torch.rand(400, generator=g) * -4,
        "responses": torch.tensor([0, 150, 150, 151, 400]), "pairs": torch.tensor([[0, 3], [2, 3], [1, 0]]),
    }  # fmt: skip
    arguments = without(arguments, "index", "weights", "pair_weights")
    if loss in REFERENCE_FREE:  # and orpo has no odds of an empty answer
        arguments = without(arguments, "ref_logps") | {"pairs": torch.tensor([[0, 3], [2, 3]])}
    compare(arguments, backend, 2e-6, 1e-6, loss=loss)


def test_cdpo_and_the_plain_call(backend):
    arguments = without(data(), "index", "weights", "pair_weights")
    arguments["logps"] = torch.linspace(-2, -0.1, 15, dtype=torch.float64, requires_grad=True)
    compare(arguments, backend, label_smoothing=0.25)
    assert (
        preference_loss(**arguments, backend=backend).loss
        == preference_loss(**arguments, index=torch.arange(15), pair_count=6, backend=backend).loss.item()
    )


@pytest.mark.parametrize("loss", [k for k in KINDS if k not in SORTING])
def test_extreme_margins_stay_finite(backend, loss):
    """Margins of +-1e4 nats: the loss may be huge, never NaN; the gradient is finite."""
    for sign in (1.0, -1.0):
        logps = torch.tensor([-2e4, -1e-8, 0.0, -2e4][:: int(sign)], requires_grad=True)
        ref = None if loss in REFERENCE_FREE else torch.tensor([-1.0, -1.0, -1.0, -1.0])
        out = preference_loss(logps, ref, torch.tensor([0, 2, 4]), torch.tensor([[0, 1], [1, 0]]), loss=loss, beta=0.5,
                              backend=backend, **{k: v for k, v in options(loss).items() if k != "delta"})  # fmt: skip
        out.loss.backward()
        assert torch.isfinite(out.loss) or loss == "discopop", loss
        assert torch.isfinite(logps.grad).all() or loss == "discopop", loss


def test_discopop_does_not_multiply_infinity_by_zero(backend):
    logps = torch.tensor([-5000.0, 0.0], requires_grad=True)
    out = preference_loss(logps, torch.zeros(2), torch.tensor([0, 1, 2]), torch.tensor([[0, 1]]), loss="discopop",
                          beta=1.0, backend=backend)  # fmt: skip
    assert out.loss.item() == 5000.0  # purely logistic far to the left


def test_empty_pieces(backend):
    empty = torch.zeros(0, requires_grad=True)
    out = preference_loss(empty, empty.detach(), torch.tensor([0]), torch.zeros(0, 2, dtype=torch.int64),
                          backend=backend)  # fmt: skip
    out.loss.backward()
    assert out.loss == 0 and empty.grad.shape == (0,) and out.margins.shape == (0,)
    logps = torch.tensor([-1.0, -2.0], requires_grad=True)  # an empty entry, and one that stands in no pair
    for average in (False, True):
        out = preference_loss(logps, torch.zeros(2), torch.tensor([0, 1, 1, 2]), torch.tensor([[0, 1]]), beta=1.0,
                              average=average, backend=backend)  # fmt: skip
        torch.testing.assert_close(out.loss.item(), math.log1p(math.e), rtol=1e-6, atol=0)
        (grad,) = torch.autograd.grad(out.loss, logps)
        assert grad[0] < 0 and grad[1] == 0


def test_gradcheck_opcheck_compile_and_no_grad(backend):
    arguments = data()
    logps = arguments.pop("logps")
    call = lambda x: preference_loss(x, **arguments, loss="apo_down", sft_weight=0.3, backend=backend)  # noqa: E731
    assert torch.autograd.gradcheck(lambda x: call(x).loss, logps)
    spec = make_spec("sigmoid", pairs=6)
    a = arguments
    torch.library.opcheck(torch.ops.mmfast.preference_loss.default, (
        logps, [a["index"], a["weights"], a["ref_logps"], a["responses"], a["pairs"], a["pair_weights"], *[None] * 3],
        list(spec), True, backend,
    ))  # fmt: skip
    compiled = torch.compile(lambda x: call(x).loss * 2, fullgraph=True, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(logps), logps)
    (wanted,) = torch.autograd.grad(call(logps).loss * 2, logps)
    assert torch.equal(found, wanted)
    with torch.no_grad(), torch.autocast(logps.device.type, torch.bfloat16):
        out = call(logps)
    assert torch.equal(out.loss, call(logps).loss) and out.loss.dtype == torch.float64 and not out.loss.requires_grad


def test_two_runs_agree_to_the_bit_and_retain_graph_works(backend):
    arguments = data(torch.float32)
    out = preference_loss(**arguments, backend=backend)
    (first,) = torch.autograd.grad(out.loss, arguments["logps"], retain_graph=True)
    (second,) = torch.autograd.grad(out.loss, arguments["logps"])
    (third,) = torch.autograd.grad(preference_loss(**arguments, backend=backend).loss, arguments["logps"])
    assert torch.equal(first, second) and torch.equal(first, third)


INVERSE = {"index_copies": torch.arange(15), "index_offsets": torch.tensor([*range(11), 15])}  # of shape, not of value
BAD = [
    ({"loss": "dpo"}, "unknown loss 'dpo'"),
    ({"loss": "simpo"}, "no reference model"),
    ({"ref_logps": None}, "needs ref_logps"),
    ({"beta": 0.0}, "beta must be positive"),
    ({"loss": "robust", "label_smoothing": 0.5}, r"in \[0, 0.5\)"),
    ({"loss": "exo_pair"}, "label_smoothing > 0"),
    ({"loss": "hinge", "label_smoothing": 0.1}, "no effect on 'hinge'"),
    ({"f_divergence": "kl"}, "unknown f_divergence"),
    ({"f_divergence": "forward_kl", "loss": "apo_zero"}, "not defined for 'apo_zero'"),
    ({"f_divergence": "alpha_divergence"}, "f_alpha"),
    ({"tau": 0.1}, "tau has no effect"),
    ({"simpo_margin": 0.1}, "simpo_margin has no effect"),
    ({"delta": torch.tensor(0.1)}, "delta has no effect"),
    ({"ld_alpha": 2.0}, "ld_alpha"),
    ({"sft_average": True}, "without sft_weight"),
    ({"pair_count": 0}, "pair_count"),
    ({"loss": "aot"}, "pair_weights are not defined"),
    ({"loss": "aot", "pair_weights": None, "pair_count": 12}, "into one pack"),
    ({"logps": [0.0] * 11}, "logps must be a tensor, not list"),
    ({"logps": torch.zeros(11, dtype=torch.bfloat16)}, "logps must be float32 or float64"),
    ({"ref_logps": torch.zeros(15).bfloat16()}, "ref_logps must be float32 or float64"),
    ({"ref_logps": torch.zeros(11)}, r"ref_logps must have shape \[15\], not \[11\]"),
    ({"weights": torch.zeros(14)}, r"weights must have shape \[15\]"),
    ({"pair_weights": torch.zeros(5)}, "pair_weights must have shape"),
    ({"pairs": torch.zeros(3, 3, dtype=torch.int64)}, r"pairs must have shape \[P,2\]"),
    ({"pairs": torch.tensor([[0, 5]]), "pair_weights": None}, "pairs holds 5"),
    ({"index": torch.full((15,), 11)}, "index holds 11"),
    ({"index": torch.full((15,), -1)}, "index holds -1"),
    ({"index_copies": torch.arange(15)}, "go together"),
    ({"index": None, "logps": torch.zeros(15)} | INVERSE, "together, and with index"),
    (INVERSE | {"index_copies": torch.arange(14)}, r"index_copies must have shape \[15\]"),
    (INVERSE | {"index_offsets": torch.arange(12).int()}, "index_offsets must be int64"),
    ({"responses": torch.tensor([0, 3, 2, 8, 10, 15])}, "responses must"),
    ({"responses": torch.tensor([0, 3, 4, 8, 10, 14])}, "responses must"),
    ({"responses": torch.tensor([], dtype=torch.int32)}, "responses needs"),
]


@pytest.mark.parametrize(
    "change,message",
    [({"index_copies": torch.arange(15) + 1}, "index_copies holds 15"),
     ({"index_offsets": torch.arange(12)}, "index_offsets must")],
)  # fmt: skip
def test_a_wrong_inverse_is_named_where_it_is_read(change, message):
    """The CPU kernel has no use for it."""
    arguments = data() | INVERSE
    for backend in ("torch", "cpu"):
        with pytest.raises(ValueError, match=message) if backend == "torch" else nullcontext():
            preference_loss(**arguments | change, backend=backend)


@pytest.mark.parametrize("change,message", BAD)
def test_wrong_arguments_are_named(backend, change, message, monkeypatch):
    monkeypatch.setenv("MMFAST_CHECK", "1")
    with pytest.raises(ValueError, match=message):
        preference_loss(**({"backend": backend} | data() | here(change)))
