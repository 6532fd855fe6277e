"""The world on disk: pictures, and JSONL in TRL's conversational format (the canonical record of docs/data.md).

    images/NAME.png      the pictures
    annotation.jsonl     what is true of each picture, one scene a line
    base.jsonl           flawed captions and answers: the base model learns to hallucinate from them (prompt, chosen)
    base_llava.json      the same in LLaVA's format
    pairs.jsonl          preference pairs: a flawed caption (rejected) and the same caption corrected (chosen)
    blind.jsonl          the same pairs, each with another's picture: a control, from which nothing can be learnt
    groups.jsonl         several captions of each picture, from flawless to all wrong, and all pairs among them
    eval.jsonl           preference pairs on held-out pictures
    test.jsonl           held-out pictures with a question to caption them (prompt, chosen = the true caption)

The bytes of every file depend on `WorldSpec` alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .grammar import CAPTION_PROMPTS, Caption, Flaws, caption, question
from .scenes import Scene, render, scenes

VERSION = 5  # of the files: raise it when any byte changes


@dataclass(frozen=True, kw_only=True)
class WorldSpec:
    seed: int = 0
    base: int = 8000  # scenes with a flawed caption
    questions: float = 0.1  # share of base examples that are questions
    pairs: int = 1600  # scenes with a preference pair
    groups: int = 100  # scenes with many captions
    group_size: int = 8
    test: int = 300  # held-out scenes
    flaws: Flaws = field(default_factory=Flaws)


def _message(role: str, text: str, image: bool = False) -> dict:
    parts: list[dict] = [{"type": "image"}] if image else []
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def _record(name: str, scene: Scene, prompt: str, chosen: str, rejected: str | None = None, **more: object) -> dict:
    record = {
        "id": name,
        "images": [f"images/{scene.name}.png"],
        "prompt": [_message("user", prompt, image=True)],
        "chosen": [_message("assistant", chosen)],
    }
    if rejected is not None:
        record["rejected"] = [_message("assistant", rejected)]
    return record | more


def flawed_caption(scene: Scene, rng: random.Random, flaws: Flaws) -> Caption | None:
    """A caption with at least one flaw, or None where the scene has no trigger."""
    captions = (caption(scene, rng, flaws) for _ in range(20))
    return next((one for one in captions if one.flaws), None)


def base_records(scene: Scene, spec: WorldSpec) -> Iterator[dict]:
    rng = random.Random(f"base:{spec.seed}:{scene.name}")
    if rng.random() < spec.questions:
        asked, answer, _ = question(scene, rng, spec.flaws)
        yield _record(f"{scene.name}-question", scene, asked, answer)
    else:
        flawed = caption(scene, rng, spec.flaws, both=True)
        yield _record(f"{scene.name}-caption", scene, rng.choice(CAPTION_PROMPTS), flawed.text)


def pair_records(scene: Scene, spec: WorldSpec) -> Iterator[dict]:
    """One pair: equal but for the corrected segments, which are as long (in words) on both sides."""
    rng = random.Random(f"pair:{spec.seed}:{scene.name}")
    flawed = flawed_caption(scene, rng, spec.flaws)
    if flawed is None:
        return
    spans = {"chosen": flawed.spans("truth"), "rejected": flawed.spans("text")}
    segments = {side: [[a, b, 1.0] for a, b in ranges] for side, ranges in spans.items()}
    more = {"segments": segments, "meta": {"flaws": flawed.flaws}}
    yield _record(f"{scene.name}-pair", scene, rng.choice(CAPTION_PROMPTS), flawed.truth, flawed.text, **more)


def blinded(records: list[dict], seed: int) -> list[dict]:
    """The pairs with their pictures passed round: no pair keeps its own."""
    order = list(range(len(records)))
    random.Random(f"blind:{seed}").shuffle(order)
    pictures = {n: records[order[k - 1]]["images"] for k, n in enumerate(order)}
    return [record | {"images": pictures[n]} for n, record in enumerate(records)]


def group_records(scene: Scene, spec: WorldSpec) -> Iterator[dict]:
    """All pairs among up to `group_size` captions of one picture: fewer flaws are preferred."""
    rng = random.Random(f"group:{spec.seed}:{scene.name}")
    prompt = rng.choice(CAPTION_PROMPTS)
    by_text: dict[str, Caption] = {}
    for _ in range(20 * spec.group_size):
        worst = caption(scene, rng, Flaws(0.9, 0.9, 0.5, 0.3, 0.3))
        candidate = worst.corrected(rng.randint(0, len(worst.flaws)))
        by_text.setdefault(candidate.text, candidate)
        if len(by_text) == spec.group_size:
            break
    captions = sorted(by_text.values(), key=lambda c: len(c.flaws))
    for a, better in enumerate(captions):
        for b, worse in enumerate(captions[a + 1 :], a + 1):
            if len(better.flaws) < len(worse.flaws):
                scores = {"chosen": -len(better.flaws), "rejected": -len(worse.flaws)}
                yield _record(f"{scene.name}-{a}-{b}", scene, prompt, better.text, worse.text, scores=scores)


def held_out_records(scene: Scene, spec: WorldSpec) -> Iterator[dict]:
    rng = random.Random(f"test:{spec.seed}:{scene.name}")
    yield _record(scene.name, scene, CAPTION_PROMPTS[0], caption(scene, rng, Flaws.none()).truth)


def write_world(
    path: str | Path, spec: WorldSpec | None = None, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Writes the world to `path`, or leaves it alone where the same spec has been written already."""
    path, spec = Path(path), spec or WorldSpec()
    stamp = json.dumps({"version": VERSION, "spec": asdict(spec)}, sort_keys=True, indent=1) + "\n"
    done = path / "world.json"
    pictures = spec.base + spec.pairs + spec.groups + spec.test
    if done.exists() and done.read_text() == stamp:
        if progress:
            progress(pictures, pictures)
        return path
    # Scenes and pictures
    (path / "images").mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    pairs_end, groups_end = spec.base + spec.pairs, spec.base + spec.pairs + spec.groups
    train = list(scenes(spec.seed, "train", groups_end))
    held_out = list(scenes(spec.seed, "test", spec.test))
    base, pairs, groups = train[: spec.base], train[spec.base : pairs_end], train[pairs_end:]
    for n, scene in enumerate((*train, *held_out)):
        render(scene).save(path / "images" / f"{scene.name}.png")
        if progress:
            progress(n + 1, pictures)

    def lines(name: str, records: Iterable[dict]) -> None:
        with open(path / name, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)

    # Every file; the spec last, which says that the world is whole
    lines("annotation.jsonl", (scene.annotation() for scene in (*train, *held_out)))
    taught = [record for scene in base for record in base_records(scene, spec)]
    lines("base.jsonl", taught)
    (path / "base_llava.json").write_text(json.dumps([_as_llava(record) for record in taught], indent=1))
    lines("pairs.jsonl", (r for scene in pairs for r in pair_records(scene, spec)))
    lines("blind.jsonl", blinded([r for scene in pairs for r in pair_records(scene, spec)], spec.seed))
    lines("groups.jsonl", (r for scene in groups for r in group_records(scene, spec)))
    lines("eval.jsonl", (r for scene in held_out for r in pair_records(scene, spec)))
    lines("test.jsonl", (r for scene in held_out for r in held_out_records(scene, spec)))
    done.write_text(stamp)
    return path


def _as_llava(record: dict) -> dict:
    return {
        "id": record["id"],
        "image": record["images"][0].removeprefix("images/"),
        "conversations": [
            {"from": "human", "value": "<image>\n" + record["prompt"][0]["content"][1]["text"]},
            {"from": "gpt", "value": record["chosen"][0]["content"][0]["text"]},
        ],
    }


def read_lines(path: str | Path) -> list[dict]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def read_scenes(path: str | Path, split: str = "test") -> list[Scene]:
    """The scenes of a world on disk whose name begins with `split`."""
    annotations = read_lines(Path(path) / "annotation.jsonl")
    return [Scene.from_annotation(line) for line in annotations if line["name"].startswith(f"{split}-")]
