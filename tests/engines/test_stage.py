"""A stage's folder: killed at any byte, started again, on other ranks, by other settings."""

import json
import os
import random
import signal

import pytest

from mmfast.engines import shards
from mmfast.engines.presets import planned
from mmfast.engines.stage import compare, rows
from mmfast.job.runfolder import Lock
from tests.make.engine_cases import Fake, answers, files, write_prompts
from tests.make.rank_processes import CONTEXT, run_ranks


@pytest.fixture
def made(tmp_path):
    """(input, folder of a whole run, its rows)"""
    source = write_prompts(tmp_path)
    answers(source, tmp_path / "whole")
    return source, tmp_path / "whole", list(rows(tmp_path / "whole"))


def test_rows_come_in_the_order_of_the_input_and_say_what_made_them(made):
    _, out, found = made
    assert [(row["row"], row["sample"]) for row in found] == [(n, s) for n in range(12) for s in range(3)]
    assert len({row["key"] for row in found}) == 36
    written = [row for _, row in shards.read(out / "rows-0.jsonl")]
    assert written != found and sorted(map(json.dumps, written)) == sorted(map(json.dumps, found))
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["complete"] and manifest["counts"]["rows"] == 36 and manifest["stage"] == "generate"
    assert manifest["decodes"]["sample"]["top_k"] == 0 and manifest["engine"] == Fake().identity()


def test_a_second_start_does_nothing(made):
    source, out, _ = made
    before, engine = files(out), Fake()
    tally = answers(source, out, engine)
    assert engine.asks == 0 and tally.new == 0 and tally.rows == 36
    assert files(out) == before


def test_killed_at_any_byte_the_set_is_the_same(made):
    source, out, found = made
    whole = (out / "rows-0.jsonl").read_bytes()
    ends = [n + 1 for n, byte in enumerate(whole) if byte == ord("\n")]
    cuts = {0, 1, *random.Random(0).sample(range(len(whole)), 40), *(e + d for e in ends[::5] for d in (-1, 0))}
    for cut in sorted(cuts):
        (out / "rows-0.jsonl").write_bytes(whole[:cut])
        standing = whole[:cut].count(b"\n")
        tally = answers(source, out, Fake(batch=cut % 7 + 1))
        assert list(rows(out)) == found, cut
        assert tally.new == 36 - standing
        assert (out / "rows-0.jsonl").read_bytes().startswith(whole[: whole[:cut].rfind(b"\n") + 1])  # what stood stays


def test_every_byte_of_a_cut_file_leaves_whole_lines(tmp_path):
    lines = [json.dumps({"key": f"{n}", "text": "ö\n"}, ensure_ascii=False).encode() + b"\n" for n in range(4)]
    whole, path = b"".join(lines), tmp_path / "rows-0.jsonl"
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        seen = [row["key"] for _, row in shards.read(path)]
        shards.cut_torn(path)
        assert path.read_bytes() == b"".join(lines[: whole[:cut].count(b"\n")])
        assert seen == [row["key"] for _, row in shards.read(path)]
    long = b'{"key": "' + b"x" * 200_000
    path.write_bytes(lines[0] + long)
    shards.cut_torn(path)
    assert path.read_bytes() == lines[0]


def test_a_process_killed_in_the_middle_goes_on(made, tmp_path):
    source, _, found = made
    process = CONTEXT.Process(target=answers, args=(source, tmp_path / "out", Fake(dies=17)))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    standing = sum(1 for _ in shards.read(tmp_path / "out" / "rows-0.jsonl"))
    assert 0 < standing < 36 and not json.loads((tmp_path / "out" / "manifest.json").read_text())["complete"]
    assert answers(source, tmp_path / "out").new == 36 - standing
    assert list(rows(tmp_path / "out")) == found


def test_an_interrupt_leaves_what_was_answered(made, tmp_path):
    source, _, found = made
    with pytest.raises(KeyboardInterrupt):
        answers(source, tmp_path / "out", Fake(stops=10))
    assert not (tmp_path / "out" / ".lock").exists()
    standing = list(rows(tmp_path / "out"))
    assert standing and all(row in found for row in standing)
    assert answers(source, tmp_path / "out").rows == 36 and list(rows(tmp_path / "out")) == found


