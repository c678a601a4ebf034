"""Rows taken together: groups of equal rows, however they lie in runs, and runs as columns."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from neuronprof.analyze.grouping import Groups, Runs, heads

COLUMNS = st.lists(st.tuples(st.integers(-1, 2), st.integers(-1, 70_000), st.integers(0, 9)), max_size=40)


def test_groups_of_rows():
    # engine 1 1 0 1   layer -1 -1 3 -1: rows 0, 1 and 3 agree, in two runs
    groups = Groups(np.array([1, 1, 0, 1]), np.array([-1, -1, 3, -1]))
    assert [key.tolist() for key in groups.keys] == [[0, 1], [3, -1]]
    assert groups.position.tolist() == [1, 1, 0, 1]
    assert groups.count.tolist() == [1, 3]
    assert groups.one.tolist() == [2, 0]
    assert groups.sum(np.array([5, 6, 7, 8])).tolist() == [7, 19]


def test_rows_that_differ_are_found_wherever_they_are():
    # a change at each of the last rows of blocks of 2 to the 16 rows that are compared together, and at the first of the next
    column = np.zeros(3 << 16, np.int8)
    at = [(1 << 16) - 1, 1 << 16, (1 << 16) + 1, (2 << 16), (2 << 16) + 1, (3 << 16) - 1]
    column[at] = range(1, 7)
    assert heads(np.zeros(3 << 16), column).tolist() == [
        0,
        *sorted({row + d for row in at for d in (0, 1)} - {3 << 16}),
    ]


@given(COLUMNS)
def test_groups_are_the_distinct_rows_sorted(drawn):
    first, second, value = np.array(drawn, np.int64).reshape(-1, 3).T
    groups = Groups(first.astype(np.int8), second.astype(np.int32))
    rows = list(zip(first.tolist(), second.tolist(), strict=True))
    distinct = sorted(set(rows))
    assert list(zip(*(key.tolist() for key in groups.keys), strict=True)) == distinct
    assert groups.position.tolist() == [distinct.index(row) for row in rows]
    assert groups.one.tolist() == [rows.index(row) for row in distinct]
    assert groups.sum(value).tolist() == [value[[row == one for row in rows]].sum() for one in distinct]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40)), max_size=6))
def test_runs_of_a_column(drawn):
    # short runs are gathered, long ones copied whole, one alone is a view
    column = np.arange(100)
    first = np.array([start for start, _ in drawn], np.intp)
    runs = Runs(first, first + np.array([size for _, size in drawn], np.intp))
    assert len(runs) == sum(size for _, size in drawn)
    assert runs.of(column).tolist() == [row for start, size in drawn for row in range(start, start + size)]
    assert len(drawn) != 1 or np.shares_memory(runs.of(column), column)
