"""The ranks table: every rank of a job, also those whose events are not written."""

import numpy as np
import pytest

import neuronprof
from neuronprof import pipeline
from neuronprof.trace import schema

pytest.importorskip("torch", reason="needs the extra 'torch'")

SCRIPT = """
import torch
net = torch.nn.Linear(512, 512)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for _ in range(2):
    net(torch.randn(64, 512)).sum().backward()
    optimizer.step()
"""


def record(folder, **options):
    script = folder / "train.py"
    script.write_text(SCRIPT)
    chosen = pipeline.Options(
        output=folder / "trace.parquet", chip="trainium2", values="none", steps=1, warmup=0, quiet=True, **options
    )
    return neuronprof.load(pipeline.record(script, (), chosen).trace)


def test_totals_are_the_sums_of_the_events(tmp_path):
    trace = record(tmp_path, dp=4, jitter=0.05)
    events = trace.events
    own = events[events["kind"].isin(["compute", "transfer", "collective", "marker"])]
    for row in trace.ranks.itertuples():
        mine = own[(own["rank"] == row.rank) & (own["engine"] == row.engine)]
        assert abs(row.busy_ns - mine["duration_ns"].sum()) <= len(mine)  # each event is rounded, the sum once
        peers = own[(own["rank"] == row.rank) & (own["wait_for"] == "peer")]
        assert abs(row.wait_peer_ns - peers["wait_ns"].sum()) <= 2 * len(peers) + 1
    last = own.assign(end=own["start_ts"] + own["duration_ns"]).groupby("rank")["end"].max()
    assert (trace.ranks.groupby("rank")["end_ts"].first() == last).all()


def test_a_slow_chip_is_seen_among_ranks_that_are_not_written(tmp_path):
    # 16,384 ranks on 4,096 chips; chip 1000 (ranks 4000 to 4003) computes three times slower: all others wait for it.
    trace = record(tmp_path, dp=16384, slow_chips={1000: 3.0}, trace_ranks="representatives")
    assert sorted(trace.metadata["rank_roles"].values()) == ["fastest", "median", "slowest", "stage 0"]
    assert len(set(trace.events["rank"])) == 4
    table = trace.ranks
    assert (trace.file.path / schema.RANKS_FILE).is_file()
    assert len(table) == 16384 * table["engine"].nunique()
    waited = table.groupby("rank")["wait_peer_ns"].first()
    assert sorted(waited.nsmallest(4).index) == [4000, 4001, 4002, 4003]
    tensor = table[table["engine"] == "tensor"].set_index("rank")["busy_ns"]
    assert np.isclose(tensor[4000] / tensor[0], 3, rtol=1e-3)
