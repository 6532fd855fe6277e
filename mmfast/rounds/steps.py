"""The commands of a round, in their order, and where each leaves its work.

    rounds/NN/answers/ critique/ ... pairs.jsonl run/ eval/     what the commands write
    rounds/NN/steps/NAME.json    by which command, out of which steps; written when it is whole
    rounds/NN/logs/NAME.log      what it said

A step is done when its note says so and what it made is there. What a note reads are the marks of the notes before it,
so that whatever was made of something that has been made anew since is made anew too.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmfast.config import dump
from mmfast.config.toml import build
from mmfast.data.containers.read import data_files
from mmfast.engines.manifests import compare
from mmfast.engines.stage import MANIFEST
from mmfast.files import file_digest, write_json
from mmfast.job.runfolder import FINISHED
from mmfast.rounds.settings import MODELS, Command, Settings, training_of

OF_MODELS = ("local", "plain")  # engines that run on all processes


@dataclass(frozen=True, kw_only=True)
class Step:
    round: int
    name: str
    home: Path  # of its round
    command: tuple[str, ...]  # of `mmfast`
    makes: Path
    reads: tuple[Path, ...]  # notes of the steps that it reads
    wide: bool = False  # it runs on all processes
    whole: Callable[[Path], bool] = Path.exists  # whether what it makes is complete
    config: dict[str, Any] | None = None  # of the training
    contents: Callable[[], dict[str, str]] = dict  # digests of what it reads from outside, by its name in the file

    @property
    def note(self) -> Path:
        return self.home / "steps" / f"{self.name}.json"

    @property
    def log(self) -> Path:
        return self.home / "logs" / f"{self.name}.log"

    @property
    def told(self) -> str:
        return f"round {self.round}, {self.name}" if self.round else f"the base, {self.name}"

    def made_by(self) -> dict[str, Any]:
        """What it is made by, without places that say nothing: a folder may be moved."""
        at = str(self.home.parent)
        return {
            "command": [text.replace(at, "ROUNDS") for text in self.command],
            "config": json.loads(json.dumps(self.config or {}).replace(at, "ROUNDS")),
            "contents": self.contents(),
        }

    def read(self) -> dict[str, Any] | None:
        try:
            note = json.loads(self.note.read_text())
            return note if isinstance(note, dict) else None
        except (OSError, ValueError):
            return None

    def inputs(self) -> list[str]:
        """The marks of what it reads; "" for one that is not done."""
        marks = []
        for path in self.reads:
            try:
                marks.append(str(json.loads(path.read_text()).get("mark", "")))
            except (OSError, ValueError):
                marks.append("")
        return marks

    def done(self) -> bool:
        """Whether it stands. Raises where it was made by other settings than today's."""
        note = self.read()
        if not note or not note.get("mark") or note.get("reads") != self.inputs() or not self.whole(self.makes):
            return False
        if changed := self.changed(note):
            fix = f"change it back, or delete {self.makes}: it is then made again, with all that follows from it"
            raise ValueError(f"{self.told} was made by other settings: {'; '.join(changed)}: {fix}")
        return True

    def changed(self, note: dict[str, Any]) -> list[str]:
        before, now = note.get("made_by", {}), self.made_by()
        named = compare(_options(before.get("command", [])), _options(now["command"]))
        named += compare({"contents": before.get("contents", {})}, {"contents": now["contents"]})
        return named + compare(before.get("config", {}), now["config"])

    def begin(self) -> dict[str, float]:
        """What a killed start left is gone on with, but not what was made of other things than today's. Returns what
        earlier starts have spent on it."""
        note, spent = self.read(), self.spent()
        if note and (note.get("mark") or note.get("reads") != self.inputs()):
            self.remove()
            spent = {}
        self.note.parent.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.pause(spent)
        if self.config is not None:
            self.home.joinpath("run.toml").write_text(dump(build(self.config)))
        return spent

    def pause(self, spent: dict[str, float]) -> None:
        """Note that it has begun."""
        write_json(self.note, {"made_by": self.made_by(), "reads": self.inputs(), "mark": "", "spent": spent})

    def end(self, spent: dict[str, float], told: list[str]) -> None:
        note = {"made_by": self.made_by(), "reads": self.inputs(), "mark": uuid.uuid4().hex, "spent": spent}
        write_json(self.note, note | {"said": told})

    def spent(self) -> dict[str, float]:
        """Seconds, tokens and money."""
        found = (self.read() or {}).get("spent")
        return dict(found) if isinstance(found, dict) else {}

    def remove(self) -> None:
        if self.makes.is_dir():
            shutil.rmtree(self.makes)
        else:
            self.makes.unlink(missing_ok=True)


def _options(command: list[str]) -> dict[str, Any]:
    """A command line by its options, for a comparison by name."""
    out: dict[str, Any] = {}
    name = "of"
    for text in command:
        if text.startswith("--"):
            name = text[2:]
            out.setdefault(name, "")
        else:
            out[name] = f"{out.get(name, '')} {text}".strip()
    return out


def home_of(settings: Settings, number: int) -> Path:
    return settings.folder / "rounds" / f"{number:02d}"


def note_of(settings: Settings, number: int, name: str) -> Path:
    return home_of(settings, number) / "steps" / f"{name}.json"


# the steps of a round


