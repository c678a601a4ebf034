"""The matrix of traffic between ranks."""

import pandas as pd

from neuronprof.analyze import pairs

COLUMNS = ["source", "destination", "axis", "bytes", "messages"]


def test_bytes_of_all_axes_add_up_and_unknown_ranks_are_left_out():
    rows = [(0, 5, "dp", 100, 1), (0, 5, "tp", 20, 1), (2, 0, "dp", 7, 1), (2, -1, "", 999, 1)]
    found = pairs.matrix(pd.DataFrame(rows, columns=COLUMNS))
    #        to 0   to 5
    # from 0    0    120
    # from 2    7      0
    assert (found.sources.tolist(), found.destinations.tolist()) == ([0, 2], [0, 5])
    assert found.bytes.tolist() == [[0, 120], [7, 0]]


def test_more_ranks_than_rows_are_added_up(monkeypatch):
    monkeypatch.setattr(pairs, "_MOST", 2)
    ring = [(rank, (rank + 1) % 4, "dp", 10, 1) for rank in range(4)]
    found = pairs.matrix(pd.DataFrame(ring, columns=COLUMNS))
    # Ranks 0 and 1 send 10 inside (0 to 1) and 10 out (1 to 2); so do 2 and 3.
    assert (found.sources.tolist(), found.destinations.tolist(), found.together) == ([0, 2], [0, 2], (2, 2))
    assert found.bytes.tolist() == [[10, 10], [10, 10]]
