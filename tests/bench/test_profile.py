"""bench.profile: one step of a run by op, with a trace, and nothing left in the run's own folder."""

from __future__ import annotations

import json

import pytest

from bench.profile import ROWS, main, profile_step, table
from tests.make.tiny_run import make_config


@pytest.fixture(scope="module")
def recorded(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    result, trace = profile_step(make_config(folder, *tiny), folder / "out")
    assert not (folder / "run").exists()
    return result, trace


def test_the_trace_is_of_one_step(recorded):
    events = json.loads(recorded[1].read_text())["traceEvents"]
    names = [event["name"] for event in events if event.get("ph") == "X"]
    assert sum(name.startswith("ProfilerStep") for name in names) == 1
    assert sum(name.startswith("Optimizer.step") for name in names) == 1
    assert any(name == "mmfast::linear_logprob" for name in names)


def test_the_table_has_the_ops_that_took_most_and_the_sums(recorded):
    lines = table(recorded[0]).splitlines()
    assert len(lines) == ROWS + 2 and lines[0].split()[0] == "op" and lines[-1].startswith("all ops")
    milliseconds = [float(line[60:].split()[0]) for line in lines[1:]]
    assert milliseconds[:-1] == sorted(milliseconds[:-1], reverse=True) and milliseconds[-1] > sum(milliseconds[:3])


def test_a_run_of_two_steps_has_no_third(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"fewer than three steps.*train\.steps"):
        profile_step(make_config(tmp_path, *tiny, **{"train.steps": 2}), tmp_path)


def test_a_config_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        main([str(tmp_path / "none.toml")])
