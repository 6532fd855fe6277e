"""Drawn answers: transformers' cuts and distributions, and nothing but their own name decides them."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mmfast.engines.base import Decode, Request
from mmfast.engines.local import Local
from mmfast.engines.sampling import choose, count, cut, penalised, stream_of
from tests.make.local_cases import answered, model_folder, picture, question, request, twin


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(model_folder(tmp_path_factory.mktemp("models"), "llava"))


@pytest.fixture(scope="module")
def engine(folder):
    return Local(folder)


@dataclass
class Row:
    decode: Decode
    stream: tuple[int, int]
    step: int = 0
    seen: list[int] | None = None
    allowed: None = None
    tokens: list[int] = field(default_factory=list)


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({"top_k": 5}, [TopKLogitsWarper(5)]),
        ({"top_p": 0.7}, [TopPLogitsWarper(0.7)]),
        ({"min_p": 0.1}, [MinPLogitsWarper(0.1)]),
        (
            {"top_k": 9, "top_p": 0.8, "min_p": 0.05},
            [TopKLogitsWarper(9), TopPLogitsWarper(0.8), MinPLogitsWarper(0.05)],
        ),
    ],
)
def test_what_is_cut_is_what_transformers_cuts(settings, theirs):
    logits = torch.randn(64, 100, generator=torch.Generator().manual_seed(0)) * 2
    want = TemperatureLogitsWarper(0.7)(None, logits)
    for warper in theirs:
        want = warper(None, want)
    got = cut(logits / 0.7, Decode(temperature=0.7, **settings))
    assert torch.equal(got, want) and bool(torch.isinf(got).any())


def test_the_penalty_is_transformers():
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(1))
    seen = [3, 7, 7, 20, 49]
    want = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([seen]), logits)
    assert torch.equal(penalised(logits[0], seen, 1.3), want[0])


def test_draws_follow_the_distribution():
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(2)) * 2
    decode, draws = Decode(temperature=1.3, top_p=0.9), 20000
    rows = [Row(decode, stream_of(f"row {n // 4}", n % 4, 5), step=n % 3) for n in range(draws)]
    tokens, logps = choose(logits.expand(draws, -1), rows)
    want = cut(logits / 1.3, decode).softmax(-1)[0].numpy()
    got = np.bincount(tokens, minlength=40) / draws
    kept = want > 0
    chi = draws * float((((got - want) ** 2)[kept] / want[kept]).sum())
    assert got[~kept].sum() == 0 and chi < kept.sum() + 5 * np.sqrt(2 * kept.sum()), chi
    assert np.allclose(logps, logits.log_softmax(-1)[0, tokens], atol=1e-5)


def noise(stream: tuple[int, int], step: int, length: int) -> np.ndarray:
    out = np.empty(length, np.float32)
    count(stream, step, out)
    return out / np.float32(2.0**32)


def test_noise_is_uniform_and_named_by_answer_and_step():
    values = noise(stream_of("a", 0, 0), 3, 100001)
    assert len(values) == 100001 and values.min() > 0 and values.max() <= 1
    assert abs(values.mean() - 0.5) < 5e-3 and abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.02
    again = noise(stream_of("a", 0, 0), 3, 512)
    assert np.array_equal(again, values[:512])
    others = [
        noise(stream_of("a", 0, 0), 4, 512),
        noise(stream_of("a", 1, 0), 3, 512),
        noise(stream_of("a", 0, 1), 3, 512),
    ]
    assert all(abs(np.corrcoef(again, other)[0, 1]) < 0.2 for other in others)


def many(count: int, most: int = 24, n: int = 4, **decode) -> list[Request]:
    generator = random.Random(0)
    settings = [Decode(temperature=t, max_tokens=most, **decode) for t in (0.7, 1.0, 1.2)]
    settings[1] = replace(settings[1], top_p=0.9)
    return [
        request(f"row {k}", question(generator), picture(k // 4), n=n, decode=settings[k % 3])
        for k in range(count)
    ]  # fmt: skip


def same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    different = [key for key in first if first[key][0] != second[key][0]]
    assert not different, different[:5]
    assert max(abs(first[key][1] - second[key][1]) / len(first[key][0]) for key in first) < 1e-5


def test_a_sample_depends_on_its_name_alone(folder, engine):
    """Another order, a budget that lets few rows run together, one request at a time, and fewer samples."""
    rows = many(60)
    ends = [*engine.ends, 100, 200, 300]
    want = {}
    shuffled = random.Random(1).sample(rows, len(rows))
    tight = Local(folder, tokens=700)
    engine.ends = tight.ends = ends
    want = answered(engine, rows)
    assert len(want) == 240 and len({tuple(tokens) for tokens, _, _ in want.values()}) > 230
    same(want, answered(engine, shuffled))
    same(want, answered(tight, rows))
    alone = {}
    for one in rows[::10]:
        alone |= answered(engine, [replace(one, n=2)])
    same({key: want[key] for key in alone}, alone)
    other = answered(engine, [replace(one, decode=replace(one.decode, seed=1)) for one in rows])
    assert sum(other[key][0] == want[key][0] for key in want) < 10


@pytest.mark.slow
def test_two_thousand_answers_over_thirty_two_thousand_words(tmp_path):
    path = str(model_folder(tmp_path, "llava", vocab=32000))
    rows = many(250, most=16, n=8)
    whole, tight = Local(path), Local(path, tokens=900)
    want = answered(whole, rows)
    assert len(want) == 2000
    same(want, answered(whole, rows[::-1]))
    same(want, answered(tight, rows))


def test_sampled_answers_are_distributed_as_transformers_samples(engine):
    """Tokens 1 to 3 of 600 answers each: as far from transformers' as its own two halves are."""
    engine.ends = engine.ends[:1]
    image, count = picture(3), 600
    ask = request("a", "what is the picture", image, n=count, decode=Decode(temperature=2.0, top_k=3, max_tokens=3))
    ours = Counter(tuple(tokens) for tokens, _, _ in answered(engine, [ask]).values())
    torch.manual_seed(0)
    theirs = []
    for _ in range(2):
        settings = {"do_sample": True, "temperature": 2.0, "top_p": 1.0, "top_k": 3, "num_return_sequences": count // 2}
        theirs.append(Counter(map(tuple, twin(engine, ask, every=True, **settings))))

    def distance(a: Counter, b: Counter) -> float:
        return sum(abs(a[k] / a.total() - b[k] / b.total()) for k in a | b) / 2

    apart = distance(*theirs)
    assert distance(ours, theirs[0] + theirs[1]) < apart + 0.02 < 0.4, apart
    assert len(ours) > 10


def test_a_repetition_penalty_is_generates(engine):
    rows = [
        request(f"{n}", "what is the red star", picture(n), decode=Decode(max_tokens=24, repetition_penalty=1.4))
        for n in range(3)
    ]
    found = answered(engine, rows)
    for one in rows:
        assert found[one.key, 0][0] == twin(engine, one, repetition_penalty=1.4)
    plain = answered(engine, [replace(one, decode=Decode(max_tokens=24)) for one in rows])
    assert plain != found


def test_an_answer_ends_before_a_stop_string(engine):
    free = request("a", "what is it", picture(0), decode=Decode(max_tokens=30))
    text = next(iter(engine.answer([free]))).text
    stop = text[len(text) // 2 :][:3]
    cut_at = text.find(stop)
    reply = next(iter(engine.answer([replace(free, decode=Decode(max_tokens=30, stop=("never", stop)))])))
    assert reply.finish == "stop" and reply.text == text[:cut_at].strip() and 0 < reply.tokens < 30


def test_a_beginning_is_continued(engine):
    """Its ids stay the prompt's own, then the template's continuation; the text is what follows."""
    one = request("a", "what is it", picture(0), decode=Decode(max_tokens=10))
    begun = replace(one, messages=(*one.messages, {"role": "assistant", "content": "two red"}))
    prompt, longer = engine.prompts.read(one), engine.prompts.read(begun)
    assert longer.ids[: len(prompt.ids)] == prompt.ids
    hf = engine.prompts.tokenizer.hf
    assert hf.decode(longer.ids[len(prompt.ids) :]) == " two red"
    assert answered(engine, [begun])["a", 0][0] == twin(engine, begun)
    assert not next(iter(engine.answer([begun]))).text.startswith("two red")
