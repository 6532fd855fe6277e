"""A file of each format, made by hand, through detection, reader, examples, and back."""

import json

import pyarrow.parquet as pq
import pytest

from mmfast.data.build import build
from mmfast.data.containers.read import iterate
from mmfast.data.convert import convert
from mmfast.data.formats.known import detect, read_records
from mmfast.data.settings import DataSettings
from mmfast.data.text.templates import parts
from tests.make import format_samples as samples

NAMES = ("trl", "llava", "mllm_dpo", "sima-prompts", "sima-responses", "sima-critic", "sima-pairs",
         "swift", "alpaca", "hh",
         "swift-sharegpt", "rlhfv", "rlhfv-logp", "rlhfv-tsv", "rlaifv", "rlaifv-logp", "dgpref")  # fmt: skip


@pytest.fixture
def files(tmp_path, picture):
    data = picture("a.png").read_bytes()
    picture("b.png", seed=1)
    picture("VG_100K/2350001.jpg", seed=2)
    picture("2350002.jpg", seed=3)
    return samples.write_all(tmp_path, data)


def plain(path):
    """A file's rows as comparable values: JSON texts parsed, nulls left out."""
    out = []
    for row in iterate(path):
        value = {}
        for key, cell in row.value.items():
            if isinstance(cell, str) and cell[:1] in "{[":
                cell = json.loads(cell)
            if cell is not None:
                value[key] = cell
        out.append(value)
    return out


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back(name, files, tmp_path, llava_dir):
    path = files[name]
    fmt = detect(path)
    assert fmt.name == name.split("-")[0]
    records = list(read_records(path))

    # to examples
    settings = DataSettings(path=str(path), workers=1, template="vicuna_v1")
    store = build(settings, llava_dir, tmp_path / "cache", progress=False, report_to=lambda text: None)
    assert len(store) == len(records) and not store.report.dropped
    for example, record in zip(store, records, strict=True):
        assert (example.rejected is None) == (record.rejected is None)
        assert len(example.chosen.images) <= len(record.images)

    # to the canonical form and back again: the same rows
    canonical = tmp_path / "canonical.jsonl"
    options = {"prompts": str(tmp_path / "prompts.txt")} if fmt.name == "dgpref" else {}
    assert not convert(path, canonical, options=options).lost
    assert detect(canonical).name == "trl"
    if name == "trl":
        assert plain(canonical) == [r | {"images": r["images"]} for r in samples.TRL]
        return
    back = tmp_path / f"back{path.suffix}"
    if path.suffix in (".parquet", ".tsv"):  # the canonical form that holds bytes
        canonical = tmp_path / "canonical.parquet"
        convert(path, canonical)
    result = convert(canonical, back, to=fmt.name)
    assert not result.lost, result.lines()
    assert plain(back) == plain(path)


def comparable(record):
    """A record with every content as parts."""
    sides = (record.prompt, record.chosen, record.rejected, record.chosen_prompt, record.rejected_prompt)
    messages = [[(m["role"], parts(m)) for m in side or ()] for side in sides]
    return record.id, messages, record.weight, record.segments, record.scores, record.meta


def test_canonical_parquet_equals_jsonl(files, tmp_path):
    for name in ("trl", "llava", "swift", "dgpref"):
        convert(files[name], tmp_path / "c.jsonl")
        convert(tmp_path / "c.jsonl", tmp_path / "c.parquet")
        convert(tmp_path / "c.parquet", tmp_path / "d.jsonl")
        left, right = ([comparable(r) for r in read_records(tmp_path / f)] for f in ("c.jsonl", "d.jsonl"))
        assert left == right, name


def test_loose_mllm_dpo_forms(tmp_path):
    path = tmp_path / "loose.json"
    path.write_text(json.dumps(samples.MLLM_DPO_LOOSE))
    first, second = read_records(path)
    assert first.images == () and first.prompt == ({"role": "user", "content": "Is it?"},)
    assert second.prompt[0]["content"] == [{"type": "image"}, {"type": "text", "text": "Is it?"}]


