"""docs/papers.md: every line that it calls "same" is run as it stands, one behind the other, on stand-ins that have the
names of the page: tiny models, the world's pictures in the layouts of the systems, a page of each benchmark."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.evals import extraction
from mmfast.evals.benches import bench as bench_of
from mmfast.evals.make_tables import chair_table
from mmfast.evals.tables import read_result
from mmfast.training.recipes import FOLDER
from mmfast.world.dataset import WorldSpec, write_world
from tests.make.marking import GOLDEN, asked, lines, stored
from tests.make.stub_server import MODEL, Stub, serving
from tests.make.system_files import QUESTION, write_system
from tests.make.tiny_run import make_model
from tests.reproduce.test_page import ROWS, commands_of

SYSTEMS = {"RLHF-V and Muffin": "rlhfv", "RLAIF-V": "rlaifv", "SIMA": "sima", "mllm-dpo": "mllm_dpo",
           "DGPref": "dgpref_llava"}  # fmt: skip
FAMILIES = {"rlhfv": {"MODEL": "beit3_llava", "CKPT": "beit3_llava"}, "sima": {"MODEL": "llava"},
            "rlaifv": {"MODEL": "llava", "WEIGHT": "llava", "LABELLER": "llava"}, "mllm_dpo": {"MODEL": "llava"},
            "dgpref_llava": {"llava-hf/llava-1.5-7b-hf": "llava", "models/Qwen-VL-Chat": "qwen"}}  # fmt: skip
MODEL_OF = {"rlhfv": "CKPT", "rlaifv": "MODEL", "sima": "MODEL", "mllm_dpo": "MODEL",
            "dgpref_llava": "llava-hf/llava-1.5-7b-hf"}  # fmt: skip
# What makes a line small, and nothing else of it
SMALL = {
    "generate": ["--max-tokens", "8", "--limit", "2"],
    "eval": ["--max-tokens", "4", "--limit", "2"],
    "train": [
        *("model.dtype=float32", "data.workers=0", "optim.warmup=0", "train.steps=1", "train.pairs_per_step=2"),
        *("train.tokens_per_pack=2000", "train.checkpoint_every=0", "data.max_length=2000", "parallel.threads=1"),
        *("parallel.activation_checkpointing=false", "log.progress=false", "log.every=1"),
    ],
}
SAYS = {  # what stands in a judge's question -> an answer that can be read
    "Object list": json.loads((GOLDEN / "mementos" / "expected.json").read_text())["replies"]["rw_2"],
    "Predict the correctness": "0.5",
    "Known objects": "Rating: 4",
    "checking the quality of the answer": "8 7\nBoth are good.",
    "Rank.": "[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]",
    "S single": "It is good. Rating: [[6]]",
    "S2 single": "It is good. Rating: [[6]]",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"), WorldSpec(base=1, pairs=10, groups=1, test=4))


class Judge(Stub):
    """A server whose model answers a benchmark's judge so that it can be read."""

    def forced(self, body):
        asked = json.dumps(body["messages"])
        return next((text for words, text in SAYS.items() if words in asked), "") or super().forced(body)


def stand_in(bench: str, home: Path) -> None:
    """A page of a benchmark's own files, with pictures where its questions name them."""
    from tests.evals import test_alpaca, test_mtbench

    home.mkdir(parents=True)
    items = [name for name in json.loads((GOLDEN / "prompts" / "items.json").read_text()) if "/" not in name]
    name = next((name for name in items if name.partition("@")[0] == bench), "")
    if name and bench != "objhal":  # whose page has images that our annotations have not
        stored(name, home)
    elif bench == "alpacaeval":
        test_alpaca.folder_of(home, test_alpaca.DAVINCI)
    elif bench == "mementos":
        shutil.copytree(GOLDEN / "mementos", home, dirs_exist_ok=True)
        (home / "expected.json").unlink()
    elif bench in ("mt-bench", "mt-bench-noise"):
        test_mtbench.folder_of(home, test_mtbench.INPUTS["single"][:2])
    if bench in ("chair", "objhal"):
        synonyms = home / {"chair": "synonyms.txt", "objhal": "synonyms_refine.txt"}[bench]
        shutil.copy(GOLDEN / "chair" / "synonyms.txt", synonyms)
        reading = {"chair": "sima", "objhal": "objhal"}[bench]
        chair_table(GOLDEN / "chair" / "coco_annotations", synonyms, home / "objects.txt.xz", reading)
        names = [row["image_id"] for row in json.loads((GOLDEN / "chair" / "answers_own.json").read_text())]
        rows = [{"image_id": name, "image": f"{name}.png", "question": "Describe the image."} for name in names]
        lines(home / "images.jsonl", rows)
    for question in asked(bench_of(bench), home):
        for image in question.images:
            if image.source and not Path(image.source).exists():
                Path(image.source).parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (40, 30), "red").save(image.source, "PNG")


