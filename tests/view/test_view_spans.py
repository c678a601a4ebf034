"""Levels of detail: nothing is dropped at any zoom, and what is told of a bar is true."""

import gzip
import json
import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from neuronprof.analyze import series, spans
from neuronprof.view.lod import Packer, compressed


def ints(*values):
    return np.array(values, np.int64)


def test_events_merge_level_by_level():
    #      0   2 3   5       8                   28           40 41
    #  a   |###|
    #  b         |###|
    #  c                     |####################|
    #  d                                                      |#|
    # Level 2 (bins of 4): a and b are shorter than 4 and start in bin 0: a bar. Level 5 (32): c (20 long) joins them. Level 6 (64): d too.
    merged_at, bars = spans.merge(ints(0, 3, 8, 40), ints(2, 2, 20, 1), top=6)
    assert merged_at.tolist() == [2, 2, 5, 6]
    rows = list(
        zip(*(getattr(bars, n).tolist() for n in ("level", "start", "end", "busy", "count", "longest")), strict=True)
    )
    assert rows == [
        (2, 0, 5, 4, 2, 0),
        (3, 0, 5, 4, 2, 0),
        (4, 0, 5, 4, 2, 0),
        (5, 0, 28, 24, 3, 2),
        (6, 0, 41, 25, 4, 2),
    ]


def test_a_lone_event_is_never_merged():
    # 50 ns in one second: at every level it stands alone, so it is drawn as itself, a pixel wide.
    merged_at, bars = spans.merge(ints(400_000_000), ints(50), spans.top_level(10**9))
    assert merged_at.tolist() == [spans.NEVER]
    assert len(bars.level) == 0


def test_without_events_there_are_no_bars():
    merged_at, bars = spans.merge(ints(), ints(), top=5)
    assert len(merged_at) == len(bars.level) == 0


lanes = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 3000)), min_size=1, max_size=60)


@given(lanes)
def test_bars_and_lone_events_add_up_to_all_events_at_every_level(pairs):
    gaps, durations = (ints(*column) for column in zip(*pairs, strict=True))
    start = np.cumsum(gaps) + np.concatenate(([0], np.cumsum(durations)[:-1]))
    top = spans.top_level(int(start[-1] + durations[-1]))
    merged_at, bars = spans.merge(start, durations, top)
    for level in range(top + 1):
        alone = merged_at > level
        there = bars.level == level
        assert alone.sum() + bars.count[there].sum() == len(start)
        assert durations[alone].sum() + bars.busy[there].sum() == durations.sum()
        assert (durations[~alone] < (1 << level)).all()
        assert (bars.busy[there] <= bars.end[there] - bars.start[there]).all()
        assert (np.diff(bars.start[there]) > 0).all()


def test_overlapping_events_stand_in_lanes():
    #      0    4    8   12
    #  a   |#########|          lane 0
    #  b        |########|      lane 1: overlaps a
    #  c             |###|      lane 0: a has ended
    #  d             |#|        lane 2: overlaps b and c
    assert spans.stack(ints(0, 4, 8, 8), ints(8, 11, 11, 10)).tolist() == [0, 1, 0, 2]


def test_more_overlap_than_lanes_shares_the_last_lane():
    lanes = spans.stack(np.zeros(20, np.int64), np.full(20, 5))
    assert np.bincount(lanes).tolist() == [1, 1, 1, 1, 1, 1, 1, 13]


def test_bands_end_where_the_next_begins():
    #      0    5    10      20   25   30
    #  F   |####|####|                       label 0, two events
    #  B          |##########|               label 1, starts at 8: the first band ends there
    #  F                          |####|     label 0 again
    first, last, label = spans.runs(ints(0, 5, 8, 25), ints(5, 10, 20, 30), ints(0, 0, 1, 0))
    assert [first.tolist(), last.tolist(), label.tolist()] == [[0, 8, 25], [8, 20, 30], [0, 1, 0]]


def test_bandwidth_of_overlapping_transfers_adds_up():
    #      0     10     20     30
    #  a   |############|            40 B in 20 ns: 2 B/ns
    #  b         |#############|     20 B in 20 ns: 1 B/ns
    steps = series.rate(ints(0, 10), ints(20, 20), ints(40, 20))
    assert steps.time.tolist() == [0, 10, 20, 30]
    assert steps.value.tolist() == [2e9, 3e9, 1e9, 0.0]
    # Bins of 16 ns from 0 to 32: (10*2 + 6*3)/16 and (4*3 + 10*1 + 2*0)/16 bytes a nanosecond.
    assert series.means(steps, 4, 32).tolist() == [38e9 / 16, 22e9 / 16]


def test_memory_keeps_the_peak_of_each_bin_and_what_holds_after_it():
    #  category 0: 4 B over 0..40; category 1: 6 B over 10..12, 1 B over 12..14
    held = series.held(ints(0, 10, 12), ints(40, 2, 2), ints(4, 6, 1), ints(0, 1, 1), 2)
    assert held.time.tolist() == [0, 10, 12, 14, 40]
    assert held.value.tolist() == [[4, 0], [4, 6], [4, 1], [4, 0], [0, 0]]
    # Bins of 16: rows 0..3 are in the first, whose peak is row 1 and whose end is row 3; row 4 stands alone.
    assert series.peaks(held, 4).tolist() == [1, 3, 4]


def test_nothing_held_and_nothing_moved():
    empty = ints()
    assert len(series.rate(empty, empty, empty).time) == 0
    assert len(series.peaks(series.held(empty, empty, empty, empty, 1), 3)) == 0


def unpack(packed):
    """What decode.js does, in Python."""
    raw = gzip.decompress(compressed(packed).tobytes())
    (length,) = struct.unpack("<I", raw[:4])
    header = json.loads(raw[4 : 4 + length])
    out = {}
    for name, (offset, count, width, zigzag, delta) in header["columns"].items():
        at = 4 + length + offset
        planes = np.frombuffer(raw[at : at + count * width], np.uint8).reshape(width, count).astype(np.int64)
        values = sum((plane << (8 * n) for n, plane in enumerate(planes)), np.zeros(count, np.int64))
        values = np.where(values % 2, -(values + 1) // 2, values // 2) if zigzag else values
        out[name] = np.cumsum(values) if delta else values
    return header, out


@given(st.lists(st.integers(-(2**50), 2**50), max_size=30), st.booleans())
def test_packed_columns_come_back(values, delta):
    packer = Packer()
    packer.add("first", ints(1, 2, 3))
    packer.add("values", ints(*values), delta=delta)
    header, columns = unpack(packer.pack({"about": "x"}))
    assert header["about"] == "x"
    assert columns["first"].tolist() == [1, 2, 3]
    assert columns["values"].tolist() == values
