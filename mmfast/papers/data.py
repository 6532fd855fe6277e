"""Answers, what is said of them, and the files of training data: the stages of mmfast, called in this process.

prompts.jsonl       world pictures of no caption that the base model learnt, each with a question and its true caption
steps/NAME/         folders of generate, judge, critique and grade, and of decompose and check together
data/NAME.jsonl     training data, as `mmfast data` makes it; NAME-blind.jsonl with the pictures passed round
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmfast.data.convert import Conversion, write_records
from mmfast.data.problems import Problem
from mmfast.data.records import Record
from mmfast.engines import presets
from mmfast.engines.base import Engine
from mmfast.engines.generate import generate
from mmfast.engines.local import Local
from mmfast.engines.stage import Tally
from mmfast.engines.world import World
from mmfast.feedback import critique, decompose, judge, rules
from mmfast.feedback.answer import Answer
from mmfast.feedback.answers import answers_of, read_answers
from mmfast.feedback.candidates import pair_record, score_of
from mmfast.feedback.check import check
from mmfast.feedback.folders import verdicts
from mmfast.feedback.grade import Grading, grade
from mmfast.feedback.panel import Panel
from mmfast.feedback.reading import Reading
from mmfast.feedback.routing import open_experts, read_routing
from mmfast.files import whole
from mmfast.job.runtime import Runtime, join
from mmfast.papers.methods import BLIND, CRITIC, MAX_TOKENS, NOISE, STEPS, Made, Scale, Step
from mmfast.world.dataset import blinded, read_lines, read_scenes
from mmfast.world.grammar import CAPTION_PROMPTS, Flaws, caption, claims
from mmfast.world.scenes import Scene

Counts = dict[str, Any]
PROMPTS, CRITIC_FILE = "prompts.jsonl", "critic.toml"
ITEMS, VERDICTS = "items", "verdicts"  # of what was checked


def write_prompts(folder: Path, world: Path, scale: Scale, seed: int) -> Path:
    """The first pictures of those behind the world's pairs, and the critic's prompt beside them."""
    scenes = read_scenes(world, "train")[scale.scenes :][: scale.prompts]
    if len(scenes) < scale.prompts or scale.prompts > scale.pairs:
        raise ValueError(f"prompts = {scale.prompts}: the world has {scale.pairs} pictures for pairs; ask fewer")
    rows = []
    for scene in scenes:
        rng = random.Random(f"prompt:{seed}:{scene.name}")
        asked = [{"type": "image"}, {"type": "text", "text": rng.choice(CAPTION_PROMPTS)}]
        rows.append(
            {
                "id": scene.name,
                "images": [f"world/images/{scene.name}.png"],
                "prompt": [{"role": "user", "content": asked}],
                "chosen": [{"role": "assistant", "content": caption(scene, rng, Flaws.none()).truth}],
            }
        )
    write_lines(folder / PROMPTS, rows)
    (folder / CRITIC_FILE).write_text(CRITIC)
    return folder / PROMPTS


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with whole(path) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


# steps


def answerer(model: Path, runtime: Runtime) -> Engine:
    return Local(str(model), device=runtime.device)


def take(step: Step, folder: Path, model: Path, seed: int) -> Counts:
    """Makes the folder of a step, by `model` where it asks one. Returns what the stages counted."""
    out, options = folder / "steps" / step.name, dict(step.options)
    source = folder / "steps" / step.of if step.of else folder / PROMPTS
    runtime = join()
    try:
        made = DOING[step.do](source, out, folder, model, runtime, seed, options)
    finally:
        runtime.close()
    return made


def _answers(
    source: Path, out: Path, folder: Path, model: Path, runtime: Runtime, seed: int, options: dict[str, Any]
) -> Counts:
    drawn = 1000 * seed + options.get("seed", 0)
    changes = {"samples": options["samples"]} if "samples" in options else {}
    plan = presets.planned(options["preset"], max_tokens=MAX_TOKENS, seed=drawn, **changes)
    plan = replace(plan, wordings=options.get("wordings", plan.wordings))
    tally = generate(source, out, answerer(model, runtime), plan, runtime, part=options.get("part", (1, 1)))
    each = sum(draw.samples for draw in plan.draws) * max(len(plan.wordings), 1)
    return {"prompts": tally.rows // each} | counted(tally)


def _judge(
    source: Path, out: Path, folder: Path, model: Path, runtime: Runtime, seed: int, options: dict[str, Any]
) -> Counts:
    how = judge.planned("mllm_dpo", decode={"seed": seed})
    return counted(judge.judge(source, out, World(folder / "world", noise=NOISE), how, runtime))


def _critique(
    source: Path, out: Path, folder: Path, model: Path, runtime: Runtime, seed: int, options: dict[str, Any]
) -> Counts:
    """By the model itself, read as labels of a prompt that it can read; or by the world."""
    own = options.pop("critic") == "local"
    engine = answerer(model, runtime) if own else World(folder / "world", noise=NOISE)
    critic = critique.planned("", prompt=str(folder / CRITIC_FILE), decode={"seed": seed}, **options)
    return counted(critique.critique(source, out, engine, critic, runtime))


def _check(
    source: Path, out: Path, folder: Path, model: Path, runtime: Runtime, seed: int, options: dict[str, Any]
) -> Counts:
    """Taken apart by the world without a mistake, then checked by it with its noise."""
    plan = decompose.planned(options["preset"], seed=seed)
    counts = counted(decompose.decompose(source, out / ITEMS, World(folder / "world"), plan, runtime))
    world = World(folder / "world", noise=NOISE)
    panel = Panel(open_experts(read_routing(options["experts"]), lambda _: world))
    return counts | counted(check(out / ITEMS, out / VERDICTS, panel, runtime))


def _grade(
    source: Path, out: Path, folder: Path, model: Path, runtime: Runtime, seed: int, options: dict[str, Any]
) -> Counts:
    answers = source.with_name(next(step.of for step in STEPS if step.name == source.name))
    grading = Grading(**options)
    return dict(grade(answers, source / ITEMS, source / VERDICTS, out, grading, runtime).counts)


DOING: dict[str, Callable[..., Counts]] = {
    "answers": _answers,
    "judge": _judge,
    "critique": _critique,
    "check": _check,
    "grade": _grade,
}


def counted(tally: Tally) -> Counts:
    """A stage's numbers that are not 0. One that failed ends the step: nothing is dropped unseen."""
    if tally.failed:
        raise ValueError(f"{tally.failed} of {tally.asked} requests failed")
    found = {"rows": tally.rows, "cut at max_tokens": tally.cut, "empty": tally.empty, "identical": tally.identical}
    return {name: number for name, number in (found | tally.also).items() if number}


