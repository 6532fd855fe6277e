"""The report of the papers in miniature on real captions: what is compared with what, what is missing, how it reads."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from mmfast.evals.world import change, score
from mmfast.papers import over_seeds, report
from mmfast.papers.picture import drawn
from mmfast.papers.reading import BASE, CHIEFS, read
from mmfast.papers.tables import better, moved, signed
from mmfast.world.dataset import read_lines, read_scenes
from tests.make.paper_seed import METHODS, RUNNER_UP, write_seed

SYSTEM_TITLES = {"mllm-dpo": "mllm-dpo", "sima": "SIMA", "dgpref": "DGPref", "rlhf-v": "RLHF-V", "rlaif-v": "RLAIF-V"}
FEW = ("sima-self-1", "sima-self-2", "sima-runner-up", "dgpref-sum", "rlhfv-sum-1")
GONE = ("sima-self-2", "dgpref-sum-blind", "rlhfv-sum-1", "rlhfv-sum-1-blind")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = write_seed(tmp_path_factory.mktemp("made"))
    report.write(folder)
    return folder


@pytest.fixture(scope="module")
def scores(made):
    """Of every method's captions, judged here."""
    scenes, lines = read_scenes(made / "world"), read_lines(made / "captions.jsonl")
    return {name: score([line[name] for line in lines], scenes) for name in lines[0] if name not in ("name", "truth")}


def changed_file(made: Path, out: Path, change, few: bool = False) -> Path:
    """A copy of the seed's papers.json, changed, beside nothing else. `few`: with a few of its methods."""
    found = json.loads((made / "papers.json").read_text())
    if few:
        found["methods"] = {
            name: found["methods"][name]
            for one in (BASE, *FEW)
            for name in (one, f"{one}-blind")
            if name in found["methods"]
        }
    change(found)
    out.mkdir(exist_ok=True)
    (out / "papers.json").write_text(json.dumps(found))
    return out


