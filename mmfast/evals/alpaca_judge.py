"""What AlpacaEval's judge is asked about two answers, in the official prompts or ours, and what its reply says."""

from __future__ import annotations

import ast
import math
from dataclasses import replace

import numpy as np

from mmfast.engines.base import Decode, Reply
from mmfast.evals.asking import call
from mmfast.evals.base import Call

FIRST, SECOND = "m", "M"  # the names of the two answers, of which the judge says one


def pair_call(name: str, prompt: str, instruction: str, first: str, second: str, old: bool) -> Call:
    """A prompt of ChatML: its messages, each place filled once."""
    for place, text in (("{instruction}", instruction), ("{output_1}", first), ("{output_2}", second)):
        prompt = prompt.replace(place, text, 1)
    messages = []
    for part in prompt.strip().split("<|im_start|>")[1:]:
        role, _, content = part.partition("\n")
        messages.append({"role": role.strip(), "content": content.split("<|im_end|>", 1)[0].strip()})
    if [message["role"] for message in messages] != ["system", "user"]:
        raise ValueError("AlpacaEval's prompt is not a system and a user message in ChatML: is it of another version?")
    decode = Decode(max_tokens=100) if old else Decode(max_tokens=1, temperature=1.0)
    return replace(call(name, ""), messages=tuple(messages), decode=decode, labels=() if old else (FIRST, SECOND))


def ranked(text: str) -> float | None:
    """1 where the first answer has rank 1 in a list of two dictionaries, 2 where it has rank 2."""
    try:
        rank = next(row for row in ast.literal_eval(text) if row["model"] == "model_1")["rank"]
    except (ValueError, SyntaxError, TypeError, KeyError, StopIteration, MemoryError, RecursionError, IndexError):
        return None
    return float(rank) if rank in (1, 2) else None


def weighed(reply: Reply) -> float | None:
    """2 minus the first name's share of the two probabilities; a name that the server did not show has none."""
    shown = {name: p for name, p in reply.labels.items() if name not in reply.bounded}
    if not any(shown.get(name, -math.inf) > -math.inf for name in (FIRST, SECOND)):
        return None
    first, second = (shown.get(name, -math.inf) for name in (FIRST, SECOND))
    return 2 - math.exp(first - np.logaddexp(first, second))


def _own(names: tuple[str, str], end: str) -> str:
    return (
        "<|im_start|>system\nYou compare two answers to an instruction, without favour for the longer or the first.\n"
        "<|im_end|>\n<|im_start|>user\nThe instruction:\n{instruction}\n\n"
        f"The answer of {names[0]}:\n{{output_1}}\n\nThe answer of {names[1]}:\n{{output_2}}\n\n{end}\n<|im_end|>"
    )


OWN = {
    "ranking": _own(
        ("model_1", "model_2"),
        "Which would most people prefer? Write nothing but a Python list with the better one at rank 1, such as "
        "[{'model': 'model_2', 'rank': 1}, {'model': 'model_1', 'rank': 2}].",
    ),
    "choice": _own(
        (FIRST, SECOND), f"Which would most people prefer? Write its name, nothing else: {FIRST} or {SECOND}."
    ),
}
