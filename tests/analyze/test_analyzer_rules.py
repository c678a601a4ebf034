"""What holds for every analyzer and any trace: sums are exact, combining is order-blind, serial is parallel."""

import functools
import itertools
import multiprocessing
import pickle

import numpy as np
import pandas as pd
import picture
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronprof.analyze import passes
from neuronprof.analyze.analyzer import Context, Window
from neuronprof.analyze.attribution import Attribution
from neuronprof.analyze.bottlenecks import Bottlenecks
from neuronprof.analyze.passes import run
from neuronprof.analyze.registry import ANALYZERS, DETAILS, find
from neuronprof.analyze.summary import summarize
from neuronprof.analyze.utilization import Utilization
from neuronprof.errors import NeuronprofError
from neuronprof.trace.reader import open_trace

END = 30
ENGINES = ["tensor", "vector", "scalar", "gpsimd", "dma", "hbm", "cc", "neuronlink", "host", "sync"]
ABOUT = {"op_name": "mm", "dtype": "bfloat16", "bytes": 7, "flops": 5, "algorithm": "ring", "replica_group": "dp:0-3"}

event = st.builds(
    lambda engine, start, length, wait, cause, letter, rank, step: {
        **ABOUT, "rank": rank, "chip": rank // 2, "core": rank % 2, "step": step, "engine": engine, "name": picture.NAME.get(engine, "NOP"),
        "kind": picture.KIND.get(engine, "compute"), "start_ts": start + 100 * step, "duration_ns": length, "wait_ns": wait,
        "wait_for": cause, "layer": f"layers.{letter}", "op": letter,
    },
    st.sampled_from(ENGINES), st.integers(0, END - 1), st.integers(0, 9), st.integers(0, 6), st.sampled_from(["peer", "dma", "none"]),
    st.integers(0, 3), st.integers(0, 5), st.integers(0, 1),
)  # fmt: skip
level = st.builds(
    lambda category, start, length, size, rank: {
        "rank": rank, "chip": rank // 2, "core": rank % 2, "engine": "hbm", "queue": 1, "kind": "memory", "name": category,
        "start_ts": start, "duration_ns": length, "bytes": size,
    },
    st.sampled_from(["weights", "activations"]), st.integers(0, END), st.integers(1, 20), st.integers(0, 100), st.integers(0, 5),
)  # fmt: skip
traces = st.lists(event, min_size=1, max_size=25).flatmap(
    lambda events: st.lists(level, max_size=6).map(lambda more: events + more)
)
SEGMENTS = [
    picture.segment(0, END, model_flops=100),
    picture.segment(100, 100 + END, step=1),
    picture.segment(200, 220, step=-1),
]


def opened(tmp_path_factory, events, segments=SEGMENTS, **about):
    return open_trace(picture.write(tmp_path_factory.mktemp("t") / "t", events, segments, **about))


@settings(max_examples=6)
@given(traces)
def test_pieces_are_the_whole(tmp_path_factory, events):
    """Ranks, steps and stretches of time one after another: whatever reaches from one into the next, the tables are the same."""
    trace = opened(tmp_path_factory, events)
    whole = run(trace, [*ANALYZERS, *DETAILS])
    for at_once in (1, 5):
        pieces = run(trace, [*ANALYZERS, *DETAILS], at_once=at_once)
        for name, tables in whole.items():
            for table, expected in tables.items():
                pd.testing.assert_frame_equal(pieces[name][table], expected, obj=f"{table} of {at_once} at once")


