"""What a row holds beside its texts is used, refused or named: nothing of it vanishes."""

import datetime
import decimal
import json

import pytest
from typer.testing import CliRunner

from mmfast.cli.data import app
from mmfast.data.build import build
from mmfast.data.formats.known import read_records
from mmfast.data.settings import DataSettings
from tests.make.format_samples import assistant, gpt, human, user

run = CliRunner().invoke
PAIR = {"prompt": [user("What is this?")], "chosen": [assistant("A mug.")], "rejected": [assistant("A cat.")]}
TALK = [human("What is this?"), gpt("A mug.")]
UNPAIRED = {
    "trl": {"prompt": "What is this?", "completion": "A cat.", "label": False},
    "messages": {"messages": [user("What is this?"), assistant("A cat.")], "label": False},
    "tag": {"messages": [user("What is this?"), assistant("A mug.")], "kto_tag": True},
    "llava": {"conversations": TALK, "label": True},
    "sima": {"image": "a.png", "text": "What is this?", "ground_truth": "A mug.", "label": True},
}


def store_of(path, llava_dir, **more):
    data = DataSettings(path=str(path), workers=1, **more)
    return build(data, llava_dir, path.parent / "cache", progress=False, report_to=lambda text: None)


@pytest.mark.parametrize("name", UNPAIRED)
def test_unpaired_rows_are_refused_by_name(name, rows, llava_dir):
    path = rows("k.jsonl", [UNPAIRED[name]] * 2)
    with pytest.raises(ValueError, match=r"k.jsonl:0: .*unpaired feedback \(KTO\).*pair good and bad answers.*SFT"):
        store_of(path, llava_dir)
    result = run(app, ["convert", str(path), str(path.parent / "out.jsonl")])
    assert isinstance(result.exception, ValueError) and "KTO" in str(result.exception)
    assert not (path.parent / "out.jsonl").exists()


def test_unpaired_scored_answers_are_no_sft_targets(rows, tmp_path):
    path = rows("k.jsonl", [{"question": "What?", "answer": "A cat.", "label": False}])
    result = run(app, ["sft", str(path), "-o", str(tmp_path / "out.jsonl")])
    assert isinstance(result.exception, ValueError) and "KTO" in str(result.exception)


def test_a_label_of_a_pair_is_only_a_column(rows):
    (record,) = read_records(rows("p.jsonl", [PAIR | {"label": True}]))
    assert record.meta == {"label": True} and record.rejected


EXTRA = {"score_chosen": 9.5, "source": "web"}
EXTRAS = {
    "trl": PAIR,
    "messages": {"messages": PAIR["prompt"] + PAIR["chosen"]},
    "llava": {"conversations": TALK},
    "mllm_dpo": {"question": TALK[0], "chosen": TALK[1], "rejected": gpt("A cat.")},
    "sima": {"id": "1", "conversations": TALK, "rejected_conversations": [TALK[0], gpt("A cat.")]},
    "rlaifv": {"question": "What?", "chosen": "A mug.", "rejected": "A cat.", "image": None},
    "rlhfv": {"text": json.dumps({"question": "What?", "chosen": "A mug.", "rejected": "A cat."}), "image": None},
    "swift": {"messages": PAIR["prompt"] + PAIR["chosen"], "rejected_response": "A cat."},
    "sharegpt": {"conversations": TALK[:1], "chosen": TALK[1], "rejected": gpt("A cat.")},
}


@pytest.mark.parametrize("name", EXTRAS)
def test_unknown_columns_are_kept_in_meta_and_reported(name, rows, llava_dir, tmp_path):
    path = rows("p.jsonl", [EXTRAS[name] | EXTRA, EXTRAS[name] | {"source": "book"}])
    first, second = read_records(path)
    assert EXTRA.items() <= first.meta.items() and second.meta["source"] == "book"
    said = "columns kept in meta and not used: score_chosen (1 row), source (2 rows)"
    store = store_of(path, llava_dir)
    assert store.report.summary() == f"2 examples from 2 rows; {said}"
    assert store.report.unused == {"score_chosen": 1, "source": 2}
    result = run(app, ["convert", str(path), str(tmp_path / "out.jsonl")])
    assert said in result.output.splitlines(), result.output
    back, _ = read_records(tmp_path / "out.jsonl")
    assert EXTRA.items() <= back.meta.items()


def test_known_columns_are_not_reported(rows, llava_dir):
    for row in EXTRAS.values():
        assert store_of(rows("p.jsonl", [row]), llava_dir).report.unused == {}