class Rows(HTMLParser):
    """The rows of a page's tables, as texts."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def test_the_changes_are_the_paired_ones_of_the_captions(made, scores):
    seed = read(made)
    assert seed.scores == scores and set(seed.changed) == set(scores) - {BASE}
    for name in scores.keys() - {BASE}:
        for measure in ("chair_s", "chair_i", "recall", "words", "relation"):
            assert seed.changed[name][measure] == change(scores[BASE], scores[name], measure)
    for name in METHODS.keys() - {BASE}:
        assert seed.beyond[name]["chair_s"] == change(scores[f"{name}-blind"], scores[name])
    assert set(seed.beyond) == METHODS.keys() - {BASE}


def test_each_method_stands_over_its_own_control_on_the_page(made, scores):
    rows = Rows(made / "report.html").rows
    for name, (label, *_) in METHODS.items():
        at = next(n for n, row in enumerate(rows) if row and row[0] == label and "/" in row[5])
        assert rows[at][1].startswith(f"{100 * scores[name].chair_s:.1f} (")
        wrong, claimed = scores[name].claims["relation"]
        assert rows[at][7] == f"{wrong}/{claimed}"
        if name == BASE:
            continue
        control = scores[f"{name}-blind"]
        against, beyond, blind = rows[at + 1 : at + 4]
        assert (against[0], beyond[0], blind[0]) == (report.AGAINST_BASE, report.BEYOND_BLIND, "its blind control")
        assert against[1] == moved("chair_s", change(scores[BASE], scores[name]))
        assert beyond[1] == moved("chair_s", change(control, scores[name]))
        assert beyond[3] == moved("recall", change(control, scores[name], "recall"))
        assert blind[1].startswith(f"{100 * control.chair_s:.1f} (")


def joined(axes) -> list[list[tuple[float, float]]]:
    """The lines from one point to another."""
    lines = [list(zip(*line.get_data(), strict=True)) for line in axes.lines]
    return [line for line in lines if len(line) == 2]


def test_in_the_picture_a_line_joins_each_control_to_its_method(made):
    """A control that has learnt to describe other pictures lies outside: its line ends on the frame."""
    seed = read(made)
    panels = {axes.get_title(loc="left"): axes for axes in drawn(seed).axes}
    outside = set()
    for name, one in seed.methods.items():
        if name == BASE or one.blind:
            continue
        start, end = (
            (100 * seed.changed[n]["recall"][0], 100 * seed.changed[n]["chair_s"][0]) for n in (name, one.control)
        )
        axes = panels[SYSTEM_TITLES[one.system]]
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        assert left < start[0] < right and bottom < start[1] < top
        if not (left < end[0] < right and bottom < end[1] < top):
            outside.add(name)
            way = complex(*end) - complex(*start)
            end = next(
                point
                for first, point in joined(axes)
                if first == start and abs(((complex(*point) - complex(*start)) / way).imag) < 1e-9
            )
            assert min(end[0] - left, right - end[0], end[1] - bottom, top - end[1]) == pytest.approx(0, abs=1e-9)
        assert [start, end] in joined(axes), name
        hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white" and len(line.get_xdata()) == 1]
        assert end in [(line.get_xdata()[0], line.get_ydata()[0]) for line in hollow]
    assert {"mllm-dpo-sft", "rlhfv-sft-1"} <= outside and "rlhfv-sum-1" not in outside
    below = {"RLHF-V: CHAIR_s over γ", "RLHF-V: recall over γ", "CHAIR_s over rounds", "recall over rounds"}
    assert {*below, "Wrong claims, beyond the blind control"} <= set(panels)


def test_a_control_belongs_to_the_method_that_names_it(made, scores, tmp_path):
    """Whatever its own name; one control may serve two, and stands once."""

    def swap(found):
        methods = found["methods"]
        methods["dgpref-sum"]["control"] = methods["dgpref-average"]["control"] = "dgpref-object-blind"
        methods["dgpref-object"]["control"] = "dgpref-sum-blind"

    seed = read(changed_file(made, tmp_path, swap))
    assert seed.beyond["dgpref-sum"]["chair_s"] == change(scores["dgpref-object-blind"], scores["dgpref-sum"])
    assert seed.beyond["dgpref-object"]["chair_s"] == change(scores["dgpref-sum-blind"], scores["dgpref-object"])
    names = seed.systems["dgpref"]
    assert names[:4] == ["dgpref-average", "dgpref-object-blind", "dgpref-sum", "dgpref-object"]
    assert sorted(names) == sorted(set(names)) == sorted(n for n in scores if n.startswith("dgpref"))
    labels = dict(seed.listed(names))
    assert labels["dgpref-object-blind"].strip() == "its blind control"
    assert labels["dgpref-average-blind"] == "DPO, share of wrong parts, blind"


def test_curves_hold_what_differs_in_one_number_alone(made, tmp_path):
    curves = {(curve.system, curve.of, curve.label): curve.points for curve in read(made).curves}
    assert curves == {
        ("rlhf-v", "gamma", "summed"): {float(n): f"rlhfv-sum-{n}" for n in range(1, 6)},
        ("rlhf-v", "gamma", "summed, SFT term"): {float(n): f"rlhfv-sft-{n}" for n in range(1, 4)},
        ("rlhf-v", "gamma", "averaged"): {float(n): f"rlhfv-average-{n}" for n in range(1, 6)},
        ("sima", "round", "self critic"): {0: BASE, 1: "sima-self-1", 2: "sima-self-2"},
        ("sima", "round", "oracle critic"): {0: BASE, 1: "sima-oracle-1", 2: "sima-oracle-2"},
        ("rlaif-v", "round", "DPO"): {0: BASE, 1: "rlaifv-1", 2: "rlaifv-2"},
    }

    def another_rate(found):
        found["methods"]["rlhfv-sum-3"]["settings"]["lr"] = 3e-4

    curves = {curve.label: curve for curve in read(changed_file(made, tmp_path, another_rate)).curves}
    assert list(curves["summed"].points) == [1, 2, 4, 5]


def test_an_unfinished_seed_says_what_it_lacks(made, tmp_path):
    def halve(found):
        found["methods"] = {name: one for name, one in found["methods"].items() if name not in GONE}
        found |= {"complete": False, "planned": {name: METHODS[name][0] for name in (BASE, *FEW)}}
        found["without"] = {"sima-self-pairs-2": "no pair: <every> verdict is a tie"}

    out = changed_file(made, tmp_path, halve, few=True)
    page = report.write(out).read_text()
    assert "<b>Unfinished.</b>" in page and "not there yet" in page  # the captions
    told = re.search("Not yet made: (.*)</p>", page)[1]
    assert told == "self critic, round 2; DPO, summed; the blind control of DPO, number of wrong parts."
    assert page.count("beyond its blind control: not yet made") == 1
    assert "sima-self-pairs-2: no pair: &lt;every&gt; verdict is a tie" in page
    printed = printed_tables(out)
    assert "the blind control of DPO, number of wrong parts" in printed and "sima-self-pairs-2" in printed
    assert printed_tables(made).count("not yet made") == 0 and "Unfinished" not in (made / "report.html").read_text()


def test_a_seed_of_which_hardly_anything_is_made_has_a_report(made, tmp_path):
    def nothing(found):
        found |= {"methods": {}, "complete": False}

    def base_alone(found):
        found |= {"methods": {BASE: found["methods"][BASE]}, "complete": False}

    def no_base(found):
        del found["methods"][BASE]

    for name, cut in (("nothing", nothing), ("base", base_alone), ("no_base", no_base)):
        out = changed_file(made, tmp_path / name, cut, few=True)
        page = report.write(out).read_text()
        assert "Unfinished" in page and ("Not yet made: the base model" in page) == (name != "base")
        assert printed_tables(out)


def test_a_method_that_could_not_be_made_is_not_waited_for(made, tmp_path):
    def leave(found):
        for name in ("sima-self-2", "sima-self-2-blind"):
            del found["methods"][name]
        found["planned"] = {name: METHODS[name][0] for name in METHODS}
        found["without"] = {"sima-self-2": "no pair", "sima-self-2-blind": "no pair"}

    out = changed_file(made, tmp_path, leave)
    assert read(out).missing == []
    found = over_seeds.summary([made, write_twin(out, tmp_path / "twin", 22)])
    lost = next(over for over in found.methods if over.name == "sima-self-2")
    assert lost.signs("beyond", "chair_s")[1] == "?" and lost.values("recall")[1] is None
    assert found.without == ("seed 22, sima-self-2: no pair", "seed 22, sima-self-2-blind: no pair")
    assert "- seed 22, sima-self-2: no pair" in over_seeds.markdown(found)
    assert "seed 22, sima-self-2" in shown(over_seeds.tables(found))


def write_twin(made: Path, out: Path, seed: int) -> Path:
    return changed_file(made, out, lambda found: found.update(seed=seed))


def shown(tables) -> str:
    out = io.StringIO()
    for table in tables:
        Console(file=out, width=80).print(table)
    return out.getvalue()


def printed_tables(folder: Path) -> str:
    return shown(report.table(folder))


def test_printed_tables_fit_80_columns_and_lose_no_word_of_a_label(made):
    said = printed_tables(made)
    assert max(cell_len(line) for line in said.splitlines()) == 80
    cells = " ".join(line.split("│")[1].strip() for line in said.splitlines() if line.startswith("│"))
    assert RUNNER_UP in cells and "oracle critic + SFT term, round 1" in cells
    seed = read(made)
    assert moved("chair_s", seed.beyond["dgpref-sum"]["chair_s"]) in said
    assert moved("recall", seed.changed["dgpref-sum-blind"]["recall"]) in said
    assert "{}/{}".format(*seed.scores["rlhfv-sum-5"].claims["word"]) in said


def test_the_page_needs_nothing_beside_itself_and_is_small(made):
    page = (made / "report.html").read_text()
    outside = re.findall(r"""(?:src|href)\s*=\s*(?!["']?data:)[^\s>]+|https?:|@import|url\(|<script|<link""", page)
    assert outside == []
    assert page.count("data:image/png") == 1 + 6 and "<mark>" in page
    assert len(page) < 1_500_000 and 50_000 < (made / "report.png").stat().st_size < 1_500_000
    for heading in ("What changed in the words", "Pictures", "Training data", "Time"):
        assert f"<h2>{heading}</h2>" in page
    for chief in ("mllm-dpo: DPO", "SIMA: self critic, round 2", "RLHF-V: DDPO, gamma 5, averaged"):
        assert f"<h3>{chief}</h3>" in page and page.count(f"<dt>{chief}</dt>") == 6
    assert "prompts 1600, answers 6400, kept 900, why not: identical 300, why not: tie 400" in page


def test_labels_are_text(made, tmp_path):
    def name(found):
        found["methods"]["sima-runner-up"]["label"] = "<img src=x> & [bold]"
        found["methods"]["other"] = found["methods"]["sima-runner-up"] | {"system": "a <new> one", "control": ""}

    out = changed_file(made, tmp_path, name, few=True)
    page = report.write(out).read_text()
    assert "&lt;img src=x&gt; &amp; [bold]" in page and "<img src=x" not in page and "a &lt;new&gt; one" in page
    assert "[bold]" in printed_tables(out) and "a <new> one" in printed_tables(out)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("counted", [[1, 2, 3]], "dpo's counts are (1, 3)"),
        ("counted", [[1] * 17], "different numbers of pictures"),
        ("counted", "gone.npy", "gone.npy is not there"),
        ("label", None, "methods.mllm-dpo-dpo.label"),
    ],
)
def test_a_file_of_another_kind_ends_in_one_line(made, tmp_path, name, value, told):
    out = changed_file(made, tmp_path, lambda found: found["methods"]["mllm-dpo-dpo"].update({name: value}))
    with pytest.raises(ValueError, match=re.escape(told)) as error:
        report.write(out)
    assert "\n" not in str(error.value) and "papers.json" in str(error.value)
    (out / "papers.json").write_text('{"seed": 21, "meth')
    with pytest.raises(ValueError, match=r"papers.json cannot be read: Invalid JSON"):
        report.table(out)
    with pytest.raises(ValueError, match=r"nowhere/papers\.json is not there: `mmfast demo --papers` makes it"):
        report.write("nowhere")