def test_what_must_hold_a_whole_step_is_left_out_of_a_large_one(tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "MOST_BYTES", 700)  # of 4 events with 15 columns, 24 bytes a value
    events = picture.rows("tensor aabb\ndma    ddee", {})
    trace = open_trace(picture.write(tmp_path / "t", events, [picture.segment(0, 4)]))
    left_out = {}
    tables = run(trace, [Utilization(), Attribution()], left_out=left_out, at_once=1)
    assert left_out == {
        "attribution": f"attribution is left out: it has to hold the 4 events of step 0 of rank 0 of {trace.path} at once, which takes "
        "about 1.41 KiB of memory, and 700 B may be taken. Record less of the model in one step to have it."
    }
    assert tables["attribution"]["attribution"].empty
    assert tables["utilization"]["utilization"]["busy_ns"].tolist()[0] == 4
    monkeypatch.setattr(passes, "free_memory", lambda: 700)
    with pytest.raises(NeuronprofError, match="attribution is left out"):
        run(trace, [Attribution()], at_once=1)


def class_of(events, t):
    """The class of an instant of one rank, by the plain rule."""

    def runs(*engines):
        return any(e["engine"] in engines and e["start_ts"] <= t < e["start_ts"] + e["duration_ns"] for e in events)

    waits = any(
        e["engine"] == "cc" and e["wait_for"] == "peer" and e["start_ts"] - e["wait_ns"] <= t < e["start_ts"]
        for e in events
    )
    rules = {
        "tensor": runs("tensor"), "vector": runs("vector"), "scalar": runs("scalar"), "gpsimd": runs("gpsimd"), "hbm": runs("dma", "hbm"),
        "neuronlink": runs("cc", "neuronlink"), "waiting": waits, "host": runs("host"), "idle": True,
    }  # fmt: skip
    return next(name for name, holds in rules.items() if holds)


@settings(max_examples=30)
@given(st.lists(event, min_size=1, max_size=25))
def test_the_split_is_that_of_every_single_instant(tmp_path_factory, events):
    tables = run(opened(tmp_path_factory, events), [Bottlenecks()])["bottlenecks"]
    found = tables["bottlenecks"].set_index(["step", "rank", "class"])["time_ns"].to_dict()
    expected = dict.fromkeys(found, 0)
    for rank, step in itertools.product({e["rank"] for e in events}, (0, 1)):
        mine = [e for e in events if (e["rank"], e["step"]) == (rank, step)]
        for t in range(100 * step, 100 * step + END):
            expected[step, rank, class_of(mine, t)] += 1
        expected[-1, rank, "idle"] = 20
    assert found == expected
    assert tables["bottlenecks"].groupby(["step", "rank"])["time_ns"].sum().unique().tolist() in ([20, END], [END, 20])
    steps = found.items()
    training = sum(time for (step, _, _), time in steps if step >= 0)
    assert tables["bottlenecks_by_operator"]["time_ns"].sum() == training
    assert tables["bottlenecks_by_layer"]["time_ns"].sum() == training


@settings(max_examples=15)
@given(traces)
def test_busy_and_idle_add_up(tmp_path_factory, events):
    results = run(opened(tmp_path_factory, events), ANALYZERS)
    idle = results["underused"]["underused"]
    parts = idle[[c for c in idle if c.endswith("_ns") and c not in ("idle_ns", "window_ns")]].sum(axis=1)
    assert (parts == idle["window_ns"]).all()
    busy = results["utilization"]["utilization"]
    assert ((busy["busy_ns"] >= 0) & (busy["busy_ns"] <= busy["window_ns"])).all()
    moved = results["communication"]["communication"]
    assert (moved["overlapped_ns"] + moved["exposed_ns"] == moved["transfer_ns"]).all()
    for rank, rows in results["memory"]["memory_over_time"].groupby("rank"):
        assert rows["bytes"].iloc[-1] == 0, rank


def states(trace, analyzer):
    """The states of the trace's chips, each by itself."""
    kept = []
    run(trace, [analyzer], mapper=lambda function, tasks: kept.extend(map(function, tasks)) or kept)
    return [found.states[analyzer.name] for found in kept]


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        pd.testing.assert_frame_equal(a[name], b[name], check_dtype=False)


