"""A run on a data set of a hub: what it keeps of it, and that a later start sees the same."""

import pytest

from mmfast.config import load
from mmfast.train import train
from tests.make.hub_server import COMMIT, NAME
from tests.make.tiny_run import make_config, make_model, write_pairs


def test_a_run_keeps_the_commit_and_refuses_another_ones_rows(serve, tmp_path):
    (tmp_path / "made").mkdir()
    files = {
        split: write_pairs(tmp_path / "made", 4, name=f"{split}.jsonl", split=split) for split in ("train", "eval")
    }
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "made").glob("*.png")}
    repository = pictures | {path.name: path.read_bytes() for path in files.values()}
    data = {"data.path": NAME, "data.split": "train", "data.eval_path": NAME, "data.eval_split": "eval"}
    config = make_config(tmp_path, make_model(tmp_path), NAME, **data, **{"train.steps": 1})
    commits = [COMMIT]
    with serve(repository, commits=commits):
        train(config)
    kept = load(tmp_path / "run" / "config.toml").data
    assert (kept.path, kept.eval_path, kept.revision) == (f"{NAME}@{COMMIT}", f"{NAME}@{COMMIT}", "")
    # The hub goes on: a start with the same settings stays where it was, and one that asks for the newest is refused
    moved = repository | {"train.jsonl": repository["train.jsonl"].replace(b" no ", b" never ")}
    more = {**data, "train.steps": 2}
    with serve(moved, commits=[COMMIT, "beef0000" * 5]) as asked:
        newest = make_config(tmp_path, tmp_path / "llava", NAME, **more, **{"data.revision": "main"})
        with pytest.raises(ValueError, match=r"data.path: its examples were .* \(data.path was .*@c0ffee.*@beef0000"):
            train(newest)
        count = len(asked)
        train(make_config(tmp_path, tmp_path / "llava", NAME, **more))
        assert len(asked) == count
    # Held-out data that are not there are told under their own key
    with pytest.raises(ValueError, match=r"data.eval_path: someone/tiny has no split \"dev\": it has eval, train"):
        train(make_config(tmp_path, tmp_path / "llava", NAME, **more | {"data.eval_split": "dev"}))
