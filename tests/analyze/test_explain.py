"""Explanations: the formula that is printed gives the duration in the trace, for every event of several recordings."""

import json
from collections import Counter

import picture
import pytest

import neuronprof
from neuronprof.analyze.durations import OPERAND, worked
from neuronprof.analyze.explain import explain
from neuronprof.cli import main
from neuronprof.errors import NeuronprofError
from neuronprof.formula import Formula
from neuronprof.trace.reader import open_trace

SCRIPT = """
import torch
from torch import nn
model = nn.Sequential(nn.Embedding(512, 256), nn.LayerNorm(256), nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 512)).to("neuron")
if HALF:
    model = model.bfloat16()
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
for _ in range(3):
    x = torch.randint(0, 512, (512,), device="neuron")
    loss = nn.functional.cross_entropy(model(x).float(), x)
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    loss.item()
"""
PIPELINE = {"dp": 2, "tp": 2, "pp": 2, "microbatches": 2}
# 32 UltraServers of 128 chips with 4 ranks: all-reduces over NeuronLink and EFA. Noise and a slow link make ranks differ.
WIDE = {"dp": 1024, "trace_ranks": "0,5,1023", "jitter": 0.02, "seed": 7, "links": {1: 0.5}}
UNEVEN = {"dp": 8, "jitter": 0.05, "slow_chips": {1: 1.5}, "throttled": {2: 1.3}, "links": {1: 0.25}}
CASES = {
    "two chips that differ": ("trainium4", UNEVEN),
    "several UltraServers": ("trainium4", WIDE),
    "a pipeline": ("trainium2", PIPELINE | {"jitter": 0.01}),
    "in detail": (
        "trainium2",
        {"detail": "instruction", "dp": 8, "jitter": 0.02, "throttled": {0: 1.3}, "trace_ranks": "0"},
    ),
    "kernels over a switch and EFA": ("h100-80gb", {"dp": 32, "trace_ranks": "0"}),
    "kernels that the host launches": ("h100-80gb", {"eager": True}),
}
EVERYWHERE = {"tensor", "vector", "scalar", "gpsimd", "dma", "hbm", "host"}
LINKS = {
    "two chips that differ": {"cc", "neuronlink"},
    "several UltraServers": {"cc", "neuronlink", "efa"},
    "a pipeline": {"cc", "neuronlink"},
    "in detail": {"cc", "neuronlink"},
    "kernels over a switch and EFA": {"cc", "neuronlink", "efa"},
    "kernels that the host launches": set(),
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Records one of CASES, in bf16 where the machine takes kernels."""
    pytest.importorskip("torch", reason="needs the extra 'torch'")
    folder = tmp_path_factory.mktemp("explain")

    def record(case):
        chip, options = CASES[case]
        path = folder / f"{case}.parquet"
        if not path.exists():
            script = folder / f"{case}.py"
            script.write_text(SCRIPT.replace("HALF", str(chip.startswith("h100"))))
            neuronprof.record(script, output=path, chip=chip, values="none", steps=2, warmup=0, quiet=True, **options)
        return open_trace(path)

    return record


@pytest.mark.parametrize("case", CASES)
def test_every_formula_gives_the_duration(recorded, case):
    trace = recorded(case)
    events = trace.columns().to_pylist()
    engines = {e["engine"] for e in events if e["operands"]}
    assert engines == EVERYWHERE | LINKS[case]
    # Start and end are rounded to nanoseconds each, so that a duration may be off by one.
    off = {
        e["id"]: (e["name"], e["engine"], e["duration_ns"], found.seconds * 1e9)
        for e in events
        if e["operands"] and abs((found := worked(e, trace.metadata)).seconds * 1e9 - e["duration_ns"]) > 1
    }
    assert off == {}
    # What has none takes no time of its own, or is what memory holds.
    rest = Counter(e["name"] for e in events if not e["operands"] and e["kind"] != "memory" and e["duration_ns"])
    assert rest == {}


def test_what_is_printed_can_be_computed_again(recorded):
    trace = recorded("two chips that differ")
    slow = next(e for e in trace.columns(rank=4).to_pylist() if e["name"] == "MATMUL" and e["chip"] == 1)
    found = explain(trace, str(slow["id"])).worked
    again = Formula("\n".join(f"{line.name} = {line.expression}" for line in found.lines))
    seconds = again.evaluate({p.name: p.value for p in found.parameters})["seconds"]
    for factor in found.factors:
        seconds *= factor.times
    assert seconds == pytest.approx(found.seconds, abs=2e-12)
    assert [factor.what for factor in found.factors] == ["chip 1 is slow", "noise of rank 4, jitter 0.05"]
    assert found.factors[0].times == 1.5
    machine = trace.metadata["machine"]["quantities"]
    assert {p.name: p.source for p in found.parameters if "." in p.name} == {
        name: machine[name]["source"]
        for name in ("tensor.interval_min", "tensor.weight_load", "tensor.rows", "tensor.columns", "tensor.moving_max", "tensor.arrays",
                     "tensor.fp32_passes", "tensor.clock")
    }  # fmt: skip
    assert [p.name for p in found.parameters if p.provenance == OPERAND] == ["batch", "K", "M", "N", "itemsize"]


def test_what_binds(recorded):
    """The longest of each kind, on one machine."""
    trace = recorded("several UltraServers")
    bound = {
        name: explain(trace, name).worked.bound
        for name in ("MATMUL", "CUSTOM_OP", "LAUNCH", "AllReduce", "COPY_TO_HOST")
    }
    assert bound == {
        "MATMUL": "compute",
        "CUSTOM_OP": "overhead",
        "LAUNCH": "overhead",
        "AllReduce": "latency",
        "COPY_TO_HOST": "bytes between host and HBM",
    }


def test_a_pattern_takes_the_longest(recorded, capsys):
    trace = recorded("two chips that differ")
    found = explain(trace, "aten.*mm")
    rows = [
        e for e in trace.columns().to_pylist()
        if e["op_name"] in ("aten.mm", "aten.addmm") and e["engine"] not in ("hbm", "neuronlink", "efa")
    ]  # fmt: skip
    longest = max(rows, key=lambda e: e["duration_ns"])
    assert found.event["duration_ns"] == longest["duration_ns"]
    assert found.chosen == f"the longest of {len(rows):,} events that match 'aten.*mm'"

    assert main(["explain", str(trace.path), "aten.*mm"]) == 0
    printed = capsys.readouterr().out
    assert found.chosen in printed
    assert main(["explain", "--json", str(trace.path), str(longest["id"])]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(explain(trace, str(longest["id"])).to_dict()))


def test_why_not_sooner(recorded, capsys):
    """A load that waits for another engine starts 1.3 us after it."""
    trace = recorded("two chips that differ")
    events = {e["id"]: e for e in trace.columns(rank=0).to_pylist()}
    load = next(
        e for e in events.values() if e["name"] == "DMA_LOAD" and e["engine"] == "dma" and e["wait_for"] == "data"
    )
    before = events[load["released_by"]]
    assert load["start_ts"] - before["start_ts"] - before["duration_ns"] == 1300
    main(["explain", str(trace.path), str(load["id"])])
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert (
        f"(event {load['released_by']}), which ended 1.3 us before, for a DMA takes that long to start (dma.start)."
        in last
    )


def test_a_trace_from_elsewhere_is_measured(tmp_path, capsys):
    events = picture.rows("tensor aaa.bb")
    path = picture.write(tmp_path / "trace.parquet", events, [picture.segment(0, 6)])
    assert main(["explain", str(path), "a"]) == 0
    assert "Measured, not computed" in capsys.readouterr().out


def test_what_a_user_can_mend(tmp_path, capsys):
    path = picture.write(tmp_path / "trace.parquet", picture.rows("tensor aaa.bb"), [picture.segment(0, 6)])
    assert main(["explain", str(path), "77"]) == 2
    assert main(["explain", str(path), "softmax"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"neuronprof: There is no event 77 in {path}; the column id has them, or give a name like MATMUL.",
        f"neuronprof: No event of {path} is called 'softmax', nor its operator or layer; give an id, a name like MATMUL, or a pattern like "
        "'*mlp*'.",
    ]


def test_a_formula_that_is_none_is_refused(recorded):
    trace = recorded("two chips that differ")
    event = explain(trace, "MATMUL").event
    broken = {"matmul": {"text": "seconds = __import__('os')", "bounds": {}, "slowed_by": []}}
    with pytest.raises(NeuronprofError, match="cannot be read from the trace"):
        worked(event, {**trace.metadata, "formulas": broken})
