"""Constraints mask logits: an answer that must fit is drawn once, from what fits.

A choice walks the continuations of the prompt by its texts, and takes no package. A regular expression or a JSON schema
is llguidance's to follow. Both begin with what the template writes before an answer.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mmfast.engines.base import Constraint
from mmfast.engines.prompts import Prompt
from mmfast.packages import how_to_install


class Chosen:
    """One of some token sequences."""

    def __init__(self, sequences: Sequence[Sequence[int]], ends: Sequence[int], vocabulary: int) -> None:
        self.open = [list(sequence) for sequence in sequences]  # what is left of those that still fit
        self.ends, self.vocabulary = list(ends), vocabulary

    def allowed(self) -> Tensor:
        mask = torch.zeros(self.vocabulary, dtype=torch.bool)
        mask[[left[0] for left in self.open if left]] = True
        if not all(self.open):
            mask[self.ends] = True
        return mask

    def accept(self, token: int) -> bool:
        """True where the answer is whole."""
        if token in self.ends:
            return True
        self.open = [left[1:] for left in self.open if left and left[0] == token]
        return not any(self.open)


class Grammar:
    """One answer's walk through a grammar of llguidance."""

    def __init__(self, tokenizer: Any, grammar: str, ends: Sequence[int], vocabulary: int) -> None:
        from llguidance import LLMatcher

        self.matcher = LLMatcher(tokenizer, grammar)
        if self.matcher.is_error():
            raise ValueError(f"the constraint cannot be followed: {self.matcher.get_error()}")
        self.ends, self.vocabulary = list(ends), vocabulary

    def allowed(self) -> Tensor:
        bits = torch.frombuffer(bytearray(self.matcher.compute_bitmask()), dtype=torch.uint8)
        mask = (bits[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
        mask = mask.flatten().bool()[: self.vocabulary]
        mask = torch.nn.functional.pad(mask, (0, self.vocabulary - len(mask)))
        if self.matcher.is_accepting() or not bool(mask.any()):
            mask[self.ends] = True
        return mask

    def accept(self, token: int) -> bool:
        if token in self.ends:
            return True
        self.matcher.consume_token(token)
        return bool(self.matcher.is_stopped())


class Constraints:
    """Makes the constraint of each answer."""

    def __init__(self, tokenizer: Any, ends: Sequence[int], vocabulary: int) -> None:
        self.hf, self.ends, self.vocabulary = tokenizer, list(ends), vocabulary

    def why_not(self, constraint: Constraint | None) -> str:
        if constraint is None or constraint.choice or importlib.util.find_spec("llguidance"):
            return ""
        return f"constraints by regex and schema need llguidance: {how_to_install('engines')}"

    def make(self, prompt: Prompt) -> Chosen | Grammar:
        constraint = prompt.constraint
        assert constraint is not None
        if constraint.choice:
            return Chosen(prompt.choices, self.ends, self.vocabulary)
        return Grammar(self._tokenizer, grammar_of(constraint, prompt.lead), self.ends, self.vocabulary)

    @cached_property
    def _tokenizer(self) -> Any:
        from llguidance.hf import from_tokenizer

        return from_tokenizer(self.hf, n_vocab=self.vocabulary, eos_token=self.hf.eos_token_id)


def grammar_of(constraint: Constraint, lead: str) -> str:
    """In llguidance's form of lark: the lead, then the answer."""
    opening = f"{json.dumps(lead)} " if lead else ""
    if constraint.regex:
        regex = constraint.regex.replace("/", "\\/")
        return f"start: {opening}ANSWER\nANSWER: /{regex}/\n"
    try:
        schema = json.loads(constraint.schema)
    except ValueError as error:
        raise ValueError(f"the constraint's schema is no JSON: {error}") from None
    return f"start: {opening}answer\nanswer: %json {json.dumps(schema)}\n"