def test_two_ranks_write_what_one_writes(made, tmp_path):
    source, _, found = made
    run_ranks(2, tmp_path, answers, source, tmp_path / "out")
    assert list(rows(tmp_path / "out")) == found
    parts = [{tuple(row["images"]) for _, row in shards.read(tmp_path / "out" / f"rows-{r}.jsonl")} for r in (0, 1)]
    assert not (parts[0] & parts[1]) - {()}  # an image stays on one rank
    before = files(tmp_path / "out")
    run_ranks(2, tmp_path, answers, source, tmp_path / "out")
    assert files(tmp_path / "out") == before


def test_a_torn_file_of_a_rank_that_is_gone_is_cut_and_counts(made, tmp_path):
    source, _, found = made
    out = tmp_path / "out"
    run_ranks(3, tmp_path, answers, source, out)
    torn = max(out.glob("rows-[12].jsonl"), key=lambda path: path.stat().st_size)
    torn.write_bytes(torn.read_bytes()[:-9])
    engine = Fake()
    assert answers(source, out, engine).new == 1 and engine.asks == 1
    assert list(rows(out)) == found and torn.read_bytes().endswith(b"\n")


def test_a_rank_without_work_does_not_hang(tmp_path):
    source = write_prompts(tmp_path, 2, pictures=1)
    run_ranks(3, tmp_path, answers, source, tmp_path / "out", timeout=60)
    assert len(list(rows(tmp_path / "out"))) == 6
    assert len(list((tmp_path / "out").glob("rows-*.jsonl"))) == 1


def test_failures_of_all_ranks_are_one_file_in_the_order_of_the_input(tmp_path):
    source = write_prompts(tmp_path)
    run_ranks(2, tmp_path, answers, source, tmp_path / "out", Fake(wrong="here? 1"))
    failed = [row for _, row in shards.read(tmp_path / "out" / "failed.jsonl")]
    assert [row["row"] for row in failed] == [1, 10, 11] and "longer than the window" in failed[0]["error"]
    assert not list((tmp_path / "out").glob("failed-*"))
    tally = answers(source, tmp_path / "out")  # they are tried again
    assert tally.failed == 0 and tally.new == 9 and not (tmp_path / "out" / "failed.jsonl").exists()


def test_a_damaged_line_in_the_middle_is_named(made):
    source, out, _ = made
    path = out / "rows-0.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for damage in (b"\0\0\0\n", b"{}\n", b"[1]\n", b"\xff\n", b'{"key": "a", "row": 1}{"key": "b"}\n'):
        path.write_bytes(b"".join([*lines[:4], damage, *lines[5:]]))
        told = "is no row" if damage == b"{}\n" else "is damaged"
        with pytest.raises(ValueError, match=f"rows-0.jsonl line 5 {told}"):
            answers(source, out)
        with pytest.raises(ValueError, match=f"rows-0.jsonl line 5 {told}"):
            list(rows(out))
    path.write_bytes(b"".join([*lines[:4], *lines[5:]]))
    assert answers(source, out).new == 1


def test_other_settings_are_refused_by_name_and_touch_nothing(made):
    source, out, _ = made
    before = files(out)
    for engine, plan, told in (
        (Fake(name="other"), None, 'engine.engine was "fake" and is "other"'),
        (Fake(), planned(temperature=0.5, samples=3), "decodes.sample.temperature was 1.0 and is 0.5"),
        (Fake(), planned("dgpref", temperature=1.0, max_tokens=512), 'group was "prompt" and is "image"'),
        (Fake(), planned(), "decodes.sample.temperature was 1.0 and is absent"),
    ):
        with pytest.raises(ValueError, match="was made otherwise") as error:
            answers(source, out, engine, plan)
        assert told in str(error.value) and "--out" in str(error.value)
        assert files(out) == before


def test_of_many_differences_three_are_named():
    one, two = ({"weights": {f"w{n}": f"{k}{n}" for n in range(9)}} for k in "ab")
    assert compare(one, two)[-1] == "and 6 parts more" and len(compare(one, two)) == 4
    assert compare(one, one) == []


