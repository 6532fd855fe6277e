"""Until the fused head lands: a plain stand-in behind the same call."""

import torch


def selective_logprob(logits, targets, return_entropy=False):
    logp = logits.float().log_softmax(-1)
    out = logp.gather(-1, targets[:, None])[:, 0]
    return (out, -(logp.exp() * logp).sum(-1)) if return_entropy else out


def linear_logprob(hidden, weight, targets, *, rows=None, bias=None, softcap=None, return_entropy=False, **_):
    logits = torch.nn.functional.linear(hidden if rows is None else hidden[rows], weight, bias).float()
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return selective_logprob(logits, targets, return_entropy)