def test_mllm_dpo_keeps_log_probs_and_scores(files):
    first = next(read_records(files["mllm_dpo"]))
    assert {k: first.meta[k] for k in samples.LOGPS} == samples.LOGPS
    assert first.scores == {"chosen/Helpfulness": 4.0, "rejected/Helpfulness": 1.0}


def test_multi_turn_pair_has_a_shared_prompt(files):
    last = list(read_records(files["mllm_dpo"]))[-1]
    assert [m["role"] for m in last.prompt] == ["user", "assistant", "user"]
    assert last.chosen[0]["content"] == "It is." and last.rejected[0]["content"] == "No."


def test_sima_verdicts(files):
    (record,) = read_records(files["sima-critic"])
    assert record.chosen[0]["content"] == "A red mug." and record.rejected[0]["content"] == "A cat."
    assert record.prompt[0]["content"][-1]["text"] == "What is this?"


def test_dgpref_sides_have_their_own_prompts(files):
    first = next(read_records(files["dgpref"]))
    assert first.chosen_prompt[0]["content"][1]["text"] == "Describe the scene."
    assert first.rejected_prompt[0]["content"][1]["text"] == "What is on the desk?"
    assert first.images == ("VG_100K/2350001.jpg",) and first.scores == {"chosen": 0.0, "rejected": -0.75}


def test_swift_sides_with_their_own_images(files, llava_dir, tmp_path):
    settings = DataSettings(path=str(files["swift"]), workers=1)
    store = build(settings, llava_dir, tmp_path / "c", progress=False, report_to=lambda text: None)
    example = store[1]
    assert example.chosen.images != example.rejected.images
    assert store.images[example.rejected.images[0]].source.endswith("b.png")


def test_sharegpt_sides_of_several_turns_lose_none(tmp_path):
    turns = [samples.gpt("A mug."), samples.human("Red?"), samples.gpt("Yes.")]
    row = samples.SHAREGPT[0] | {"images": [], "conversations": [samples.human("What is this?")], "chosen": turns}
    path = tmp_path / "s.json"
    path.write_text(json.dumps([row]))
    assert not convert(path, tmp_path / "c.jsonl").lost
    convert(tmp_path / "c.jsonl", tmp_path / "back.json", to="swift")
    assert plain(tmp_path / "back.json") == [row]


def test_rlaifv_claims_become_segments(tmp_path, picture):
    row = samples.rlaifv_row(b"") | {"image": "a.png", "image_path": "a.png"}
    row["rejected"] = "Three cows graze. There is a barn."
    row["claims"] = {"rejected": [["The scene holds a barn.", False], ["Three cows graze.", True]]}
    path = tmp_path / "claims.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (record,) = read_records(path, options={"claims": 3.0})
    assert record.segments["rejected"] == [(0, 17, 1.0), (18, 34, 3.0)]


def test_any_table_as_rows(tmp_path):
    import pickle

    import numpy as np

    table = {"0_0": {"attribute": " (brown, dog)"}, "0_1": {"logp": np.float32(-1.5), "per": np.arange(2), "s": {2, 1}}}
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(table))
    assert convert(tmp_path / "t.pkl", tmp_path / "t.jsonl", to="rows").records == 2
    assert [r.value for r in iterate(tmp_path / "t.jsonl")] == [
        {"key": "0_0", "value": table["0_0"]}, {"key": "0_1", "value": {"logp": -1.5, "per": [0, 1], "s": [1, 2]}}
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"rows are written as \.jsonl"):
        convert(tmp_path / "t.pkl", tmp_path / "t.parquet", to="rows")


def test_losses_are_named(files, tmp_path):
    result = convert(files["trl"], tmp_path / "out.json", to="llava")
    assert result.lost["rejected"] == 2 and result.lost["segments"] == 1 and result.lost["weight"] == 1
    assert "not carried: rejected (of 2 records)" in result.lines()


