"""The file of rounds: an ordinary training config with the sections [rounds], [prompts], [generate], [[feedback]] and
[[pairs]] beside it.

Each table of the last three is a command (`mmfast generate`, `mmfast critique`, `mmfast data pairs` ...) and its keys
are that command's options by their names, so that what a stage can do, rounds can. A name that the command does not
have is refused before anything runs. Our own model reads prompts and images as [data] has them (template, aspect).
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from mmfast.config import build
from mmfast.config.overrides import apply
from mmfast.config.schema import Evaluate, Model, Section
from mmfast.config.toml import read_tree
from mmfast.evals.benches import bench as bench_of

STAGES = ("critique", "judge", "decompose", "check", "grade", "correct")
MAKERS = ("pairs", "sft", "steerlm")
# Options that rounds gives itself: what is read and written, and which model it is
OWN = {"out", "images", "format", "file", "answers", "scores", "items", "verdicts", "questions"}
OWN_OF_EVAL = {"out", "model", "adapter", "bench", "best"}
JUDGES = ("local", "plain")  # engines by which a round's model can be asked the benchmarks
MODELS = ("current", "initial")  # what `model` may be instead of a directory or hub id
FOLLOWED = ("template", "aspect")  # of [data]: what trains, answers and is judged sees prompts and images alike


class Rounds(Section):
    count: int = Field(2, ge=1)
    """How many rounds."""
    prompts: Literal["same", "split"] = "same"
    """"same": every round asks all prompts; "split": each asks a part of its own, whole images."""
    reference: Literal["current", "initial"] = "current"
    """The reference of a round's training: the model it starts from, or the base model."""
    keep: Literal["best", "last"] = "best"
    """The model that the next round starts from: the best so far, by [evaluate].best and its interval, or the last."""
    stop: Literal["no gain", "never"] = "no gain"
    """"no gain": end after a round whose model does not beat the best one so far."""
    mix: float = Field(0.0, ge=0, le=1)
    """How often a pair of an earlier round is drawn, beside one of this round; 0: never."""
    processes: int = Field(0, ge=0)
    """Processes of one node for what a model of ours does; 0: one a GPU, else 1. Under torchrun it is torchrun's."""


class Prompts(Section):
    path: str = ""
    """What is asked: any file that mmfast reads, rows without answers, or a folder of images."""
    format: str = "auto"
    """Of the file, or "prompts"."""
    images: str = ""
    """Root of relative image paths; default: beside the file."""
    limit: int = Field(0, ge=0)
    """Only the first rows; 0: all."""


@dataclass(frozen=True)
class Command:
    """A table of the file: a command, what it is called here, and its options."""

    stage: str
    name: str
    options: dict[str, Any]
    of: str = ""  # the feedback that pairs are made of; "": the last
    file: str = ""  # pairs that are there already


@dataclass(frozen=True)
class Settings:
    rounds: Rounds
    prompts: Prompts
    generate: Command
    feedback: list[Command]
    pairs: list[Command]
    training: dict[str, Any] = field(repr=False)  # the tree of the ordinary config
    evaluate: Evaluate
    scoring: Command  # `mmfast eval run`, with what [evaluate] has beside a config's keys: judge, flavour ...
    folder: Path  # where everything is kept

    @property
    def judged(self) -> bool:
        return bool(self.evaluate.bench)

    @property
    def best(self) -> str:
        return self.evaluate.best

    @property
    def base(self) -> str:
        return str(self.training["model"]["path"])


Options = Mapping[str, Mapping[str, bool]]  # a command's options by name -> whether it may be repeated


def load(path: str | Path, overrides: Sequence[str], known: Options) -> Settings:
    """`known`: of each command the options that it has."""
    # The tree, and our sections out of it
    tree = read_tree(path)
    apply(tree, overrides, set())
    rounds = _section(Rounds, tree.pop("rounds", {}), "rounds")
    prompts = _section(Prompts, tree.pop("prompts", {}), "prompts")
    generate = _command("generate", "answers", tree.pop("generate", {}), "[generate]", known)
    feedback = [_feedback(table, known) for table in _tables(tree.pop("feedback", []), "feedback")]
    pairs = [_pairs(n, table, known) for n, table in enumerate(_tables(tree.pop("pairs", [{}]), "pairs"))]
    evaluate, scoring = _evaluate(tree, known)
    folder = Path(str(tree.pop("output_dir", "runs/rounds")))
    # What our own models read
    read = {key: value for key, value in tree.get("data", {}).items() if key in FOLLOWED and value != "auto"}
    read["dtype"] = tree.get("model", {}).get("dtype", Model.model_fields["dtype"].default)
    defaults = {"engine": "local", "model": "current"}
    generate = _follow(replace(generate, options=defaults | generate.options), read, known)
    feedback = [_follow(one, read, known) for one in feedback]
    scoring = _follow(scoring, read, known) if evaluate.bench else scoring
    settings = Settings(rounds, prompts, generate, feedback, pairs, tree, evaluate, scoring, folder)
    _agree(settings)
    return settings


