"""`mmfast generate`: what is asked of which file, what a row holds, what is refused, what fails."""

import base64
import io
import json
import subprocess
import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

from mmfast.cli import engine as command
from mmfast.cli.app import app
from mmfast.data.formats.known import read_records
from mmfast.engines import asked as asked_module
from mmfast.engines import shards
from mmfast.engines.asked import read_asked
from mmfast.engines.inputs import count_rows
from mmfast.engines.presets import EIGHT, PRESETS, planned
from mmfast.engines.stage import rows
from mmfast.world.dataset import WorldSpec, write_world
from tests.make.engine_cases import ALL, Fake, answers, write_prompts
from tests.make.format_samples import write_all

FIELDS = ["key", "group", "prompt_id", "images", "prompt", "answer", "decode", "sample", "seed", "finish", "tokens",
          "logp", "meta", "row"]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"), WorldSpec(base=12, pairs=4, groups=1, test=8))


def asked(path, **options):
    return list(read_asked(path, **options))


# what is asked

WHY = {"type": "text", "text": "Why?"}


@pytest.mark.parametrize(
    "row",
    [
        {"id": "a", "images": ["x.png"], "prompt": "Why?"},
        {"id": "a", "image": "x.png", "question": "Why?"},
        {"question_id": "a", "image": "x.png", "text": "Why?"},
        {"id": "a", "image": "x.png", "question": "<image>\nWhy?"},
        {"id": "a", "images": ["x.png"], "messages": [{"role": "user", "content": "Why?"}]},
        {"id": "a", "images": ["x.png"], "prompt": [{"role": "user", "content": "Why?"}]},
        {"id": "a", "prompt": [{"role": "user", "content": [{"type": "image", "image": "x.png"}, WHY]}]},
        {"id": "a", "image": "x.png", "conversations": [{"from": "human", "value": "<image>\nWhy?"}]},
        {"id": "a", "image": "x.png", "question": "Why?", "answer": "So."},
    ],
)  # fmt: skip
def test_prompts_without_answers_are_read_in_every_form(rows, row):
    (one,) = asked(rows("p.jsonl", [row]))
    assert one.problem == "" and one.id == "a" and one.images == ("x.png",)
    assert list(one.messages) == [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]}]
    assert one.meta.get("answer") == row.get("answer")


def test_a_system_message_and_earlier_turns_are_kept(rows):
    turns = [
        {"role": "user", "content": "A?"},
        {"role": "assistant", "content": "B."},
        {"role": "user", "content": "C?"},
    ]
    (one,) = asked(rows("p.jsonl", [{"messages": turns, "system": "Be brief.", "image": "x.png"}]))
    assert [m["role"] for m in one.messages] == ["system", "user", "assistant", "user"]
    assert one.messages[1]["content"][0] == {"type": "image"} and one.id == "p:0"


def test_a_judged_answer_is_asked_anew(rows):
    (one,) = asked(rows("p.jsonl", [{"prompt": "Why?", "completion": "So.", "label": False}]))
    assert not one.problem and one.meta == {"label": "False", "reference": "So."}


def test_images_come_in_the_order_of_their_parts(rows):
    parts = [{"type": "image", "index": 1}, {"type": "text", "text": "and"}, {"type": "image", "index": 0}]
    (one,) = asked(rows("p.jsonl", [{"images": ["x", "y"], "prompt": [{"role": "user", "content": parts}]}]))
    assert one.images == ("y", "x") and one.messages[0]["content"][0] == {"type": "image"}


def test_every_format_that_is_read_is_asked(tmp_path, picture):
    """The prompts are those of the records."""
    for name, path in write_all(tmp_path, picture("own.png").read_bytes()).items():
        found = [one for one in asked(path) if not one.problem]
        prompts = {json.dumps(p) for r in read_records(path) for p in (r.prompt, r.chosen_prompt) if p}
        assert found, name
        if name not in ("swift", "dgpref"):  # parts there name their images
            assert {json.dumps(one.messages) for one in found} <= prompts, name


def test_what_asks_nothing_is_named_and_the_rest_goes_on(rows, tmp_path):
    content = [
        {"image": "x.png"},
        {"question": ""},
        "{",
        {"prompt": "Why?"},
        {"prompt": 3},
        {"question": "q", "video": "v"},
    ]
    found = asked(rows("p.jsonl", content))
    assert [bool(one.problem) for one in found] == [True, True, True, False, True, True]
    assert "asks nothing" in found[0].problem and "JSON" in found[2].problem and "video" in found[5].problem
    assert [one.source for one in found] == [f"p.jsonl:{n}" for n in range(6)]
    with pytest.raises(ValueError, match="holds no row"):
        answers(rows("empty.jsonl", []), tmp_path / "out")
    with pytest.raises(ValueError, match="unknown format 'none'"):
        asked(rows("p.jsonl", content), name="none")


