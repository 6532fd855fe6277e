"""Reference log-probs in other systems' files: RLHF-V/RLAIF-V six-tuples (`logps`) and mllm-dpo's with_logp JSON.

A six-tuple is (win_sum, win_avg, win_per_token, rej_sum, rej_avg, rej_per_token). A per-token list has one value for
each position but the first; at unscored positions it is ignored on import and 0 on export. Some systems write it with
every image expanded to its tokens, some with one placeholder an image: the length tells which.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmfast.config import Config
from mmfast.data.containers.read import iterate
from mmfast.data.records import Branch, Example, ImageInfo
from mmfast.data.symbols import expanded
from mmfast.files import whole, write_bytes
from mmfast.job.opening import Job
from mmfast.job.runtime import start
from mmfast.packing import response_key
from mmfast.reference.cache import ReferenceCache
from mmfast.reference.scoring import open_cache

SixTuple = list[Any]
FIELDS = (
    "ref_win_logp",
    "ref_win_avg_logp",
    "ref_win_per_token_logp",
    "ref_rej_logp",
    "ref_rej_avg_logp",
    "ref_rej_per_token_logp",
)


def import_file(config: Config, path: Path) -> int:
    """Fill a run's cache from the reference log-probs in another system's file (six-tuples, with_logp), which must be
    the file that data.path names. Returns the number of responses. `train` scores a few again before it trusts them."""
    _refuse_runner_up(config)
    runtime = start(config)
    try:
        job = Job(config, runtime)
        store, token = job.store, job.adapter.image_token_id
        return import_reference(path, store, store.images, open_cache(job), image_token=token)
    finally:
        runtime.close()


def export_file(config: Config, out: Path) -> int:
    """Write data.path again with the cache's log-probs in it: .json in mllm-dpo's fields, .parquet in RLAIF-V's."""
    if not isinstance(config.data.path, str):
        raise ValueError("data.path names several sources: export them one at a time")
    _refuse_runner_up(config)
    _check_target(out, Path(config.data.path))
    runtime = start(config)
    try:
        job = Job(config, runtime)
        store, cache = job.store, open_cache(job)
        missing = sum(key not in cache for pair in store.symbols.named() for key in pair)
        if missing:
            raise ValueError(f"{missing} responses are not in {cache.folder}: run `mmfast reference CONFIG` first")
        return export_reference(out, Path(config.data.path), store, cache)
    finally:
        runtime.close()


def _refuse_runner_up(config: Config) -> None:
    if config.objective.compat == "sima":
        raise ValueError('objective.compat = "sima" scores runner-up tokens, which no such file holds: leave it out')


def import_reference(
    path: Path,
    examples: Iterable[Example],
    images: Mapping[str, ImageInfo],
    cache: ReferenceCache,
    *,
    image_token: int | None,
    tolerance: float = 0.5,
) -> int:
    """Take the log-probs of `path` (the file the examples were built from) into a cache; returns their number.

    The stored sum must agree with the per-token values at our scored positions within `tolerance` nat: another template
    or label mask is told, not trusted. `train` scores a few rows again on top of that.
    """
    table = read_six_tuples(path)
    rows: dict[str, np.ndarray] = {}
    for example in examples:
        if example.rejected is None:
            raise ValueError(f"example {example.id} ({example.source}) has no rejected side: nothing to import for SFT")
        values_of_row = table.get(place(example.source, Path(path).is_dir()))
        if values_of_row is None:
            raise ValueError(f"example {example.id} ({example.source}): its row in {path} has no reference log-probs")
        # Its values at our scored positions, which must add up to what the file says
        for branch, (total, _, values) in ((example.chosen, values_of_row[:3]), (example.rejected, values_of_row[3:])):
            scored = np.asarray(values, np.float32)[_positions(branch, len(values), images, image_token, example)]
            if not np.isfinite(scored).all():
                raise ValueError(
                    f"example {example.id} ({example.source}): its reference log-probs in {path} are not finite: "
                    "remove the row, or score it here (leave --import out)"
                )
            if not abs(float(scored.sum(dtype=np.float64)) - float(total)) <= tolerance:
                raise ValueError(
                    f"example {example.id} ({example.source}): its file says a log-prob of {float(total):.2f}, its "
                    f"per-token values at our scored positions add up to {float(scored.sum()):.2f}: "
                    "template or label mask differ"
                )
            rows[response_key(branch)] = scored
    cache.add({key: value for key, value in rows.items() if key not in cache})
    return len(rows)


