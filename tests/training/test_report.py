"""report.html: what it says of one run and of several, by their folders, and that it needs nothing beside itself."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from mmfast.config import build, dump
from mmfast.pages import png
from mmfast.training.metrics import Metrics
from mmfast.training.report import report

PICTURES = [base64.b64encode(png(Image.new("RGB", (8, 8), colour))).decode() for colour in ("red", "blue")]
OUTSIDE = r"""(?:src|href)\s*=\s*["']?(?!data:)[^"'>\s]|https?:|@import|url\(|<link"""


def make_run(folder, name, *, scale=1.0, steps=5, **changes):
    """`changes`: of [optim]."""
    folder = folder / name
    folder.mkdir()
    tree = {"output_dir": str(folder), "model": {"path": "models/tiny"}, "data": {"path": "pairs.jsonl"}}
    (folder / "config.toml").write_text(dump(build(tree | {"train": {"steps": 5}, "optim": changes})))
    metrics = Metrics(folder)
    for step in range(1, steps + 1):
        values = {"loss": scale / step, "rewards/chosen": 0.1 * step, "rewards/rejected": -0.1 * step}
        metrics.log(step, values | {"tokens_per_s": 1000.0, "pairs_per_s": 20.0, "memory_gib": 1.5, "sharing": 0.4})
    metrics.log(steps, {"eval/loss": scale, "grad_norm": float("nan"), "eval/pope.f1": 0.8})
    metrics.close()
    return folder


def sample(picture=0, answer="a red square", **more):
    said = {"chosen": "one red square", "rejected": "one blue square"}
    return {"images": [PICTURES[picture]], "prompt": "USER:  \nWhat? ASSISTANT:", "answer": answer} | said | more


def add_samples(run, *steps):
    metrics = Metrics(run)
    for step, rows in steps:
        metrics.log_samples(step, rows)
    metrics.close()


class Read(HTMLParser):
    """The texts by the tags around them, headings of sections, and rows of tables; scripts and styles left out."""

    def __init__(self, page):
        super().__init__()
        self.open, self.texts, self.rows, self.headings = [], [], [], []
        self.feed(page.read_text())
        self.close()

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if {"script", "style"} & set(self.open):
            return
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if "h2" in self.open:
            self.headings.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def test_a_run_is_told_whole(tmp_path):
    run = make_run(tmp_path, "a", lr=3e-4)
    add_samples(run, (0, [sample()]), (5, [sample(answer="a blue square")]))
    (run / "plan.json").write_text(json.dumps({"steps": 5, "ranks": 1, "memory_gib": {"weights": 1.0, "total": 1.2}}))
    page = report([run])
    assert page == run / "report.html"
    shown, source = Read(page), page.read_text()
    sections = ["Curves", "Benchmarks", "Rate, speed and memory", "Samples", "What changed in the words", "Settings"]
    assert shown.headings == sections
    assert "finished at step 5 · model models/tiny · data pairs.jsonl" in shown.text
    assert "40% of the tokens shared" in shown.text and "1.5 GiB at the peak, 1.2 planned" in shown.text
    assert "measured 1.5" in shown.text and "weights 1" in shown.text
    assert ["optim.lr", "0.0003", "5e-07"] in shown.rows and ["train.steps", "5", ""] in shown.rows
    assert not any(row[0] == "optim.clip" for row in shown.rows)
    assert ["loss", "0.2"] in shown.rows and ["eval/pope.f1", "0.8"] in shown.rows
    assert re.findall(OUTSIDE, source) == [] and "renew=" not in source and len(source) < 60_000


def test_samples_stand_beside_each_other_with_their_differences_marked(tmp_path):
    run = make_run(tmp_path, "a")
    first = [sample(), sample(1), sample(1, "<b>")]
    later = [sample(answer="a red circle"), sample(1), sample(1, "<b>")]
    add_samples(run, (0, first), (2, [sample(answer="a red star"), *first[1:]]), (5, later))
    page = report([run]).read_text()
    cards = re.findall('<section class="sample">.*?</section>', page, re.DOTALL)
    assert len(cards) == 3 and all(card.count("<img") == 1 for card in cards)  # a picture once, not once a step
    assert "a red <del>square</del>" in cards[0] and "a red <ins>circle</ins>" in cards[0]
    assert "one <del>blue</del> square" in cards[0] and "one <ins>red</ins> square" in cards[0]
    assert re.findall("<h4>(.*?)</h4>", cards[0]) == [
        "step 0", "step 5", "rejected, in the data", "chosen, in the data", "step 2",
    ]  # fmt: skip
    assert "a red <ins>star</ins>" in cards[0] and "between, at step 2</summary>" in cards[0]
    assert "<p>&lt;b&gt;</p>" in cards[2] and "<b>" not in cards[2]


def test_samples_of_earlier_versions_and_of_text_alone_are_shown(tmp_path):
    run = make_run(tmp_path, "a")
    old = sample(prompt="<what?>")
    del old["rejected"], old["images"]
    add_samples(run, (5, [old, sample(answer="")]))
    page = report([run]).read_text()
    cards = re.findall('<section class="sample.*?</section>', page, re.DOTALL)
    assert "&lt;what?&gt;" in cards[0] and "rejected" not in cards[0] and "<img" not in cards[0]
    assert "<i>nothing</i>" in cards[1] and "one <ins>red</ins> square" in cards[1]


def test_empty_sections_are_left_out(tmp_path):
    run = make_run(tmp_path, "a")
    (run / "samples.jsonl").write_text("")
    (run / "config.toml").unlink()
    (run / "metrics.jsonl").write_text('{"step": 3, "loss": 0.5}\n{"step": 4, "lo')
    shown = Read(report([run]))
    assert shown.headings == ["Curves"] and "step 3 ·" in shown.text and "0.5 loss" in shown.text
    (run / "metrics.jsonl").write_text("")
    assert Read(report([run])).headings == []  # a run before its first step, as it is shown while it goes on


def test_an_edited_config_is_shown_as_it_is(tmp_path):
    run = make_run(tmp_path, "a")
    (run / "config.toml").write_text("lr = <none>")
    shown = Read(report([run]))
    assert "lr = <none>" in shown.text and not any("optim" in row[0] for row in shown.rows)


def test_of_several_runs_what_differs_comes_first(tmp_path):
    runs = [
        make_run(tmp_path, "a", lr=1e-4),
        make_run(tmp_path, "b", lr=1e-4),
        make_run(tmp_path, "c", scale=2, lr=5e-5),
    ]
    add_samples(runs[0], (0, [sample(answer="a red cross")]), (5, [sample()]))
    add_samples(runs[2], (0, [sample(answer="a red cross")]), (5, [sample(answer="two stars")]))
    page = report(runs)
    assert page == runs[0] / "compare.html"
    shown, source = Read(page), page.read_text()
    assert shown.headings[:2] == ["What differs", "Last values"]
    assert shown.rows[:2] == [["setting", "a", "b", "c"], ["optim.lr", "0.0001", "0.0001", "5e-05"]]
    assert ["eval/loss", "1", "1", "2"] in shown.rows and ["steps", "5", "5", "5"] in shown.rows
    (card,) = re.findall('<section class="sample">.*?</section>', source, re.DOTALL)
    titles = re.findall("<h4>(.*?)</h4>", card)
    assert titles[:3] == ["step 0", "a, step 5", "c, step 5"]
    assert "<ins>square</ins>" in card and "<ins>two stars</ins>" in card
    add_samples(runs[1], (0, [sample(answer="of another model")]), (5, [sample()]))
    assert "<h4>a, step 0</h4>" in report(runs[:2], tmp_path / "bases.html").read_text()
    assert [int(n) for n in re.findall(r'type="checkbox" value="(\d)"', source)] == [0, 1, 2]
    (runs[1] / "config.toml").write_text('[optim]\nlr = 1e-4\n[train]\nsteps = 5\n[model]\npath = "models/tiny"\n')
    with (runs[1] / "config.toml").open("a") as file:
        file.write('[data]\npath = "pairs.jsonl"\n')  # of a version that knew no other keys
    same = Read(report(runs[:2], tmp_path / "both.html"))
    assert "No setting but the names." in same.text


def test_runs_of_one_name_are_told_apart(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    runs = [make_run(tmp_path / "x", "run"), make_run(tmp_path / "y", "run")]
    assert (
        Read(report(runs, tmp_path)).rows[-1][0] and f"{runs[0]}, {runs[1]}" in (tmp_path / "compare.html").read_text()
    )


def test_a_folder_without_metrics_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no metrics\.jsonl"):
        report([tmp_path])


def test_the_page_of_a_run_that_goes_on_renews_itself_and_tells_what_is_left(tmp_path):
    run = make_run(tmp_path, "a", steps=2)
    source = report([run], live=True).read_text()
    assert 'data-renew="60"' in source and 'http-equiv="refresh" content="60"' in source
    shown = Read(run / "report.html")
    assert "running: step 2 of 5" in shown.text and "1 min left, evaluations not counted" in shown.text
    (run / "stopped").write_text("{}")
    source = report([run]).read_text()
    assert "stopped at step 2 of 5" in source and "data-renew" not in source and "http-equiv" not in source


def test_a_plan_that_could_not_be_made_says_why(tmp_path):
    run = make_run(tmp_path, "a")
    (run / "plan.json").write_text(json.dumps({"steps": 5, "ranks": 1, "problem": "no plan of the memory: <why>"}))
    assert "no plan of the memory: <why>" in Read(report([run])).text
    (run / "plan.json").write_text('{"steps')
    with pytest.raises(ValueError, match=r"plan\.json is damaged: remove it"):
        report([run])


def test_long_runs_stay_small_and_say_what_is_drawn(tmp_path):
    """Three runs of 20,000 rows of 20 metrics: every one is in the page, under a megabyte and a half."""
    runs = []
    for name in "abc":
        run = make_run(tmp_path, name)
        names = [f"own/metric-{n}" for n in range(16)] + ["loss", "grad_norm", "eval/loss", "tokens_per_s"]
        with (run / "metrics.jsonl").open("w") as file:
            for step in range(1, 20_001):
                file.write(json.dumps({"step": step} | {key: 1.23456789 / (step % 97 + 1) for key in names}) + "\n")
        runs.append(run)
    page = report(runs).read_text()
    assert len(page) < 1_500_000 and page.count("<figure") == 19 and "own/metric-15" in page
    assert "(the longest has up to 20000) are drawn by the first, lowest, highest and last of each stretch" in page


def test_what_changed_in_the_words_of_the_samples(tmp_path):
    """From the first samples to the last; a phrase that no truth has is flagged, for it may be all that was learnt."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    truths = [f"one {colour} circle" for colour in ("red", "blue", "green", "orange")] * 5
    samples = [{"step": 0, "prompt": "?", "answer": t.replace("one", "two"), "chosen": t} for t in truths]
    samples += [{"step": 9, "prompt": "?", "answer": f"{t} and lots of space", "chosen": t} for t in truths]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    page = report([tmp_path]).read_text()
    assert "What changed in the words" in page and "<th>step 0</th><th>step 9</th>" in page
    assert "lots of space</mark>" in page and "no truth says it" in page
    assert "12 more</summary>" in page  # of 20 samples, alike as their prompts are
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples[20:]))
    page = report([tmp_path]).read_text()
    assert "<th>truths</th><th>step 9</th>" in page and "lots of space</mark>" in page


def test_pictures_are_the_page_s_own(tmp_path):
    run = make_run(tmp_path, "a")
    add_samples(run, (5, [sample(1)]))
    found = re.findall(r'<img [^>]*src="data:image/png;base64,([^"]*)"', report([run]).read_text())
    assert [Image.open(io.BytesIO(base64.b64decode(one))).getpixel((0, 0)) for one in found] == [(0, 0, 255)]
