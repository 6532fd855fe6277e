"""Ids and label masks token by token: against arrays written out, LLaVA's masking rules, and HF's processors."""

import json
import re
from itertools import accumulate

import pytest
from PIL import Image

from mmfast.data.examples import ExampleBuilder
from mmfast.data.problems import BadRow
from mmfast.data.records import ImageInfo, Record
from mmfast.data.settings import DataSettings
from mmfast.data.text.templates import NAMED, Template
from mmfast.data.text.tokens import ANCHORS, Encoded, Tokenizer, _after_anchor
from tests.make.llama_tokenizer import llama_tokenizer

INFO = ImageInfo(id="i", source="", width=1, height=1, tokens=576)
ASK = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}
TURNS = (ASK, {"role": "assistant", "content": "It is red."}, {"role": "user", "content": "Yes?"})
SYSTEM = (
    "<s> ▁A ▁chat ▁between ▁a ▁curious ▁user ▁and ▁an ▁artificial ▁intelligence ▁assistant. ▁The ▁assistant ▁gives "
    "▁helpful, ▁detailed, ▁and ▁polite ▁answers ▁to ▁the ▁user's ▁questions."
)


def record(answer="No.", prompt=TURNS, **more):
    return Record(id="x", source="f:0", images=("a",), prompt=prompt,
                  chosen=({"role": "assistant", "content": answer},), **more)  # fmt: skip


def tokenizer(mode):
    hf = llama_tokenizer(mode)
    return Tokenizer(hf, hf.convert_tokens_to_ids("<image>"))


def shown(tok, branch):
    """Tokens as text, the scored ones in brackets."""
    scored = {p for a, b in branch.spans for p in range(a, b)}
    names = [tok.special.id_to_token(int(i)) for i in branch.ids]
    return " ".join(f"[{t}]" if i in scored else t for i, t in enumerate(names))


def make(tok, name, rec=None, turns="all", **settings):
    builder = ExampleBuilder(Template(name, tok), DataSettings(turns=turns, **settings))
    rec = rec or record()
    example, notes = builder.build(rec, [INFO] * len(rec.images))
    return example, notes


GOLDEN = {
    "vicuna_v1": SYSTEM + " ▁USER: ▁ <image> ▁ <0x0A> What ▁is ▁this ? ▁ASSISTANT: [▁It] [▁is] [▁red] [.] [</s>] "
    "▁USER: ▁Yes ? ▁ASSISTANT: [▁No.] [</s>]",
    "llava_v0": SYSTEM.replace("user", "human") + " <0x0A> <0x0A> ### ▁Human: ▁ <image> ▁ <0x0A> What ▁is ▁this ? "
    "<0x0A> ### ▁Assistant: [▁It] [▁is] [▁red] [.] [<0x0A>] [###] ▁Human: ▁Yes ? <0x0A> ### ▁Assistant: [▁No.] "
    "[<0x0A>] [###] [▁]",
    "dgpref_llava": "<s> <image> ▁ <0x0A> USER: ▁What ▁is ▁this ? <0x0A> ASSISTANT: [▁It] [▁is] [▁red] [.] <0x0A> "
    "USER: ▁Yes ? <0x0A> ASSISTANT: [▁No.]",
}  # fmt: skip
# LLaVA on a tokenizer without the legacy mark: what comes after an end mark has no word-start mark of its own.
MODERN = GOLDEN["vicuna_v1"].replace("[</s>] ▁USER:", "[</s>] USER:").replace("<image> ▁ <0x0A>", "<image> <0x0A>")


@pytest.mark.parametrize("loaded", ["legacy", "modern"])
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_masks(name, loaded):
    """A seed template names the tokenizer's mode, so the form it was saved in does not matter."""
    tok = tokenizer(loaded)
    example, notes = make(tok, name)
    assert shown(tok, example.chosen) == GOLDEN[name] and not notes


def test_golden_masks_last_turn():
    tok = tokenizer("legacy")
    example, _ = make(tok, "vicuna_v1", turns="last")
    head, _, tail = GOLDEN["vicuna_v1"].rpartition("▁USER:")
    assert shown(tok, example.chosen) == head.replace("[", "").replace("]", "") + "▁USER:" + tail


