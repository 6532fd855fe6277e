"""Log-probs of answers and of labels are the plain forward's."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from transformers import AutoConfig

from mmfast.data.examples import ExampleBuilder
from mmfast.data.records import Record
from mmfast.data.settings import DataSettings
from mmfast.engines import prefill
from mmfast.engines.base import Decode, Request
from mmfast.engines.local import Local
from mmfast.engines.prompts import Prompts
from mmfast.families import adapter_for
from mmfast.models.attention import attention
from tests.make.local_cases import SHAPES, answered, model_folder, picture, plain_inputs, question, request, requests

LABELS = ("yes", "no", "Yes", "two red circles", "two red stars and a blue one", "zebra?")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(family: str) -> str:
        if family not in made:
            made[family] = model_folder(tmp_path_factory.mktemp("models"), family)
        return str(made[family])

    return folder


@torch.no_grad()
def plain_logp(engine: Local, one: Request, ids: list[int]) -> float:
    """Of ids that follow the prompt, from one plain forward."""
    inputs = plain_inputs(engine, one, ids)
    with attention(engine.scorer.decoder.config, engine.scorer.own_attention):
        logits = engine.scorer.model(**inputs, use_cache=False).logits[0].double()
    rows = logits[-len(ids) - 1 : -1].log_softmax(-1)
    return float(rows.gather(1, torch.tensor(ids, device=rows.device)[:, None]).sum())


@pytest.mark.parametrize("family", SHAPES)
def test_labels_have_the_plain_forwards_log_probs(folders, family):
    """Many labels of many questions on some images, most in one pack; nothing is decoded."""
    engine, generator = Local(folders(family)), random.Random(0)
    shown = (lambda n: ()) if family == "llama" else (lambda n: (picture(n // 4),))
    rows = [request(f"{n}", question(generator), *shown(n), n=0, labels=LABELS) for n in range(12)]
    replies = {reply.key: reply for reply in engine.answer(rows)}
    assert engine.counts["steps"] == 0 and len(replies) == 12
    for one in rows:
        reply, prompt = replies[one.key], engine.prompts.read(one)
        assert list(reply.labels) == list(LABELS) and reply.text == "" and reply.tokens == 0
        assert len(prompt.labels["two red circles"]) > 1
        for label, ids in prompt.labels.items():
            assert abs(reply.labels[label] - plain_logp(engine, one, ids)) < 1e-5 * len(ids), (one.key, label)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_an_answers_log_prob_is_the_plain_forwards(folders, family):
    engine = Local(folders(family))
    rows = requests(family, 6, temperature=1.2, top_k=20, repetition_penalty=1.1)
    found = answered(engine, rows)
    judged = [one for one in rows if engine.prompts.image_id not in found[one.key, 0][0]]  # or it reads an image there
    assert len(judged) > 3
    for one in judged:
        tokens, logp, _ = found[one.key, 0]
        assert abs(logp - plain_logp(engine, one, tokens)) < 1e-5 * len(tokens)


def test_a_request_for_answers_and_labels_has_both(folders):
    engine = Local(folders("llava"))
    ask = request("a", "is it red", picture(0), n=3, labels=("yes", "no"), decode=Decode(temperature=1.0, max_tokens=5))
    replies = list(engine.answer([ask]))
    alone = next(iter(engine.answer([request("b", "is it red", picture(0), n=0, labels=("yes", "no"))])))
    assert [reply.sample for reply in sorted(replies, key=lambda r: r.sample)] == [0, 1, 2]
    for reply in replies:
        assert reply.tokens and reply.labels == pytest.approx(alone.labels, abs=1e-5)


def test_a_label_is_what_the_template_would_write(folders):
    """Behind "ASSISTANT:" the model writes " yes"; behind ChatML's line break "yes"."""
    for family, written in (("llava", " yes"), ("qwen2_vl", "yes")):
        prompts = Local(folders(family)).prompts
        ask = request("a", "is it red", picture(0), n=0, labels=("yes",))
        prompt = prompts.read(ask)
        assert prompts.tokenizer.hf.decode(prompt.labels["yes"]) == written
        begun = Request(key="b", messages=(*ask.messages, {"role": "assistant", "content": "I say"}), images=ask.images,
                        n=0, labels=(" yes",))  # fmt: skip
        assert prompts.tokenizer.hf.decode(prompts.read(begun).labels[" yes"]) == " yes"


