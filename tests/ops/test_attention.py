"""Tree attention against independent sequences: every path of the tree computed alone, plainly, in fp64."""

import math
import os
import subprocess
import sys
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd

from mmfast.ops import attention as attention_module
from mmfast.ops import attention_exact
from mmfast.ops.attention import BACKENDS, choose_attention, explain, tree_attention
from mmfast.ops.attention_exact import _forward, _gradients, _runs, exact_attention
from mmfast.ops.rows import accumulator
from tests.ops.places import generator

from .trees import DEEP, PAIR, tree

COPIES = ("k_copies", "k_copy_offsets")
WIDE = tree((129, (60,), (70, (5,), (9,))), (33,), (200, (1,), (17,)), (1,))  # more than a block of keys or queries


@pytest.fixture(params=["cpu", "loop"])
def exact(request, device):
    """The backends for fp32."""
    if reason := explain(device, torch.float32, 16)[request.param]:
        pytest.skip(reason)
    return request.param


def plain(q, k, v, window, scale=None):
    """One sequence, written out."""
    n, group = q.shape[0], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("ihd,jhd->hij", q, k) * (q.shape[2] ** -0.5 if scale is None else scale)
    i, j = torch.arange(n)[:, None], torch.arange(n)[None]
    seen = (j <= i) & (j > i - (window or n))
    return torch.einsum("hij,jhd->ihd", scores.masked_fill(~seen, -math.inf).softmax(-1), v)


def by_paths(t, q, k, v, window, scale=None):
    """Every row from the first path that holds it: rows shared by paths give the same value on each."""
    out = torch.zeros_like(q)
    filled = torch.zeros(t.size, dtype=torch.bool)
    for path in t.paths:
        rows = torch.tensor(path)
        new = ~filled[rows]
        out = out.index_add(0, rows[new], plain(q[rows], k[rows], v[rows], window, scale)[new])
        filled[rows] = True
    assert filled.all()
    return out


def inputs(t, heads=4, kv=2, width=8, dtype=torch.float64, seed=0):
    g = generator(seed)
    make = lambda h: torch.randn(t.size, h, width, generator=g, dtype=torch.float64).to(dtype).requires_grad_()  # noqa: E731
    return make(heads), make(kv), make(kv)


def call(t, q, k, v, **extra):
    t = t.to(q.device)
    return tree_attention(q, k, v, t.q_offsets, t.k_index, t.k_offsets, max_q=t.max_q, max_k=t.max_k, **extra)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("t", [PAIR, DEEP, tree((4,)), tree((1,), (1,))], ids=["pair", "deep", "plain", "single"])
@pytest.mark.parametrize("heads,kv,width", [(4, 2, 8), (3, 3, 32), (8, 1, 40)])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_equals_independent_sequences_forward_and_backward(t, heads, kv, width, window):
    q, k, v = inputs(t, heads, kv, width)
    grad = torch.randn(q.shape, dtype=torch.float64)
    wanted = torch.autograd.grad(by_paths(t, q, k, v, window), (q, k, v), grad)
    found = torch.autograd.grad(call(t, q, k, v, window=window), (q, k, v), grad)
    torch.testing.assert_close(call(t, q, k, v, window=window), by_paths(t, q, k, v, window), rtol=1e-12, atol=1e-12)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("t", [PAIR, DEEP, WIDE, tree((1,), (1,))], ids=["pair", "deep", "wide", "single"])
@pytest.mark.parametrize("heads,kv,width", [(4, 2, 16), (3, 3, 64), (2, 1, 80), (1, 1, 128)])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_the_kernel_is_as_near_to_fp64_as_torch(t, heads, kv, width, window):
    if reason := explain(torch.get_default_device(), torch.float32, width)["cpu"]:
        pytest.skip(reason)
    q, k, v = inputs(t, heads, kv, width, torch.float32)
    grad = torch.randn(q.shape, generator=generator(3), dtype=torch.float64)
    doubles = [x.detach().double().requires_grad_() for x in (q, k, v)]
    truth = by_paths(t, *doubles, window)
    wanted = [truth, *torch.autograd.grad(truth, doubles, grad)]
    found = {}
    for backend in ("cpu", "loop"):
        out = call(t, q, k, v, window=window, backend=backend)
        found[backend] = [out, *torch.autograd.grad(out, (q, k, v), grad.float())]
    for ours, theirs, want in zip(found["cpu"], found["loop"], wanted, strict=True):
        assert (ours - want).abs().max() < 2 * (theirs - want).abs().max() + 1e-6 * (1 + want.abs().max())


