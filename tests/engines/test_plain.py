"""The plain engine is transformers' own generate and forward: same tokens, same log-probs, no hidden settings."""

import inspect
import io
import json
import math
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoTokenizer, GenerationConfig

from mmfast.data.build import build
from mmfast.data.settings import DataSettings
from mmfast.data.symbols import expanded
from mmfast.engines.base import Decode, Picture, Request
from mmfast.engines.plain import Plain, cut
from mmfast.families import adapter_for, family_of
from mmfast.world import models as world
from tests.families import unlisted
from tests.make.blip import write_blip
from tests.make.questions import ask, picture

FAMILIES = world.FAMILIES
EIGHT = Decode(max_tokens=8)
QUESTION = "Describe the picture."


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    made = {}

    def give(family):
        if family not in made:
            path = tmp_path_factory.mktemp("plain") / family
            made[family] = (
                write_blip(path, *family.split("/")) if "/" in family else world.tiny_model(family, path, seed=3)
            )
        return made[family]

    return give


@pytest.fixture(scope="session")
def engine(folder):
    made = {}

    def give(family):
        if family not in made:
            made[family] = Plain(folder(family))
        return made[family]

    return give


def shown(family):
    return () if family == "llama" else (picture(),)


def by_hand(path, family, text, answer=(), **settings):
    """(ids of the prompt, inputs of the unpatched model), put together without mmfast's own templates."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    content = [*({"type": "image"} for _ in shown(family)), {"type": "text", "text": text}]
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    model = world.build(family, seed=3)[0]
    adapter = adapter_for(model.config)
    inputs = {}
    if shown(family):
        images = world.tiny_image_processor(family, world.Size())
        loaded = images([Image.open(io.BytesIO(picture().data)).convert("RGB")], return_tensors="pt")
        inputs = {n: loaded[n] for n in ("pixel_values", "image_sizes", "image_grid_thw") if n in loaded}
        gemma = family == "gemma3"
        rows = model.config.mm_tokens_per_image if gemma else adapter.rows_of(adapter.prepare(dict(inputs)))[0]
        token = tokenizer.convert_ids_to_tokens(adapter.image_token_id)
        before, after = family_of(family).image_text(
            json.loads((path / "config.json").read_text()), token, tokenizer.convert_ids_to_tokens
        ) or (token, token)
        rendered = rendered.replace(before, after).replace(token, token * rows)
    ids = tokenizer(rendered, add_special_tokens=False).input_ids
    bos = tokenizer.bos_token_id
    ids = ids if bos is None or ids[0] == bos else [bos, *ids]
    tokens = torch.tensor([[*ids, *answer]])
    accepted = inspect.signature(type(model).forward).parameters
    inputs = {"input_ids": tokens, **inputs, **adapter.plain_inputs(tokens)}
    return model, ids, {name: value for name, value in inputs.items() if name in accepted}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_those_of_generate(family, beams, engine, folder):
    model, ids, inputs = by_hand(folder(family), family, QUESTION)
    tokens = inputs["input_ids"]
    out = model.generate(**inputs, attention_mask=torch.ones_like(tokens), max_new_tokens=8, num_beams=beams)
    answer = out[0, len(ids) :].tolist()
    (reply,) = engine(family).answer([ask(QUESTION, *shown(family), decode=replace(EIGHT, beams=beams))])
    expected = AutoTokenizer.from_pretrained(folder(family)).decode(answer, skip_special_tokens=True)
    assert reply.text == expected.strip() and not reply.error
    ended = answer[-1] == model.generation_config.eos_token_id
    assert reply.tokens == len(answer) and reply.finish == ("stop" if ended else "length")
    model, _, inputs = by_hand(folder(family), family, QUESTION, answer)
    logps = model(**inputs).logits[0, len(ids) - 1 : -1].log_softmax(-1)
    assert reply.logp == pytest.approx(float(logps.gather(1, torch.tensor(answer)[:, None]).sum()), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_those_of_a_forward_and_continue_as_the_template_does(family, engine, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder(family))
    space = "" if "<|im_end|>" in tokenizer.chat_template or "<start_of_turn>" in tokenizer.chat_template else " "
    (reply,) = engine(family).answer([ask(QUESTION, *shown(family), n=0, labels=("yes", "no", "two red stars"))])
    assert not reply.error and reply.text == "" and list(reply.labels) == ["yes", "no", "two red stars"]
    for label, logp in reply.labels.items():
        answer = tokenizer(space + label, add_special_tokens=False).input_ids
        answer = answer[1:] if answer[0] == tokenizer.bos_token_id else answer
        model, ids, inputs = by_hand(folder(family), family, QUESTION, answer)
        logps = model(**inputs).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        assert logp == pytest.approx(float(logps.gather(1, torch.tensor(answer)[:, None]).sum()), abs=1e-5)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "llama"])
def test_prompts_are_the_tokens_of_training(family, engine, folder, tmp_path):
    content = [*({"type": "image"} for _ in shown(family)), {"type": "text", "text": QUESTION}]
    (tmp_path / "scene.png").write_bytes(picture().data)
    row = {"images": ["scene.png"] if shown(family) else [], "prompt": [{"role": "user", "content": content}]}
    sides = {side: [{"role": "assistant", "content": f"{side} red stars"}] for side in ("chosen", "rejected")}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row | sides) + "\n")
    store = build(DataSettings(path=str(tmp_path / "pairs.jsonl")), folder(family), tmp_path / "cache", progress=False)
    branch = store[0].chosen
    ids, starts = expanded(branch, store.images, engine(family).prompts.adapter.image_token_id)
    prompt = engine(family).prompts.prompt(ask(QUESTION, *shown(family)))
    assert prompt.ids == ids[: starts[branch.spans[0][0]]]
    label = engine(family).prompts.label(ask(QUESTION, *shown(family)), prompt, "chosen red stars")
    assert label == ids[len(prompt.ids) :][: len(label)]


def test_no_default_of_the_model_leaks_in(folder, tmp_path):
    """A generation_config.json full of tastes changes nothing."""
    plain = [*Plain(folder("llava")).answer([ask(QUESTION, picture(), decode=EIGHT)])]
    other = world.tiny_model("llava", tmp_path / "other", seed=3)
    tastes = {
        "do_sample": True,
        "temperature": 0.1,
        "top_k": 1,
        "top_p": 0.1,
        "repetition_penalty": 9.0,
        "num_beams": 4,
    }
    tastes |= {"no_repeat_ngram_size": 1, "min_new_tokens": 3, "suppress_tokens": [5, 6, 7], "max_length": 3}
    file = other / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | tastes))
    engine = Plain(other)
    assert [*engine.answer([ask(QUESTION, picture(), decode=EIGHT)])] == plain
    hot = Decode(max_tokens=8, temperature=3.0)
    replies = [*engine.answer([ask(QUESTION, picture(), decode=hot, n=4)])]
    assert len({reply.text for reply in replies}) == 4, "top_k = 1 would make them equal"


def test_every_setting_of_generate_that_shapes_an_answer_is_said(engine):
    from mmfast.engines.plain import settings

    made = settings(Decode(temperature=0.7, top_p=0.9), {2}, 8, 3)
    shapes = (
        "do_sample",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "num_beams",
        "length_penalty",
    )
    assert all(
        getattr(made, name) is not None for name in (*shapes, "max_new_tokens", "eos_token_id", "early_stopping")
    )
    assert made.do_sample and made.top_k == 0, "a temperature without do_sample stays greedy; 50 is generate's top_k"
    left = engine("llava").model.generation_config.to_diff_dict()
    assert set(left) <= {"transformers_version", "bos_token_id", *GenerationConfig().to_diff_dict()}


def test_a_sample_depends_on_its_key_number_and_seed_alone(engine):
    hot = Decode(max_tokens=8, temperature=1.5)
    first = ask(QUESTION, picture(), key="first", decode=hot, n=3)
    other = ask("What do you see?", picture(1), key="other", decode=hot)
    alone = [*engine("llava").answer([first])]
    torch.manual_seed(99)
    mixed = [reply for reply in engine("llava").answer([other, first]) if reply.key == "first"]
    assert alone == mixed and len({reply.text for reply in alone}) == 3
    renamed = [*engine("llava").answer([replace(first, key="renamed")])]
    reseeded = [*engine("llava").answer([replace(first, decode=replace(hot, seed=1))])]
    assert not {reply.text for reply in alone} & {reply.text for reply in [*renamed, *reseeded]}


def test_drawing_leaves_the_random_numbers_of_the_process_alone(engine):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    [*engine("llava").answer([ask(QUESTION, picture(), decode=Decode(max_tokens=4, temperature=1.0))])]
    assert torch.equal(torch.rand(1), expected)


def test_samples_follow_the_model(engine):
    """The first token of 400 samples against its probability."""
    request = ask(QUESTION, picture(), n=400, decode=Decode(max_tokens=1, temperature=1.0, top_k=4))
    drawn = Counter(round(reply.logp, 4) for reply in engine("llava").answer([request]))
    assert len(drawn) == 4
    whole = sum(math.exp(logp) for logp in drawn)
    for logp, count in drawn.items():
        share = math.exp(logp) / whole
        assert abs(count / 400 - share) < 4 * math.sqrt(share * (1 - share) / 400)


def test_a_stop_string_ends_an_answer_before_it(engine):
    (whole,) = engine("llava").answer([ask(QUESTION, picture(), decode=EIGHT)])
    stop = re.findall(r"[a-zA-Z]{2}", whole.text)[-1]  # no half of a character, which shows while it is spelt
    (reply,) = engine("llava").answer([ask(QUESTION, picture(), decode=replace(EIGHT, stop=("?!", stop)))])
    assert reply.text == whole.text[: whole.text.index(stop)].strip() and reply.finish == "stop"
    assert reply.tokens <= whole.tokens
    assert cut("a b c", ("c", "b")) == ("a ", True) and cut("abc", ()) == ("abc", False)


def test_an_answer_goes_on_from_its_beginning(engine):
    (whole,) = engine("llama").answer([ask(QUESTION, decode=EIGHT, begins="two red stars")])
    tokenizer = engine("llama").prompts.tokenizer
    prompt = engine("llama").prompts.prompt(ask(QUESTION, begins="two red stars"))
    assert tokenizer.decode(prompt.ids).endswith("ASSISTANT: two red stars")
    (first,) = engine("llama").answer(
        [ask(QUESTION, n=0, labels=("two red stars and one green circle", "two red stars"))]
    )
    (rest,) = engine("llama").answer([ask(QUESTION, n=0, labels=(" and one green circle",), begins="two red stars")])
    long, short = first.labels.values()
    assert rest.labels[" and one green circle"] == pytest.approx(long - short, abs=1e-4)
    assert whole.tokens == 8 and not whole.error


def test_the_answer_changes_when_the_image_does(engine):
    """transformers' generate_batch answers without looking."""
    first, second = engine("llava").answer(
        [ask(QUESTION, picture(i), n=0, labels=("two red stars",), key=str(i)) for i in (0, 1)]
    )
    assert first.labels != second.labels
    (again,) = engine("llava").answer([ask(QUESTION, picture(0), n=0, labels=("two red stars",), key="0")])
    assert first == again


