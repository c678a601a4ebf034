"""Formulas as text: what they come to, what they refuse, and how operands are written."""

import numpy as np
import pytest

from neuronprof import formula
from neuronprof.formula import Formula

AREA = Formula(
    """
    side = max(a, b.c, 2)
    seconds = ceil(side / 2) * side if a >= 1 else missing
    """,
    {"long": "side", "short": "a"},
)


def test_lines_are_evaluated_in_order():
    # side = max(3, 5, 2) = 5, ceil(2.5) * 5 = 15; what is not taken need not have a value.
    assert AREA.evaluate({"a": 3, "b.c": 5}) == {"side": 5, "seconds": 15}
    assert AREA.bound({"a": 3, "side": 5}) == "long"


def test_columns_are_evaluated_at_once():
    found = Formula("seconds = a * 2 if a < 3 else a - b.c / 2").evaluate({"a": np.array([1.0, 4.0]), "b.c": 2})
    assert found["seconds"].tolist() == [2, 3]


def test_a_share_by_size_is_interpolated_and_falls_below_the_smallest_size():
    sizes = np.array([16, 64, 128, 256, 1024, 4096, 1 << 20])
    shares = formula.by_size(sizes, 64, 0.1, 256, 0.3, 512, 0.5, 2048, 0.8, 4096, 1.0)
    # 128 lies halfway between 64 and 256 in log2, 1024 halfway between 512 and 2048; 16 is a quarter of 64.
    np.testing.assert_allclose(shares, [0.025, 0.1, 0.2, 0.3, 0.65, 1.0, 1.0])


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "a.b()",
        "[1]",
        "2 ** 9",
        "lambda: 1",
        "'a'",
        "1 < 2 < 3",
        "(",
        "max(a, key=b)",
        "1 + " * 9_000 + "1",
        "True",
    ],
)
def test_nothing_else_is_read(text):
    with pytest.raises(ValueError, match=r"formula"):
        Formula(f"seconds = {text}").evaluate({"a": 1})


def test_operands_are_written_and_read():
    text = formula.written("dma", {"bytes": np.int64(4096), "share": 0.1})
    assert text == "dma bytes=4096 share=0.1"
    assert formula.read(text) == ("dma", {"bytes": 4096, "share": 0.1})
