"""Who is waited for and why: each root cause with a fault planted for it; all ranks of a job, also those that are not written."""

import pandas as pd
import picture
import pytest
from planted import H100, mlp, run_slower

from neuronprof.analyze import lateness, stragglers
from neuronprof.analyze.stragglers import Stragglers
from neuronprof.analyze.walk import Whole
from neuronprof.trace.reader import open_trace

# PyTorch warns of its own look at .grad; as an error that would make the recording compute on the CPU what it only needs the shape of.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute")

FAULTS = [
    ("slow chip", {"dp": 8, "slow_chips": {1: 1.5}}, {4, 5, 6, 7}, 1.5),
    ("slow tensor engine", {"dp": 8, "throttled": {5: 2.0}}, {5}, 2.0),
    ("late host", {**H100, "late_hosts": {1: 2e-4}}, set(range(16, 32)), 1.0),
]


@pytest.mark.parametrize(("cause", "options", "ranks", "times"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_the_cause_is_the_planted_one(recorded, cause, options, ranks, times):
    found = Stragglers().answer(recorded(mlp(bf16=True), **options))
    worst = found["stragglers"].iloc[0]
    assert (worst["rank"] in ranks, worst["cause"]) == (True, cause)
    assert worst["slower"] == pytest.approx(times, rel=0.01)
    assert worst["gain_ns"] > 0
    every = found["stragglers_every_rank"]
    assert set(every["rank"][every["cause"] == cause]) == ranks
    assert (every["cause"][~every["rank"].isin(ranks)] == "").all()


def test_ranks_that_are_not_written_are_judged_too(recorded):
    whole = recorded(mlp(bf16=True), dp=8, throttled={5: 2.0}, trace_ranks="0")
    assert whole.trace.ranks == [0]
    first = Stragglers().answer(whole)["stragglers_every_rank"].iloc[0]
    assert (first["rank"], first["cause"]) == (5, "slow tensor engine")
    assert first["late_ns"] > 0


def test_slow_hbm(recorded, tmp_path):
    clean = recorded(mlp(bf16=True, batch=256), dp=8)
    slow = run_slower(clean, tmp_path / "slow.parquet", lambda e: e.among("engine", ["dma"]) & (e["chip"] == 1), 8.0)
    worst = Stragglers().answer(Whole(open_trace(slow)))["stragglers"].iloc[0]
    assert (worst["chip"], worst["cause"]) == (1, "slow HBM")
    assert worst["slower"] == pytest.approx(8, rel=0.01)


def test_a_slow_link_makes_nobody_late_but_is_seen(recorded):
    whole = recorded(mlp(), dp=16, links={1: 0.25})
    cause, times = stragglers.cause(whole.step, whole.context, 5)
    assert (cause, round(times, 2)) == ("slow link", 4.0)
    assert (Stragglers().answer(whole)["stragglers_every_rank"]["cause"] == "").all()


def test_uneven_work(trace):
    # Rank 1 has an operator more, on its own: nobody else runs its program.
    drawn = """
        tensor  aaaaaaaa........
        cc      ........~~~~~~CC
        rank 1
        tensor  aaaaaaaabbbbbb..
        cc      ..............CC
    """
    rows = picture.rows(drawn, {"C": {"collective": 1, "replica_group": "dp:0-1"}})
    found = Stragglers().answer(Whole(trace(rows, [picture.segment(0, 16)])))["stragglers"]
    assert found[["rank", "blamed_ns", "cause"]].values.tolist() == [[1, 6, "uneven work"]]


def test_every_rank_by_hand():
    # Four ranks of one stage, two steps of 1000 ns. Rank 2 waits 300 ns less than the others, and its DMA is busy for twice as long.
    rows = [
        (
            step,
            rank,
            0,
            rank,
            0,
            engine,
            busy * (2 if (rank, engine) == (2, "dma") else 1),
            100 if rank == 2 else 400,
            1000 * (step + 1),
        )
        for step in (0, 1)
        for rank in range(4)
        for engine, busy in (("tensor", 500), ("vector", 200), ("dma", 250))
    ]
    names = ["step", "rank", "chip", "core", "stage", "engine", "busy_ns", "wait_peer_ns", "end_ts"]
    found = lateness.every_rank(pd.DataFrame(rows, columns=names))
    assert picture.table(found) == [
        "rank chip core stage late_ns cause slower",
        "2 0 2 0 300 slow HBM 2",
        "0 0 0 0 0 '' 1",
        "1 0 1 0 0 '' 1",
        "3 0 3 0 0 '' 1",
    ]
