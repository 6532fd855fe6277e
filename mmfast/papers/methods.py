"""Every choice of `mmfast demo --papers`: what is asked, how it is judged, what is trained on it, at which settings.

They were made on the world's seeds 0 and 1 and committed before the first measured seed (21, 22, 23). The world, its
prompts and its noise are those of WORLD_COMMIT. Four kinds of thing, each named by those that read it:

    Step    a folder of answers, or of what was said of answers
    Made    a file of training data made of a step; its blind twin has the pictures passed round among its pairs
    Method  one training run on such a file and its captions of held-out pictures; each has a blind control
    Scale   how much of everything
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mmfast.config import schema
from mmfast.feedback.rules import ATTRIBUTES, hindsight_turn, steered
from mmfast.world.grammar import CAPTION_PROMPTS

WORLD_COMMIT = "be6b821"  # the last that changed mmfast/world
NOISE = 0.1  # how often the world's verdicts, ratings and checks are wrong
MAX_TOKENS = 96  # of an answer
BLIND = "-blind"  # ends the name of a control, and of a file whose pictures were passed round


@dataclass(frozen=True, kw_only=True)
class Scale:
    scenes: int = 8000  # that the base model learns flawed captions of
    pairs: int = 1600  # further ones: of them are the world's pairs, and the prompts
    pictures: int = 300  # held out, captioned by every model
    seeing: int = 300  # steps in which the tower learns to see
    base: int = 1000  # steps in which the base model learns its words
    prompts: int = 1600
    steps: int = 150  # of every method's training
    per_step: int = 32


@dataclass(frozen=True, kw_only=True)
class Step:
    """A folder of answers (`answers`: by the model of the method `model`, the base if ""), or what was said of those of
    the step `of`: rated, compared, or taken apart and checked; and grades made of what was checked."""

    name: str
    do: Literal["answers", "judge", "critique", "check", "grade"]
    of: str = ""
    model: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A file of training data, as `mmfast data` makes it; `world`: the world's own corrections."""

    name: str
    make: Literal["pairs", "verdicts", "sft", "steerlm", "hindsight", "world"]
    of: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Method:
    name: str
    label: str
    system: Literal["base", "mllm-dpo", "sima", "dgpref", "rlhf-v", "rlaif-v"]
    of: str = ""  # the file that it is trained on
    settings: Mapping[str, Any] = field(default_factory=dict)  # of align_settings; a section of the config is a table
    blind: bool = False
    control: str = ""  # its blind twin; "" for the base and for controls
    prompt: str = ""  # what is asked at evaluation, if it is not the world's own prompt
    again: str = ""  # asked in a second turn, after the base's own caption of the picture
    start: str = ""  # the method whose model it starts from; "": the base


# What is asked and said. One preset a system, as its paper draws its answers, but for their length.

CRITIC = """
version = 1
about = "Two descriptions, in the few words that the world's model has read; read as labels"
parser = "verdict"
slots = ["question", "a", "b"]
optional = ["truth"]
labels = { a = "1", b = "2" }
label_opening = "[["
text = "{question} True answer: {truth} Answer 1: {a} Answer 2: {b} Which answer is better?"
"""
SELF = {"read": "labels", "order": "random", "pairs": "greedy-sample"}
ORACLE = {"read": "text", "order": "one", "pairs": "greedy-sample"}  # it reads no prompt and likes no place
TOP = dict.fromkeys(ATTRIBUTES, 4.0)
WORSE = dict.fromkeys(ATTRIBUTES, 2.0)  # what a caption of the base is said to have, in the second turn of hindsight
ASPECTS = ("object", "count", "spatial", "text")  # of DGPref's, those that captions of the world have
FACTS = {"preset": "rlaifv", "experts": "world"}  # "rlaifv" reads P(yes), in which noise never tips the balance