def _follow(command: Command, read: dict[str, Any], known: Options) -> Command:
    """Our own model's prompts and images are those of its training, unless its table says otherwise."""
    options, engine = command.options, "local" if command.stage == "eval" else command.options.get("engine")
    if engine not in ("local", "plain") or (command.stage != "eval" and options.get("model") not in MODELS):
        return command
    taken = {k: v for k, v in read.items() if k in known[command.stage] and (k != "aspect" or engine == "local")}
    return replace(command, options=taken | options)


def _section(kind: Any, tree: Any, name: str) -> Any:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ValueError(
            "\n".join(f"[{name}] {_told(item, list(kind.model_fields))}" for item in error.errors())
        ) from None


def _told(item: Any, fields: list[str]) -> str:
    key = str(item["loc"][0]) if item["loc"] else ""
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, fields, 1, 0.5)
        return f"unknown key {key}: " + (f"did you mean {near[0]}?" if near else f"it has {', '.join(fields)}")
    if item["type"] == "missing":
        return f"{key} is missing"
    return f"{key}: {item['msg']} (got {item.get('input')!r})"


def _tables(value: Any, name: str) -> list[dict[str, Any]]:
    tables = value if isinstance(value, list) else [value]
    if not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"[[{name}]]: each is a table, of a command and its options")
    return tables


def _feedback(table: dict[str, Any], known: Options) -> Command:
    table = dict(table)
    stage = str(table.pop("stage", ""))
    if stage not in STAGES:
        raise ValueError(f"[[feedback]] stage = {stage!r}: choose one of {', '.join(STAGES)}")
    return _command(stage, str(table.pop("name", stage)), table, f"[[feedback]] {stage}", known)


def _pairs(number: int, table: dict[str, Any], known: Options) -> Command:
    table = dict(table)
    make, of, file = (str(table.pop(name, default)) for name, default in (("make", "pairs"), ("of", ""), ("file", "")))
    if file and (of or table or make != "pairs"):
        raise ValueError(f"[[pairs]] file = {file!r} is there already: nothing else can be said of it here")
    if make not in MAKERS:
        raise ValueError(f"[[pairs]] make = {make!r}: choose one of {', '.join(MAKERS)}")
    name = "pairs" if number == 0 else f"pairs-{number + 1}"
    made = _command(make, name, table, f"[[pairs]] {make}", known)
    return Command(made.stage, made.name, made.options, of, file)


def _evaluate(tree: dict[str, Any], known: Options) -> tuple[Evaluate, Command]:
    """[evaluate]: the keys of a config, which stay in the tree, and the options of `mmfast eval` beside them."""
    given = dict(tree.get("evaluate", {}))
    own = {key: given.pop(key) for key in list(given) if key in Evaluate.model_fields}
    if own:
        tree["evaluate"] = own
    else:
        tree.pop("evaluate", None)
    return _section(Evaluate, own, "evaluate"), _command("eval", "eval", given, "[evaluate]", known, OWN_OF_EVAL)


def _command(
    stage: str, name: str, options: dict[str, Any], told: str, known: Options, own: Collection[str] = OWN
) -> Command:
    """A command whose options are those that it has; `own`: those that rounds give."""
    names = {key.replace("_", "-"): value for key, value in options.items() if value != ""}
    for key, value in names.items():
        if key in own:
            raise ValueError(f"{told}: {key} is given by the rounds themselves: leave it out")
        if key not in known[stage]:
            near = difflib.get_close_matches(key, known[stage], 1)
            hint = f"; did you mean {near[0]}?" if near else f" (mmfast {' '.join(words(stage))} --help)"
            raise ValueError(f"{told}: no option {key!r}{hint}")
        if isinstance(value, list) and not known[stage][key]:
            raise ValueError(f"{told}: {key} takes one value, not a list")
        if isinstance(value, dict):
            raise ValueError(f"{told}: {key} is a value, not a section")
    return Command(stage, name, names)


def words(stage: str) -> list[str]:
    """What is written behind `mmfast` for a stage."""
    return ["data", stage] if stage in MAKERS else ["eval", "run"] if stage == "eval" else [stage]


