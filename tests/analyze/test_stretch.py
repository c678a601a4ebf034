"""The split of any stretch of a rank."""

import picture
import pytest

from neuronprof.analyze import stretch
from neuronprof.errors import NeuronprofError

ABOUT = {"a": {"op_name": "mm"}, "b": {"op_name": "add"}}


def parts(found):
    return [(row.part, row.detail, row.time_ns) for row in found.parts.itertuples()]


def test_the_parts_of_a_stretch_add_up_to_it(trace):
    # From 1 to 9: mm runs until 4 and has the tensor engine; the load beside it counts from 4 to 5; 5 to 7 is idle; add from 7 on.
    opened = trace(picture.rows("tensor aaaa...bbb\n dma ..aaa", ABOUT), [picture.segment(0, 10)])
    found = stretch.split(opened, 0, 1, 9)
    assert parts(found) == [
        ("compute", "tensor", 5),
        ("idle", "none", 2),
        ("memory", "DMA_LOAD", 1),
    ]
    operators = [(row.part, row.op_name, row.time_ns) for row in found.operators.itertuples()]
    assert operators == [("compute", "mm", 3), ("compute", "add", 2), ("idle", "add", 2), ("memory", "mm", 1)]


def test_idle_edges_are_no_end_of_a_step(trace):
    opened = trace(picture.rows("tensor ..aa......", ABOUT), [picture.segment(0, 10)])
    assert parts(stretch.split(opened, 0, 0, 7)) == [("idle", "", 5), ("compute", "tensor", 2)]
    assert parts(stretch.split(opened, 0, 5, 7)) == [("idle", "", 2)]


def test_a_stretch_over_steps_and_of_one_rank_only(trace):
    events = picture.rows("tensor aa\n rank 1\n tensor .bb", ABOUT)
    opened = trace(
        [*events, {**events[1], "step": 1, "start_ts": 4}], [picture.segment(0, 4), picture.segment(4, 8, 1)]
    )
    assert parts(stretch.split(opened, 1, 2, 6)) == [("compute", "tensor", 3), ("idle", "none", 1)]


def test_too_many_events_are_refused(trace, monkeypatch):
    monkeypatch.setattr(stretch, "MOST_EVENTS", 2)
    opened = trace(picture.rows("tensor a.b.a", ABOUT), [picture.segment(0, 5)])
    with pytest.raises(NeuronprofError, match="more than 2 events; choose a shorter one"):
        stretch.split(opened, 0, 0, 5)
    assert parts(stretch.split(opened, 0, 0, 3)) == [("compute", "tensor", 2), ("idle", "none", 1)]
