"""splice_embeddings and the ordered segment sum, against plain torch."""

import pytest
import torch
from torch import nn

from mmfast.ops.rows import gather_rows, invert, segment_sum
from mmfast.ops.splice import _splice, splice_embeddings, splice_torch
from tests.ops.places import generator


def inputs(dtype=torch.float64, width=5, seed=0, repeat=True):
    g = generator(seed)
    table = torch.randn(11, width, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    images = torch.randn(6, width, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    features = torch.tensor([-1, 0, 1, 2, -1, -1, 3, 4, 5] + ([1, 1, -1] if repeat else []))
    tokens = torch.randint(0, 9, features.shape, generator=g)
    tokens[features >= 0] = 10_000  # an image token outside the table is never looked up
    return tokens, table, images, features


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 5, 300])
def test_forward_is_exact_and_backward_is_the_ordered_sum(backend, dtype, width):
    tokens, table, images, features = inputs(dtype, width)
    out = splice_embeddings(tokens, table, images, features, backend=backend)
    wanted = splice_torch(tokens, table.double(), images.double(), features)
    assert torch.equal(out.double(), wanted)
    grad = torch.randn(out.shape, dtype=torch.float64).to(dtype)
    found = torch.autograd.grad(out, (table, images), grad)
    for a, b in zip(found, torch.autograd.grad(wanted, (table, images), grad.double()), strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b.to(dtype), rtol=1e-6 if dtype == torch.float32 else 0, atol=1e-6)


def test_equals_embedding_and_masked_scatter(backend):
    """What Hugging Face models do."""
    tokens, table, images, features = inputs(torch.float32, repeat=False)
    embedded = nn.functional.embedding(tokens.clamp(max=10), table)
    mask = (features >= 0)[:, None].expand_as(embedded)
    assert torch.equal(
        splice_embeddings(tokens, table, images, features, backend=backend), embedded.masked_scatter(mask, images)
    )


def test_segment_sum(backend):
    values = torch.randn(40, 3, 7, dtype=torch.float64)
    index = torch.randint(-1, 9, (40,))
    copies, offsets = invert(index, 10)
    wanted = torch.zeros(10, 3, 7, dtype=torch.float64)
    for j, i in enumerate(index.tolist()):
        if i >= 0:
            wanted[i] += values[j]
    torch.testing.assert_close(segment_sum(values, copies, offsets, backend), wanted)
    assert segment_sum(values[:0], copies[:0], offsets * 0, backend).eq(0).all()
    # Sums of bf16 are kept in fp32: 256 ones and 2^8 would stand still in bf16.
    ones = torch.ones(513, 1, dtype=torch.bfloat16)
    assert segment_sum(ones, torch.arange(513), torch.tensor([0, 512, 513]), backend).flatten().tolist() == [512, 1]


@pytest.mark.usefixtures("device")
def test_gather_rows_gradcheck():
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([4, 0, 4, 2, 4, 1])
    assert torch.autograd.gradcheck(lambda x: gather_rows(x, index), x)
    assert torch.equal(gather_rows(x, index), x[index])


def test_gradcheck_opcheck_compile(backend):
    tokens, table, images, features = inputs()
    run = lambda t, i: splice_embeddings(tokens, t, i, features, backend=backend)  # noqa: E731
    assert torch.autograd.gradcheck(run, (table, images))
    torch.library.opcheck(_splice.op, (table, tokens, images, features, backend))
    compiled = torch.compile(lambda t, i: run(t, i).sin().sum(), fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(table, images), (table, images))
    wanted = torch.autograd.grad(run(table, images).sin().sum(), (table, images))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_frozen_sides_empty_inputs_strides_and_autocast(backend, device):
    tokens, table, images, features = inputs(torch.float32)
    frozen = table.detach()
    out = splice_embeddings(tokens, frozen, images, features, backend=backend)
    out.sum().backward()
    assert images.grad.sum() == (features >= 0).sum() * images.shape[1]
    text = splice_embeddings(tokens[:0], table, images[:0], features[:0], backend=backend)
    assert text.shape == (0, 5)
    text.sum().backward()
    assert table.grad.eq(0).all()
    strided = table.detach().t().contiguous().t()
    assert torch.equal(splice_embeddings(tokens, strided, images, features, backend=backend), out)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        mixed = splice_embeddings(tokens, frozen, images.bfloat16(), features, backend=backend)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, splice_torch(tokens, frozen, images.bfloat16().float(), features))


@pytest.mark.parametrize(
    "change,message",
    [
        ({"tokens": torch.zeros(12)}, "tokens must be int64"),
        ({"tokens": torch.full((12,), 11)}, "tokens.* 11"),
        ({"features": torch.full((12,), 6)}, "features.* 6"),
        ({"features": torch.full((12,), -2)}, "features.* -2"),
        ({"features": torch.zeros(3, dtype=torch.int64)}, r"features must have shape \[12\], not \[3\]"),
        (
            {"image_features": torch.zeros(6, 4, dtype=torch.float64)},
            r"image_features must have shape \[F,5\], not \[6, 4\]",
        ),
        ({"table": [[0.0] * 5] * 11}, "table must be a tensor, not list"),
        ({"table": torch.zeros(0, 5, dtype=torch.float64)}, "table is empty"),
        ({"table": torch.zeros(11, 5, 1, dtype=torch.float64)}, r"table must have shape \[V,D\], not \[11, 5, 1\]"),
        (
            {"table": torch.zeros(11, 5, dtype=torch.float64, device="meta")},
            "on (cpu|cuda:0), but the other tensors are on meta",
        ),
    ],
)
def test_wrong_arguments_are_named(backend, device, change, message, monkeypatch):
    monkeypatch.setenv("MMFAST_CHECK", "1")
    names = ("tokens", "table", "image_features", "features")
    change = {k: v.to(device) if isinstance(v, torch.Tensor) and not v.is_meta else v for k, v in change.items()}
    with pytest.raises(ValueError, match=message):
        splice_embeddings(**(dict(zip(names, inputs(), strict=True)) | change), backend=backend)


def test_dtensors_are_refused_with_the_reason(tmp_path):
    """By every op that takes model tensors: outside the FSDP root they would lose their gradient silently."""
    import torch.distributed as dist
    from torch.distributed.tensor import DeviceMesh, distribute_tensor

    from mmfast.ops.attention import tree_attention
    from mmfast.ops.preference import preference_loss

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = DeviceMesh("cpu", [0])
        tokens, table, images, features = (x.detach() for x in inputs(torch.float32))
        with pytest.raises(ValueError, match="table is a DTensor"):
            splice_embeddings(tokens, distribute_tensor(table, mesh), images, features)
        q = distribute_tensor(torch.zeros(2, 1, 8), mesh)
        offsets = torch.tensor([0, 2], dtype=torch.int32)
        with pytest.raises(ValueError, match="q is a DTensor"):
            tree_attention(q, q, q, offsets, torch.arange(2), offsets, max_q=2, max_k=2)
        logps = distribute_tensor(torch.zeros(2), mesh)
        with pytest.raises(ValueError, match="logps is a DTensor"):
            preference_loss(logps, torch.zeros(2), torch.tensor([0, 1, 2]), torch.tensor([[0, 1]]))
    finally:
        dist.destroy_process_group()
