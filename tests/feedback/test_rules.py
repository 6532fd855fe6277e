"""Pairs, SFT sets and SteerLM texts from scored answers: the published rules, as pure functions."""

import json
import pickle
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from mmfast.cli.data import app
from mmfast.data.formats.known import read_records
from mmfast.feedback import expert_scores as experts
from mmfast.feedback.answers import Answer, read_answers
from mmfast.feedback.candidates import score_of
from mmfast.feedback.expert_scores import caption_score, expert_answers, parse_decomposition
from mmfast.feedback.rules import (
    ASKED,
    RULES,
    balanced,
    choose_pairs,
    every_answer,
    every_pair,
    flip_labels,
    hindsight,
    rejection_sample,
    steerlm,
    subset,
)
from tests.make import format_samples as samples


def scored(question, text, *values, **more):
    names = ("Helpfulness", "Correctness", "Coherence", "Complexity", "Verbosity")
    given = {"key": text, "row": 0, "source": "", "prompt": ({"role": "user", "content": question},)} | more
    return Answer(group=question, text=text, scores=dict(zip(names, values, strict=False)), **given)


GROUPS = [
    scored("q1", "good", 4, 4, 4, 1, 1), scored("q1", "also", 4, 4, 4, 2, 2), scored("q1", "near", 4, 4, 3, 0, 0),
    scored("q1", "bad", 1, 1, 1, 0, 0), scored("q1", "worse", 0, 0, 1, 0, 0),
    scored("q2", "a", 3, 3, 3, 0, 0), scored("q2", "b", 3, 3, 2, 0, 0),
]  # fmt: skip


def test_mllm_dpo_rule():
    drawn = set()
    for seed in range(20):
        records, told = choose_pairs(GROUPS, RULES["mllm_dpo"], seed)
        (record,) = records
        assert record.chosen[0]["content"] == "good" and record.scores["chosen"] == 12
        drawn.add(record.rejected[0]["content"])
        assert told == {"groups": 2, "groups without a pair": 1, "pairs": 1}
    assert drawn == {"bad", "worse"}  # "near" is within the margin
    (old,), _ = choose_pairs(GROUPS, RULES["mllm_dpo_minmax"], 0)
    assert old.rejected[0]["content"] == "worse"


def test_the_draw_does_not_depend_on_other_groups():
    (alone,), _ = choose_pairs(GROUPS[:5], RULES["mllm_dpo"], 3)
    both, _ = choose_pairs(GROUPS[5:] + GROUPS[:5], RULES["mllm_dpo"], 3)
    assert both[0].rejected == alone.rejected


def test_rlaifv_rule(tmp_path):
    wrong = {"one two three": [0, 0], "one two three four": [0, 1], "one two three four five six": [1, 1], "x": [1, 1]}
    base = {"image_path": "a.png", "question": "q"}
    rows = [
        base | {"answer": text, "claims": [[f"c{i}", not bad] for i, bad in enumerate(flags)]}
        for text, flags in wrong.items()
    ]
    rows.append(base | {"answer": "lost", "claims": [["c", True]], "facts": ["a", "b"]})
    path = tmp_path / "claims.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    problems = []
    found = list(read_answers(path, problems=problems))
    assert [c.scores["claims"] for c in found] == [0, -1, -2, -2] and problems[0].kind == "claims"
    rule = replace(RULES["rlaifv"], per_prompt=0, balance=False)
    every, _ = choose_pairs(found, rule, 0)
    assert {(r.scores["chosen"], r.scores["rejected"]) for r in every} == {(0, -1), (0, -2), (-1, -2)}
    assert len(every) == 5 and every[0].meta["claims"]["chosen"] == [["c0", True], ["c1", True]]
    two, told = choose_pairs(found, replace(RULES["rlaifv"], balance=False), 0)
    assert len(two) == 2 and told["pairs"] == 2


