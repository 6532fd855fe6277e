"""Why relations and words improve less than objects: rows in results/study.jsonl (docs/world.md tells what came out).

python -m bench.study --seeds 0 --write

Every run is the demo's on the demo's base model, in this process on one thread; what is finished under OUT is kept.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.timing import machine, write_rows
from mmfast.config import build
from mmfast.demo import ALONE, DDPO, make_base
from mmfast.evals.world import RESAMPLES, TALLY, Score, greedy_captions, score
from mmfast.train import train
from mmfast.world.base import align_settings
from mmfast.world.corrections import corrected, repairs
from mmfast.world.dataset import WorldSpec, blinded, flawed_caption, read_lines, read_scenes, write_world
from mmfast.world.grammar import CLAIMS, EXCHANGED, OPPOSITE, claims, miscounted, taken_for
from mmfast.world.scenes import SHAPES, TWINS, Scene, Thing, relations

ROOM = {"relation", "word"}


@dataclass(frozen=True)
class Run:
    """One alignment. `control`: the run that it must go beyond; "" for a control."""

    part: str
    pairs: str  # of FILES
    settings: dict[str, Any] = field(default_factory=lambda: dict(DDPO))  # "order": of the pairs, another one
    control: str = ""
    blind: bool = False


SFT = {"kind": "sft", "lr": DDPO["lr"]}
RUNS = {  # those that answer most stand first: a start that is stopped leaves the others out
    "ddpo": Run("all", "all", control="sft"),
    "sft": Run("all", "all", SFT),
    "own": Run("own answers", "own", control="own_sft"),
    "own_sft": Run("own answers", "own", SFT),
    "room": Run("relations and words", "room", control="room_sft"),
    "room_sft": Run("relations and words", "room", SFT),
    "room_all": Run("relations and words", "room_all", control="room_sft"),
    "random": Run("relations and words", "random"),
    "ddpo_again": Run("chance", "all", DDPO | {"order": 1}, control="sft"),
    "gamma1_again": Run("chance", "all", DDPO | {"gamma": 1.0, "order": 1}, control="sft"),
    "sft_again": Run("chance", "all", SFT | {"order": 1}),
    "own_again": Run("chance", "own", DDPO | {"order": 1}, control="own_sft"),
    "room_again": Run("chance", "room", DDPO | {"order": 1}, control="room_sft"),
    "own_dpo": Run("own answers", "own", ALONE, control="own_dpo_blind"),
    "own_dpo_blind": Run("own answers", "own", ALONE, blind=True),
    "dpo": Run("own answers", "all", ALONE, control="dpo_blind"),
    "dpo_blind": Run("own answers", "all", ALONE, blind=True),
    "steps200": Run("steps", "all", DDPO | {"steps": 200}, control="sft"),
    "gamma1": Run("gamma", "all", DDPO | {"gamma": 1.0}, control="sft"),
    "gamma5": Run("gamma", "all", DDPO | {"gamma": 5.0}, control="sft"),
    "steps400": Run("steps", "all", DDPO | {"steps": 400}, control="sft"),
    "steps50": Run("steps", "all", DDPO | {"steps": 50}, control="sft"),
    "gamma3": Run("gamma", "all", DDPO | {"gamma": 3.0}, control="sft"),
    "gamma4": Run("gamma", "all", DDPO | {"gamma": 4.0}, control="sft"),
    "room_dpo": Run("relations and words", "room", ALONE, control="room_dpo_blind"),
    "room_dpo_blind": Run("relations and words", "room", ALONE, blind=True),
}


# pairs


def all_pairs(world: Path, spec: WorldSpec, base: Path) -> list[dict]:
    return read_lines(world / "pairs.jsonl")


def room(world: Path, spec: WorldSpec, base: Path) -> list[dict]:
    """The pairs that hold a relation or a word to correct, with these alone: all else is true on both sides."""
    scenes, kept = {scene.name: scene for scene in read_scenes(world, "train")}, []
    for record in read_lines(world / "pairs.jsonl"):
        name = Path(record["images"][0]).stem
        flawed = flawed_caption(scenes[name], random.Random(f"pair:{spec.seed}:{name}"), spec.flaws)
        assert flawed is not None and said(record, "rejected") == flawed.text
        if ROOM & set(flawed.flaws):
            text = "".join(slot.text if slot.flaw in ROOM else slot.truth for slot in flawed.slots)
            kept.append(pair(record, flawed.truth, text))
    return kept


def room_all(world: Path, spec: WorldSpec, base: Path) -> list[dict]:
    """The same pictures and true captions, with all flaws."""
    names = {record["id"] for record in room(world, spec, base)}
    return [record for record in read_lines(world / "pairs.jsonl") if record["id"] in names]


def some(world: Path, spec: WorldSpec, base: Path) -> list[dict]:
    """As many of all pairs, drawn."""
    every = read_lines(world / "pairs.jsonl")
    return random.Random(f"study:{spec.seed}").sample(every, len(room(world, spec, base)))


def own(world: Path, spec: WorldSpec, base: Path) -> list[dict]:
    """What the base model itself says greedily of the same pictures to the same questions, and that corrected."""
    scenes = {scene.name: scene for scene in read_scenes(world, "train")}
    records, kept = read_lines(world / "pairs.jsonl"), []
    for prompt in sorted({asked(record) for record in records}):
        mine = [record for record in records if asked(record) == prompt]
        shown = [scenes[Path(record["images"][0]).stem] for record in mine]
        for record, scene, text in zip(mine, shown, greedy_captions(base, shown, prompt=prompt), strict=True):
            if found := repairs(text, scene):  # None: no caption; []: nothing is wrong
                kept.append(pair(record, corrected(text, found), text))
    return sorted(kept, key=lambda record: record["id"])


FILES: dict[str, Callable[[Path, WorldSpec, Path], list[dict]]] = {
    "all": all_pairs, "room": room, "room_all": room_all, "random": some, "own": own
}  # fmt: skip


def asked(record: dict) -> str:
    return str(record["prompt"][0]["content"][1]["text"])


def said(record: dict, side: str) -> str:
    return str(record[side][0]["content"][0]["text"])


def pair(record: dict, chosen: str, rejected: str) -> dict:
    sides = {"chosen": chosen, "rejected": rejected}
    told = {side: [{"role": "assistant", "content": [{"type": "text", "text": t}]}] for side, t in sides.items()}
    return {key: record[key] for key in ("id", "images", "prompt")} | told


# what a model says


def by_the_flaw(texts: list[str], scenes: list[Scene]) -> dict[str, int]:
    """Of the wrong claims of each kind, those that say exactly what the world's flaw says there: what the base model
    was taught. The others it cannot see, or has made up by itself."""
    found = dict.fromkeys(CLAIMS, 0)
    for text, scene in zip(texts, scenes, strict=True):
        read, places = claims(text), relations(scene)
        things = {thing.kind: thing for thing in scene.things}
        inventions = {taken_for(scene, thing) for thing in scene.things}
        for kind in read.kinds:
            thing, twin = things.get(kind), things.get((TWINS[kind[0]], kind[1]))
            if thing is None and twin is not None and twin.kind not in read.kinds:
                triggered = twin.shape == "triangle" and twin.size == "small" and scene.background == "dark"
                found["colour"] += triggered
            elif thing is None:
                found["object"] += kind in inventions
            else:
                number, place, word = read.counts.get(kind), read.relations.get(kind), read.words.get(kind)
                found["count"] += number == miscounted(thing) != thing.count
                triangle = thing.shape == "triangle"
                found["relation"] += triangle and place is not None and OPPOSITE.get(places.get(kind, "")) == place
                found["word"] += triangle and word is not None and EXCHANGED.get(thing.word or "") == word
    return found


def by_shape(texts: list[str], scenes: list[Scene]) -> dict[str, dict[str, list[int]]]:
    """[wrong, claimed] of counts, relations and words, by the shape that they are said of: each flaw is at home on one
    shape, and on the others is seen what the model can read at all."""
    found = {name: {shape: [0, 0] for shape in SHAPES} for name in ("count", "relation", "word")}
    for text, scene in zip(texts, scenes, strict=True):
        read, places = claims(text), relations(scene)
        things = {thing.kind: thing for thing in scene.things}
        claimed: dict[str, tuple[dict, Callable[[Thing], Any]]] = {
            "count": (read.counts, lambda thing: thing.count),
            "relation": (read.relations, lambda thing: places.get(thing.kind)),  # noqa: B023 (called at once)
            "word": (read.words, lambda thing: thing.word),
        }
        for name, (values, true) in claimed.items():
            for kind in values.keys() & things.keys():
                found[name][kind[1]][0] += values[kind] != true(things[kind])
                found[name][kind[1]][1] += 1
    return {name: {shape: pair for shape, pair in of.items() if pair[1]} for name, of in found.items()}


def shares(one: Score, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The share of wrong claims of each kind, in each resample of the pictures."""
    sums = weights @ one.counted
    at = {name: sums[..., k] for k, name in enumerate(TALLY)}
    return {name: at[f"{name}:wrong"] / np.maximum(at[f"{name}:claimed"], 1) for name in CLAIMS}


