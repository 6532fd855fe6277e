"""Benchmarks' questions asked of an engine: image by image, turn by turn, killed and gone on with, on several ranks."""

import json
import signal
from itertools import pairwise

import pytest

from mmfast.data.text.templates import text_of
from mmfast.engines import stage
from mmfast.engines.local import Local
from mmfast.engines.plain import Plain
from mmfast.evals.answering import LEAST, PRESETS, asking, attributes_of, spread
from mmfast.evals.base import Benchmark, Question
from mmfast.evals.scoring import score
from mmfast.feedback.answer import Answer
from mmfast.feedback.rules import steerlm
from tests.make.engine_cases import ALL, Fake
from tests.make.eval_cases import Talk, Toy, ask, toy, write_pope, write_talk, write_toy
from tests.make.rank_processes import CONTEXT, run_ranks


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class Noted(Fake):
    """Keeps what it was asked."""

    def __init__(self, **options):
        super().__init__(**options)
        self.requests = []

    def answer(self, requests):
        def noted():
            for request in requests:
                self.requests.append(request)
                yield request

        return super().answer(noted())


@pytest.fixture
def data(tmp_path):
    return write_toy(tmp_path / "data")


def test_answers_have_a_header_that_says_what_made_them(data, tmp_path):
    tally = ask(toy(data), tmp_path / "out")
    header, *found = lines(tmp_path / "out" / "answers.jsonl")
    assert tally.rows == 12 and not tally.failed
    assert [row["id"] for row in found] == [f"q{n}" for n in range(12)]
    assert header["bench"] == "toy" and header["wording"] == "short" and header["decode"]["max_tokens"] == 8
    assert list(header["data"]) == ["toy.jsonl"] and len(header["data"]["toy.jsonl"]) == 64
    other = tmp_path / "other"
    ask(toy(data), other, Fake(name="another"))
    assert lines(other / "answers.jsonl")[0]["made_by"] != header["made_by"]


def test_the_questions_of_an_image_are_asked_together(data, tmp_path):
    engine = Noted()
    ask(toy(data), tmp_path / "out", engine)
    images = [request.images[0].id for request in engine.requests]
    assert len(images) == 12 and sum(a != b for a, b in pairwise(images)) == 3
    message = engine.requests[0].messages[0]
    assert message["content"][0] == {"type": "image"} and text_of(message) == "Is it so? 0 Say yes or no."


def test_a_question_of_several_parts_is_asked_once_and_answered_in_each(tmp_path):
    folder, _ = write_pope(tmp_path / "data")
    engine = Fake()
    tally = ask(asking("pope", folder, wording="bare"), tmp_path / "out", engine)
    _, *found = lines(tmp_path / "out" / "answers.jsonl")
    assert engine.asks == 16 and tally.repeated == 8 and len(found) == 24  # 4 that are there, in three parts


def test_a_killed_process_goes_on(data, tmp_path):
    ask(toy(data), tmp_path / "whole")
    process = CONTEXT.Process(target=ask, args=(toy(data), tmp_path / "out", Fake(dies=6)))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL and not (tmp_path / "out" / "answers.jsonl").exists()
    standing = len(list(stage.rows(tmp_path / "out" / "turn-1")))
    engine = Fake()
    ask(toy(data), tmp_path / "out", engine)
    assert standing > 0 and engine.asks == 12 - standing
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == (tmp_path / "whole" / "answers.jsonl").read_bytes()
    again = Fake()
    ask(toy(data), tmp_path / "out", again)
    assert again.asks == 0


def test_two_ranks_write_the_file_of_one(tmp_path):
    data = write_toy(tmp_path / "data", images=8)
    ask(toy(data), tmp_path / "one")
    talk = asking(Talk(), write_talk(tmp_path / "talk", 7))
    ask(talk, tmp_path / "talk-1", Fake(name="f"))
    run_ranks(2, tmp_path, ask, toy(data), tmp_path / "two")
    run_ranks(2, tmp_path, ask, talk, tmp_path / "talk-2", Fake(name="f"))
    assert len(list((tmp_path / "two" / "turn-1").glob("rows-*"))) == 2
    for one, two in (("one", "two"), ("talk-1", "talk-2")):
        assert (tmp_path / two / "answers.jsonl").read_bytes() == (tmp_path / one / "answers.jsonl").read_bytes()


def test_a_second_turn_stands_behind_the_models_own_answer(tmp_path):
    engine = Noted()
    talk = asking(Talk(), write_talk(tmp_path / "data"))
    ask(talk, tmp_path / "out", engine)
    _, *found = lines(tmp_path / "out" / "answers.jsonl")
    assert "text" in found[0] and [len(row["turns"]) for row in found[1:]] == [2, 2, 2]
    later = [request for request in engine.requests if len(request.messages) == 4]
    assert len(later) == 3
    for request, row in zip(sorted(later, key=lambda r: text_of(r.messages[1])), found[1:], strict=True):
        assert [m["role"] for m in request.messages] == ["system", "user", "assistant", "user"]
        assert text_of(request.messages[2]) == row["turns"][0]
    drawn = {text_of(r.messages[1]): (r.decode.temperature, r.decode.seed) for r in later}
    assert drawn == {"What is 1?": (0.7, 1), "What is 2?": (0.0, 0), "What is 3?": (0.7, 3)}
    assert talk.needs == {"sample"}


