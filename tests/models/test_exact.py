"""Tree == one sequence at a time through the unpatched model: log-probs and every parameter's gradient."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmfast.data.records import Branch, Example
from mmfast.data.symbols import branches_of
from mmfast.models import Lora, Parallel, Scorer, adapter_for, load, parallelize
from mmfast.packing import build_pack, response_key
from mmfast.world import models as world
from tests.make.model_cases import Case, captions, everything, plain_logps, wild

FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen", "beit3_llava", "llama")
GAMMA = 3.0
LOSSES = ("sigmoid", "ipo", "averaged ddpo")

Side = tuple[Tensor, Tensor, Tensor]  # log-probs, reference log-probs and weights of one response's tokens


def pair_loss(kind: str, chosen: Side, rejected: Side) -> Tensor:
    """One pair, written out by hand."""

    def score(side: Side) -> Tensor:
        logps, ref, weights = side
        if kind == "averaged ddpo":
            return ((logps - ref) * weights).sum() / weights.sum()
        return (logps - ref).mean() if kind == "ipo" else (logps - ref).sum()

    margin = score(chosen) - score(rejected)
    return (margin - 5.0) ** 2 if kind == "ipo" else -torch.nn.functional.logsigmoid(0.1 * margin)


def references(case: Case) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(case.seed)
    return {
        response_key(b): generator.normal(-6, 1, b.spans[0][1] - b.spans[0][0]).astype(np.float32)
        for b in branches(case)
    }


def branches(case: Case) -> list[Branch]:
    return [b for e in case.examples for b in branches_of(e)]


def total(kind: str, examples: list[Example], sides: Callable[[int, bool], Side]) -> Tensor:
    losses = [e.weight * pair_loss(kind, sides(i, True), sides(i, False)) for i, e in enumerate(examples)]
    return torch.stack(losses).sum() / len(examples)


def tree_sides(case: Case, scorer: Scorer, reference, parts: list[list[Example]]) -> Callable[[int, bool], Side]:
    """Scores the examples in one pack a part."""
    found: dict[str, list[Side]] = {}
    for part in parts:
        pack = build_pack(
            part, case.infos, scorer.adapter.layout(), gamma=GAMMA, reference=reference, load_images=case.load_images
        )
        logps = scorer(pack)[pack.index]
        bounds = pack.responses.tolist()
        entries = [(logps[a:b], pack.ref_logps[a:b], pack.weights[a:b]) for a, b in itertools.pairwise(bounds)]
        for name, (chosen, rejected) in zip(pack.sample_ids, pack.pairs.tolist(), strict=True):
            found[name] = [entries[chosen], entries[rejected]]
    return lambda i, chosen: found[case.examples[i].id][0 if chosen else 1]


def plain_sides(case: Case, model: nn.Module, reference) -> Callable[[int, bool], Side]:
    scored: dict[str, Tensor] = {}

    def side(i: int, chosen: bool) -> Side:
        branch: Branch = case.examples[i].chosen if chosen else case.examples[i].rejected
        key = response_key(branch)
        if key not in scored:
            scored[key] = plain_logps(model, case, branch)
        weights = torch.from_numpy(np.where(branch.changed, GAMMA, 1.0).astype(np.float32))
        return scored[key], torch.from_numpy(reference[key]), weights

    return side


def compare(case: Case, scorer: Scorer, plain: nn.Module, parts=None, losses=LOSSES) -> None:
    reference = references(case)
    tree = tree_sides(case, scorer, reference, parts or [case.examples])
    slow = plain_sides(case, plain, reference)
    for i in range(len(case.examples)):
        for chosen in (True, False):
            a, b = tree(i, chosen), slow(i, chosen)
            assert torch.equal(a[1], b[1]) and torch.equal(a[2], b[2])
            assert (a[0] - b[0]).abs().max() < 1e-5, (case.examples[i].id, chosen)
    names, ours = zip(*[(n, p) for n, p in scorer.model.named_parameters() if p.requires_grad], strict=True)
    names = [n.replace("_checkpoint_wrapped_module.", "") for n in names]
    theirs = [dict(plain.named_parameters())[n] for n in names]
    for kind in losses:
        loss, expected = total(kind, case.examples, tree), total(kind, case.examples, slow)
        assert (loss - expected).abs() < 1e-4 * expected.abs().clamp(min=1), kind
        got = torch.autograd.grad(loss, ours, retain_graph=True, allow_unused=True)
        want = torch.autograd.grad(expected, theirs, retain_graph=True, allow_unused=True)
        scale = max(g.norm() for g in want if g is not None)
        compared = 0
        for name, g, w in zip(names, got, want, strict=True):
            if w is None:
                assert g is None or not g.any(), name
                continue
            # a parameter whose true gradient is nothing (the key bias) has only rounding in it
            assert (g - w).norm() <= 1e-4 * w.norm() + 1e-6 * scale, (kind, name, (g - w).norm(), w.norm())
            compared += bool(w.any())
        assert compared > len(names) // 2


def models(family: str, **dials) -> tuple[Scorer, nn.Module]:
    model = world.build(family, **dials)[0]
    plain = copy.deepcopy(model)
    return Scorer(model, adapter_for(model.config)), plain


@pytest.mark.parametrize("family", FAMILIES)
def test_every_shape_of_tree(family):
    scorer, plain = models(family)
    compare(everything(family, scorer.adapter), scorer, plain)


def test_eight_captions_and_their_28_pairs_are_eight_responses():
    scorer, plain = models("llava")
    case = captions("llava", scorer.adapter)
    pack = build_pack(case.examples, case.infos, scorer.adapter.layout(), load_images=case.load_images)
    assert len(pack.pairs) == 28 and len(pack.image_ids) == 1
    assert len(pack.response_ids) == 8
    assert len(pack.targets) <= sum({response_key(b): b.spans[0][1] - b.spans[0][0] for b in branches(case)}.values())
    compare(case, scorer, plain)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_a_tree_split_over_packs_gives_the_same(family):
    scorer, plain = models(family)
    case = everything(family, scorer.adapter, seed=3)
    compare(case, scorer, plain, parts=[case.examples[i::3] for i in range(3)])


@pytest.mark.parametrize("family", ["llava_next", "qwen3_vl"])
def test_lora_with_checkpointing(family, tmp_path):
    path = world.tiny_model(family, tmp_path)
    scorer = load(str(path), dtype="float32", lora=Lora(r=4, alpha=8))
    assert all("lora" in n or is_projector(n) for n, p in scorer.named_parameters() if p.requires_grad)
    generator = torch.Generator().manual_seed(0)
    for name, p in scorer.named_parameters():
        if "lora_B" in name:
            p.data.normal_(0, 0.1, generator=generator)  # at zero, half of the gradients would be too
    plain = copy.deepcopy(scorer.model)
    plain.model.language_model.config._attn_implementation = "sdpa"
    parallelize(scorer, Parallel(), None, torch.float32)
    compare(everything(family, scorer.adapter), scorer, plain)


def is_projector(name: str) -> bool:
    parts = ("multi_modal_projector", "image_newline", "merger", "mm_projector", "model.query", ".B.")
    return any(part in name for part in parts)


def test_lora_on_the_head(tmp_path):
    scorer = load(
        str(world.tiny_model("llava", tmp_path)),
        dtype="float32",
        lora=Lora(r=4, alpha=8, targets=("lm_head", "v_proj")),
    )
    for name, p in scorer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p.data, 0, 0.1)
    plain = copy.deepcopy(scorer.model)
    plain.get_decoder().config._attn_implementation = "sdpa"
    compare(everything("llava", scorer.adapter), scorer, plain)


def test_a_random_tree():
    scorer, plain = models("qwen2_5_vl")
    compare(wild("qwen2_5_vl", scorer.adapter, seed=1), scorer, plain)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(6))
def test_random_trees_whole_split_and_checkpointed(family, seed):
    scorer, plain = models(family)
    if seed % 2:
        scorer.train()
        parallelize(scorer, Parallel(), None, torch.float32)
    case = wild(family, scorer.adapter, seed)
    compare(case, scorer, plain)
    compare(case, scorer, plain, parts=[case.examples[: 1 + seed], case.examples[1 + seed :]])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES[:-1])
def test_captions_of_every_family(family):
    scorer, plain = models(family)
    compare(captions(family, scorer.adapter), scorer, plain)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("vision", [False, True])
def test_lora_of_every_family(family, vision, tmp_path):
    scorer = load(str(world.tiny_model(family, tmp_path)), dtype="float32", lora=Lora(r=4, alpha=8, vision=vision))
    for name, p in scorer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p.data, 0, 0.1)
    plain = copy.deepcopy(scorer.model)
    plain.get_decoder().config._attn_implementation = "sdpa"
    parallelize(scorer, Parallel(), None, torch.float32)
    compare(everything(family, scorer.adapter), scorer, plain)
