"""Until the fused ops land: plain stand-ins behind the same calls."""

import torch

import mmfast.ops as ops


def _tree_attention(q, k, v, q_offsets, k_index, k_offsets, *, max_q, max_k, scale=None, window=None, **_):
    assert window is None
    out = []
    qo, ko = q_offsets.tolist(), k_offsets.tolist()
    for m in range(len(qo) - 1):
        idx = k_index[ko[m] : ko[m + 1]]
        qm, km, vm = q[qo[m] : qo[m + 1]], k[idx], v[idx]
        mask = torch.ones(len(qm), len(km), dtype=torch.bool).tril(len(km) - len(qm))
        out.append(
            torch.nn.functional.scaled_dot_product_attention(
                qm.transpose(0, 1)[None], km.transpose(0, 1)[None], vm.transpose(0, 1)[None], mask, scale=scale,
                enable_gqa=True,
            )[0].transpose(0, 1)
        )  # fmt: skip
    return torch.cat(out)


def _splice(tokens, table, image_features, features):
    rows = torch.cat([table, image_features.to(table.dtype)])
    return rows[torch.where(features < 0, tokens, features + len(table))]


def _selective(logits, targets, return_entropy=False):
    logp = logits.float().log_softmax(-1)
    out = logp.gather(-1, targets[:, None])[:, 0]
    return (out, -(logp.exp() * logp).sum(-1)) if return_entropy else out


def _linear(hidden, weight, targets, *, rows=None, bias=None, softcap=None, return_entropy=False, **_):
    logits = torch.nn.functional.linear(hidden if rows is None else hidden[rows], weight, bias).float()
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return _selective(logits, targets, return_entropy)


tree_attention = getattr(ops, "tree_attention", _tree_attention)
splice_embeddings = getattr(ops, "splice_embeddings", _splice)
selective_logprob = getattr(ops, "selective_logprob", _selective)
linear_logprob = getattr(ops, "linear_logprob", _linear)
