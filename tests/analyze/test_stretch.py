"""The split of any stretch of a rank."""

from collections import Counter
from pathlib import Path
from random import Random

import picture
import pytest

from neuronprof.analyze import stretch
from neuronprof.errors import NeuronprofError
from neuronprof.trace.reader import open_trace

SAMPLES = Path(__file__).parents[2] / "sample_traces"

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


def test_who_waits_beyond_a_stretch_waits_in_it(trace):
    # The all-reduce waits for its peer from 2 to 6: so it does between 3 and 5, in which nothing starts.
    opened = trace(picture.rows("tensor aa......\n cc ..~~~~RR", ABOUT), [picture.segment(0, 8)])
    assert parts(stretch.split(opened, 0, 3, 5)) == [("waiting", "", 2)]
    assert parts(stretch.split(opened, 0, 1, 5)) == [("waiting", "", 3), ("compute", "tensor", 1)]


def time_by_part(*found):
    total = Counter()
    for one in found:
        total.update(dict(one.parts.groupby("part")["time_ns"].sum()))
    return +total


@pytest.mark.parametrize("name", ["gpt", "gpt-slow-chip", "mlp"])
def test_parts_of_random_stretches_add_up_to_them_and_neighbours_to_both(name):
    opened, random = open_trace(SAMPLES / f"{name}.parquet"), Random(name)
    end = max(segment["end_ts"] for segment in opened.metadata["segments"])
    for _ in range(12):
        rank = random.choice(opened.ranks)
        low, middle, high = sorted(random.randrange(-10, end + 10) for _ in range(3))
        left, right, both = (stretch.split(opened, rank, a, b) for a, b in ((low, middle), (middle, high), (low, high)))
        lengths = [middle - low, high - middle, high - low]
        assert [one.parts["time_ns"].sum() for one in (left, right, both)] == lengths
        assert [one.operators["time_ns"].sum() for one in (left, right, both)] == lengths
        assert time_by_part(left, right) == time_by_part(both)