def test_a_turn_that_failed_has_no_next_one_and_no_answer(tmp_path):
    engine = Noted(wrong="What is 2?")
    talk = asking(Talk(), write_talk(tmp_path / "data"))
    tally = ask(talk, tmp_path / "out", engine)
    _, *found = lines(tmp_path / "out" / "answers.jsonl")
    assert tally.failed == 1 and [row["id"] for row in found] == ["0", "1", "3"]
    assert ask(talk, tmp_path / "out").failed == 0  # another start tries it again
    assert len(lines(tmp_path / "out" / "answers.jsonl")) == 5


def test_other_settings_are_refused_by_name(data, tmp_path):
    ask(toy(data), tmp_path / "out")
    for changes, part in (
        ({"wording": "bare"}, "wording was"),
        ({"max_tokens": 9}, "decode.max_tokens was 8 and is 9"),
        ({"attributes": "4,4,4,2,2"}, "attributes was"),
    ):
        with pytest.raises(ValueError, match=part):
            ask(toy(data, **changes), tmp_path / "out")
    text = (data / "toy.jsonl").read_text()
    (data / "toy.jsonl").write_text(text.replace("so?", "true?"))
    with pytest.raises(ValueError, match=r"data.toy.jsonl was .* and is"):
        ask(toy(data), tmp_path / "out")


def test_steerlms_attributes_are_the_text_of_training(data, tmp_path):
    engine = Noted()
    ask(toy(data, wording="bare", attributes="4,4,4,2,1.5"), tmp_path / "out", engine)
    scores = {"Helpfulness": 4, "Correctness": 4, "Coherence": 4, "Complexity": 2, "Verbosity": 1.5}
    prompt = ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is it so? 0"}]},)
    trained = steerlm(
        [Answer(key="k", row=0, source="", group="g", prompt=prompt, text="yes", images=("0.png",), scores=scores)]
    )
    assert text_of(engine.requests[0].messages[0]) == text_of(trained[0].prompt[-1])
    assert attributes_of("Helpfulness:3, Humour:0") == {"Helpfulness": 3, "Humour": 0}
    for wrong in ("4,4", "4,4,4,2,x", "4,4,4,2,5", "Helpfulness:", ":3"):
        with pytest.raises(ValueError, match="--attributes"):
            attributes_of(wrong)


def test_presets_change_how_answers_are_drawn(data):
    assert toy(data).decode.max_tokens == 8
    beam = toy(data, preset="rlhfv")
    assert (beam.decode.beams, beam.decode.max_tokens, beam.needs) == (3, 1024, {"beams", "images"})
    assert toy(data, preset="llava", wording="drawn").decode.temperature == 0 and "dgpref" in PRESETS
    with pytest.raises(ValueError, match="unknown preset 'x'"):
        toy(data, preset="x")
    with pytest.raises(ValueError, match="toy has no wording 'x'; there are short, bare, drawn"):
        toy(data, wording="x")
    with pytest.raises(ValueError, match="did you mean pope"):
        asking("pop", data)


def test_a_limit_asks_the_first_and_says_so(data, tmp_path):
    ask(toy(data, limit=5), tmp_path / "out")
    header, *found = lines(tmp_path / "out" / "answers.jsonl")
    assert header["limit"] == 5 and [row["id"] for row in found] == [f"q{n}" for n in range(5)]
    engine = Fake()
    ask(toy(data), tmp_path / "out", engine)  # the rest
    assert engine.asks == 7 and len(lines(tmp_path / "out" / "answers.jsonl")) == 13


def test_a_limit_below_one_asks_whole_images_evenly_through_the_benchmark():
    asked = [Question(id=f"{kind}{n}", turns=("q",), unit=f"{kind}{n // 2}") for kind in "abc" for n in range(40)]
    kept = spread(asked, 0.15)  # 9 of 60 images
    assert [q.unit for q in kept[::2]] == [f"{kind}{n}" for kind in "abc" for n in (0, 6, 13)]
    assert [q.unit for q in kept[::2]] == [q.unit for q in kept[1::2]]
    assert len({q.unit for q in spread(asked, 0.001)}) == LEAST and spread(asked[:6], 0.001) == asked[:6]


