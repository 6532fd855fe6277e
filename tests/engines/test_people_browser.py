"""The engine of people in a real browser: forms by keys, the image by wheel and keys, and handing in."""

import json

import pytest

from mmfast.engines.base import Constraint, Picture
from tests.engines.test_people import RATED, Asking, ask
from tests.make.browser import Tab, browser


@pytest.fixture(scope="module")
def chromium():
    with browser() as opened:
        yield opened


def test_requests_are_answered_by_keys_and_handed_in(tmp_path, chromium, picture):
    images = (Picture(str(picture("a.png", 1))), Picture(str(picture("b.png", 2))))
    asking = Asking(
        tmp_path / "team",
        ask("a", "<i>Which?</i>", n=0, labels=("yes", "no"), images=images),
        ask("b", constraint=Constraint(schema=json.dumps(RATED)), images=images[:1]),
        ask("c", images=()),
    )
    asking.person("anna")  # the first card is there
    tab = Tab(chromium, asking.engine.page.url, "anna")
    # The image: zoom, move, the whole, the next one
    assert "<i>Which?</i>" in tab.text("#card") and tab.page.locator("#card i").count() == 0
    tab.wait("document.querySelector('#pictures img').naturalWidth === 80")
    tab.keys("+")
    assert tab.text("#zoom") == "150 %"
    tab.page.mouse.move(200, 300)
    tab.page.mouse.wheel(0, -400)
    tab.wait("parseInt(document.querySelector('#zoom').textContent) > 300")
    tab.page.mouse.down()
    tab.page.mouse.move(150, 250)
    tab.page.mouse.up()
    assert "translate(-" in tab.page.evaluate("document.querySelector('#pictures img').style.transform")
    tab.keys("0")
    assert tab.text("#zoom") == "100 %"
    first = tab.page.get_attribute("#pictures img", "src")
    tab.keys("i")
    assert tab.page.get_attribute("#pictures img", "src") != first
    # A choice that is all that is asked hands in; then a form, field by field
    tab.keys("2")
    tab.wait("document.querySelectorAll('.field').length === 7")
    tab.keys("4", "0", "2", "Enter")  # Helpfulness twice, and which is better
    tab.wait("document.querySelectorAll('.field').length === 1")
    tab.type("No 🐈 here")
    tab.keys("Shift+Enter")
    tab.type("at all.")
    tab.keys("Enter")
    tab.wait("document.querySelector('#card').textContent.includes('All is answered')")
    # What was written last is taken back, and handed in again
    tab.keys("u")
    tab.wait("!!document.querySelector('.field textarea')")
    assert tab.page.input_value(".field textarea") == "No 🐈 here\nat all."
    tab.page.fill(".field textarea", "None.")
    tab.keys("Enter")
    tab.wait("document.querySelector('#card').textContent.includes('All is answered')")
    tab.keys("Enter")
    tab.wait("document.querySelector('#card').textContent.includes('Handed in')")
    a, b, c = asking.end()
    assert a.labels["no"] == 0.0 and c.text == "None."
    assert json.loads(b.text) == {"answers": [{"Helpfulness": 4}, {"Helpfulness": 0}], "better": "2"}
    assert tab.complaints == []
    tab.close()