def test_length_balance_picks_the_threshold_that_evens_lengths():
    def pair(chosen, rejected):
        return scored("q", "c " * chosen), scored("q", "r " * rejected)

    pairs = [pair(10, 10), pair(12, 10), pair(10, 12), pair(10, 40), pair(5, 50)]
    kept, balance = balanced(pairs)
    assert kept == pairs[:3] and balance.chosen_words == balance.rejected_words
    best = None
    for step in range(50):  # the same by brute force
        left = [(len(a.text.split()), len(b.text.split())) for a, b in pairs]
        left = [(a, b) for a, b in left if (b - a) / b <= step * 0.02 + 1e-12]
        error = abs(sum(a for a, _ in left) - sum(b for _, b in left)) / sum(b for _, b in left)
        if best is None or error < best[0]:
            best = (error, step * 0.02)
    assert balance.threshold == pytest.approx(best[1])
    assert balanced([pair(3, 3)][:0]) == ([], balanced([])[1])


def test_length_balance_drops_pairs_that_differ_in_outer_blanks_only():
    pairs = [
        (scored("q", "A red mug."), scored("q", text))
        for text in (" A red mug.", "A red mug.\n", "A cat.", "a red mug.")
    ]
    kept, _ = balanced(pairs)
    assert [worse.text for _, worse in kept] == ["A cat.", "a red mug."]


EXPERTS = {
    "all_program": [
        {"obj_check": ["dog", "buckets", "image", "dog"], "count_check": [(2, "buckets"), (3, "dog")],
         "attribute_check": [("brown", "dog"), ("red", "cat")], "scale_check": [("large", "dog")],
         "spatial_check": [("dog", "left", "image")], "text_check": ["OPEN"],
         "relation_check": [("dog", "beside", "bucket")]},
        {"obj_check": ["cat"]},
        {},
    ],
    "expert_scores": {
        "object_result": {"dog": {"scores": [0.6], "bboxs": [[0, 0, 1, 1]]}, "bucket": {"bboxs": [[1]]},
                          "buckets": {"bboxs": [[1], [2]]}, "cat": {"bboxs": []}},
        "attribute_result": {"scores": {"brown###dog": 1, "red###cat": -2}},
        "relation_result": {"scores": {"dog###beside###bucket": -1}},
        "scale_result": {"large###dog": -1}, "spatial_result": {"dog###left###image": 0},
        "text_result": {"scores": {"OPEN": 1}},
    },
}  # fmt: skip


SINGULAR = {"buckets": "bucket", "men": "man", "lights": "light"}


def singular(word):
    return SINGULAR.get(word.lower(), word.lower())


@pytest.fixture
def own_singulars(monkeypatch):
    """The words of these tests, so that they run without the package inflect."""
    monkeypatch.setattr(experts, "singulars", lambda: singular)


def test_dgpref_caption_scores(own_singulars):
    program, found = EXPERTS["all_program"], EXPERTS["expert_scores"]
    # objects +1 +1, counts +1 -1, attributes +1 (-2), scale -1, spatial 0, text +1
    assert caption_score(program[0], found) == -2 / 7
    assert caption_score(program[0], found, ("relation",)) == -1
    assert caption_score(program[0], found, ("scale", "scale", "object")) == -2 / 4
    assert caption_score(program[0], found, average=False) == -2
    assert caption_score(program[0], found, ("object",), skip=("dog", "buckets")) == 0
    assert caption_score(program[1], found) == -1 and caption_score(program[2], found) == 0
    with pytest.raises(ValueError, match="unknown aspect 'colour'"):
        caption_score(program[0], found, ("colour",))


BOXES = {"man": 1, "men": 0, "light": 0, "lights": 2, "person": 1, "Dog": 1, "body of water": 0, "water": 0}


@pytest.mark.parametrize(
    ("aspect", "item", "skip", "want"),
    [
        ("object", "men", (), 1),  # its singular was found, whatever its own entry says
        ("object", "Men", (), 1),  # in lower case
        ("object", "lights", (), -1),
        ("object", "lights", ("light",), -1),  # vague words are compared as they stand
        ("object", "light", ("light",), None),
        ("object", "Dog", (), 1),  # no entry in lower case: its own
        ("object", "image", (), None),
        ("object", "images", (), -1),
        ("count", (2, "lights"), (), 1),  # of its own name's boxes
        ("count", (1, "men"), (), None),  # not of its singular's
        ("count", (1, "man"), (), 1),
    ],
)
def test_dgpref_judges_by_the_names_it_looks_up(aspect, item, skip, want):
    found = {"object_result": {name: {"scores": [0.5] * n, "bboxs": [[0]] * n} for name, n in BOXES.items()}}
    program = {"obj_check" if aspect == "object" else "count_check": [item]}
    score = caption_score(program, found, (aspect,), average=False, skip=skip, singular=singular)
    given = experts.verdicts(program, found, aspect, experts.WHOLE_IMAGE | set(skip), singular)
    assert [v for _, v in given if v in (1, -1)] == ([] if want is None else [want]) and score == min(0, want or 0)


