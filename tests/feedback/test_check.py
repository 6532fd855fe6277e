"""Who checks what is data; every mistake in it is told before anything is opened, and nothing is judged that cannot
be."""

import json
import sys
from collections import Counter

import pytest
from typer.testing import CliRunner

from mmfast.cli.app import app
from mmfast.engines.base import Reply
from mmfast.engines.local import Local
from mmfast.engines.plain import Plain
from mmfast.engines.stage import rows
from mmfast.feedback.check import Verdicts
from mmfast.feedback.experts.grammar import Likely
from mmfast.feedback.items import Item, item_of
from mmfast.feedback.panel import TOGETHER
from mmfast.feedback.prompts import prompt
from mmfast.feedback.routing import known, open_experts, read_routing
from mmfast.world.dataset import WorldSpec, read_scenes, write_world
from tests.make.blip import write_blip
from tests.make.detectors import classifier, write_owl
from tests.make.engine_cases import Fake
from tests.make.feedback_cases import checked, decomposed, write_answers, write_captions
from tests.make.local_cases import model_folder
from tests.make.rank_processes import run_ranks


def write_items(folder, rows_of_items):
    """(images, items) of each answer, as decompose writes them."""
    folder.mkdir(parents=True)
    template = {"by hand": {"name": "by hand", "version": 1, "digest": "0" * 64}}
    (folder / "manifest.json").write_text(json.dumps({"stage": "decompose", "complete": True, "template": template}))
    with (folder / "rows-0.jsonl").open("w") as file:
        for number, (images, items) in enumerate(rows_of_items):
            row = {"key": f"k{number}.0", "row": number, "answer_key": f"a{number}", "images": [str(i) for i in images]}
            row |= {"items": [item.row() for item in items], "template": "by hand:" + "0" * 16}
            file.write(json.dumps(row) + "\n")
    return folder


class Asked(Fake):
    """Yes to all; counts what it was asked, and in which order of images."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen = []

    def reply(self, request, sample):
        text = request.messages[-1]["content"][-1]["text"]
        self.seen.append((request.images[0].id if request.images else "", text))
        if self.wrong and self.wrong in text:
            return Reply(key=request.key, finish="error", error="the prompt is longer than the window")
        return Reply(
            key=request.key, labels={label: -0.1 if label.lower() == "yes" else -3.0 for label in request.labels}
        )


def table(folder, text):
    (folder / "mine.toml").write_text(text)
    return folder / "mine.toml"


ASKED = '[experts.asked]\nuse = "yesno"\n[route]\n'


@pytest.fixture
def two(picture):
    return picture("one.png", 1), picture("two.png", 2)


def test_each_item_of_an_image_is_asked_once_and_images_come_together(tmp_path, two):
    one, other = two
    dog, cat, red = (item_of("entity", ("dog",)), item_of("entity", ("cat",)), item_of("attribute", ("red", "dog")))
    source = write_items(
        tmp_path / "items", [([one], [dog, cat]), ([other], [dog]), ([one], [red, dog]), ([other], [dog])]
    )
    engine = Asked()
    tally = checked(
        source, tmp_path / "out", table(tmp_path, ASKED + 'object = "asked"\nattribute = "asked"\n'), engine
    )
    asked = [text.split(" Please")[0] for _, text in engine.seen]
    assert sorted(asked) == ["Is the dog red?", "Is there a cat?", "Is there a dog?", "Is there a dog?"]
    assert tally.rows == 4 and tally.also["object true"] == 3 and tally.also["attribute true"] == 1
    said = Counter(row["answers"] for row in rows(tmp_path / "out"))
    assert said == {1: 2, 2: 2}
    assert Verdicts(tmp_path / "out").of((str(one),), dog)["verdict"] == 1
    assert Verdicts(tmp_path / "out").of((str(other),), cat) is None
    # The same bytes under another name are the same image
    copy = tmp_path / "copy.png"
    copy.write_bytes(one.read_bytes())
    assert Verdicts(tmp_path / "out").of((str(copy),), dog)["verdict"] == 1


def test_what_names_nothing_is_open_and_counted(tmp_path, two):
    odd = [
        Item(kind="object", args=("",), claim=""),
        Item(kind="object", args=("...",), claim="..."),
        item_of("entity", ("background",)),
        item_of("attribute", ("blurry", "image")),
        item_of("attribute", ("several", "dogs")),
        item_of("relation", ("scene", "left of", "dog")),
        Item(kind="claim", claim="A dog."),
        Item(kind="count", args=("two",), claim="two"),
        item_of("entity", ("犬",)),
    ]
    source = write_items(tmp_path / "items", [([two[0]], odd)])
    routes = "".join(f'{kind} = "asked"\n' for kind in ("object", "attribute", "spatial", "claim", "count"))
    tally = checked(source, tmp_path / "out", table(tmp_path, ASKED + routes), Asked())
    found = {(row["kind"], row["claim"]): row for row in rows(tmp_path / "out")}
    assert found["object", "犬"]["verdict"] == 1 and sum(row["verdict"] for row in found.values()) == 1
    nothing, whole = "it names nothing", "it is about the picture as a whole"
    several, unasked = "'several' is nothing that can be seen of one thing", "there is no question to ask"
    told = [found[item.kind, item.claim]["evidence"]["why"] for item in odd[:-1]]
    assert told == [nothing, nothing, whole, whole, several, whole, unasked, nothing]
    assert tally.also["open: it names nothing"] == 3 and tally.failed == 0


def test_subjects_and_filters(tmp_path, two):
    """Of things that are not there nothing is asked, and no question that is not English."""
    write_owl(tmp_path / "owl")
    classifier(tmp_path / "cola")
    text = f"""