def test_rows_are_counted_as_they_are_read(rows, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = rows("p.jsonl", [{"prompt": str(n)} for n in range(7)])
    pq.write_table(pa.table({"prompt": [str(n) for n in range(5)]}), tmp_path / "p.parquet")
    (tmp_path / "p.json").write_text(json.dumps([{"prompt": "a"}, {"prompt": "b"}]))
    assert [count_rows(p) for p in (lines, tmp_path / "p.parquet", tmp_path / "p.json")] == [7, 5, 2]
    assert count_rows(lines, 3) == 3 == len(asked(lines, limit=3))


# what a row holds


def test_a_row_has_the_fields_of_the_stage(tmp_path):
    source = write_prompts(tmp_path)
    answers(source, tmp_path / "out", plan=planned(temperature=0.5, samples=2, seed=7))
    found = list(rows(tmp_path / "out"))
    assert all(list(row) == FIELDS for row in found)
    first = found[0]
    assert first["prompt_id"] == "q0" and first["images"] == [str(tmp_path / "0.png")] and first["seed"] == 7
    assert first["meta"] == {"kept": 0} and first["decode"] == "sample" and first["logp"] == -1.5
    assert first["group"] == found[1]["group"] != found[2]["group"]
    assert {row["finish"] for row in found} <= {"stop", "length"}


def test_images_inside_rows_are_kept_by_their_content(tmp_path, rows):
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(data, "PNG")
    inside = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    source = rows("p.jsonl", [{"image": inside, "prompt": "Why?"}, {"image": inside, "prompt": "How?"}])
    answers(source, tmp_path / "out")
    names = {row["images"][0] for row in rows_of(tmp_path / "out")}
    assert len(names) == 1 and (tmp_path / "out" / names.pop()).read_bytes() == data.getvalue()


def rows_of(folder):
    return list(rows(folder))


def test_a_second_start_reads_no_picture_again(tmp_path, monkeypatch):
    source, out, read = write_prompts(tmp_path), tmp_path / "out", []
    bytes_of = asked_module.image_bytes
    monkeypatch.setattr(asked_module, "image_bytes", lambda image, root: read.append(image) or bytes_of(image, root))
    answers(source, out, Fake())
    found, pictures = list(rows(out)), len(read)
    assert pictures == len(set(read)) > 1
    answers(source, out, Fake())
    assert len(read) == pictures and list(rows(out)) == found
    # One that has changed is another picture, whatever its name; notes that are damaged or gone are made anew
    name = read[0]
    Image.new("RGB", (9, 9), "red").save(source.parent / name)
    engine = Fake()
    answers(source, out, engine)
    assert read[pictures:] == [name] and engine.asks > 0
    (out / asked_module.NAMES).write_bytes(b"damaged\n" + (out / asked_module.NAMES).read_bytes())
    answers(source, out, engine)
    assert len(read) == 2 * pictures + 1
    answers(source, out, engine)
    assert len(read) == 2 * pictures + 1


def test_the_same_question_twice_is_answered_once_and_said(tmp_path, rows):
    source = rows("p.jsonl", [{"prompt": "Why?"}, {"prompt": "How?"}, {"id": "again", "prompt": "Why?"}])
    tally = answers(source, tmp_path / "out")
    assert tally.repeated == 1 and tally.rows == 6 and "repeat an earlier one" in " ".join(tally.lines())


def test_moved_pictures_are_the_same_rows(tmp_path):
    source = write_prompts(tmp_path)
    answers(source, tmp_path / "out")
    for picture in tmp_path.glob("*.png"):
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        picture.rename(tmp_path / "elsewhere" / picture.name)
    engine = Fake()
    answers(source, tmp_path / "out", engine, images=str(tmp_path / "elsewhere"))
    assert engine.asks == 0


def test_empty_cut_and_identical_answers_are_counted(tmp_path, rows):
    class Same(Fake):
        def reply(self, request, sample):
            from dataclasses import replace

            made = super().reply(request, sample)
            greedy = not request.decode.temperature
            return replace(
                made, text="" if "empty" in str(request.messages) else "same", finish="length" if greedy else "stop"
            )

    source = rows("p.jsonl", [{"prompt": "Why?"}, {"prompt": "empty"}])
    tally = answers(source, tmp_path / "out", Same(), planned("sima"))
    assert (tally.rows, tally.empty, tally.cut, tally.identical) == (4, 2, 2, 2)
    assert [(row["decode"], row["finish"]) for row in rows_of(tmp_path / "out")][:2] == [
        ("greedy", "length"),
        ("sample", "stop"),
    ]


# presets


def test_presets_state_the_published_settings():
    drawn = {
        name: [(d.name, d.samples, d.decode.temperature, d.decode.top_p, d.decode.max_tokens) for d in plan.draws]
        for name, plan in PRESETS.items()
    }
    assert drawn == {
        "sima": [("greedy", 1, 0.0, 1.0, 1024), ("sample", 1, 0.8, 0.9, 1024)],
        "mllm_dpo": [("sample", 4, 1.2, 1.0, 1024)],
        "dgpref": [("sample", 1, 0.7, 1.0, 1024)],
        "rlaifv": [("sample", 10, 0.7, 1.0, 512)],
    }
    assert len(set(EIGHT)) == 8 and PRESETS["dgpref"].group == "image"
    changed = planned("sima", temperature=0.5, samples=3, max_tokens=7)
    assert [(d.samples, d.decode.temperature, d.decode.max_tokens) for d in changed.draws] == [(1, 0.0, 7), (3, 0.5, 7)]


def test_dgpref_asks_eight_prompts_of_each_image_and_groups_by_it(tmp_path):
    source = write_prompts(tmp_path, 6, pictures=2)
    tally = answers(source, tmp_path / "out", plan=planned("dgpref"))
    found = rows_of(tmp_path / "out")
    assert len(found) == 16 and tally.repeated == 24 and tally.failed == 1  # two images; one row has none
    assert len({row["group"] for row in found}) == 2
    assert [row["prompt"][0]["content"][1]["text"] for row in found[:8]] == list(EIGHT)
    assert found[0]["prompt_id"] == "q0_0" and "asks about images" in (tmp_path / "out" / "failed.jsonl").read_text()


# what fails


def test_bad_input_is_named_with_its_row_and_the_rest_goes_on(tmp_path, rows, picture):
    picture("good.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "good.png").read_bytes()[:200])
    content = [
        {"id": "gone", "image": "gone.png", "prompt": "Why?"},
        {"id": "broken", "image": "broken.png", "prompt": "Why?"},
        {"id": "two", "images": ["good.png"], "prompt": "<image> <image> Why?"},
        {"id": "long", "image": "good.png", "prompt": "too long"},
        {"id": "good", "image": "good.png", "prompt": "Why?"},
    ]
    tally = answers(rows("p.jsonl", content), tmp_path / "out", Fake(wrong="too long"))
    failed = [row for _, row in shards.read(tmp_path / "out" / "failed.jsonl")]
    assert (
        tally.failed == 4
        and tally.asked == 5
        and [row["source"] for row in failed] == [f"p.jsonl:{n}" for n in range(4)]
    )
    told = ["gone.png cannot be read", "image 1 (", "places for 2 images", "longer than the window"]
    assert all(part in row["error"] for part, row in zip(told, failed, strict=True))
    assert (
        "cannot be decoded" in failed[1]["error"]
        and [r["prompt_id"] for r in rows_of(tmp_path / "out")] == ["good"] * 3
    )
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert not manifest["complete"] and manifest["counts"]["failed"] == 4


def test_an_engine_without_images_is_told_by_row(tmp_path):
    engine = Fake()
    engine.can = ALL - {"images"}
    tally = answers(write_prompts(tmp_path), tmp_path / "out", engine)
    assert tally.failed == 10 and "has no images" in (tmp_path / "out" / "failed.jsonl").read_text()


# the command


def run(*arguments):
    return CliRunner().invoke(app, ["generate", *map(str, arguments)])


def test_the_command_answers_and_a_second_start_asks_nothing(world, tmp_path):
    given = [world / "test.jsonl", "--out", tmp_path / "out", "--engine", "world", "--model", world]
    first = run(*given, "--limit", 5)
    assert first.exit_code == 0 and "5 rows, 5 of them new" in first.output, first.output
    assert not json.loads((tmp_path / "out" / "manifest.json").read_text())["complete"]
    second = run(*given, "--debug", 1)
    assert "8 rows, 3 of them new" in second.output and second.output.count("--- ") == 1
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["complete"]
    assert "8 rows, 0 of them new" in run(*given).output
    assert [row["answer"] for row in rows_of(tmp_path / "out")] == [
        row["meta"]["reference"] for row in rows_of(tmp_path / "out")
    ]


def test_more_failures_than_allowed_are_exit_code_1(world, tmp_path):
    lines = (world / "test.jsonl").read_text().splitlines()
    bad = json.dumps({"id": "bad", "prompt": "Who are you?"})
    (tmp_path / "p.jsonl").write_text("\n".join([*lines[:7], bad]))
    given = [tmp_path / "p.jsonl", "--images", world, "--out", tmp_path / "out", "--engine", "world", "-m", world]
    result = run(*given)
    assert result.exit_code == 1 and "1 of 8 requests failed" in result.output and "failed.jsonl" in result.output
    assert run(*given, "--allow", 0.125).exit_code == 0
    assert run(*given, "--allow", 0.12).exit_code == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--beams", "3"], "--beams: the engine world has no beams"),
        (["--stop", "."], "--stop: the engine world has no stop"),
        (["--repetition-penalty", "1.1"], "--repetition-penalty: the engine world"),
        (["--dtype", "bfloat16"], "--dtype has no effect on the engine world: it is for local and plain"),
        (["--adapter", "x"], "--adapter has no effect"),
        (["--concurrency", "4"], "--concurrency has no effect on the engine world: it is for server"),
        (["--n", "4"], "--n 4: greedy answers are all the same"),
        (["--top-p", "0.5"], "they need a temperature"),
        (["--temperature", "-1"], "temperature = -1.0"),
        (["--beams", "2", "--temperature", "1"], "choose one"),
        (["--preset", "sima2"], "unknown preset 'sima2'; choose one of sima"),
        (["--preset", "rlaifv", "--temperature", "0"], "this preset samples"),
        (["--noise", "2"], "--noise 2.0"),
        (["--format", "none"], "unknown format 'none'"),
        (["--engine", "gpt"], "unknown engine 'gpt'; choose local, plain, world, people"),
        (["--model", "nowhere"], "needs a world's folder"),
        (["--prices", "1,2"], "--prices has no effect on the engine world: it is for server"),
        (["--prices", "1"], "--prices 1: give two numbers"),
        (["--prices", "1,-2"], "--prices 1,-2: give two numbers"),
    ],
)
def test_an_option_that_cannot_act_is_refused_before_any_work(world, tmp_path, options, told):
    base = {"--engine": "world", "--model": str(world), "--out": str(tmp_path / "out")}
    given = [word for name, value in base.items() if name not in options for word in (name, value)]
    result = run(world / "test.jsonl", "--out", tmp_path / "out", *given, *options)
    assert isinstance(result.exception, ValueError) and told in str(result.exception), result.output
    assert not (tmp_path / "out").exists()


