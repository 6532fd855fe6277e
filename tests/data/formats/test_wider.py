"""Forms that other trainers' users bring: alpaca, query/response, ranking beside messages, parts with values, HH."""

import base64
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmfast.cli.data import app
from mmfast.data.build import build
from mmfast.data.formats.known import detect, read_records
from mmfast.data.settings import DataSettings
from tests.make.format_samples import assistant, gpt, human, user


def part(kind, value):
    return {"type": kind, "value": value}


def v1(role, *parts, weight=0.0):
    return {"role": role, "content": list(parts), "loss_weight": weight}


ASKED = (user("What is this?"), assistant("A mug."), user("Red?"))
SHOWN = (user([{"type": "image"}, {"type": "text", "text": "What is this?"}]), *ASKED[1:])
YES, NO = (assistant("It is."),), (assistant("No."),)
IMAGE = {"images": ["a.png"]}
TALK = [human("What is this?"), gpt("A mug."), human("Red?")]
V1 = [
    v1("user", part("text", "What is this?")),
    v1("assistant", part("text", "A mug.")),
    v1("user", part("text", "Red?")),
]
HISTORY = [["What is this?", "A mug."]]
CASES = {  # a row -> its format, prompt, chosen and rejected
    "alpaca": (
        {"instruction": "Red?", "input": "", "output": "It is.", "history": HISTORY},
        "alpaca",
        ASKED,
        YES,
        None,
    ),
    "alpaca's input": (
        {"instruction": "Is it", "input": "red?", "output": "It is."},
        "alpaca",
        (user("Is it\nred?"),),
        YES,
        None,
    ),
    "alpaca's ranking": (
        {"instruction": "Red?", "chosen": "It is.", "rejected": "No.", "output": "", "history": HISTORY, **IMAGE},
        "alpaca",
        SHOWN,
        YES,
        NO,
    ),
    "alpaca's older ranking": ({"instruction": "Red?", "output": ["It is.", "No."]}, "alpaca", ASKED[2:], YES, NO),
    "Argilla's UltraFeedback": (
        {"instruction": "Red?", "chosen_response": "It is.", "rejected_response": "No."},
        "alpaca",
        ASKED[2:],
        YES,
        NO,
    ),
    "query": ({"query": "Red?", "response": "It is.", "history": HISTORY}, "swift", ASKED, YES, None),
    "query's ranking": (
        {"query": "Red?", "response": "It is.", "rejected_response": "No.", **IMAGE, "history": repr(HISTORY)},
        "swift",
        SHOWN,
        YES,
        NO,
    ),
    "messages and answers": (
        {"messages": list(ASKED), "chosen": YES[0], "rejected": NO[0], **IMAGE},
        "swift",
        SHOWN,
        YES,
        NO,
    ),
    "conversations and answers": (
        {"conversations": TALK, "chosen": gpt("It is."), "rejected": gpt("No.")},
        "swift",
        ASKED,
        YES,
        NO,
    ),
    "LLaMA-Factory's own pairs": (
        {
            "chosen_messages": [*V1, v1("assistant", part("text", "It is."), weight=1.0)],
            "rejected_messages": [*V1, v1("assistant", part("text", "No."), weight=1.0)],
        },
        "swift",
        ASKED,
        YES,
        NO,
    ),
    "LLaMA-Factory's own messages": (
        {"messages": [*V1, v1("assistant", part("text", "It is."), weight=1.0)]},
        "trl",
        ASKED,
        YES,
        None,
    ),
    "HH": (
        {
            "chosen": "\n\nHuman: What is this?\n\nAssistant: A mug.\n\nHuman: Red?\n\nAssistant: It is.",
            "rejected": "\n\nHuman: What is this?\n\nAssistant: A mug.\n\nHuman: Red?\n\nAssistant: No.",
        },
        "hh",
        ASKED,
        YES,
        NO,
    ),
}


def texts(messages):
    """A message of text parts alone is one of text."""
    return messages and tuple(
        m
        if isinstance(m["content"], str) or any(p["type"] != "text" for p in m["content"])
        else m | {"content": "".join(p["text"] for p in m["content"])}
        for m in messages
    )


@pytest.mark.parametrize("name", CASES)
def test_a_form_is_recognised_and_says_what_it_means(name, rows, picture):
    row, fmt, prompt, chosen, rejected = CASES[name]
    picture("a.png")
    path = rows("r.jsonl", [row])
    assert detect(path).name == fmt
    (record,) = read_records(path)
    assert (texts(record.prompt), record.chosen, record.rejected) == (prompt, chosen, rejected)
    assert record.images == tuple(row.get("images", ())) and record.meta.keys() <= {"kind"}


def test_several_rejected_answers_are_several_pairs(rows):
    row = {"id": "7", "messages": [*ASKED, *YES], "rejected_response": ["No.", "Maybe."]}
    first, second = read_records(rows("r.jsonl", [row]))
    assert [first.rejected, second.rejected] == [NO, (assistant("Maybe."),)]
    assert (first.id, second.id) == ("7-0", "7-1") and first.chosen == second.chosen == YES


