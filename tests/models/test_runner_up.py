"""objective.compat = "sima": SIMA's released loss, which reads a rejected answer by the runner-up of each token.

The oracle is written from what that code is known to do: each side alone through the unpatched model, all logits, of
the rejected side the likeliest token of each position, or the second where the likeliest is the answer's own.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmfast.config.schema import Objective
from mmfast.data.records import Branch, Example
from mmfast.data.symbols import collapse, runner_up_key
from mmfast.families import adapter_for
from mmfast.models import Lora, Scorer, load
from mmfast.packing import Pack, build_pack, response_key
from mmfast.packing.build import Logps
from mmfast.training.objective import Pairs
from mmfast.world import models as world
from tests.make.model_cases import Case, captions, everything, plain_logits

BETA = 0.3


class Oracle:
    """SIMA's released loss over a case's pairs. `own`: at how many positions the likeliest token was the answer's."""

    def __init__(self, policy: nn.Module, reference: nn.Module, case: Case) -> None:
        self.policy, self.reference, self.case = policy, reference, case
        self.own = self.other = 0

    def rejected(self, model: nn.Module, branch: Branch) -> Tensor:
        logits, targets = plain_logits(model, self.case, branch)
        total = logits.new_zeros(())
        for row, target in zip(logits, targets.tolist(), strict=True):
            first, second = row.topk(2).indices.tolist()
            self.own, self.other = self.own + (first == target), self.other + (first != target)
            total = total + row.log_softmax(0)[second if first == target else first]
        return total

    def chosen(self, model: nn.Module, branch: Branch) -> Tensor:
        logits, targets = plain_logits(model, self.case, branch)
        return sum(row.log_softmax(0)[t] for row, t in zip(logits, targets, strict=True))  # type: ignore[return-value]

    def margin(self, model: nn.Module, example: Example) -> Tensor:
        return self.chosen(model, example.chosen) - self.rejected(model, example.rejected)

    def loss(self) -> Tensor:
        losses = []
        for example in self.case.examples:
            with torch.no_grad():
                there = self.margin(self.reference, example)
            losses.append(
                -example.weight * nn.functional.logsigmoid(BETA * (self.margin(self.policy, example) - there))
            )
        return torch.stack(losses).sum() / len(losses)


def pack_of(case: Case, scorer: Scorer, reference: Logps | None = None) -> Pack:
    symbols = collapse(case.examples, case.infos, case.adapter.image_token_id)
    layout = replace(scorer.adapter.layout(), share=scorer.shared)
    symbols = replace(symbols, runner_up=True)
    return build_pack(symbols, case.infos, layout, reference=reference, load_images=case.load_images)


def scored(case: Case, scorer: Scorer) -> dict[str, np.ndarray]:
    """What the reference pass keeps of a model: key -> log-probs."""
    pack = pack_of(case, scorer)
    with torch.no_grad():
        logps = scorer(pack)[pack.index].numpy()
    bounds = pack.responses.tolist()
    return {key: logps[a:b] for key, a, b in zip(pack.response_ids, bounds, bounds[1:], strict=False)}


def greedy(case: Case, model: nn.Module, prompt, count: int) -> list[int]:
    """The model's own likeliest answer: there the runner-up is the second token throughout."""
    answer: list[int] = []
    for _ in range(count):
        logits, _ = plain_logits(model, case, case.branch(prompt, [*answer, 0]))
        answer.append(int(logits[-1].argmax()))
    return answer


def own_answers(family: str, model: nn.Module, adapter) -> Case:
    """Every shape of tree, and pairs whose sides are the model's own answers or part from them."""
    case = everything(family, adapter)
    prompt = case.prompt(*([case.picture()] if adapter.image_token_id is not None else []))
    answer = greedy(case, model, prompt, 5)
    case.pair(prompt, case.words(2, 4), answer)
    case.pair(prompt, answer, answer[:3] + case.words(2, 2))
    return case


def moved(model: nn.Module, size: float = 0.02) -> nn.Module:
    """Another model, as a policy is once it has trained."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * size)
    return other


def compared(case: Case, scorer: Scorer, pack: Pack, plain: Oracle) -> None:
    """Loss and all gradients, ours in fp32 against the oracle's in fp64."""
    objective = Pairs(Objective(beta=BETA, compat="sima"), reads_reference=True)
    loss, expected = objective(scorer(pack), pack)[0], plain.loss()
    assert abs(loss.item() - expected.item()) < 1e-5 * max(1.0, expected.item())
    ours = {name: p for name, p in scorer.model.named_parameters() if p.requires_grad}
    theirs = dict(plain.policy.named_parameters())
    got = torch.autograd.grad(loss, list(ours.values()), allow_unused=True)
    want = torch.autograd.grad(expected, [theirs[name] for name in ours], allow_unused=True)
    scale = max(float(w.norm()) for w in want if w is not None)
    assert scale > 1e-3
    for name, g, w in zip(ours, got, want, strict=True):
        if w is None:
            assert g is None or not g.any(), name
        else:
            assert g is not None and (g - w).norm() <= 1e-4 * w.norm() + 1e-6 * scale, name


