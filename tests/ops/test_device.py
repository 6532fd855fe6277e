"""What an op owes its device beyond the numbers of the other tests: a call waits for nothing, two calls and the replay
of a CUDA graph agree to the bit. A CPU has nothing to wait for and captures nothing; what runs here is otherwise what
`make gpu` runs on a device."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmfast import ops
from mmfast.ops.dispatch import available
from mmfast.ops.kinds import KINDS, REFERENCE_FREE, SORTING
from mmfast.ops.splice import splice_torch
from tests.ops import subjects
from tests.ops.conftest import devices
from tests.ops.layouts import Subject, exact, normal, outcomes, wrong
from tests.ops.logprob_cases import error
from tests.ops.places import Place, generator, places

SMOOTHING = {"exo_pair": 1e-3, "robust": 0.1}


# tree_attention is not here: run by run it reads its offsets on the host.
SUBJECTS: dict[str, Callable[[], Subject]] = {
    **{f"linear_logprob, {path}": lambda p=path: subjects.linear_logprob(p) for path in subjects.PATHS},
    "linear_logprob, bf16": lambda: subjects.linear_logprob("kept", dtype=torch.bfloat16),
    "selective_logprob": lambda: subjects.selective_logprob(False),
    "selective_logprob, bf16": lambda: subjects.selective_logprob(True, torch.bfloat16),
    "preference_loss": subjects.preference_loss,
    "linear_preference_loss, recompute": lambda: subjects.linear_preference_loss(True),
    "splice_embeddings": subjects.splice_embeddings,
}


@contextmanager
def no_sync(device: torch.device) -> Iterator[None]:
    """Any wait for the device inside raises."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def called(subject: Subject, backend: str | None, upstream: list[Tensor] | None) -> list[Tensor]:
    """The outputs, and under `upstream` the gradients. Leaves are new ones: autograd ties each to the stream that first
    used it, and a capture must know no other stream."""
    leaf = {k: t.detach().requires_grad_(k in subject.trained) for k, t in subject.arguments.items()}
    # an in-place gradient takes the place of logits that are no leaf
    used = leaf if subject.leaves else {k: t * 1 if t.requires_grad else t for k, t in leaf.items()}
    outputs = subject.call(used, backend)
    ends, trained = [out for out in outputs if out.requires_grad], [leaf[name] for name in subject.trained]
    if upstream is None or not ends or not trained:
        return outputs
    return [*outputs, *torch.autograd.grad(ends, trained, upstream)]


def replayed(call: Callable[[], list[Tensor]]) -> list[Tensor]:
    """What a CUDA graph of the call makes when it is replayed."""
    beside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        call()
    torch.cuda.current_stream().wait_stream(beside)
    with torch.cuda.graph(graph):
        made = call()
    for t in made:
        t.detach().zero_()
    graph.replay()
    torch.cuda.synchronize()
    return made


