"""The last layer runs for predicting rows alone: the same log-probs and gradients; off where anybody reads the rest."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from mmfast.models import Lora, Parallel, Scorer, adapter_for, load, parallelize
from mmfast.models.last_layer import WHOLE
from mmfast.models.proof import prove
from mmfast.packing import build_pack
from mmfast.packing.pack import Pack
from mmfast.world import models as world
from tests.make.model_cases import everything

FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3")
NARROWED = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def make(family: str, **dials: int) -> tuple[Scorer, Pack]:
    model = world.build(family, **dials)[0]
    scorer = Scorer(model, adapter_for(model.config))
    return scorer, pack_of(scorer, family)


def pack_of(scorer: Scorer, family: str, part: slice = slice(None)) -> Pack:
    case = everything(family, scorer.adapter)
    return build_pack(case.examples[part], case.infos, scorer.adapter.layout(), load_images=case.load_images)


def outcome(scorer: Scorer, *packs: Pack) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Log-probs of all packs, then the gradients of one sum of them."""
    scorer.zero_grad()
    logps = [scorer(pack) for pack in packs]
    assert all(isinstance(x, Tensor) for x in logps)
    torch.stack([(x * torch.linspace(-1, 1, len(x))).sum() for x in logps]).sum().backward()
    grads = {n: p.grad.clone() for n, p in scorer.named_parameters() if p.grad is not None}
    return [x.detach() for x in logps], grads


@contextmanager
def rows_of(scorer: Scorer) -> Iterator[list[int]]:
    """Rows that the last MLP is given."""
    mlp, seen = scorer.last_layer.layer().mlp, []
    forward = mlp.forward
    mlp.forward = lambda x: seen.append(x.shape[1]) or forward(x)
    yield seen
    mlp.forward = forward


def whole(pack: Pack) -> Pack:
    changed = copy.copy(pack)
    changed.tails = None
    return changed


def assert_same(found: tuple[list[Tensor], dict[str, Tensor]], wanted: tuple[list[Tensor], dict[str, Tensor]]) -> None:
    for a, b in zip(found[0], wanted[0], strict=True):
        assert torch.allclose(a, b, rtol=0, atol=2e-6)
    assert set(found[1]) == set(wanted[1])
    largest = max(g.norm() for g in wanted[1].values())
    for name, grad in wanted[1].items():
        assert (found[1][name] - grad).norm() <= 1e-5 * grad.norm() + 1e-7 * largest, name


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_and_gradients_are_those_of_the_whole_layer(family: str) -> None:
    scorer, pack = make(family, layers=4)  # the first of Qwen3-VL's have deepstack's addends
    scorer.last_layer.trusted = True
    assert scorer.last_layer.number() == len(scorer.adapter.layers(scorer.model)) - 1, scorer.last_layer.why_whole()
    with rows_of(scorer) as seen:
        found = outcome(scorer, pack)
        assert seen == [len(pack.tails)] and len(pack.tails) < len(pack.tokens)
        wanted = outcome(scorer, whole(pack))
        assert seen[1:] == [len(pack.tokens)]
    assert_same(found, wanted)


def test_but_for_the_order_of_sums_every_bit_is_the_same() -> None:
    scorer, pack = make("llava")
    found, wanted = outcome(scorer, pack), outcome(scorer, whole(pack))
    assert torch.equal(found[0][0], wanted[0][0])
    other = [name for name, grad in wanted[1].items() if not torch.equal(grad, found[1][name])]
    last = f"layers.{scorer.last_layer.number()}."
    assert all(last in name and any(part in name for part in NARROWED) for name in other), other


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_packs_in_flight_keep_their_own_rows(checkpointing: bool) -> None:
    scorer, _ = make("llava")
    packs = [pack_of(scorer, "llava", slice(0, 2)), pack_of(scorer, "llava", slice(2, 5))]
    assert len(packs[0].tails) != len(packs[1].tails)
    wanted = outcome(scorer, *map(whole, packs))
    parallelize(scorer, Parallel(activation_checkpointing=checkpointing), None, torch.float32)
    with rows_of(scorer) as seen:
        found = outcome(scorer, *packs)
    times = 2 if checkpointing else 1
    assert sorted(seen) == sorted(times * [len(p.tails) for p in packs])
    plain = {name.replace("_checkpoint_wrapped_module.", ""): grad for name, grad in found[1].items()}
    assert_same((found[0], plain), wanted)


def test_lora_that_comes_later_is_narrowed_too(tmp_path) -> None:
    scorer = load(str(world.tiny_model("llava", tmp_path / "m")), dtype="float32", lora=Lora(r=4, alpha=8))
    pack = pack_of(scorer, "llava")
    for name, p in scorer.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.1)
    with rows_of(scorer) as seen:
        found = outcome(scorer, pack)
    assert seen == [len(pack.tails)]
    assert_same(found, outcome(scorer, whole(pack)))


