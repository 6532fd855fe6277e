"""`mmfast data ...` as a user runs it."""

import json
from inspect import signature

import pytest
from typer.testing import CliRunner

from mmfast.cli.data import KEYS, app, check, show
from mmfast.config.schema import Data
from mmfast.data.formats.known import read_records
from tests.make import format_samples as samples

run = CliRunner().invoke


@pytest.fixture
def file(rows, picture):
    picture("a.png")
    return rows("p.jsonl", samples.TRL)


def test_show(file, llava_dir):
    result = run(app, ["show", str(file), "-m", str(llava_dir), "-n", "1", "--segments", "record"])
    assert result.exit_code == 0, result.output
    assert "p.jsonl:0" in result.output and "id a" in result.output and "p.jsonl:1" not in result.output
    assert "What is on the desk? ASSISTANT:⟦ A red×2 mug. </s>⟧" in result.output


def test_thumbnail(picture):
    from mmfast.data.preview import thumbnail

    lines = thumbnail(picture("wide.png", size=(80, 40)).read_bytes(), columns=20).plain.splitlines()
    assert len(lines) == 5 and set("".join(lines)) == {"▀"} and len(lines[0]) == 20


def test_show_as_a_page(file, llava_dir, tmp_path):
    result = run(app, ["show", str(file), "-m", str(llava_dir), "--html", str(tmp_path / "p.html")])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "p.html").read_text()
    assert page.count("<section>") == 2 and "data:;base64," in page and page.count("is read and not scored") == 1
    assert page.count('<div class="sides"><div><h3>chosen</h3>') == page.count("</div><div><h3>rejected</h3>") == 2
    assert '<span class="c x"> red</span>' in page and '<span class="r x"> blue</span>' in page


def test_show_names_a_bad_row(rows, llava_dir):
    result = run(app, ["show", str(rows("p.jsonl", [samples.TRL[1], "{"])), "-m", str(llava_dir)])
    assert "p.jsonl:1: not valid JSON" in result.output


def test_check(file, rows, llava_dir, tmp_path):
    base = ["-m", str(llava_dir), "--cache", str(tmp_path / "c"), "--workers", "1"]
    good = run(app, ["check", str(file), *base, "--json"])
    assert good.exit_code == 0, good.output
    found = json.loads(good.output)
    assert found["pairs"] == 2 and found["images"] == 1 and found["problems"] == [] and found["format"] == "trl"
    tokens = found["tokens, sides apart"], found["tokens, prompts shared in a pair"]
    assert tokens[0] > tokens[1] == found["tokens, everything shared in a group"]
    image = samples.TRL[0] | {"images": ["gone.png"]}
    bad = run(app, ["check", str(rows("bad.jsonl", [*samples.TRL, image, samples.TRL[1]])), *base])
    assert bad.exit_code == 1
    assert "bad row bad.jsonl:2: image" in bad.output and "equal examples: 1" in bad.output
    assert "pairs by size of their group: 1: 1, 2-4: 2" in bad.output
    lenient = run(app, ["check", str(tmp_path / "bad.jsonl"), *base, "--allow", "0.3"])
    assert lenient.exit_code == 0


def test_with_no_good_row_the_reasons_are_printed(rows, llava_dir, tmp_path):
    image = samples.TRL[0] | {"images": ["gone.png"]}
    text = samples.TRL[1] | {"chosen": [samples.assistant("Yes \ud83d")]}
    base = [str(rows("bad.jsonl", [image, text])), "-m", str(llava_dir)]
    result = run(app, ["check", *base, "--cache", str(tmp_path / "c"), "--workers", "1", "--allow", "1"])
    assert result.exit_code == 1 and result.exception.__class__ is SystemExit
    assert "examples: 0" in result.output and "dropped: image-missing: 1, text: 1" in result.output
    assert "bad row bad.jsonl:0: image" in result.output and "gone.png cannot be read" in result.output
    assert "bad row bad.jsonl:1: chosen[0].content holds \\ud83d" in result.output
    found = json.loads(run(app, ["check", *base, "--cache", str(tmp_path / "c"), "--workers", "1", "--json"]).output)
    assert found["examples"] == 0 and len(found["problems"]) == 2
    for more in ([], ["--html", str(tmp_path / "p.html")]):
        assert run(app, ["show", *base, *more]).exit_code == 1


def test_with_no_readable_row_the_first_reason_is_told(rows, llava_dir, tmp_path):
    path = rows("bad.jsonl", ["{", "["])
    result = run(app, ["check", str(path), "-m", str(llava_dir), "--cache", str(tmp_path / "c")])
    assert result.exit_code == 1 and "the first, bad.jsonl:0: not valid JSON" in str(result.exception)


