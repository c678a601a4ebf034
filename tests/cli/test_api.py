import json
import subprocess
import sys
import types

import numpy as np
import picture
import pytest

import neuronprof
from neuronprof.errors import NeuronprofError
from neuronprof.trace import schema

EVENTS = picture.rows(
    """
    tensor .aaaa.bb..
    dma    aa........
    """,
    {"a": {"op_name": "aten.mm", "layer": "fc<1>", "op": 0}},
)


@pytest.fixture
def path(tmp_path):
    return picture.write(
        tmp_path / "trace.parquet",
        EVENTS,
        [picture.segment(0, 10)],
        {"op": [0], "op_name": ["aten.mm"]},
        script="train.py",
    )


def test_a_loaded_trace(path):
    trace = neuronprof.load(path)
    assert repr(trace) == f"<neuronprof trace {path}: 3 events>"
    assert tuple(trace.events) == schema.NAMES
    assert trace.events[["engine", "op_name", "start_ts"]].astype({"engine": str, "op_name": str}).to_numpy().tolist() == [
        ["tensor", "aten.mm", 1], ["tensor", "b", 6], ["dma", "aten.mm", 0],
    ]  # fmt: skip
    assert str(trace.events["engine"].dtype) == "category"
    assert trace.metadata["script"] == "train.py"
    assert trace.operators[["op", "op_name"]].to_dict("list") == {"op": [0], "op_name": ["aten.mm"]}


def test_analyses_by_name(path):
    trace = neuronprof.load(path)
    layers = trace.analyze("bottlenecks_by_layer")
    assert picture.table(layers) == [
        "layer class time_ns per_step_ns share",
        "fc<1> tensor 4 4 0.4",
        "'' idle 3 3 0.3",
        "'' tensor 2 2 0.2",
        "fc<1> hbm 1 1 0.1",
    ]
    layers["time_ns"] = 0
    assert trace.analyze("bottlenecks_by_layer")["time_ns"].sum() == 10  # what is handed out is a copy
    with pytest.raises(NeuronprofError, match="There is no analysis 'speed'"):
        trace.analyze("speed")


def test_an_event_is_explained(path):
    # The longest of aten.mm is the one on the tensor engine; a picture has no formulas.
    lines = neuronprof.load(path).explain("aten.mm").splitlines()
    assert lines[:2] == ["MATMUL of aten.mm, fc<1>", "the longest of 2 events that match 'aten.mm'"]
    assert lines[4].startswith("It took 4 ns. Measured, not computed")
    with pytest.raises(NeuronprofError, match="There is no event 99"):
        neuronprof.load(path).explain(99)


def test_a_summary_prints_and_shows(path):
    summary = neuronprof.load(path).summary()
    assert str(summary).splitlines()[2:5] == [
        "Step time  10 ns",
        "  tensor           6 ns   60.0 %  ########################",
        "  hbm              1 ns   10.0 %  ####",
    ]
    assert "tensor engine in aten.mm, fc&lt;1&gt;" in summary._repr_html_()
    figures = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert (figures["step_time_ns"], figures["mfu"], figures["split"]["hbm"]) == (10, None, 1)
    assert [cost["time_ns"] for cost in figures["costs"]] == [4, 2, 2]
    assert summary.figures.costs[0].layer == "fc<1>"
    assert np.isnan(summary.figures.mfu)


def test_the_timeline_is_the_views(path, monkeypatch):
    calls = []
    view = types.ModuleType("neuronprof.view.timeline")
    view.timeline = lambda file, **options: calls.append((file.path, options)) or "layout"
    monkeypatch.setitem(sys.modules, "neuronprof.view.timeline", view)
    monkeypatch.setattr(sys.modules["neuronprof.view"], "timeline", view, raising=False)
    assert neuronprof.load(path).timeline(rank=0) == "layout"
    assert calls == [(path, {"rank": 0})]


def test_marks_cost_nothing_when_nothing_records():
    code = (
        "import sys, time, neuronprof\n"
        "neuronprof.step()\n"
        "start = time.perf_counter()\n"
        "for _ in range(10_000):\n"
        "    neuronprof.step()\n"
        "    with neuronprof.region('block'): pass\n"
        "print((time.perf_counter() - start) / 10_000 < 50e-6)\n"
        "print([m for m in ('torch', 'numpy', 'pandas', 'neuronprof.pipeline') if m in sys.modules])\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["True", "[]"]


def test_marks_and_recordings_are_the_pipelines(monkeypatch):
    calls = []
    pipeline = types.ModuleType("neuronprof.pipeline")
    pipeline.step = lambda: calls.append("step")
    pipeline.region = lambda name: calls.append(("region", name)) or __import__("contextlib").nullcontext()
    pipeline.recording = lambda path, **options: calls.append(("recording", path, options)) or "context"
    pipeline.Options = types.SimpleNamespace(of=lambda **options: options)
    pipeline.record = lambda script, arguments, options: calls.append((script, arguments, options)) or "recorded"
    monkeypatch.setitem(sys.modules, "neuronprof.pipeline", pipeline)
    monkeypatch.setattr(neuronprof, "pipeline", pipeline, raising=False)
    neuronprof.step()
    with neuronprof.region("attention"):
        pass
    assert neuronprof.recording("t.parquet", chip="trainium3") == "context"
    assert neuronprof.record("train.py", "--epochs", "1", dp=8) == "recorded"
    assert calls == [
        "step",
        ("region", "attention"),
        ("recording", "t.parquet", {"chip": "trainium3"}),
        ("train.py", ("--epochs", "1"), {"dp": 8}),
    ]


def test_the_packages_names():
    assert neuronprof.__version__
    assert {"load", "record", "recording", "region", "step"} <= set(dir(neuronprof))
    with pytest.raises(AttributeError, match="module 'neuronprof' has no attribute 'profile'"):
        _ = neuronprof.profile
