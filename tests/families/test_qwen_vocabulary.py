"""qwen.tiktoken becomes a tokenizer that spells as the ranks say, and a template that writes Qwen-VL's text. The
released vocabulary's golden ids are compared where MMFAST_QWEN names a folder with qwen.tiktoken."""

from __future__ import annotations

import json
import os
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mmfast.data.examples import ExampleBuilder
from mmfast.data.records import ImageInfo, Record
from mmfast.data.settings import DataSettings
from mmfast.data.text.templates import Template
from mmfast.data.text.tokens import Tokenizer
from mmfast.families.qwen import CHATML
from mmfast.families.qwen.vocabulary import SPECIAL, merges_of, ranks_of, tokenizer_of
from mmfast.world.grammar import corpus
from mmfast.world.models import tiny_tokenizer
from tests.families.test_qwen import golden
from tests.make.qwen_files import RANKS, publish, ranks

IMAGE = ImageInfo(id="a", source="", width=9, height=9, tokens=256, grid=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return publish(tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return tokenizer_of(folder / "qwen.tiktoken", CHATML.template)


def spelt(text: bytes, table: dict[bytes, int]) -> list[int]:
    """As tiktoken does it: of all neighbours the pair of the lowest rank is joined, until none has one."""
    parts = [text[i : i + 1] for i in range(len(text))]
    while pairs := [(table[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in table]:
        i = min(pairs)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [table[part] for part in parts]


def test_it_spells_as_the_ranks_say(tokenizer):
    table, draw = ranks(), random.Random(0)
    texts = [*list(corpus())[:40], "It's 12345 tokens", "  two  spaces\n\n x", "café 🐶 图中", "tab\tend "]
    texts += ["".join(draw.choice("the redbluofcirc \n") for _ in range(30)) for _ in range(40)]
    cut = tokenizer.backend_tokenizer.pre_tokenizer
    joined = 0
    for text in texts:
        pieces = [piece[1] for piece in cut.pre_tokenize_str(text)]
        want = [i for a, b in pieces for i in spelt(text[a:b].encode(), table)]
        assert tokenizer(text).input_ids == want, text
        assert tokenizer.decode(want) == text
        joined += sum(i > 255 for i in want)
    assert joined > 200, "the file's joins are used"


def test_its_special_tokens_stand_behind_the_ranks_in_the_released_order(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == [*range(RANKS, RANKS + 217)] and len(SPECIAL) == 217
    assert len(tokenizer) == RANKS + 217 and len(merges_of(ranks())) == RANKS - 256
    assert tokenizer("<|im_start|>a<|extra_3|><imgpad>").input_ids == [RANKS + 1, 97, RANKS + 6, RANKS + 216]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_the_merges_are_those_that_made_the_ranks():
    grown = [token for token, rank in ranks().items() if rank > 255]
    assert [a + b for a, b in merges_of(ranks())] == grown


def test_a_file_that_is_not_whole_is_told(folder, tmp_path):
    lines = (folder / "qwen.tiktoken").read_bytes().splitlines(keepends=True)
    file = tmp_path / "qwen.tiktoken"
    file.write_bytes(b"".join(lines)[:-9])
    with pytest.raises(ValueError, match=r"qwen.tiktoken:300 is no line of a tiktoken file"):
        ranks_of(file)
    file.write_bytes(b"".join(lines[:280] + lines[281:]))
    with pytest.raises(ValueError, match=r"is not whole: its 299 ranks do not run from 0 on"):
        ranks_of(file)
    file.write_bytes(b"".join(lines[1:]).replace(b" 300", b" 0"))
    with pytest.raises(ValueError, match="is not whole"):
        ranks_of(file)
    file.write_bytes(b"".join(lines).replace(b"\n", b"\r\n"))
    assert ranks_of(file) == ranks(), "older copies of the file have Windows' line ends"
    with pytest.raises(ValueError, match="is not made by joining two others"):
        merges_of({**ranks(), b"xqzj": 300})


# what a prompt looks like

TURNS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is on the desk?"}]},
    {"role": "assistant", "content": "A mug."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And now?"}]},
]
TEXT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nPicture 1: <img><imgpad></img>\nWhat is on the desk?<|im_end|>\n"
    "<|im_start|>assistant\nA mug.<|im_end|>\n"
    "<|im_start|>user\nPicture 2: <img><imgpad></img>\nAnd now?<|im_end|>\n<|im_start|>assistant\n"
)


def ready(tokenizer) -> Tokenizer:
    return Tokenizer(tokenizer, tokenizer.convert_tokens_to_ids("<imgpad>"))


@pytest.mark.parametrize("name", ["auto", "dgpref_qwen"])
def test_the_template_numbers_the_pictures_and_writes_qwen_vls_marks(name, tokenizer):
    assert Template(name, ready(tokenizer)).opening(TURNS) == TEXT


def test_chatml_has_the_models_own_marks_or_is_refused(tokenizer):
    assert Template("chatml", ready(tokenizer)).opening(TURNS[:1]).count("<img><imgpad></img>") == 1
    other = tiny_tokenizer("qwen2_vl")
    text = Template("chatml", Tokenizer(other, other.convert_tokens_to_ids("<|image_pad|>"))).opening(TURNS[:1])
    assert "<|vision_start|><|image_pad|><|vision_end|>" in text
    spec = json.loads(other.backend_tokenizer.to_str())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if "vision" not in t["content"]]
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(json.dumps(spec)), eos_token="<|im_end|>")
    with pytest.raises(ValueError, match=r"chatml needs the special token <\|vision_start\|>"):
        Template("chatml", Tokenizer(bare, other.convert_tokens_to_ids("<|image_pad|>")))


def built(tokenizer, prompt: str, answer: str):
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
    record = Record(id="1", source="", prompt=[user], chosen=({"role": "assistant", "content": answer},), images=("a",))
    builder = ExampleBuilder(Template("dgpref_qwen", ready(tokenizer)), DataSettings())
    branch = builder.build(record, [IMAGE])[0].chosen
    return branch.ids.tolist(), [i for a, b in branch.spans for i in range(a, b)]


def test_scored_are_the_answer_its_end_mark_and_the_newline(tokenizer):
    ids, scored = built(tokenizer, "What is this?", "The image shows a red circle.")
    assert tokenizer.decode([ids[i] for i in scored]) == "The image shows a red circle.<|im_end|>\n"
    assert scored[-1] == len(ids) - 1


# the released vocabulary


@pytest.fixture(scope="module")
def released():
    folder = Path(os.environ.get("MMFAST_QWEN", ""))
    if "MMFAST_QWEN" not in os.environ or not (folder / "qwen.tiktoken").exists():
        pytest.skip("MMFAST_QWEN names no folder with qwen.tiktoken")
    return tokenizer_of(folder / "qwen.tiktoken", CHATML.template)


def padded(ids: list[int]) -> list[int]:
    """The original's path bytes between <img> (151857) and </img> (151858) as one slot."""
    out: list[int] = []
    for token in ids:
        if out and out[-1] == 151859 and token != 151858:
            continue
        out.append(151859 if out and out[-1] == 151857 else token)
    return out


def test_the_originals_ids(released):
    (file,) = golden("tokenizer.json")
    want = json.loads(file.read_text())
    for text, ids, whole, without in zip(
        want["strings"], want["ids"], want["decode"], want["decode_skip"], strict=True
    ):
        assert released(text).input_ids == ids
        assert (released.decode(ids), released.decode(ids, skip_special_tokens=True)) == (whole, without)
    assert {token: released.convert_tokens_to_ids(token) for token in want["special"]} == want["special"]
    two = [TURNS[0], TURNS[1], {"role": "user", "content": "And now?"}]
    for name in ("auto", "dgpref_qwen"):
        template = Template(name, ready(released))
        for key, turns in (("context", TURNS[:1]), ("context2", two)):
            assert released(template.opening(turns)).input_ids == padded(want[key]), (name, key)


def test_dgprefs_labels_but_for_seven_marks_of_the_prompt(released):
    """Its labels score seven marks of the prompt too. They are the same in both answers of a pair, so that they add
    nothing to a difference of the two; we do not score them."""
    (file,) = golden("tokenizer.json")
    want = json.loads(file.read_text())
    answer = released.decode(want["train_ids"][want["train_ids"].index(151858) + 1 :])
    prompt, _, said = answer.removeprefix("\n").partition("<|im_end|>\n<|im_start|>assistant\n")
    ids, scored = built(released, prompt, said.removesuffix("<|im_end|>\n"))
    assert ids == padded(want["train_ids"])
    labels, pieces = want["train_labels"], want["train_ids"]
    theirs = [pieces[i] for i, label in enumerate(labels) if label != -100]
    assert theirs[7:] == [ids[i] for i in scored] and len(theirs) - len(scored) == 7
    start, end, newline = 151644, 151645, 198
    assert theirs[:7] == [start, end, newline, start, end, newline, start]
    assert np.diff(scored).tolist() == [1] * (len(scored) - 1)