def test_several_images(engine):
    two = ask("Compare them.", picture(0), picture(1), n=0, labels=("yes",))
    (a,), (b,) = (
        [*engine("llava").answer([two])],
        [*engine("llava").answer([replace(two, images=two.images[::-1])])],
    )
    assert not a.error and a.labels != b.labels


@pytest.mark.parametrize("kind", ["blip-2/opt", "blip-2/t5", "instructblip/opt", "instructblip/t5"])
def test_models_that_cannot_be_packed_answer(kind, engine, folder):
    import transformers as hf

    model = hf.AutoModelForImageTextToText.from_pretrained(folder(kind)).eval()
    processor = hf.AutoProcessor.from_pretrained(folder(kind))
    image = Image.open(io.BytesIO(picture().data)).convert("RGB")
    inputs = processor(images=image, text=QUESTION, return_tensors="pt")
    out = model.generate(**inputs, do_sample=False, max_new_tokens=8)
    answer = out[0, 1 if kind.endswith("t5") else inputs["input_ids"].shape[1] :].tolist()
    reply, other = engine(kind).answer([ask(QUESTION, picture(i), decode=EIGHT, labels=("yes",)) for i in (0, 1)])
    lead = "" if kind.endswith("t5") else " "
    assert reply.text == processor.tokenizer.decode(answer, skip_special_tokens=True).strip()
    assert reply.tokens == len(answer) and reply.labels != other.labels
    ids = torch.tensor([processor.tokenizer(lead + "yes", add_special_tokens=False).input_ids])
    if kind.endswith("t5"):
        start = torch.tensor([[model.config.get_text_config().decoder_start_token_id]])
        logits = model(**inputs, decoder_input_ids=torch.cat([start, ids], 1)).logits[0, :-1]
    else:
        whole = torch.cat([inputs["input_ids"], ids], 1)
        both = dict(inputs) | {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
        logits = model(**both).logits[0, -ids.shape[1] - 1 : -1]
    logp = logits.log_softmax(-1).gather(1, ids[0][:, None]).sum()
    assert reply.labels["yes"] == pytest.approx(float(logp), abs=1e-5, rel=2e-6)
    # A finished answer is the label and its end
    whole = (*ask(QUESTION, picture()).messages, {"role": "assistant", "content": "yes"})
    (score,) = engine(kind).answer([Request(key="s", messages=whole, images=(picture(),), n=0, scored=True)])
    assert score.error == "" and score.tokens == ids.shape[1] + 1 and score.logp < reply.labels["yes"]
    assert engine(kind).can & {"prefix", "constraint"} == set()
    none, two = engine(kind).answer([ask("What?"), ask("What?", picture(), picture(1))])
    assert none.error.endswith("takes one image, not 0") and two.error.endswith("takes one image, not 2")


def test_a_model_whose_images_cannot_be_packed_goes_through_its_own_processor(tmp_path):
    """Idefics-2: what stands beside an image depends on the words there."""
    folder = unlisted.write(tmp_path, "idefics2", unlisted.idefics2())
    engine = Plain(folder)
    prompt = engine.prompts.prompt(ask(QUESTION, picture()))
    tokenizer = engine.prompts.tokenizer
    assert prompt.ids.count(tokenizer.bos_token_id) == 1 and tokenizer.decode(prompt.ids).endswith("ASSISTANT:")
    ids = engine.prompts.label(ask(QUESTION, picture()), prompt, "no")
    assert ids == tokenizer(" no", add_special_tokens=False).input_ids[-1:]
    first, second = engine.answer([ask(QUESTION, picture(i), decode=EIGHT, labels=("no",)) for i in (0, 1)])
    assert first.tokens == 8 and first.labels != second.labels
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "Cohere2VisionImageProcessor"}')
    with pytest.raises(ValueError, match="transformers' own processor of it cannot be made here"):
        Plain(folder)