def _check_target(path: Path, source: Path) -> None:
    if source.is_dir():
        raise ValueError(f"{source} is a folder: export its files one at a time (data.path = one of them)")
    if path.suffix not in (".json", ".parquet"):
        raise ValueError(f"{path}: write .json (mllm-dpo's fields) or .parquet (RLAIF-V's column)")
    if path.suffix == ".parquet" and source.is_file() and source.suffix != ".parquet":
        raise ValueError(f"{path}: the rows of {source.name} are no parquet's: write .json")


def export_reference(path: Path, source: Path, examples: Iterable[Example], cache: ReferenceCache) -> int:
    """Write `source` again with the cache's log-probs: .json in mllm-dpo's fields, .parquet in RLAIF-V's column.
    Rows without an example (dropped ones) are left out. Returns the number of rows."""
    path, source = Path(path), Path(source)
    _check_target(path, source)
    tuples = {place(example.source, False)[1]: six_tuple(example, cache) for example in examples}
    order = sorted(tuples)
    if path.suffix == ".json":
        rows = {row.number: row.value for row in iterate(source)}
        kept = [{**rows[row], **dict(zip(FIELDS, tuples[row], strict=True))} for row in order]
        try:
            write_bytes(path, json.dumps(kept).encode())
        except TypeError:
            raise ValueError(f"{source} has its images inside, which JSON does not hold: write .parquet") from None
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pq.read_table(source).take(pa.array(order))
        if "logps" in table.column_names:
            table = table.drop_columns(["logps"])
        column = pa.array([json.dumps({"logps": tuples[row]}) for row in order])
        with whole(path) as temporary:
            pq.write_table(table.append_column("logps", column), temporary)
    return len(tuples)


def six_tuple(example: Example, cache: ReferenceCache) -> SixTuple:
    assert example.rejected is not None
    fields: SixTuple = []
    for branch in (example.chosen, example.rejected):
        values = cache[response_key(branch)]
        whole = np.zeros(len(branch.ids) - 1, np.float32)
        whole[_scored(branch) - 1] = values
        total = float(values.sum(dtype=np.float64))
        fields += [total, total / len(values), whole.tolist()]
    return fields


def read_six_tuples(path: Path) -> dict[tuple[str, int], SixTuple]:
    """Place of a row -> its six-tuple, for the rows of a file, or of a folder of parquet shards, that have one."""
    path = Path(path)
    table: dict[tuple[str, int], SixTuple] = {}
    for name, file in _files(path):
        for row, value in enumerate(_column(file)):
            if value is not None:
                table[name, row] = value
    if not table:
        raise ValueError(f"{path} holds no reference log-probs (looked for `logps`, `text`.logps and {FIELDS[0]})")
    return table


def place(source: str, folder: bool) -> tuple[str, int]:
    """Of an example's source "file:row": within a folder of shards the file counts, else only the row."""
    file, _, row = source.rpartition(":")
    return file if folder else "", int(row)


def _files(path: Path) -> list[tuple[str, Path]]:
    if not path.is_dir():
        return [("", path)]
    return [(file.name, file) for file in sorted(path.glob("*.parquet"))]


def _column(file: Path) -> list[SixTuple | None]:
    if file.suffix != ".parquet":
        rows = {row.number: row.value for row in iterate(file) if isinstance(row.value, dict)}
        whole = {n: all(value.get(f) is not None for f in FIELDS) for n, value in rows.items()}
        return [[rows[n][f] for f in FIELDS] if whole.get(n) else None for n in range(max(rows, default=-1) + 1)]
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    if "logps" in table.column_names:  # RLAIF-V: a JSON string, of a list or of {"logps": list}
        values = [json.loads(v) if isinstance(v, str) else v for v in table.column("logps").to_pylist()]
        return [v["logps"] if isinstance(v, dict) else v for v in values]
    if "text" in table.column_names:  # Muffin
        return [json.loads(v).get("logps") for v in table.column("text").to_pylist()]
    return []


def _scored(branch: Branch) -> np.ndarray:
    return np.concatenate([np.arange(begin, end) for begin, end in branch.spans])


def _positions(
    branch: Branch, length: int, images: Mapping[str, ImageInfo], image_token: int | None, example: Example
) -> np.ndarray:
    """Where the scored tokens stand in a per-token list of `length` values."""
    scored = _scored(branch)
    ids, starts = expanded(branch, images, image_token)
    if length == len(branch.ids) - 1:
        return scored - 1
    if length == len(ids) - 1:
        return np.asarray(starts)[scored] - 1
    raise ValueError(
        f"example {example.id} ({example.source}): its per-token list has {length} values, our sequence "
        f"{len(branch.ids)} tokens ({len(ids)} with images expanded): "
        "the template or the tokenizer differs"
    )
