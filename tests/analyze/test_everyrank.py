"""Every rank of a job from the ranks table."""

import pandas as pd

from neuronprof.analyze.everyrank import COLUMNS, every_rank


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
