"""Inside a training process that is spread over ranks: unequal numbers of requests, no hang, the same answers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mmfast.engines.base import Decode, Request
from mmfast.engines.local import Local
from mmfast.job.runtime import Runtime
from mmfast.models import Parallel, load, make_mesh, parallelize, prove
from mmfast.packing import build_pack
from tests.make.local_cases import answered, model_folder, requests
from tests.make.model_cases import Case
from tests.make.rank_processes import run_ranks


def asked(family: str) -> list[list[list[Request]]]:
    """[time][rank]: unequal numbers, none on one rank, none on both; drawn, searched and judged answers."""
    rows = requests(family, 9, temperature=1.0)
    rows += [
        Request(key="beams", messages=rows[0].messages, images=rows[0].images, decode=Decode(beams=3, max_tokens=9))
    ]
    labels = Request(key="labels", messages=rows[1].messages, images=rows[1].images, n=0, labels=("yes", "two red"))
    return [[[*rows, labels], []], [[], []], [rows[:2], rows[2:]]]


def train_and_answer(family: str, path: str, freeze: tuple, out: Path) -> None:
    dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    runtime = Runtime(rank, 2, rank, 2, torch.device("cpu"))
    scorer = load(path, dtype="float32", freeze=freeze)
    case = Case(family, scorer.adapter)
    case.pair(case.prompt(case.picture()), case.words(2, 4), case.words(2, 4))
    if not scorer.adapter.proven:
        prove(scorer, case.examples, case.infos, case.load_images)
    parallel = Parallel(shard="full")
    parallelize(scorer, parallel, make_mesh(parallel, "cpu", 2), torch.float32)
    engine = Local(path, scorer=scorer, runtime=runtime, tokens=1500)
    pack = build_pack(case.examples, case.infos, scorer.adapter.layout(), load_images=case.load_images)
    found = []
    for time in asked(family):
        scorer(pack).sum().backward()  # within a step: gradients are there, and stay
        before = [p.grad.to_local().clone() for p in scorer.parameters() if p.grad is not None]
        own = answered(engine, time[rank])
        after = [p.grad.to_local() for p in scorer.parameters() if p.grad is not None]
        assert before and all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) and scorer.training
        found.append([[*key, tokens] for key, (tokens, *_) in own.items()])
    scorer(pack).sum().backward()
    (out / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.mark.parametrize(("family", "freeze"), [("llava", ("vision",)), ("qwen2_5_vl", ()), ("gemma3", ("vision",))])
def test_two_sharded_ranks_answer_as_one_process(tmp_path, family, freeze):
    path = str(model_folder(tmp_path, family))
    run_ranks(2, tmp_path, train_and_answer, family, path, freeze, tmp_path)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    engine = Local(path)
    for number, time in enumerate(asked(family)):
        for rank in range(2):
            want = [[*key, tokens] for key, (tokens, *_) in answered(engine, time[rank]).items()]
            assert sorted(found[rank][number]) == sorted(want)


def test_a_sharded_scorer_without_its_runtime_is_refused(tmp_path, monkeypatch):
    path = str(model_folder(tmp_path, "llava"))
    scorer = load(path, dtype="float32")
    monkeypatch.setattr("mmfast.engines.local.FSDPModule", type(scorer))
    with pytest.raises(ValueError, match="needs the run's runtime"):
        Local(path, scorer=scorer)