def places(data: bytes) -> dict[str, dict]:
    packed = base64.b64encode(data).decode()
    return {
        "transformers": {"type": "image", "image": "a.png"},
        "a path": {"type": "image", "path": "a.png"},
        "base64": {"type": "image", "base64": packed},
        "OpenAI": {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{packed}"}},
        "LLaMA-Factory": {"type": "image_url", "value": "a.png"},
    }


@pytest.mark.parametrize("name", [*places(b""), "file://"])
@pytest.mark.parametrize("form", ["trl", "swift"])
def test_an_image_lies_in_a_part_of_content(form, name, rows, picture, llava_dir, tmp_path):
    data = picture("a.png").read_bytes()
    inside = places(data).get(name) or {"type": "image_url", "image_url": {"url": f"file://{tmp_path}/a.png"}}
    talk = [user([inside, {"type": "text", "text": "What is this?"}])]
    row = {"prompt": talk, "chosen": "A mug.", "rejected": "A cat."}
    if form == "swift":
        row = {"messages": [*talk, assistant("A mug.")], "rejected_response": "A cat."}
    path = rows("p.jsonl", [row])
    assert detect(path).name == form
    result = CliRunner().invoke(app, ["convert", str(path), str(tmp_path / "elsewhere" / "q.jsonl")])
    assert result.exit_code == 0, result.output
    for file in (path, tmp_path / "elsewhere" / "q.jsonl"):
        settings = DataSettings(path=str(file), workers=1)
        store = build(settings, llava_dir, tmp_path / "cache", progress=False, report_to=lambda text: None)
        (image,) = store.images.values()
        assert Path(image.source).read_bytes() == data
    url = {"type": "image_url", "image_url": {"url": "https://x/a.png"}}
    (record,) = read_records(
        rows("u.jsonl", [json.loads(json.dumps(row).replace(json.dumps(inside), json.dumps(url)))])
    )
    assert record.images == ("https://x/a.png",)  # refused where it is opened: test_bad_input.py


def test_images_stand_in_the_words_of_a_query(rows):
    row = {
        "query": "<img>b.png</img>Red?",
        "history": [["<img>a.png</img>\nWhat is this?", "A mug."]],
        "response": "No.",
    }
    (record,) = read_records(rows("r.jsonl", [row]))
    image = [{"type": "image", "index": n} for n in (0, 1)]
    assert record.images == ("a.png", "b.png")
    assert record.prompt[0]["content"] == [image[0], {"type": "text", "text": "What is this?"}]
    assert record.prompt[2]["content"] == [image[1], {"type": "text", "text": "Red?"}]
    for history in ([], [["<img>a.png</img>", "b"]]):
        both = row | IMAGE | {"history": history, "query": "Red?" if history else row["query"]}
        with pytest.raises(ValueError, match="images stand in a column and in the words"):
            list(read_records(rows("r.jsonl", [both])))


BAD = {
    "alpaca without an answer": ({"instruction": "Red?", "output": 3}, "an answer is a int, not a text"),
    "alpaca without a question": ({"instruction": "", "output": "It is."}, "no texts, or both empty"),
    "two good answers": (
        {"instruction": "Red?", "chosen": "It is.", "rejected": "No.", "output": "Yes."},
        "which of them is the good one",
    ),
    "history": ({"query": "Red?", "response": "It is.", "history": [["What?"]]}, "history is not a list of"),
    "history's text": ({"query": "Red?", "response": "It is.", "history": "[[("}, "history is not a list of"),
    "a weight": ({"messages": [*V1, v1("assistant", part("text", "It is."), weight=0.5)]}, "has loss_weight 0.5"),
    "a mark": (
        {"chosen": "Human: a\n\nAssistant: b\n\nHuman: c", "rejected": "Human: a\n\nAssistant: b"},
        "does not end with an answer",
    ),
    "other questions": (
        {"chosen": "Human: a\n\nAssistant: b", "rejected": "Human: c\n\nAssistant: b"},
        "do not begin with the same question",
    ),
    "both places": (
        {"messages": [user([{"type": "image", "image": "a.png"}]), *YES], "rejected_response": "No.", **IMAGE},
        "images stand in a column and in content parts",
    ),
    "a part": ({"messages": [user([{"type": "video", "video": "a.mp4"}]), *YES]}, "neither text nor image"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_a_row_gets_wrong_is_one_line(name, rows):
    row, said = BAD[name]
    with pytest.raises(ValueError, match=f"r.jsonl:0: .*{said}") as error:
        list(read_records(rows("r.jsonl", [row])))
    assert "\n" not in str(error.value)


def test_what_alpaca_and_hh_cannot_carry_is_named(rows, tmp_path):
    path = rows("p.jsonl", [{"prompt": [user("A?"), user("B?")], "chosen": "C.", "rejected": "D."}])
    run = CliRunner().invoke
    result = run(app, ["convert", str(path), str(tmp_path / "o.json"), "--to", "alpaca"])
    assert "its turns are no history of questions and answers" in str(result.exception)
    path = rows("s.jsonl", [{"system": "Be brief.", "prompt": "A?", "chosen": "C.", "rejected": "D.", "weight": 2.0}])
    result = run(app, ["convert", str(path), str(tmp_path / "o.jsonl"), "--to", "hh"])
    assert {"not carried: system prompt (of 1 records)", "not carried: weight (of 1 records)"} <= {
        *result.output.split("\n")
    }