def test_engines_are_made_with_the_options_that_they_take(monkeypatch, tmp_path):
    seen = []

    class Local(Fake):
        def __init__(self, model, *, adapter="", dtype="float32", device="cpu"):
            seen.append((model, adapter, dtype, str(device)))
            super().__init__()

    class Server(Fake):
        def __init__(self, urls, model, *, concurrency=16, prices=(0.0, 0.0)):
            seen.append((urls, model, concurrency, prices))
            super().__init__()

    monkeypatch.setattr(command, "maker", lambda engine: Server if "://" in engine else Local)
    source = write_prompts(tmp_path, 2)
    run(source, "--out", tmp_path / "a", "--engine", "local", "-m", "M", "--dtype", "bfloat16", "--adapter", "A")
    servers = ["--engine", "http://a:1,http://b:2", "-m", "M", "--concurrency", "3", "--prices", "0.5,1.5"]
    run(source, "--out", tmp_path / "b", *servers)
    assert next(s for s in seen if s[0] == "M")[:3] == ("M", "A", "bfloat16")
    assert (["http://a:1", "http://b:2"], "M", 3, (0.5, 1.5)) in seen


def test_recorded_replies_stand_before_any_engine(monkeypatch, tmp_path):
    engines = []

    class Counting(Fake):
        def __init__(self, model):
            super().__init__()
            engines.append(self)

    monkeypatch.setattr(command, "maker", lambda engine: Counting)
    source = write_prompts(tmp_path, 4)
    for name in ("a", "b"):
        told = run(source, "--out", tmp_path / name, "--engine", "local", "-m", "M", "--recorded", tmp_path / "r.jsonl")
        assert told.exit_code == 0, told.output
    assert engines[0].asks > 0 and engines[1].asks == 0
    assert list(rows(tmp_path / "a")) == list(rows(tmp_path / "b"))


def test_an_interrupt_says_how_to_go_on(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "maker", lambda engine: lambda model: Fake(stops=3))
    result = run(write_prompts(tmp_path), "--out", tmp_path / "out", "--engine", "local", "-m", "M")
    assert result.exit_code == 130 and "the same command goes on" in result.stderr


def test_the_command_runs_under_torchrun_and_says_a_mistake_once(world, tmp_path):
    from tests.make.rank_processes import free_port

    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()),
             "-m", "mmfast.cli", "generate", f"{world}/test.jsonl", "--engine", "world", "-m", str(world)]  # fmt: skip
    done = subprocess.run([*start, "--out", str(tmp_path / "out")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("8 rows, 8 of them new") == 1
    again = [*start, "--out", str(tmp_path / "out"), "--noise", "0.5"]
    failed = subprocess.run(again, capture_output=True, text=True, timeout=300)
    assert failed.returncode != 0 and failed.stderr.count("mmfast: ") == 1, failed.stderr
    assert "engine.noise was 0.0 and is 0.5" in failed.stderr and len(rows_of(tmp_path / "out")) == 8
