"""The report in a real browser, opened as a file: nothing is fetched or complained of, and its charts answer."""

import pytest

from mmfast.training.report import report
from tests.make.browser import Tab, browser
from tests.training.test_report import add_samples, make_run, sample

LONG = "unbroken" * 200


@pytest.fixture(scope="module")
def chromium():
    with browser() as opened:
        yield opened


@pytest.fixture
def look(chromium):
    """Opens a page; at the end it must have fetched nothing and complained of nothing."""
    tabs, fetched = [], []

    def opened(page, **options):
        tab = Tab(chromium, "about:blank", **options)
        tab.page.on("request", lambda r: fetched.append(r.url) if not r.url.startswith("data:") else None)
        tab.page.goto(page.as_uri())
        tabs.append((tab, page.as_uri()))
        return tab

    yield opened
    for tab, _ in tabs:
        assert tab.complaints == []
        tab.close()
    assert set(fetched) == {uri for _, uri in tabs}


def values(tab, chart):
    return tab.page.eval_on_selector_all(
        ".chart", f"all => [...all[{chart}].querySelectorAll('.key b')].map(b => b.textContent)"
    )


def point_at(tab, chart, share):
    """The pointer, at a share of a chart's width."""
    svg = tab.page.locator(".chart svg").nth(chart)
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box()
    tab.page.mouse.move(box["x"] + share * box["width"], box["y"] + 60)


def test_every_chart_tells_its_values_at_the_pointer(look, tmp_path):
    tab = look(report([make_run(tmp_path, "a")]))
    assert values(tab, 0) == ["0.2", "1"]  # at rest the last ones: training, held-out
    point_at(tab, 0, 0.13)  # the first of five steps
    assert values(tab, 0) == ["1", ""] and values(tab, 1) == ["0.1", "-0.1"]
    assert tab.page.locator(".chart figcaption span").nth(1).text_content() == "step 1"
    point_at(tab, 0, 0.95)
    assert values(tab, 0) == ["0.2", "1"] and values(tab, 2) == ["not finite"]
    tab.page.mouse.move(2, 2)
    assert tab.page.locator(".chart figcaption span").nth(1).text_content() == ""


def test_smoothing_is_the_unbiased_average_and_outlasts_a_reload(look, tmp_path):
    tab = look(report([make_run(tmp_path, "a")]))
    drawn = "document.querySelectorAll('.chart g[data-line] path')[1].getAttribute('d')"
    assert tab.page.evaluate(drawn) == ""
    tab.page.eval_on_selector("#smooth", "s => { s.value = 0.5; s.dispatchEvent(new Event('input')); }")
    scale = [float(n) for n in tab.page.get_attribute(".chart svg", "data-scale").split()]
    heights = [float(point.split(",")[1]) for point in tab.page.evaluate(drawn)[1:].replace("M", "L").split("L")]
    total = weight = 0.0
    for step, height in zip(range(1, 6), heights, strict=True):
        total, weight = total * 0.5 + 0.5 / step, weight * 0.5 + 0.5
        assert height == pytest.approx(scale[2] + scale[3] * total / weight, abs=0.06)
    tab.page.reload()
    assert tab.page.input_value("#smooth") == "0.5" and tab.page.evaluate(drawn) != ""


def test_a_run_is_hidden_and_shown_in_every_chart(look, tmp_path):
    runs = [make_run(tmp_path, "a"), make_run(tmp_path, "b")]
    tab = look(report(runs, tmp_path))
    lines = tab.page.locator('.chart g[data-run="1"]')
    assert lines.count() > 5 and lines.first.is_visible()
    tab.page.locator(".runs input").nth(1).uncheck()
    assert (
        not any(line.is_visible() for line in lines.all())
        and tab.page.locator('.chart g[data-run="0"]').first.is_visible()
    )
    tab.page.locator(".runs input").nth(1).check()
    assert lines.first.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 420])
def test_long_texts_wrap_and_pictures_keep_their_size(look, tmp_path, width, scheme):
    run = make_run(tmp_path, "a")
    add_samples(run, (0, [sample(prompt=LONG)]), (5, [sample(answer=LONG, chosen=LONG, prompt=LONG)]))
    tab = look(report([run]), viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.page.locator(".sample img").first.bounding_box()["width"] >= 150
    paper, ink = tab.page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        ".map(c => c.match(/\\d+/g).map(Number)[0])"
    )
    assert (paper > 200 and ink < 60) if scheme == "light" else (paper < 60 and ink > 200)


def test_a_live_page_reads_itself_again_and_the_last_one_no_more(look, tmp_path, monkeypatch):
    monkeypatch.setattr("mmfast.training.report.RENEW", 1)
    run = make_run(tmp_path, "a", steps=2)
    tab = look(report([run], live=True))
    assert "running: step 2 of 5" in tab.text("body")
    tab.page.evaluate("document.querySelector('details').open = true")
    report([run])
    tab.page.wait_for_function("!document.body.dataset.renew")
    assert "step 2 of 5 ·" in tab.text("body") and tab.page.evaluate("document.querySelector('details').open")


def test_without_a_script_the_page_is_whole(look, tmp_path):
    tab = look(report([make_run(tmp_path, "a")]), java_script_enabled=False)
    assert not tab.page.locator(".tools").first.is_visible()
    assert tab.page.locator(".chart g[data-line] path").first.bounding_box()["width"] > 100