def test_a_label_that_says_nothing_is_refused(folders):
    engine = Local(folders("llava"))
    replies = list(engine.answer([request("a", "is it red", picture(0), n=0, labels=("yes", "")), request(
        "b", "is it red", picture(0), n=0, labels=("no",))]))  # fmt: skip
    assert {reply.key: bool(reply.error) for reply in replies} == {"a": True, "b": False}


@pytest.mark.parametrize(
    ("family", "template"),
    [("llava", "auto"), ("llava", "vicuna_v1"), ("llava", "llava_v0"), ("llava", "dgpref_llava"), ("qwen2_vl", "auto"),
     ("qwen2_vl", "chatml"), ("qwen2_vl", "dgpref_qwen"), ("gemma3", "auto"), ("llama", "auto")],
)  # fmt: skip
def test_prompt_and_label_are_what_training_reads(folders, family, template):
    prompts = Prompts(folders(family), adapter_for(AutoConfig.from_pretrained(folders(family))), template=template)
    shown = () if family == "llama" else (picture(0),)
    ask = request("a", "what is it", *shown, n=0, labels=("two red circles",))
    prompt = prompts.read(ask)
    answer = ({"role": "assistant", "content": "two red circles"},)
    record = Record(id="a", source="test", prompt=ask.messages, chosen=answer)
    infos = [prompts.infos[one.id] for one in shown]
    branch = ExampleBuilder(prompts.template, DataSettings()).build(record, infos)[0].chosen
    ids = [*prompt.ids, *prompt.labels["two red circles"]]
    assert branch.ids.tolist()[: len(ids)] == ids and branch.images == prompt.images
    assert prompts.tokenizer.hf.decode(branch.ids[len(ids) :], skip_special_tokens=True).strip() in ("", "###")


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "llama"])
def test_a_pack_is_filled_by_what_it_holds_and_not_by_what_its_prompts_repeat(folders, family, monkeypatch):
    """Long beginnings that prompts share count once; what was counted is never less than what the pack holds."""
    engine, generator = Local(folders(family)), random.Random(1)
    shown = (lambda n: ()) if family == "llama" else (lambda n: (picture(n % 3),))
    system = {"role": "system", "content": "two red circles and a blue star " * 20}
    rows = [
        request(f"{n}", question(generator), *shown(n), n=n % 2, labels=("yes", "no"), decode=Decode(max_tokens=2))
        for n in range(60)
    ]
    rows = [replace(one, messages=(system, *one.messages)) for one in rows]
    monkeypatch.setattr("mmfast.engines.local.PACK", 500)
    planned, counted, plan = [], [], prefill.plan

    def watched(prompts, *more):
        planned.append(plan(prompts, *more))
        # As the engine counts: each prompt beyond what it shares with the one before
        sizes = [p.slots + sum(map(len, p.labels.values())) for p in prompts]
        shared = [engine.prompts.shared(a, b) for a, b in pairwise(prompts)]
        counted.append(sum(sizes) - sum(shared))
        return planned[-1]

    monkeypatch.setattr(prefill, "plan", watched)
    assert not [reply.error for reply in engine.answer(rows) if reply.error]
    held = [len(one.pack.tokens) for one in planned]
    assert sum(len(one.prompts) for one in planned) == 60 and len(planned) > 1
    assert all(real <= told <= 500 for real, told in zip(held, counted, strict=True))
    assert max(len(one.prompts) for one in planned) > 12  # of some 150 tokens each
