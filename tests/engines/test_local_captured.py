"""A decode step of fixed shapes, which a GPU captures and replays: the answers are those of today's step.

Here the same code runs without a graph: in Triton's interpreter, which is slow, and with the kernels' plain twin."""

from __future__ import annotations

import random
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from mmfast.engines import captured, decoding
from mmfast.engines.base import Decode
from mmfast.engines.captured import Captured, why_not
from mmfast.engines.local import Local
from mmfast.engines.pieces import bucket
from mmfast.kernels import decode as kernels
from mmfast.models import load
from mmfast.world import models as world
from tests.engines.test_local_device import begun, mixed
from tests.engines.test_local_sampling import same
from tests.make import pieces_oracle
from tests.make.local_cases import answered, easy_ends, model_folder, picture, question, request, requests

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def made(monkeypatch):
    """Every engine's steps have fixed shapes; what was made for them."""
    found: list[Captured] = []

    def make(engine):
        found.append(Captured(engine.scorer))
        return found[-1]

    itself = kernels.attend

    def attend(query, *arguments, **keywords):
        return (itself if query.is_cuda else pieces_oracle.attend)(query, *arguments, **keywords)

    monkeypatch.setattr(Local, "_captured", make)
    monkeypatch.setattr(kernels, "attend", attend)
    return found