@pytest.mark.slow
def test_compiled_blocks_are_narrowed() -> None:
    scorer, pack = make("llava")
    wanted = outcome(scorer, whole(pack))
    layer = scorer.last_layer.layer()
    layer.forward = torch.compile(layer.forward, dynamic=True, backend="aot_eager")  # as compile_blocks does
    for other in (pack, whole(pack), pack_of(scorer, "llava", slice(0, 3))):
        assert scorer.last_layer.number() != WHOLE
        found = outcome(scorer, other)
        if other is not pack and other.tails is not None:
            wanted = outcome(scorer, whole(other))
        assert_same(found, wanted)


def test_nothing_is_read_on_the_host() -> None:
    """On the meta device a read raises; on a GPU it would wait."""
    scorer, pack = make("llava")
    pack.images = {}
    scorer.to("meta")
    with rows_of(scorer) as seen:
        hidden = scorer.hidden_states(pack.to("meta"), scored_only=True)
        hidden.sum().backward()
    assert seen == [len(pack.tails)]


def test_whoever_reads_hidden_states_gets_all_of_them() -> None:
    scorer, pack = make("llava")
    with rows_of(scorer) as seen, torch.no_grad():
        every = scorer.hidden_states(pack)
        some = scorer.hidden_states(pack, scored_only=True)
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        scorer.hidden_states(pack, kept)
        assert seen == [len(pack.tokens), len(pack.tails), len(pack.tokens)]
        assert torch.equal(every[pack.rows], some[pack.rows]) and not torch.equal(every, some)
        # a hook of anybody's, on the layer or on what comes after it
        for module in (scorer.last_layer.layer(), scorer.last_layer.layer().mlp, scorer.decoder.norm, scorer.decoder):
            hook = module.register_forward_hook(lambda *_: None)
            assert scorer.last_layer.number() == WHOLE
            scorer(pack)
            hook.remove()
        assert set(seen[3:]) == {len(pack.tokens)}
        scorer(pack)
        assert seen[-1] == len(pack.tails)


def reason(change) -> str:
    scorer, _ = make("llava")
    change(scorer)
    assert scorer.last_layer.number() == WHOLE
    return scorer.last_layer.why_whole()


def test_a_layer_of_another_kind_stays_whole() -> None:
    def experts(scorer: Scorer) -> None:
        scorer.last_layer.layer().mlp = nn.ModuleDict({"gate": nn.Linear(2, 2), "experts": nn.ModuleList()})

    def fused(scorer: Scorer) -> None:
        del scorer.last_layer.layer().self_attn.k_proj

    def more(scorer: Scorer) -> None:
        scorer.last_layer.layer().per_layer_gate = nn.Linear(2, 2)

    def unnumbered(scorer: Scorer) -> None:
        scorer.last_layer.layer().self_attn.layer_idx = None

    assert "experts, gate" in reason(experts)
    assert "not projected apart" in reason(fused)
    assert "per_layer_gate" in reason(more)
    assert "number" in reason(unnumbered)
    assert "deepstack" in reason(lambda s: setattr(s.adapter, "levels", 9))
    assert "no test" in reason(lambda s: setattr(s.last_layer, "trusted", False))


def test_an_unlisted_model_is_whole_while_it_proves_itself_and_narrowed_then() -> None:
    scorer, _ = make("llama")
    case = everything("llama", scorer.adapter)
    assert not scorer.adapter.proven and scorer.last_layer.number() == WHOLE
    with rows_of(scorer) as seen:
        assert prove(scorer, case.examples, case.infos, case.load_images) == ""
    assert scorer.last_layer.number() == 1 and len(set(seen)) > 1


def test_an_unlisted_model_that_reads_other_rows_of_its_last_layer_stays_whole() -> None:
    """Each state gets a part of the first token's, which is the same alone and in a tree."""
    scorer, _ = make("llama")
    case = everything("llama", scorer.adapter)
    plain = scorer.decoder.norm.forward
    scorer.decoder.norm.forward = lambda x: plain(x + 0.5 * x[:, :1])
    assert prove(scorer, case.examples, case.infos, case.load_images) == ""
    assert scorer.last_layer.number() == WHOLE and "no proof" in scorer.last_layer.why_whole()


def test_an_empty_pack_and_one_where_nothing_is_scored() -> None:
    scorer, pack = make("llava")
    nothing = copy.copy(pack)
    nothing.rows, nothing.targets = pack.rows[:0], pack.targets[:0]
    nothing.tails, nothing.tail_offsets = pack.tails[:0], torch.zeros_like(pack.tail_offsets)
    logps = scorer(nothing)
    assert logps.shape == (0,)
    logps.sum().backward()
    assert all(not p.grad.any() for p in scorer.parameters() if p.grad is not None)
