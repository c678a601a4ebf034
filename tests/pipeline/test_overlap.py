"""Gradients reduced beside backward, or in one go after it: a recording of each, and what what-if says of the other."""

import pytest

import neuronprof
from neuronprof import pipeline
from neuronprof.analyze import whatif
from neuronprof.analyze.walk import Whole
from neuronprof.pipeline.written import write_trace
from neuronprof.trace.reader import open_trace

SCRIPT = """
import torch
model = torch.nn.Sequential(*(torch.nn.Linear(4096, 4096, bias=False) for _ in range(8)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model(torch.randn(4096, 4096)).square().mean().backward()
optimizer.step()
"""


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    """Eight products of 64 MiB of gradient each."""
    pytest.importorskip("torch", reason="needs the extra 'torch'")
    script = tmp_path_factory.mktemp("overlap") / "train.py"
    script.write_text(SCRIPT)
    return pipeline.capture(script, (), pipeline.Options(values="none", steps=1, warmup=0, quiet=True)).recording


@pytest.mark.parametrize("dp", [4, 16])
def test_what_if_foretells_the_overlapped_recording(captured, tmp_path, dp):
    # dp 4: the cores of one chip; dp 16: chips with links between them. All gradients are 512 MiB, a bucket holds one of 64 MiB: beside
    # backward the last bucket alone is exposed, after it everything. What-if takes buckets of 25 MiB, so it hides a little more.
    found = {}
    for grad_sync in ("overlapped", "after"):
        trace = tmp_path / f"{grad_sync}.parquet"
        write_trace(captured, pipeline.Options(output=trace, grad_sync=grad_sync, dp=dp, quiet=True))
        found[grad_sync] = neuronprof.load(trace).summary().figures
    beside, after = found["overlapped"], found["after"]
    hidden = after.exposed_ns - beside.exposed_ns
    assert hidden > 0.8 * after.exposed_ns
    assert after.step_time_ns - beside.step_time_ns == pytest.approx(hidden, rel=0.02)
    answer = whatif.ask(Whole(open_trace(tmp_path / "after.parquet")), whatif.parse(overlap=["grad_sync"]))
    assert answer.times["step_time_ns"].iloc[1] == pytest.approx(beside.step_time_ns, rel=0.02)


def test_shares_of_gradients_are_reduced_when_they_are_there(captured, tmp_path):
    # ZeRO 1: backward makes each gradient of 64 MiB before its reduce-scatter may begin, so the k-th of eight begins after k products.
    trace = tmp_path / "trace.parquet"
    write_trace(captured, pipeline.Options(output=trace, dp=16, zero=1, trace_ranks="0", quiet=True))
    events = neuronprof.load(trace).events
    products = events[(events["name"] == "MATMUL") & (events["phase"] == "backward")]
    reduced = events[events["op_name"].str.contains("reduce_scatter") & (events["engine"] == "cc")]
    made = products.assign(end=products["start_ts"] + products["duration_ns"]).groupby("op")["end"].max().sort_values()
    assert len(reduced) == 8
    assert (reduced["start_ts"].sort_values().to_numpy() >= made.to_numpy()[:8]).all()
