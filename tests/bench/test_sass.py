"""bench.sass: the folds' inner loops are short, on the variants that are launched.

The file is compiled for one architecture (about 15 s of one core); the others' counts are rows of bench/results.
"""

from __future__ import annotations

import json

import pytest

from bench import sass

# Instructions a logit, in one pass and in two; sm_100 has 11, 16 and 17. A softcap's three special functions take as
# long as 24 others, so its bar is below that, not at 10: docs/kernels.md has the count.
BARS = {
    "frozen, trained": (10, 16),
    "bias": (10, 16),
    "entropy": (14, 16),
    "softcap": (21, 24),
    "no gradient": (10, 16),
}
LOOSER = {"80": 0, "90a": 0, "100": 1}


SLOTS_A_SPECIAL_FUNCTION = 8


def too_long(rows: list[dict]) -> list[str]:
    found = []
    for row in rows:
        one, two = (bar + LOOSER[row["arch"]] for bar in BARS[row["variant"]])
        if row["one_pass"] > one or row["two_passes"] > two:
            found.append(f"{row['variant']} on sm_{row['arch']}: {row['one_pass']} and {row['two_passes']}")
    return found


def test_the_folds_are_lean() -> None:
    if reason := sass.missing():
        pytest.skip(f"instructions are counted where the compiler is: {reason}")
    rows = list(sass.fold_rows("90a"))
    assert {row["variant"] for row in rows} == set(BARS) and not too_long(rows)
    (softcap,) = (row for row in rows if row["variant"] == "softcap")
    assert softcap["one_pass"] < SLOTS_A_SPECIAL_FUNCTION * softcap["special_functions"] == 24


def test_the_rows_of_the_other_architectures() -> None:
    rows = [json.loads(line) for line in sass.RESULTS.read_text().splitlines()]
    assert {(row["arch"], row["variant"]) for row in rows} == {(a, v) for a in LOOSER for v in BARS}
    assert not too_long(rows) and all(row["loads_in_flight"] >= 2 for row in rows)
    assert {(row["variant"] == "softcap", row["special_functions"]) for row in rows} == {(True, 3), (False, 1)}


def test_loops_are_found() -> None:
    """Two loops in a row inside a third: the inner ones are counted, from the branch's target to the branch."""
    code = """
        /*0000*/ MOV R1, R2 ;
        /*0010*/ LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/ MUFU.EX2 R4, R4 ;
        /*0030*/ @!P0 BRA 0x10 ;
        /*0040*/ STG.E.64 desc[UR4][R2.64], R4 ;
        /*0050*/ @P1 BRA 0x40 ;
        /*0060*/ @P2 BRA 0x80 ;
        /*0070*/ @P3 BRA `(.L_x) 0x0 ;
    """
    assert sass.loops(code) == [sass.Loop(3, 1, 0, 1), sass.Loop(2, 0, 1, 0)]