def option(words, name):
    return words[words.index(name) + 1] if name in words else ""


def made_by(words):
    """The folder or file that a command writes."""
    named = option(words, "-o") or next((w.removeprefix("output_dir=") for w in words if "output_dir=" in w), "")
    return Path(named or words[-1])


def ran(words):
    ended = CliRunner().invoke(app, words[1:])
    assert ended.exit_code == 0, (words, ended.output, ended.exception)
    assert made_by(words).exists(), words


def judged(words):
    """Every benchmark of a line has figures, of replies that could be read."""
    for bench in option(words, "--bench").split(","):
        result = read_result(made_by(words) / bench / "result.json")
        assert result.metrics and result.marks
        if bench_of(bench).asks_judge(result.flavour.partition(",")[0]):
            assert not result.counts.get("unparsed"), (bench, result.counts)


def small(words, stub):
    """The words as they stand, behind them what makes them small, and the stand-in of a server."""
    words = [{"URL": stub.url, "M": MODEL}.get(word, word) for word in words]
    return [*words, *SMALL.get("" if words[:3] == ["mmfast", "eval", "chair-table"] else words[1], [])]


def told_by_the_world(words, world):
    """The same command, answered by what drew the pictures: an answer may be right or wrong, and its judge knows."""
    asks = {"--engine": "world", "--model": str(world)}
    words = [asks.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    if words[1] == "check":
        words[words.index("--experts") + 1] = "rlaifv" if option(words, "--experts") == "rlaifv" else "world"
        words += [] if "--engine" in words else ["--engine", "world", "--model", str(world)]
    return [*words, *(["--noise", "0.5"] if words[1] == "generate" else [])]


@pytest.mark.slow
@pytest.mark.parametrize("section", SYSTEMS)
def test_the_lines_run_one_behind_the_other(section, world, tmp_path, monkeypatch):
    name = SYSTEMS[section]
    write_system(name, tmp_path, world)
    monkeypatch.chdir(tmp_path)
    # Names of the page
    Path("recipes").symlink_to(FOLDER)
    for place, family in FAMILIES[name].items():
        Path(place).parent.mkdir(exist_ok=True)
        os.rename(make_model(tmp_path / "made", family, seed=len(place)), place)
    if name == "rlhfv":
        Path("DATA").symlink_to("RLHF-V-Dataset")
    if name == "rlaifv":
        shutil.copytree(GOLDEN / "chair" / "coco_annotations", "ANNOTATIONS")
        shutil.copy(GOLDEN / "chair" / "synonyms.txt", "synonyms_refine.txt")
        shutil.copy(next((world / "images").iterdir()), "a.png")
        lines(Path("question.jsonl"), [{"image": "a.png", "question": QUESTION}])
    monkeypatch.setattr(extraction, "spacy_analysis", lambda model: lambda phrase: [(phrase, phrase, "NN")])
    # The lines
    done = 0
    with serving(Judge()) as stub:
        for part, (_, verdict, *cells) in ROWS:
            for words in commands_of(cells[-1]) if part == section else ():
                for bench in option(words, "--bench").split(","):
                    if bench and not Path("evaluation", bench).exists():
                        stand_in(bench, Path("evaluation", bench))
                asks = words[1] in ("generate", "critique", "judge", "decompose", "check")
                # Of what is replaced, a line may need a language model or detectors that are not here
                if verdict == "same" or not ("http://localhost:8000/v1" in words or words[1] == "check"):
                    shutil.rmtree(made_by(words), ignore_errors=True)
                    hub = words[1] == "train" and "model.path" not in " ".join(words)
                    more = [f"model.path={MODEL_OF[name]}"] if hub else []
                    ran([*small(words, stub), *more])
                    if words[1:3] == ["eval", "run"]:
                        judged(words)
                    done += verdict == "same"
                if asks:
                    shutil.rmtree(made_by(words), ignore_errors=True)
                    ran(told_by_the_world(words, world))
    assert done == sum(part == section and row[1] == "same" for part, row in ROWS for _ in commands_of(row[-1]))
