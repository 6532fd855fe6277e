"""A reference cache is verified before a run trusts it, whatever else this start has scored."""

import json

import numpy as np
import pytest

from mmfast.reference.cache import ReferenceCache
from mmfast.reference.scoring import distance, reference, tolerance
from mmfast.train import train
from tests.make.rank_processes import run_ranks
from tests.make.tiny_run import make_config, make_model, write_pairs


def spoil(folder, change, only=lambda key: True):
    """Write a cache's rows again as `change` makes them."""
    cache = ReferenceCache(folder)
    rows = {key: change(np.array(values)) if only(key) else values for key, values in cache.values.items()}
    for shard in folder.glob("shard-*"):
        shard.unlink()
    cache.add(rows)


def noise(size):
    rng = np.random.default_rng(0)
    return lambda values: values + rng.normal(0, size, len(values)).astype(np.float32)


@pytest.mark.parametrize("besides", ["nothing", "an eval set", "an appended row", "a named reference"])
@pytest.mark.parametrize(("dtype", "size"), [("float32", 0.05), ("bfloat16", 0.3), ("bfloat16", 1.0)])
def test_wrong_rows_are_refused_whatever_else_is_scored(tiny, tmp_path, dtype, size, besides):
    model, data = tiny[0], write_pairs(tmp_path, 24)
    changes = {"model.dtype": dtype, "train.steps": 2, "reference.path": str(tmp_path / "ref")}
    if besides == "a named reference":
        changes["reference.model"] = str(make_model(tmp_path, seed=1))
    reference(make_config(tmp_path, model, data, **changes))
    spoil(tmp_path / "ref", noise(size))
    if besides == "an eval set":
        changes["data.eval_path"] = str(write_pairs(tmp_path, 4, name="eval.jsonl", split="eval"))
    if besides == "an appended row":
        row = json.loads(data.read_text().splitlines()[0])
        row["chosen"][0]["content"] += " and more"
        data.write_text(data.read_text() + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="does not fit this model"):
        train(make_config(tmp_path, model, data, **changes))


def test_wrong_rows_of_the_eval_set_alone_are_refused(tiny, tmp_path):
    held_out = write_pairs(tmp_path, 6, name="eval.jsonl", split="eval")
    changes = {"train.steps": 1, "reference.path": str(tmp_path / "ref"), "data.eval_path": str(held_out)}
    reference(make_config(tmp_path, *tiny, **changes))
    whole = set(ReferenceCache(tmp_path / "ref").values)
    reference(make_config(tmp_path, *tiny, **changes | {"data.eval_path": "", "reference.path": str(tmp_path / "b")}))
    spoil(tmp_path / "ref", noise(0.05), only=(whole - set(ReferenceCache(tmp_path / "b").values)).__contains__)
    with pytest.raises(ValueError, match="does not fit this model"):
        train(make_config(tmp_path, *tiny, **changes))


def test_a_right_cache_is_told_and_trusted(tiny, tmp_path, capfd):
    held_out = write_pairs(tmp_path, 4, name="eval.jsonl", split="eval")
    changes = {"train.steps": 1, "data.eval_path": str(held_out), "model.dtype": "bfloat16"}
    reference(make_config(tmp_path, *tiny, **changes))
    train(make_config(tmp_path, *tiny, **changes))
    told = capfd.readouterr().err
    assert "12 cached rows scored again, off by" in told  # 8 of the 24, and all 4 of the eval set
    assert "the largest margin of a pair is" in told


@pytest.mark.parametrize("compat", ["", "dgpref"])
def test_step_0_looks_at_single_pairs_not_at_their_mean(tiny, tmp_path, compat):
    """Errors of either sign leave the mean loss where it was: ln 2 + m^2 / 8."""
    changes = {"train.steps": 1, "reference.path": str(tmp_path / "ref"), "reference.check": 0}
    changes |= {"train.pairs_per_step": 24, "objective.compat": compat}
    reference(make_config(tmp_path, *tiny, **changes))
    turn = iter(range(10**6))
    spoil(tmp_path / "ref", lambda values: values + np.float32(0.002 if next(turn) % 2 else -0.002))
    with pytest.raises(ValueError, match=r"largest margin of a pair is .* nat: the pair train\d+ is .* from zero"):
        train(make_config(tmp_path, *tiny, **changes))


def _two_ranks(folder, model, data):
    changes = {"train.steps": 1, "reference.path": str(folder / "ref"), "parallel.shard": "none"}
    config = make_config(folder, model, data, **changes)
    with pytest.raises(ValueError, match="does not fit this model"):
        train(config)


def test_two_ranks_refuse_together(tiny, tmp_path):
    reference(make_config(tmp_path, *tiny, **{"reference.path": str(tmp_path / "ref")}))
    spoil(tmp_path / "ref", noise(0.05))
    run_ranks(2, tmp_path, _two_ranks, tmp_path, *tiny, timeout=500)