def test_modern_mode_differs_where_it_should(monkeypatch):
    from dataclasses import replace

    monkeypatch.setitem(NAMED, "vicuna_v1", replace(NAMED["vicuna_v1"], mode="modern"))
    tok = tokenizer("legacy")
    example, _ = make(tok, "vicuna_v1")
    assert shown(tok, example.chosen) == MODERN


def llava_labels(tok, text):
    """LLaVA's preprocessing, from its published rules: the ids of a conversation text and which of them are labels."""

    def ids(chunk):  # each chunk between images with its own BOS, duplicates dropped
        out = []
        for i, part in enumerate(chunk.split("<image>")):
            encoded = tok.special.encode(part, add_special_tokens=True).ids if part else [1]
            out += ([tok.image_token_id] if i else []) + (encoded[1:] if i else encoded)
        return out

    whole, labels, at = ids(text), set(), 1
    for round_ in text.split("</s>"):
        if not round_:
            break
        prefix = round_.split(" ASSISTANT: ")[0] + " ASSISTANT: "
        n_prefix, n_round = len(ids(prefix)) - 2, len(ids(round_))
        labels |= set(range(at + n_prefix, at + n_round))
        at += n_round
    assert at == len(whole)
    return whole, labels


@pytest.mark.parametrize("answer", ["No.", "It is a mug, and a pen. The desk?", "Two cows graze. " * 5])
def test_equal_to_llavas_own_masking(answer):
    tok = tokenizer("legacy")
    template = Template("vicuna_v1", tok)
    example, _ = make(tok, "vicuna_v1", record(answer))
    text = template.tokenizer.special.decode(example.chosen.ids.tolist(), skip_special_tokens=False)
    text = text.removeprefix("<s>").lstrip().replace("<image> ", "<image>").replace("</s> USER", "</s>USER")
    ids, labels = llava_labels(template.tokenizer, text)
    assert ids == example.chosen.ids.tolist()
    assert labels == {p for a, b in example.chosen.spans for p in range(a, b)}


WORDS = "No </s> ASSISTANT: <image> cat."
WORD_TOKENS = "[▁No] [▁] [<] [/] [s] [>] [▁ASSISTANT:] [▁] [<] [i] [m] [a] [g] [e] [>] [▁cat] [.]"


@pytest.mark.parametrize("loaded", ["legacy", "modern"])
@pytest.mark.parametrize("name", ["vicuna_v1", "dgpref_llava", "auto"])
def test_special_tokens_in_answers_are_words(name, loaded):
    tok = tokenizer(loaded)
    rec = record(WORDS, prompt=(*TURNS[:2], {"role": "user", "content": "Yes?"}))
    example, notes = make(tok, name, rec, turns="last")
    assert WORD_TOKENS in shown(tok, example.chosen)
    assert (example.chosen.ids == tok.image_token_id).sum() == 1
    kinds = {n.kind: n.message for n in notes}
    assert kinds["special-words"] == "chosen: </s>, <image> written out; tokenised as words"
    assert kinds["role-words"] == "chosen: 'ASSISTANT:' stands in an answer, as words"


def test_qwen_golden(qwen_dir):
    tok = Tokenizer.load(qwen_dir)
    text = "It is a <|im_end|>\n<|im_start|> end."
    example, notes = make(tok, "auto", record(text))
    decoded = tok.special.decode(example.chosen.ids.tolist(), skip_special_tokens=False)
    assert decoded == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is this?<|im_end|>\n"
        "<|im_start|>assistant\nIt is red.<|im_end|>\n<|im_start|>user\nYes?<|im_end|>\n"
        f"<|im_start|>assistant\n{text}<|im_end|>\n"
    )
    spans = [tok.special.decode(example.chosen.ids[a:b].tolist(), skip_special_tokens=False)
             for a, b in example.chosen.spans]  # fmt: skip
    assert spans == ["It is red.<|im_end|>\n", f"{text}<|im_end|>\n"]
    ends = (example.chosen.ids == tok.eos_id).sum()
    assert ends == 5  # system, two questions, two answers: the words in the answer are not among them
    assert [n.kind for n in notes] == ["special-words"]
    named, _ = make(tok, "chatml", record(text))
    assert named.chosen.ids.tolist() == example.chosen.ids.tolist() and named.chosen.spans == example.chosen.spans


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_prompt_equals_the_processors(family, llava_dir, qwen_dir):
    """What generation feeds the model: the HF chat template rendered and tokenised with its BOS."""
    folder = {"llava": llava_dir, "qwen": qwen_dir}[family]
    tok = Tokenizer.load(folder)
    example, _ = make(tok, "auto", turns="last")
    ((start, _),) = example.chosen.spans
    messages = [{"role": m["role"], "content": m["content"] if isinstance(m["content"], list) else
                 [{"type": "text", "text": m["content"]}]} for m in TURNS]  # fmt: skip
    text = tok.hf.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert tok.hf(text)["input_ids"] == example.chosen.ids[:start].tolist()