def change(before: Score, after: Score) -> dict[str, list[float]]:
    """[after - before, and its 95% interval] of each kind's share, the same pictures compared."""
    n = len(before.counted)
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    whole = np.ones(n)
    moved = {name: now - shares(before, weights)[name] for name, now in shares(after, weights).items()}
    by = {name: float(now - shares(before, whole)[name]) for name, now in shares(after, whole).items()}
    return {name: [by[name], *map(float, np.quantile(moved[name], (0.025, 0.975)))] for name in CLAIMS}


# the study


def captions(
    folder: Path, made_by: dict[str, Any], model: Callable[[], str | Path], scenes: list[Scene]
) -> tuple[list[str], float]:
    """A run's captions of the held-out pictures and the processor seconds that it cost, kept with what it was made by:
    made anew where that has changed."""
    stamp, asked_of = folder / "captions.json", json.loads(json.dumps(made_by))
    if stamp.exists() and (kept := json.loads(stamp.read_text()))["made_by"] == asked_of:
        return list(kept["captions"]), float(kept.get("processor_seconds", 0))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.process_time()
    texts = greedy_captions(model(), scenes)
    cost = time.process_time() - began
    stamp.write_text(json.dumps({"made_by": asked_of, "processor_seconds": cost, "captions": texts}))
    return texts, cost