STEPS = (
    Step(name="mllm-dpo-answers", do="answers", options={"preset": "mllm_dpo"}),
    Step(name="mllm-dpo-judged", do="judge", of="mllm-dpo-answers"),
    Step(name="sima-answers-1", do="answers", options={"preset": "sima"}),
    Step(name="sima-self-critique-1", do="critique", of="sima-answers-1", options=SELF | {"critic": "local"}),
    Step(name="sima-oracle-critique-1", do="critique", of="sima-answers-1", options=ORACLE | {"critic": "world"}),
    Step(name="sima-self-answers-2", do="answers", model="sima-self-1", options={"preset": "sima", "seed": 1}),
    Step(
        name="sima-self-critique-2", do="critique", of="sima-self-answers-2", model="sima-self-1",
        options=SELF | {"critic": "local"},
    ),
    Step(name="sima-oracle-answers-2", do="answers", model="sima-oracle-1", options={"preset": "sima", "seed": 1}),
    Step(
        name="sima-oracle-critique-2", do="critique", of="sima-oracle-answers-2", options=ORACLE | {"critic": "world"}
    ),
    Step(
        name="dgpref-answers", do="answers",
        options={"preset": "dgpref", "wordings": CAPTION_PROMPTS, "samples": 2, "part": (1, 2)},
    ),
    Step(name="dgpref-checked", do="check", of="dgpref-answers", options={"preset": "dgpref", "experts": "world"}),
    Step(name="dgpref-average", do="grade", of="dgpref-checked", options={"aspects": ASPECTS}),
    Step(name="dgpref-sum", do="grade", of="dgpref-checked", options={"aspects": ASPECTS, "average": False}),
    Step(name="dgpref-object", do="grade", of="dgpref-checked", options={"aspects": ("object",)}),
    Step(name="rlaifv-answers-1", do="answers", options={"preset": "rlaifv", "part": (1, 2)}),
    Step(name="rlaifv-checked-1", do="check", of="rlaifv-answers-1", options=FACTS),
    Step(name="rlaifv-facts-1", do="grade", of="rlaifv-checked-1"),
    Step(
        name="rlaifv-answers-2", do="answers", model="rlaifv-1", options={"preset": "rlaifv", "part": (2, 2), "seed": 1}
    ),
    Step(name="rlaifv-checked-2", do="check", of="rlaifv-answers-2", options=FACTS),
    Step(name="rlaifv-facts-2", do="grade", of="rlaifv-checked-2"),
)  # fmt: skip

# What is trained on. `missed` is ours: how many of the picture's things an answer does not name.

SHARES = {"rule": "dgpref", "margin": 0.05}  # one wrong part of nine; DGPref's 0.3 would be three of nine
SUM = "Helpfulness + Correctness + Coherence"
FILES = (
    Made(name="mllm-dpo-sft", make="sft", of="mllm-dpo-judged", options={"answer": "reference"}),
    Made(name="mllm-dpo-rejection", make="sft", of="mllm-dpo-judged", options={"score": SUM, "minimum": 12.0}),
    Made(name="mllm-dpo-steerlm", make="steerlm", of="mllm-dpo-judged"),
    Made(name="mllm-dpo-hindsight", make="hindsight", of="mllm-dpo-judged"),
    Made(name="mllm-dpo-dpo", make="pairs", of="mllm-dpo-judged", options={"rule": "mllm_dpo"}),
    Made(name="sima-self-pairs-1", make="verdicts", of="sima-self-critique-1"),
    Made(name="sima-self-pairs-2", make="verdicts", of="sima-self-critique-2"),
    Made(name="sima-oracle-pairs-1", make="verdicts", of="sima-oracle-critique-1"),
    Made(name="sima-oracle-pairs-2", make="verdicts", of="sima-oracle-critique-2"),
    Made(name="dgpref-average-pairs", make="pairs", of="dgpref-average", options=SHARES),
    Made(name="dgpref-sum-pairs", make="pairs", of="dgpref-sum", options={"rule": "dgpref"}),
    Made(name="dgpref-object-pairs", make="pairs", of="dgpref-object", options=SHARES),
    Made(
        name="dgpref-balanced-pairs", make="pairs", of="dgpref-average", options=SHARES | {"balance": True}
    ),
    Made(
        name="dgpref-recall-pairs", make="pairs", of="dgpref-sum", options={"rule": "dgpref", "score": "score - missed"}
    ),
    Made(name="corrections", make="world"),
    Made(name="rlaifv-pairs-1", make="pairs", of="rlaifv-facts-1", options={"rule": "rlaifv"}),
    Made(name="rlaifv-pairs-2", make="pairs", of="rlaifv-facts-2", options={"rule": "rlaifv"}),
    Made(
        name="rlaifv-pairs-unbalanced", make="pairs", of="rlaifv-facts-1", options={"rule": "rlaifv", "balance": False}
    ),
    Made(
        name="rlaifv-pairs-recall", make="pairs", of="rlaifv-facts-1",
        options={"rule": "rlaifv", "score": "claims - missed"},
    ),
)  # fmt: skip

# The runs. Rates are the demo's: 1e-4 where only a preference is learnt, 5e-4 where likelihood is.

DPO: dict[str, Any] = {"lr": 1e-4}
SFT: dict[str, Any] = {"kind": "sft", "lr": 5e-4}
DEMO: dict[str, Any] = {"lr": 5e-4, "sft_weight": 0.5}  # the short demo's headline
TERM = DPO | {"sft_weight": 0.5}
GAMMAS = (1, 2, 3, 4, 5)
AVERAGED = {"objective": {"average": True, "beta": 0.5}}  # RLHF-V's paper; the sums are its released code's, beta 0.1