@pytest.mark.parametrize("scale", [-0.7, 0.0, 1e-3, 4.0])
def test_any_scale(exact, scale):
    q, k, v = inputs(WIDE, 2, 1, 16, torch.float32)
    doubles = [x.detach().double().requires_grad_() for x in (q, k, v)]
    found, wanted = call(WIDE, q, k, v, scale=scale, backend=exact), by_paths(WIDE, *doubles, None, scale)
    torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=2e-5)
    grad = torch.randn(q.shape, generator=generator(3))
    ours = torch.autograd.grad(found, (q, k, v), grad)
    for a, b in zip(ours, torch.autograd.grad(wanted, doubles, grad.double()), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-4, atol=2e-4 * max(1.0, scale))


def test_any_layout_gives_the_same_bits(exact):
    q, k, v = (x.detach() for x in inputs(WIDE, 4, 2, 32, torch.float32))
    grad = torch.randn(q.shape, generator=generator(3))
    base = backward_of(q, k, v, grad, exact)
    heads_first = lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)  # noqa: E731
    width_apart = lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)  # noqa: E731
    for change in (heads_first, width_apart):
        for at in range(4):
            changed = [change(x) if i == at else x for i, x in enumerate((q, k, v, grad))]
            assert all(torch.equal(a, b) for a, b in zip(base, backward_of(*changed, exact), strict=True))


def backward_of(q, k, v, grad, backend, t=WIDE, **more):
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = call(t, *leaves, backend=backend, **more)
    return out, *torch.autograd.grad(out, leaves, grad)


def test_the_number_of_threads_changes_no_bit(exact):
    if exact == "loop":
        pytest.skip("torch's own")
    # one key head, so few tasks: the forward pass cuts them by their queries
    q, k, v = (x.detach() for x in inputs(tree((500, (30,), (40,))), 2, 1, 32, torch.float32))
    grad = torch.randn(q.shape, generator=generator(3))
    threads, found = torch.get_num_threads(), []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        found.append(backward_of(q, k, v, grad, exact, tree((500, (30,), (40,)))))
    torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_runs_without_queries_and_fewer_queries_than_rows(exact):
    """A run may have keys alone, whose gradients are zero; and k may have more rows than q (the last layer's have)."""
    q, k, v = (x.detach() for x in inputs(PAIR, 2, 2, 16, torch.float32))
    full = by_paths(PAIR, *(x.double() for x in (q, k, v)), None)
    last = PAIR.q_offsets.tolist()[1:]
    keep = torch.tensor([last[0] - 2, last[0] - 1, last[1] - 1], device=q.device)  # of each run its last ones
    index = torch.cat([PAIR.k_index.to(q.device), torch.tensor([0, 1])])
    q_offsets = torch.tensor([0, 2, 3, 3])
    k_offsets = torch.cat([PAIR.k_offsets.to(q.device), torch.tensor([len(index)])])
    leaves = [x.requires_grad_() for x in (q[keep], k, v)]
    out = tree_attention(*leaves, q_offsets, index, k_offsets, max_q=2, max_k=PAIR.max_k, backend=exact)
    torch.testing.assert_close(out.double(), full[keep], rtol=1e-5, atol=1e-6)
    grads = torch.autograd.grad(out.sum(), leaves)
    unseen = sorted(set(range(PAIR.size)) - set(PAIR.k_index.tolist()))
    assert all(bool(g.isfinite().all()) for g in grads) and not grads[1][unseen].any()
    alone = tree_attention(*leaves, torch.tensor([0, 3]), index[-4:], torch.tensor([0, 4]),
                           max_q=3, max_k=4, backend=exact)  # fmt: skip
    assert alone.shape == (3, 2, 16)


def test_nan_and_infinity_are_not_hidden(exact):
    if exact == "loop":
        pytest.skip("torch's kernel gives zeros there")
    q, k, v = (x.detach() for x in inputs(PAIR, 2, 2, 16, torch.float32))
    for poison in (math.nan, math.inf):
        for at in range(3):
            changed = [x.clone() for x in (q, k, v)]
            changed[at][8] = poison  # row 8 is seen by itself and row 9
            out = call(PAIR, *changed, backend=exact)
            assert not out[8].isfinite().any() and out[10:].isfinite().all()


