"""The ops alone, in a trainer of your own: DPO in plain torch on a Hugging Face model. Nothing else of mmfast is used.

A batch is what any trainer has: padded ids, the chosen rows first, and where each response begins and ends.
"""

import copy
import random

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mmfast.ops import linear_logprob, preference_loss

PAIRS, VOCABULARY = 8, 500


def batch(seed: int) -> tuple[torch.Tensor, ...]:
    """Random ids [2P, L], and of every response token the row that predicts it, its id, and the responses' bounds."""
    draw = random.Random(seed)
    prompts = [draw.choices(range(VOCABULARY), k=draw.randint(4, 8)) for _ in range(PAIRS)] * 2
    answers = [draw.choices(range(VOCABULARY), k=draw.randint(3, 9)) for _ in range(2 * PAIRS)]
    ids = torch.zeros(2 * PAIRS, 20, dtype=torch.int64)  # what stands behind a response is read by none before it
    rows, targets = [], []
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[number, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        first = number * ids.shape[1] + len(prompt) - 1  # the last token of the prompt predicts the answer's first
        rows += range(first, first + len(answer))
        targets += answer
    bounds = torch.tensor([0, *map(len, answers)]).cumsum(0)
    return ids, torch.tensor(rows), torch.tensor(targets), bounds


def log_probs(model: LlamaForCausalLM, ids: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """fp32 log-probs of the response tokens; prompt and padding go through no head, and no logits are stored."""
    hidden = model.model(ids).last_hidden_state.flatten(0, 1)
    return linear_logprob(hidden, model.lm_head.weight, targets, rows=rows)


torch.manual_seed(0)
shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
policy = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **shape))
reference = copy.deepcopy(policy).eval()
optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
ids, rows, targets, bounds = batch(seed=0)
pairs = torch.arange(2 * PAIRS).view(2, PAIRS).T  # (chosen, rejected): any pairs of responses, also several of one
with torch.no_grad():
    reference_logps = log_probs(reference, ids, rows, targets)
for step in range(10):
    logps = log_probs(policy, ids, rows, targets)
    out = preference_loss(logps, reference_logps, bounds, pairs, loss="sigmoid", beta=0.1)
    out.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: loss {out.loss.item():.4f}, margin {out.margins.mean().item():.3f}")
