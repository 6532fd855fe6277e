"""Inside a training process that is spread over ranks: unequal numbers of requests, no hang, the same answers."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mmfast.engines.base import Decode, Request
from mmfast.engines.local import Local
from mmfast.engines.presets import planned
from mmfast.engines.stage import rows
from mmfast.job.runtime import Runtime
from mmfast.models import Parallel, load, make_mesh, parallelize, prove
from mmfast.packing import build_pack
from tests.make.engine_cases import answers, write_prompts
from tests.make.local_cases import answered, model_folder, requests
from tests.make.model_cases import Case
from tests.make.rank_processes import CONTEXT, run_ranks


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


class Dying(Local):
    def answer(self, requests):
        for number, reply in enumerate(super().answer(requests)):
            if number == 30:
                os.kill(os.getpid(), signal.SIGKILL)
            yield reply


def draw(source: Path, out: Path, path: str, kind: type[Local]) -> None:
    torch.set_num_threads(1)
    answers(source, out, kind(path), planned(temperature=1.0, samples=4, max_tokens=12))


@pytest.mark.parametrize(("prompts", "words"), [(24, 0), pytest.param(500, 32000, marks=pytest.mark.slow)])
def test_ranks_and_a_kill_leave_no_trace_in_drawn_answers(tmp_path, prompts, words):
    path = str(model_folder(tmp_path, "llava", **({"vocab": words} if words else {})))
    source, patience = write_prompts(tmp_path, prompts, prompts // 4), 60 + prompts
    run_ranks(1, tmp_path, draw, source, tmp_path / "one", path, Local, timeout=patience)
    want = list(rows(tmp_path / "one"))
    assert len(want) == 4 * prompts == len({(row["prompt_id"], row["sample"]) for row in want})
    # Killed, then on two ranks
    process = CONTEXT.Process(target=draw, args=(source, tmp_path / "two", path, Dying))
    process.start()
    process.join(patience)
    assert process.exitcode == -signal.SIGKILL and 0 < len(list(rows(tmp_path / "two"))) < len(want)
    run_ranks(2, tmp_path, draw, source, tmp_path / "two", path, Local, timeout=patience)
    found = list(rows(tmp_path / "two"))
    assert [row | {"logp": 0} for row in found] == [row | {"logp": 0} for row in want]
    assert all(abs(a["logp"] - b["logp"]) < 1e-5 * a["tokens"] for a, b in zip(found, want, strict=True))
    assert (tmp_path / "two" / "rows-1.jsonl").exists()


def test_a_sharded_scorer_without_its_runtime_is_refused(tmp_path, monkeypatch):
    path = str(model_folder(tmp_path, "llava"))
    scorer = load(path, dtype="float32")
    monkeypatch.setattr("mmfast.engines.local.FSDPModule", type(scorer))
    with pytest.raises(ValueError, match="needs the run's runtime"):
        Local(path, scorer=scorer)