def test_an_adapter_acts_and_is_named(folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = world.build("llava", seed=3)[0]
    peft = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    peft.save_pretrained(tmp_path / "adapter")
    request = ask(QUESTION, picture(), n=0, labels=("two red stars",))
    plain, adapted = Plain(folder("llava")), Plain(folder("llava"), adapter=str(tmp_path / "adapter"))
    (without,), (with_it,) = [*plain.answer([request])], [*adapted.answer([request])]
    assert without.labels != with_it.labels
    assert adapted.identity()["weights"] == plain.identity()["weights"]
    assert adapted.identity()["adapter"] and not plain.identity()["adapter"]
    with pytest.raises(ValueError, match=r"other is no adapter of .*llava"):
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "adapter_model.safetensors").write_bytes(b"")
        Plain(folder("llava"), adapter=str(tmp_path / "other"))


def test_what_is_wrong_with_a_request_is_its_reply_and_the_rest_goes_on(engine):
    from mmfast.engines.base import Constraint

    replies = [
        *engine("llava").answer(
            [
                ask("broken", Picture("broken.png", b"no picture")),
                ask("missing", Picture("/nowhere/missing.png")),
                ask("x " * 5000, picture(), key="long", n=2, decode=Decode(temperature=1.0)),
                ask("choose", picture(), constraint=Constraint(choice=("yes", "no"))),
                replace(ask("uneven", picture()), images=()),
                ask("good", picture(), decode=EIGHT),
            ]
        )
    ]
    told = {(reply.key, reply.sample): reply.error for reply in replies}
    assert "cannot be decoded" in told["broken", 0] and "missing.png" in told["missing", 0]
    assert "the model's window is 4096" in told["long", 1] and "no constraint" in told["choose", 0]
    assert "1 image tokens for 0 images" in told["uneven", 0]
    assert told["good", 0] == "" and len(replies) == 7
    assert all(reply.finish == "error" for reply in replies[:-1])


