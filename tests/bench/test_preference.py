"""bench.preference and bench.selective: what is timed side by side is one function, with one gradient."""

from __future__ import annotations

import argparse

import pytest
import torch

from bench import preference, selective
from bench.preference_peers import Batch, peers
from mmfast.ops import selective_logprob

RAGGED = [3, 9, 1, 6, 4, 5, 2, 8]  # four chosen answers, then the rejected
CPU = torch.device("cpu")


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("lengths", [RAGGED, [12] * 4, [5, 1]], ids=["ragged", "as long", "one pair"])
@pytest.mark.parametrize("peer", ["eager", "trl", "trl: padded rows", "liger"])
def test_every_peer_of_preference_loss_computes_ours(peer, lengths, weighted):
    if peer in ("trl", "liger"):
        pytest.importorskip({"trl": "trl.trainer.dpo_trainer", "liger": "liger_kernel.chunked_loss"}[peer])
    batch = Batch.of(lengths, weighted, CPU)
    found = {}
    for name in ("mmfast", peer):
        loss, logps = peers(batch)[name]
        value = loss(logps)
        (grad,) = torch.autograd.grad(value, logps)
        found[name] = value.detach(), batch.flat(grad)
    (own, own_grad), (value, grad) = found["mmfast"], found[peer]
    torch.testing.assert_close(value, own, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(grad, own_grad, rtol=1e-5, atol=1e-8)
    assert 0.5 < own < 1 and own_grad.abs().min() > 1e-3  # far from 0, which everything would agree on


def test_weights_reach_every_peer():
    """Else the rows with weights would be rows of another loss."""
    for name, (loss, logps) in peers(Batch.of(RAGGED, True, CPU)).items():
        if name not in ("trl", "liger"):
            plain, other = peers(Batch.of(RAGGED, False, CPU))[name]
            assert abs(loss(logps) - plain(other)) > 1e-3, name


@pytest.mark.parametrize("rows", [16, 12], ids=["eight sequences", "not a multiple of them"])
@pytest.mark.parametrize("peer", selective.PEERS)
def test_every_peer_of_selective_logprob_computes_ours(peer, rows):
    if peer == "trl":
        pytest.importorskip("trl.trainer.utils")
    logits = torch.randn(rows, 100, requires_grad=True)
    targets, upstream = torch.randint(0, 100, (rows,)), torch.randn(rows)
    theirs, ours = selective.PEERS[peer](logits, targets), selective_logprob(logits, targets)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    calls = {"theirs": selective.PEERS[peer], "ours": selective_logprob}
    grads = {name: run() for name, run in selective.runs_of(calls, logits, targets, upstream).items()}
    torch.testing.assert_close(grads["theirs"], grads["ours"], rtol=1e-4, atol=1e-6)


def test_an_upstream_gradient_is_no_obstacle_to_bf16():
    """TRL's log-probs of bf16 logits are bf16, ours are fp32; both take the same gradient of theirs."""
    logits = torch.randn(8, 50, dtype=torch.bfloat16, requires_grad=True)
    arguments = logits, torch.randint(0, 50, (8,)), torch.randn(8)
    runs = selective.runs_of({"ours": selective_logprob, "eager": selective.eager}, *arguments)
    for run in runs.values():
        assert run()[0].dtype == torch.bfloat16


def test_rows_name_the_weights_in_their_mode():
    options = argparse.Namespace(quick=True, repeats=1, dtype=None, peers="mmfast")
    found = {(row["peer"], row["mode"]) for row in preference.rows(options)}
    modes = ("forward+backward", "forward+backward, no weights")
    assert found == {(peer, mode) for peer in ("eager", "mmfast", "mmfast kernel") for mode in modes}
