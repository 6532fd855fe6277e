"""Published data sets become sets of prompts: drawn by a seed, with their ground truth, read by every stage."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from mmfast.cli.data import app
from mmfast.engines.asked import read_asked
from mmfast.engines.presets import EIGHT, planned
from mmfast.engines.stage import rows as stage_rows
from mmfast.feedback.answers import read_answers
from mmfast.feedback.critique import critique
from mmfast.feedback.critique import planned as critics
from tests.make import published
from tests.make.answer_cases import Says, stage
from tests.make.engine_cases import answers


@pytest.fixture
def prompts(tmp_path):
    """`mmfast data prompts`: what it says, and the rows it wrote; or the one line that it ended with."""

    def run(source, *options, out="prompts.jsonl"):
        path = tmp_path / "out" / out
        path.unlink(missing_ok=True)
        result = CliRunner().invoke(app, ["prompts", str(source), *map(str, options), "-o", str(path)])
        if result.exception:
            assert isinstance(result.exception, ValueError), (result.exception, result.output)
            assert not path.exists() and "\n" not in str(result.exception)
            return str(result.exception), []
        return result.output, [json.loads(line) for line in path.read_text().splitlines()]

    run.path = tmp_path / "out" / "prompts.jsonl"
    return run


def names(rows):
    return [(row["image"].rpartition("/")[2], row.get("prompt", "")) for row in rows]


# each data set


def test_llava_instruct_gives_first_questions_without_the_marker_and_their_answers(tmp_path, prompts):
    source = published.llava_150k(tmp_path)
    told, rows = prompts(source, "--images", tmp_path / "train2017")
    # Two rows of one image are two prompts, each with its own answer; the image of row 7 is not there
    assert sorted((*name, row["reference"]) for name, row in zip(names(rows), rows, strict=True)) == [
        ("000000000001.jpg", "Describe it in detail.", "A red mug and a spoon lie on a table."),
        ("000000000001.jpg", "What is on the table?", "A red mug."),
        *((f"{n:012}.jpg", "What is this?", f"Thing {n}.") for n in range(2, 7)),
    ]
    assert len({row["id"] for row in rows}) == 7
    assert told.splitlines() == [
        "llava: 7 prompts about 6 images, 7 with a true answer",
        f"passed over: 1 images missing under {tmp_path / 'train2017'} (the first: 000000000007.jpg)",
        "left out: 1 later questions of a conversation (--turns all takes them)",
    ]
    told, rows = prompts(source, "--images", tmp_path / "train2017", "--turns", "all")
    assert ("And beside it?", "A spoon.") in [(row["prompt"], row["reference"]) for row in rows]
    assert len(rows) == 8 and "later questions" not in told


def test_the_mix_of_665k_leaves_out_text_alone_and_says_so(tmp_path, prompts):
    told, rows = prompts(published.llava_mix(tmp_path), "--images", tmp_path / "data", "--turns", "all")
    assert "left out: 1 rows without an image" in told and len(rows) == 4
    assert {row["image"] for row in rows} == {
        f"../data/{name}" for name in ("coco/train2017/000000000001.jpg", "gqa/images/17.jpg", "vg/VG_100K/9.jpg")
    }


def test_lrv_finds_visual_genomes_images_and_those_of_charts(tmp_path, prompts):
    told, rows = prompts(published.lrv(tmp_path), "--images", tmp_path / "vg")
    assert told.startswith("lrv: 4 prompts about 3 images, 4 with a true answer")
    assert {row["image"]: row.get("task") for row in rows if row["prompt"] != "What is on the stove?"} == {
        "../vg/VG_100K/2392588.jpg": "negative",
        "../vg/VG_100K_2/7.jpg": None,
        "../vg/chart_1.png": None,
    }


def test_scigraphqa_is_read_from_parquet(tmp_path, prompts):
    source = published.scigraphqa(tmp_path)
    told, rows = prompts(source, "--images", tmp_path / "figures")
    assert told.startswith("scigraphqa: 3 prompts about 3 images, 3 with a true answer")
    assert sorted((row["prompt"], row["reference"]) for row in rows) == [
        (f"What does figure {n} show?", f"Loss {n}.") for n in range(3)
    ]
    assert len(prompts(source, "--images", tmp_path / "figures", "--turns", "all")[1]) == 6


def test_cocos_captions_are_the_truth_and_its_instances_are_counted(tmp_path, prompts):
    files = published.coco(tmp_path)
    told, rows = prompts(files["captions"], "--images", tmp_path / "coco")
    assert told.startswith("coco: 32 prompts about 4 images, 32 with a true answer")
    by_id = {row["id"]: row for row in rows}
    assert set(by_id) == {f"{n}_{k}" for n in range(4) for k in range(8)}
    one = by_id["2_5"]  # numbered by the names of the files, not as they are listed
    assert one["image"] == "../coco/train2014/COCO_train2014_000000000002.jpg" and one["prompt"] == EIGHT[5]
    assert one["reference"].splitlines() == [f"Caption {k} of 2." for k in range(5)]
    told, rows = prompts(files["instances"], "--images", tmp_path / "coco" / "train2014", "--lines", "none")
    assert {row["id"]: row["objects"] for row in rows} == {key: {"dog": 2, "person": 1} for key in "01"}
    assert "left out: 2 images without an annotation" in told and not any("prompt" in row for row in rows)
    # A folder of both
    told, rows = prompts(tmp_path / "annotations", "--images", tmp_path / "coco", "--lines", "none")
    assert sum("objects" in row for row in rows) == 2 and sum("reference" in row for row in rows) == 4


@pytest.mark.parametrize("form", ["gqa", "visual_genome"])
def test_scene_graphs_are_numbered_by_dgprefs_index(tmp_path, prompts, form):
    source = getattr(published, form)(tmp_path)
    told, rows = prompts(source, "--images", tmp_path / "VisualGenome")
    # 2400 is the fourth of the file, though the third has no image
    assert {row["id"].partition("_")[0]: row["name"] for row in rows} == {"0": "2350001", "1": "17", "3": "2400"}
    assert {row["id"]: (row["k"], row["prompt"]) for row in rows if row["name"] == "17"} == {
        f"1_{k}": (k, line) for k, line in enumerate(EIGHT)
    }
    assert {row["image"] for row in rows} == {
        f"../VisualGenome/{name}" for name in ("VG_100K/2350001.jpg", "VG_100K_2/17.jpg", "VG_100K/2400.jpg")
    }
    assert next(row for row in rows if row["name"] == "2350001")["objects"] == {"bucket": 1, "dog": 2}
    assert "1 images missing" in told and "(the first: 9.jpg)" in told


def test_lines_of_ones_own_and_some_of_them(tmp_path, prompts):
    source, own = published.gqa(tmp_path), tmp_path / "lines.txt"
    own.write_text("Why?\n\nWhat is there?\n")
    _, rows = prompts(source, "--images", tmp_path / "VisualGenome", "--lines", own)
    assert {row["prompt"] for row in rows} == {"Why?", "What is there?"} and len(rows) == 6
    _, rows = prompts(source, "--images", tmp_path / "VisualGenome", "--per-image", 3)
    assert len(rows) == 9 and len({row["k"] for row in rows}) > 3  # each image draws its own
    own.write_text("Why?\nWhy?\n")
    assert "holds a line twice" in prompts(source, "--lines", own)[0]


def test_any_file_of_rows_is_drawn_from_and_images_in_it_are_kept(tmp_path, prompts):
    published.pictures(tmp_path, "a.png", "b.png")
    pair = {"question": "What is it?", "chosen": "A mug.", "rejected": "A cat."}
    rows = [pair | {"image": "a.png"}, pair | {"image": "a.png", "chosen": "A red mug."}, pair | {"image": "b.png"}]
    source = published.written(tmp_path / "rlaifv.json", rows)
    told, _ = prompts(source)
    assert told.startswith("rows: 2 prompts about 2 images") and "1 repeats of an image and question" in told
    held = {name: (tmp_path / name).read_bytes() for name in ("a.png", "b.png")}
    packed = [{"image": {"bytes": data, "path": name}, **pair} for name, data in held.items()]
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(packed), tmp_path / "packed.parquet")
    _, rows = prompts(tmp_path / "packed.parquet")
    assert {(prompts.path.parent / row["image"]).read_bytes() for row in rows} == set(held.values())
    _, (one,) = prompts(tmp_path / "packed.parquet", "--take", 1, out="one.jsonl")
    assert len(list((prompts.path.parent / "one_images").iterdir())) == 1  # only what is drawn is kept
    assert not any(asked.problem for asked in read_asked(prompts.path)) and one["id"] in {row["id"] for row in rows}


# the draw


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_the_file(tmp_path, prompts):
    source, root = published.llava_150k(tmp_path), ("--images", tmp_path / "train2017")
    _, three = prompts(source, *root, "--take", 3, "--seed", 5)
    _, five = prompts(source, *root, "--take", 5, "--seed", 5)
    assert five[:3] == three and len(five) == 5  # fewer are the beginning of more
    rows = json.loads(source.read_text())
    published.written(source, [*reversed(rows[1:]), rows[0]])
    assert prompts(source, *root, "--take", 3, "--seed", 5)[1] == three
    seeds = {tuple(names(prompts(source, *root, "--take", 3, "--seed", seed)[1])) for seed in range(6)}
    assert len(seeds) > 3


def test_a_question_with_several_answers_is_one_prompt_that_keeps_them(tmp_path, prompts):
    published.pictures(tmp_path, "1.jpg")
    asked = {"image_id": "1", "question": "How many?"}
    rows = [asked | {"answer": text} for text in ("Four.", "Three.", "Two.", "Three.", "Three. ")]
    orders = []
    for order in (rows, rows[::-1]):
        told, (one,) = prompts(published.written(tmp_path / "lrv.json", order))
        assert "1 have several true answers" in told and "4 repeats of an image and question" in told
        orders.append((one["reference"], one["references"]))
    assert orders == [("Three.", ["Three.", "Four.", "Two."])] * 2


def test_most_of_an_image_and_a_part_of_the_rows(tmp_path, prompts):
    source, root = published.lrv(tmp_path), ("--images", tmp_path / "vg")
    told, rows = prompts(source, *root, "--per-image", 1)
    assert len({row["image"] for row in rows}) == len(rows) == 3 and "left out: 1 prompts beyond 1 of an image" in told
    assert {row["prompt"] for row in prompts(source, *root, "--rows", "1:3")[1]} == {
        "What is on the stove?",
        "What is this?",
    }
    graphs = published.gqa(tmp_path)
    _, rows = prompts(graphs, "--images", tmp_path / "VisualGenome", "--rows", "1:", "--lines", "none")
    assert sorted(row["id"] for row in rows) == ["1", "3"]  # a part keeps the numbers of the whole file


# what reads it


def test_generate_reads_it_and_later_stages_know_the_truth(tmp_path, prompts):
    prompts(published.llava_150k(tmp_path), "--images", tmp_path / "train2017", "--take", 4)
    asked = list(read_asked(prompts.path))
    assert len(asked) == 4 and not any(one.problem for one in asked) and all(one.images for one in asked)
    tally = answers(prompts.path, tmp_path / "answers", plan=planned("sima"))
    found = list(read_answers(tmp_path / "answers"))
    assert tally.failed == 0 and len(found) == 8
    kept = map(json.loads, prompts.path.read_text().splitlines())
    truth = {(row["image"].rpartition("/")[2], row["prompt"], row["reference"]) for row in kept}
    assert {(one.images[0].rpartition("/")[2], one.question, one.reference) for one in found} == truth
    assert len(truth) == 4
    # SIMA's critic is shown it
    shown = []

    def say(request):
        shown.append(json.dumps(request.messages))
        return "The first is right. [[1]]"

    stage(critique, tmp_path / "answers", tmp_path / "critic", Says(say), critics("sima"))
    assert len(shown) == 4 and all(any(json.dumps(text)[1:-1] in one for one in shown) for *_, text in truth)


def test_dgprefs_preset_asks_its_eight_wordings_under_dgprefs_keys(tmp_path, prompts):
    options = ("--images", tmp_path / "VisualGenome", "--lines", "none", "--take", 2)
    told, _ = prompts(published.gqa(tmp_path), *options)
    assert told.startswith("graphs: 2 prompts about 2 images")
    tally = answers(prompts.path, tmp_path / "answers", plan=planned("dgpref"))
    found = list(stage_rows(tmp_path / "answers"))
    assert tally.failed == 0 and len(found) == 16 and len({row["group"] for row in found}) == 2
    kept = {row["prompt_id"].partition("_")[0]: row["meta"]["name"] for row in found}
    assert kept.items() <= {"0": "2350001", "1": "17", "3": "2400"}.items() and len(kept) == 2


# mistakes, each one line


def test_every_mistake_is_one_line(tmp_path, prompts):
    source, root = published.llava_150k(tmp_path), ("--images", tmp_path / "train2017")
    graphs = published.gqa(tmp_path)
    marks = [{"id": 1, "image_id": 1, "caption": "A"}, {"id": 2, "caption": "B"}]
    broken = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": marks}
    cases = [
        ((source, "--kind", "vqa"), "--kind: unknown kind 'vqa'; choose auto, scigraphqa, llava, lrv, coco, graphs"),
        (
            (source, "--kind", "lrv"),
            "is no lrv file: its first row has id, image, conversations, and lrv is told by image_id and question "
            "(it looks like llava)",
        ),
        ((tmp_path / "none.json",), "does not exist"),
        ((published.written(tmp_path / "odd.json", [{"a": 1}]),), "no data set of a known kind: its first row has a."),
        (
            (source, *root, "--take", 9),
            f"--take 9: there are 7 prompts; 1 images are missing under {tmp_path / 'train2017'}, the first "
            "000000000007.jpg (--images names the root)",
        ),
        ((graphs, "--images", tmp_path / "VisualGenome", "--take", 4), "--take 4: there are 3 images; 1 images are"),
        (
            (published.written(tmp_path / "bad_coco.json", broken), "--kind", "coco"),
            "bad_coco.json:0: an image, a category or an annotation is not whole (KeyError: 'image_id')",
        ),
        ((source,), "nothing can be drawn of 8 prompts; 7 images are missing under"),
        ((source, "--images", tmp_path / "gone"), "there is no such folder"),
        ((source, *root, "--lines", "none"), "--lines has no effect on llava: it has its own questions"),
        ((graphs, "--turns", "all"), "--turns has no effect on graphs: it has no conversations"),
        ((graphs, "--lines", "none", "--per-image", 1), "--per-image has no effect on graphs"),
        ((graphs, "--lines", "lines.txt"), "eight, none, or a file of a prompt a line"),
        ((source, *root, "--turns", "last"), "--turns: 'last' is not first or all"),
        ((source, *root, "--rows", "5"), "write FROM:TO"),
        ((source, *root, "--rows", "5:5"), "there is no row from 5 to 5"),
    ]
    for options, told in cases:
        assert told in prompts(*options)[0], options
    assert "written as .jsonl" in prompts(source, *root, out="prompts.json")[0]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"image": "000000000002.jpg", "conversations": []}, "the conversation is not a list of turns"),
        ({"image": "000000000002.jpg", "conversations": published.said(" ")}, "the question is empty"),
        ({"image": "000000000002.jpg", "conversations": [{"from": "x", "value": "y"}]}, "a turn is not {from, value}"),
        ({"image": "000000000002.jpg", "conversations": [{"from": [], "value": "y"}]}, "the row is not of this kind"),
        ({"image": "000000000002.jpg", "conversations": published.said("<image><image>", "A.")}, "2 times <image>"),
        ({"image": "http://a/b.jpg", "conversations": published.said("What?", "A.")}, "is an address"),
    ],
)
def test_a_bad_row_is_named_or_left_out_and_counted(tmp_path, prompts, row, told):
    source, root = published.llava_150k(tmp_path), ("--images", tmp_path / "train2017")
    published.written(source, [*json.loads(source.read_text()), row])
    said, _ = prompts(source, *root)
    assert said.startswith("llava_instruct_150k.json:8: ") and told in said
    said, rows = prompts(source, *root, "--on-error", "drop")
    assert len(rows) == 7 and "left out: 1 bad rows" in said and told in said