def today(engine: Local, rows: list) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Local, "_captured", lambda self: None)
        return answered(engine, rows)


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llama"])
def test_answers_are_those_of_todays_step(tmp_path, made, family):
    """Greedy, drawn, searched, constrained; answers that end at different steps and cross pages."""
    engine = Local(str(model_folder(tmp_path, family)))
    rows = requests(family, 14) if family == "llama" else mixed(family)
    easy_ends(engine, [one for one in rows if one.key.startswith("row")])
    want = today(engine, rows)
    same(want, answered(engine, rows))
    shapes = list(made[0].held)
    assert len(shapes) > 1 and {shape.rows for shape in shapes} <= {4, 8, 16, 32}
    assert engine.counts["spare"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted where there is no GPU")
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_kernels_themselves_give_the_same(tmp_path, made, monkeypatch, family):
    """In the interpreter; a row's own keys cross a page."""
    monkeypatch.undo()
    engine = Local(str(model_folder(tmp_path, family)))
    rows = [
        request(str(n), "what is it", picture(n // 2), n=1 + n, decode=Decode(temperature=1.0, max_tokens=4))
        for n in range(3)
    ]
    monkeypatch.setattr(decoding, "PAGE", 2)
    monkeypatch.setattr("mmfast.engines.pieces.PAGE", 2)
    want = today(engine, rows)
    engine.captured = Captured(engine.scorer)
    monkeypatch.setattr(Local, "_captured", lambda self: self.captured)
    same(want, answered(engine, rows))


def test_a_window_that_slides(tmp_path, made):
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, initializer_range=0.1, sliding_window=7, eos_token_id=2,
    )  # fmt: skip
    world.save(tmp_path, MistralForCausalLM(config).eval(), world.tiny_tokenizer("llama"), None, None)
    engine = Local(str(tmp_path))
    rows = requests("llama", 8, max_tokens=50)
    same(today(engine, rows), answered(engine, rows))


def test_a_small_budget_moves_pages_and_nodes(tmp_path, made):
    """Rows wait, the pool grows, nodes that nobody needs leave their stacks."""
    path = str(model_folder(tmp_path, "llava"))
    generator = random.Random(0)
    rows = [
        request(f"{n}", question(generator), picture(n // 4), n=1 + n % 4,
                decode=Decode(temperature=1.0, max_tokens=generator.choice([3, 20, 70])))
        for n in range(30)
    ]  # fmt: skip
    engine = Local(path, tokens=900)
    same(today(Local(path), rows), answered(engine, rows))
    assert engine.counts["steps"] > 140


def test_rows_stand_in_buckets():
    assert [bucket(n, 4) for n in (1, 4, 5, 8, 9, 33, 256)] == [4, 4, 8, 8, 16, 64, 256]


def test_the_second_step_of_a_shape_is_captured_and_the_oldest_graph_forgotten(tmp_path, made, monkeypatch):
    """A graph's replay is the same launches on the same tensors, which a twin does here."""

    class Graph:
        def __init__(self, of: Captured, held: captured.Held) -> None:
            self.of, self.held = of, held

        def replay(self) -> None:
            self.held.hidden.copy_(self.of._run(self.held))

    def capture(self, held):
        held.hidden = torch.full((held.pieces.shape.rows, 64), torch.nan)
        held.graph = Graph(self, held)
        self.counts["captured"] += 1

    engine = Local(str(model_folder(tmp_path, "llava")))
    rows = mixed("llava")
    want = today(engine, rows)
    monkeypatch.setattr(Captured, "_capture", capture)
    monkeypatch.setattr(captured, "GRAPHS", 2)
    make = Local._captured

    def with_graphs(self):
        found = make(self)
        found.graphs = True
        return found

    monkeypatch.setattr(Local, "_captured", with_graphs)
    same(want, answered(engine, rows))
    counts = made[0].counts
    assert 2 < counts["captured"] < counts["replayed"] <= engine.counts["steps"] - 3
    assert len(made[0].held) == 2


def test_when_a_step_is_captured(tmp_path, monkeypatch):
    engine = Local(str(model_folder(tmp_path, "llava")))
    assert engine._captured() is None and why_not(engine.scorer, sharded=False) == "it is not on a GPU"
    scorer = load(engine.model, dtype="float32", device="meta")
    monkeypatch.setattr(type(scorer), "device", torch.device("cuda"))
    monkeypatch.setattr(captured, "available", lambda name, device: "")
    assert why_not(scorer, sharded=False) == "" and "ranks" in why_not(scorer, sharded=True)
    monkeypatch.setattr(captured, "available", lambda name, device: "triton is not installed")
    assert why_not(scorer, sharded=False) == "triton is not installed"
    scorer.run_unshared("its mask is not causal")
    assert why_not(scorer, sharded=False) == "its mask is not causal"
    # Graphs are kept, but not where somebody trains the weights
    monkeypatch.undo()
    monkeypatch.setattr("mmfast.engines.local.why_not", lambda scorer, sharded: "")
    live = Local(engine.model, scorer=engine.scorer)
    assert engine._captured() is engine._captured() and live._captured() is not live._captured()


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_replay_is_the_step_itself(tmp_path, made, monkeypatch, family):
    engine = Local(str(model_folder(tmp_path, family)), device="cuda")
    rows = mixed(family)
    want = today(engine, rows)
    found = answered(engine, rows)
    monkeypatch.setattr(Captured, "_capture", lambda self, held: None)
    same(answered(engine, rows), found)
    same(want, found)
    assert made[0].counts["replayed"] > made[0].counts["captured"] > 1 and not made[1].counts["captured"]


@pytest.mark.gpu
@GPU
def test_graphs_outlive_an_answer_and_half_precision_replays_too(tmp_path):
    engine = Local(str(model_folder(tmp_path, "llava")), device="cuda", dtype="bfloat16")
    rows = mixed("llava")
    first = answered(engine, rows)
    kept = engine.captured
    again = answered(engine, rows)
    assert kept is engine.captured and kept.counts["replayed"] > 20
    assert sum(first[key][0] == again[key][0] for key in first) == len(first)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_captured_step_waits_for_nothing(tmp_path, family):
    engine = Local(str(model_folder(tmp_path, family)), device="cuda", dtype="bfloat16")
    run = begun(engine, family, 8, "cuda")
    run.captured = Captured(engine.scorer)
    with torch.no_grad():
        run.step()
        run.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(40):  # across pages
                run.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert run.captured.counts["replayed"] > 30


class Torchs:
    """What torch 2.11 keeps of captures: it ends one in its generator and its allocator only where it went well."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recording: list[tuple[int, int]] = []
        self.streams: list[torch.device] = []
        self.generator = self.Generator(self)
        of = self

        class Graph:
            def capture_begin(self, pool, capture_error_mode):
                assert not of.generator.state["capturing"] and pool not in of.recording
                of.generator.state["capturing"] = True
                of.recording.append(pool)
                self.pool = pool

            def capture_end(self):
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nmore")

        stream = SimpleNamespace(wait_stream=lambda other: None, device_index=0)
        for name, value in {
            "CUDAGraph": Graph, "current_stream": lambda device: stream, "Stream": lambda device: stream,
            "stream": lambda stream: nullcontext(), "graph_pool_handle": lambda: (0, 7),
            "default_generators": (self.generator,),
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end)
        monkeypatch.setattr(captured, "FAILED", [])

    class Generator:
        def __init__(self, of, **state):
            self.of, self.state = of, {"seed": 5, "offset": 12, "capturing": False} | state

        def clone_state(self):
            return Torchs.Generator(self.of, **self.state | {"capturing": False})

        def graphsafe_set_state(self, other):
            self.state = other.state

    def end(self, device, pool):
        if pool not in self.recording:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.recording.remove(pool)


@pytest.mark.parametrize("ended", [False, True])  # torch 2.13 ends the allocator's part itself
def test_a_capture_that_fails_leaves_nothing_behind(tmp_path, made, monkeypatch, capsys, ended):
    engine = Local(str(model_folder(tmp_path, "llava")))
    rows = mixed("llava")
    want, make = today(engine, rows), Local._captured

    def with_graphs(self):
        found = make(self)
        found.graphs = True
        return found

    monkeypatch.setattr(Local, "_captured", with_graphs)
    stand_in = Torchs(monkeypatch)
    if ended:
        failing = torch.cuda.CUDAGraph.capture_end
        monkeypatch.setattr(
            torch.cuda.CUDAGraph, "capture_end", lambda self: (stand_in.recording.clear(), failing(self))
        )
    same(want, answered(engine, rows))
    told = capsys.readouterr().err
    assert told.count("cannot be captured") == 1 and "during capture\n" in told and "more" not in told
    assert not made[0].graphs and not made[0].counts["captured"]
    assert stand_in.generator.state == {"seed": 5, "offset": 12, "capturing": False}
    assert not stand_in.recording and len(captured.FAILED) == 1


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("what", ["reads a number", "waits"])
def test_a_model_that_waits_is_told_of_and_goes_on(tmp_path, made, monkeypatch, capsys, what):
    """And the rest of the process too: it draws the numbers that it would have drawn, and captures."""
    engine = Local(str(model_folder(tmp_path, "llava")), device="cuda")
    rows = mixed("llava")
    want, run = today(engine, rows), Captured._run

    def waits(self, held):
        if what == "reads a number":
            held.tokens.sum().item()
        else:
            torch.cuda.synchronize()
        return run(self, held)

    monkeypatch.setattr(Captured, "_run", waits)
    torch.manual_seed(3)
    drawn = torch.rand(9, device="cuda")
    torch.manual_seed(3)
    same(want, answered(engine, rows))
    assert capsys.readouterr().err.count("cannot be captured") == 1 and not made[0].graphs
    assert torch.equal(torch.rand(9, device="cuda"), drawn)
    graph, x = torch.cuda.CUDAGraph(), torch.zeros(9, device="cuda")
    with torch.cuda.graph(graph):
        x += 1
    graph.replay()
    assert torch.equal(x, torch.ones_like(x)) and torch.rand(9, device="cuda").std() > 0