ISA_CHECK = """
import torch
from mmfast.ops.attention import explain
from mmfast.ops.dispatch import native
from tests.ops import test_attention as t
assert native().cpu_isa() == "{isa}"
torch.set_default_device("cpu")
if "{isa}" == "baseline":
    assert "AVX2" in explain("cpu", torch.float32, 64)["cpu"]
    assert t.choose_attention(torch.device("cpu"), torch.float32, 64, None, "auto") == "loop"
else:
    for tree in (t.DEEP, t.WIDE):
        for heads in ((4, 2, 16), (2, 1, 80), (1, 1, 128)):
            for window in (None, 3, 100):
                t.test_the_kernel_is_as_near_to_fp64_as_torch(tree, *heads, window)
    t.test_any_layout_gives_the_same_bits("cpu")
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_older_instruction_sets(isa):
    if reason := explain("cpu", torch.float32, 16)["cpu"]:
        pytest.skip(reason)
    done = subprocess.run(
        [sys.executable, "-c", ISA_CHECK.format(isa=isa)], cwd=Path(__file__).parents[2], capture_output=True,
        env={**os.environ, "MMFAST_CPU": isa, "OMP_NUM_THREADS": "1"}, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("device")
def test_given_inverse_scale_and_strided_inputs():
    q, k, v = inputs(DEEP)
    copies, offsets = DEEP.inverse()
    base = call(DEEP, q, k, v, scale=0.3)
    torch.testing.assert_close(base, by_paths(DEEP, q, k, v, None, scale=0.3))
    strided = q.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    other = call(DEEP, strided, k, v, scale=0.3, k_copies=copies, k_copy_offsets=offsets)
    assert torch.equal(base, other)
    grad = torch.randn_like(base)
    first = torch.autograd.grad(base, (q, k, v), grad)
    second = torch.autograd.grad(other, (strided, k, v), grad)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype,bound", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("width", [32, 64, 128, 256])
def test_lower_precisions(dtype, bound, width):
    q, k, v = inputs(DEEP, 2, 1, width, dtype)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    grad = torch.randn(q.shape, dtype=torch.float64)
    found, wanted = call(DEEP, q, k, v), by_paths(DEEP, *exact, None)
    assert found.dtype == dtype
    assert (found.double() - wanted).abs().max() < bound * wanted.abs().max()
    for a, b in zip(
        torch.autograd.grad(found, (q, k, v), grad.to(dtype)), torch.autograd.grad(wanted, exact, grad), strict=True
    ):
        assert (a.double() - b).abs().max() < 2 * bound * b.abs().max()


@pytest.mark.parametrize("queries,keys,window", [(5, 5, 0), (3, 9, 0), (1, 4, 0), (4, 7, 2)])
def test_the_written_out_run_equals_the_blocked_kernel(queries, keys, window, monkeypatch):
    """The path that other devices take in fp32."""
    g = generator(1)
    q = torch.randn(4, queries, 8, generator=g, dtype=torch.float64)
    k, v = (torch.randn(2, keys, 8, generator=g, dtype=torch.float64) for _ in "kv")
    grad = torch.randn(q.shape, generator=g, dtype=torch.float64)
    out, lse = _forward(q, k, v, scale=0.4, window=window)
    found = _gradients(grad, q, k, v, out, lse, scale=0.4, window=window)
    monkeypatch.setattr(attention_exact, "_is_blocked", lambda *_: False)
    plain_out, plain_lse = _forward(q, k, v, scale=0.4, window=window)
    torch.testing.assert_close(out, plain_out)
    torch.testing.assert_close(lse, plain_lse)
    written = _gradients(grad, q, k, v, plain_out, plain_lse, scale=0.4, window=window)
    for a, b in zip(found, written, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("device")
def test_gradcheck_and_opcheck():
    t = tree((2, (1,), (2,)))
    q, k, v = inputs(t, 2, 1, 4)
    assert torch.autograd.gradcheck(lambda *x: call(t, *x, window=2), (q, k, v))
    copies, offsets = t.inverse()
    arguments = (q, k, v, t.q_offsets, t.k_index, t.k_offsets, copies, offsets, 0.5, 0, "loop")
    torch.library.opcheck(exact_attention.op, arguments)


def test_opcheck_in_fp32(exact):
    t = tree((2, (1,), (2,)))
    indices = (t.q_offsets, t.k_index, t.k_offsets, *t.inverse())
    arguments = (*inputs(t, 2, 1, 16, torch.float32), *indices, 0.5, 2, exact)
    torch.library.opcheck(exact_attention.op, arguments)


@pytest.mark.parametrize("width", [8, 16])
def test_compiles_whole_and_works_without_gradient_and_under_autocast(device, width):
    q, k, v = inputs(PAIR, width=width, dtype=torch.float32)
    compiled = torch.compile(lambda *x: call(PAIR, *x).sin().sum(), fullgraph=True, backend="aot_eager")
    first = torch.autograd.grad(compiled(q, k, v), (q, k, v))
    second = torch.autograd.grad(call(PAIR, q, k, v).sin().sum(), (q, k, v))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        assert call(PAIR, q, k, v).dtype == torch.float32


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype,width", [(torch.float64, 8), (torch.float32, 16)])
def test_empty_stream_keeps_its_gradient(dtype, width):
    t = tree()
    q, k, v = inputs(t, width=width, dtype=dtype)
    out = call(t, q, k, v)
    assert out.shape == q.shape
    out.sum().backward()
    assert q.grad.shape == q.shape and k.grad.shape == k.shape


def test_xformers_mask_is_bottom_right():
    bias = pytest.importorskip("xformers.ops.fmha.attn_bias")
    mask = bias.BlockDiagonalCausalFromBottomRightMask.from_seqlens(
        q_seqlen=PAIR.q_offsets.diff().tolist(), kv_seqlen=PAIR.k_offsets.diff().tolist()
    ).materialize((PAIR.size, len(PAIR.k_index)))
    own = torch.zeros(PAIR.size, len(PAIR.k_index), dtype=torch.bool)
    for (q, q_end), (k, k_end) in zip(
        pairwise(PAIR.q_offsets.tolist()), pairwise(PAIR.k_offsets.tolist()), strict=True
    ):
        own[q:q_end, k:k_end] = torch.ones(q_end - q, k_end - k).tril(k_end - k - (q_end - q)).bool()
    assert torch.equal(mask == 0, own)


def test_choice_and_reasons():
    reasons = explain("cpu", torch.float64, 64)
    assert list(reasons) == list(BACKENDS) and reasons["loop"] == "" and all(reasons[b] for b in BACKENDS[:-1])
    assert "needs float32" in explain("cpu", torch.bfloat16, 64)["cpu"]
    assert "multiple of 16" in explain("cpu", torch.float32, 40)["cpu"]
    assert "CPU tensors" in explain("cuda", torch.float32, 64)["cpu"]
    assert "bfloat16" in explain("cuda", torch.float32, 64)["varlen"]
    assert "multiple of 8" in explain("cuda", torch.bfloat16, 20)["varlen"]
    kernel = "loop" if explain("cpu", torch.float32, 64)["cpu"] else "cpu"
    assert choose_attention(torch.device("cpu"), torch.float32, 64, None, "auto") == kernel
    assert choose_attention(torch.device("cpu"), torch.float32, 24, None, "auto") == "loop"
    with pytest.raises(ValueError, match=r"'cpu' was asked for but cannot be used: it needs a head dimension"):
        choose_attention(torch.device("cpu"), torch.float32, 24, None, "cpu")
    with pytest.raises(ValueError, match=r"varlen.*CUDA device"):
        choose_attention(torch.device("cpu"), torch.float32, 64, None, "varlen")
    with pytest.raises(ValueError, match="unknown backend 'sdpa'"):
        choose_attention(torch.device("cpu"), torch.float32, 64, None, "sdpa")


@pytest.fixture
def installed(monkeypatch):
    """Puts modules of these names and contents in the place of what is installed."""

    def put(**modules):
        for name, content in modules.items():
            module = ModuleType(name)
            vars(module).update(content)
            monkeypatch.setitem(sys.modules, name.replace("__", "."), module)
        attention_module._installed.cache_clear()

    yield put
    monkeypatch.undo()
    attention_module._installed.cache_clear()


def test_xformers_without_its_operators_is_not_taken(installed):
    """The wheel for another torch imports with a warning, and has no operator that runs."""
    path, attend = {"__path__": []}, {"__path__": [], "memory_efficient_attention": None}
    installed(xformers=path, xformers__ops=attend, xformers___cpp_lib={"_built_with_cuda": False})
    assert "xformers has no CUDA operators for torch" in explain("cuda", torch.bfloat16, 64)["xformers"]
    installed(xformers___cpp_lib={"_built_with_cuda": True})
    assert attention_module._installed("xformers") == ""
    installed(xformers__ops={"__path__": []})
    assert "xformers cannot be imported" in attention_module._installed("xformers")


def test_a_library_that_does_not_import_is_a_reason(installed, monkeypatch, tmp_path):
    broken = "raise ImportError('undefined symbol:\\n _ZN3c10')"
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text(broken)
    (tmp_path / "flash_attn_interface.py").write_text("import a_missing_part_of_it")
    monkeypatch.syspath_prepend(tmp_path)
    installed()
    reasons = explain("cuda", torch.bfloat16, 64)
    assert reasons["flash2"] == "flash_attn cannot be imported: undefined symbol: _ZN3c10"
    assert reasons["flash4"] == "flash_attn.cute cannot be imported: undefined symbol: _ZN3c10"
    assert reasons["flash3"] == "flash_attn_interface cannot be imported: No module named 'a_missing_part_of_it'"
    (tmp_path / "flash_attn" / "__init__.py").write_text("def flash_attn_varlen_func(): pass")
    installed()
    assert explain("cuda", torch.bfloat16, 64)["flash4"] == "flash_attn.cute is not installed"
    assert attention_module._installed("flash2") == ""


FLASH = {"flash2": "flash_attn", "flash3": "flash_attn_interface", "flash4": "flash_attn__cute__interface"}


@pytest.mark.parametrize("backend", FLASH)
def test_each_flash_attn_gets_what_it_takes(installed, backend):
    """Its own function, the runs and, but for the fourth, sizes and window; a log-sum-exp beside the result goes."""
    seen = {}

    def attend(q, k, v, **named):
        seen.update(named)
        return (q * 2, None) if backend == "flash3" else q * 2

    parents = {"flash_attn": {"__path__": []}, "flash_attn__cute": {"__path__": []}}
    installed(**parents | {FLASH[backend]: {"__path__": [], "flash_attn_varlen_func": attend}})
    runs = attention_module.Runs(PAIR.q_offsets, PAIR.k_offsets, PAIR.max_q, PAIR.max_k, 0.5, 7)
    q = torch.ones(2, 1, 4)
    assert torch.equal(attention_module._flash(backend, q, q, q, runs), q * 2)
    assert seen.pop("cu_seqlens_q") is runs.q_offsets and seen.pop("cu_seqlens_k") is runs.k_offsets
    assert (seen.pop("softmax_scale"), seen.pop("causal")) == (0.5, True)
    sized = {"max_seqlen_q": PAIR.max_q, "max_seqlen_k": PAIR.max_k, "window_size": (6, 0), "deterministic": False}
    assert seen == ({} if backend == "flash4" else sized)


@pytest.fixture
def flash_of_torch(monkeypatch):
    """Stands in for torch's two flash functions, run by run; notes every tensor whose heads they would read."""
    seen = []

    def window_of(causal, sides):
        assert sides["window_size_right"] == 0 and causal == (sides["window_size_left"] < 0)
        return {"scale": sides["scale"], "window": sides["window_size_left"] + 1}

    def forward(q, k, v, q_offsets, k_offsets, max_q, max_k, dropout, causal, debug, **sides):
        assert q_offsets.dtype == k_offsets.dtype == torch.int32
        seen.append(q)
        out, lse = torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0], dtype=accumulator(q.dtype))
        for mine, keys in _runs(q_offsets, k_offsets):
            run = _forward(*(x.transpose(0, 1) for x in (q[mine], k[keys], v[keys])), **window_of(causal, sides))
            out[mine], lse[:, mine] = run[0].transpose(0, 1), run[1]
        return out, lse, q.new_empty(2), q.new_empty(0), q.new_empty(0)

    def backward(grad, q, k, v, out, lse, q_offsets, k_offsets, max_q, max_k, dropout, causal, *state, **sides):
        seen.extend((grad, q))
        made = [torch.empty_like(x) for x in (q, k, v)]
        for mine, keys in _runs(q_offsets, k_offsets):
            run = [x.transpose(0, 1) for x in (grad[mine], q[mine], k[keys], v[keys], out[mine])]
            found = _gradients(*run, lse[:, mine], **window_of(causal, sides))
            for whole, part, at in zip(made, found, (mine, keys, keys), strict=True):
                whole[at] = part.transpose(0, 1)
        return tuple(made)

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", forward)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_backward", backward)
    monkeypatch.setattr(attention_module, "choose_attention", lambda *_: "varlen")
    return seen