def test_more_samples_are_added_to_those_that_stand(made):
    source, out, found = made
    tally = answers(source, out, plan=planned(temperature=1.0, samples=5))
    assert tally.new == 24 and tally.rows == 60
    assert [row for row in rows(out) if row["sample"] < 3] == found


def test_the_input_may_grow_at_its_end_and_not_move(made):
    source, out, _ = made
    lines = source.read_text().splitlines(keepends=True)
    source.write_text("".join([*lines, json.dumps({"id": "new", "prompt": "And this?"}) + "\n"]))
    assert answers(source, out).new == 3
    source.write_text("".join(lines[1:]))
    with pytest.raises(ValueError, match=r"another order of the input.*append new rows at the end"):
        answers(source, out)
    source.write_text("".join([*lines[:5], json.dumps({"prompt": "Instead?"}) + "\n", *lines[6:]]))
    assert answers(source, out).left == 6  # of the line that went and of the one at the end


def other_on_rank_1(*arguments):
    answers(*arguments, Fake(name=f"engine of rank {os.environ['RANK']}"))


def test_ranks_whose_engines_differ_are_refused(made, tmp_path):
    source, _, _ = made
    with pytest.raises(
        AssertionError, match='rank 1 has another engine than rank 0: engine was "engine of rank 0" and is "engine of'
    ):
        run_ranks(2, tmp_path, other_on_rank_1, source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_start_at_a_time(made):
    source, out, _ = made
    lock = Lock(out)
    with pytest.raises(ValueError, match=rf"--out: .* is in use by process {os.getpid()}.*another --out"):
        answers(source, out)
    lock.close()


def test_a_folder_that_cannot_be_written_and_one_that_is_something_else(made, tmp_path):
    source, out, _ = made
    (tmp_path / "a file").write_text("x")
    with pytest.raises(ValueError, match="--out: cannot write"):
        answers(source, tmp_path / "a file" / "out")
    with pytest.raises(ValueError, match="holds the input"):
        answers(source, tmp_path)
    (out / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"has rows, but no manifest.json"):
        answers(source, out)
    (out / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json is no manifest"):
        answers(source, out)
    with pytest.raises(ValueError, match="is no folder of rows"):
        list(rows(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_line(made):
    source, out, _ = made
    out.chmod(0o555)
    try:
        with pytest.raises(ValueError, match="--out: cannot write to"):
            answers(source, out)
        assert len(list(rows(out))) == 36
    finally:
        out.chmod(0o755)


def test_a_full_disk_is_one_line_and_what_stands_stays(made, tmp_path, monkeypatch):
    source, _, found = made
    real, written = shards.Appender.write, []

    def full(self, new):
        written.append(new)
        if len(written) == 5:
            self.file.close()
            self.file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
        return real(self, new)

    with monkeypatch.context() as context:
        context.setattr(shards.Appender, "write", full)
        with pytest.raises(ValueError, match=r"cannot write .*No space left"):
            answers(source, tmp_path / "out")
    assert 0 < len(list(rows(tmp_path / "out"))) < 36
    assert answers(source, tmp_path / "out").rows == 36 and list(rows(tmp_path / "out")) == found


def test_an_engine_that_answers_too_little_or_too_much(made, tmp_path):
    source, _, _ = made

    class Silent(Fake):
        def let_out(self, held):
            yield from (reply for reply in super().let_out(held) if reply.sample != 1)

    tally = answers(source, tmp_path / "out", Silent())
    assert tally.failed == 12 and tally.rows == 24
    assert "1 of 3 answers: the engine gave no answer" in (tmp_path / "out" / "failed.jsonl").read_text()

    class Twice(Fake):
        def let_out(self, held):
            for reply in super().let_out(held):
                yield from (reply, reply)

    with pytest.raises(ValueError, match="answered what it was not asked"):
        answers(source, tmp_path / "out2", Twice(), planned())


def test_debug_prints_prompt_reply_and_row(made, tmp_path, capsys):
    source, _, _ = made
    answers(source, tmp_path / "out", debug=2)
    told = capsys.readouterr().out
    assert told.count("--- ") == 2 and "user: <image>What is here?" in told and "reply (" in told and '"answer"' in told
