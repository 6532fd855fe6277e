"""template = "auto": the tokens of the tokenizer's own apply_chat_template, whatever kind of tokenizer it is."""

import json
from functools import lru_cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mmfast.data.examples import ExampleBuilder
from mmfast.data.problems import Report
from mmfast.data.records import ImageInfo, Record
from mmfast.data.settings import DataSettings
from mmfast.data.text.templates import Template
from mmfast.data.text.tokens import Tokenizer
from mmfast.world.grammar import corpus
from tests.make.llama_tokenizer import HF_LLAVA

REAL = Path(__file__).parents[4] / "shared" / "tokenizers" / "llava15"
ASK = "What is this, 猫?"
INFO = ImageInfo(id="i", source="", width=1, height=1, tokens=576)

KINDS = ("prepend", "metaspace-first", "metaspace-always", "byte-level")
TEMPLATES = {
    "llava": HF_LLAVA,  # no end mark, a blank before and after an answer
    "newline": "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' }}{% for c in m['content'] %}"
    "{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}{{ '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    "inst": "{% for m in messages %}{% set ns = namespace(t='') %}{% for c in m['content'] %}"
    "{% set ns.t = ns.t + ('<image>\n' if c['type'] == 'image' else c['text']) %}{% endfor %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + ns.t + ' [/INST]' }}{% else %}"
    "{{ ' ' + ns.t + ' ' + eos_token }}{% endif %}{% endfor %}",
    "bare": "{% for m in messages %}{{ m['role'] + ': ' }}{% for c in m['content'] %}"
    "{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",  # its blank goes with the answer's first word
}  # fmt: skip
ANSWERS = ("They are red.", "a", "\n\nTwo blank lines", "\nTwo lines.\n\nAnd a list:\n- one", "红色的圆。", "🙂 yes",
           " led by a blank", "ends  ", "1, 2, 3", "A " * 40)  # fmt: skip


@lru_cache
def tokenizer_of(kind):
    """Trained here on the text of our own world, with bytes for what it does not know."""
    backend = Backend(models.BPE())
    text = [w for line in list(corpus())[:400] for w in (line, " ".join(line.split()[:3]))]
    text += ["They are", "ASSISTANT:"] + ["ASSISTANT: They are"] * 3  # whatever the world says
    if kind == "byte-level":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        text += ["\n\n"] * 2
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        backend.train_from_iterator(text, trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    else:
        scheme = kind.partition("-")[2] or "always"
        marks = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=kind != "prepend")
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=True)
        backend.train_from_iterator(text, trainers.BpeTrainer(show_progress=False))
        learnt = json.loads(backend.to_str())["model"]
        vocab = {"<unk>": 0, **{f"<0x{b:02X}>": b + 1 for b in range(256)}}
        vocab |= {w: len(vocab) + i for i, w in enumerate(w for w in learnt["vocab"])}
        merges = [tuple(m) for m in learnt["merges"]]
        backend = Backend(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>"))
        if kind == "prepend":  # as conversions of LLaVA-1.5's time were saved
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            backend.pre_tokenizer = marks
        blank = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        backend.decoder = decoders.Sequence(blank)
    backend.add_special_tokens(["<s>", "</s>", "<image>"])
    if kind != "byte-level":
        start = [("<s>", backend.token_to_id("<s>"))]
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=start)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
        clean_up_tokenization_spaces=False,
    )


@lru_cache
def ours(kind, name):
    hf = tokenizer_of(kind)
    return Tokenizer(hf, hf.convert_tokens_to_ids("<image>"), TEMPLATES[name])


def messages(question, answers, system=None, images=1):
    """A conversation that ends with the last of the answers."""
    out = [] if system is None else [{"role": "system", "content": [{"type": "text", "text": system}]}]
    for k, answer in enumerate(answers):
        parts = [{"type": "image"}] * (images if not k else 0) + [{"type": "text", "text": question}]
        out += [{"role": "user", "content": parts},
                {"role": "assistant", "content": [{"type": "text", "text": answer}]}]  # fmt: skip
    return out


def built(tok, conversation, turns="last", rejected=None):
    report = Report()
    images = sum(p["type"] == "image" for m in conversation for p in m["content"])
    record = Record(id="x", source="f:0", images=("a",) * images, prompt=tuple(conversation[:-1]),
                    chosen=(conversation[-1],), rejected=rejected)  # fmt: skip
    builder = ExampleBuilder(Template("auto", tok), DataSettings(turns=turns))
    example, report.notes = builder.build(record, [INFO] * images)
    return example, report


def theirs(hf, template, conversation, prompt):
    return hf.apply_chat_template(conversation, chat_template=template, add_generation_prompt=prompt, tokenize=True,
                                  return_dict=False)  # fmt: skip