@pytest.mark.parametrize("window", [None, 3])
def test_varlen_equals_the_loop(flash_of_torch, monkeypatch, window):
    q, k, v = inputs(WIDE, 4, 2, 16, torch.float64)
    out = call(WIDE, q, k, v, window=window, scale=0.3)
    grad = torch.randn(q.shape, generator=generator(3), dtype=torch.float64)
    found = out, *torch.autograd.grad(out, (q, k, v), grad)
    monkeypatch.setattr(attention_module, "choose_attention", lambda *_: "loop")
    out = call(WIDE, q, k, v, window=window, scale=0.3)
    for ours, loops in zip(found, (out, *torch.autograd.grad(out, (q, k, v), grad)), strict=True):
        torch.testing.assert_close(ours, loops, rtol=1e-12, atol=1e-12)
    assert len(flash_of_torch) == 3


def test_varlen_needs_torchs_kernels(monkeypatch):
    attention_module._installed.cache_clear()
    assert attention_module._installed("varlen") == "this torch was built without flash attention"
    old = SimpleNamespace(default=torch.ops.aten.index_select.default)
    for forward in (old, None):
        monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", forward)
        attention_module._installed.cache_clear()
        assert "has no _flash_attention_forward with a window" in attention_module._installed("varlen")
    attention_module._installed.cache_clear()