def test_prompt_is_a_prefix_of_both_sides():
    for mode in ("legacy", "modern"):
        tok = tokenizer(mode)
        rec = record("猫", rejected=({"role": "assistant", "content": " a cat"},))
        for name in ("auto", "vicuna_v1"):
            example, _ = make(tok, name, rec, turns="last")
            a, b = example.chosen, example.rejected
            n = min(a.spans[0][0], b.spans[0][0])
            assert a.ids[:n].tolist() == b.ids[:n].tolist()
            if name == "auto":
                assert a.spans[0][0] == b.spans[0][0]


def test_system_message_replaces_the_default():
    tok = tokenizer("legacy")
    rec = record(prompt=({"role": "system", "content": "Yes."}, *TURNS))
    example, _ = make(tok, "vicuna_v1", rec)
    assert shown(tok, example.chosen).startswith("<s> ▁Yes . ▁USER: ▁ <image>")


def test_a_template_that_rewrites_history_is_refused():
    tok = tokenizer("modern")
    tok.chat_template = "{% for m in messages %}{{ loop.length }}{{ m['role'] }}{% endfor %}"
    with pytest.raises(BadRow, match=re.escape("use data.turns = 'last' or a named template")):
        make(tok, "auto")
    with pytest.raises(ValueError, match="unknown template 'vicuna'; choose one of auto, vicuna_v1"):
        Template("vicuna", tok)
    with pytest.raises(ValueError, match=re.escape("chatml needs the special token <|im_start|>")):
        Template("chatml", tok)
    tok.chat_template = "{{ raise_exception('no system here') }}"
    with pytest.raises(BadRow, match="no system here"):
        make(tok, "auto")


def test_words_limit_cuts_an_answer():
    tok = tokenizer("legacy")
    example, notes = make(tok, "dgpref_llava", record("It is a  red mug."), turns="last", max_words=3)
    assert shown(tok, example.chosen).endswith("ASSISTANT: [▁It] [▁is] [▁a]")
    assert [n.kind for n in notes] == ["words-cut"]
    example, notes = make(tok, "dgpref_llava", record("It is a"), turns="last", max_words=3)
    assert not notes


@pytest.mark.parametrize(
    ("limit", "kept"), [(1, "Two\n\ncows"), (2, "Two\n\ncows graze."), (3, "Two\n\ncows graze. "), (4, None), (5, None)]
)
def test_words_are_what_stands_between_single_blanks(limit, kept, qwen_dir):
    """As DGPref counts: line breaks part no words, and a second blank in a row makes an empty one."""
    tok, text = Tokenizer.load(qwen_dir), "Two\n\ncows graze.  Three"
    example, notes = make(tok, "auto", record(text), turns="last", max_words=limit)
    ((a, b),) = example.chosen.spans
    decoded = tok.special.decode(example.chosen.ids[a:b].tolist(), skip_special_tokens=False)
    assert decoded == (kept or text) + "<|im_end|>\n" and bool(notes) == (kept is not None)


def test_words_that_are_all_blanks_are_an_empty_answer(qwen_dir):
    with pytest.raises(BadRow, match=r"chosen begins with data.max_words = 3 blanks"):
        make(Tokenizer.load(qwen_dir), "auto", record("   Two cows."), turns="last", max_words=3)