def test_arrow_directory_and_shards(files, tmp_path):
    from datasets import Dataset

    rows = [{k: v for k, v in r.items() if k in ("id", "prompt", "chosen", "rejected", "images")} for r in samples.TRL]
    rows = [r | {"prompt": "What is this?", "chosen": "Yes.", "rejected": "No."} for r in rows]
    Dataset.from_list(rows).save_to_disk(tmp_path / "arrow")
    assert [r.id for r in read_records(tmp_path / "arrow")] == ["a", "b"]
    (tmp_path / "shards").mkdir()
    for i in range(2):
        pq.write_table(pq.read_table(files["rlaifv"]), tmp_path / "shards" / f"part-{i}.parquet")
    sources = [r.source for r in read_records(tmp_path / "shards")]
    assert sources == ["part-0.parquet:0", "part-1.parquet:0"]


@pytest.mark.parametrize(
    ("row", "looked"),
    [({"a": 1, "b": 2}, "fits no known format. Its first row has the columns a, b"), ({"text": "x"}, "Looked for:")],
)
def test_detection_says_what_it_looked_for(rows, row, looked):
    with pytest.raises(ValueError, match=looked) as error:
        detect(rows("x.jsonl", [row]))
    for name in ("trl", "llava", "mllm_dpo", "sima", "rlhfv", "rlaifv", "dgpref", "swift", "alpaca", "hh"):
        assert f"  {name}: " in str(error.value)


def test_a_forced_format_that_does_not_fit(rows):
    path = rows("x.jsonl", [samples.LLAVA[2]])
    with pytest.raises(ValueError, match=r"x.jsonl:0: the row has no text \(it has conversations, id, note\)"):
        list(read_records(path, "rlhfv"))
    with pytest.raises(ValueError, match="unknown format 'lava'; choose auto, trl, llava"):
        list(read_records(path, "lava"))


TALK = [samples.user("What is this?"), samples.assistant("A mug."), samples.user("Red?")]
BINARIZED = {"prompt": "What is this?", "prompt_id": "f0", "messages": TALK[:2], "score_chosen": 9.0,
             "chosen": [*TALK, samples.assistant("Yes.")], "rejected": [*TALK, samples.assistant("No.")]}  # fmt: skip


def test_a_prompt_told_again_by_the_sides_is_read_once(rows):
    """UltraFeedback's binarized rows: the prompt as text beside whole conversations."""
    system = {"role": "system", "content": "Be brief."}
    opened = {k: [system, *BINARIZED[k]] for k in ("chosen", "rejected")}
    listed = BINARIZED | {"prompt": TALK}
    single = {"prompt": "What is this?", "chosen": [TALK[0], TALK[1]]}
    found = list(read_records(rows("u.jsonl", [BINARIZED, BINARIZED | opened, listed, single])))
    assert [r.prompt for r in found] == [tuple(TALK), (system, *TALK), tuple(TALK), tuple(TALK[:1])]
    assert found[0].chosen == (samples.assistant("Yes."),) and found[0].rejected == (samples.assistant("No."),)
    assert found[0].meta == {"prompt_id": "f0", "score_chosen": 9.0} and found[3].rejected is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": "Where?"}, "begins with another question than the prompt"),
        ({"prompt": [samples.user("Where?")]}, "begins with another question than the prompt"),
        ({"rejected": [samples.assistant("No.")]}, "one of chosen and rejected begins with the prompt"),
    ],
)
def test_a_prompt_that_the_sides_contradict_is_a_bad_row(change, said, rows):
    with pytest.raises(ValueError, match=f"u.jsonl:0: .*{said}"):
        list(read_records(rows("u.jsonl", [BINARIZED | change])))


def test_an_unknown_option_is_named(rows, llava_dir, tmp_path):
    from mmfast.data.build import build
    from mmfast.data.convert import convert
    from mmfast.data.preview import preview
    from mmfast.data.settings import DataSettings

    path = rows("p.jsonl", samples.TRL[1:])
    data = DataSettings(path=str(path), workers=1, options={"prompt": "a"})
    for call in (
        lambda: list(read_records(path, options={"prompt": "a"})),
        lambda: convert(path, tmp_path / "o.jsonl", options={"prompt": "a"}),
        lambda: preview(data, llava_dir, 1),
        lambda: build(data, llava_dir, tmp_path / "c", progress=False, report_to=lambda text: None),
    ):
        with pytest.raises(ValueError, match=r"data.options: trl has no option 'prompt'; known is claims"):
            call()
