"""Files appear whole or not at all, whoever writes them and however often at once."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from mmfast.files import file_digest, sha256_of, whole, write_bytes, write_json, write_text


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path, durable):
    path = tmp_path / "rows.json"
    path.write_text("old")
    with whole(path, durable=durable) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    with pytest.raises(OSError, match="full"), whole(tmp_path / "rows.json") as temporary:
        temporary.write_text("ha")
        raise OSError("the disk is full")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        write_bytes(tmp_path / "none" / "rows.json", b"1")


def test_many_writers_of_one_path_leave_one_whole_file(tmp_path):
    path, texts = tmp_path / "rows", [bytes([65 + n]) * 100_000 for n in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda data: write_bytes(path, data), texts))
    assert path.read_bytes() in texts and list(tmp_path.iterdir()) == [path]


def test_texts_are_utf_8_and_digests_are_of_bytes(tmp_path):
    write_text(tmp_path / "a", "ein Bär")
    write_json(tmp_path / "b", {"a": 1})
    assert (tmp_path / "a").read_bytes() == "ein Bär".encode() and (tmp_path / "b").read_text() == '{\n "a": 1\n}'
    assert sha256_of(str(tmp_path / "b")) == hashlib.sha256(b'{\n "a": 1\n}').hexdigest()


def test_a_files_digest_is_noted_under_its_stamp(tmp_path):
    file, notes = tmp_path / "a", tmp_path / "notes"
    file.write_bytes(b"one")
    digest = file_digest(file, notes)
    assert digest == file_digest(file) == hashlib.sha256(b"one").hexdigest()
    (note,) = notes.iterdir()
    note.write_text("not json")
    assert file_digest(file, notes) == digest
    file.write_bytes(b"two")
    assert file_digest(file, notes) == hashlib.sha256(b"two").hexdigest()
    assert file_digest(file, file) == hashlib.sha256(b"two").hexdigest(), "notes that cannot be kept"