@pytest.mark.parametrize("name", ["flash3", "varlen", "xformers"])
def test_libraries_get_heads_that_start_at_16_bytes(flash_of_torch, monkeypatch, name):
    """On a GPU their kernels fault where one does not, and then every later call of the process fails."""
    seen = flash_of_torch

    def attend(*arguments):
        q = next(x for x in arguments if torch.is_tensor(x))
        seen.append(q)
        return Doubled.apply(q)

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q):
            return q * 2

        @staticmethod
        def backward(ctx, grad):
            seen.extend((grad, grad))
            return grad * 2

    if name != "varlen":
        monkeypatch.setattr(attention_module, "choose_attention", lambda *_: name)
        monkeypatch.setattr(attention_module, "_flash" if name == "flash3" else "_xformers", attend)
    rows = PAIR.size
    wide = torch.randn(rows * 3 * 16 + 1).bfloat16()
    layouts = {
        "one element on": wide[1 : 1 + rows * 2 * 8].view(rows, 2, 8),
        "heads 9 apart": wide[: rows * 2 * 9].view(rows, 2, 9)[..., :8],
        "every second": wide[: rows * 2 * 16].view(rows, 2, 16)[..., ::2],
        "expanded": wide[:8].expand(rows, 2, 8),
        "dense": wide[: rows * 2 * 8].view(rows, 2, 8),
    }
    grads = layouts | {"of a sum": wide[:1].view(1, 1, 1).expand(rows, 2, 8)}
    for q, grad in product(layouts.values(), grads.values()):
        q = q.detach().requires_grad_()
        out = call(PAIR, q, q.detach(), q.detach())
        found = torch.autograd.grad(out, q, grad)[0]
        assert name == "varlen" or (torch.equal(out, q * 2) and torch.equal(found, grad * 2))
    assert len(seen) == 3 * len(layouts) * len(grads)
    for x in seen:
        assert x.stride(-1) == 1 and not any(n % 8 for n in (x.storage_offset(), *x.stride()[:-1]))
    dense = layouts["dense"]
    assert attention_module.aligned(dense) is dense


