"""Where a step's time went: pictures with the complete split, and sums that hold whatever the events are."""

import numpy as np
import picture
from hypothesis import given
from hypothesis import strategies as st

from neuronprof.analyze.attribution import Attribution
from neuronprof.analyze.bottlenecks import Bottlenecks
from neuronprof.analyze.passes import run
from neuronprof.analyze.sweep import charge
from neuronprof.trace.reader import open_trace


def attribution(trace):
    return {name: picture.table(table) for name, table in run(trace, [Attribution()])["attribution"].items()}


def test_parts_of_a_step(trace):
    #           0123456789012345
    #   tensor  ..aaaa..bb......   a computes 4, b 2
    #   vector  .....cc.........   5-6 is the tensor engine's, 6-7 vector
    #   dma     aaaaaa.bb.......   0-2 and 7-8 are exposed; a keeps DMA busy for 6 ns and tensor for 4: memory bounds it
    #   cc      ........~~CCC...   10-13; it waits at 8-10, when tensor computes
    #   host    .............h..   13-14
    #   the rank is done at 14, its step ends at 16
    drawn = """
    tensor ..aaaa..bb......
    vector .....cc.........
    dma    aaaaaa.bb.......
    cc     ........~~CCC...
    host   .............h..
    """
    about = {"C": {"op_name": "reduce", "layer": "out", "replica_group": "dp:0-1"},
             **{letter: {"op_name": letter, "layer": "fc", "op": number} for number, letter in enumerate("abc")}}  # fmt: skip
    found = attribution(trace(picture.rows(drawn, about), [picture.segment(0, 16)]))
    assert found["attribution"] == [
        "part detail bound time_ns per_step_ns share",
        "compute tensor memory 4 4 0.25",
        "communication dp '' 3 3 0.1875",
        "memory DMA_LOAD '' 3 3 0.1875",
        "compute tensor tensor 2 2 0.125",
        "waiting step end '' 2 2 0.125",
        "compute vector vector 1 1 0.0625",
        "host LAUNCH '' 1 1 0.0625",
    ]
    assert found["attribution_by_layer"] == [
        "layer part time_ns per_step_ns share",
        "fc compute 7 7 0.4375",
        "fc memory 3 3 0.1875",
        "out communication 3 3 0.1875",
        "'' waiting 2 2 0.125",
        "'' host 1 1 0.0625",
    ]


def test_bubble_of_a_pipeline(trace):
    # Two stages, two micro-batches. Forward 2 ns on both stages, backward 4 ns on the first and 6 on the second.
    #            0123456789012345678901
    #   stage 0  FFGG.....bbbb..cccc...   F, G forward; b, c backward, when their gradients have come
    #   stage 1  ..FFBBBBBGGCCCCCC.....
    #   rank 0 waits for its first gradient until 9: 5 ns of warm-up; its backward of the second ends its forward: 2 ns of cool-down,
    #   and after its end 3 ns. It is busy for 12 ns, rank 1 for 15: of its bubble 3 ns are imbalance, taken from the cool-down.
    #   rank 1 waits 2 ns for its first micro-batch, and 5 ns at the end.
    drawn = """
    tensor FFGG.....bbbb..cccc...
    cc:4   ~~~~~~~~~r~~~~~~r.....
    rank 1
    tensor ..FFBBBBBGGCCCCCC.....
    cc:4   ~~r...................
    """
    phase = {letter: {"phase": "forward"} for letter in "FG"} | {letter: {"phase": "backward"} for letter in "BbCc"}
    about = {**phase, "r": {"name": "Recv", "replica_group": "pp:0>1"}}
    events = picture.rows(drawn, about)
    for event in events:
        event["duration_ns"] *= event["name"] != "Recv"  # a message that is received takes no time itself
    found = attribution(trace(events, [picture.segment(0, 22)], pipeline={"count": 2, "stride": 1}))
    assert found["attribution_by_rank"] == [
        "step rank part detail bound time_ns share",
        "0 0 bubble cool-down '' 2 0.09091",
        "0 0 bubble imbalance '' 3 0.1364",
        "0 0 bubble warm-up '' 5 0.2273",
        "0 0 compute tensor tensor 12 0.5455",
        "0 1 bubble cool-down '' 5 0.2273",
        "0 1 bubble warm-up '' 2 0.09091",
        "0 1 compute tensor tensor 15 0.6818",
    ]


def test_a_rank_that_starts_late_waits_for_its_host(trace):
    #   tensor  ...aaa   the window opens at 0
    found = attribution(trace(picture.rows("tensor ...aaa"), [picture.segment(0, 6)]))
    assert found["attribution"][1:] == ["compute tensor tensor 3 3 0.5", "host late start '' 3 3 0.5"]


_EVENT = st.tuples(
    st.sampled_from(["tensor", "vector", "dma", "cc", "host"]),
    st.integers(0, 60),
    st.integers(0, 20),
    st.integers(0, 9),
)


@given(st.lists(_EVENT, max_size=30), st.integers(0, 20), st.integers(21, 70))
def test_the_parts_add_up_and_agree_with_the_coarse_split(tmp_path_factory, events, low, high):
    rows = [
        {"engine": engine, "kind": picture.KIND.get(engine, "compute"), "name": picture.NAME[engine], "start_ts": start,
         "duration_ns": duration, "wait_ns": wait, "wait_for": "peer" if wait else "none", "replica_group": "dp:0-1"}
        for engine, start, duration, wait in events
    ]  # fmt: skip
    path = picture.write(tmp_path_factory.mktemp("t") / "trace.parquet", rows, [picture.segment(low, high)])
    results = run(open_trace(path), [Attribution(), Bottlenecks()])
    fine, coarse = results["attribution"]["attribution_by_rank"], results["bottlenecks"]["bottlenecks"]
    if rows:
        assert fine["time_ns"].sum() == high - low
        compute = coarse[coarse["class"].isin(["tensor", "vector"])]["time_ns"].sum()
        assert fine[fine["part"] == "compute"]["time_ns"].sum() == compute
        assert fine[fine["part"] == "memory"]["time_ns"].sum() == coarse[coarse["class"] == "hbm"]["time_ns"].sum()


@given(st.lists(st.tuples(st.integers(-5, 40), st.integers(0, 15), st.integers(-1, 2)), max_size=25))
def test_charging_equals_asking_every_instant(intervals):
    start = np.array([s for s, _, _ in intervals], np.int64)
    end = start + np.array([d for _, d, _ in intervals], np.int64)
    kind = np.array([k for _, _, k in intervals], np.int8)
    expected, idle = np.zeros(len(start), int), 0
    for t in range(30):
        running = [i for i in range(len(start)) if kind[i] >= 0 and start[i] <= t < end[i]]
        if running:
            expected[min(running, key=lambda i: (kind[i], start[i], i))] += 1
        idle += not running
    charged, gap_start, gap_end, ended_by = charge(start, end, kind, 3, 0, 30)
    assert charged.tolist() == expected.tolist()
    assert (gap_end - gap_start).sum() == idle
    assert all(row == -1 or start[row] == at for row, at in zip(ended_by, gap_end, strict=True))