def round_of(settings: Settings, number: int, model: str, parent: Path | None) -> Iterator[Step]:
    """The steps of a round that starts from `model`, which the step noted in `parent` made (None: the base)."""
    home = home_of(settings, number)
    born = () if parent is None else (parent,)
    notes: dict[str, Path] = {}

    def step(name: str, command: list[str], makes: str, reads: tuple[Path, ...], **more: Any) -> Step:
        made = Step(round=number, name=name, home=home, command=tuple(command), makes=home / makes, reads=reads, **more)
        notes[name] = made.note
        return made

    # Answers, if anything is asked
    prompts, options = settings.prompts, dict(settings.generate.options)
    asked = ["generate", prompts.path, "--out", str(home / "answers")]
    asked += ["--format", prompts.format] * (prompts.format != "auto")
    asked += ["--images", prompts.images] * bool(prompts.images)
    asked += ["--limit", str(prompts.limit)] * bool(prompts.limit)
    asked += ["--part", f"{number}/{settings.rounds.count}"] * (settings.rounds.prompts == "split")
    options["seed"] = int(options.get("seed", 0)) + number - 1  # each round draws answers of its own
    asked += written(options, settings, model)
    if prompts.path:
        read = partial(_contents, settings)
        yield step("answers", asked, "answers", born, wide=wide(options), whole=_has_manifest, contents=read)
    # What is said of them
    for one in settings.feedback:
        command, reads = _said(one, home, settings, notes)
        command += ["--out", str(home / one.name), *written(one.options, settings, model)]
        if one.options.get("model") == "current":
            reads = (*reads, *born)
        yield step(one.name, command, one.name, reads, wide=wide(one.options), whole=_has_manifest)
    # Training data, but what is there already
    made = [one for one in settings.pairs if not one.file]
    for one in made:
        of = one.of or (settings.feedback[-1].name if settings.feedback else "answers")
        makes = f"{one.name}.jsonl"
        command = ["data", one.stage, str(home / of), "--out", str(home / makes)]
        command += written(one.options, settings, model)
        yield step(one.name, command, makes, (notes[of],), whole=_has_rows)
    # Training, on what earlier rounds made too if that is asked for
    files = [one.file or str(home / f"{one.name}.jsonl") for one in settings.pairs]
    reads = (*born, *(notes[one.name] for one in made))
    if settings.rounds.mix:
        for earlier in range(1, number):
            files += [str(home_of(settings, earlier) / f"{one.name}.jsonl") for one in made]
            reads += tuple(note_of(settings, earlier, one.name) for one in made)
    config = training_of(settings, model, files, home / "run")
    yield step("run", ["train", str(home / "run.toml")], "run", reads, wide=True, whole=_trained, config=config)
    if settings.judged:
        yield judged(settings, number, str(home / "run" / "export" / "hf"), notes["run"])


def judged(settings: Settings, number: int, model: str, parent: Path | None) -> Step:
    """The benchmarks of [evaluate], asked of a round's model; of round 0, the base."""
    home, section = home_of(settings, number), settings.evaluate
    command = ["eval", "run", model, "--bench", ",".join(section.bench), "--data", section.data]
    command += ["--out", str(home / "eval")]
    command += ["--images", section.images] * bool(section.images)
    command += ["--limit", f"{section.limit:g}"] * bool(section.limit)
    command += written(settings.scoring.options, settings, model)
    reads = () if parent is None else (parent,)

    def whole(folder: Path) -> bool:
        return all((folder / name / "result.json").is_file() for name in section.bench)

    return Step(
        round=number,
        name="eval",
        home=home,
        command=tuple(command),
        makes=home / "eval",
        reads=reads,
        wide=True,
        whole=whole,
    )


def _said(one: Command, home: Path, settings: Settings, notes: dict[str, Path]) -> tuple[list[str], tuple[Path, ...]]:
    """What a stage of feedback reads: the answers, or the nearest items and verdicts before it."""

    def before(stage: str) -> str:
        earlier = settings.feedback[: settings.feedback.index(one)]
        found = [other.name for other in earlier if other.stage == stage]
        if not found:
            raise ValueError(f"[[feedback]] {one.stage} needs what mmfast {stage} makes: put {stage} before it")
        return found[-1]

    if one.stage == "check":
        items = before("decompose")
        return ["check", str(home / items)], (notes[items],)
    command, reads = [one.stage, str(home / "answers")], [notes["answers"]]
    if one.stage == "grade" and any(other.stage == "check" for other in settings.feedback):
        items, verdicts = before("decompose"), before("check")
        command += ["--items", str(home / items), "--verdicts", str(home / verdicts)]
        reads += [notes[items], notes[verdicts]]
    return command, tuple(reads)


def written(options: dict[str, Any], settings: Settings, model: str) -> list[str]:
    """Options as a command line has them."""
    models = dict(zip(MODELS, (model, settings.base), strict=True))
    out: list[str] = []
    for name, value in options.items():
        if name == "model":
            value = models.get(value, value)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, bool):
                out.append(f"--{name}" if one else f"--no-{name}")
            else:
                out += [f"--{name}", str(one)]
    return out


def wide(options: dict[str, Any]) -> bool:
    return str(options.get("engine", "")) in OF_MODELS


def _contents(settings: Settings) -> dict[str, str]:
    """Of the prompts' files; nothing where they are not there."""
    try:
        files = data_files(settings.prompts.path)
    except ValueError:
        return {}
    digests = [file_digest(file, settings.folder / "digests") for file in files]
    whole = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return {"prompts.path": whole[:16]}


# whether what a step makes is whole


def _has_manifest(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def _has_rows(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0


def _trained(run: Path) -> bool:
    """A run that was stopped by a signal ends with 0 under torchrun."""
    return (run / FINISHED).is_file() and (run / "export" / "hf").is_dir()