def _agree_on_evaluation(settings: Settings) -> None:
    section, options = settings.evaluate, settings.scoring.options
    if not settings.judged and (section.model_fields_set or options):
        raise ValueError("[evaluate] names no benchmark: set bench, or leave the section out")
    for name in section.bench:
        bench_of(name)  # names those that there are
    if settings.judged and not section.data:
        raise ValueError("[evaluate] bench needs data: the folder of the benchmarks' files")
    if len(set(section.bench)) < len(section.bench):
        raise ValueError("[evaluate] bench names a benchmark twice")
    for key in {"start", "margin"} & section.model_fields_set:
        if not section.every:
            raise ValueError(f"[evaluate] {key} is of evaluations inside a run: set every, or leave {key} out")
    if (engine := options.get("engine", JUDGES[0])) not in JUDGES:
        raise ValueError(f"[evaluate] engine = {engine!r}: a round's model is asked by {' or '.join(JUDGES)}")


def _agree(settings: Settings) -> None:
    """What contradicts itself, or could not take effect, before anything runs."""
    # Names
    rounds, names = settings.rounds, [one.name for one in settings.feedback]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise ValueError(f"[[feedback]] two are called {twice}: give one a `name` of its own")
    if taken := next((name for name in names if name in ("answers", "run", "eval", "logs", "steps")), ""):
        raise ValueError(f"[[feedback]] name = {taken!r} is a folder of every round: take another")
    for pairs in settings.pairs:
        if pairs.of and pairs.of not in [*names, "answers"]:
            raise ValueError(f"[[pairs]] of = {pairs.of!r}: there is no such feedback; {', '.join(names) or 'none'}")
    # What is asked
    said = settings.generate.options.keys() - {"engine", "model", "dtype", *FOLLOWED}
    if not settings.prompts.path and (said or not all(one.file for one in settings.pairs)):
        raise ValueError("[prompts] path is missing: without it nothing is asked, and every [[pairs]] is a file")
    if settings.feedback and not settings.prompts.path:
        raise ValueError("[[feedback]] has no effect without [prompts] path: nothing is asked")
    # By what a model is kept
    if not (settings.judged and settings.best) and (rounds.keep == "best" or rounds.stop == "no gain"):
        why = 'rounds.keep = "best" and rounds.stop = "no gain" need [evaluate] bench and best (best = "chair.CHAIRs")'
        raise ValueError(f'{why}: add them, or set rounds.keep = "last" and rounds.stop = "never"')
    _agree_on_evaluation(settings)
    if settings.best and settings.best.partition(".")[0] not in settings.evaluate.bench:
        told = f"its benchmark is not among bench = {settings.evaluate.bench}"
        raise ValueError(f"[evaluate] best = {settings.best!r}: {told}")
    # What the training is given
    if settings.training.get("data", {}).get("path"):
        raise ValueError("data.path is given by the rounds themselves (what is asked is prompts.path): leave it out")
    if settings.training.get("reference", {}).get("model"):
        raise ValueError('reference.model is given by rounds.reference ("current" or "initial"): leave it out')
    if settings.training.get("model", {}).get("adapter"):
        raise ValueError("model.adapter: rounds start from whole weights (mmfast merge ADAPTER OUT makes them)")
    files = [f"{one.name}.jsonl" for one in settings.pairs]
    if not files:
        raise ValueError("[[pairs]] is empty: a round is trained on nothing; leave it out for one with default options")
    build(training_of(settings, settings.base, files, Path("run")))  # names what is wrong in the rest


def training_of(settings: Settings, model: str, data: list[str], run: Path) -> dict[str, Any]:
    """The config of a round's training: the file's own, with what follows from the round. `data`: this round's files,
    then those of earlier rounds."""
    tree: dict[str, Any] = {
        key: dict(part) if isinstance(part, dict) else part for key, part in settings.training.items()
    }
    tree["output_dir"] = str(run)
    tree["model"] = tree.get("model", {}) | {"path": model}
    own = len(settings.pairs)
    weights = [1.0] * own + [settings.rounds.mix] * (len(data) - own)
    sources = [{"path": path, "weight": weight} for path, weight in zip(data, weights, strict=True)]
    tree["data"] = tree.get("data", {}) | {"path": sources if len(sources) > 1 else data[0]}
    if settings.rounds.reference == "initial" and model != settings.base:
        tree["reference"] = tree.get("reference", {}) | {"model": settings.base}
    # The next round opens what this one leaves: whole weights
    formats = tree.get("export", {}).get("formats", ["hf"])
    named = formats.split(",") if isinstance(formats, str) else list(formats)
    whole = {"formats": list(dict.fromkeys(["hf", *named]))} | ({"merge": True} if "lora" in tree["model"] else {})
    tree["export"] = tree.get("export", {}) | whole
    # Between rounds `mmfast eval` judges; inside a run only where it is asked for
    if not settings.evaluate.every:
        tree.pop("evaluate", None)
    return tree
