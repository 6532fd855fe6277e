"""Reference log-probs go into the files of other projects and come back from them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmfast.config import build
from mmfast.data.records import Branch, Example, ImageInfo
from mmfast.packing import response_key
from mmfast.reference.cache import ReferenceCache
from mmfast.reference.exchange import export_file, export_reference, import_file, import_reference

IMAGE = 99
IMAGES = {"p": ImageInfo(id="p", source="p.png", width=4, height=4, tokens=5)}


def _branch(tail):
    ids = np.array([1, IMAGE, 7, 8, *tail], np.int32)
    return Branch(ids=ids, images=("p",), spans=((4, len(ids)),))


EXAMPLES = [
    Example(id=f"e{i}", source=f"f.json:{i}", chosen=_branch([10 + i, 11, 2]), rejected=_branch([20 + i, 2]))
    for i in range(3)
]


def _cache(folder, fill=True):
    cache = ReferenceCache(folder, {"format": 1})
    rng = np.random.default_rng(1)
    if fill:
        cache.add(
            {
                response_key(b): -rng.random(b.spans[0][1] - b.spans[0][0]).astype(np.float32)
                for e in EXAMPLES
                for b in (e.chosen, e.rejected)
            }
        )
    return cache


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet", "muffin"])
def test_there_and_back(tmp_path, kind):
    cache = _cache(tmp_path / "a")
    source = tmp_path / f"source.{'parquet' if kind == 'muffin' else kind}"
    rows = [{"image": "p.png", "n": i} for i in range(3)]
    if kind == "json":
        source.write_text(json.dumps(rows))
    elif kind == "jsonl":
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.table({"question": ["a", "b", "c"]}), source)
    out = tmp_path / ("out.json" if kind in ("json", "jsonl") else "out.parquet")
    assert export_reference(out, source, EXAMPLES[::2], cache) == 2  # row 1 was dropped
    if kind == "muffin":
        rows = [json.dumps({"logps": json.loads(t)["logps"]}) for t in pq.read_table(out).column("logps").to_pylist()]
        pq.write_table(pa.table({"text": rows}), out)
    kept = [
        Example(id=e.id, source=f"out:{i}", chosen=e.chosen, rejected=e.rejected) for i, e in enumerate(EXAMPLES[::2])
    ]
    if kind == "jsonl":  # lines are read as well as one array
        lines = out.with_suffix(".jsonl")
        lines.write_text("".join(json.dumps(row) + "\n" for row in json.loads(out.read_text())))
        assert [row["n"] for row in json.loads(out.read_text())] == [0, 2]
        out = lines
    again = _cache(tmp_path / "b", fill=False)
    assert import_reference(out, kept, IMAGES, again, image_token=IMAGE) == 4
    for e in kept:
        for b in (e.chosen, e.rejected):
            assert np.array_equal(again[response_key(b)], cache[response_key(b)])


def test_a_folder_of_shards_goes_by_file_and_row(tmp_path):
    cache = _cache(tmp_path / "a")
    from mmfast.reference.exchange import six_tuple

    shards = tmp_path / "shards"
    shards.mkdir()
    for name, e in zip("ab", EXAMPLES, strict=False):
        pq.write_table(pa.table({"logps": [json.dumps(six_tuple(e, cache))]}), shards / f"{name}.parquet")
    kept = [
        Example(id=e.id, source=f"{name}.parquet:0", chosen=e.chosen, rejected=e.rejected)
        for name, e in zip("ab", EXAMPLES, strict=False)
    ]
    again = _cache(tmp_path / "b", fill=False)
    import_reference(shards, kept, IMAGES, again, image_token=IMAGE)
    for e in kept:
        assert np.array_equal(again[response_key(e.rejected)], cache[response_key(e.rejected)])


def test_expanded_images_and_wrong_masks(tmp_path):
    cache = _cache(tmp_path / "a")
    example, b = EXAMPLES[0], EXAMPLES[0].chosen
    tuples = []
    for side in (example.chosen, example.rejected):
        values = cache[response_key(side)].tolist()
        tuples += [sum(values), 0.0, [9.0] * (3 + 4) + values]  # LLaVA: the image's 5 tokens, not its placeholder
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"logps": [json.dumps(tuples)]}), path)
    again = _cache(tmp_path / "b", fill=False)
    import_reference(path, [example], IMAGES, again, image_token=IMAGE)
    assert np.allclose(again[response_key(b)], cache[response_key(b)])
    tuples[0] -= 3.0
    pq.write_table(pa.table({"logps": [json.dumps(tuples)]}), path)
    with pytest.raises(ValueError, match="label mask differ"):
        import_reference(path, [example], IMAGES, again, image_token=IMAGE)
    tuples[2] = tuples[2][1:]
    pq.write_table(pa.table({"logps": [json.dumps(tuples)]}), path)
    with pytest.raises(ValueError, match="per-token list has 9 values"):
        import_reference(path, [example], IMAGES, again, image_token=IMAGE)
    pq.write_table(pa.table({"question": ["a"]}), path)
    with pytest.raises(ValueError, match="holds no reference"):
        import_reference(path, [example], IMAGES, again, image_token=IMAGE)


def test_no_file_holds_runner_up_tokens(tmp_path):
    config = build({"objective": {"compat": "sima"}, "data": {"path": "pairs.json"}})
    for carry in (import_file, export_file):
        with pytest.raises(ValueError, match="scores runner-up tokens, which no such file holds"):
            carry(config, tmp_path / "x.json")


def test_an_export_that_the_files_kind_does_not_hold_is_told(tmp_path):
    cache = _cache(tmp_path / "a")
    lines, inside = tmp_path / "source.jsonl", tmp_path / "source.parquet"
    lines.write_text(json.dumps({"n": 0}) + "\n")
    pq.write_table(pa.table({"image": [b"bytes"]}), inside)
    with pytest.raises(ValueError, match=r"the rows of source.jsonl are no parquet's: write .json"):
        export_reference(tmp_path / "out.parquet", lines, EXAMPLES[:1], cache)
    with pytest.raises(ValueError, match=r"has its images inside, which JSON does not hold: write \.parquet"):
        export_reference(tmp_path / "out.json", inside, EXAMPLES[:1], cache)
    assert not (tmp_path / "out.json").exists()
