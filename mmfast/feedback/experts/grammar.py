"""Are questions good English? By the log-prob that a model gives them, or by a classifier of acceptability (DGPref)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mmfast.directory import directory
from mmfast.engines.base import Engine, Request
from mmfast.feedback.experts import Passed
from mmfast.feedback.experts.weights import dtype_of
from mmfast.feedback.prompts import Prompt
from mmfast.files import weight_digests
from mmfast.models.float32 import keep_float32
from mmfast.packages import no_bars


class Likely:
    """The engine's own log-prob of a question, a word: replies hold no number of a label's tokens, and words are the
    same for every tokenizer."""

    def __init__(self, engine: Engine, prompt: Prompt, *, least: float) -> None:
        """least: nats a word that a question must have; there is no published number: look at some rows of --debug."""
        if "labels" not in engine.can:
            raise ValueError("this engine gives no log-probs: it cannot tell a likely question from another")
        self.engine, self.prompt, self.least = engine, prompt, least

    def identity(self) -> dict[str, Any]:
        return {"filter": "likely", "engine": self.engine.identity(), "prompt": self.prompt.key, "least": self.least}

    def passed(self, questions: Sequence[str]) -> list[Passed]:
        distinct = list(dict.fromkeys(questions))
        requests = [Request(key=q, messages=self.prompt.messages(0), n=0, labels=(q,)) for q in distinct]
        found: dict[str, Passed] = {}
        for reply in self.engine.answer(requests):
            if reply.finish == "error":
                found[reply.key] = Passed(False, error=f"the question has no log-prob: {reply.error}")
            else:
                score = reply.labels[reply.key] / max(len(reply.key.split()), 1)
                found[reply.key] = Passed(score >= self.least, score)
        silent = Passed(False, error="the engine gave no log-prob of the question")
        return [found.get(question, silent) for question in questions]


class Cola:
    """A sequence classifier whose label 1 is "acceptable" (CoLA)."""

    def __init__(
        self,
        model: str,
        *,
        least: float = 0.75,
        form: str = "{question}",
        together: int = 64,
        dtype: str = "float32",
        device: str | torch.device = "cpu",
    ) -> None:
        """
        least     probability of acceptable that a question must have
        form      what is classified; DGPref's is "Question: {question} Short answer:"
        together  questions of one batch
        """
        import transformers as hf

        # What can be said to be wrong before weights are read
        if "{question}" not in form:
            raise ValueError("form: it has no {question}")
        self.folder, self.least, self.form, self.together, self.dtype = (
            directory(model, weights=True),
            least,
            form,
            together,
            dtype,
        )
        config = hf.AutoConfig.from_pretrained(self.folder)
        if config.num_labels != 2:
            raise ValueError(
                f"{model}: a classifier of acceptability has 2 labels, and this one has {config.num_labels}"
            )
        # The classifier
        keep_float32(dtype_of(dtype))
        with no_bars():
            named = hf.AutoModelForSequenceClassification
            made: Any = named.from_pretrained(self.folder, dtype=dtype_of(dtype), use_safetensors=True)
        self.model = made.to(device).eval()
        self.tokenizer = hf.AutoTokenizer.from_pretrained(self.folder)
        self.known: dict[str, float] = {}

    def identity(self) -> dict[str, Any]:
        told = {"least": self.least, "form": self.form, "dtype": self.dtype}
        return {"filter": "cola", "weights": weight_digests(self.folder), **told}

    @torch.no_grad()
    def passed(self, questions: Sequence[str]) -> list[Passed]:
        missing = sorted({q for q in questions if q not in self.known}, key=len)  # of like lengths: little padding
        for first in range(0, len(missing), self.together):
            some = missing[first : first + self.together]
            texts = [self.form.replace("{question}", question) for question in some]
            tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self.model.device)
            chances = self.model(**tokens).logits.float().softmax(-1)[:, 1]
            self.known |= dict(zip(some, chances.tolist(), strict=True))
        return [Passed(self.known[question] >= self.least, self.known[question]) for question in questions]
