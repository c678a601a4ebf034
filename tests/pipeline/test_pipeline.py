"""From script to trace: a two-layer MLP against pencil and paper, and every total against its parts."""

import json

import numpy as np
import pandas as pd
import pytest

from neuronprof import pipeline
from neuronprof.errors import NeuronprofError
from neuronprof.hardware.load import load_chip
from neuronprof.trace.reader import open_trace

pytest.importorskip("torch", reason="needs the extra 'torch'")

BATCH, IN, HIDDEN, OUT = 256, 512, 1024, 128

MLP = f"""
import torch, torch.nn as nn
torch.manual_seed(0)
net = nn.Sequential(nn.Linear({IN}, {HIDDEN}), nn.ReLU(), nn.Linear({HIDDEN}, {OUT}))
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
x, y = torch.randn({BATCH}, {IN}), torch.randint(0, {OUT}, ({BATCH},))
for _ in range(4):
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlp")
    script = folder / "mlp.py"
    script.write_text(MLP)
    options = pipeline.Options(
        output=folder / "trace.parquet", chip="trainium2", dp=8, steps=2, values="real", quiet=True
    )
    result = pipeline.record(script, (), options)
    assert result.exit_code == 0
    return open_trace(result.trace), pd.read_parquet(result.trace)


def first_step(events, rank=0):
    return events[(events["step"] == 0) & (events["rank"] == rank)]


def test_flops_by_hand(recorded):
    # Forward: 2 B (I H + H O). Backward: the same for the weights, and 2 B H O for the hidden layer's input; the first layer has none.
    trace, events = recorded
    by_hand = 2 * BATCH * (2 * (IN * HIDDEN + HIDDEN * OUT) + HIDDEN * OUT)
    assert first_step(events).query("engine == 'tensor'")["flops"].sum() == by_hand
    assert [s["model_flops"] for s in trace.metadata["segments"]] == [by_hand, by_hand]


def test_gradient_bytes_by_hand(recorded):
    # All gradients are reduced once: 4 bytes for each weight and bias. Over NeuronLink between the two chips goes, of the first layer's
    # bias, which is reduced last, all of it from each rank to the four others in one step; of the rest, by halving and doubling, which adds
    # up on each chip of four ranks first, a quarter.
    _, events = recorded
    parameters = IN * HIDDEN + HIDDEN + HIDDEN * OUT + OUT
    step = first_step(events)
    assert step.query("engine == 'cc'")["bytes"].sum() == 4 * parameters
    assert step.query("engine == 'neuronlink'")["bytes"].sum() == 4 * (4 * HIDDEN) + (parameters - HIDDEN)
    assert trace_parameters(recorded) == parameters


def trace_parameters(recorded):
    return recorded[0].metadata["parameters"]


def test_matmul_time_by_hand(recorded):
    # The first layer's forward, (256, 512) x (512, 1024) in FP32 on two cores of Trainium2 at 2.4 GHz: 4 tiles of 128 in K, 2 in M,
    # 1024 columns each, 4 passes for FP32: 4 x 2 x 1024 x 4 / 2 cores = 16,384 cycles = 6,826.7 ns.
    _, events = recorded
    first = first_step(events).query("engine == 'tensor' and op_name == 'aten.addmm' and layer.str.endswith('0')")
    assert first["flops"].sum() == 2 * BATCH * IN * HIDDEN
    assert first["duration_ns"].sum() == pytest.approx(4 * 2 * 1024 * 4 / 2 / 2.4, abs=len(first))


def test_the_step_is_no_shorter_than_any_engine_and_no_event_leaves_it(recorded):
    trace, events = recorded
    for segment in trace.metadata["segments"]:
        step = events[events["step"] == segment["step"]]
        assert step["start_ts"].min() >= segment["start_ts"]
        assert (step["start_ts"] + step["duration_ns"]).max() == segment["end_ts"]
    assert trace.metadata["segments"][0]["end_ts"] == trace.metadata["segments"][1]["start_ts"]


def test_every_queue_runs_one_event_at_a_time(recorded):
    _, events = recorded
    tracks = events[events["kind"] != "memory"].sort_values(["rank", "engine", "queue", "start_ts", "id"])
    for _, track in tracks.groupby(["rank", "engine", "queue"], observed=True):
        ends = (track["start_ts"] + track["duration_ns"]).to_numpy()
        assert (track["start_ts"].to_numpy()[1:] >= ends[:-1]).all()


def test_ids_join_the_events(recorded):
    _, events = recorded
    assert events["id"].is_unique
    by_id = events.set_index("id")
    released = events[events["released_by"] >= 0]
    ends = (
        by_id.loc[released["released_by"], "start_ts"].to_numpy()
        + by_id.loc[released["released_by"], "duration_ns"].to_numpy()
    )
    own = (released["engine"] == "hbm") | (released["engine"] == "neuronlink")
    assert (released["start_ts"].to_numpy()[~own] >= ends[~own] - 1).all()
    some = events[events["deps"].str.len() > 0]
    assert all(set(i - np.asarray(d)) <= set(by_id.index) for i, d in zip(some["id"], some["deps"], strict=True))


def test_hbm_holds_the_model(recorded):
    trace, events = recorded
    parameters = trace_parameters(recorded)
    weights = first_step(events).query("kind == 'memory' and name == 'weights'")
    assert weights["bytes"].max() == 4 * parameters
    assert trace.metadata["memory_fit"]["at_peak"]["weights"] == 4 * parameters
    assert trace.metadata["memory_fit"]["capacity"] == load_chip("trainium2").package.hbm_capacity // 4


def test_ranks_stand_on_consecutive_cores(recorded):
    _, events = recorded
    places = events[["rank", "chip", "core"]].drop_duplicates().sort_values("rank").to_numpy().tolist()
    assert places == [[r, r // 4, r % 4] for r in range(8)]


def test_the_same_recording_twice_is_the_same_file(tmp_path):
    script = tmp_path / "mlp.py"
    script.write_text(MLP)
    traces = []
    for name in ("a.parquet", "b.parquet"):
        options = pipeline.Options(output=tmp_path / name, steps=1, values="none", jitter=0.02, dp=3, quiet=True)
        traces.append(pipeline.record(script, (), options).trace.read_bytes())
    assert traces[0] == traces[1]


def test_identical_steps_are_compiled_once_and_take_the_same_time(recorded):
    trace, _ = recorded
    first, second = trace.metadata["segments"]
    assert first["end_ts"] - first["start_ts"] == pytest.approx(second["end_ts"] - second["start_ts"], abs=1)


def test_a_model_that_does_not_fit_leaves_no_file(tmp_path):
    script = tmp_path / "big.py"
    script.write_text(MLP.replace(f"nn.Linear({IN}, {HIDDEN}), nn.ReLU()", f"nn.Linear({IN}, {HIDDEN}), nn.ReLU()"))
    small = tmp_path / "small.toml"
    small.write_text(
        'base = "trainium2"\n[package]\nhbm_capacity = { value = 4_000_000, unit = "B", provenance = "assumed", source = "a test" }\n'
    )
    options = pipeline.Options(output=tmp_path / "trace.parquet", chip=str(small), steps=1, quiet=True)
    with pytest.raises(NeuronprofError, match=r"needs .* of HBM and a rank of small has .* too little"):
        pipeline.record(script, (), options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.py", "small.toml"]
    allowed = pipeline.Options(output=tmp_path / "trace.parquet", chip=str(small), steps=1, allow_oom=True, quiet=True)
    assert pipeline.record(script, (), allowed).trace.exists()


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ({"lnc": 3}, "--lnc 3 does not divide"),
        ({"dp": 0}, "not a number of parts"),
        ({"chip": "trainium9"}, "There is no chip"),
        ({"dp": 10**9}, "more than"),
    ],
)
def test_what_cannot_run_is_said_before_the_script_starts(tmp_path, choice, sentence):
    script = tmp_path / "never.py"
    script.write_text("raise SystemExit('it ran')")
    with pytest.raises(NeuronprofError, match=sentence):
        pipeline.record(script, (), pipeline.Options(output=tmp_path / "t.parquet", **choice))


def test_recording_a_block(tmp_path):
    import torch

    net = torch.nn.Linear(64, 64)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pipeline.recording(tmp_path / "block.parquet", warmup=0, quiet=True):
        for _ in range(2):
            with pipeline.region("forward pass"):
                loss = net(torch.ones(8, 64)).sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    metadata = open_trace(tmp_path / "block.parquet").metadata
    assert [s["step"] for s in metadata["segments"]] == [0, 1]
    assert json.dumps(metadata)
    events = pd.read_parquet(tmp_path / "block.parquet")
    named = events[events["region"] == "forward pass"]
    assert (
        {"forward", "backward"} <= set(named["phase"]) <= {"forward", "backward", "other"}
    )  # its input, its operators, their gradients
    assert set(events[events["phase"] == "optimizer"]["region"]) == {""}


def test_an_unknown_option_of_a_block_is_one_sentence(tmp_path):
    with pytest.raises(NeuronprofError, match="no option 'speed'"), pipeline.recording(tmp_path / "t.parquet", speed=3):
        pass


def test_step_and_region_do_nothing_without_a_recording():
    pipeline.step()
    with pipeline.region("anything"):
        pass