# training data


def make(one: Made, folder: Path, seed: int) -> Counts:
    """Writes a file and its blind twin. Returns how many rows it has, why others are not among them, and the mean
    words of each side."""
    target, world = folder / "data" / f"{one.name}.jsonl", folder / "world"
    target.parent.mkdir(exist_ok=True)
    if one.make == "world":
        rows = read_lines(world / "pairs.jsonl")
        rows = [row | {"images": [f"../world/{image}" for image in row["images"]]} for row in rows]
        write_lines(target, rows)
        counts: Counts = {}
    else:
        counts = _written(one, folder, target, seed)
        rows = read_lines(target)
    write_lines(target.with_name(f"{one.name}{BLIND}.jsonl"), passed_round(rows, seed))
    sides = [side for side in ("chosen", "rejected") if side in rows[0]]
    means = {f"words_{side}": sum(_words(row[side]) for row in rows) / len(rows) for side in sides}
    return {"rows": len(rows), "counts": counts} | means


def _words(messages: list[dict[str, Any]]) -> int:
    content = messages[-1]["content"]
    return len((content if isinstance(content, str) else content[-1]["text"]).split())


def _written(one: Made, folder: Path, target: Path, seed: int) -> Counts:
    """By the rules of `mmfast data pairs`, `sft` and `steerlm`, on whole answers; bad rows are counted."""
    problems: list[Problem] = []
    lost = {"cut at max_tokens": 0, "empty": 0}
    counts: Counts = {}

    def fit(*answers: Answer) -> bool:
        empty = any(not answer.text.strip() for answer in answers)
        cut = not empty and any(answer.finish == "length" for answer in answers)
        lost["empty"], lost["cut at max_tokens"] = lost["empty"] + empty, lost["cut at max_tokens"] + cut
        return not empty and not cut

    # The answers, and the rule that makes records of them
    source, options = folder / "steps" / one.of, dict(one.options)
    if one.make == "verdicts":
        reading = Reading(root=source.parent, problems=problems)
        found, counts = verdicts(source, reading, lambda: answers_of(source, reading))
        kept = [pair for pair in found if fit(*pair[:2])]
        records: Iterable[Record] = [pair_record(n, a, b, **more) for n, (a, b, more) in enumerate(kept)]
    else:
        read = read_answers(source, answer=options.pop("answer", ""), problems=problems)
        answers = with_missed((one for one in read if fit(one)), folder / "world")
        records, counts = RULES[one.make](answers, options, seed, problems)
    result = Conversion(problems=problems)
    try:
        write_records(iter(records), target, "trl", target.parent, result)
    except ValueError as error:
        told = ", ".join(f"{number} {name}" for name, number in (counts | lost).items())
        raise Nothing(f"{one.name}: {error}: {told}") from None
    return counts | {name: number for name, number in lost.items() if number} | _kinds(problems)