[experts.eyes]
use = "owl"
model = "{tmp_path / "owl"}"
threshold = THRESHOLD
[experts.grammar]
use = "cola"
model = "{tmp_path / "cola"}"
least = LEAST
[experts.asked]
use = "yesno"
[route]
object = "eyes"
[route.attribute]
expert = "asked"
subjects = "eyes"
filter = "grammar"
"""
    items = [item_of("entity", ("dog",)), item_of("attribute", ("red", "dog")), item_of("attribute", ("blue", "cat"))]
    source = write_items(tmp_path / "items", [([two[0]], items)])
    for threshold, least, verdicts, asked in (
        (0.0, 0.0, [1, 1, 1], 2),
        (0.99999, 0.0, [-1, -2, -2], 0),
        (0.0, 1.0, [1, 0, 0], 0),
    ):
        engine = Asked()
        told = text.replace("THRESHOLD", str(threshold)).replace("LEAST", str(least))
        out = tmp_path / f"out-{threshold}-{least}"
        checked(source, out, table(tmp_path, told), engine)
        by_claim = {row["claim"]: row for row in rows(out)}
        found = [by_claim[item.claim] for item in items]
        assert [row["verdict"] for row in found] == verdicts and len(engine.seen) == asked
        if verdicts[1] == -2:
            assert found[1]["evidence"] == {"missing": ["dog"]} and found[1]["question_ok"] is None
        if verdicts[1] == 0:
            assert found[1]["question_ok"] is False and found[1]["evidence"]["question_score"] < 1
        if verdicts[1] == 1:
            assert found[1]["question_ok"] is True and found[1]["p_yes"] == pytest.approx(0.948, abs=1e-3)


def test_names_compete_with_all_names_of_their_image_whatever_is_asked_anew(tmp_path, two):
    """Chunks are of the image's whole list of names, so a check that goes on sees what the first one saw."""
    write_owl(tmp_path / "owl")
    eyes = f'[experts.eyes]\nuse = "owl"\nmodel = "{tmp_path / "owl"}"\n'
    text = eyes + 'threshold = 0.3\nchunk = 8\n[route]\nobject = "eyes"\n'
    names = ["dog", "puppy", "cat", "bucket", "kite", "boy", "house", "tree", "red", "two", "star", "cross"]
    source = write_items(tmp_path / "items", [([two[0]], [item_of("entity", (name,)) for name in names])])
    checked(source, tmp_path / "whole", table(tmp_path, text))
    checked(source, tmp_path / "torn", table(tmp_path, text))
    kept = (tmp_path / "torn" / "rows-0.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "torn" / "rows-0.jsonl").write_text("".join(kept[1::3]))
    assert checked(source, tmp_path / "torn", table(tmp_path, text)).new == 8
    assert list(rows(tmp_path / "torn")) == list(rows(tmp_path / "whole"))
    assert len({row["verdict"] for row in rows(tmp_path / "whole")}) == 2


def test_failures_are_kept_and_told(tmp_path, two):
    dog, cat = item_of("entity", ("dog",)), item_of("entity", ("cat",))
    gone = tmp_path / "gone.png"
    source = write_items(tmp_path / "items", [([two[0]], [dog, cat]), ([gone], [dog]), ([], [cat])])
    mine = table(tmp_path, ASKED + 'object = "asked"\n')
    tally = checked(source, tmp_path / "out", mine, Asked(wrong="cat"))
    assert (tally.rows, tally.failed) == (1, 3)
    failed = [json.loads(line) for line in (tmp_path / "out" / "failed.jsonl").read_text().splitlines()]
    assert failed[0]["error"] == "the prompt is longer than the window"
    assert "gone.png" in failed[1]["error"] and failed[2]["error"] == "the answer has no image to check it by"
    assert checked(source, tmp_path / "out", mine, Asked()).rows == 2


def test_several_images_are_for_who_can_look_at_them(tmp_path, two):
    write_owl(tmp_path / "owl")
    text = f'[experts.eyes]\nuse = "owl"\nmodel = "{tmp_path / "owl"}"\n' + ASKED + 'object = "eyes"\nclaim = "asked"\n'
    claim = Item(kind="claim", claim="Both are red.", question="Are both red?")
    source = write_items(tmp_path / "items", [(two, [item_of("entity", ("dog",)), claim])])
    tally = checked(source, tmp_path / "out", table(tmp_path, text), Asked())
    assert (tally.rows, tally.failed) == (1, 1)
    assert "looks at one image, and the answer has 2" in (tmp_path / "out" / "failed.jsonl").read_text()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[route", "no TOML file"),
        ('[route]\nobject = "eyes"', "'eyes' is not among its experts"),
        ('[experts.a]\nuse = "owls"\nmodel = "x"\n[route]\nobject = "a"', "did you mean owl"),
        ('[experts.a]\nuse = "owl"\n[route]\nobject = "a"', "owl needs the option model"),
        (
            '[experts.a]\nuse = "owl"\nmodel = "x"\nthreshhold = 1\n[route]\nobject = "a"',
            "owl has no option threshhold",
        ),
        ('[experts.a]\nuse = "owl"\nmodel = "x"\n[route]\nattribute = "a"', "cannot check this kind"),
        ('[experts.a]\nuse = "ocr"\n[route]\nobjekt = "a"', "no such kind"),
        ('[experts.a]\nuse = "likely"\nleast = -3\n[route]\nobject = "a"', "cannot check this kind"),
        ('[experts.a]\nuse = "likely"\n[route]\nobject = "skip"', "needs the option least"),
        ('[experts.a]\nuse = "yesno"\nmodel = "x"\n[route]\nobject = "a"', "it has a model and no engine"),
        (ASKED + '[route.object]\nexpert = "asked"\nsubjects = "asked"', "is a yesno, not one of owl"),
        (ASKED + '[route.object]\nexpert = "asked"\nfilter = "asked"', "is a yesno, not one of likely"),
        (ASKED + '[route.object]\nexpert = "asked"\nsubject = "asked"', "route.object.subject"),
        ("[experts]\n", "route: Field required"),
        (
            '[experts.a]\nuse = "owl"\nmodel = "x"\nthreshold = "low"\n[route]\nobject = "a"',
            "threshold: 'low' is no float",
        ),
        ('[experts.a]\nuse = "owl"\nmodel = 3\n[route]\nobject = "a"', "model: 3 is no str"),
        ('[experts.a]\nuse = "owl"\nmodel = "x"\nchunk = true\n[route]\nobject = "a"', "chunk: True is no int"),
        ('[experts.a]\nuse = "yesno"\nengine = "plain"\n[route]\nobject = "a"', "its engine plain has no model"),
    ],
)
def test_mistakes_in_a_table_are_told_before_anything_is_opened(tmp_path, text, told):
    with pytest.raises(ValueError, match=told):
        read_routing(str(table(tmp_path, text)))


