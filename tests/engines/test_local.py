"""The local engine's greedy answers are transformers' generate, for every family, whatever else is asked."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from mmfast.engines import decode_attention
from mmfast.engines.base import Decode, Picture, Request
from mmfast.engines.local import Local
from mmfast.models import Lora, load
from mmfast.world import models as world
from tests.make.local_cases import (
    SHAPES,
    answered,
    easy_ends,
    model_folder,
    picture,
    question,
    request,
    requests,
    twin,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(family: str) -> str:
        if family not in made:
            made[family] = model_folder(tmp_path_factory.mktemp("models"), family)
        return str(made[family])

    return folder


@pytest.mark.parametrize("family", SHAPES)
def test_greedy_tokens_are_generates(folders, family):
    engine = Local(folders(family))
    rows = requests(family, 16)
    easy_ends(engine, rows)
    found = answered(engine, rows)
    lengths = set()
    for one in rows:
        want = twin(engine, one)
        assert found[one.key, 0][0] == want, one.key
        lengths.add(len(want))
    ended = [finish for _, _, finish in found.values()]
    assert len(lengths) > 3 and {"stop", "length"} <= set(ended), (lengths, ended)
    assert engine.scorer.shared == (family != "gemma3")


def test_a_window_that_slides_over_image_prompt_and_answer(tmp_path):
    tokenizer = world.tiny_tokenizer("llama")
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, initializer_range=0.1, sliding_window=7, eos_token_id=2,
    )  # fmt: skip
    world.save(tmp_path, MistralForCausalLM(config).eval(), tokenizer, None, None)
    engine = Local(str(tmp_path))
    rows = requests("llama", 8, max_tokens=50)
    found = answered(engine, rows)
    assert engine.scorer.shared
    for one in rows:
        assert found[one.key, 0][0] == twin(engine, one)


def test_with_an_adapter(folders, tmp_path):
    scorer = load(folders("llava"), dtype="float32", lora=Lora(r=4))
    torch.manual_seed(3)
    for name, p in scorer.model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(p, std=0.3)
    scorer.peft[0].save_pretrained(tmp_path / "adapter")
    engine, base = Local(folders("llava"), adapter=str(tmp_path / "adapter")), Local(folders("llava"))
    rows = requests("llava", 6, max_tokens=12)
    found = answered(engine, rows)
    assert all(found[one.key, 0][0] == twin(engine, one) for one in rows)
    assert found != answered(base, rows)
    assert engine.identity()["adapter"] and engine.identity()["weights"] == base.identity()["weights"]


def test_with_an_adapter_whose_projector_was_trained(folders, tmp_path):
    from mmfast.models.export import save_peft
    from mmfast.models.merge import merge

    scorer = load(folders("llava"), dtype="float32", freeze=("vision",), lora=Lora(r=4))
    torch.manual_seed(3)
    for name, p in scorer.model.named_parameters():
        if ".lora_B." in name or ("projector" in name and p.requires_grad):
            torch.nn.init.normal_(p, std=0.3)
    (tmp_path / "adapter").mkdir()
    save_peft(scorer, folders("llava"), tmp_path / "adapter", write=True)
    assert "modules_to_save" in (tmp_path / "adapter" / "adapter_config.json").read_text()
    merge(tmp_path / "adapter", tmp_path / "merged", folders("llava"))
    engine, base = Local(folders("llava"), adapter=str(tmp_path / "adapter")), Local(folders("llava"))
    rows = requests("llava", 6, max_tokens=12)
    found = answered(engine, rows)
    assert all(found[one.key, 0][0] == twin(engine, one) for one in rows)
    merged = answered(Local(str(tmp_path / "merged")), rows)
    assert {key: reply[0] for key, reply in found.items()} == {key: reply[0] for key, reply in merged.items()}
    assert found != answered(base, rows)
    with pytest.raises(ValueError, match=r"replaces .*projector.* as a whole"):  # a training does not go on with it
        load(folders("llava"), dtype="float32", adapter=str(tmp_path / "adapter"))


def test_a_small_budget_makes_rows_wait_and_changes_nothing(folders):
    rows = requests("llava", 24, max_tokens=40)
    large, small = Local(folders("llava")), Local(folders("llava"), tokens=420)
    for engine in (large, small):
        engine.ends = [*engine.ends, *range(100, 112)]
    held = []
    from mmfast.engines import decoding

    class Watched(decoding.Decoding):
        def step(self):
            done = super().step()
            held.append((self.held, len(self.rows)))
            return done

    want = answered(large, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmfast.engines.local.Decoding", Watched)
        found = answered(small, rows)
    assert {key: value[0] for key, value in found.items()} == {key: value[0] for key, value in want.items()}
    assert max(tokens for tokens, _ in held) <= 420 and max(count for _, count in held) < 24
    assert small.counts["steps"] > 2 * large.counts["steps"]


def test_packs_are_read_as_long_as_there_is_room(folders):
    """Not one pack until its first answer ends, then the next."""
    engine = Local(folders("llava"))
    rows = [request(f"{n}", "red " * 300, decode=Decode(max_tokens=10)) for n in range(60)]
    rows = [replace(one, messages=({"role": "user", "content": f"{n} " + "red " * 300},)) for n, one in enumerate(rows)]
    assert len(answered(engine, rows)) == 60 and engine.counts["prefilled"] > 3 * 4096
    assert engine.counts["steps"] <= 10


def test_every_distinct_token_is_computed_once(folders):
    """An image and the beginning of the prompt once for all questions and samples; ended rows leave at once."""
    engine = Local(folders("llava"))
    generator, image = random.Random(0), picture(0)
    settings = Decode(temperature=1.0, max_tokens=20)
    rows = [request(f"{n}", question(generator), image, n=4, decode=settings) for n in range(5)]
    found = answered(engine, rows)
    prompts = [engine.prompts.read(one).ids for one in rows]
    trie = {tuple(ids[:k]) for ids in prompts for k in range(1, len(ids) + 1)}
    assert engine.counts["prefilled"] == len(trie) + engine.prompts.infos[image.id].tokens - 1
    assert engine.counts["rows"] == sum(len(tokens) - 1 for tokens, _, _ in found.values())


def test_inside_a_training_process_the_model_is_left_as_it_was(folders):
    scorer = load(folders("llava"), dtype="float32", freeze=())
    scorer.train()
    engine = Local(folders("llava"), scorer=scorer)
    rows = requests("llava", 4, max_tokens=6)
    replies = engine.answer(rows)
    next(replies)
    assert scorer.training and scorer.model.training and torch.is_grad_enabled()
    list(replies)
    assert all(p.requires_grad for p in scorer.model.parameters() if p.is_floating_point())
    assert answered(engine, rows) == answered(Local(folders("llava")), rows)


def test_rows_whose_bits_depend_on_their_mates_are_told_of(folders, capsys, monkeypatch):
    from mmfast.engines import local

    # Whether they do is the processor's: here, none does
    tried = []
    monkeypatch.setattr(local, "_rows_are_alone", lambda weight: tried.append(tuple(weight.shape)) or True)
    assert Local(folders("llava")).steady and "nearly tie" not in capsys.readouterr().err
    # Every shape of a step's matrices is tried: one alone that fails is enough
    scorer = Local(folders("llava")).scorer
    layer = scorer.adapter.layers(scorer.model)[0]
    for one in (layer.self_attn.q_proj, layer.mlp.up_proj, layer.mlp.down_proj, scorer.model.get_output_embeddings()):
        assert tuple(one.weight.shape) in tried
    down = tuple(layer.mlp.down_proj.weight.shape)
    monkeypatch.setattr(local, "_rows_are_alone", lambda weight: tuple(weight.shape) != down)
    assert not Local(folders("llava")).steady and "nearly tie" in capsys.readouterr().err


def test_threads_that_share_rows_out_round_none_in_another_way(folders):
    """Two threads give 4 of 5 rows to one and the fifth to the other, whose bits were others."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert [decode_attention.spare(n) for n in (1, 4, 5)] == [3, 0, 0]
        torch.set_num_threads(2)
        assert [n + decode_attention.spare(n) for n in (1, 4, 5, 7, 8, 9, 12, 13)] == [4, 4, 8, 8, 8, 12, 12, 16]
        engine = Local(folders("llava"))
        assert engine.steady
        rows = requests("llava", 7, max_tokens=6)
        found = answered(engine, rows)
        assert all(found[one.key, 0][0] == twin(engine, one) for one in rows)
        assert engine.counts["spare"] > 0 and (engine.counts["rows"] + engine.counts["spare"]) % 4 == 0
    finally:
        torch.set_num_threads(threads)