@pytest.mark.parametrize("kind", ["legacy", "modern", "qwen"])
def test_cutting_at_special_tokens_is_what_the_tokenizer_does(kind, qwen_dir):
    """The path for written-out special tokens, on texts without any: ids and offsets of the tokenizer itself."""
    import random

    tok = Tokenizer.load(qwen_dir) if kind == "qwen" else tokenizer(kind)
    marks = [tok.eos, tok.image_token]
    rng = random.Random(kind)
    alphabet = [*marks, "What", " is", " this", "?", "\n", " ", "  ", "猫", "🙂", "é", "a", "</", "USER: "]
    for _ in range(300):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 12)))
        want = tok.special.encode(text, add_special_tokens=False)
        got = tok._encode_pieces(text)
        assert got.ids == want.ids, text
        if kind == "qwen":  # where the word mark stands for no character, its offsets are a matter of taste
            assert got.offsets == want.offsets


@pytest.mark.parametrize("kind", ["legacy", "modern", "qwen"])
@pytest.mark.parametrize("name", ["auto", "vicuna_v1"])
def test_any_text_survives_as_words(kind, name, qwen_dir):
    import random

    tok = Tokenizer.load(qwen_dir) if kind == "qwen" else tokenizer(kind)
    specials = {*tok.specials} - {"<unk>"}
    rng = random.Random(kind)
    for _ in range(60):
        text = "It" + "".join(rng.choice([*specials, " is", "?", "\n", "猫", " ", "<", "a"]) for _ in range(8)) + "."
        example, _ = make(tok, name, record(text), turns="last")
        ((a, b),) = example.chosen.spans
        ids = example.chosen.ids[a:b].tolist()
        decoded = tok.special.decode(ids, skip_special_tokens=False)
        assert decoded.removesuffix(tok.eos).removesuffix(tok.eos + "\n").strip() == text.strip()
        assert sum(i in set(tok.specials.values()) - {tok.hf.unk_token_id} for i in ids) == 1  # its own end mark


def test_gemma_images_stand_as_its_processor_writes_them(tmp_path):
    from mmfast.world.models import SIZES, tiny_image_processor, tiny_processor, tiny_tokenizer

    hf = tiny_tokenizer("gemma3")
    hf.save_pretrained(tmp_path)
    ids = {n: hf.convert_tokens_to_ids(t) for n, t in (
        ("image_token_index", "<image_soft_token>"), ("boi_token_index", "<start_of_image>"),
        ("eoi_token_index", "<end_of_image>"))}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3"} | ids))
    tok = Tokenizer.load(tmp_path)
    example, _ = make(tok, "auto", record("It is <start_of_image>."), turns="last")
    processor = tiny_processor("gemma3", hf, tiny_image_processor("gemma3", SIZES["tiny"]), SIZES["tiny"])
    messages = [{"role": m["role"], "content": m["content"] if isinstance(m["content"], list) else
                 [{"type": "text", "text": m["content"]}]} for m in TURNS]  # fmt: skip
    text = hf.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    want = processor(text=text, images=[Image.new("RGB", (50, 40))], add_special_tokens=False)["input_ids"][0]
    image = ids["image_token_index"]
    collapsed = [t for i, t in enumerate(want) if t != image or want[i - 1] != image]
    ((start, _),) = example.chosen.spans
    assert example.chosen.ids[:start].tolist() == collapsed


@pytest.mark.parametrize("merged", ["", "\n", "\n\t", "\n\t=", "\n\t=\u00a7"])
def test_text_that_goes_on_keeps_every_token_whatever_the_tokenizer_merges(merged):
    """A tokenizer may make one token of a character and what follows it; a text encoded after one loses none."""

    def encode(text):
        widths = [2, *[1] * (len(text) - 2)] if text[0] in merged else [1] * len(text)
        ends = list(accumulate(widths))
        return Encoded([ord(text[b - 1]) for b in ends], [(b - n, b) for b, n in zip(ends, widths, strict=True)])

    encoded = _after_anchor("abc", encode)
    if len(merged) == len(ANCHORS):
        assert encoded is None
    else:
        assert encoded == Encoded([97, 98, 99], [(0, 1), (1, 2), (2, 3)])
