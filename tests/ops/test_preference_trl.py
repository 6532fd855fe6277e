"""preference_loss against TRL's own numbers, for every kind that TRL has: its loss code runs on random log-probs."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from mmfast.ops.preference import preference_loss

dpo = pytest.importorskip("trl.trainer.dpo_trainer")

KINDS = ["sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
         "apo_zero", "apo_down", "discopop", "sigmoid_norm"]  # fmt: skip
SMOOTHING = {"exo_pair": 0.1, "robust": 0.2, "aot": 0.15, "aot_unpaired": 0.15}


class Inputs:
    """Five pairs of ragged responses, padded for TRL and flat for us."""

    def __init__(self, seed: int = 0, low: float = -0.6):
        g = torch.Generator().manual_seed(seed)
        self.lengths = torch.tensor([3, 9, 1, 6, 4, 5, 2, 8, 6, 7])  # chosen, then rejected
        self.mask = torch.arange(10)[None, :] < self.lengths[:, None]
        self.logps = torch.rand(10, 10, generator=g) * low
        self.ref = torch.rand(10, 10, generator=g) * low
        self.responses = torch.cat([torch.zeros(1, dtype=torch.int64), self.lengths.cumsum(0)])
        self.pairs = torch.stack([torch.arange(5), torch.arange(5, 10)], 1)

    def trl(self, kind: str, beta: float, ld_alpha=None, divergence="reverse_kl", f_alpha=0.4, log_sum_sq=None):
        """(loss, gradient by the padded log-probs, metrics) from DPOTrainer's own method."""
        logps = (self.logps * self.mask).requires_grad_()
        ref = self.ref * self.mask
        shared = torch.minimum(*self.lengths.chunk(2)).repeat(2)[:, None]
        share = torch.where(torch.arange(10)[None, :] < shared, 1.0, ld_alpha if ld_alpha is not None else 1.0)
        ref_chosen, ref_rejected = (ref * share).sum(1).chunk(2)
        stats = torch.zeros_like(logps)
        outputs = SimpleNamespace(
            log_probs=logps, entropy=stats, mean_logits=stats, is_top1=stats.bool(), log_sum_sq_probs=log_sum_sq
        )
        same = lambda x: x  # noqa: E731
        trainer = SimpleNamespace(
            model=SimpleNamespace(training=True), aux_loss_enabled=False, ld_alpha=ld_alpha, precompute_ref_logps=True,
            f_divergence_type=divergence, f_alpha_divergence_coef=f_alpha, loss_types=[kind], loss_weights=[1.0],
            beta=beta, label_smoothing=SMOOTHING.get(kind, 0.0), args=SimpleNamespace(discopop_tau=0.05),
            use_weighting=log_sum_sq is not None, _metrics=defaultdict(lambda: defaultdict(list)),
            _total_train_tokens=0, _tp_size=1,
            accelerator=SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same),
        )  # fmt: skip
        first = torch.zeros(10, 1, dtype=torch.bool)
        inputs = {
            "input_ids": torch.ones(10, 11, dtype=torch.int64), "attention_mask": torch.ones(10, 11),
            "completion_mask": torch.cat([first, self.mask], 1).long(),
            "ref_chosen_logps": ref_chosen, "ref_rejected_logps": ref_rejected,
        }  # fmt: skip
        loss = dpo.DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
        (grad,) = torch.autograd.grad(loss, logps)
        return loss.detach(), grad[self.mask], trainer._metrics["train"]

    def ours(self, kind: str, beta: float, **extra):
        logps = self.logps[self.mask].requires_grad_()
        smoothing = {"label_smoothing": SMOOTHING[kind]} if kind in SMOOTHING else {}
        out = preference_loss(
            logps, self.ref[self.mask], self.responses, self.pairs, loss=kind, beta=beta, **smoothing, **extra
        )
        return out, torch.autograd.grad(out.loss, logps)[0]

    def compare(self, kind: str, beta: float, trl: dict | None = None, ours: dict | None = None):
        loss, grad, metrics = self.trl(kind, beta, **(trl or {}))
        out, own = self.ours(kind, beta, **(ours or {}))
        torch.testing.assert_close(out.loss, loss, rtol=2e-5, atol=1e-6)
        torch.testing.assert_close(own, grad, rtol=2e-4, atol=1e-6)
        for name, value in [("rewards/chosen", out.chosen_rewards), ("rewards/rejected", out.rejected_rewards),
                            ("rewards/margins", out.margins), ("logps/chosen", out.chosen_logps),
                            ("logps/rejected", out.rejected_logps)]:  # fmt: skip
            assert value.mean().item() == pytest.approx(metrics[name][0], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("beta", [0.1, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind, beta):
    Inputs().compare(kind, beta)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "apo_down", "sigmoid_norm"])