def test_columns_of_rows_that_are_left_out_are_not_counted(rows, llava_dir):
    path = rows("p.jsonl", [PAIR | EXTRA, PAIR | EXTRA | {"videos": ["a.mp4"]}, UNPAIRED["trl"]])
    store = store_of(path, llava_dir, on_error="drop")
    said = "1 examples from 3 rows; dropped: 1 media, 1 unpaired; columns kept in meta and not used: "
    assert store.report.summary() == said + "score_chosen (1 row), source (1 row)"
    result = run(app, ["convert", str(path), str(path.parent / "out.jsonl"), "--on-error", "drop"])
    assert "columns kept in meta and not used: score_chosen (1 row), source (1 row)" in result.output


def test_columns_are_counted_over_all_workers(rows, llava_dir):
    path = rows("p.jsonl", [PAIR | {"id": str(i), "source": "web"} for i in range(600)])
    data = DataSettings(path=str(path), workers=2)
    store = build(data, llava_dir, path.parent / "cache", progress=False, report_to=lambda text: None)
    assert store.report.unused == {"source": 600}


@pytest.mark.parametrize("name", EXTRAS)
def test_a_system_column_becomes_the_first_message(name, rows):
    path = rows("p.jsonl", [EXTRAS[name] | {"system": "Be brief."}, EXTRAS[name] | {"system": ""}])
    told, untold = read_records(path)
    assert told.prompt == ({"role": "system", "content": "Be brief."}, *untold.prompt)
    assert "system" not in told.meta


def test_two_system_messages_are_a_bad_row(rows):
    prompt = [{"role": "system", "content": "Be long."}, user("What?")]
    with pytest.raises(ValueError, match="a column system and another system message"):
        list(read_records(rows("p.jsonl", [PAIR | {"prompt": prompt, "system": "Be brief."}])))
    same = PAIR | {"prompt": prompt, "system": "Be long."}
    assert len(next(read_records(rows("p.jsonl", [same]))).prompt) == 2


@pytest.mark.parametrize("column", ["videos", "video", "audios", "audio"])
@pytest.mark.parametrize("name", EXTRAS)
def test_media_that_is_not_images_makes_a_bad_row(name, column, rows):
    with pytest.raises(ValueError, match=f"p.jsonl:0: the row has {column}; only images and text are read"):
        list(read_records(rows("p.jsonl", [EXTRAS[name] | {column: ["a.mp4"]}])))
    assert len(list(read_records(rows("p.jsonl", [EXTRAS[name] | {column: []}])))) == 1


def test_images_inside_content_parts_are_read(rows, picture, llava_dir):
    picture("a.png"), picture("b.png", seed=1)
    asked = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What is this?"}]
    url = [{"type": "image_url", "image_url": {"url": "b.png"}}, {"type": "text", "text": "And this?"}]
    talk = [user(asked), assistant("A mug."), user(url)]
    whole = {"chosen": [*talk, assistant("A pen.")], "rejected": [*talk, assistant("A cat.")]}
    path = rows("p.jsonl", [PAIR | {"prompt": talk}, whole])
    for record in read_records(path):
        assert record.images == ("a.png", "b.png")
    store = store_of(path, llava_dir)
    assert len(store.images) == 2 and all(len(set(e.chosen.images)) == 2 for e in store)
    with pytest.raises(ValueError, match="images stand in a column and in content parts"):
        list(read_records(rows("p.jsonl", [PAIR | {"prompt": talk, "images": ["a.png"]}])))


def test_dates_and_decimals_are_carried_as_text(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    when = datetime.datetime(2024, 5, 17, 9, 30)
    row = {"prompt": "What?", "chosen": "A mug.", "rejected": "A cat.", "when": when, "day": when.date(),
           "price": decimal.Decimal("1.50"), "raw": b"\x00\x01"}  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "p.parquet")
    want = {"when": "2024-05-17 09:30:00", "day": "2024-05-17", "price": "1.50", "raw": "base64:AAE="}
    for target, to in (("o.jsonl", "trl"), ("o.parquet", "trl"), ("o.json", "swift"), ("r.jsonl", "rows")):
        result = run(app, ["convert", str(tmp_path / "p.parquet"), str(tmp_path / target), "--to", to])
        assert result.exit_code == 0, result.output
        if to != "rows":
            (record,) = read_records(tmp_path / target)
            assert want.items() <= record.meta.items()
        else:
            assert want.items() <= json.loads((tmp_path / target).read_text()).items()
