"""A newcomer's walk: each mistake on it, and the one line that a user sees. More of a kind are in
tests/data/test_bad_input.py, tests/config and tests/training/test_starting.py."""

import json
import re
import sys

import pytest

from mmfast.cli import main
from mmfast.config import dump
from tests.make.tiny_run import make_config

PAIR = {
    "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}],
    "chosen": [{"role": "assistant", "content": "one"}],
    "rejected": [{"role": "assistant", "content": "two"}],
}


def rows(*values):
    return "".join((value if isinstance(value, str) else json.dumps(value)) + "\n" for value in values)


FILES = {
    "bad.toml": "[model]\npath = m\n",
    "my.yaml": "model:\n  path: m\n",
    "empty.jsonl": "",
    "broken.jsonl": '{"prompt": \n',
    "columns.jsonl": rows({"a": 1}),
    "gone.jsonl": rows(PAIR | {"images": ["gone.png"]}),
    "address.jsonl": rows(PAIR | {"images": ["http://example.org/a.png"]}),
    "no_images.jsonl": rows(PAIR),
    "scores.jsonl": rows({"a": 1}),
    "data.xyz": "?",
}
# what is typed after `mmfast`, and the line; {here} is the folder, my.toml a config that would run
WALK = [
    ("train gone.toml", "config file 'gone.toml' does not exist"),
    ("train bad.toml", "bad.toml: not valid TOML: .*line 2.*"),
    ("train my.yaml", "my.yaml: not valid TOML: .*line 1.*"),
    ("train my.toml optim.learning_rate=1e-5", "unknown key optim.learning_rate: here it is optim.lr"),
    ("train my.toml --lr=1e-5", "unknown key lr: here it is optim.lr"),
    ("train my.toml train.batch=4", r"unknown key train.batch: here it is train.pairs_per_step \(.*"),
    ("train my.toml optim.lr=fast", r"optim.lr: .*valid number.* \(got 'fast'\)"),
    ("train my.toml optim.lr=-1", r"optim.lr: .*greater than 0 \(got -1\)"),
    ("train my.toml objective.loss=dpoo", r"objective.loss: \['dpoo'\] is not known; the pair losses are sigmoid, .*"),
    ("train my.toml export.formats=gguf", r"export.formats: .*'hf', 'peft' or 'llava' \(got 'gguf'\)"),
    ("train my.toml log.trackers=tensorbord", r"log.trackers: .*'tensorboard'.* \(got 'tensorbord'\)"),
    ("train my.toml export.merge=true", "export.merge = True has no effect: .*there is no \\[model.lora\\] .*"),
    ("train my.toml output_dir=/proc/x", "output_dir: cannot write to /proc/x: .*"),
    ("train my.toml model.path=nosuchdir", 'model.path: "nosuchdir" is no folder here, and as a hub id .*'),
    ("train my.toml model.path=no/such/dir", 'model.path: "no/such/dir" is no folder here, and no hub id either .*'),
    ("train my.toml data.path=gone.jsonl2", "data.path: gone.jsonl2 does not exist.*"),
    ("train my.toml data.eval_path=gone", "data.eval_path: gone does not exist.*"),
    ("train my.toml data.path=data.xyz", "data.path: data.xyz: unknown file type; known are .*"),
    ("train my.toml data.path=empty.jsonl", "empty.jsonl holds no row"),
    (
        "train my.toml data.path=broken.jsonl",
        r"broken.jsonl: none of the first 20 rows .*broken.jsonl:0: not valid JSON .*",
    ),
    ("train my.toml data.path=columns.jsonl", "columns.jsonl: fits no known format. Its first row has the columns a.*"),
    ("train my.toml data.path=gone.jsonl", "gone.jsonl:0: image gone.png cannot be read .*is data.images right.*"),
    ("train my.toml data.path=address.jsonl", "address.jsonl:0: image http://example.org/a.png is an address, .*"),
    ("train my.toml data.path=no_images.jsonl", r"no_images.jsonl:0: 1 image tokens for 0 images .*on_error = 'drop'"),
    (
        "train my.toml data.path=gone.jsonl data.on_error=drop",
        "data.path: no example is left: .* 1 image-missing. First: gone.jsonl:0: image gone.png cannot be read.*",
    ),
    (
        "train my.toml train.tokens_per_pack=20",
        r"example \S+ .*needs \d+ tokens, but train.tokens_per_pack = 20: raise it, .*",
    ),
    ("train my.toml optim.warmup=50", r"optim.warmup = 50 steps is more than the run's 4.*: lower it, .*"),
    (
        "train my.toml model.lora.r=4 model.lora.targets=nothing",
        "model.lora.targets: no linear layer 'nothing'; this model has down_proj, .*",
    ),
    ("plan my.toml --device tpu", "--device 'tpu': choose cpu or cuda"),
    ("reference my.toml --import gone.parquet", "--import gone.parquet: it does not exist"),
    ("reference my.toml --export out.parquet", "out.parquet: the rows of .* are no parquet's: write .json"),
    ("report .", r"\. is not a run: it has no metrics.jsonl"),
    ("export .", r"\. is not a run: it has no config.toml"),
    ("merge . out", r"\. is not a peft adapter: it has no adapter_config.json"),
    ("data convert no_images.jsonl no_images.jsonl", "no_images.jsonl is what is read: write to another file"),
    ("data check gone -m {model}", "data.path: gone does not exist.*"),
    (
        "data pairs scores.jsonl --rule sima -o out.jsonl",
        r"nothing is left to write, so out.jsonl is not made; 1 rows are bad, the first: scores.jsonl:0: .*",
    ),
    ("data show columns.jsonl -m {model}", "columns.jsonl: fits no known format. .*"),
    ("init gone.jsonl2 -m {model}", "data.path: gone.jsonl2 does not exist.*"),
]


@pytest.fixture(scope="module")
def here(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("walk")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "my.toml").write_text(dump(make_config(folder, *tiny)))
    return folder


@pytest.mark.parametrize(("typed", "line"), WALK, ids=[typed for typed, _ in WALK])
def test_a_mistake_is_one_line_that_names_it(typed, line, here, tiny, monkeypatch):
    monkeypatch.chdir(here)
    before = sorted(path.name for path in here.iterdir())
    monkeypatch.setattr(sys, "argv", ["mmfast", *typed.format(model=tiny[0]).split()])
    with pytest.raises(SystemExit) as ended:
        main()
    said = str(ended.value)
    assert re.fullmatch(f"mmfast: {line}", said, re.S), said
    left = set(path.name for path in here.iterdir()) - {*before, "cache", "run"}
    assert left == set(), "a mistake leaves nothing but what was built for the next start"
