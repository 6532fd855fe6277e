"""Any VLM of transformers: its own processor and its own forward are the oracle of what we read and score.

Pictures and words go through our data, packs and trees on one side, through transformers' processor and unpatched model
on the other: the ids must be the same, the log-probs within 1e-5, and the gradients of a LoRA step too.
docs/models.md holds the table of what is run here.
"""

import copy
import io
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from mmfast.data.examples import ExampleBuilder
from mmfast.data.images.index import measured
from mmfast.data.images.own import OwnProcessor
from mmfast.data.images.processor import ImageProcessor
from mmfast.data.records import Record
from mmfast.data.settings import DataSettings
from mmfast.data.symbols import expanded
from mmfast.data.text.templates import Template
from mmfast.data.text.tokens import Tokenizer
from mmfast.engines.base import Decode
from mmfast.engines.local import Local
from mmfast.engines.plain import Plain
from mmfast.families.base import image_token_id
from mmfast.models import Lora, load
from mmfast.models.merge import read, scores, trial_rows
from mmfast.models.proof import prove
from mmfast.packing import build_pack
from mmfast.world.models import tiny_model
from tests.families import unlisted
from tests.make.questions import ask, picture

# By model_type, and what else the table in docs/models.md says of it
KINDS = {
    "aya_vision": unlisted.aya_vision,
    "gemma3": None,  # None: the families' own tiny model
    "gemma4": unlisted.gemma4,
    "gemma4, images that see themselves": lambda: unlisted.gemma4(bidirectional=True),
    "glm46v": unlisted.glm46v,
    "glm4v": unlisted.glm4v,
    "idefics3": unlisted.idefics3,
    "internvl": unlisted.internvl,
    "llava": None,
    "llava, Pixtral's tower": unlisted.pixtral,
    "llava_next": None,
    "llava_onevision": unlisted.llava_onevision,
    "mistral3": unlisted.mistral3,
    "qwen2_5_vl": None,
    "qwen2_vl": None,
    "qwen3_5": unlisted.qwen3_5,
    "qwen3_vl": None,
    "qwen3_vl_moe": unlisted.qwen3_vl_moe,
    "smolvlm": unlisted.smolvlm,
    "vipllava": unlisted.vipllava,
}
# The others are like one of these, or run by other tests too
EVERYDAY = ("gemma4, images that see themselves", "glm4v", "idefics3", "llava, Pixtral's tower", "mistral3", "qwen3_5")
UNSHARED = {
    "gemma3": "its attention mask is not causal",
    "gemma4, images that see themselves": "its attention mask is not causal",
    "qwen3_5": "layers of type linear_attention",
}
REFUSED = {
    "florence2": "its decoder has no list of layers",
    "gemma3n": r"each of its layers reads the token ids again \(hidden_size_per_layer_input\)",
    "mllama": "its decoder has no list of layers",
    "paligemma": "its prompt is read in both directions",
}
SIZES = {"wide": (130, 60), "tall": (50, 150)}


