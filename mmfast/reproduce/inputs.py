"""What of a paper is there, and what is missing: a line each, with the command that fetches it."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mmfast.data.containers.read import data_files, iterate
from mmfast.data.formats.dgpref import image_path
from mmfast.engines.inputs import pictures_in
from mmfast.reproduce import weights
from mmfast.reproduce.paper import Input, Paper, Weights
from mmfast.rounds import choice
from mmfast.rounds.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Line:
    what: str
    there: bool
    told: str  # what was found, or what is wrong
    fix: str = ""  # a command, or where it is to be had
    short: bool = False  # it has other rows than the paper's


def look(paper: Paper, root: Path, settings: Settings) -> list[Line]:
    """Everything that a run reads; of the paper's what the user's own overrides have left."""
    models, files = used(paper, root, settings)
    found = [_model(one, root) for one in models]
    if paper.models[0] not in models:
        found.append(_own_base(settings.base))
    found += [look_at(one, root, settings.prompts.limit) for one in files]
    found += [_bench(settings, name) for name in settings.evaluate.bench]
    return found + list(_servers(settings))


def used(paper: Paper, root: Path, settings: Settings) -> tuple[list[Weights], list[Input]]:
    """Of the paper's models and files those that a run of these settings reads."""
    named = {settings.base, *(str(one.options.get("model", "")) for one in [settings.generate, *settings.feedback])}
    models = [one for one in paper.models if str(root / one.used) in named]
    if paper.models[0] in models:
        models += [one for one in paper.models if one.layout == "tower"]
    named = {settings.prompts.path, settings.prompts.images, *(one.file for one in settings.pairs)}
    places = [(one, root / one.path) for one in paper.inputs]  # a file also where its folder is named
    return models, [one for one, place in places if named & {str(place), str(place.parent)}]


# models


def _model(model: Weights, root: Path) -> Line:
    what, folder, published = f"{model.what}: {model.id}", root / model.used, root / model.folder
    seen, wrong = weights.tried(model, folder)
    if not wrong:
        return Line(what=what, there=True, told=f"{seen.parameters / 1e9:.2f} billion parameters" if seen else "whole")
    fix = fetch(model, root)
    # Imported anew from what was published, where that is whole
    if model.imported and published.is_dir():
        broken = weights.tried(model, published)[1]
        fix = fix if broken else _importing(model, root)
        wrong = wrong if folder.is_dir() else broken or "is there as published, and has to be imported"
    if model.imported and folder.is_dir():
        fix = f"{shlex.join(['rm', '-r', str(folder)])} && {fix}"
    return Line(what=what, there=False, told=wrong, fix=fix)


def _importing(model: Weights, root: Path) -> str:
    return shlex.join(["mmfast", "import", str(root / model.folder), str(root / model.imported)])


def _own_base(base: str) -> Line:
    """Another base than the paper's: only that it is whole."""
    what, folder = "base: of yours", Path(base)
    if not folder.is_dir():
        return Line(what=what, there=True, told=f"{base}, to be found on the hub when it is opened")
    try:
        seen = weights.look(base, folder)
    except ValueError as error:
        return Line(what=what, there=False, told=str(error), fix="name a whole model in model.path")
    return Line(what=what, there=True, told=f"{base}, {seen.parameters / 1e9:.2f} billion parameters")


def fetch(item: Weights | Input, root: Path) -> str:
    """The command that fetches it; where no command does, where it is to be had."""
    if isinstance(item, Weights):
        more = [] if item.revision == "unknown" else ["--revision", item.revision]
        command = shlex.join(["hf", "download", item.id, *more, "--local-dir", str(root / item.folder)])
        return f"{command} && {_importing(item, root)}" if item.imported else command
    if item.hub:
        return shlex.join(["hf", "download", item.hub, "--repo-type", "dataset", "--local-dir", str(root / item.path)])
    if item.commands:
        place = shlex.quote(str(root))
        return f"{' && '.join(item.commands).replace('{root}', place)}  # of {item.source}"
    return f"to be had from {item.source}; put it at {root / item.path}"


# files


def look_at(item: Input, root: Path, limit: int) -> Line:
    path = root / item.path
    if not path.exists():
        told = f"{path} is missing (licence: {item.licence})"
        return Line(what=item.what, there=False, told=told, fix=fetch(item, root))
    try:
        if not item.header:
            pictures = len(pictures_in(path))
            if not pictures:
                raise ValueError(f"{path} holds no picture")
            return Line(what=item.what, there=True, told=f"{pictures:,} pictures")
        rows = read(item, path, root / item.images if item.images else None, limit)
    except ValueError as error:
        return Line(what=item.what, there=False, told=str(error).removeprefix("data.path: "), fix=fetch(item, root))
    usual = f", where the paper's set has {item.rows:,}" if isinstance(item.rows, int) and item.rows != rows else ""
    return Line(what=item.what, there=True, told=f"{rows:,} rows{usual}", short=bool(usual))