def test_tables_of_ours_are_whole():
    assert {"asked", "dgpref", "dgpref_compat", "rlaifv", "world"} <= set(known())
    for name in known():
        assert read_routing(name).content.about
    assert not read_routing("dgpref").asks and read_routing("rlaifv").asks
    compat = read_routing("dgpref_compat").content.experts
    assert (compat["eyes"]["chunk"], compat["eyes"]["threshold"], compat["grammar"]["least"]) == (8, 0.25, 0.75)


def test_a_kind_without_an_expert_is_told_before_anything_is_asked(tmp_path, two):
    source = write_items(tmp_path / "items", [([two[0]], [item_of("entity", ("dog",)), item_of("text", ("OPEN",))])])
    engine = Asked()
    with pytest.raises(ValueError, match="no expert is given the kind text"):
        checked(source, tmp_path / "out", table(tmp_path, ASKED + 'object = "asked"\n'), engine)
    assert not engine.seen and not (tmp_path / "out" / "rows-0.jsonl").exists()
    tally = checked(source, tmp_path / "out", table(tmp_path, ASKED + 'object = "asked"\ntext = "skip"\n'), engine)
    assert tally.also["text open"] == 1 and tally.also["open: the table skips the kind text"] == 1


def test_many_images_in_one_window(tmp_path, picture):
    """Windows end with an image, so an image's questions are never parted."""
    items = [item_of("entity", (name,)) for name in ("dog", "cat", "kite")]
    paths = [picture(f"{n}.png", n) for n in range(TOGETHER // 3 + 4)]
    source = write_items(tmp_path / "items", [([path], items) for path in paths])
    engine = Asked()
    checked(source, tmp_path / "out", table(tmp_path, ASKED + 'object = "asked"\n'), engine)
    seen = [image for image, _ in engine.seen]
    assert len(seen) == 3 * len(paths)
    assert all(len({*seen[n : n + 3]}) == 1 for n in range(0, len(seen), 3))


# on models


def test_the_packed_engine_and_its_slow_twin_agree(tmp_path, picture, monkeypatch):
    folder = model_folder(tmp_path, "llava")
    names = ("dog", "cat", "red kite", "two boys", "house", "tree", "bucket", "orange", "star")
    items = [*(item_of("entity", (name,)) for name in names), item_of("attribute", ("red", "dogs"))]
    source = write_items(tmp_path / "items", [([picture(f"{n}.png", n)], items) for n in range(2)])
    mine = table(tmp_path, ASKED + 'object = "asked"\nattribute = "asked"\n')
    local = Local(str(folder))
    checked(source, tmp_path / "local", mine, local)
    plain, lengths = Plain(str(folder)), []
    read = plain.prompts.prompt
    monkeypatch.setattr(plain.prompts, "prompt", lambda one: (made := read(one), lengths.append(len(made.ids)))[0])
    checked(source, tmp_path / "plain", mine, plain)
    twin = {(row["image"], row["claim"]): row for row in rows(tmp_path / "plain")}
    for one in rows(tmp_path / "local"):
        other = twin[one["image"], one["claim"]]
        assert one["p_yes"] == pytest.approx(other["p_yes"], abs=1e-4) and one["verdict"] == other["verdict"]
    assert len(twin) == 20 and len({round(row["p_yes"], 4) for row in twin.values()}) > 10
    # The questions of both images were read in one forward, each image once
    assert len(lengths) == 20 and local.counts["prefilled"] < sum(lengths) / 2
    # Questions as labels: both give them the same log-probs
    asked = ["Is there a dog?", "Is the dogs red?", "Dog is dog?"]
    ours, theirs = (Likely(one, prompt("question_check"), least=-99).passed(asked) for one in (local, plain))
    assert [one.score for one in ours] == pytest.approx([one.score for one in theirs], abs=1e-4)
    assert len({round(one.score, 3) for one in ours}) == 3


def test_commands(tmp_path):
    world = write_world(tmp_path / "world", WorldSpec(base=10, pairs=2, groups=1, test=10))
    write_captions(tmp_path / "answers", world, read_scenes(world)[:4])
    run = CliRunner().invoke
    engine = ["--engine", "world", "-m", str(world)]
    found = run(app, ["decompose", str(tmp_path / "answers"), "-o", str(tmp_path / "items"), *engine, "--debug", "1"])
    assert found.exit_code == 0 and "items of the kind object" in found.output and "--- " in found.output
    found = run(app, ["check", str(tmp_path / "items"), "-o", str(tmp_path / "out"), "--experts", "world", *engine])
    assert found.exit_code == 0 and "object true" in found.output and "requests failed" in found.output
    (tmp_path / "mine.toml").write_text(ASKED + 'object = "asked"\n')
    items, mine = (
        ["check", str(tmp_path / "items"), "-o", str(tmp_path / "x"), "--experts"],
        str(tmp_path / "mine.toml"),
    )
    for arguments, told in (
        ([*items, "world", "--engine", "local", "-m", "no model"], "give --engine world"),
        ([*items, mine, "--engine", "local", "-m", "no model"], "no expert is given the kind count"),
        (["check", str(tmp_path / "answers"), *items[2:], mine, *engine], "holds no answer that was taken apart"),
        (
            ["check", str(tmp_path / "items"), "-o", str(tmp_path / "x"), "--experts", "world"],
            "give --engine and --model",
        ),
        (
            ["check", str(tmp_path / "items"), "-o", str(tmp_path / "x"), "--experts", "dgpref", *engine],
            "--engine has no effect",
        ),
        (["check", str(tmp_path / "items"), "-o", str(tmp_path / "x"), "--experts", "none"], "there is no table none"),
        (
            ["check", str(tmp_path / "items"), "-o", str(tmp_path / "items"), "--experts", "world", *engine],
            "holds the input",
        ),
        (["decompose", str(tmp_path / "answers"), "-o", str(tmp_path / "x"), *engine, "--preset", "x"], "--preset"),
        (["decompose", str(tmp_path / "answers"), "-o", str(tmp_path / "x"), *engine, "--aspects", "x"], "--aspects"),
        (["decompose", str(tmp_path / "answers"), "-o", str(tmp_path / "x"), *engine, "--prompt", "x"], "ASPECT=FILE"),
        (["decompose", str(tmp_path / "world"), "-o", str(tmp_path / "x"), *engine], "is no folder of answers"),
    ):
        found = run(app, arguments)
        assert isinstance(found.exception, ValueError) and told in str(found.exception), (arguments, found.output)


def test_an_answer_that_says_nothing_is_a_row_of_its_own(tmp_path, two):
    class Silent(Fake):
        can = Fake.can | {"constraint"}

        def reply(self, request, sample):
            return Reply(key=request.key, text="(dog)")

    write_answers(tmp_path / "answers", [(two[0], "  "), (two[0], "A dog.")])
    tally = decomposed(tmp_path / "answers", tmp_path / "items", Silent(), aspects=["entity"])
    empty, full = rows(tmp_path / "items")
    assert empty["items"] == [] and empty["problem"] == "the answer is empty"
    assert [item["args"] for item in full["items"]] == [["dog"]]
    assert tally.also["answers: the answer is empty"] == 1


def test_experts_that_cannot_be_packed_bring_their_own_engine(tmp_path, two):
    """BLIP-2 over an encoder-decoder, as DGPref asks it, opened by the command from the table alone."""
    folder = write_blip(tmp_path / "blip", "blip-2", "t5")
    items = [item_of("attribute", ("red", "dog")), item_of("relation", ("dog", "beside", "cat"))]
    source = write_items(tmp_path / "items", [([two[0]], items), ([two[1]], items[:1])])
    text = f'[experts.asked]\nuse = "yesno"\nengine = "plain"\nmodel = "{folder}"\nprompt = "yes_no_short"\n'
    mine = table(tmp_path, text + '[route]\nattribute = "asked"\nrelation = "asked"\n')
    arguments = ["check", str(source), "-o", str(tmp_path / "out"), "--experts", str(mine)]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, (found.output, found.exception)
    chances = [row["p_yes"] for row in rows(tmp_path / "out")]
    assert len(chances) == 3 and all(0 < chance < 1 for chance in chances)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["complete"] and manifest["engine"]["experts"]["asked"]["engine"]["engine"] == "plain"
    found = CliRunner().invoke(app, [*arguments, "--engine", "local", "-m", "x"])
    assert "has no effect" in str(found.exception)


def test_the_annotation_is_the_worlds(tmp_path):
    with pytest.raises(ValueError, match="--engine world"):
        open_experts(read_routing("world"), lambda given: Asked())


def test_what_is_missing_is_told_before_weights_are_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    text = '[experts.eyes]\nuse = "owl"\nmodel = "no such model"\n[experts.reader]\nuse = "ocr"\n'
    mine = table(tmp_path, text + '[route]\nobject = "eyes"\ntext = "reader"\n')
    with pytest.raises(ValueError, match=r"experts\.reader: reading text needs rapidocr"):
        open_experts(read_routing(str(mine)), lambda given: Asked())


def _two(folder):
    checked(folder / "items", folder / "two", folder / "mine.toml", Asked())


def test_two_ranks_check_what_one_checks(tmp_path, picture):
    items = [item_of("entity", (name,)) for name in ("dog", "cat", "kite")]
    write_items(tmp_path / "items", [([picture(f"{n}.png", n)], items) for n in range(6)])
    mine = table(tmp_path, ASKED + 'object = "asked"\n')
    checked(tmp_path / "items", tmp_path / "one", mine, Asked())
    run_ranks(2, tmp_path, _two, tmp_path)
    assert list(rows(tmp_path / "two")) == list(rows(tmp_path / "one"))
    assert all((tmp_path / "two" / f"rows-{rank}.jsonl").stat().st_size for rank in (0, 1))
