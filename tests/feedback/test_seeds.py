"""The files of the published pipelines: read at any stage, and written so that their own code, and we, read them."""

import csv
import json
import pickle

import pytest
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.data.formats.dgpref import kind_of
from mmfast.data.formats.known import read_records
from mmfast.data.formats.sima import verdict
from mmfast.engines.base import Reply, canonical
from mmfast.engines.stage import rows as rows_of
from mmfast.feedback import expert_scores
from mmfast.feedback.answers import read_answers
from mmfast.feedback.expert_scores import expert_answers
from tests.make import feedback_cases, seed_files
from tests.make.engine_cases import Fake
from tests.make.stage_folders import answer, asked, checked, decomposed, folder, item


def run(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception and not isinstance(result.exception, SystemExit):
        assert isinstance(result.exception, ValueError), repr(result.exception)
        return str(result.exception)
    assert result.exit_code == 0, result.output
    return result.output


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sides(path):
    return [(r.chosen[0]["content"], r.rejected[0]["content"]) for r in read_records(path)]


def pairs(source, out, *options):
    out.unlink(missing_ok=True)
    said = run("data", "pairs", source, "--rule", "rlaifv", "--no-balance", "--per-prompt", "0", "-o", out, *options)
    return said, sides(out) if out.exists() else []


# RLAIF-V


def test_rlaifvs_files_are_answers_with_claims(tmp_path):
    files = seed_files.rlaifv(tmp_path)
    plain, split, judged = (list(read_answers(files[name])) for name in ("answers", "facts", "autocheck"))
    for found in (plain, split, judged):
        assert [one.text for one in found] == [text for _, text, _ in seed_files.CLAIMED]
        assert found[0].images == (str(tmp_path / "a.png"),) and found[0].question == "What is on the desk?"
        assert found[0].group == found[1].group != found[2].group
    assert plain[0].key == split[0].key and plain[0].claims is None
    assert split[0].claims[1].text == "It is red." and split[0].claims[1].holds is None
    assert [claim.holds for one in judged for claim in one.claims] == [True, True, False, False, True]
    assert [claim.p for claim in judged[1].claims] == [pytest.approx(0.25), pytest.approx(0.1)]
    assert [one.scores for one in judged] == [{"claims": 0.0}, {"claims": -2.0}, {"claims": 0.0}]
    assert plain[0].reference == "" and "these are RLAIF-V's questions about facts" in run(
        "data", "sft", files["questions"], "-o", tmp_path / "o.jsonl"
    )


def test_autocheck_rows_become_pairs(tmp_path):
    files, out = seed_files.rlaifv(tmp_path), tmp_path / "pairs.jsonl"
    assert pairs(files["autocheck"], out)[1] == [("A red mug on a desk.", "Two blue mugs.")]
    # A lost row, and one that is none: the answer is left out and named
    rows = read(files["autocheck"])
    assert "1 judged claims for 2 facts" in pairs(seed_files.lines(tmp_path / "x.jsonl", rows[:3]), out)[0]
    rows[3]["scores"]["yes"] = "much"
    said, found = pairs(
        seed_files.lines(tmp_path / "x.jsonl", [*rows[:3], {"a": 1}, *rows[3:]]), out, "--on-error", "drop"
    )
    assert "nothing is left to write" in said and not found
    said = run("data", "sft", tmp_path / "x.jsonl", "--on-error", "drop", "-o", tmp_path / "s.jsonl")
    assert "left out: x.jsonl:3: no autocheck row" in said and "left out: x.jsonl:2: scores are no numbers" in said
    assert "2 records" in said


def test_rows_of_an_answer_may_stand_apart(tmp_path):
    files = seed_files.rlaifv(tmp_path)
    rows = read(files["autocheck"])
    mixed = seed_files.lines(tmp_path / "mixed.jsonl", [rows[2], rows[0], rows[3], rows[4], rows[1]])
    assert {one.text: one.claims for one in read_answers(mixed)} == {
        one.text: one.claims for one in read_answers(files["autocheck"])
    }


def test_rlaifvs_pair_file_gives_claims(tmp_path):
    """org_infos of get_preference_pairs.py: judgements by the question about a fact."""
    infos = {
        "ds_question_id": "d7", "reference": "", "origin_file": "",
        "chosen_infos": {"facts": ["There is a mug."], "changed_facts": ["Is there a mug?"]},
        "rejected_infos": {"facts": ["A cat.", "It is red.", "Odd."], "changed_facts": ["Is it a cat?", "Is it red?"]},
        "scores": {
            "chosen": {"judge": {"Is there a mug? Please answer yes or no.": "1"}, "score": "0"},
            "rejected": {"judge": {"Is it a cat? Please answer yes or no.": "0",
                                   "Is it red? Please answer yes or no.": "1"}, "score": "-1"},
        },
    }  # fmt: skip
    row = {"image_id": "a.png", "image_path": "a.png", "ds_question_id": "d7", "question": "What?", "chosen": "A mug.",
           "rejected": "A cat. It is red.", "org_infos": infos}  # fmt: skip
    path = seed_files.lines(tmp_path / "pairs.jsonl", [row])
    (pair,) = read_records(path, options={"claims": 2.0})
    assert pair.meta["claims"]["rejected"] == [["A cat.", False], ["It is red.", True], ["Odd.", None]]
    assert pair.segments["rejected"] == [(0, 6, 2.0), (7, 17, 1.0)]
    run("data", "convert", path, tmp_path / "back.jsonl", "--to", "rlaifv")
    (back,) = read(tmp_path / "back.jsonl")
    assert back["org_infos"] == infos and "claims" not in back
    # And the other way: claims of ours become such infos
    own = {"prompt": "What?", "chosen": "A mug.", "rejected": "A cat.",
           "meta": {"claims": {"chosen": [["a mug", True]], "rejected": [["a cat", False, [2, 5]]]}}}  # fmt: skip
    run("data", "convert", seed_files.lines(tmp_path / "own.jsonl", [own]), tmp_path / "o.jsonl", "--to", "rlaifv")
    (made,) = read(tmp_path / "o.jsonl")
    assert made["org_infos"]["scores"]["rejected"] == {"judge": {"a cat Please answer yes or no.": "0"}, "score": "-1"}
    (again,) = read_records(tmp_path / "o.jsonl")
    assert again.meta["claims"]["rejected"] == [["a cat", False, [2, 5]]]  # with its span


@pytest.mark.parametrize("name", ["answers", "facts", "questions", "autocheck"])
def test_rlaifvs_files_come_back(name, tmp_path):
    files, out = seed_files.rlaifv(tmp_path), tmp_path / "back.jsonl"
    source = files["facts" if name == "questions" else name]
    run("feedback", "export", source, "--as", f"rlaifv.{name}", "-o", out)
    want, got = read(files[name]), read(out)
    if name == "autocheck":  # "yes" and "Yes" are one there; what the answer was is not in the judged facts
        for row in (*want, *got):
            scores = row.pop("scores")
            yes, no = scores["yes"] + scores["Yes"], scores["no"] + scores["No"]
            row["p"] = round(yes / (yes + no), 6)
            for infos in (row["metainfos"], row["metainfos"]["metainfos"]):
                for lost in ("reference", "origin_file", "image_path"):
                    infos.pop(lost, None)
            row.pop("answer"), row.pop("model_path")
    assert got == want


def test_rlaifv_can_be_entered_and_left_at_every_stage(tmp_path, picture):
    """facts -> our check (by hand) -> grade -> autocheck -> pairs: as straight from its own autocheck."""
    image = picture("a.png")
    files, out = seed_files.rlaifv(tmp_path), tmp_path / "pairs.jsonl"
    said = run("feedback", "import", files["facts"], "-o", tmp_path / "items")
    assert "5 items" in said
    answers = {one.key: one.text for one in read_answers(files["facts"])}
    laid = [answers[row["answer_key"]][slice(*i["span"])] for row in rows_of(tmp_path / "items") for i in row["items"]]
    assert laid == ["mug", "red", "Two blue mugs", "blue", "A cat sleeps."]  # facts are laid on their words
    verdicts = []
    for row in rows_of(tmp_path / "items"):
        for one in row["items"]:
            p = next(p for _, _, claims in seed_files.CLAIMED for fact, _, p in claims if fact == one["claim"])
            verdicts.append(checked(image, one, 1 if p > 0.5 else -1, p))
    folder(tmp_path / "verdicts", "check", verdicts)
    graded = run(
        "grade",
        files["answers"],
        "--items",
        tmp_path / "items",
        "--verdicts",
        tmp_path / "verdicts",
        "-o",
        tmp_path / "g",
    )
    assert "g: 3 answers" in graded and "not checked" not in graded
    assert pairs(tmp_path / "g", out)[1] == [("A red mug on a desk.", "Two blue mugs.")]
    run("feedback", "export", tmp_path / "g", "--as", "rlaifv.autocheck", "-o", tmp_path / "auto.jsonl")
    ours, theirs = read(tmp_path / "auto.jsonl"), read(files["autocheck"])
    for name in ("question_id", "ds_question_id", "raw_question"):
        assert [row[name] for row in ours] == [row[name] for row in theirs]
    assert [row["metainfos"]["metainfos"]["origin_fact"] for row in ours] == [
        row["metainfos"]["metainfos"]["origin_fact"] for row in theirs
    ]
    assert pairs(tmp_path / "auto.jsonl", out)[1] == [("A red mug on a desk.", "Two blue mugs.")]


def test_claims_that_rlaifv_has_no_place_for_are_told(tmp_path):
    rows = [
        answer("k1", "A mug.", claims=[["a mug", True, [2, 5], 0.9], ["red", None, None, None]]),
        answer("k2", "A cat.", claims=None, prompt=asked(system="Be brief.")),
        answer("k3", "No.", claims=[["no", False, None, 0.9]], images=["a.png", "b.png"]),
    ]
    out = tmp_path / "o.jsonl"
    said = run("feedback", "export", folder(tmp_path / "g", "grade", rows), "--as", "rlaifv.autocheck", "-o", out)
    for line in ("1 spans of claims", "1 claims that were not judged", "1 answers without judged claims",
                 "1 images after the first", "1 system prompts and earlier turns"):  # fmt: skip
        assert f"not carried: {line}" in said
    first, last = read(out)
    assert first["scores"]["yes"] == 0.9 and last["scores"] == {"yes": 0.0, "Yes": 0.0, "no": 1.0, "No": 0.0}
    negated = item("no hat", negated=True, question="Is there a hat?")
    folder(tmp_path / "i", "decompose", [decomposed("d", "k1", [negated, item("a mug", question="Is there a mug?")])])
    run("feedback", "export", tmp_path / "g", "--as", "rlaifv.questions", "--items", tmp_path / "i", "-o", out)
    assert [row["question"] for row in read(out)][:2] == [
        "Is it right to say: no hat? Please answer yes or no.", "Is there a mug? Please answer yes or no.",
    ]  # fmt: skip


# SIMA


def test_simas_files_are_two_answers_a_row(tmp_path):
    files = seed_files.sima(tmp_path)
    found = list(read_answers(files["responses"]))
    assert [(one.decode, one.text) for one in found] == [
        ("sample", "A red mug."), ("greedy", "A cat."), ("sample", "Two."), ("greedy", "One."),
    ]  # fmt: skip
    assert found[0].group == found[1].group and found[0].reference == "A mug." and found[0].scores == {}
    judged = list(read_answers(files["results"]))
    assert [one.scores for one in judged] == [{"critic": 1.0}, {"critic": 0.0}, {}, {}]
    assert judged[0].question == "What is this?" and judged[0].images == (str(tmp_path / "a.png"),)
    run("data", "pairs", files["results"], "--rule", "sima", "-o", tmp_path / "p.jsonl")
    assert sides(tmp_path / "p.jsonl") == [("A red mug.", "A cat.")]
    prompts = seed_files.lines(tmp_path / "p.jsonl", [{"image": "a.png", "text": "What?", "ground_truth": "A mug."}])
    assert "these are SIMA's prompts, without answers" in run("data", "sft", prompts, "-o", tmp_path / "o.jsonl")


def test_simas_responses_come_back(tmp_path):
    files = seed_files.sima(tmp_path)
    run(
        "feedback",
        "export",
        files["responses"],
        "--as",
        "sima.responses",
        "--images",
        tmp_path,
        "-o",
        tmp_path / "o.jsonl",
    )
    assert read(tmp_path / "o.jsonl") == read(files["responses"])


def test_verdicts_come_out_as_simas_results(tmp_path):
    rows = [
        answer("s", "A red mug."), answer("g", "A cat.", decode="greedy"),
        answer("x", "One.", group="h", prompt=asked("How\nmany?")),
        answer("y", "Two.", group="h", prompt=asked("How\nmany?")),
        answer("z", "Z.", group="z", prompt=asked("Say Question: [x]")),
    ]  # fmt: skip
    folder(tmp_path / "answers", "generate", rows)
    said = [
        {"key": "1", "a": "s", "b": "g", "order": "ab", "verdict": "b", "p": None, "reason": "as in [[1]], no"},
        {"key": "2", "a": "x", "b": "y", "order": "ab", "verdict": "tie", "p": None, "reason": "alike"},
        {"key": "3", "a": "z", "b": "y", "order": "ab", "verdict": "a", "p": None, "reason": ""},
        {"key": "4", "a": "gone", "b": "y", "order": "ab", "verdict": "a", "p": None, "reason": ""},
    ]
    critic, out = folder(tmp_path / "critic", "critique", said, input="answers", order="one"), tmp_path / "o.jsonl"
    told = run("feedback", "export", critic, "--as", "sima.results", "--images", tmp_path / "answers", "-o", out)
    for line in (
        "1 verdicts that are no verdict there (ties)",
        "1 questions that SIMA's reader would cut",
        "1 pairs of unknown",
    ):
        assert f"not carried: {line}" in told
    first, second = read(out)
    assert verdict(first["rank_result"]) == "2" and verdict(second["rank_result"]) is None
    assert first["id"] == "a.png" and second["question"] == "Question: [How many?]\n"
    run("data", "pairs", out, "--rule", "sima", "-o", tmp_path / "p.jsonl")
    assert sides(tmp_path / "p.jsonl") == [("A cat.", "A red mug.")]
    run("data", "pairs", critic, "--rule", "sima", "--on-error", "drop", "-o", tmp_path / "q.jsonl")
    assert sides(tmp_path / "q.jsonl")[0] == ("A cat.", "A red mug.")


# mllm-dpo


def test_mllm_dpos_questions_and_answers_come_back(tmp_path):
    files = seed_files.mllm_dpo(tmp_path)
    found = list(read_answers(files["answers"], questions=files["questions"]))
    rows = [
        answer(one.key, one.text, one.images[0], one.group, prompt=list(one.prompt), sample=n, meta=one.meta)
        for n, one in enumerate(found)
    ]
    folder(tmp_path / "answers", "generate", rows)
    for name in ("questions", "answers"):
        out = tmp_path / f"{name}.jsonl"
        run("feedback", "export", tmp_path / "answers", "--as", f"mllm_dpo.{name}", "--images", tmp_path, "-o", out)
        want = read(files[name])
        assert sorted(read(out), key=str) == sorted(want, key=str)


def test_a_judges_folder_comes_out_as_mllm_dpos_table(tmp_path):
    rows = [answer("k1", 'A "red" mug,\nit is.'), answer("k2", "A cat."), answer("k3", "A dog.")]
    folder(tmp_path / "answers", "generate", rows)
    scores = {"k1": dict.fromkeys(seed_files.FIVE, 4), "k2": dict.fromkeys(seed_files.FIVE, 1), "k3": None}
    judged = {"key": "j", "answers": ["k1", "k2", "k3"], "scores": scores, "reference": "A mug.", "reason": {}}
    folder(tmp_path / "judged", "judge", [judged], input="answers")
    out = tmp_path / "judged.csv"
    said = run(
        "feedback",
        "export",
        tmp_path / "judged",
        "--as",
        "mllm_dpo.judged",
        "--images",
        tmp_path / "answers",
        "-o",
        out,
    )
    assert "2 rows" in said and "not carried: 1 answers without all five numbers" in said
    with out.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first["Output"] == first["cur_candidate_answer"] == 'A "red" mug,\nit is.' and first["Helpfulness"] == "4"
    assert (
        second["gpt4v_response"] == "A mug." and second["image"] == "a.png" and second["question"] == second["prompt"]
    )
    run("data", "pairs", out, "--rule", "mllm_dpo", "-o", tmp_path / "p.jsonl")
    assert sides(tmp_path / "p.jsonl") == [('A "red" mug,\nit is.', "A cat.")]


# DGPref


def test_dgprefs_captions_compete_by_image_and_come_back(tmp_path):
    files = seed_files.dgpref(tmp_path)
    found = list(read_answers(files["captions"]))
    assert [(one.group, one.question, one.text) for one in found][:2] == [
        ("7", "Describe it.", seed_files.CAPTIONS["0_0"]), ("7", "Tell all.", seed_files.CAPTIONS["0_1"]),
    ]  # fmt: skip
    assert found[2].group == "9" and found[0].images == (str(tmp_path / "7.jpg"),) and found[0].scores == {}
    run("feedback", "export", files["captions"], "--as", "dgpref.captions", "-o", tmp_path / "out/raw.pkl")
    assert pickle.loads((tmp_path / "out/raw.pkl").read_bytes()) == seed_files.CAPTIONS
    assert json.loads((tmp_path / "out/names.json").read_text()) == ["7", "9"]
    assert (tmp_path / "out/prompts.txt").read_text() == "Describe it.\nTell all.\n"


def test_dgprefs_decompositions_come_in_and_out(tmp_path):
    files, out = seed_files.dgpref(tmp_path), tmp_path / "out/decomposition.pkl"
    said = run("feedback", "import", files["decomposition"], "--answers", files["captions"], "-o", tmp_path / "items")
    assert "10 items" in said and "3 answers" in said  # nine of the table, and what a caption quotes
    row = next(iter(rows_of(tmp_path / "items")))
    assert [(one["kind"], one["args"]) for one in row["items"]][:2] == [
        ("attribute", ["brown", "dog"]), ("count", ["two", "buckets"]),
    ]  # fmt: skip
    assert row["items"][0]["question"] == "Is the dog brown?" and row["answer_key"] == next(
        one.key for one in read_answers(files["captions"])
    )
    run(
        "feedback",
        "export",
        files["captions"],
        "--as",
        "dgpref.decomposition",
        "--items",
        tmp_path / "items",
        "-o",
        out,
    )
    content = pickle.loads(out.read_bytes())
    assert content == seed_files.DECOMPOSED and kind_of(content["0_0"]) == "decomposition"


def test_decompositions_that_came_in_are_what_our_own_would_be(tmp_path):
    """Kinds (sizes and places go to boxes), questions and spans: the same items as of a model that says the same."""
    files = seed_files.dgpref(tmp_path)
    kinds = {"like": "attribute", "how many of": "count", "every thing": "entity", "to each other": "relation"}

    class Model(Fake):
        def reply(self, request, sample):
            said = request.messages[-1]["content"][-1]["text"]
            name = next(name for name, caption in seed_files.CAPTIONS.items() if said.rstrip().endswith(caption))
            aspect = next(aspect for part, aspect in kinds.items() if part in said)
            return Reply(key=request.key, text=seed_files.DECOMPOSED[name][aspect].strip(), tokens=3)

    run("feedback", "import", files["decomposition"], "--answers", files["captions"], "-o", tmp_path / "in")
    feedback_cases.decomposed(files["captions"], tmp_path / "own", Model())
    found = {
        name: {row["answer_key"]: sorted(map(canonical, row["items"])) for row in rows_of(tmp_path / name)}
        for name in ("in", "own")
    }
    assert found["in"] == found["own"] and len(found["in"]) == 3
    items = {item["claim"]: item for row in rows_of(tmp_path / "in") for item in row["items"]}
    caption = seed_files.CAPTIONS["0_0"]
    assert items["large dog"]["kind"] == "scale" and items["OPEN"]["kind"] == "text"
    assert (
        caption[slice(*items["brown dog"]["span"])] == "brown dog"
        and items["buckets"]["question"] == "Are there buckets?"
    )


def test_what_was_checked_comes_out_as_dgprefs_expert_scores(tmp_path, picture, monkeypatch):
    monkeypatch.setattr(expert_scores, "singulars", lambda: str.lower)
    files = seed_files.dgpref(tmp_path)
    first, second = picture("7.jpg"), picture("9.jpg", 1)
    dog, cat, bus = (item(f"a {name}", "object", name) for name in ("dog", "cat", "bus"))
    brown, left = (
        item("brown dog", "attribute", "brown", "dog"),
        item("dog left of cat", "spatial", "dog", "left", "cat"),
    )
    large, two = item("large dog", "scale", "large", "dog"), item("two buckets", "count", "two", "buckets")
    said, claim = item("OPEN", "text", "OPEN"), item("it is nice")
    keys = [one.key for one in read_answers(files["captions"])]
    items = [
        decomposed("d0", keys[0], [dog, brown, two, said, left, claim], first),
        decomposed("d1", keys[1], [dog, large, cat], first),
        decomposed("d2", keys[2], [bus], second),
    ]
    boxes = {"boxes": {"buckets": [[0, 0, 1, 1]] * 3}, "scores": {"buckets": [0.5, 0.4, 0.3]}}
    verdicts = [
        checked(first, dog, 1, 0.9), checked(first, brown, -1), checked(first, said, -1), checked(first, left, -2),
        checked(first, large, 1), checked(first, cat, -1), checked(first, two, -1) | {"evidence": boxes},
        checked(first, claim, 1),
    ]  # fmt: skip
    folder(tmp_path / "items", "decompose", items)
    folder(tmp_path / "verdicts", "check", verdicts)
    out = tmp_path / "out/experts.pkl"
    told = run("feedback", "export", files["captions"], "--as", "dgpref.experts", "--items", tmp_path / "items",
               "--verdicts", tmp_path / "verdicts", "-o", out)  # fmt: skip
    assert "not carried: 1 items of the kind claim" in told and "not carried: 1 items that were not checked" in told
    table = pickle.loads(out.read_bytes())
    assert table["7"]["all_program"][0]["count_check"] == [(2, "buckets")] and kind_of(table["7"]) == "experts"
    assert table["7"]["expert_scores"]["scale_result"] == {"large###dog": 1}
    assert table["7"]["expert_scores"]["object_result"]["buckets"] == {
        "scores": [0.5, 0.4, 0.3],
        "bboxs": [[0, 0, 1, 1]] * 3,
    }
    # DGPref's scores of it are ours
    scored = {
        one.text: one.scores["score"] for one in expert_answers(out, files["captions"], options={"root": tmp_path})
    }
    run("grade", files["captions"], "--items", tmp_path / "items", "--verdicts", tmp_path / "verdicts",
        "-o", tmp_path / "g", "--aspects", "object,count,attribute,spatial,scale,text")  # fmt: skip
    ours = {row["answer"]: row["scores"].get("score") for row in rows_of(tmp_path / "g")}
    assert ours == {**scored, seed_files.CAPTIONS["1_0"]: None}  # nothing was judged of it, which DGPref scores best
    run("data", "pairs", out, "--rule", "dgpref", "--captions", files["captions"], "-o", tmp_path / "p.jsonl")
    (pair,) = read_records(tmp_path / "p.jsonl")
    assert pair.meta["prefer_idx"] == 1 and pair.meta["reject_idx"] == 0 and pair.meta["name"] == "7"
    run("data", "convert", tmp_path / "p.jsonl", tmp_path / "pairs.pkl", "--to", "dgpref")
    (stored,) = pickle.loads((tmp_path / "pairs.pkl").read_bytes())["7"]["sample_pair"]
    assert (stored["prefer_idx"], stored["reject_idx"]) == (1, 0)


def test_counts_without_boxes_are_not_invented(tmp_path, picture):
    files, image = seed_files.dgpref(tmp_path), picture("7.jpg")
    two = item("two buckets", "count", "two", "buckets")
    key = next(one.key for one in read_answers(files["captions"]))
    folder(tmp_path / "items", "decompose", [decomposed("d", key, [two], image)])
    folder(tmp_path / "verdicts", "check", [checked(image, two, 1, 0.9)])
    told = run("feedback", "export", files["captions"], "--as", "dgpref.experts", "--items", tmp_path / "items",
               "--verdicts", tmp_path / "verdicts", "-o", tmp_path / "out/e.pkl")  # fmt: skip
    assert "not carried: 1 counts without boxes" in told
    assert pickle.loads((tmp_path / "out/e.pkl").read_bytes())["7"]["all_program"][0]["count_check"] == []


# mistakes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("export", "{f}", "--as", "rlaif", "-o", "{t}/o.jsonl"),
            "--as: there is no file 'rlaif'; there are rlaifv.answers",
        ),
        (("export", "{f}", "--as", "rlaifv.facts", "-o", "{t}/o.csv"), "o.csv: rlaifv.facts is written as .jsonl"),
        (
            ("export", "{f}", "--as", "dgpref.experts", "-o", "{t}/o.pkl"),
            "--as dgpref.experts needs --items: a folder of",
        ),
        (
            ("export", "{f}", "--as", "sima.responses", "--items", "{t}", "-o", "{t}/o.jsonl"),
            "--items has no effect on sima",
        ),
        (
            ("export", "{f}", "--as", "sima.results", "-o", "{t}/o.jsonl"),
            "{f} is no folder of rows: a folder of mmfast cr",
        ),
        (
            ("export", "{f}", "--as", "rlaifv.facts", "-o", "{t}/o.jsonl"),
            "there is nothing to write, so o.jsonl is not made",
        ),
        (
            ("import", "{d}", "-o", "{t}/items"),
            "{d} holds decompositions: give the captions that they are of with --ans",
        ),
        (("import", "{r}", "--answers", "{f}", "-o", "{t}/items"), "--answers has no effect on {r}"),
    ],
)
def test_mistakes_are_one_line(arguments, said, tmp_path, rows):
    names = {
        "t": tmp_path,
        "f": rows("plain.jsonl", [{"question": "What?", "answer": "A mug."}]),
        "d": seed_files.dgpref(tmp_path)["decomposition"],
        "r": seed_files.rlaifv(tmp_path)["facts"],
    }
    told = run("feedback", *(text.format(**names) for text in arguments))
    assert told.startswith(said.format(**names)) and "\n" not in told
    assert not (tmp_path / "o.jsonl").exists()


def test_files_beside_a_pickle_are_not_written_over(tmp_path):
    files = seed_files.dgpref(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/names.json").write_text('["other"]')
    said = run("feedback", "export", files["captions"], "--as", "dgpref.captions", "-o", tmp_path / "out/raw.pkl")
    assert said.endswith("names.json is of other captions: write to another folder")
    assert not (tmp_path / "out/raw.pkl").exists() and (tmp_path / "out/names.json").read_text() == '["other"]'
