"""The papers' released outputs, scored again: docs/papers.md's table is what is measured here, where these outputs are
(MMFAST_DGPREF, MMFAST_MLLM_DPO: checkouts of the two repositories; MMFAST_EVAL_DATA: the benchmarks' small files)."""

from __future__ import annotations

import json
import math
import re
import shutil

import pytest

from mmfast.data.containers.pickles import load_pickle
from mmfast.evals.benches.alpaca import Alpaca, _switched
from mmfast.evals.benches.mmhal import MmHal
from mmfast.evals.judge import ListedJudge
from mmfast.reproduce import paper
from tests.make.marking import Marked, Said, marked, official
from tests.reproduce.test_page import PAGE

LINE = re.compile(r"^\| (\w+) \| ([\w-]+)\.(\w+) \| ([\d.]+) \| ([\d.]+) \|", re.M)
TOLD = {
    (name, f"{bench}.{metric}"): (float(theirs), ours)
    for name, bench, metric, theirs, ours in LINE.findall(PAGE.read_text().partition("## Released outputs")[2])
}
FILES = {"dgpref_llava": "llava", "dgpref_qwen": "qwen"}
SKIPPED = "7b6eed2a50ffd046"  # the image that DGPref's MMHal leaves out


def as_told(name, bench, metrics):
    """What is measured is what the page says, to the digits that it has."""
    found = {key.partition(".")[2]: ours for (of, key), (_, ours) in TOLD.items() if of == name and f"{bench}." in key}
    assert found, (name, bench)
    for metric, ours in found.items():
        print(f"{name} {bench}.{metric}: {metrics[metric]:.5g}")
        assert f"{metrics[metric]:.{len(ours.partition('.')[2])}f}" == ours, metric


def checkout(variable, folder):
    (found,) = official(folder, variable=variable)
    return found


@pytest.mark.parametrize("name", FILES)
def test_dgprefs_captions(name, tmp_path):
    home = checkout("MMFAST_DGPREF", "Fine_Grained_Alignment")
    synonyms, table = official("chair/synonyms_original.txt", "chair/coco2014_objects_original_chair.txt.xz")
    (captions,) = home.rglob(f"{FILES[name]}_objhal_NUM_*.pkl")
    shutil.copy(synonyms, tmp_path / "synonyms.txt")
    shutil.copy(table, tmp_path / "objects.txt.xz")
    as_told(name, "chair", marked("chair", tmp_path, load_pickle(captions), flavour="dgpref")[0])


@pytest.mark.parametrize("name", FILES)
def test_what_dgprefs_judge_said_of_its_answers(name, tmp_path):
    home = checkout("MMFAST_DGPREF", "Fine_Grained_Alignment")
    (template,) = official("mmhal/mmhal-bench_answer_template.json")
    (reviews,) = home.rglob(f"gpt_review_{FILES[name]}_mmhal_NUM_*.json")
    (pickled,) = home.rglob(f"{FILES[name]}_mmhal_NUM_*.pkl")
    answers = load_pickle(pickled)
    shutil.copy(template, tmp_path)
    rows = [(str(n), row["image_id"]) for n, row in enumerate(json.loads(template.read_text()))]
    texts = {key: answers[image] for key, image in rows if image != SKIPPED}
    assert len(texts) == 95 == len(answers)
    said = dict(zip(texts, ListedJudge(reviews).replies, strict=True))
    found = Marked(MmHal(), tmp_path, texts, judge=Said(lambda call: said[call.key]), only=True)
    assert not found.scoring.counts["unparsed"]
    as_told(name, "mmhal", found.metrics)


def test_what_mllm_dpos_judge_said_of_steerlms_answers(tmp_path):
    """Its annotations have the judge's preference and not its words: our ranking of it is read again."""
    folder = checkout("MMFAST_MLLM_DPO", "llava/eval/data/alpaca_eval/model_answer")
    rows = json.loads((folder / "annotation_alpaca_eval_gpt4.json").read_text())
    base = [{"instruction": row["instruction"], "output": row["output_1"], "generator": "base"} for row in rows]
    (tmp_path / "alpaca_eval.json").write_text(json.dumps(base))

    def say(call):
        preference = rows[int(call.key)]["preference"]
        if preference is None or math.isnan(preference):
            return "none"
        best = 3 - preference if _switched(rows[int(call.key)]["instruction"]) else preference
        return str([{"model": f"model_{n}", "rank": 1 + (n != best)} for n in (1, 2)])

    texts = {str(n): row["output_2"] for n, row in enumerate(rows)}
    found = Marked(Alpaca(), tmp_path, texts, judge=Said(say), flavour="1")
    assert found.sums["kept"] == 800
    as_told("mllm_dpo", "alpacaeval", found.metrics)


def test_the_table_says_what_the_descriptions_say():
    published = {(name, one.metric): one.value for name in paper.names() for one in paper.load_paper(name).published}
    for (name, metric), (theirs, ours) in TOLD.items():
        if name != "mllm_dpo":  # SteerLM is none of the runs that is described
            assert published[name, metric] == theirs
        assert float(ours) == pytest.approx(theirs, abs=0.051), metric
    assert len(TOLD) == 9