def test_sharing_of_a_group(rows, picture, llava_dir, tmp_path):
    """Four pairs of one question: distinct tokens counted by hand."""
    picture("a.png")
    answers = ["It is red.", "It is blue.", "Yes.", "No."]
    texts = [(0, 1), (0, 2), (2, 3), (1, 3)]
    path = rows("g.jsonl", [{"images": ["a.png"], "prompt": "What is this?", "chosen": answers[a],
                             "rejected": answers[b]} for a, b in texts])  # fmt: skip
    result = run(app, ["check", str(path), "-m", str(llava_dir), "--cache", str(tmp_path / "c"), "--json",
                       "--workers", "1", "--template", "vicuna_v1"])  # fmt: skip
    found = json.loads(result.output)
    # prompt: <s>, 23 system words, USER:, ▁, 576, ▁, newline, What is this ?, ASSISTANT:
    prompt = 1 + 23 + 2 + 576 + 2 + 4 + 1
    lengths = [5, 5, 3, 2]  # It is red . </s>; It is blue . </s>; Yes . </s>; No. </s>
    assert found["tokens, sides apart"] == sum(2 * prompt + lengths[a] + lengths[b] for a, b in texts)
    assert found["tokens, everything shared in a group"] == prompt + sum(lengths) - 2  # "It is" once
    assert found["pairs by size of their group"] == {"2-4": 4}

    from mmfast.data.store import ExampleStore
    from mmfast.packing import Layout, build_pack

    (folder,) = (p.parent for p in (tmp_path / "c/examples").glob("*/*/manifest.json"))
    store = ExampleStore(folder)
    pack = build_pack(list(store), store.images, Layout(image_token_id=store.manifest["image_token_id"]))
    ends = len(answers)  # the last token of an answer is predicted, not read
    assert len(pack.tokens) == prompt + sum(lengths) - 2 - ends
    assert len(pack.responses) - 1 == 4 and len(pack.pairs) == 4


def test_convert_and_ablations(file, tmp_path):
    result = run(app, ["convert", str(file), str(tmp_path / "o.json"), "--to", "llava"])
    assert result.exit_code == 0 and "not carried: rejected (of 2 records)" in result.output
    result = run(app, ["convert", str(file), str(tmp_path / "h.jsonl"), "--share", "0.5", "--flip", "1"])
    assert result.exit_code == 0
    (record,) = read_records(tmp_path / "h.jsonl")
    assert record.meta["flipped"]
    for target, message in (
        ("x.csv", "write one of"),
        ("x.tsv", "rlhfv's legacy form"),
        ("x.pkl", "dgpref is written"),
    ):
        assert message in str(run(app, ["convert", str(file), str(tmp_path / target)]).exception)


SCORED = [
    {"image": "a.png", "prompt": "What is this?", "cur_candidate_answer": text, "Helpfulness": h, "Correctness": h,
     "Coherence": h, "Complexity": 1, "Verbosity": 2, "gpt4v_response": "A mug."}
    for text, h in (("It is red.", 4), ("It is blue.", 1), ("Yes.", 4))
]  # fmt: skip


def test_pairs_sft_steerlm(rows, picture, tmp_path):
    picture("a.png")
    path = str(rows("s.jsonl", SCORED))
    out = str(tmp_path / "o.jsonl")

    def records(*args):
        result = run(app, [*args, "-o", out])
        assert result.exit_code == 0, (result.output, result.exception)
        return list(read_records(out)), result.output

    found, told = records("pairs", path, "--rule", "mllm_dpo")
    assert len(found) == 1 and found[0].rejected[0]["content"] == "It is blue." and "groups: 1" in told
    found, _ = records("pairs", path, "--rule", "rlaifv", "--score", "Helpfulness", "--no-balance", "--per-prompt", "0")
    assert len(found) == 2
    found, _ = records("sft", path, "--score", "Helpfulness", "--minimum", "4")
    assert [r.chosen[0]["content"] for r in found] == ["It is red."] and found[0].images == ("a.png",)
    found, _ = records("sft", path, "--answer", "gpt4v_response")
    assert [r.chosen[0]["content"] for r in found] == ["A mug."]
    found, _ = records("steerlm", path)
    assert len(found) == 3 and "Verbosity:2" in str(found[0].prompt)
    found, _ = records("steerlm", path, "--hindsight")
    assert len(found) == 1 and len(found[0].prompt) == 3
    assert "unknown rule 'x'; choose one of mllm_dpo" in str(
        run(app, ["pairs", path, "--rule", "x", "-o", out]).exception
    )


def test_sima_pairs_name_replies_without_a_verdict(rows, picture, tmp_path):
    picture("a.png")
    critic = samples.SIMA["critic"][0]
    path = str(rows("c.jsonl", [critic, critic | {"rank_result": "neither"}, critic | {"rank_result": "[[3]]"}]))
    result = run(app, ["pairs", path, "--rule", "sima", "-o", str(tmp_path / "o.jsonl")])
    assert result.exit_code == 0 and "1 records" in result.output
    assert result.output.count("the critic's reply holds no [[1]] or [[2]] [no-verdict]") == 2


@pytest.mark.parametrize("command", [show, check])
def test_an_option_of_a_data_key_says_what_the_key_says(command):
    options = signature(command).parameters
    for key in KEYS:
        option, field = options[key].default, Data.model_fields[key]
        assert (option.default, option.help) == (field.default, field.description), key
    assert options["file"].default.help and next(iter(options)) == "file"
