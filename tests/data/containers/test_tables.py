"""CSV, TSV with names, and .gz and .zst: the same rows as from JSONL, and one line where they are broken."""

import csv
import gzip
import json
import random

import pyarrow as pa
import pytest

from mmfast.data.build import build
from mmfast.data.containers.read import data_files, iterate
from mmfast.data.containers.tables import TSV_COLUMNS
from mmfast.data.formats.known import detect, read_records
from mmfast.data.problems import BadRow
from mmfast.data.settings import DataSettings
from mmfast.engines.asked import read_asked
from mmfast.engines.inputs import count_rows
from tests.make import format_samples as samples

ROWS = [
    {"question": "What is this?", "answer": 'A "red" mug,\nand a pen.', "Helpfulness": "4", "id": "007"},
    {"question": "Ein Bild?", "answer": "Zwei Kühe 🐄 grasen;\tdrei nicht", "Helpfulness": None, "id": "8"},
    {"question": "  spaces  ", "answer": "x" * 200_000, "Helpfulness": "0", "id": "9"},
]


def values(path):
    return [row.value for row in iterate(path)]


def packed(path, suffix):
    """The file's bytes as .gz or .zst; the file itself goes."""
    target = path.with_name(path.name + suffix)
    if suffix == ".gz":
        target.write_bytes(gzip.compress(path.read_bytes()))
    else:
        with pa.output_stream(str(target), compression="zstd") as out:
            out.write(path.read_bytes())
    path.unlink()
    return target


def written(path, rows, delimiter=",", encoding="utf-8"):
    with open(path, "w", newline="", encoding=encoding) as f:
        writer = csv.DictWriter(f, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".json"])
def test_every_container_gives_the_same_rows(kind, suffix, tmp_path):
    path = tmp_path / f"t{kind}"
    if kind in (".csv", ".tsv"):
        written(path, ROWS, "," if kind == ".csv" else "\t", "utf-8-sig")
    elif kind == ".json":
        path.write_text(json.dumps(ROWS, ensure_ascii=False, indent=1))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    path = packed(path, suffix) if suffix else path
    assert values(path) == ROWS
    assert data_files(tmp_path) == [path] and data_files(tmp_path / "t.*") == [path] and count_rows(path) == 3
    assert [row.source for row in iterate(path)] == [f"{path.name}:{n}" for n in range(3)]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_packed_pairs_train_and_ask_as_the_others(suffix, tmp_path, picture):
    picture("a.png")
    plain = tmp_path / "t.jsonl"
    plain.write_text("".join(json.dumps(row) + "\n" for row in samples.TRL))
    want, asked = list(read_records(plain)), list(read_asked(plain))
    path = packed(plain, suffix)
    assert detect(path).name == "trl"
    assert [(r.id, r.prompt, r.chosen, r.rejected) for r in read_records(path)] == [
        (r.id, r.prompt, r.chosen, r.rejected) for r in want
    ]
    assert [(a.id, a.messages, a.images) for a in read_asked(path)] == [(a.id, a.messages, a.images) for a in asked]


def test_a_csv_of_pairs_is_built(tmp_path, llava_dir):
    pairs = [{"prompt": "What is it?", "chosen": "A mug.", "rejected": f"A cat, {n}."} for n in range(3)]
    path = packed(written(tmp_path / "p.csv", pairs), ".gz")
    store = build(DataSettings(path=str(path)), llava_dir, tmp_path / "cache", report_to=lambda text: None)
    assert len(store) == 3 and store.report.dropped == []


