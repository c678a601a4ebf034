"""Figures of the pages, which notebooks show too: what is drawn where."""

import numpy as np
import pandas as pd
import picture
import pytest

import neuronprof
from neuronprof.analyze.everyrank import Map
from neuronprof.analyze.pairs import Pairs
from neuronprof.errors import NeuronprofError
from neuronprof.view import heatmap, rooflineplot, trafficplot

OPERATOR = {"layer": "net", "phase": "forward", "dtype": "bfloat16", "roof_share": 0.5, "bound": "tensor"}


def test_operators_stand_under_the_roofs():
    # At 100 B/s, 1000 FLOP/s in BF16 need 10 FLOPs a byte, 250 in FP32 need 2.5. `move` computes nothing and has no place.
    table = pd.DataFrame(
        [
            {**OPERATOR, "op_name": "mm", "time_ns": 400, "intensity": 20.0, "flops_per_second": 800.0},
            {
                **OPERATOR,
                "op_name": "add",
                "time_ns": 100,
                "intensity": 0.5,
                "flops_per_second": 25.0,
                "phase": "backward",
            },
            {**OPERATOR, "op_name": "move", "time_ns": 900, "intensity": 0.0, "flops_per_second": 0.0},
        ]
    )
    plot = rooflineplot.figure(table, {"peak_flops": {"bf16": 1000.0, "fp32": 250.0}, "hbm_bandwidth": 100.0})
    lines = [r.data_source.data for r in plot.renderers if r.name != "operators"]
    roofs = [([float(x) for x in data["x"]], [float(y) for y in data["y"]]) for data in lines]
    low, high = 0.5 / 10**0.5, 20 * 10**0.5
    assert roofs == [
        (pytest.approx([low, 10]), pytest.approx([100 * low, 1000])),
        (pytest.approx([10, high]), [1000, 1000]),
        (pytest.approx([2.5, high]), [250, 250]),
    ]
    operators = [r.data_source.data for r in plot.renderers if r.name == "operators"]
    points = [
        (data["op_name"][0], data["intensity"][0], data["flops_per_second"][0], float(data["size"][0]))
        for data in operators
    ]
    # The area is the time: a quarter of it has half the width above the smallest.
    assert points == [("mm", 20.0, 800.0, 26.0), ("add", 0.5, 25.0, 15.5)]


def test_without_a_machine_there_are_points_but_no_roofs():
    table = pd.DataFrame([{**OPERATOR, "op_name": "mm", "time_ns": 4, "intensity": 2.0, "flops_per_second": 8.0}])
    assert [r.name for r in rooflineplot.figure(table, {}).renderers] == ["operators"]


def test_ranks_that_do_not_fit_below_each_other_stand_side_by_side():
    # 300 ranks in at most 256 rows: two side by side in each of two steps. Rank r takes r in step 0, 1000 + r in step 1.
    ranks = np.arange(300)
    values = np.stack([ranks, 1000 + ranks], axis=1).astype(np.float32)
    shown = heatmap.figure(Map(ranks, np.array([0, 1]), {"waiting": values}))
    [image] = shown.select_one({"name": "rank map"}).renderers[0].data_source.data["image"]
    assert image.shape == (150, 4)
    assert image[0].tolist() == [0, 1, 1000, 1001]
    assert image[149].tolist() == [298, 299, 1298, 1299]


def test_a_schedule_is_drawn_a_row_a_stage(trace):
    # Stage 0: forward, a bubble of 2 ns while stage 1 works, backward. Each pass is a rectangle with its number.
    about = {"f": {"phase": "forward"}, "b": {"phase": "backward"}, "S": {"replica_group": "pp:0>1"}}
    events = picture.rows("tensor f..b\n cc .S\n rank 1\n tensor .fb\n cc ..S", about)
    events = [{**event, "id": 100 * event["rank"] + 10 * event["start_ts"] + (event["engine"] == "cc")} for event in events]  # fmt: skip
    opened = trace(events, [picture.segment(0, 4)], pipeline={"count": 2, "stride": 1})
    plot = neuronprof.load(opened.path).schedule()
    drawn = [
        (what, stage, start, end, number)
        for renderer in plot.renderers
        if renderer.name == "pieces"
        for what, stage, start, end, number in zip(
            *(renderer.data_source.data[name] for name in ("what", "stage", "start_ts", "end_ts", "number")), strict=True
        )
    ]  # fmt: skip
    assert drawn == [
        ("forward of micro-batch 0", 0, 0, 1, "0"), ("forward of micro-batch 0", 1, 1, 2, "0"),
        ("backward of micro-batch 0", 0, 3, 4, "0"), ("backward of micro-batch 0", 1, 2, 3, "0"),
        ("bubble", 0, 1, 3, ""), ("bubble", 1, 0, 1, ""), ("bubble", 1, 3, 4, ""),
    ]  # fmt: skip


def test_a_notebook_shows_the_figures(trace):
    about = {"a": {"op": 0, "op_name": "mm", "phase": "forward", "dtype": "bfloat16", "flops": 100, "bytes": 10}}
    opened = trace(picture.rows("tensor aaaa\n dma a", about), [picture.segment(0, 4)])
    loaded = neuronprof.load(opened.path)
    assert loaded.roofline().name == "roofline"
    with pytest.raises(NeuronprofError, match="does not say what each rank did; record it again"):
        loaded.rank_map()
    with pytest.raises(NeuronprofError, match="has no collectives between ranks"):
        loaded.traffic()
    with pytest.raises(NeuronprofError, match="has no pipeline; record one with --pp"):
        loaded.schedule()


def test_traffic_is_a_matrix_in_which_nothing_sent_is_nothing_drawn():
    sent = Pairs(np.array([0, 2]), np.array([0, 5]), (1, 1), np.array([[0.0, 120.0], [7.0, 0.0]]))
    plot = trafficplot.figure(sent)
    [image] = plot.renderers[0].data_source.data["image"]
    assert [[None if v != v else v for v in row] for row in image.tolist()] == [[None, 120], [7, None]]
    mapper = plot.renderers[0].glyph.color_mapper
    assert (mapper.low, mapper.high) == (7, 120)