class Trial:
    """Pairs about two pictures and about none, for one tiny model; and what transformers alone makes of them."""

    def __init__(self, folder: Path):
        self.oracle = OwnProcessor(folder).processor
        self.images, tokenizer = ImageProcessor.from_model_dir(folder), Tokenizer.load(folder)
        self.template = tokenizer.chat_template
        builder = ExampleBuilder(Template("auto", tokenizer), DataSettings(max_length=1 << 20))
        self.pictures, self.infos, self.examples, self.answers = {}, {}, [], []
        for name, (width, height) in SIZES.items():
            noise = np.random.default_rng(width).integers(0, 255, (height, width, 3)).astype(np.uint8)
            Image.fromarray(noise).save(file := io.BytesIO(), "PNG")
            self.pictures[name] = file.getvalue()
            self.infos[name] = measured(self.images, name, name, self.pictures[name])
        for shown, question in (("wide", "What is it?"), ("tall", "What is it?"), ("wide", "Where?"), ("", "Hello!")):
            parts = [{"type": "image"}] * bool(shown) + [{"type": "text", "text": question}]
            sides = [({"role": "assistant", "content": f"a red {word}"},) for word in ("ball on a box", "star")]
            record = Record(
                id=f"{len(self.examples)}", source="", images=(shown,) if shown else (),
                prompt=({"role": "user", "content": parts},), chosen=sides[0], rejected=sides[1],
            )  # fmt: skip
            self.examples.append(builder.build(record, [self.infos[shown]] if shown else [])[0])
            self.answers.append([[*record.prompt, *side] for side in sides])

    def load_images(self, names):
        return self.images.collate([self.images.load(self.pictures[name]) for name in names])

    def inputs(self, number: int, side: int) -> dict:
        """What transformers reads of a side: its template, its processor."""
        example, messages = self.examples[number], self.answers[number][side]
        text = self.oracle.tokenizer.apply_chat_template(messages, tokenize=False, chat_template=self.template)
        end = self.oracle.tokenizer.eos_token
        text += "" if end in text else end  # Gemma's template ends turns, and no text
        shown = [[Image.open(io.BytesIO(self.pictures[name])) for name in example.chosen.images]]
        if not shown[0]:
            return dict(self.oracle.tokenizer([text], return_tensors="pt", add_special_tokens=False))
        return dict(self.oracle(images=shown, text=[text], return_tensors="pt", add_special_tokens=False))

    def plain(self, model, number: int, side: int) -> torch.Tensor:
        """Log-probs of a side's scored tokens, by the model's own forward."""
        branch = (self.examples[number].chosen, self.examples[number].rejected)[side]
        inputs = self.inputs(number, side)
        ids, starts = expanded(branch, self.infos, image_token_id(model.config.to_dict()))
        theirs = inputs["input_ids"][0]
        assert theirs.tolist()[: len(ids)] == ids, "our data and transformers' processor write the same ids"
        rows = torch.tensor([starts[p] for p in range(*branch.spans[-1])])
        logits = model(**{k: v for k, v in inputs.items() if k != "num_patches"}, use_cache=False).logits[0]
        return logits[rows - 1].log_softmax(-1).gather(1, theirs[rows, None])[:, 0]

    def packed(self, scorer) -> list[torch.Tensor]:
        """The same of all sides, chosen and rejected in turn, in one pack."""
        layout = scorer.adapter.layout(share=scorer.shared)
        pack = build_pack(self.examples, self.infos, layout, load_images=self.load_images)
        logps, bounds = scorer(pack)[pack.index], pack.responses.tolist()
        return [logps[bounds[entry] : bounds[entry + 1]] for entry in pack.pairs.flatten().tolist()]


def loss_of(sides: list[torch.Tensor]) -> torch.Tensor:
    sums = torch.stack([side.sum() for side in sides]).reshape(-1, 2)
    return -torch.nn.functional.logsigmoid(0.1 * (sums[:, 0] - sums[:, 1])).mean()