def test_counts_may_lie_in_files(tmp_path):
    inside, beside = (read(write_seed(tmp_path / name, pictures=12, files=name == "b")) for name in "ab")
    assert inside.scores == beside.scores and inside.beyond == beside.beyond


def test_better_is_told_only_where_the_interval_leaves_out_zero():
    assert better("chair_s", (-0.1, -0.2, -0.01)) == better("recall", (0.1, 0.01, 0.2)) == "better"
    assert better("relation", (0.1, 0.01, 0.2)) == better("recall", (-0.1, -0.2, -0.01)) == "worse"
    assert better("chair_s", (-0.1, -0.2, 0.0)) == better("words", (-3, -4, -2)) == ""
    assert [signed(number) for number in (1.25, -0.04, 0.0, 0.04, -3)] == ["+1.2", "0.0", "0.0", "0.0", "-3.0"]
    assert moved("recall", (0.0123, -0.004, 0.03)) == "+1.2 (-0.4 to +3.0)"
    assert moved("words", (-2.5, -3.0, -2.0)) == "-2.5 (-3.0 to -2.0)"


def test_several_seeds_give_means_each_seed_and_signs(made, tmp_path):
    """The second seed is the first with every method but one as the base."""

    def dull(found):
        base = found["methods"][BASE]["counted"]
        for name, one in found["methods"].items():
            if name != "rlhfv-average-5":
                one["counted"] = base
        found["seed"] = 22

    twin = changed_file(made, tmp_path / "dull", dull)
    found = over_seeds.summary([made, twin])
    assert found.seeds == (21, 22) and [over.name for over in found.methods] == list(METHODS)
    strong, weak = (next(o for o in found.methods if o.name == n) for n in ("rlhfv-average-5", "rlaifv-2"))
    first = read(made)
    base, five = (100 * first.scores[name].chair_s for name in (BASE, "rlhfv-average-5"))
    assert strong.values("chair_s") == [five, five] and strong.signs("change", "chair_s") == "--"
    assert weak.signs("beyond", "recall") == "-0" and weak.changes("change", "recall")[1] == (0.0, 0.0, 0.0)
    mean = signed(five - base)
    assert over_seeds.movement(strong, "change", "chair_s") == f"{mean} ({mean}, {mean}) --"
    drop = 100 * first.beyond["rlaifv-2"]["recall"][0]
    assert over_seeds.movement(weak, "beyond", "recall") == f"{signed(drop / 2)} ({signed(drop)}, 0.0) -0"
    page, printed = over_seeds.markdown(found), shown(over_seeds.tables(found))
    assert page.count(f"{signed(drop / 2)} ({signed(drop)}, 0.0) -0") == 1
    assert f"{signed(drop / 2)} ({signed(drop)}, 0.0) -0" in printed
    assert max(cell_len(line) for line in printed.splitlines()) <= 80
    with pytest.raises(ValueError, match="seed 21 has several rows of base"):
        over_seeds.summary([made, made])


def test_an_unfinished_seed_gives_no_rows(made, tmp_path):
    out = changed_file(made, tmp_path, lambda found: found.update(complete=False))
    with pytest.raises(ValueError, match=r"is unfinished .its driver has not ended.: `mmfast demo --papers` goes on"):
        over_seeds.rows(out)


def test_each_system_has_one_method_whose_captions_are_shown():
    methods = pytest.importorskip("mmfast.papers.methods").METHODS
    shown_of = {methods[name].system: name for name in CHIEFS}
    assert set(shown_of) == {one.system for one in methods.values()} - {BASE} and len(shown_of) == len(CHIEFS)
    assert not any(methods[name].blind for name in CHIEFS)