def test_ld_alpha(kind):
    Inputs(1).compare(kind, 0.3, {"ld_alpha": 0.4}, {"ld_alpha": 0.4})


@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence", "alpha_divergence"])
@pytest.mark.parametrize("kind", ["sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop"])
def test_divergences(kind, divergence):
    alpha = {"f_alpha": 0.4} if divergence == "alpha_divergence" else {}
    Inputs(2, -0.2).compare(kind, 0.5, {"divergence": divergence}, {"f_divergence": divergence, **alpha})


def test_sft_is_a_mean_over_tokens_in_trl():
    inputs = Inputs()
    loss, grad, _ = inputs.trl("sft", 0.1)
    logps = inputs.logps[inputs.mask].requires_grad_()
    tokens = float(inputs.lengths[:5].sum())
    out = preference_loss(logps, None, inputs.responses, inputs.pairs, loss="sft", pair_count=tokens)
    torch.testing.assert_close(out.loss, loss)
    torch.testing.assert_close(torch.autograd.grad(out.loss, logps)[0], grad)


def test_wpo_weights():
    inputs = Inputs(3)
    log_sum_sq = torch.rand(10, 10) * -1
    loss, grad, _ = inputs.trl("sigmoid", 0.5, log_sum_sq=log_sum_sq)
    mean = ((inputs.logps - log_sum_sq) * inputs.mask).sum(1) / inputs.lengths
    chosen, rejected = mean.exp().chunk(2)
    out, own = inputs.ours("sigmoid", 0.5, pair_weights=chosen * rejected)
    torch.testing.assert_close(out.loss, loss)
    torch.testing.assert_close(own, grad)


def test_orpo_and_simpo():
    """TRL takes averaged log-probs here, and adds ORPO's likelihood term outside."""
    cpo = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
    orpo = pytest.importorskip("trl.experimental.orpo.orpo_trainer")
    inputs = Inputs(4)
    averages = ((inputs.logps * inputs.mask).sum(1) / inputs.lengths).chunk(2)
    trainer = SimpleNamespace(beta=0.7, alpha=0.0, loss_type="simpo", simpo_gamma=0.3, label_smoothing=0.1,
                              accelerator=SimpleNamespace(device="cpu"))  # fmt: skip
    logps = inputs.logps[inputs.mask].requires_grad_()
    losses, chosen_rewards, rejected_rewards = cpo.CPOTrainer.cpo_loss(trainer, *averages)
    out = preference_loss(logps, None, inputs.responses, inputs.pairs, loss="simpo", beta=0.7, simpo_margin=0.3,
                          label_smoothing=0.1, average=True)  # fmt: skip
    torch.testing.assert_close(out.losses, losses)
    torch.testing.assert_close(out.chosen_rewards, chosen_rewards)
    torch.testing.assert_close(out.rejected_rewards, rejected_rewards)
    terms = orpo.ORPOTrainer.odds_ratio_loss(trainer, *averages)[0]
    out = preference_loss(logps, None, inputs.responses, inputs.pairs, loss="orpo", beta=0.7)
    torch.testing.assert_close(out.losses, -averages[0] - terms)
