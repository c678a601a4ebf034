"""Operators by module."""

import pandas as pd
import picture

from neuronprof.analyze.tree import by_layer


def test_a_module_takes_what_all_in_it_takes():
    rows = [
        ("tensor", "mm", "net.0.up", "forward", "m.py:1", 40.0, 0.4),
        ("vector", "add", "net.0", "forward", "m.py:2", 10.0, 0.1),
        ("tensor", "mm", "net.1.up", "forward", "m.py:1", 30.0, 0.3),
        ("idle", "", "", "", "", 20.0, 0.2),
    ]
    table = pd.DataFrame(rows, columns=["class", "op_name", "layer", "phase", "source", "per_step_ns", "share"])
    found = by_layer(table)[["depth", "name", "layer", "bound", "per_step_ns"]]
    assert picture.table(found) == [
        "depth name layer bound per_step_ns",
        "0 net net '' 80",
        "1 0 net.0 '' 50",
        "2 up net.0.up '' 40",
        "3 mm net.0.up tensor 40",
        "2 add net.0 vector 10",
        "1 1 net.1 '' 30",
        "2 up net.1.up '' 30",
        "3 mm net.1.up tensor 30",
        "0 outside of modules '' '' 20",
        "1 idle '' idle 20",
    ]


def test_a_table_without_rows_is_no_tree():
    assert by_layer(
        pd.DataFrame(columns=["class", "op_name", "layer", "phase", "source", "per_step_ns", "share"])
    ).empty
