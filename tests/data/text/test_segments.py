"""Changed tokens: RLHF-V's golden vectors through whole examples, recipes, character spans, claims."""

import numpy as np
import pytest

from mmfast.data.examples import ExampleBuilder
from mmfast.data.records import ImageInfo, Record
from mmfast.data.settings import DataSettings
from mmfast.data.text.segments import RECIPES, changed_flags, claim_segments, span_weights
from mmfast.data.text.templates import Template
from mmfast.data.text.tokens import Tokenizer
from mmfast.ops.segments import changed_segments
from tests.make.llama_tokenizer import llama_tokenizer

R = list(range(30))
P = list(range(1000, 1190))
GOLDEN = [  # rejected, chosen -> changed in rejected, changed in chosen (measured on RLHF-V's matcher)
    ([1, 2, 3, 4, 50, 5, 6, 7, 8], [1, 2, 3, 4, 99, 98, 5, 6, 7, 8], [4], [4, 5]),
    ([1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 99, 98, 5, 6, 7, 8], [], []),
    (R, R[:10] + R[20:], [], []),
    ([1, 2, 3, 4, 50, 5, 6, 51, 7, 8, 9], [1, 2, 3, 4, 60, 5, 6, 61, 7, 8, 9], [4, 5, 6, 7], [4, 5, 6, 7]),
    ([1, 2, 3, 9, 4, 5], [1, 2, 3, 8, 4, 5], [3, 4, 5], [3, 4, 5]),
    ([1, 2, 3, 9, 4, 5, 0, 0, 0], [1, 2, 3, 8, 4, 5, 0, 0, 0], [3], [3]),
    ([1, 2], [3, 4], [0, 1], [0, 1]),
    ([1, 2, 3], [1, 2, 3], [], []),
    (P + [20, 21] + [7] * 4 + [22], P + [9, 10, 11] + [7] * 4 + [12, 13, 14], list(range(190, 197)),
     list(range(190, 200))),
    (P[1:] + [20, 21] + [7] * 4 + [22], P[1:] + [9, 10, 11] + [7] * 4 + [12, 13, 14], [189, 190, 195],
     [189, 190, 191, 196, 197, 198]),
]  # fmt: skip


@pytest.mark.parametrize(("rejected", "chosen", "in_rejected", "in_chosen"), GOLDEN)
def test_golden_vectors(rejected, chosen, in_rejected, in_chosen):
    """compat flags: index i of the shifted sequence is token i + 1; the first `prompt` tokens carry no loss."""
    first = -1
    sides = [(np.asarray([first, *ids], np.int32), [(1, len(ids) + 1)]) for ids in (rejected, chosen)]
    flags = changed_flags("compat", *sides)
    assert [np.flatnonzero(f).tolist() for f in flags] == [in_rejected, in_chosen]
    prompt = 2  # a scored span that begins later sees the same changes, from its own start
    sides = [(ids, [(1 + prompt, len(ids))]) for ids, _ in sides]
    late = changed_flags("compat", *sides)
    assert [np.flatnonzero(f).tolist() for f in late] == [
        [i - prompt for i in want if i >= prompt] for want in (in_rejected, in_chosen)
    ]


def test_clean_sees_the_responses_alone():
    """Equal prompts and an equal tail of two: clean has no prompt to match, compat has."""
    rejected, chosen = np.asarray([5, 6, 7, 8, 1, 2], np.int32), np.asarray([5, 6, 7, 9, 1, 2], np.int32)
    clean = changed_flags("clean", (rejected, [(3, 6)]), (chosen, [(3, 6)]))
    want = changed_segments([8, 1, 2], [9, 1, 2])
    assert [np.flatnonzero(f).tolist() for f in clean] == [w.tolist() for w in want] == [[0, 1, 2]] * 2
    own = changed_flags("clean", (rejected, [(3, 6)]), (np.asarray([5, 6, 7, 8, 1, 2, 4]), [(3, 7)]), "own")
    assert own[1].tolist() == [False, False, False, True]
    with pytest.raises(ValueError, match="'compat' ignores insertions"):
        changed_flags("compat", (rejected, [(3, 6)]), (chosen, [(3, 6)]), "own")


def test_recipes():
    release, paper = RECIPES["rlhfv_release"], RECIPES["rlhfv_paper"]
    assert (release.gamma, release.average, release.beta) == (1.1, False, 0.1)
    assert (paper.gamma, paper.average, paper.beta) == (5.0, True, 0.5)


def example(mode, **more):
    hf = llama_tokenizer("legacy")
    tok = Tokenizer(hf, hf.convert_tokens_to_ids("<image>"))
    ask = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}
    record = Record(
        id="x",
        source="f:0",
        images=("a",),
        prompt=(ask,),
        chosen=({"role": "assistant", "content": "It is a red mug on the desk."},),
        rejected=({"role": "assistant", "content": "It is a blue pen on the desk."},),
        **more,
    )
    info = ImageInfo(id="i", source="", width=1, height=1, tokens=576)
    template = Template("vicuna_v1", tok)
    built, _ = ExampleBuilder(template, DataSettings(segments=mode)).build(record, [info])
    return built, template.tokenizer


def words(tok, branch, flags):
    at = [p for a, b in branch.spans for p in range(a, b)]
    return [tok.special.id_to_token(int(branch.ids[p])) for p, f in zip(at, flags, strict=True) if f]


@pytest.mark.parametrize("mode", ["clean", "compat"])
def test_changed_words_of_an_example(mode):
    built, tok = example(mode)
    assert words(tok, built.chosen, built.chosen.changed) == ["▁red", "▁mug"]
    assert words(tok, built.rejected, built.rejected.changed) == ["▁blue", "▁pen"]
    assert built.chosen.weights is None


def test_spans_of_the_record():
    built, tok = example("record", segments={"chosen": [(8, 11, 2.5), (12, 15, 0.5)], "rejected": [(8, 12)]})
    weights = built.chosen.weights
    assert words(tok, built.chosen, weights == np.float32(2.5)) == ["▁red"]
    assert words(tok, built.chosen, weights == np.float32(0.5)) == ["▁mug"]
    assert built.chosen.changed is None and built.rejected.weights is None
    assert words(tok, built.rejected, built.rejected.changed) == ["▁blue"]
    plain, _ = example("none", segments={"chosen": [(8, 11, 2.5)]})
    assert plain.chosen.weights is None and plain.chosen.changed is None


def test_overlapping_spans_take_the_largest_weight():
    offsets = np.asarray([(0, 2), (2, 5), (5, 9)])
    changed, weights = span_weights(offsets, [(0, 3, 0.5), (2, 4, 3.0), (6, 7)], 0)
    assert weights.tolist() == [0.5, 3.0, 1.0] and changed.tolist() == [False, False, True]


def test_claims():
    text = "A red mug stands on a desk. It costs 2.50 dollars! Nothing else."
    claims = [("The mug is red.", False), ("A mug is on a desk.", True), ("The price is 2.50 dollars.", False)]
    spans = claim_segments(text, claims, wrong=4.0)
    assert [(text[a:b], w) for a, b, w in spans] == [
        ("A red mug stands on a desk.", 2.5), ("It costs 2.50 dollars!", 4.0)
    ]  # fmt: skip