@pytest.mark.parametrize(
    ("family", "shared"), [("llava", True), ("qwen3_vl", True), ("llama", True), ("llava", False), ("llama", False)]
)
def test_loss_and_gradients_are_the_released_ones(family, shared):
    base = world.build(family)[0].eval()
    reference, policy = Scorer(copy.deepcopy(base), adapter_for(base.config)), moved(base)
    scorer = Scorer(copy.deepcopy(policy), adapter_for(base.config))
    if not shared:
        scorer.run_unshared("as a model that refused")
    case = own_answers(family, base, scorer.adapter)
    plain = Oracle(policy.double(), base.double(), case)
    compared(case, scorer, pack_of(case, scorer, scored(case, reference)), plain)
    assert plain.own > 5 and plain.other > 5  # both arms of the rule


def test_a_response_may_be_chosen_in_one_pair_and_rejected_in_another():
    base = world.build("llava")[0].eval()
    reference = Scorer(copy.deepcopy(base), adapter_for(base.config))
    policy = moved(base)
    scorer = Scorer(copy.deepcopy(policy), adapter_for(base.config))
    case = captions("llava", scorer.adapter, count=4)
    known = scored(case, reference)
    middle = response_key(case.examples[0].rejected)
    assert middle == response_key(case.examples[3].chosen) and {middle, runner_up_key(middle)} <= known.keys()
    pack = pack_of(case, scorer, known)
    assert len(pack.response_ids) == 6  # of 4 responses 3 are chosen somewhere, and 3 rejected
    compared(case, scorer, pack, Oracle(policy.double(), base.double(), case))


def test_a_head_with_lora_is_read_with_it(tmp_path):
    path = world.tiny_model("llama", tmp_path)
    scorer = load(str(path), dtype="float32", lora=Lora(r=4, alpha=8, targets="q_proj,lm_head"))
    with torch.no_grad():
        for name, p in scorer.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3)
    case = everything("llama", scorer.adapter)
    with_head = scored(case, scorer)
    merged = copy.deepcopy(scorer.peft[0]).merge_and_unload()
    merged.config._attn_implementation = "eager"
    plain = Scorer(merged, adapter_for(merged.config))
    for key, values in scored(case, plain).items():
        assert np.abs(values - with_head[key]).max() < 1e-4
    with scorer.peft[0].disable_adapter():
        assert any(np.abs(values - with_head[key]).max() > 0.1 for key, values in scored(case, scorer).items())


def test_logits_are_read_a_tile_at_a_time(monkeypatch):
    base = world.build("llama")[0].eval()
    scorer = Scorer(base, adapter_for(base.config))
    case = everything("llama", scorer.adapter)
    whole = scored(case, scorer)
    monkeypatch.setattr("mmfast.models.scorer.budget_for", lambda device, budget: 4 * 3 * base.config.vocab_size)
    for key, values in scored(case, scorer).items():
        assert np.allclose(values, whole[key], atol=1e-6)


def test_the_answers_own_tokens_do_not_count():
    """Other rejected tokens at the same positions, of the same likeliest tokens, leave their own step's loss alone."""
    base = world.build("llama")[0].eval()
    scorer = Scorer(base, adapter_for(base.config))
    case = Case("llama", scorer.adapter)
    prompt = case.prompt()
    for last in case.words(3, 3):
        case.pair(prompt, [30, 31, 32], [40, 41, last])  # the last token is predicted and predicts nothing
    pack = pack_of(case, scorer)
    logps, bounds = scorer(pack)[pack.index], pack.responses.tolist()
    read = [logps[bounds[r] : bounds[r + 1]].sum().item() for _, r in pack.pairs.tolist()]
    assert read[0] == read[1] == read[2]


def test_an_empty_pack_scores_nothing():
    base = world.build("llama")[0].eval()
    scorer = Scorer(base, adapter_for(base.config))
    symbols = collapse(everything("llama", scorer.adapter).examples, {}, None)
    empty = replace(symbols, runner_up=True).cut(np.empty(0, np.int64))
    assert len(scorer(build_pack(empty, {}, scorer.adapter.layout()))) == 0
