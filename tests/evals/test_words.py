"""What changed in the words: a phrase taken up is found, flagged where no truth has it, and noise is left out."""

import random

from mmfast.evals.words import as_html, changed

TRUTHS = [f"The image shows one {c} circle, two {d} stars and one cross." for c in "abc" for d in "xyz"] * 30


def test_a_phrase_that_no_truth_has_is_flagged_first():
    after = [t.replace(".", " and some patches of nothing.") if n % 4 == 0 else t for n, t in enumerate(TRUTHS)]
    found = changed(TRUTHS, after, TRUTHS)
    assert len(found) <= 2 and all(p.foreign for p in found), "overlapping pieces of one phrase are told once"
    phrase = found[-1]
    assert "patches of nothing" in phrase.text and phrase.before == phrase.truths == 0
    assert abs(phrase.after - 0.25) < 0.01
    page = as_html(found, "after DPO")
    assert f"<mark>{phrase.text}</mark>" in page and "no truth says it" in page and "25.2%" in page


def test_a_phrase_that_truths_have_is_told_and_not_flagged():
    before = [t.replace("two", "three") for t in TRUTHS]
    found = {p.text: p for p in changed(before, TRUTHS, TRUTHS)}
    assert not any(p.foreign for p in found.values())
    assert any("two" in text and p.before == 0 and p.truths > 0 for text, p in found.items())
    assert any("three" in text and p.after == 0 and not p.foreign for text, p in found.items())


def test_chance_is_no_change():
    rng = random.Random(0)
    for _ in range(20):
        a, b = ([rng.choice(TRUTHS) for _ in range(100)] for _ in range(2))
        assert len(changed(a, b, TRUTHS)) <= 1
    assert changed(TRUTHS, TRUTHS, TRUTHS) == changed([], TRUTHS) == []
    assert "No phrase" in as_html([], "after DPO")


def test_a_rare_phrase_that_few_truths_could_have_is_not_flagged():
    after = [*TRUTHS[:80], *["a new thing"] * 20]
    assert not any(p.foreign for p in changed(TRUTHS[:100], after, TRUTHS[:5])), "five truths may lack it by chance"
    assert any(p.foreign for p in changed(TRUTHS[:100], after, TRUTHS[:100]))


def test_text_is_escaped():
    assert "&lt;b&gt;" in as_html(changed(["x"] * 30, ["x & y"] * 30, ["x"] * 30), "<b>")
