"""Advice on what SBUF has no room for, on small pictures: what is said, and what it would give."""

import picture
import pytest

from neuronprof.analyze.advice.walk import Advice
from neuronprof.analyze.walk import Whole

# A load of 40 ns, 400 bytes, 300 of which a product reads again, and the product that waits for it.
DRAWN = """
    dma:1   LLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLL..
    tensor  ........................................MM
"""
MACHINE = {"rank": picture.MACHINE | {"sbuf_resident": 200}}


def advised(trace, name, operands):
    about = {"L": {"op": 0, "op_name": "aten.mm", "layer": "fc", "bytes": 400, "name": name, "operands": operands}}
    load, product = picture.rows(DRAWN, about)
    rows = [load | {"id": 0}, product | {"id": 1, "deps": [1]}]
    table = Advice().answer(Whole(trace(rows, [picture.segment(0, 42)], machine=MACHINE)))["advice"]
    return list(table[["rule", "wrong", "gain_ns"]].itertuples(index=False, name=None))


@pytest.mark.parametrize(
    ("name", "operands", "found"),
    [
        ("DMA_LOAD", "dma bytes=400 piece=40", []),
        (
            "DMA_LOAD",
            "dma bytes=400 piece=40 reread=300",
            [("sbuf-reuse", "SBUF loads 300 B a step once more for products that hold neither operand: aten.mm, fc; the largest moves "
              "300 B, and SBUF keeps 200 B.", 30)],
        ),
        (
            "DMA_LOAD",
            "dma bytes=400 piece=40 reload=100",
            [("sbuf-reuse", "SBUF loads 100 B a step once more for operators that follow each other: aten.mm, fc.", 10)],
        ),
        (
            "SPILL_RELOAD",
            "dma bytes=400 piece=40",
            [("spills", "Spills move 400 B between SBUF and HBM a step, which takes DMA 40 ns: aten.mm, fc; the largest moves 400 B, and "
              "SBUF keeps 200 B.", 40)],
        ),
    ],
    ids=["once", "reread", "reload", "spill"],
)  # fmt: skip
def test_what_sbuf_lacks_room_for(trace, name, operands, found):
    assert advised(trace, name, operands) == found
