"""Tables, bars and differences; and which results never share one."""

from dataclasses import replace

import pytest
from PIL import Image

from mmfast.evals import score, tables
from mmfast.evals.benches import benches
from mmfast.evals.catalogue import catalogue
from tests.make.engine_cases import Fake
from tests.make.eval_cases import Toy, ask, toy, write_toy


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Two models' results on the same questions."""
    monkeypatch.setitem(benches(), "toy", Toy())
    data, found = write_toy(tmp_path / "data", images=6), {}
    for name in ("base", "aligned"):
        ask(toy(data), tmp_path / name, Fake(name=name))
        found[name] = score("toy", tmp_path / name, data=data)
    return found


def test_a_result_comes_back_from_its_file(pair, tmp_path):
    tables.write_result(tmp_path / "r" / "result.json", pair["base"])
    assert tables.read_result(tmp_path / "r") == pair["base"]
    for text in ("{}", "[", "[1]", '{"mmfast": "result", "version": 2}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match="is no result of"):
            tables.read_result(tmp_path / "bad.json")
    with pytest.raises(ValueError, match="there is no such result"):
        tables.read_result(tmp_path / "none.json")


def with_part(result, part, value):
    return replace(result, made_by={**result.made_by, part: value})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda r: replace(r, bench="pope"), "benchmark"),
        (lambda r: replace(r, flavour="other"), "flavour: base has official, aligned has other"),
        (lambda r: replace(r, flavour="official, own prompt"), "flavour"),
        (lambda r: with_part(r, "data", {"toy.jsonl": "f" * 64}), "data: base has .*aligned has ffffffffffff"),
        (lambda r: with_part(r, "wording", "bare"), "wording: base has short, aligned has bare"),
        (lambda r: with_part(r, "wording", ""), "wording: base has short, aligned has nothing that says it"),
        (lambda r: with_part(r, "template", "t"), "template"),
        (lambda r: with_part(r, "decode", {**r.made_by["decode"], "beams": 3}), "decode.beams: base has 1"),
        (lambda r: with_part(r, "attributes", "4,4,4,2,2"), "attributes"),
        (lambda r: with_part(r, "limit", 5), "limit"),
        (lambda r: with_part(r, "judge", {"name": "gpt", "identity": "i"}), "judge"),
        (lambda r: with_part(r, "judge prompt", "own prompt"), "judge prompt"),
        (lambda r: with_part(r, "runs", 3), "runs"),
        (lambda r: with_part(r, "parser", "strict"), "parser: base has official, aligned has strict"),
        (lambda r: with_part(r, "options", {"table": "x"}), "options"),
    ],
)
def test_results_that_were_made_in_different_ways_never_share_a_table(pair, tmp_path, change, named):
    other = pair | {"aligned": change(pair["aligned"])}
    for draw in (tables.markdown, tables.latex, lambda two: tables.bars(two, tmp_path / "b.png")):
        with pytest.raises(ValueError, match=f"base and aligned cannot share a table: they differ in {named}"):
            draw(other)
    with pytest.raises(ValueError, match="cannot share"):
        tables.changed(*other.values())


def test_weights_alone_may_differ_and_templates_where_it_is_meant(pair):
    assert pair["base"].made_by["weights"] == pair["aligned"].made_by["weights"]  # the fake has none
    assert tables.markdown(pair | {"aligned": with_part(pair["aligned"], "weights", "other")})
    families = pair | {"aligned": with_part(pair["aligned"], "template", "t")}
    assert "template: base has nothing that says it, aligned has t" in tables.markdown(families, across=["template"])
    with pytest.raises(ValueError, match="--across decode: only template may differ"):
        tables.markdown(pair, across=["decode"])


def test_a_judge_is_known_by_what_it_is(pair):
    """A record alone has another name than a command gave to the judge; another judge may have the same name."""
    judges = [{"name": name, "identity": identity} for name, identity in (("gpt", "i"), ("m.jsonl", "i"), ("gpt", "j"))]
    one, same, other = (with_part(pair["base"], "judge", judge) for judge in judges)
    assert tables.markdown({"a": one, "b": same})
    with pytest.raises(ValueError, match=r"they differ in judge\.identity"):
        tables.markdown({"a": one, "b": other})


def test_tables_show_every_figure_with_its_interval(pair):
    text = tables.markdown(pair)
    head, _, base, aligned, _, under, *_ = text.split("\n")
    assert head == "|  | accuracy | wrong |" and base.startswith("| base | ") and aligned.startswith("| aligned | ")
    value, (low, high) = pair["base"].metrics["accuracy"], pair["base"].intervals["accuracy"]
    assert f"{value:.4f} ({low:.4f} to {high:.4f})" in base
    digest = pair["base"].made_by["data"]["toy.jsonl"][:12]
    assert "flavour official" in under and f"toy.jsonl {digest}" in under
    assert "wrong" not in tables.markdown(pair, ["accuracy"])
    with pytest.raises(ValueError, match="--metric x: there are accuracy, wrong"):
        tables.markdown(pair, ["x"])
    written = tables.latex({"a_b & c": pair["base"]})
    assert r"a\_b \& c & " in written and written.count(r"\\") == 2 and r"\bottomrule" in written
    told = "\n".join(tables.lines(pair["base"]))
    assert "by our parser" in told or pair["base"].strict == pair["base"].metrics
    assert f"{pair['base'].counts['questions']} questions" in told


def test_bars_are_a_picture(pair, tmp_path):
    tables.bars(pair, tmp_path / "out" / "bars.png", ["accuracy"])
    with Image.open(tmp_path / "out" / "bars.png") as image:
        assert image.width > 400 and len(set(image.convert("RGB").resize((64, 64)).get_flattened_data())) > 3


def test_what_changed_is_paired(pair):
    found = tables.changed(*pair.values())
    by, low, high = found["accuracy"]
    assert by == pytest.approx(pair["aligned"].metrics["accuracy"] - pair["base"].metrics["accuracy"])
    assert low <= by <= high and found["wrong"][0] == pytest.approx(-24 / 24 * 18 * by)


def test_the_catalogue_has_a_row_for_every_benchmark():
    rows = catalogue().splitlines()[2:]
    assert [row.split("|")[1].strip(" `") for row in rows] == list(benches())
    assert all(len(row.replace("\\|", "").split("|")) == 9 for row in rows)