def test_a_share_is_asked_and_scored_and_says_so(tmp_path, monkeypatch):
    data = write_toy(tmp_path / "data", 24)
    monkeypatch.setattr("mmfast.evals.answering.LEAST", 2)
    asked = toy(data, limit=0.5)
    assert 0 < len(asked.questions) < len(toy(data).questions)
    ask(asked, tmp_path / "out")
    assert len(lines(tmp_path / "out" / "answers.jsonl")) == 1 + len(asked.questions)
    result = score(Toy(), tmp_path / "out", data=data)
    assert result.counts["questions"] == len(asked.questions) and "only 50.00% of the images were asked" in result.notes
    with pytest.raises(ValueError, match=r"limit = 1\.5: write a whole number of questions, or a share below 1"):
        toy(data, limit=1.5)


def test_images_that_are_not_there_are_told_first_or_one_by_one(data, tmp_path):
    with pytest.raises(ValueError, match="name the folder of toy's images with --images"):
        toy(data, images=tmp_path / "nowhere")
    (data / "2.png").unlink()
    (data / "3.png").write_bytes(b"no image")
    tally = ask(toy(data), tmp_path / "out")
    failed = [json.loads(line)["error"] for line in (tmp_path / "out" / "turn-1" / "failed.jsonl").open()]
    assert tally.failed == 6 and sum("No such file" in text for text in failed) == 3
    assert {row["id"] for row in lines(tmp_path / "out" / "answers.jsonl")[1:]} == {
        f"q{n}" for n in range(12) if n % 4 < 2
    }


def test_the_data_says_what_is_missing_and_where_it_is(tmp_path):
    with pytest.raises(ValueError, match="there is no such folder"):
        toy(tmp_path / "none")
    with pytest.raises(ValueError, match=r"has no toy.jsonl: toy needs its questions, .* example.org \(CC0\)"):
        toy(tmp_path)
    (tmp_path / "toy.jsonl").write_text("")
    with pytest.raises(ValueError, match="has no question there"):
        toy(tmp_path)
    row = {"id": "a", "number": 1, "image": "0.png", "text": "?", "yes": True}
    (tmp_path / "toy.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    with pytest.raises(ValueError, match="two questions 'a'"):
        toy(tmp_path)


def test_an_engine_that_cannot_is_refused_for_each_question(data, tmp_path):
    engine = Fake()
    engine.can = ALL - {"sample"}
    assert ask(toy(data, wording="drawn"), tmp_path / "out", engine).failed == 12


@pytest.fixture(scope="module")
def pope(tmp_path_factory):
    return write_pope(tmp_path_factory.mktemp("pope"), 2)[0]


def test_the_packed_engine_answers_as_transformers_does(tiny, pope, tmp_path):
    """End to end on a tiny LLaVA: every answer of the benchmark is that of a row at a time."""
    asked = asking("pope", pope, wording="bare", max_tokens=6)
    ask(asked, tmp_path / "local", Local(str(tiny[0])))
    ask(asked, tmp_path / "plain", Plain(str(tiny[0])))
    local, plain = (lines(tmp_path / name / "answers.jsonl") for name in ("local", "plain"))
    assert local[1:] == plain[1:] and len(local) == 13
    assert len({row["text"] for row in local[1:]}) > 1
    assert local[0]["weights"] == plain[0]["weights"] and local[0]["template"] and plain[0]["template"]


def test_a_benchmark_without_marks_is_no_benchmark():
    with pytest.raises(NotImplementedError):
        list(Benchmark().questions(None, None))
    assert Toy.layout == "llava"


def test_of_several_benchmarks_each_takes_the_flavour_and_wording_that_it_has():
    from mmfast.cli.eval import _check_scoring, _each

    names = ["chair", "mmhal", "pope"]
    assert _each(names, "sima,rlaif-v", "--flavour", "flavours") == {"chair": "sima", "mmhal": "rlaif-v", "pope": ""}
    assert _each(names, "", "--wording", "wordings") == dict.fromkeys(names, "")
    # and the judge, where its flavour asks one
    several = dict.fromkeys(("mmbench", "mm-vet", "pope", "qbench", "objhal"), "") | {"objhal": "rules"}
    assert _check_scoring(several, False, "URL", 1) == ["mm-vet"]
    assert _check_scoring(several | {"mmbench": "judge", "objhal": ""}, False, "URL", 1) == [
        "mmbench", "mm-vet", "objhal",
    ]  # fmt: skip
    for name, flavour in (
        ("mmbench", "exact"),
        ("objhal", "rules"),
        ("hallusionbench", "yes-no"),
        ("pope", "official"),
    ):
        with pytest.raises(ValueError, match=f"--judge has no effect: {name} is scored without one"):
            _check_scoring({name: flavour}, False, "URL", 1)
    with pytest.raises(ValueError, match="--flavour: none of chair, mmhal, pope has 'siam'"):
        _each(names, "sima,siam", "--flavour", "flavours")
    with pytest.raises(ValueError, match="chair has no 'siam'; there are original"):  # of one, in its own words
        _check_scoring(_each(["chair"], "siam", "--flavour", "flavours"), False, "", 1)
