"""Models that refused sharing answer one row at a time, through their own generate: every mask and position is theirs.

The tokens are still ours to choose: a logits processor leaves one token and stops where the answer ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from mmfast.data.symbols import expanded
from mmfast.engines.decoding import Answer
from mmfast.engines.plain import generated
from mmfast.engines.prompts import Prompts
from mmfast.engines.sampling import choose
from mmfast.models.attention import attention
from mmfast.models.proof import own_inputs
from mmfast.models.scorer import Scorer


class Chooser(LogitsProcessor):
    def __init__(self, answer: Answer) -> None:
        self.answer, self.ended = answer, False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens, logps = choose(scores.float(), [self.answer])
        self.ended = self.answer.take(tokens[0], logps[0])
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor(tokens, device=scores.device), 0.0)


class Ended(StoppingCriteria):
    def __init__(self, chooser: Chooser) -> None:
        self.chooser = chooser

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.tensor([self.chooser.ended], device=input_ids.device)


@contextmanager
def without_defaults(model: Any) -> Iterator[None]:
    """generate fills in from the model's own generation_config whatever is not said."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def generate(answer: Answer, made: Prompts, scorer: Scorer, ends: list[int]) -> None:
    """Fills the answer's tokens."""
    prompt, decode = answer.of.prompt, answer.decode
    branch = prompt.example(ends[:1]).chosen
    ids = expanded(branch, made.infos, made.image_id)[0][:-1]
    images = made.load_images(prompt.pictures)
    inputs = own_inputs(scorer, ids, images, scorer.dtype)
    settings = GenerationConfig(
        max_new_tokens=answer.most, do_sample=False, num_beams=decode.beams, eos_token_id=ends, pad_token_id=ends[0],
        length_penalty=decode.length_penalty, early_stopping=False,
        repetition_penalty=decode.repetition_penalty if decode.beams > 1 else 1.0,
        return_dict_in_generate=True, output_logits=decode.beams > 1,
    )  # fmt: skip
    model: Any = scorer.model
    with attention(scorer.decoder.config, scorer.own_attention), without_defaults(model):
        if decode.beams == 1:
            chooser = Chooser(answer)
            model.generate(
                **inputs, generation_config=settings, logits_processor=[chooser], stopping_criteria=[Ended(chooser)]
            )
            return
        answer.tokens, answer.logp = generated(model.generate(**inputs, generation_config=settings), len(ids))
    answer.finish = answer.stops(answer.tokens) or "length"