def _broken_on_one_rank(folder, model, data):
    import os

    import mmfast.reference.scoring as module

    honest = module.responses

    def broken(scorer, pack):
        found = honest(scorer, pack)
        if os.environ["RANK"] == "1" and found:
            found[0] = (found[0][0], found[0][1] * np.nan, found[0][2])
        return found

    module.responses = broken
    with pytest.raises(ValueError, match=r"log-probs of example train\d+ are not finite"):
        reference(make_config(folder, model, data, **{"reference.path": str(folder / "ref")}))


def test_a_row_that_is_not_finite_on_one_rank_ends_both(tiny, tmp_path):
    run_ranks(2, tmp_path, _broken_on_one_rank, tmp_path, *tiny, timeout=500)
    kept = ReferenceCache(tmp_path / "ref")
    assert 24 < len(kept) < 48 and not kept.dropped


def test_tolerances_grow_with_the_response(tiny, tmp_path):
    for dtype, short in (("bfloat16", 0.3), ("float32", 1e-4)):
        config = make_config(tmp_path, *tiny, **{"model.dtype": dtype})
        assert tolerance(config, 5) == tolerance(config, 64) == short
        assert tolerance(config, 640) == pytest.approx(10 * short)
    rng = np.random.default_rng(0)
    config = make_config(tmp_path, *tiny, **{"model.dtype": "bfloat16"})
    for tokens in (16, 64, 640):  # what cancels in a sum does not cancel in the root of squares
        there = np.zeros(tokens, np.float32)
        now = rng.normal(0, 0.3, tokens)
        assert distance(now - now.mean(), there) > tolerance(config, tokens)


def test_a_row_that_is_not_finite_is_dropped_named_and_scored_again(tiny, tmp_path, capfd):
    changes = {"train.steps": 1, "reference.path": str(tmp_path / "ref")}
    config = make_config(tmp_path, *tiny, **changes)
    reference(config)
    before = dict(ReferenceCache(tmp_path / "ref").values)
    bad = sorted(before)[:2]
    _plant_nan(tmp_path / "ref", bad)
    assert not set(bad) & set(ReferenceCache(tmp_path / "ref").values)
    capfd.readouterr()
    train(config)
    told = capfd.readouterr().err
    assert "are not finite (the first is train" in told and "pairs.jsonl:" in told
    after = ReferenceCache(tmp_path / "ref")
    assert after.values.keys() == before.keys() and not after.dropped
    for key in bad:
        assert np.allclose(after[key], before[key], atol=1e-5)


def _plant_nan(folder, keys):
    """As an older version could have left it."""
    from safetensors.numpy import save

    from mmfast.reference.cache import _shard_name

    cache = ReferenceCache(folder)
    for shard in folder.glob("shard-*"):
        shard.unlink()
    arrays = [np.full_like(v, np.nan) if k in keys else v for k, v in cache.values.items()]
    data = save(
        {
            "keys": np.frombuffer(bytes.fromhex("".join(cache.values)), np.uint8).reshape(-1, 32),
            "offsets": np.cumsum([0, *map(len, arrays)], dtype=np.int64),
            "logps": np.concatenate(arrays),
        }
    )
    (folder / f"{_shard_name(data)}.safetensors").write_bytes(data)


def test_a_row_that_turns_out_non_finite_is_never_written(tiny, tmp_path, monkeypatch):
    import mmfast.reference.scoring as module

    config = make_config(tmp_path, *tiny, **{"reference.path": str(tmp_path / "ref")})
    honest, calls = module.responses, []

    def broken(scorer, pack):
        calls.append(1)
        found = honest(scorer, pack)
        return [(found[0][0], found[0][1] * np.nan, found[0][2]), *found[1:]] if len(calls) == 2 else found

    monkeypatch.setattr(module, "responses", broken)
    with pytest.raises(ValueError, match=r"log-probs of example train\d+ are not finite"):
        reference(config)
    kept = ReferenceCache(tmp_path / "ref")
    assert len(kept) == 47 and not kept.dropped  # the good rows are not lost
    with pytest.raises(AssertionError, match="never written"):
        kept.add({"00" * 32: np.array([np.nan], np.float32)})


def test_a_damaged_manifest_is_named(tmp_path):
    ReferenceCache(tmp_path, {"format": 1})
    (tmp_path / "manifest.json").write_text('{"format"')
    with pytest.raises(ValueError, match=r"manifest.json is damaged"):
        ReferenceCache(tmp_path)


def test_reading_a_cache_unpickles_nothing(tmp_path, monkeypatch):
    import pickle

    ReferenceCache(tmp_path, {"format": 1}).add({"ab" * 32: np.zeros(3, np.float32)})

    def no(*_, **__):
        raise AssertionError("a cache was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, no)
    assert len(ReferenceCache(tmp_path)) == 1
