"""What the stages share that ask about answers: replies that cannot be read, kills, ranks, changed wordings."""

import json
import random
import signal
from dataclasses import replace

import pytest

from mmfast.engines import shards
from mmfast.engines.attempts import TEMPERATURE
from mmfast.engines.base import Decode, Reply
from mmfast.engines.stage import rows
from mmfast.feedback.asking import Ask, Asking, Read, apart, manifest
from mmfast.feedback.folders import current
from mmfast.feedback.prompts import prompt
from mmfast.job.runtime import join
from tests.make.engine_cases import Fake, files, write_prompts
from tests.make.rank_processes import CONTEXT, run_ranks

WORDING = """version = 1
about = "A number."
parser = "number"
slots = ["question"]
text = "{question} Answer with a number."
"""


class Numbers(Fake):
    """Says a number at the attempt that is the question's own number (question 3: at the third), before that nothing
    of use."""

    def reply(self, request, sample):
        question = request.messages[-1]["content"][-1]["text"]
        attempt = request.decode.seed + 1
        good = attempt > int(question.split()[0])
        said = f"{question.split()[0]}" if good else f"no {attempt} {request.decode.temperature}"
        return Reply(key=request.key, text=said, tokens=2)


def ask(folder, number=12, *, engine=None, retries=2, out="out", text=WORDING, limit=0, decode=None, **options):
    """Question n can be read from attempt n % 5 + 1 on."""
    (folder / "mine.toml").write_text(text)
    wording = prompt(str(folder / "mine.toml"), parsers=["number"])

    def asks():
        for n in range(limit or number):
            said = wording.messages(1, question=f"{n % 5} things {n}?")
            image = str(folder / f"{n % 4}.png")
            yield Ask(row=n, source=f"q:{n}", prompt=wording, names=(f"a{n}",), images=(image,), messages=said)

    def read(one, reply):
        good = reply.text.isdigit()
        return Read({"number": int(reply.text) if good else None}, "" if good else f"no number in {reply.text!r}")

    runtime = join()
    try:
        asking = Asking(
            name="count", version=1, prompts=(wording,), asks=asks, read=read, retries=retries,
            decode=decode or Decode(), counts=lambda rows: {"numbers": sum(row["number"] is not None for row in rows)},
        )  # fmt: skip
        return asking.run(folder / out, engine or Numbers(), runtime, source="q", whole=not limit, **options)
    finally:
        runtime.close()


@pytest.fixture
def made(tmp_path):
    write_prompts(tmp_path)
    engine = Numbers()
    return ask(tmp_path, engine=engine), engine, list(rows(tmp_path / "out"))


def test_what_cannot_be_read_is_asked_again_with_other_seeds_and_then_kept(tmp_path, made):
    tally, engine, found = made
    assert [row["number"] for row in found] == [n % 5 if n % 5 < 3 else None for n in range(12)]
    assert [row["attempts"] for row in found] == [min(n % 5, 2) + 1 for n in range(12)]
    # Question 3 is answered from the fourth attempt on: three were asked, and the last is kept as it was said
    assert found[3]["raw"] == f"no 3 {TEMPERATURE}" and found[3]["problem"] == f"no number in 'no 3 {TEMPERATURE}'"
    assert found[0]["problem"] == "" and found[0]["template"].startswith("mine:")
    assert engine.asks == 12 + 9 + 6
    assert tally.also == {"not readable": 4, "asked again": 15, "numbers": 8} and tally.failed == 0
    told = "; ".join(tally.lines())
    assert "4 not readable, 15 asked again, 8 numbers" in told
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["complete"] and manifest["counts"]["not readable"] == 4 and manifest["retries"] == 2
    # What was said before stands beside the rows
    kept = [row for _, row in shards.read(tmp_path / "out" / "retried-0.jsonl")]
    assert len(kept) == 15 and {row["attempt"] for row in kept} == {1, 2}
    assert sorted(row["reply"]["text"] for row in kept if row["row"] == 3) == ["no 1 0.0", f"no 2 {TEMPERATURE}"]


def test_without_retries_a_bad_reply_is_kept_at_once(tmp_path):
    write_prompts(tmp_path)
    engine = Numbers()
    tally = ask(tmp_path, engine=engine, retries=0)
    assert engine.asks == 12 and tally.also["not readable"] == 9 and not list((tmp_path / "out").glob("retried-*"))


def test_a_drawn_decode_keeps_its_temperature(tmp_path):
    write_prompts(tmp_path)
    ask(tmp_path, 4, decode=Decode(temperature=0.3, top_p=0.9))
    assert list(rows(tmp_path / "out"))[3]["raw"] == "no 3 0.3"


def test_a_second_start_asks_nothing(tmp_path, made):
    before, engine = files(tmp_path / "out"), Numbers()
    tally = ask(tmp_path, engine=engine)
    assert engine.asks == 0 and tally.new == 0 and files(tmp_path / "out") == before