def test_a_model_that_brings_code_is_refused_until_trusted(folder, tmp_path):
    other = world.tiny_model("llama", tmp_path / "own")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "own.Config"}}))
    with pytest.raises(ValueError, match=r"own brings code of its own: remote_code = True"):
        Plain(other)


OWN_CODE = """
from transformers import LlavaConfig, LlavaForConditionalGeneration


class OwnConfig(LlavaConfig):
    model_type = "own_llava"


class OwnModel(LlavaForConditionalGeneration):
    config_class = OwnConfig

    def forward(self, input_ids=None, pixel_values=None, **keywords):
        out = super().forward(input_ids, pixel_values, **keywords)
        out.logits = out.logits.roll(1, -1)  # what no other code would do
        return out
"""


def test_a_models_own_code_runs_once_it_is_trusted(folder, tmp_path):
    """Its config, its class and its forward are the folder's; answers and labels come from them."""
    own = world.tiny_model("llava", tmp_path / "own", seed=3)
    (own / "own.py").write_text(OWN_CODE)
    config = json.loads((own / "config.json").read_text())
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForImageTextToText": "own.OwnModel"}
    (own / "config.json").write_text(json.dumps(config | {"model_type": "own_llava", "auto_map": auto}))
    with pytest.raises(ValueError, match="remote_code = True"):
        Plain(own)
    with pytest.raises(ValueError, match=r"has no weights of lm_head\.weight"):  # its file has transformers' own names
        Plain(own, remote_code=True)
    weights = {name: value.clone() for name, value in world.build("llava", seed=3)[0].state_dict().items()}
    save_file(weights, own / "model.safetensors", {"format": "pt"})
    engine = Plain(own, remote_code=True)
    assert type(engine.model).__name__ == "OwnModel"
    asked = ask(QUESTION, picture(), decode=EIGHT, labels=("a", "b"))
    (reply,) = engine.answer([asked])
    assert not reply.error and reply.tokens == 8
    # By hand: transformers' own LLaVA, every next token one further
    model, ids, inputs = by_hand(folder("llava"), "llava", QUESTION)
    for _ in range(8):
        ids = [
            *ids,
            (int(model(**inputs | {"input_ids": torch.tensor([ids])}).logits[0, -1].argmax()) + 1)
            % model.config.get_text_config().vocab_size,
        ]
    assert reply.text == AutoTokenizer.from_pretrained(own).decode(ids[-8:], skip_special_tokens=True).strip()
    assert set(reply.labels) == {"a", "b"} and all(value < 0 for value in reply.labels.values())


def test_identity_names_what_answers_depend_on(engine, folder):
    made = engine("llava").identity()
    assert set(made) == {"engine", "weights", "adapter", "dtype", "template", "tokenizer", "processor", "transformers"}
    assert made["template"].startswith("auto:") and len(made["weights"]) > 50
    assert Plain(folder("llava"), template="vicuna_v1").identity()["template"] != made["template"]
    json.dumps(made)