@pytest.mark.parametrize("name", ["flash3", "varlen"])
def test_a_compiled_layer_has_no_graph_break(monkeypatch, name):
    """A compiler cannot ask where a tensor starts. The graph of kernels that a CPU lacks is made and not run."""
    monkeypatch.setattr(attention_module, "choose_attention", lambda *_: name)
    monkeypatch.setattr(attention_module, "_flash", lambda name, q, k, v, runs: q * 2 + k.sum() + v.sum())
    made = []

    def keep(graph, _):
        made.append([str(node.target) for node in graph.graph.nodes])
        raise NotImplementedError("not run")

    q, k, v = (x.detach().bfloat16().requires_grad_() for x in inputs(PAIR, 2, 1, 16, torch.float32))
    compiled = torch.compile(partial(call, PAIR), fullgraph=True, backend=aot_autograd(fw_compiler=keep))
    with pytest.raises(Exception):  # noqa: B017  (a compiler wraps it in one of its own)
        compiled(q, k, v)
    torch._dynamo.reset()
    assert len(made) == 1 and ("mmfast.tree_attention_varlen.default" in made[0]) == (name == "varlen")


@pytest.mark.parametrize(
    "change,message",
    [
        ({"k": torch.zeros(14, 3, 8)}, "k must be float64"),
        ({"k": torch.zeros(14, 3, 8).double(), "v": torch.zeros(14, 3, 8).double()}, "no multiple"),
        ({"v": torch.zeros(14, 1, 8).double()}, "v must have shape"),
        ({"k_index": PAIR.k_index + 1}, "k_index holds 14"),
        ({"q_offsets": PAIR.q_offsets + 1}, "q_offsets must start at 0"),
        ({"k_offsets": PAIR.k_offsets[:-1]}, "k_offsets must have shape"),
        ({"window": 0}, "window counts the token itself"),
        ({"k_copies": PAIR.k_index}, "go together"),
        (dict(zip(COPIES, (PAIR.inverse()[0].int(), PAIR.inverse()[1]), strict=True)), "k_copies must be int64"),
        (dict(zip(COPIES, (PAIR.inverse()[0], PAIR.inverse()[1].int()), strict=True)), "k_copy_offsets must be int64"),
        (dict(zip(COPIES, (PAIR.inverse()[0][1:], PAIR.inverse()[1]), strict=True)), "k_copies must have shape"),
        (dict(zip(COPIES, (PAIR.inverse()[0] + 1, PAIR.inverse()[1]), strict=True)), "k_copies holds"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    q, k, v = inputs(PAIR)
    arguments = {"q": q, "k": k, "v": v, "q_offsets": PAIR.q_offsets, "k_index": PAIR.k_index,
                 "k_offsets": PAIR.k_offsets, "max_q": 10, "max_k": 14}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        tree_attention(**(arguments | change))


@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("window", [None, 3])
def test_every_backend_in_bf16(device, attention, window):
    """On its device against fp64; here those that a CPU has."""
    t = WIDE
    if reason := explain(device, torch.bfloat16, 64, window)[attention]:
        pytest.skip(reason)
    q, k, v = inputs(t, 4, 2, 64, torch.bfloat16)
    out = call(t, q, k, v, window=window, backend=attention)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    wanted = by_paths(t, *exact, window)
    grad = torch.randn(q.shape, dtype=torch.float64)
    assert (out.double() - wanted).abs().max() < 2e-2 * wanted.abs().max()
    ours = torch.autograd.grad(out, (q, k, v), grad.bfloat16())
    for a, b in zip(ours, torch.autograd.grad(wanted, exact, grad), strict=True):
        assert (a.double() - b).abs().max() < 4e-2 * b.abs().max()


@pytest.mark.parametrize("backend", ["cpu", "loop"])
@pytest.mark.parametrize("window", [None, 70])
def test_a_query_does_not_depend_on_those_before_it_to_the_bit(backend: str, window: int | None) -> None:
    """A policy that is its reference has a margin of exactly 0, however the packs of the two are cut."""
    if reason := explain("cpu", torch.float32, 16, window)[backend]:
        pytest.skip(reason)
    q, k, v = (torch.randn(300, 2, 16, generator=generator(n)) for n in range(3))

    def last(count: int) -> torch.Tensor:
        offsets = torch.tensor([0, count], dtype=torch.int32)
        keys = torch.tensor([0, 300], dtype=torch.int32)
        more = {"max_q": count, "max_k": 300, "window": window, "backend": backend}
        return tree_attention(q[300 - count :], k, v, offsets, torch.arange(300), keys, **more)

    whole = last(300)
    for count in (299, 293, 252, 200, 50, 1):
        found = last(count)
        if backend == "cpu":
            assert torch.equal(found, whole[300 - count :]), count
        else:  # torch's kernel does not promise it
            assert (found - whole[300 - count :]).abs().max() < 1e-6
