"""A sweep says of a layout what `analyze` says of its trace; many micro-batches follow from few; each layout is tried once."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import neuronprof
from neuronprof import pipeline
from neuronprof.distribute.layout import Layout
from neuronprof.distribute.styles import Style
from neuronprof.errors import NeuronprofError
from neuronprof.hardware.load import load_chip
from neuronprof.pipeline import laidout, sweep
from neuronprof.pipeline.grid import Grid, layouts
from neuronprof.pipeline.laidout import StepSimulator
from neuronprof.pipeline.written import write_trace

SCRIPT = Path(__file__).parents[2] / "sample_traces" / "train_llm.py"
CHIP, LNC = load_chip("trainium4"), 2
ACCUMULATES = """
import torch
model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024, bias=False) for _ in range(4)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(2):
    model(torch.randn(1024, 1024)).square().mean().backward()
optimizer.step()
"""


@pytest.fixture(scope="module")
def recorded():
    """One step of a small language model, recorded without values."""
    options = pipeline.Options(values="none", steps=1, warmup=0)
    argv = ("--model", "tiny", "--batch", "2", "--sequence", "256", "--steps", "1")
    return pipeline.capture(SCRIPT, argv, options).recording


@pytest.fixture(scope="module")
def simulator(recorded):
    return StepSimulator(sweep.step_of(recorded).graph, CHIP, LNC)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(dp=4),
        Layout(dp=2, tp=2, accumulate=2),
        Layout(dp=2, zero=3),
        Layout(dp=2, pp=2, accumulate=2, zero=1),
        Layout(tp=2, pp=4, microbatches=2, sequence_parallel=True),
        Layout(pp=2, vp=2, accumulate=4, schedule="interleaved"),
    ],
    ids=str,
)
def test_figures_are_those_of_a_trace_of_the_same_layout(recorded, simulator, tmp_path, layout):
    found = simulator.simulate(layout)
    options = pipeline.Options(**vars(layout), output=tmp_path / "trace.parquet", trace_ranks="all", quiet=True)
    trace = neuronprof.load(write_trace(recorded, options))
    parts, summary = trace.analyze("attribution"), trace.summary().figures
    assert found.figures.step_ns == summary.step_time_ns
    assert found.figures.exposed_ns == summary.exposed_ns
    assert found.figures.bubble_ns == parts.loc[parts["part"] == "bubble", "per_step_ns"].sum()
    assert found.figures.compute_ns == parts.loc[parts["part"] == "compute", "per_step_ns"].sum()
    assert found.peak_bytes == trace.metadata["memory_fit"]["peak"]
    peak = trace.metadata["machine"]["rank"]["peak_flops"]["bf16"]
    assert found.figures.model_flops / (found.figures.step_ns / 1e9 * peak) == pytest.approx(summary.mfu)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(dp=2, accumulate=12),
        Layout(pp=4, accumulate=24),
        Layout(pp=4, accumulate=24, schedule="gpipe"),
        Layout(pp=2, vp=2, accumulate=24, schedule="interleaved"),
    ],
    ids=str,
)
def test_many_micro_batches_follow_from_few(simulator, monkeypatch, layout):
    short = simulator.simulate(layout)
    monkeypatch.setattr(laidout, "_rounds", lambda asked: (None, asked))
    monkeypatch.setattr(StepSimulator, "_settled", lambda *_: None)
    whole = simulator.simulate(layout)
    # The bubble is a small rest of large times, and this model so small that it settles late.
    assert short.figures.step_ns == pytest.approx(whole.figures.step_ns, rel=1e-3)
    assert vars(short.figures) == pytest.approx(vars(whole.figures), rel=2e-2, abs=1000)
    assert short.peak == whole.peak


def test_micro_batches_of_the_script_itself_count_too(tmp_path, monkeypatch):
    # Two a step: twelve accumulated steps run the model 24 times.
    script = tmp_path / "train.py"
    script.write_text(ACCUMULATES)
    options = pipeline.Options(values="none", steps=1, warmup=0, quiet=True)
    simulator = StepSimulator(sweep.step_of(pipeline.capture(script, (), options).recording).graph, CHIP, LNC)
    short = simulator.simulate(Layout(dp=2, accumulate=12))
    monkeypatch.setattr(laidout, "_rounds", lambda asked: (None, asked))
    monkeypatch.setattr(StepSimulator, "_settled", lambda *_: None)
    whole = simulator.simulate(Layout(dp=2, accumulate=12))
    assert short.figures.model_flops == whole.figures.model_flops
    assert short.figures.step_ns == pytest.approx(whole.figures.step_ns, rel=1e-3)


def test_what_does_not_fit_says_how_much_it_needs(recorded):
    # 2 MiB of HBM for each of 4 ranks; the peak is the one of a machine that has room.
    step = sweep.step_of(recorded)
    small = replace(CHIP, package=replace(CHIP.package, hbm_capacity=2**23))
    found = StepSimulator(step.graph, small, LNC).simulate(Layout(dp=2))
    assert (found.fits, found.refused, found.capacity) == (False, "", 2**21)
    assert found.peak == StepSimulator(step.graph, CHIP, LNC).simulate(Layout(dp=2)).peak


def test_a_grid_keeps_the_global_batch_and_says_what_cannot_be():
    # 8 ranks, a script with 2 samples: most replicas 8, so 16 samples a step; tp 2 leaves 4 replicas with two batches each.
    found, refused = layouts(Grid(tp=(1, 2, 3), sequence_parallel=(False, True)), ranks=8, batch=2)
    assert found == [
        Layout(dp=8, accumulate=1),
        Layout(dp=4, tp=2, accumulate=2),
        Layout(dp=4, tp=2, accumulate=2, sequence_parallel=True),
    ]
    assert [(layout.tp, reason) for layout, reason in refused] == [(3, "8 ranks are no multiple of tp x pp x cp")] * 2


def test_a_grid_without_a_layout_is_an_error():
    with pytest.raises(NeuronprofError, match="None of the layouts divides the 8 ranks"):
        layouts(Grid(tp=(3,)), ranks=8, batch=1)


def test_a_table_has_costs_the_pareto_front_and_where_the_second_loses(recorded):
    step = sweep.step_of(recorded)
    machines = sweep.Machines(CHIP, LNC, 2, 3.0)
    table = sweep.sweep(step, machines, Grid(tp=(1, 2, 16), zero=(0, 1)))
    assert (step.samples, step.tokens) == (2, 256)
    fitting = table[table["status"] == sweep.FITS]
    assert len(fitting) == 4
    assert len(table) == 6
    assert fitting["step_time_ns"].is_monotonic_increasing
    # 8 ranks with 2 samples each are 16 samples of 256 tokens; 2 chips at 3 USD an hour.
    first, second = fitting.iloc[0], fitting.iloc[1]
    assert first["cost_per_million_tokens"] == pytest.approx(first["step_time_ns"] / 1e9 / 3600 * 6 / (16 * 256) * 1e6)
    assert first["pareto"]
    assert sum(sweep.losses(first, second).values()) == pytest.approx(second["step_time_ns"] - first["step_time_ns"])
    assert pd.isna(table.iloc[-1]["step_time_ns"])


def test_a_sweep_runs_each_layout_in_each_style_as_a_recording_of_it_does(recorded, tmp_path):
    # The one layout that the grid has, swept and recorded with the same options, takes the same time and HBM in each style.
    styles = (Style(), Style("full", fp8=True), Style(fp32_gradients=True))
    grid = Grid(zero=(0,), grad_sync=("after",), styles=styles)
    table = sweep.sweep(sweep.step_of(recorded), sweep.Machines(CHIP, LNC, 1, 3.0), grid)
    found = {Style(r["recompute"], r["fp8"], r["fp32_gradients"]): r for r in table.to_dict("records")}
    assert set(found) == set(styles)
    for style, row in found.items():
        options = pipeline.Options(
            output=tmp_path / "trace.parquet", dp=4, grad_sync="after", quiet=True, **vars(style)
        )
        trace = neuronprof.load(write_trace(recorded, options))
        assert row["step_time_ns"] == trace.summary().figures.step_time_ns
        assert row["hbm_peak_bytes"] == trace.metadata["memory_fit"]["peak"]


def test_a_style_that_a_model_cannot_have_is_impossible_and_the_others_are_not(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(ACCUMULATES.replace("range(4)", "range(1)"))  # one layer: no block repeats
    options = pipeline.Options(values="none", steps=1, warmup=0, quiet=True)
    step = sweep.step_of(pipeline.capture(script, (), options).recording)
    table = sweep.sweep(step, sweep.Machines(CHIP, LNC, 1, 3.0), Grid(styles=(Style("full"), Style())))
    assert table[["recompute", "status"]].values.tolist() == [["none", sweep.FITS], ["full", sweep.IMPOSSIBLE]]
    assert table["reason"].iloc[1].startswith("--recompute full computes repeated blocks again, and the model has none")


def test_a_grid_gathers_ahead_only_where_weights_are_shared_out():
    found, refused = layouts(Grid(zero=(1, 3), prefetch=(1, 2)), ranks=4, batch=1)
    assert found == [Layout(dp=4, zero=1), Layout(dp=4, zero=3), Layout(dp=4, zero=3, prefetch=2)]
    assert refused == []
