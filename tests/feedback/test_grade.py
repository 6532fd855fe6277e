"""`mmfast grade`: items and verdicts become claims and scores; claims mark exactly their words in training."""

import json
import random
import re

import pytest
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.data.formats.known import read_records
from mmfast.data.preview import preview, tokens_of
from mmfast.data.settings import DataSettings
from mmfast.engines.stage import rows as rows_of
from mmfast.world import models
from mmfast.world.dataset import flawed_caption
from mmfast.world.grammar import Flaws, errors
from mmfast.world.scenes import render, scenes
from tests.make.stage_folders import answer, checked, decomposed, folder, item

TEXT = "A red dog sits left of two cups."
DOG, RED, CUPS, LEFT = (
    item("a dog", "object", "dog", span=(6, 9)),
    item("red dog", "attribute", "red", "dog", span=(2, 9)),
    item("two cups", "count", "two", "cups", span=(23, 31)),
    item("dog left of cups", "spatial", "dog", "left", "cups", span=(2, 31)),
)


def run(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception and not isinstance(result.exception, SystemExit):
        assert isinstance(result.exception, ValueError), repr(result.exception)
        return str(result.exception)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def stages(tmp_path, picture):
    """Folders of generate, decompose and check: three answers of one group, four items of the first."""
    image = picture("a.png")
    rows = [answer("k1", TEXT, image), answer("k2", "A dog.", image), answer("k3", "Nice weather.", image)]
    folder(tmp_path / "answers", "generate", rows)
    items = [
        decomposed("d1", "k1", [DOG, RED, CUPS, LEFT], image),
        decomposed("d2", "k2", [DOG], image),
        decomposed("d3", "k3", [], image),
    ]
    folder(tmp_path / "items", "decompose", items, input="answers")
    verdicts = [
        checked(image, DOG, 1, 0.9),
        checked(image, RED, -1, 0.2),
        checked(image, CUPS, -1, 0.4),
        checked(image, LEFT, -2),
    ]
    folder(tmp_path / "verdicts", "check", verdicts, input="items")

    def graded(*options, out="graded"):
        said = run("grade", tmp_path / "answers", "--items", tmp_path / "items", "--verdicts", tmp_path / "verdicts",
                   "--out", tmp_path / out, *options)  # fmt: skip
        found = {row["key"]: row for row in rows_of(tmp_path / out)} if (tmp_path / out).exists() else {}
        return said, found

    return graded


def test_claims_and_scores_of_an_answer(stages, tmp_path):
    said, found = stages()
    assert found["k1"]["scores"] == {"claims": -2.0, "score": -2 / 3}  # of three judged
    assert found["k1"]["claims"] == [
        ["a dog", True, [6, 9], 0.9],
        ["red dog", False, [2, 9], 0.2],
        ["two cups", False, [23, 31], 0.4],
        ["dog left of cups", None, [2, 31], None],
    ]
    assert found["k2"]["scores"] == {"claims": 0.0, "score": 0.0}
    assert found["k3"]["scores"] == {} and found["k3"]["claims"] == []  # neither good nor bad
    assert found["k1"]["group"] == "g" and found["k1"]["answer"] == TEXT and found["k1"]["meta"]["tokens"] == 9
    assert "graded: 3 answers" in said and "1 answers without a judged claim that counts" in said
    manifest = json.loads((tmp_path / "graded/manifest.json").read_text())
    assert manifest["stage"] == "grade" and manifest["complete"] and manifest["input"] == "answers"


@pytest.mark.parametrize(
    ("options", "score"),
    [
        (("--aspects", "object,attribute,count"), -2 / 3),
        (("--aspects", "object,object,attribute,count"), -2 / 4),  # as DGPref's Qwen run
        (("--aspects", "attribute,attribute,object", "--sum"), -2),
        (("--aspects", "attribute,object", "--sum"), -1),
        (("--aspects", "object"), 0),
        (("--short", "16"), -2 / 3 - 8 / 16),  # eight words of sixteen
        (("--short", "8"), -2 / 3),
        (("--aspects", "spatial", "--unjudged", "best"), 0),
    ],
)
def test_aspects_sums_and_short_answers(options, score, stages):
    _, found = stages(*options)
    assert found["k1"]["scores"]["score"] == pytest.approx(score) and found["k1"]["scores"]["claims"] == -2


def test_nothing_judged_of_the_aspects_is_no_score(stages):
    said, found = stages("--aspects", "spatial,text")
    assert "score" not in found["k1"]["scores"] and "3 answers without a judged claim that counts" in said
    _, found = stages("--unjudged", "best", out="best")
    assert found["k3"]["scores"] == {"claims": 0.0, "score": 0.0}


def test_what_was_not_checked_is_counted(stages, tmp_path):
    (tmp_path / "verdicts/rows-0.jsonl").write_text("")
    said, found = stages()
    assert found["k1"]["claims"][0][1] is None and "5 items not checked" in said
    (tmp_path / "verdicts/manifest.json").write_text(json.dumps({"stage": "check", "complete": False}))
    (tmp_path / "items/rows-0.jsonl").write_text("")
    said, found = stages()
    assert "verdicts is not complete: what it holds is read" in said and "3 answers that were not decomposed" in said
    assert found["k1"]["claims"] is None and found["k1"]["scores"] == {}
    assert json.loads((tmp_path / "graded/manifest.json").read_text())["complete"] is False


def test_items_of_an_earlier_wording_are_passed_over(stages, tmp_path, picture):
    template = {"split": {"name": "split", "version": 2, "digest": "ab" * 32}}
    items = [
        decomposed("d1", "k1", [DOG]) | {"template": "split:" + "ab" * 8},
        decomposed("d2", "k1", [DOG, RED, CUPS]) | {"template": "split:" + "cd" * 8},
    ]
    folder(tmp_path / "items", "decompose", items, template=template)
    said, found = stages()
    assert found["k1"]["scores"] == {"claims": 0.0, "score": 0.0} and len(found["k1"]["claims"]) == 1
    assert "items: 1 rows of an earlier wording are passed over" in said
    assert "-0.0" not in (tmp_path / "graded/rows-0.jsonl").read_text()


def test_a_negated_question_has_the_claims_probability(tmp_path, picture):
    image = picture("a.png")
    denied = item("no hat", negated=True, question="Is there a hat?")
    folder(tmp_path / "a", "generate", [answer("k", "No hat.", image)])
    folder(tmp_path / "i", "decompose", [decomposed("d", "k", [denied], image)])
    folder(tmp_path / "v", "check", [checked(image, denied, 1, 0.25)])
    run("grade", tmp_path / "a", "--items", tmp_path / "i", "--verdicts", tmp_path / "v", "--out", tmp_path / "g")
    (row,) = rows_of(tmp_path / "g")
    assert row["claims"] == [["no hat", True, None, 0.75]]


def test_the_implicit_reward(rows, tmp_path):
    base = {"question": "What?", "image": None}
    path = rows("a.jsonl", [
        base | {"answer": "Long.", "logp": -10.0, "ref_logp": -14.0, "tokens": 8},
        base | {"answer": "Short.", "logp": -2.0, "ref_logp": -3.0, "tokens": 1},
        base | {"answer": "Unknown.", "logp": -2.0, "tokens": 1},
    ])  # fmt: skip
    said = run("grade", path, "--beta", "0.1", "--out", tmp_path / "g")
    assert "1 without log-probs" in said
    assert [row["scores"].get("reward") for row in rows_of(tmp_path / "g")] == [
        pytest.approx(0.05), pytest.approx(0.1), None,
    ]  # fmt: skip
    run("grade", path, "--beta", "0.1", "--whole", "--out", tmp_path / "w")
    out = tmp_path / "best.jsonl"
    for name, want in (("g", "Short."), ("w", "Long.")):  # a sum favours what is long
        run("data", "sft", tmp_path / name, "--score", "reward", "--on-error", "drop", "-o", out)
        (record,) = read_records(out)
        assert record.chosen[0]["content"] == want


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--items", "items"), "--items and --verdicts go together"),
        ((), "nothing to grade by: give --items and --verdicts, or --beta"),
        (("--short", "3"), "--short counts items: it needs --items and --verdicts"),
        (("--whole",), "--whole is for the implicit reward: it needs --beta"),
        (
            ("--items", "answers", "--verdicts", "verdicts"),
            "--items {tmp}/answers is a folder of generate: a folder of",
        ),
        (("--items", "items", "--verdicts", "gone"), "--verdicts {tmp}/gone is no folder of rows: a folder of mmfast"),
        (("--items", "items", "--verdicts", "verdicts", "--aspects", "colour"), "--aspects: unknown aspect 'colour'"),
        (("--items", "items", "--verdicts", "verdicts", "--unjudged", "x"), "--unjudged: it must be none or best"),
        (("--items", "items", "--verdicts", "verdicts", "--out", "items/deep"), None),
        (
            ("--items", "items", "--verdicts", "verdicts", "--out", "items"),
            "--out {tmp}/items is or holds what is read",
        ),
    ],
)
def test_mistakes_are_one_line(options, said, stages, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [str(tmp_path / o) if o in ("items", "verdicts", "answers", "gone", "items/deep") else o for o in options]
    out = [] if "--out" in options else ["--out", str(tmp_path / "o")]
    told = run("grade", tmp_path / "answers", *given, *out)
    if said is not None:
        assert told.startswith(said.format(tmp=tmp_path)) and "\n" not in told


def test_other_settings_are_refused_and_the_same_go_again(stages, tmp_path):
    stages("--sum")
    before = (tmp_path / "graded/rows-0.jsonl").read_bytes()
    assert stages()[0].startswith(f"{tmp_path}/graded was made otherwise: average was false and is true. Give another")
    stages("--sum")
    assert (tmp_path / "graded/rows-0.jsonl").read_bytes() == before


# claims in training


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Three captions of each of some pictures (flawed, half corrected, true), decomposed and checked by their slots."""
    root = tmp_path_factory.mktemp("world")
    answers, items, verdicts = [], [], {}
    known = {}
    for scene in scenes(5, "train", 40):
        rng = random.Random(scene.name)
        flawed = flawed_caption(scene, rng, Flaws())
        if flawed is None or len(set(flawed.flaws)) < 2:
            continue
        image = root / f"{scene.name}.png"
        render(scene).save(image)
        for n, caption in enumerate((flawed, flawed.corrected(1), flawed.corrected(9))):
            key, at, told = f"{scene.name}.{n}", 0, []
            for place, slot in enumerate(caption.slots):
                if slot.text.strip(" ,."):
                    span = (at, at + len(slot.text))  # with the blanks beside its words
                    told.append(item(f"{place}: {slot.text}", span=span))
                    verdicts[image, told[-1]["claim"]] = checked(image, told[-1], 1 if slot.text == slot.truth else -1)
                at += len(slot.text)
            answers.append(answer(key, caption.text, image, scene.name))
            items.append(decomposed(f"d{key}", key, told, image))
            known[caption.text] = scene, caption
    assert len(answers) >= 15
    folder(root / "answers", "generate", answers)
    folder(root / "items", "decompose", items)
    folder(root / "verdicts", "check", list(verdicts.values()))
    run("grade", root / "answers", "--items", root / "items", "--verdicts", root / "verdicts", "--out", root / "graded")
    return root, known


def test_every_pairs_chosen_side_has_fewer_errors(world, tmp_path):
    root, known = world
    out = tmp_path / "pairs.jsonl"
    run("data", "pairs", root / "graded", "--rule", "rlaifv", "--no-balance", "--per-prompt", "0", "-o", out)
    pairs = list(read_records(out))
    assert len(pairs) == len(known)  # three of each three captions
    for pair in pairs:
        chosen, rejected = (side[0]["content"] for side in (pair.chosen, pair.rejected))
        assert len(known[chosen][1].flaws) < len(known[rejected][1].flaws)
        better, worse = (sum(errors(text, known[chosen][0]).values()) for text in (chosen, rejected))
        assert better <= worse  # the grammar does not count what is said of a thing that is not there


@pytest.mark.parametrize("how", ["marks", "weights", "option"])
def test_weight_stands_on_exactly_the_wrong_words(how, world, tmp_path):
    """Of every pair: by gamma (marks), by --weight, or by the reader's option `claims`."""
    root, known = world
    out, model = tmp_path / "pairs.jsonl", models.tiny_model("llava", tmp_path / "model")
    weight = ["--weight", "3"] if how == "weights" else []
    run("data", "pairs", root / "graded", "--rule", "rlaifv", "--no-balance", "--per-prompt", "0", "-o", out, *weight)
    options = {"claims": 3.0} if how == "option" else {}
    data = DataSettings(path=str(out), segments="record", options=options)
    tokenizer, shown = preview(data, model, 10_000)
    seen = marked = 0
    for one in shown:
        for _, branch in one.sides():
            scored = [token for token in tokens_of(tokenizer, branch) if token.scored]
            said = "".join(token.text for token in scored)
            text = next(text for text in known if text in said)
            offset, spans = said.index(text), known[text][1].spans("text")
            words = [m.span() for m in re.finditer(r"\w+", text)]
            wrong = [(a, b) for a, b in words if any(a < end and b > first for first, end in spans)]
            at = -offset
            for token in scored:
                here = (at + len(token.text) - len(token.text.lstrip()), at + len(token.text))
                at += len(token.text)
                expected = any(here[0] < b and here[1] > a for a, b in wrong)
                assert token.weight == (3.0 if expected and how != "marks" else 1.0), (text, token)
                assert token.changed == (expected and how == "marks"), (text, token)
                seen, marked = seen + 1, marked + expected
    assert 0 < marked < seen / 2


def test_data_show_prints_the_weights(world, tmp_path):
    root, _ = world
    model = models.tiny_model("llava", tmp_path / "model")
    for weight, mark in ((["--weight", "3"], "×3"), ([], "×γ")):
        out = tmp_path / "pairs.jsonl"
        run("data", "pairs", root / "graded", "--rule", "rlaifv", "-o", out, *weight)
        said = run("data", "show", out, "-m", model, "--segments", "record", "-n", "1")
        assert mark in said
        assert "×" not in run("data", "show", out, "-m", model, "--segments", "none", "-n", "1")


def test_claims_without_spans_are_laid_on_sentences(rows, tmp_path):
    base = {"question": "What?", "image": None}
    text = "A dog sits. It is red. A cat runs."
    path = rows("s.jsonl", [
        base | {"answer": text, "claims": [["a dog sits", True], ["the dog is red", False], ["cat", False, [25, 28]]]},
        base | {"answer": "A dog sits.", "claims": [["a dog sits", True]]},
    ])  # fmt: skip
    out = tmp_path / "p.jsonl"
    run("data", "pairs", path, "--rule", "rlaifv", "-o", out)
    (pair,) = read_records(out)
    assert pair.segments == {"rejected": [(25, 28)]}  # a span alone marks words by itself
    (pair,) = read_records(out, options={"claims": 2.0})
    assert sorted(pair.segments["rejected"]) == [(12, 22, 2.0), (25, 28, 2.0)]