def read(item: Input, path: Path, images: Path | None, limit: int) -> int:
    """The number of rows. Raises where a file lacks a column, or a row's picture is not there."""
    if images is None and all(file.suffix == ".parquet" for file in data_files(path)):
        return _parquet_rows(item, data_files(path))
    rows, lost, first = 0, 0, ""
    for value in _values(item, path):
        rows += 1
        if images is None or (limit and rows > limit):
            continue
        name = value["image"] if "image" in value else image_path(value["key"], {"root": str(images)})
        if not (images / str(name)).is_file():
            lost, first = lost + 1, first or str(name)
    if not rows:
        raise ValueError(f"{path} holds no row")
    if lost:
        raise ValueError(f"{path}: of {lost:,} rows the picture is not in {images}, {first} the first")
    return rows


def _values(item: Input, path: Path) -> Iterator[dict[str, Any]]:
    """The rows, of scene graphs a row each image ("key"); the first of each file is looked at for its columns."""
    seen: set[Path] = set()
    for row in iterate(path):
        if isinstance(row.value, Exception):
            raise ValueError(f"{row.source}: {row.value}")
        graphs = item.header == ("objects",)
        for name, value in row.value.items() if graphs else [("", row.value)]:
            if row.file not in seen:
                seen.add(row.file)
                _columns(item, row.file, list(value) if isinstance(value, dict) else [])
            yield {"key": name} if graphs else value


def _columns(item: Input, file: Path, there: list[str]) -> None:
    if missing := [name for name in item.header if name not in there]:
        found = ", ".join(there) or "none"
        raise ValueError(f"{file} has no column {missing[0]} (it has {found}): it is no file of {item.source}")


def _parquet_rows(item: Input, files: list[Path]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = 0
    for file in files:
        try:
            with pq.ParquetFile(file) as held:
                _columns(item, file, held.schema_arrow.names)
                rows += held.metadata.num_rows
                lost = _without_pictures(held.metadata) if "image" in item.header else 0
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{file} is damaged or cut short ({error}): fetch it again") from None
        if lost:
            raise ValueError(f"{file}: {lost:,} of its rows hold no picture: fetch it again")
    return rows


def _without_pictures(file: Any) -> int:
    """Rows of a parquet file whose image has no bytes, by what the file notes of its columns."""
    lost = 0
    for number in range(file.num_row_groups):
        group = file.row_group(number)
        columns = [group.column(n) for n in range(group.num_columns)]
        held = next((one for one in columns if one.path_in_schema == "image.bytes"), None)
        noted = held.statistics if held is not None else None
        lost += group.num_rows if held is None else noted.null_count if noted and noted.has_null_count else 0
    return lost


# benchmarks and servers


def _bench(settings: Settings, name: str) -> Line:
    what = f"benchmark {name}"
    try:
        return Line(what=what, there=True, told=f"{choice.check_bench(settings, name):,} questions")
    except ValueError as error:
        fix = f"docs/evaluation.md has its files; evaluate.bench=... leaves {name} out"
        return Line(what=what, there=False, told=str(error).removeprefix("--data "), fix=fix)


def _servers(settings: Settings) -> Iterator[Line]:
    """Addresses that are asked: whether anybody listens."""
    asked = {str(one.options.get("engine", "")): one.name for one in [settings.generate, *settings.feedback]}
    asked |= {str(settings.scoring.options.get("judge", "")): "the benchmarks' judge"}
    for address, who in asked.items():
        if not address.startswith("http"):
            continue
        place = urlsplit(address)
        try:
            port = place.port or (443 if place.scheme == "https" else 80)
            socket.create_connection((place.hostname or "", port), timeout=3).close()
        except (OSError, ValueError) as error:
            fix = "start a server there, or name another by overrides (docs/papers.md)"
            yield Line(what=f"server of {who}", there=False, told=f"nobody answers at {address} ({error})", fix=fix)
        else:
            yield Line(what=f"server of {who}", there=True, told=address)


def parameters(paper: Paper, settings: Settings) -> float:
    """Of the model that runs: as its files say, else as the paper's base has."""
    try:
        return float(weights.look(settings.base, Path(settings.base)).parameters)
    except ValueError:
        return paper.models[0].parameters