More = dict[str, Any]
MLLM_DPO: tuple[tuple[str, str, More], ...] = (
    ("sft", "SFT on the judge's answers", SFT),
    ("rejection", "rejection sampling", SFT),
    ("steerlm", "SteerLM", SFT),
    ("hindsight", "hindsight", SFT),
    ("dpo", "DPO", DPO),
)
ASKED: dict[str, More] = {  # how a method is asked when it is judged
    "steerlm": {"prompt": steered(CAPTION_PROMPTS[0], TOP)},
    "hindsight": {"again": hindsight_turn(WORSE, TOP)},
}
DGPREF: tuple[tuple[str, str, str, More], ...] = (
    ("average", "DPO, share of wrong parts", "average", DPO),
    ("sum", "DPO, number of wrong parts", "sum", DPO),
    ("object", "DPO, objects alone", "object", DPO),
    ("balanced", "share + length balance", "balanced", DPO),
    ("recall", "number + what is missed", "recall", DPO),
    ("sft", "share + SFT term", "average", TERM),
)
RLHFV: tuple[tuple[str, str, More], ...] = (
    ("sum", "summed", DPO),
    ("average", "averaged", DPO | AVERAGED),
    ("sft", "summed, SFT term", DEMO),
)
RLAIFV: tuple[tuple[str, str, str, More], ...] = (
    ("1", "DPO, round 1", "1", DPO),
    ("2", "DPO, round 2", "2", DPO),
    ("unbalanced", "without length balance", "unbalanced", DPO),
    ("recall", "facts + what is missed", "recall", DPO),
    ("sft", "round 1 + SFT term", "1", TERM),
)
# SIMA's released loss scores the runner-up tokens of the policy in place of the rejected ones
RUNNER_UP = DPO | {"objective": {"compat": "sima"}}
KNOWN = "sima" in str(schema.Objective.model_fields["compat"].annotation)  # whether this version has it


def _seeing() -> Iterator[Method]:
    """Every method without its control."""
    yield Method(name="base", label="base", system="base")
    # mllm-dpo: five ways to use the same judged answers
    for name, label, settings in MLLM_DPO:
        file, asked = f"mllm-dpo-{name}", ASKED.get(name, {})
        yield Method(name=file, label=label, system="mllm-dpo", of=file, settings=settings, **asked)
    # SIMA: two rounds, the model as its own critic, and beside it one that knows the truth
    for who in ("self", "oracle"):
        for number in (1, 2):
            name, file = f"sima-{who}-{number}", f"sima-{who}-pairs-{number}"
            start, label = f"sima-{who}-1" if number > 1 else "", f"{who} critic, round {number}"
            yield Method(name=name, label=label, system="sima", of=file, settings=DPO, start=start)
    term = "oracle critic + SFT term, round 1"
    yield Method(name="sima-oracle-sft", label=term, system="sima", of="sima-oracle-pairs-1", settings=TERM)
    if KNOWN:
        loss = "oracle critic, released loss, round 1"
        yield Method(name="sima-runner-up", label=loss, system="sima", of="sima-oracle-pairs-1", settings=RUNNER_UP)
    # DGPref: shares or numbers of wrong parts, all aspects or objects alone; then the remedies
    for name, label, file, settings in DGPREF:
        named, pairs = f"dgpref-{name}", f"dgpref-{file}-pairs"
        yield Method(name=named, label=label, system="dgpref", of=pairs, settings=settings)
    # RLHF-V: gamma alone differs within each five; gamma 1 is plain DPO
    for how, told, settings in RLHFV:
        for gamma in GAMMAS:
            label = f"{f'DDPO, gamma {gamma}' if gamma > 1 else 'DPO'}, {told}"
            name, weighted = f"rlhfv-{how}-{gamma}", settings | {"gamma": float(gamma)}
            yield Method(name=name, label=label, system="rlhf-v", of="corrections", settings=weighted)
    yield Method(name="rlhfv-likelihood", label="SFT alone", system="rlhf-v", of="corrections", settings=SFT)
    # RLAIF-V: two rounds on prompts of their own; its length balance taken away, and the remedies
    for name, label, file, settings in RLAIFV:
        named, start = f"rlaifv-{name}", "rlaifv-1" if name == "2" else ""
        yield Method(
            name=named, label=label, system="rlaif-v", of=f"rlaifv-pairs-{file}", settings=settings, start=start
        )


def _with_controls() -> Iterator[Method]:
    """Each method, then its twin that differs in the pictures alone. One of a second round starts from the control of
    the first: what two rounds of training move where there is nothing to see."""
    for one in _seeing():
        if one.system == "base":
            yield one
            continue
        twin = one.name + BLIND
        yield replace(one, control=twin)
        yield replace(one, name=twin, label=f"{one.label}, blind", blind=True, start=one.start and one.start + BLIND)


METHODS: dict[str, Method] = {one.name: one for one in _with_controls()}
