"""Any engine as an expert: a question is asked for yes and no, and their log-probs are read. An image's questions go
out together, so that the local engine reads the image once for all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mmfast.engines.base import Engine, Reply, Request
from mmfast.feedback.experts import FALSE, OPEN, TRUE, Case, Verdict
from mmfast.feedback.items import KINDS, Item
from mmfast.feedback.prompts import Prompt

MEANINGS = ("yes", "no")


class YesNo:
    kinds = frozenset(KINDS)

    def __init__(self, engine: Engine, prompt: Prompt, *, labels: dict[str, Any] | None = None) -> None:
        """
        prompt  has the slot question
        labels  {"yes": [...], "no": [...]}: what counts as either, in place of the prompt's own. RLAIF-V adds up
                "yes" and "Yes"
        """
        self.engine, self.prompt = engine, prompt
        if prompt.wording.slots != ("question",):
            raise ValueError(
                f"prompt {prompt.name}: its slots must be question alone, not {', '.join(prompt.wording.slots)}"
            )
        given = labels if labels is not None else prompt.wording.labels
        if set(given) != set(MEANINGS):
            raise ValueError(f"prompt {prompt.name}: its labels must be yes and no, not {', '.join(given) or 'none'}")
        self.labels = {
            meaning: tuple([given[meaning]] if isinstance(given[meaning], str) else given[meaning])
            for meaning in MEANINGS
        }
        self.asked = tuple(dict.fromkeys(label for meaning in MEANINGS for label in self.labels[meaning]))
        if len(self.asked) != sum(map(len, self.labels.values())) or not all(self.asked):
            raise ValueError(f"prompt {prompt.name}: a label is empty, or stands for yes and for no")
        if "labels" not in engine.can:
            raise ValueError("this engine gives no log-probs of labels: yes and no cannot be read from it")

    def identity(self) -> dict[str, Any]:
        told = {"prompt": self.prompt.key, "labels": {meaning: list(own) for meaning, own in self.labels.items()}}
        return {"expert": "yesno", "engine": self.engine.identity(), **told}

    def check(self, cases: Sequence[Case]) -> Iterator[list[Verdict]]:
        # Each image's questions once, one image after another
        keys = [[self._key(case, item) for item in case.items] for case in cases]
        found: dict[str, Verdict] = {}
        items = {
            key: item for own, case in zip(keys, cases, strict=True) for key, item in zip(own, case.items, strict=True)
        }
        for reply in self.engine.answer(self._requests(cases, keys)):
            found[reply.key] = self._verdict(items[reply.key], reply)
        # Their verdicts
        silent = Verdict(error="the engine gave no answer")
        for own, case in zip(keys, cases, strict=True):
            yield [
                found.get(key, silent) if item.question else Verdict(evidence={"why": "there is no question to ask"})
                for key, item in zip(own, case.items, strict=True)
            ]

    @staticmethod
    def _key(case: Case, item: Item) -> str:
        return "+".join(picture.id for picture in case.images) + item.name

    def _requests(self, cases: Sequence[Case], keys: Sequence[Sequence[str]]) -> Iterable[Request]:
        for case, own in zip(cases, keys, strict=True):
            for item, key in zip(case.items, own, strict=True):
                if item.question:
                    messages = self.prompt.messages(len(case.images), question=item.question)
                    images = case.images if self.prompt.wording.image != "none" else ()
                    yield Request(key=key, messages=messages, images=images, n=0, labels=self.asked)

    def _verdict(self, item: Item, reply: Reply) -> Verdict:
        if reply.finish == "error":
            return Verdict(error=reply.error or "the engine gave no answer")
        sums = {m: sum(math.exp(reply.labels[label]) for label in self.labels[m]) for m in MEANINGS}
        logps = {label: _finite(logp) for label, logp in reply.labels.items()}
        if not sum(sums.values()) > 0:  # or not a number
            return Verdict(error=f"neither yes nor no has a probability: {logps}")
        p_yes = sums["yes"] / sum(sums.values())
        evidence: dict[str, Any] = {"logp": logps} | ({"at_most": list(reply.bounded)} if reply.bounded else {})
        if len(set(reply.bounded) & set(self.asked)) == len(self.asked):
            return Verdict(value=OPEN, p_yes=None, evidence=evidence | {"why": "the server showed neither yes nor no"})
        holds = (sums["yes"] > sums["no"]) != item.negated  # RLAIF-V: a tie is a no
        return Verdict(value=TRUE if holds else FALSE, p_yes=p_yes, evidence=evidence)


def _finite(logp: float) -> float | None:
    return round(logp, 5) if math.isfinite(logp) else None