def compare(tok, conversation):
    """Our ids of one conversation against the tokenizer's own; gives whether prompt and answer came from one text."""
    hf, template = tok.hf, tok.chat_template
    example, report = built(tok, conversation)
    whole, prompt = theirs(hf, template, conversation, False), theirs(hf, template, conversation[:-1], True)
    bos = [] if whole[0] == hf.bos_token_id else tok.bos_ids
    whole, prompt = bos + whole, bos + prompt
    if hf.eos_token_id not in whole[-3:]:
        whole = [*whole, hf.eos_token_id]
    ids = example.chosen.ids.tolist()
    joint = whole[: len(prompt)] == prompt
    assert ids[: len(prompt)] == prompt and example.chosen.spans == ((len(prompt), len(ids)),)
    apart = report.counts().get("tokenised-apart", 0)
    if joint:
        assert ids == whole and not apart
    else:
        assert apart == 1 and hf.decode(ids).split() == hf.decode(whole).split()
    return joint


def conversations(answer, system=True):
    yield messages(ASK, (answer,))
    yield messages(ASK, ("One.", "二\n", answer), "" if system else None, images=2)
    if system:
        yield messages(ASK, ("One.", answer), "Be brief.\nAlways.", images=0)


# where the prompt's last token also holds the answer's beginning, so that generation could never give it
APART = {("bare", k): {"They are red.", "a"} for k in KINDS} | {("newline", "byte-level"): {"\n\nTwo blank lines"}}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_apply_chat_template(kind, name):
    apart = set()
    for answer in ANSWERS:
        for conversation in conversations(answer, system=name != "inst"):
            if not compare(ours(kind, name), conversation):
                apart.add(answer)
    assert apart == APART.get((name, kind), set())


@pytest.mark.skipif(not REAL.exists(), reason="needs LLaVA-1.5's own tokenizer")
def test_ids_are_those_of_llava_itself():
    tok = Tokenizer.load(REAL)
    for answer in ANSWERS:
        for conversation in conversations(answer):
            assert compare(tok, conversation)
    example, _ = built(tok, messages(ASK, ("They are red.",)))
    ((a, b),) = example.chosen.spans
    assert tok.hf.convert_ids_to_tokens(example.chosen.ids[a - 1 : b].tolist()) == [
        ":", "▁They", "▁are", "▁red", ".", "▁", "</s>"]  # fmt: skip


def test_the_answers_first_token_is_what_generation_gives():
    for kind in KINDS:
        tok = ours(kind, "llava")
        hf = tok.hf
        example, _ = built(tok, messages(ASK, ("They are red.",)))
        before, after = (hf(t, add_special_tokens=False)["input_ids"] for t in ("x:", "x: They"))
        assert int(example.chosen.ids[example.chosen.spans[0][0]]) == after[len(before)]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_turn_is_cut_out_of_one_text(kind, name):
    """turns = "all": a scored turn ends with EOS; the whole is one text's tokens, each span one turn's."""
    tok = ours(kind, name)
    hf = tok.hf
    answers = (" One is red.", "二", " are there?\n")
    example, report = built(tok, messages(ASK, answers), turns="all")
    assert not report.notes and len(example.chosen.spans) == 3
    ids = example.chosen.ids.tolist()
    text = Template("auto", tok).chunks(messages(ASK, answers), (1, 3, 5))
    whole = hf("".join(c.text for c in text), add_special_tokens=False)["input_ids"]
    assert ids == (whole if whole[0] == hf.bos_token_id else tok.bos_ids + whole)
    for (a, b), answer in zip(example.chosen.spans, answers, strict=True):
        assert hf.decode(ids[a:b]).replace("</s>", "").strip() == answer.strip() and hf.eos_token_id in ids[a:b]


@pytest.mark.parametrize("kind", KINDS)
def test_both_sides_of_a_pair_share_the_prompt_and_a_row_is_counted_once(kind):
    tok = ours(kind, "bare")
    rejected = ({"role": "assistant", "content": "a"},)
    example, report = built(tok, messages(ASK, ("They are red.",)), rejected=rejected)
    start = example.chosen.spans[0][0]
    assert example.rejected.spans[0][0] == start
    assert example.chosen.ids[:start].tolist() == example.rejected.ids[:start].tolist()
    assert report.summary() == "0 examples from 0 rows; noted: 1 tokenised-apart"


@pytest.mark.parametrize("name", ["llava", "bare"])
@pytest.mark.parametrize("kind", KINDS)
def test_given_segments_find_their_tokens(kind, name):
    tok = ours(kind, name)
    hf = tok.hf
    answer = "They 猫 red."
    record = Record(id="x", source="f:0", prompt=({"role": "user", "content": "猫 </s>?"},),
                    chosen=({"role": "assistant", "content": answer},), segments={"chosen": [(7, 10)]})  # fmt: skip
    example, _ = ExampleBuilder(Template("auto", tok), DataSettings(segments="record")).build(record, [])
    ((a, b),) = example.chosen.spans
    ids, changed = example.chosen.ids[a:b], example.chosen.changed
    assert hf.decode(ids[changed].tolist()).strip() == "red"