@pytest.fixture(autouse=True)
def number_words(monkeypatch):
    """SmolVLM's processor cannot be made without the package num2words, which writes of videos alone."""
    from transformers.models.smolvlm import processing_smolvlm

    monkeypatch.setattr(processing_smolvlm, "num2words", processing_smolvlm.num2words or str)


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] * (k not in EVERYDAY)) for k in KINDS])
def test_it_reads_scores_and_trains_as_transformers_does(kind, tmp_path):
    made, model_type = KINDS[kind], kind.split(",")[0]
    folder = unlisted.write(tmp_path, model_type, made()) if made else tiny_model(kind, tmp_path)
    trial = Trial(folder)
    scorer = load(str(folder), dtype="float32", lora=Lora(r=4, alpha=8)).eval()
    why = prove(scorer, trial.examples, trial.infos, trial.load_images)
    assert why == "" if kind not in UNSHARED else UNSHARED[kind] in why
    places = [(number, side) for number in range(len(trial.examples)) for side in (0, 1)]

    # A fresh adapter changes nothing: the log-probs are those of transformers' model
    untouched = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        for place, ours in zip(places, trial.packed(scorer), strict=True):
            assert (ours - trial.plain(untouched, *place)).abs().max() < 1e-5, place

    # A step's gradient is that of a twin with the model's own attention, and the step makes the loss fall
    for name, p in scorer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p.data, 0, 0.1)
    twin = copy.deepcopy(scorer.model)
    scorer.adapter.decoder(twin).config._attn_implementation = scorer.own_attention
    names, ours = zip(*[(n, p) for n, p in scorer.model.named_parameters() if p.requires_grad], strict=True)
    theirs = dict(twin.named_parameters())
    loss, expected = loss_of(trial.packed(scorer)), loss_of([trial.plain(twin, *place) for place in places])
    assert (loss - expected).abs() < 1e-5
    got = torch.autograd.grad(loss, ours)
    want = torch.autograd.grad(expected, [theirs[name] for name in names])
    scale = max(g.norm() for g in want)
    assert scale > 0 and any("lora_B" in name for name in names)
    for name, g, w in zip(names, got, want, strict=True):
        assert (g - w).norm() <= 1e-4 * w.norm() + 1e-6 * scale, name
    with torch.no_grad():
        for p, g in zip(ours, got, strict=True):
            p -= 0.01 / scale * g
        assert loss_of(trial.packed(scorer)) < loss


def test_the_local_engine_answers_as_generate_does(tmp_path):
    folder = unlisted.write(tmp_path, "idefics3", unlisted.idefics3())
    questions = [(i, text) for i in (0, 1) for text in ("What is it?", "Where is the star?")]
    settings = {"decode": Decode(max_tokens=8), "labels": ("no",)}
    asked = [ask(text, picture(i), key=f"{i} {text}", **settings) for i, text in questions]
    local, plain = ({r.key: r for r in engine.answer(asked)} for engine in (Local(str(folder)), Plain(folder)))
    assert [local[r.key].text for r in asked] == [plain[r.key].text for r in asked]
    for key, reply in local.items():
        assert reply.error == "" and abs(reply.labels["no"] - plain[key].labels["no"]) < 1e-5


def test_a_merged_model_is_compared_on_a_picture(tmp_path):
    folder = unlisted.write(tmp_path, "mistral3", unlisted.mistral3())
    _, picture_row = trial_rows(folder)
    break_id = Tokenizer.load(folder).special.token_to_id("[IMG_BREAK]")
    assert picture_row["input_ids"].eq(break_id).sum() == len(OwnProcessor(folder).words(120, 84)) > 0
    (logps,) = scores(read(folder), [picture_row])
    assert logps.isfinite().all()


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_it_cannot_do_is_said_before_any_weight_is_read(model_type):
    with pytest.raises(ValueError, match=f"{model_type}.*{REFUSED[model_type]}"):
        load(transformers.AutoConfig.for_model(model_type), device="meta", random_weights=True)


def test_the_table_of_the_docs_says_what_is_run_here():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    section = page.split("## What is tested\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in section.splitlines() if row.startswith("| `")]
    tested = {name.replace("`", ""): trees for name, trees, _, proof in rows if proof == "equal, one step"}
    assert tested == {kind: "one by one" if kind in UNSHARED else "shared" for kind in KINDS}
    refused = {name.replace("`", "") for name, trees, *_ in rows if trees == "refused"}
    assert refused >= set(REFUSED) and not refused & set(tested)
    assert all(proof in ("equal, one step", "the refusal", "not tested") for *_, proof in rows)
    said = f"{len({kind.split(',')[0] for kind in KINDS})} model types"
    assert said in section, f"the sentence that the README repeats must say {said}"
