"""Every rank of a job from the ranks table."""

import pandas as pd

from neuronprof.analyze import everyrank
from neuronprof.analyze.everyrank import COLUMNS, LATE, WAITING, every_rank, over_steps


def test_ranks_that_wait_least_come_first():
    # Two steps; tensor is the busiest engine. Rank 1 waits 4 and 2, rank 0 waits 10 and 20.
    rows = [
        (step, rank, rank // 4, rank % 4, 0, engine, busy, wait, 0)
        for step, waits in ((0, (10, 4)), (1, (20, 2)))
        for rank, wait in enumerate(waits)
        for engine, busy in (("tensor", 100 + rank), ("dma", 7))
    ]
    names = ["step", "rank", "chip", "core", "stage", "engine", "busy_ns", "wait_peer_ns", "end_ts"]
    found = every_rank(pd.DataFrame(rows, columns=names))
    assert found.to_dict("records") == [
        {"rank": 1, "chip": 0, "core": 1, "stage": 0, "wait_peer_ns": 3.0, "busy_ns": 101.0, "engine": "tensor"},
        {"rank": 0, "chip": 0, "core": 0, "stage": 0, "wait_peer_ns": 15.0, "busy_ns": 100.0, "engine": "tensor"},
    ]


def test_a_trace_without_the_table_has_no_rows():
    assert every_rank(pd.DataFrame()).columns.tolist() == list(COLUMNS)


def test_the_map_has_a_row_a_rank_and_a_column_a_step():
    # Rank 5 did nothing in step 1, and only rank 3's dma ever worked; evaluation (step -1) is no step.
    rows = [
        (-1, 3, "tensor", 99, 99, 5),
        (0, 3, "tensor", 10, 1, 100), (0, 3, "dma", 4, 1, 100), (0, 5, "tensor", 20, 2, 130), (0, 5, "dma", 0, 2, 130),
        (1, 3, "tensor", 30, 3, 250), (1, 3, "dma", 0, 3, 250),
    ]  # fmt: skip
    found = over_steps(pd.DataFrame(rows, columns=["step", "rank", "engine", "busy_ns", "wait_peer_ns", "end_ts"]))
    assert (found.ranks.tolist(), found.steps.tolist()) == ([3, 5], [0, 1])
    known = {
        name: [[None if v != v else v for v in row] for row in values.tolist()] for name, values in found.values.items()
    }
    assert known == {
        WAITING: [[1, 3], [2, None]],
        LATE: [[0, 0], [30, None]],
        "tensor busy": [[10, 30], [20, None]],
        "dma busy": [[4, 0], [0, None]],
    }


def test_steps_of_a_large_map_are_joined_by_their_largest_value(monkeypatch):
    monkeypatch.setattr(everyrank, "_MOST_CELLS", 4)
    rows = [(step, rank, "tensor", 10 * step + rank, 0, 0) for step in range(5) for rank in range(2)]
    found = over_steps(pd.DataFrame(rows, columns=["step", "rank", "engine", "busy_ns", "wait_peer_ns", "end_ts"]))
    # 2 ranks over 5 steps are 10 cells, 4 may be: three steps a column, 0 to 2 and 3 to 4.
    assert found.steps.tolist() == [0, 3]
    assert found.values["tensor busy"].tolist() == [[20, 40], [21, 41]]