def twice(subject: Subject, backend: str | None, device: torch.device, capture: bool = False) -> list[Tensor]:
    """The outputs and gradients of two equal calls that wait for nothing; `capture`: and of a CUDA graph's replay."""
    first = called(subject, backend, None)  # lazy initialisation may wait
    upstream = [normal(*out.shape, seed=20 + i).to(out.dtype) for i, out in enumerate(first) if out.requires_grad]
    called(subject, backend, upstream)
    with no_sync(device):
        results, again = called(subject, backend, upstream), called(subject, backend, upstream)
    assert all(torch.equal(a, b) for a, b in zip(results, again, strict=True))
    if capture and device.type == "cuda":
        again = replayed(lambda: called(subject, backend, upstream))
        assert all(torch.equal(a, b) for a, b in zip(results, again, strict=True))
    return results


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_call_waits_for_nothing_and_repeats_to_the_bit(name: str, backend: str, device: torch.device) -> None:
    twice(SUBJECTS[name](), backend, device, capture=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_so_does_the_fused_kernel(dtype: torch.dtype, device: torch.device) -> None:
    if reason := available("triton", device):
        pytest.skip(reason)
    for size in ("usual", "one word"):
        subject = subjects.fused_logprob(size, dtype)
        (logp,) = twice(subject, None, device, capture=True)
        (want,), _ = outcomes(subject, exact(subject.arguments), subject.oracle, "plain")
        assert (logp.double() - want).abs().max() < 1e-4


@pytest.mark.parametrize("loss", [kind for kind in KINDS if kind not in SORTING])
def test_preference_loss_of_a_real_batch(loss: str, backend: str, device: torch.device) -> None:
    """40 pairs of 24 entries that share log-probs, in fp32 beside torch's fp64."""
    g = generator()
    lengths = torch.randint(1, 60, (24,), generator=g)
    responses = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(torch.int32)
    count = int(responses[-1])
    arguments = {
        "logps": -torch.rand(count, generator=g), "responses": responses,
        "pairs": torch.randint(0, 24, (40, 2), generator=g),
        "index": torch.randint(0, count // 2, (count,), generator=g), "weights": torch.rand(count, generator=g),
    }  # fmt: skip
    if loss not in REFERENCE_FREE:
        arguments["ref_logps"] = -torch.rand(count, generator=g)
    options = {"loss": loss, "label_smoothing": SMOOTHING.get(loss, 0.0)}

    def call(a: dict[str, Tensor], name: str | None) -> list[Tensor]:
        return [ops.preference_loss(**({"ref_logps": None} | a), **options, backend=name).loss]

    subject = Subject(ops.preference_loss, arguments, lambda a: call(a, "torch"), call, ("logps",))
    wanted = outcomes(subject, exact(arguments), subject.oracle, "plain")
    for got, want in zip(twice(subject, backend, device), (*wanted[0], *wanted[1]), strict=True):
        assert error(got, want) <= 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [4096, 100, 1])
def test_splice_embeddings_of_a_real_image(width: int, dtype: torch.dtype, backend: str, device: torch.device) -> None:
    """576 features among 900 tokens: the copies are exact, the sums within a rounding."""
    g = generator()
    features = torch.full((900,), -1)
    features[5:581] = torch.randperm(576, generator=g)
    arguments = {
        "tokens": torch.randint(0, 500, (900,), generator=g), "table": normal(500, width, dtype=dtype, seed=1),
        "image_features": normal(576, width, dtype=dtype, seed=2), "features": features,
    }  # fmt: skip
    subject = Subject(
        ops.splice_embeddings, arguments, lambda a: [splice_torch(**a)],
        lambda a, name: [ops.splice_embeddings(**a, backend=name)], ("table", "image_features"),
    )  # fmt: skip
    out, *gradients = twice(subject, backend, device)
    wanted = outcomes(subject, exact(arguments), subject.oracle, "plain")
    assert torch.equal(out.double(), wanted[0][0])
    for got, want in zip(gradients, wanted[1], strict=True):
        assert error(got, want) <= torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "vocab"), [(50, 5003), (3, 1), (16, 4096)])
def test_selective_logprob_of_long_rows(rows: int, vocab: int, dtype: torch.dtype, backend: str) -> None:
    subject = subjects.selective_logprob(False, dtype, rows, vocab)
    assert not wrong(subject, subject.arguments, backend)


def test_the_places_of_a_machine() -> None:
    """The fixture itself, over a stand-in for what can run where."""
    nothing = lambda backend, device: ""  # noqa: E731
    no_native = lambda backend, device: "not built" if backend == "cpu" else ""  # noqa: E731
    assert places(True, ("cpu",), nothing) == [Place("torch", "cpu"), Place("cpu", "cpu")]
    assert places(True, ("cpu",), no_native) == [Place("torch", "cpu")]
    on_a_gpu = [Place(backend, "cuda") for backend in ("cuda", "triton", "torch")]
    assert places(True, ("cpu", "cuda"), nothing) == [Place("torch", "cpu"), Place("cpu", "cpu"), *on_a_gpu]
    assert places(False, ("cpu", "cuda"), nothing) == [Place("", "cpu"), Place("", "cuda")]
    assert [str(p) for p in on_a_gpu] == ["cuda on cuda", "triton on cuda", "torch on cuda"]
    assert devices("gpu")[-1] == devices("gpu and not slow")[-1] == "cuda"
    if not torch.cuda.is_available():
        assert devices("") == devices("not gpu and not slow") == ("cpu",)


@pytest.mark.slow
def test_a_gpus_cases_are_listed_without_one() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--collect-only",
        "-p",
        "no:cacheprovider",
        "-m",
        "gpu",
        "tests/ops",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    for backend in ("cuda", "triton", "torch"):
        assert done.stdout.count(f"[{backend} on cuda") > 200, done.stdout[-2000:]


def test_a_place_is_where_tensors_are_made(backend: str, device: torch.device, place: Place) -> None:
    assert place == (backend, device.type)
    made = torch.zeros(2), torch.tensor([1.0]), normal(3), torch.randint(0, 5, (2,), generator=generator())
    assert {t.device.type for t in made} == {device.type}