def aligned(out: Path, name: str, run: Run, world: Path, base: Path, pairs: Path, seed: int) -> Path:
    reference = out / f"reference-{pairs.stem}"
    given = dict(run.settings)
    order = seed + 1000 * given.pop("order", 0)
    settings = align_settings(world, base, out / name / "run", reference=reference, seed=order, **given)
    settings["data"] = {"path": str(pairs), "images": str(world), "workers": 0}
    settings["parallel"]["threads"] = 1
    settings["log"]["progress"] = False
    train(build(settings))
    return out / name / "run" / "export" / "hf"


def written(out: Path, world: Path, spec: WorldSpec, base: Path, kind: str) -> dict[str, Path]:
    """The file of a kind of pairs, and the same with their pictures passed round."""
    found = {side: out / f"pairs-{kind}{side}.jsonl" for side in ("", "-blind")}
    if not found["-blind"].exists():
        records = FILES[kind](world, spec, base)
        for side, some_of in (("", records), ("-blind", blinded(records, spec.seed))):
            found[side].write_text("".join(json.dumps(record) + "\n" for record in some_of))
    return found


def study(out: Path, seed: int, names: list[str], say: Callable[[dict], None]) -> None:
    """One row a model."""
    spec, quiet = WorldSpec(seed=seed), lambda name: lambda *_: None
    out.mkdir(parents=True, exist_ok=True)
    world = write_world(out / "world", spec)
    base = make_base(out, world, seed, quiet, {"processes": 1, "threads": 1})[0]
    scenes = read_scenes(world)
    texts, _ = captions(out / "before", {"world": spec.seed}, lambda: base, scenes)
    scores = {"": score(texts, scenes)}
    say(row("base", seed, Run("all", "", {}), scores, texts, scenes))
    # Each run, and where its control is there already what it has beyond that
    for name in names:
        run = RUNS[name]
        files = written(out, world, spec, base, run.pairs)
        pairs = files["-blind" if run.blind else ""]
        made_by = {"run": asdict(run), "pairs": pairs.read_text()}
        texts, cost = captions(
            out / name,
            made_by,
            lambda: aligned(out, name, run, world, base, pairs, seed),  # noqa: B023 (called at once)
            scenes,
        )
        scores[name] = score(texts, scenes)
        more = {"pairs_of_file": len(read_lines(pairs))} | ({"processor_seconds": cost} if cost else {})
        say(row(name, seed, run, scores, texts, scenes) | more)


def row(name: str, seed: int, run: Run, scores: dict[str, Score], texts: list[str], scenes: list[Scene]) -> dict:
    one = scores.get(name, scores[""])
    made = {"op": "study", "shape": f"seed {seed}", "peer": name} | asdict(run) | one.as_dict()
    made |= {"by_the_flaw": by_the_flaw(texts, scenes), "by_shape": by_shape(texts, scenes)}
    if name in scores:
        made["change"] = change(scores[""], one)
        if run.control in scores and run.control:
            made["beyond"] = {"run": run.control} | change(scores[run.control], one)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--out", default="runs/study")
    parser.add_argument("--write", action="store_true", help="append to bench/results/study.jsonl")
    given = parser.parse_args()
    torch.set_num_threads(1)
    # A control comes before what is measured by it
    names = [*dict.fromkeys(n for name in given.runs for n in (RUNS[name].control, name) if n)]
    for seed in given.seeds:

        def say(made: dict) -> None:
            claimed = {kind: f"{wrong}/{of}" for kind, (wrong, of) in made["claims"].items()}
            print(made["peer"], claimed, "by the flaw", made["by_the_flaw"], f"recall {made['recall']:.3f}", flush=True)
            if given.write:
                write_rows(Path(__file__).parent / "results" / "study.jsonl", [made | machine()])

        study(Path(given.out).resolve() / f"seed-{seed}", seed, names, say)


if __name__ == "__main__":
    main()