def test_muffins_tsv_has_no_names_even_where_its_first_line_is_broken(tmp_path):
    line = samples.tsv_line(b"png")
    path = tmp_path / "m.tsv"
    path.write_text(f"torn\tline\n{line}\n")
    first, second = values(path)
    assert isinstance(first, BadRow) and "2 tab-separated columns, not 7" in str(first)
    assert tuple(second) == TSV_COLUMNS
    assert detect(packed(path, ".zst")).name == "rlhfv"
    # A table of seven columns is one of names
    names = [f"c{n}" for n in range(7)]
    (tmp_path / "n.tsv").write_text("\t".join(names) + "\n" + "\t".join("1234567") + "\n")
    assert values(tmp_path / "n.tsv") == [dict(zip(names, "1234567", strict=True))]


def test_a_row_of_another_length_is_bad_alone(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n3\n\n4,5,6\n7,8\n")
    good, short, long, last = values(path)
    assert good == {"a": "1", "b": "2"} and last == {"a": "7", "b": "8"}
    assert str(short) == "1 cells, and the first line names 2 columns" and short.kind == "csv"
    assert str(long).startswith("3 cells")


def test_pandas_row_numbers_are_no_column(tmp_path):
    (tmp_path / "t.csv").write_text(",a\n0,x\n1,y\n")
    assert values(tmp_path / "t.csv") == [{"a": "x"}, {"a": "y"}]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "t.csv: its first line names no column"),
        (b",,\n1,2,3\n", "t.csv: its first line names no column"),
        (b"a,b,a\n1,2,3\n", "t.csv: two of its columns are named a"),
        (b'a,b\n1,"open\n2,3\n4,5\n', "t.csv: the table breaks at line 4 (unexpected end of data)"),
        (b'a,b\n1,"x"y\n', "t.csv: the table breaks at line 2"),
        (b"a,b\n1,\xff\n", "t.csv: not UTF-8"),
    ],
)
def test_a_broken_table_is_one_line(content, said, tmp_path):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError) as error:
        values(tmp_path / "t.csv")
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_damaged_pack_is_one_line(suffix, tmp_path):
    plain = tmp_path / "t.jsonl"
    texts = random.Random(0)
    plain.write_text("".join(json.dumps({"a": texts.random()}) + "\n" for _ in range(20_000)))
    path = packed(plain, suffix)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"no pack at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"^t.jsonl{suffix} cannot be unpacked .*: it is damaged, or no {suffix}"):
            values(path)


def test_an_array_in_a_file_of_lines_is_read(tmp_path):
    """RLAIF-V's generation and scoring write json.dump(list) into *.jsonl."""
    path = tmp_path / "t.jsonl"
    for text in (json.dumps(ROWS), json.dumps(ROWS, indent=1), "\ufeff\n [\n" + json.dumps(ROWS[0]) + "\n]\n"):
        path.write_text(text, encoding="utf-8")
        assert values(path) == ROWS[: text.count('"answer"')]
    assert values(packed(path, ".gz")) == ROWS[:1]
    path.write_text("[1, 2]\n" + json.dumps(ROWS[0]) + "\n")  # no objects: a bad line of its own
    bad, good = values(path)
    assert isinstance(bad, BadRow) and good == ROWS[0]


@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
def test_what_stands_behind_an_array_is_not_lost_unseen(name, tmp_path):
    (tmp_path / name).write_text(json.dumps(ROWS[:1]) + "\n" + json.dumps(ROWS[1:]) + "\n")
    with pytest.raises(ValueError, match=rf"^{name}: more stands behind its JSON array: "):
        values(tmp_path / name)


def test_what_is_not_read_packed_is_said(tmp_path):
    (tmp_path / "t.parquet.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"t.parquet.gz: unknown file type; known .*packed as .gz or .zst"):
        values(tmp_path / "t.parquet.gz")
    (tmp_path / "a").mkdir()
    for name in ("x.jsonl", "x.jsonl.gz"):
        (tmp_path / "a" / name).write_bytes(gzip.compress(b"{}\n") if name.endswith("gz") else b"{}\n")
    with pytest.raises(ValueError, match=r"holds x.jsonl and x.jsonl.gz: remove one of them"):
        values(tmp_path / "a")
