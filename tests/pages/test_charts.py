"""Charts and marks of pages: a value is where its axis says, what is not finite is seen, long lines keep their ends."""

import html
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfast import pages
from mmfast.pages import charts
from mmfast.pages.charts import Bar, Line

FINITE = st.floats(-1e6, 1e6).map(lambda value: float(f"{value:.4g}"))


def data_of(chart):
    return json.loads(re.search(r"<script[^>]*>(.*)</script>", chart)[1])


def places(chart):
    """The points of the first line, as drawn."""
    path = re.search(r'<g data-line [^>]*><path d="([^"]*)"', chart)[1]
    return [tuple(map(float, one.split(","))) for one in re.findall(r"[ML]([^ML]+)", path)]


@given(st.lists(FINITE, min_size=1, max_size=40))
def test_a_point_is_where_the_scale_says_and_its_value_is_kept(values):
    chart = charts.lines("loss", [Line("loss", list(enumerate(values, 1)))])
    x0, xs, y0, ys = map(float, re.search(r'data-scale="([^"]*)"', chart)[1].split())
    assert data_of(chart) == [{"x": list(range(1, len(values) + 1)), "y": values, "smooth": True}]
    for (x, y), (step, value) in zip(places(chart), enumerate(values, 1), strict=True):
        assert x == pytest.approx(x0 + xs * step, abs=0.06) and y == pytest.approx(y0 + ys * value, abs=0.06)
        assert charts.LEFT - 0.1 <= x <= charts.RIGHT + 0.1 and charts.TOP - 0.1 <= y <= charts.LOW + 0.1


@given(FINITE, FINITE, st.booleans())
def test_ticks_are_round_few_and_inside(a, b, whole):
    low, high = min(a, b), max(a, b)
    if high - low < 1e-6 * max(abs(low), abs(high), 1e-3):
        return
    found = charts.ticks(low, high, whole=whole)
    near = 1e-6 * (high - low)
    assert len(found) <= 7 and all(low - near <= tick <= high + near for tick in found)
    told = charts.labels(found)
    assert len(set(told)) == len(found) and all(len(one) <= 12 for one in told)
    assert len(found) >= 2 or whole
    if whole:
        assert all(abs(t - round(t)) < 1e-6 for t in found)


def test_what_is_not_finite_breaks_the_line_and_is_marked():
    chart = charts.lines("norm", [Line("norm", [(1, 1.0), (2, math.nan), (3, 2.0), (4, math.inf), (5, 3.0)])])
    assert data_of(chart)[0]["y"] == [1.0, None, 2.0, None, 3.0]
    assert len(places(chart)) == 3 and re.search(r'<path d="M[^L]*M[^L]*M[^L]*"/>', chart)
    assert re.search(r'class="lost" d="M[\d.]+,166v5M[\d.]+,166v5"', chart)
    nothing = charts.lines("norm", [Line("norm", [(1, math.nan)])])
    assert "not finite" in nothing and "nan" not in nothing and "inf" not in nothing


@given(st.lists(st.one_of(FINITE, st.just(math.nan)), min_size=1, max_size=900), st.integers(20, 200))
def test_a_thinned_line_keeps_its_ends_its_extremes_and_its_order(values, most):
    points = list(enumerate(values))
    kept = charts.thinned(points, most)
    assert len(kept) <= max(most, 5) and kept == sorted(kept, key=lambda p: p[0])
    assert kept[0][0] == points[0][0] and kept[-1][0] == points[-1][0]
    finite = [y for _, y in points if math.isfinite(y)]
    if finite:
        seen = [y for _, y in kept if math.isfinite(y)]
        assert (min(seen), max(seen)) == (min(finite), max(finite))
    assert any(y != y for _, y in kept) == any(y != y for y in values)


def test_bars_are_as_long_as_their_values_and_their_ends_are_inside():
    chart = charts.bars("CHAIR", [Bar("<before>", 50.0, (45.0, 100.0)), Bar("after", 25.0)], unit="%")
    widths = [float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)"', chart)]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.2) and "&lt;before&gt;" in chart and "50%" in chart
    low, high = map(float, re.search(r'class="span" d="M([\d.]+),\d+H([\d.]+)M', chart).groups())
    left = float(re.search(r'<rect x="([\d.]+)"', chart)[1])
    assert low == pytest.approx(left + 0.9 * widths[0], abs=0.2) and left + 2 * widths[0] == pytest.approx(
        high, abs=0.2
    )
    assert high < charts.WIDTH - 40


def test_titles_and_names_are_text():
    chart = charts.lines("</script><u>", [Line('"><u>', [(1, 2.0)])], across='"><u>')
    assert "<u>" not in chart and chart.count("</script>") == 1


def plain(marked):
    return html.unescape(re.sub(r"<[^>]+>", "", marked))


@given(st.text("ab <&\n猫犬.", max_size=30), st.text("ab <&\n猫犬.", max_size=30))
def test_marked_differences_lose_no_character_of_either_text(before, after):
    left, right = pages.differing(before, after)
    assert (plain(left), plain(right)) == (before, after)
    without = [re.sub(r"<(del|ins)>.*?</\1>", "", side, flags=re.DOTALL) for side in (left, right)]
    assert without[0] == without[1] and "<ins>" not in left and "<del>" not in right
    assert ("<del>" in left or "<ins>" in right) == (before != after)


def test_words_are_marked_whole_and_characters_of_scripts_without_blanks_alone():
    assert pages.differing("two red cats", "two blue cats") == ("two <del>red</del> cats", "two <ins>blue</ins> cats")
    assert pages.differing("赤い猫がいる", "赤い犬がいる") == ("赤い<del>猫</del>がいる", "赤い<ins>犬</ins>がいる")
