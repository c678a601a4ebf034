"""Gradients summed in FP32: what that moves, keeps and takes, against the same recording with gradients of 16 bits."""

from dataclasses import replace

import pytest

import neuronprof
from neuronprof import pipeline
from neuronprof.errors import NeuronprofError
from neuronprof.pipeline.written import write_trace

# Four products with a weight of 4096 x 4096 each: 32 MiB in BF16, 64 MiB in FP32.
SCRIPT = """
import torch
torch.set_default_dtype(torch.{dtype})
model = torch.nn.Sequential(*(torch.nn.Linear(4096, 4096, bias=False) for _ in range(4))).cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model(torch.randn(512, 4096, device="cuda")).square().mean().backward()
optimizer.step()
"""
MIB = 2**20


def captured(folder, dtype):
    pytest.importorskip("torch", reason="needs the extra 'torch'")
    script = folder / "train.py"
    script.write_text(SCRIPT.format(dtype=dtype))
    return pipeline.capture(script, (), pipeline.Options(values="none", steps=1, warmup=0, quiet=True)).recording


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return captured(tmp_path_factory.mktemp("fp32"), "bfloat16")


def both(recorded, folder, **layout):
    """The trace without and the one with FP32 gradients."""
    found = []
    for fp32 in (False, True):
        options = pipeline.Options(output=folder / f"{fp32}.parquet", fp32_gradients=fp32, quiet=True, **layout)
        found.append(neuronprof.load(write_trace(recorded, options)))
    return found


def reduced(trace):
    events = trace.events
    return events[(events["kind"] == "collective") & (events["rank"] == 0)].groupby("op_name")["bytes"].sum().to_dict()


def test_replicas_reduce_twice_the_bytes_and_take_longer(recorded, tmp_path):
    narrow, wide = both(recorded, tmp_path, dp=4)
    assert reduced(narrow) == {"c10d.allreduce_": 4 * 32 * MIB}
    assert reduced(wide) == {"c10d.allreduce_": 4 * 64 * MIB}
    assert wide.summary().figures.step_time_ns > narrow.summary().figures.step_time_ns


def test_zero_scatters_fp32_and_gathers_weights_of_16_bits(recorded, tmp_path):
    _, wide = both(recorded, tmp_path, dp=4, zero=1)
    assert reduced(wide) == {"c10d._reduce_scatter_base_": 4 * 64 * MIB, "c10d._allgather_base_": 4 * 32 * MIB}


def test_sums_over_micro_batches_take_two_more_bytes_a_weight(recorded, tmp_path):
    # The sums of all four gradients stand in HBM from the first micro-batch to the step.
    narrow, wide = both(recorded, tmp_path, accumulate=4)
    peaks = [trace.metadata["memory_fit"]["peak"] for trace in (narrow, wide)]
    assert peaks[1] - peaks[0] == 4 * 32 * MIB
    assert wide.summary().figures.step_time_ns > narrow.summary().figures.step_time_ns


def test_a_script_that_distributes_itself_says_itself_how_it_is_run(recorded, tmp_path):
    options = pipeline.Options(output=tmp_path / "trace.parquet", fp32_gradients=True, quiet=True)
    with pytest.raises(NeuronprofError, match=r"distributes itself over 2 ranks.*--fp32-gradients"):
        write_trace(replace(recorded, world=2), options)


def test_gradients_that_are_fp32_anyway_change_nothing(tmp_path):
    plain, same = both(captured(tmp_path, "float32"), tmp_path, dp=2)
    assert plain.events.equals(same.events)