def test_singulars_are_inflects():
    pytest.importorskip("inflect")
    found = experts.singulars()
    words = {"men": "man", "Wolves": "wolf", "leaves": "leaf", "buses": "bus", "geese": "goose", "people": "person",
             "sheep": "sheep", "Dog": "dog", "bus": "bu", "": "", " ": " ", "2": "2"}  # fmt: skip
    assert {w: found(w) for w in words} == words


def test_without_inflect_one_line_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "inflect", None)
    with pytest.raises(ValueError, match=r"^DGPref's scores need .* inflect: (pip install 'inflect|see dgpref)"):
        caption_score({}, {})


def test_a_margin_is_compared_as_floats_are():
    found = [scored("q", str(s), 0, 0, 0) for s in range(3)]
    values = dict(zip(("0", "1", "2"), (-0.4, -0.7, -0.1), strict=True))
    pairs = every_pair(found, lambda c: values[c.text], 0.3, 0)
    assert [(a.text, b.text) for a, b in pairs] == [("2", "0"), ("2", "1")]  # as in DGPref, -0.4 against -0.7 is none


def test_a_skip_file_has_one_name_a_line(own_singulars, tmp_path):
    boxes = {"water": {"bboxs": []}, "body of water": {"bboxs": []}, "dog": {"bboxs": [[0]]}}
    programs = [{"obj_check": ["dog", "water"]}, {"obj_check": ["dog", "body of water"]}, {"obj_check": ["dog"]}]
    table = {"6": {"all_program": programs, "expert_scores": {"object_result": boxes}}}
    (tmp_path / "scores.pkl").write_bytes(pickle.dumps(table))
    (tmp_path / "raw.pkl").write_bytes(pickle.dumps({f"0_{k}": f"caption {k}" for k in range(3)}))
    (tmp_path / "names.json").write_text(json.dumps(["6"]))
    (tmp_path / "prompts.txt").write_text("a?\nb?\nc?\n")
    (tmp_path / "skip.txt").write_text("body of water\r\n\n  other person \n", encoding="utf-8")
    call = ["pairs", str(tmp_path / "scores.pkl"), "--rule", "dgpref", "--captions", str(tmp_path / "raw.pkl"),
            "--skip", str(tmp_path / "skip.txt"), "-o", str(tmp_path / "out.jsonl")]  # fmt: skip
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    told = [(r.chosen[0]["content"], r.rejected[0]["content"]) for r in read_records(tmp_path / "out.jsonl")]
    assert told == [("caption 1", "caption 0"), ("caption 2", "caption 0")]  # water is judged, a body of water is not


def test_dgpref_pairs_end_to_end(own_singulars, tmp_path, picture):
    picture("7.jpg")
    (tmp_path / "scores.pkl").write_bytes(pickle.dumps({"7": EXPERTS}))
    (tmp_path / "raw.pkl").write_bytes(pickle.dumps({f"1_{k}": f"caption {k}" for k in range(3)}))
    (tmp_path / "names.json").write_text(json.dumps(["6", "7"]))
    (tmp_path / "prompts.txt").write_text("a?\nb?\nc?\n")
    found = list(expert_answers(tmp_path / "scores.pkl", tmp_path / "raw.pkl", options={"root": tmp_path}))
    records, _ = choose_pairs(found, RULES["dgpref"], 0)
    told = [(r.chosen[0]["content"], r.rejected[0]["content"]) for r in records]
    assert told == [("caption 0", "caption 1"), ("caption 2", "caption 1")]  # 0 and 2 are 0.29 apart
    assert records[0].meta["claims"]["rejected"] == [["cat", False]]
    assert records[0].chosen_prompt[0]["content"][1]["text"] == "a?" and records[0].images == ("7.jpg",)