@pytest.mark.parametrize("analyzer", ANALYZERS, ids=lambda a: a.name)
def test_combining_is_associative_and_blind_to_order(analyzer, tmp_path_factory):
    @settings(max_examples=10)
    @given(traces, st.randoms())
    def check(events, random):
        trace = opened(tmp_path_factory, events, pipeline={"count": 2, "stride": 1})
        context = Context(trace.metadata, (Window(0, 0, END, 100), Window(1, 100, 100 + END), Window(-1, 200, 220)))
        parts = states(trace, analyzer)
        straight = analyzer.finish(functools.reduce(analyzer.combine, parts), context)
        random.shuffle(parts)
        while len(parts) > 1:
            at = random.randrange(len(parts) - 1)
            parts[at : at + 2] = [analyzer.combine(parts[at + 1], parts[at])]
        same(analyzer.finish(parts[0], context), straight)

    check()


EVENTS = [
    {**e, "rank": e["rank"] + rank, "chip": (e["rank"] + rank) // 4}
    for rank in range(0, 12, 3)
    for e in picture.rows("tensor aaa..bb\ndma c..cc..\ncc ...~RRR\nrank 1\nvector ..aaa..\nhost h......")
] + picture.levels("1357531", "activations", rank=5)


def test_serial_and_parallel_are_equal(trace):
    opened = trace(EVENTS, [picture.segment(0, 7)])
    serial = run(opened, ANALYZERS)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        parallel = run(opened, ANALYZERS, mapper=pool.map)
    for name in serial:
        same(serial[name], parallel[name])


@pytest.mark.parametrize("analyzer", ANALYZERS, ids=lambda a: a.name)
def test_an_analyzer_keeps_its_word(analyzer, trace):
    """It pickles, its tables have the columns it names, its docstring is a sentence, and it does not change what it is given."""
    assert pickle.loads(pickle.dumps(analyzer)) == analyzer
    assert next(iter(analyzer.tables)) == analyzer.name
    assert type(analyzer).__doc__.split("\n")[0].endswith((".", ","))
    found = run(trace(EVENTS, [picture.segment(0, 7)]), [analyzer])[analyzer.name]
    assert {name: tuple(table) for name, table in found.items()} == analyzer.tables
    assert all(find(name) is analyzer for name in analyzer.tables)
    for table in found.values():
        assert not any(
            isinstance(value, np.generic)
            for column in table
            if table[column].dtype == object
            for value in table[column]
        )


@pytest.mark.parametrize("segments", [None, [picture.segment(0, 10)]])
def test_a_trace_without_events(trace, segments):
    opened = trace([], segments)
    for analyzer in ANALYZERS:
        found = run(opened, [analyzer])[analyzer.name]
        assert {name: tuple(table) for name, table in found.items()} == analyzer.tables
    assert summarize(opened).events == 0


def test_without_segments_a_step_is_the_extent_of_its_events(trace):
    events = picture.rows("tensor ..aaa..bb..c", {"b": {"step": 1}, "c": {"step": -1}})
    found = run(trace(events), [Utilization()])["utilization"]["utilization_by_step"]
    assert found[found["engine"] == "tensor"].to_numpy().tolist() == [
        [-1, "tensor", 1, 1, 1.0],
        [0, "tensor", 3, 3, 1.0],
        [1, "tensor", 2, 2, 1.0],
    ]


def test_events_beyond_the_window_are_cut(trace):
    events = picture.rows("tensor aaaaaaaa")
    found = run(trace(events, [picture.segment(2, 6)]), [Utilization()])["utilization"]["utilization"]
    assert found.loc[0, ["busy_ns", "window_ns"]].tolist() == [4, 4]


def test_an_unknown_name_is_said_with_those_there_are():
    with pytest.raises(
        NeuronprofError, match="There is no analysis 'rooflines'; choose from utilization, utilization_by_rank, "
    ):
        find("rooflines")