def test_a_start_draws_no_bar_of_transformers(folders, capfd):
    Local(folders("llava"))
    assert "Loading" not in "".join(capfd.readouterr())


def test_no_default_of_the_model_leaks_into_a_model_that_cannot_share(folders):
    engine = Local(folders("gemma3"))
    rows = [*requests("gemma3", 3, max_tokens=30), request("beams", "what", picture(0), decode=Decode(beams=2))]
    found = answered(engine, rows)
    engine.scorer.model.generation_config.no_repeat_ngram_size = 1
    assert answered(engine, rows) == found and engine.scorer.model.generation_config.no_repeat_ngram_size == 1


def test_a_picture_that_breaks_late_fails_its_own_prompts(folders):
    """Its header can be read and its pixels cannot."""
    whole = picture(3)
    torn = Picture("torn.png", whole.data[: len(whole.data) // 2])
    asked = [
        request(f"{n}", "what is it", p, decode=Decode(max_tokens=4)) for n, p in enumerate([picture(0), torn, whole])
    ]
    for family in ("llava", "gemma3"):
        replies = {reply.key: reply for reply in Local(folders(family)).answer(asked)}
        assert "torn" in replies["1"].error or "decode" in replies["1"].error
        alone = {r.key: r.text for r in Local(folders(family)).answer([asked[0], asked[2]])}
        assert {key: reply.text for key, reply in replies.items() if key != "1"} == alone


def test_half_precision_answers_too(folders):
    """Not to the bit, but most tokens are fp32's."""
    rows = requests("llava", 6, max_tokens=12)
    half, full = answered(Local(folders("llava"), dtype="bfloat16"), rows), answered(Local(folders("llava")), rows)
    same = sum(a == b for key in full for a, b in zip(half[key][0], full[key][0], strict=False))
    assert same > 0.5 * sum(len(tokens) for tokens, _, _ in full.values())


def test_a_text_only_model_refuses_images_by_name(folders):
    engine = Local(folders("llama"))
    reply = next(iter(engine.answer([request("a", "what", picture(0))])))
    assert "has no images" in reply.error and "images" not in engine.can


def test_the_answer_changes_with_the_image(folders):
    engine = Local(folders("llava"))
    rows = [request(f"{n}", "what is the picture", picture(n), decode=Decode(max_tokens=20)) for n in range(4)]
    assert len({tuple(tokens) for tokens, _, _ in answered(engine, rows).values()}) > 1


def test_what_is_wrong_with_a_request_is_its_own(folders):
    engine = Local(folders("llava"), tokens=2000)
    good = request("good", "what is it", picture(0), decode=Decode(max_tokens=4))
    bad = {
        "broken": request("broken", "what", Picture("broken.png", b"no picture")),
        "missing": request("missing", "what", Picture("/nowhere.png")),
        "long": request("long", "red " * 5000, picture(0)),
        "large": request("large", "what is it", picture(0), decode=Decode(max_tokens=4000)),
        "images": Request(key="images", messages=good.messages, images=()),
        "system": Request(key="system", messages=({"role": "nobody", "content": "a"}, *good.messages[:0],
                          {"role": "user", "content": [{"type": "image"}]}), images=()),
    }  # fmt: skip
    replies = {reply.key: reply for reply in engine.answer([good, *bad.values()])}
    assert replies["good"].error == "" and replies["good"].tokens
    assert all(replies[name].finish == "error" for name in bad)
    for name, told in {
        "broken": "broken.png: an image cannot be decoded", "missing": "/nowhere.png: No such file", "long":
        "tokens, the model's window is 4096", "large": "the budget is 2000", "images": "1 image tokens for 0 images",
    }.items():  # fmt: skip
        assert told in replies[name].error
    with pytest.raises(ValueError, match="tokens = -1"):
        Local(folders("llava"), tokens=-1)
