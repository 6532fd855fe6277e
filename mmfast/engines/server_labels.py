"""Log-probs of labels through a server, by the best means that it honours.

    ids      logprob_token_ids: the exact log-prob of any token at the answer's first place (labels of one token)
    prompt   prompt_logprobs of the label appended as the answer's beginning: exact, for labels of any length
    top      the likeliest tokens of the first place: a label that is not among them is bounded by the last of them

A label's tokens are those of the template's own continuation, as the server's tokenizer has them: "no" after
"ASSISTANT:" is " no", another token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmfast.engines.server_calls import Endpoint, Refused
from mmfast.engines.server_wire import CONTINUED

Body = dict[str, Any]


async def label_ids(endpoint: Endpoint, body: Body, label: str) -> list[int]:
    """The ids that the label adds to the prompt. Raises Refused where the server does not tell."""
    texts = without_images(body["messages"])
    before, whole = [
        await _tokens(endpoint, {"model": body["model"], "messages": messages, **how})
        for messages, how in ((texts, _opened(texts)), (begun(texts, label), CONTINUED))
    ]
    if whole[: len(before)] != before or len(whole) == len(before):
        raise Refused(f"{endpoint.url}: the tokens of {label!r} do not continue the prompt's")
    return whole[len(before) :]


async def by_ids(endpoint: Endpoint, body: Body, ids: Sequence[int]) -> dict[int, float]:
    """log P of each id as the answer's first token."""
    asked = {"logprobs": True, "top_logprobs": 0, "logprob_token_ids": [*ids], "return_tokens_as_token_ids": True}
    answer = await endpoint.chat({**body, **asked})
    shown = first_place(answer)
    found = {number: shown[f"token_id:{number}"] for number in ids if f"token_id:{number}" in shown}
    if len(found) < len(set(ids)):
        raise Refused(f"{endpoint.url} shows other tokens than those it was asked for")
    return found


async def by_prompt(endpoint: Endpoint, body: Body, label: str, ids: Sequence[int]) -> float:
    """log P of the label, appended as the answer's beginning."""
    asked = {"prompt_logprobs": 0, **CONTINUED, "messages": begun(body["messages"], label)}
    answer = await endpoint.chat({**body, **asked})
    places = ((answer.model_extra or {}).get("prompt_logprobs") or [])[-len(ids) :]
    try:
        return sum(float(place[str(number)]["logprob"]) for place, number in zip(places, ids, strict=True))
    except (KeyError, TypeError, ValueError):
        raise Refused(f"{endpoint.url} shows no log-probs of the prompt's own tokens") from None


async def by_top(endpoint: Endpoint, body: Body, labels: Sequence[str], most: int) -> tuple[dict[str, float], set[str]]:
    """(log-probs, the labels among them that are only bounded.)"""
    answer = await endpoint.chat({**body, "logprobs": True, "top_logprobs": most})
    shown = first_place(answer)
    if not shown:
        raise Refused(f"{endpoint.url} shows no log-probs")
    seen: dict[str, float] = {}
    for token, logp in sorted(shown.items(), key=lambda item: item[1]):
        seen[token.strip()] = logp  # the likelier of "no" and " no"
    least = min(shown.values())
    return {label: seen.get(label, least) for label in labels}, {label for label in labels if label not in seen}


def first_place(answer: Any) -> dict[str, float]:
    """The log-probs that an answer shows of its first token and of what might have stood there."""
    content = getattr(answer.choices[0].logprobs, "content", None) or []
    if not content:
        return {}
    return {entry.token: entry.logprob for entry in (content[0], *(content[0].top_logprobs or ()))}


def without_images(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For the tokenizer alone: what ends a prompt does not depend on its images."""
    return [
        {"role": m["role"], "content": m["content"]}
        if isinstance(m["content"], str)
        else {"role": m["role"], "content": "".join(p["text"] for p in m["content"] if p["type"] == "text")}
        for m in messages
    ]


def begun(messages: Sequence[Mapping[str, Any]], label: str) -> list[Any]:
    """The messages with an answer that begins with the label, or goes on with it."""
    if messages[-1]["role"] != "assistant":
        return [*messages, {"role": "assistant", "content": label}]
    return [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + label}]


def _opened(messages: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    return CONTINUED if messages[-1]["role"] == "assistant" else {"add_generation_prompt": True}


async def _tokens(endpoint: Endpoint, body: Body) -> list[int]:
    answer = await endpoint.post(f"{endpoint.root}/tokenize", body)
    tokens = answer.get("tokens") if isinstance(answer, dict) else None
    if not isinstance(tokens, list) or not all(isinstance(number, int) for number in tokens):
        raise Refused(f"{endpoint.url} does not tell its tokens")
    return tokens