class Nothing(ValueError):
    """A step left nothing to train on: what comes of it is left out, and said."""


def _kinds(problems: list[Problem]) -> Counts:
    named = [f"bad row ({problem.kind})" for problem in problems]
    return {name: named.count(name) for name in dict.fromkeys(named)}


Found = tuple[list[Record], Counts]


def _pairs(answers: Iterator[Answer], options: dict[str, Any], seed: int, problems: list[Problem]) -> Found:
    rule = rules.RULES[options.pop("rule")]
    return rules.choose_pairs(answers, replace(rule, **options), seed, problems)


def _sft(answers: Iterator[Answer], options: dict[str, Any], seed: int, problems: list[Problem]) -> Found:
    if "score" not in options:
        return rules.every_answer(answers), {}
    score = score_of(options.pop("score"))
    return rules.rejection_sample(answers, score, seed=seed, problems=problems, **options), {}


def _steerlm(answers: Iterator[Answer], options: dict[str, Any], seed: int, problems: list[Problem]) -> Found:
    return rules.steerlm(answers, problems=problems), {}


def _hindsight(answers: Iterator[Answer], options: dict[str, Any], seed: int, problems: list[Problem]) -> Found:
    return rules.hindsight(answers, score_of(" + ".join(rules.ATTRIBUTES)), 2.0, seed, problems=problems), {}


RULES: dict[str, Callable[..., Found]] = {
    "pairs": _pairs,
    "sft": _sft,
    "steerlm": _steerlm,
    "hindsight": _hindsight,
}


def with_missed(answers: Iterable[Answer], world: Path) -> Iterator[Answer]:
    """With one more score: how many kinds of things of the picture an answer does not name."""
    scenes: dict[str, Scene] = {scene.name: scene for scene in read_scenes(world, "train")}
    for one in answers:
        scene = scenes[Path(one.images[0]).stem]
        missed = len(scene.kinds - set(claims(one.text).kinds))
        yield replace(one, scores=dict(one.scores) | {"missed": float(missed)})


def passed_round(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The rows with their pictures passed round: all rows of a picture get the same other one."""
    once = {tuple(row["images"]): row for row in rows}
    if len(once) < 2:
        raise Nothing("all pairs are of one picture: there is none to exchange it for")
    moved = blinded(list(once.values()), seed)
    other = dict(zip(once, (row["images"] for row in moved), strict=True))
    return [row | {"images": other[tuple(row["images"])]} for row in rows]


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