def test_decomposition_grammar():
    found = parse_decomposition(
        {"attribute": " (brown, dog); (dog, dog); (a, b, c)", "count": " (2, buckets); (several, cats)",
         "entity": " NONE", "relation": " (dog, beside, bucket); (x, y)"}
    )  # fmt: skip
    assert found == {"attribute": [("brown", "dog")], "count": [("two", "buckets")], "entity": [],
                     "relation": [("dog", "beside", "bucket")]}  # fmt: skip
    assert parse_decomposition({"entity": "(dog, cat)"})["entity"] == [("dog",), ("cat",)]


def test_rejection_sampling():
    score = score_of("Helpfulness + Correctness + Coherence")
    assert [r.chosen[0]["content"] for r in rejection_sample(GROUPS, score)] == ["good", "a"]
    assert [r.chosen[0]["content"] for r in rejection_sample(GROUPS, score, minimum=12)] == ["good"]
    longest = rejection_sample([*GROUPS[:2], scored("q1", "the longest", 4, 4, 4)], score, ties="longest")
    assert longest[0].chosen[0]["content"] == "the longest"
    drawn = {rejection_sample(GROUPS, score, ties="random", seed=s)[0].chosen[0]["content"] for s in range(20)}
    assert drawn == {"good", "also"}
    with pytest.raises(ValueError, match="'last' is not one of first, random"):
        rejection_sample(GROUPS, score, ties="last")
    assert len(every_answer([*GROUPS, GROUPS[0]])) == 7


def test_score_expressions():
    candidate = scored("q", "t", 4, 2, 1, source="f:3")
    assert score_of("-(Helpfulness - 2 * Correctness) / 2 + max(Coherence, 3)")(candidate) == 3
    with pytest.raises(ValueError, match=r"^no score Kindness \(it has Coherence, Correctness, Helpfulness\)"):
        score_of("Kindness")(candidate)
    with pytest.raises(ValueError, match=r"^f:3: no score Kindness"):
        choose_pairs([candidate], replace(RULES["mllm_dpo"], score="Kindness"), 0)
    with pytest.raises(ValueError, match="divides by zero"):
        score_of("1 / (Coherence - 1)")(candidate)
    for bad in ("__import__('os')", "a.b", "a if b else c", "'x'"):
        with pytest.raises(ValueError, match="--score"):
            score_of(bad)(candidate)
    with pytest.raises(ValueError, match="not an expression"):
        score_of("1 +")


def test_steerlm():
    record = steerlm(GROUPS[:1])[0]
    asked = record.prompt[0]["content"]
    assert asked.startswith("q1\nPlease answer")
    assert asked.endswith(": Helpfulness:4,Correctness:4,Coherence:4,Complexity:1,Verbosity:1")
    assert asked == f"q1{ASKED}Helpfulness:4,Correctness:4,Coherence:4,Complexity:1,Verbosity:1"
    (two,) = hindsight(GROUPS, score_of("Helpfulness + Correctness + Coherence"), 10, 0)
    roles = [m["role"] for m in (*two.prompt, *two.chosen)]
    assert roles == ["user", "assistant", "user", "assistant"]
    assert two.prompt[1]["content"] == "worse" and two.chosen[0]["content"] == "good"
    assert "has Helpfulness:0,Correctness:0,Coherence:1," in two.prompt[2]["content"]
    assert two.prompt[2]["content"].endswith("has Helpfulness:4,Correctness:4,Coherence:4,Complexity:1,Verbosity:1")
    with pytest.raises(ValueError, match="no score Complexity"):
        steerlm([scored("q", "t", 1, 1, 1, source="f:0")])


def test_flips_and_subsets(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(samples.TRL[0] | {"id": str(i)}) + "\n" for i in range(40)))
    records = list(read_records(path))
    flipped = flip_labels(records, 0.25, 5)
    assert sum("flipped" in r.meta for r in flipped) == 10
    one = next(r for r in flipped if "flipped" in r.meta)
    assert one.chosen == records[0].rejected and one.segments == {"rejected": [(2, 5, 2.0)], "chosen": [(2, 6)]}
    assert one.scores == {"rejected": 1.0, "chosen": 0.0}
    assert flipped == flip_labels(records, 0.25, 5) != flip_labels(records, 0.25, 6)
    half, quarter = subset(records, 0.5, 1), subset(records, 0.25, 1)
    assert len(half) == 20 and {r.id for r in quarter} < {r.id for r in half}