def test_killed_at_any_byte_of_either_file_the_rows_are_the_same(tmp_path, made):
    _, whole_engine, found = made
    out = tmp_path / "out"
    paths = out / "rows-0.jsonl", out / "retried-0.jsonl"
    whole = [path.read_bytes() for path in paths]
    draw = random.Random(0)
    for _ in range(25):
        for path, content in zip(paths, whole, strict=True):
            path.write_bytes(content[: draw.randrange(len(content) + 1)])
        engine = Numbers()
        # What stands in either file is not asked again
        standing = sum(path.read_bytes().count(b"\n") for path in paths)
        ask(tmp_path, engine=engine)
        assert list(rows(out)) == found
        assert engine.asks <= whole_engine.asks - standing + paths[1].read_bytes().count(b"\n")
        assert {(r["key"], r["attempt"]) for _, r in shards.read(paths[1])} <= {
            (r["key"], a) for r in (row | {"key": row["key"].removesuffix(".0")} for row in found) for a in (1, 2)
        }


def test_retries_go_on_where_they_were(tmp_path, made):
    """All rows are lost, and what was asked in vain is known: only the last attempts are asked."""
    _, _, found = made
    (tmp_path / "out" / "rows-0.jsonl").unlink()
    engine = Numbers()
    ask(tmp_path, engine=engine)
    assert list(rows(tmp_path / "out")) == found and engine.asks == 12


@pytest.mark.parametrize("dies", [3, 14, 22])
def test_a_process_killed_in_the_middle_goes_on(tmp_path, made, dies):
    _, _, found = made
    process = CONTEXT.Process(target=ask, args=(tmp_path,), kwargs={"engine": Numbers(dies=dies), "out": "killed"})
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    engine = Numbers()
    ask(tmp_path, engine=engine, out="killed")
    assert list(rows(tmp_path / "killed")) == found and engine.asks <= 27 - dies + 5  # a batch of five was in the air


def test_two_ranks_write_what_one_writes(tmp_path, made):
    _, _, found = made
    run_ranks(2, tmp_path, _two, tmp_path)
    assert list(rows(tmp_path / "two")) == found
    assert len(list((tmp_path / "two").glob("rows-*.jsonl"))) == 2


def _two(folder):
    ask(folder, out="two")


def test_other_wordings_are_other_rows_and_the_reader_takes_the_last(tmp_path, made):
    _, _, found = made
    tally = ask(tmp_path, text=WORDING.replace("Answer with", "Say"))
    assert tally.new == 12 and tally.left == 12 and tally.rows == 24
    now = list(current(tmp_path / "out", manifest(tmp_path / "out"), []))
    assert len(now) == 12 and not {row["key"] for row in now} & {row["key"] for row in found}
    ask(tmp_path)  # back: nothing is new, and the reader follows
    assert list(current(tmp_path / "out", manifest(tmp_path / "out"), [])) == found


def test_other_retries_or_decodes_are_refused_by_name(tmp_path, made):
    with pytest.raises(ValueError, match="retries was 2 and is 3"):
        ask(tmp_path, retries=3)
    with pytest.raises(ValueError, match=r"decode\.max_tokens was 512 and is 9"):
        ask(tmp_path, decode=Decode(max_tokens=9))


def test_a_failed_retry_is_a_failure_and_is_tried_again(tmp_path):
    class Breaks(Numbers):
        def reply(self, request, sample):
            reply = super().reply(request, sample)
            return replace(reply, finish="error", error="too long") if request.decode.seed == 1 else reply

    write_prompts(tmp_path)
    tally = ask(tmp_path, engine=Breaks(), allow=1.0)
    assert tally.failed == 9 and tally.rows == 3
    engine = Numbers()
    assert ask(tmp_path, engine=engine).failed == 0 and engine.asks == 9 + 6  # the first attempts stand
    assert [row["number"] for row in rows(tmp_path / "out")] == [n % 5 if n % 5 < 3 else None for n in range(12)]


def test_limit_and_missing_images(tmp_path):
    write_prompts(tmp_path)
    (tmp_path / "1.png").unlink()
    tally = ask(tmp_path, limit=3, allow=0.5)
    assert tally.asked == 3 and tally.failed == 1
    (failed,) = [row for _, row in shards.read(tmp_path / "out" / "failed.jsonl")]
    assert failed["source"] == "q:1" and "1.png" in failed["error"]
    assert not json.loads((tmp_path / "out" / "manifest.json").read_text())["complete"]


def test_a_stage_does_not_write_into_its_input(tmp_path):
    (tmp_path / "a").mkdir()
    apart(tmp_path / "a", tmp_path / "b")
    for out in (tmp_path / "a", tmp_path):
        with pytest.raises(ValueError, match="holds the input"):
            apart(tmp_path / "a", out)
