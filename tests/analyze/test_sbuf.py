"""What moves only for want of room in SBUF: a small trace and its complete tables."""

import picture
import pytest

from neuronprof.analyze.passes import run
from neuronprof.analyze.sbuf import Sbuf, why_again

MM, SOFTMAX = ({"op": op, "op_name": name, "layer": "fc"} for op, name in enumerate(("mm", "softmax")))
# The loads of a product: A once, R with three quarters read again; of softmax, half of L has been loaded before. S spills, B brings back.
ABOUT = {
    "A": {**MM, "bytes": 100, "operands": "dma bytes=100 piece=10"},
    "R": {**MM, "bytes": 400, "operands": "dma bytes=400 piece=10 reread=300"},
    "L": {**SOFTMAX, "bytes": 200, "operands": "dma bytes=200 piece=10 reload=100"},
    "S": {**MM, "name": "SPILL_SAVE", "bytes": 50, "operands": "dma bytes=50 piece=10"},
    "B": {**SOFTMAX, "name": "SPILL_RELOAD", "bytes": 50, "operands": "dma bytes=50 piece=10"},
    "E": {**SOFTMAX, "name": "SPILL_RELOAD", "bytes": 50, "step": -1},
}
DRAWN = """
    dma:1  RRRRRRRR.RRRR.AALL..RRRRBBBB
    dma:2  .........SS....SS........EE.
"""
SEGMENTS = [picture.segment(0, 25), picture.segment(25, 28, -1)]


def test_what_moves_again_and_why(trace):
    # R: runs at 0 and 9, with A between L, are one; the last is another. 3/4 of 8 + 4 + 4 = 16 ns are read again, 900 bytes in two runs.
    # All DMA but evaluation takes 16 + 2 + 2 + 4 + 4 = 28 ns. SBUF keeps 1000 bytes.
    machine = {"rank": picture.MACHINE | {"sbuf_resident": 1000}}
    tables = run(trace(picture.rows(DRAWN, ABOUT), SEGMENTS, machine=machine), [Sbuf()])["sbuf"]
    assert {name: picture.table(table) for name, table in tables.items()} == {
        "sbuf": [
            "cause op_name layer phase source runs transfers bytes time_ns share run_bytes room_share",
            "reread mm fc '' '' 2 3 900 12 0.4286 450 0.45",
            "spill mm fc '' '' 1 2 100 4 0.1429 100 0.1",
            "spill reload softmax fc '' '' 1 1 50 4 0.1429 50 0.05",
            "reload softmax fc '' '' 1 1 100 1 0.03571 100 0.1",
        ],
        "sbuf_by_cause": [
            "cause runs transfers bytes time_ns share",
            "reread 2 3 900 12 0.4286",
            "spill 1 2 100 4 0.1429",
            "spill reload 1 1 50 4 0.1429",
            "reload 1 1 100 1 0.03571",
        ],
    }


def test_a_trace_that_does_not_tell_has_no_rows(trace):
    about = {"A": MM | {"bytes": 100}}
    tables = run(trace(picture.rows("dma AAAA", about), SEGMENTS), [Sbuf()])["sbuf"]
    assert [table.empty for table in tables.values()] == [True, True]


@pytest.mark.parametrize(
    ("letter", "sentence"),
    [
        ("A", ""),
        ("R", "Of the 400 B, 300 B are read again by the same product, whose operands do not fit SBUF."),
        ("L", "Of the 200 B, 100 B an operator shortly before had loaded: SBUF had no room to keep them."),
        (
            "S",
            "It is a spill: SBUF had no room to keep these 50 B until a later operator of the same phase reads them.",
        ),
        ("B", "It brings back 50 B that this phase has made: SBUF had no room to keep them."),
    ],
)
def test_a_transfer_says_why_it_exists(letter, sentence):
    event = {"name": "DMA_LOAD", **ABOUT[letter]}
    assert why_again(event["name"], event["bytes"], event["operands"]) == sentence
