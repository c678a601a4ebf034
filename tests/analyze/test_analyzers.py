"""Each analyzer: a picture, and the complete tables that come of it. Times in pictures are nanoseconds, one a character."""

import numpy as np
import picture

import neuronprof
from neuronprof.analyze.bottlenecks import Bottlenecks
from neuronprof.analyze.memory import Memory
from neuronprof.analyze.passes import run
from neuronprof.analyze.roofline import Roofline
from neuronprof.analyze.underused import Underused
from neuronprof.analyze.utilization import Utilization
from neuronprof.trace.writer import TraceWriter


def tables(trace, analyzer):
    """The finished tables as text."""
    return {name: picture.table(table) for name, table in run(trace, [analyzer])[analyzer.name].items()}


def spent(table, *columns):
    """Rows of a table of bottlenecks in which time was spent, header first; with columns, only those."""
    header, *rows = [row.split(" ") for row in table]
    keep = [header.index(c) for c in columns or header]
    return [" ".join(row[i] for i in keep) for row in [header, *[r for r in rows if r[header.index("time_ns")] != "0"]]]


STEP = """
tensor ..aaaa..bb......
vector .....cc.........
dma    aaaaaa.bb.......
dma:1  ...d............
cc     ........~~CCC...
host   .............h..
"""


def test_utilization(trace):
    # two ranks, one step of 10 ns and evaluation of 5 ns after it
    #           0123456789 01234
    #   tensor  aa.aa..... .....     4 of 10; rank 1: 6 of 10
    #   dma:0   aaa....... e....
    #   dma:1   .bbb......          union 4 of 10, not 6
    #   hbm     memory rows are levels, not work
    events = picture.rows(
        """
        tensor aa.aa..........
        dma    aaa.......e....
        dma:1  .bbb...........
        rank 1
        tensor aaaaaa.........
        """,
        {"e": {"step": -1}},
    ) + picture.levels("555555555555555", "weights")
    found = tables(trace(events, [picture.segment(0, 10), picture.segment(10, 15, step=-1)]), Utilization())
    assert found["utilization"] == [
        "engine busy_ns window_ns busy",
        "tensor 10 20 0.5",
        "vector 0 20 0",
        "scalar 0 20 0",
        "gpsimd 0 20 0",
        "sync 0 20 0",
        "dma 4 20 0.2",
        "cc 0 20 0",
        "hbm 0 20 0",
        "neuronlink 0 20 0",
        "efa 0 20 0",
        "host 0 20 0",
    ]
    busy = [row for row in found["utilization_by_rank"] if not row.endswith(" 0")]
    assert busy == ["rank engine busy_ns window_ns busy", "0 tensor 4 10 0.4", "0 dma 4 10 0.4", "1 tensor 6 10 0.6"]
    busy = [row for row in found["utilization_by_step"] if not row.endswith(" 0")]
    assert busy == ["step engine busy_ns window_ns busy", "-1 dma 1 10 0.1", "0 tensor 10 20 0.5", "0 dma 4 20 0.2"]


def test_bottlenecks(trace):
    #           0123456789012345
    #   tensor  ..aaaa..bb......   2-6, 8-10
    #   vector  .....cc.........   6-7; 5-6 is tensor's
    #   dma     aaaaaa.bb.......   0-2 (a, which started before d), 7-8
    #   cc      ........~~CCC...   10-13; it waits at 8-10, when tensor computes
    #   host    .............h..   13-14
    #   idle    14-16, nothing ends it
    found = tables(trace(picture.rows(STEP), [picture.segment(0, 16)]), Bottlenecks())
    assert found["bottlenecks"] == [
        "step rank class time_ns share",
        "0 0 tensor 6 0.375",
        "0 0 vector 1 0.0625",
        "0 0 scalar 0 0",
        "0 0 gpsimd 0 0",
        "0 0 hbm 3 0.1875",
        "0 0 neuronlink 3 0.1875",
        "0 0 waiting 0 0",
        "0 0 host 1 0.0625",
        "0 0 idle 2 0.125",
    ]
    assert found["bottlenecks_by_operator"] == [
        "class op_name layer phase source time_ns per_step_ns share",
        "tensor a '' '' '' 4 4 0.25",
        "neuronlink C '' '' '' 3 3 0.1875",
        "tensor b '' '' '' 2 2 0.125",
        "hbm a '' '' '' 2 2 0.125",
        "idle '' '' '' '' 2 2 0.125",
        "vector c '' '' '' 1 1 0.0625",
        "hbm b '' '' '' 1 1 0.0625",
        "host h '' '' '' 1 1 0.0625",
    ]


def test_bottlenecks_by_region(tmp_path):
    # tensor  aaaabb   a stands in the region "attention", b in none: 4 ns, two thirds of the step
    path = tmp_path / "trace.parquet"
    with TraceWriter(path) as writer:
        writer.write({
            "engine": ["tensor", "tensor"], "kind": "compute", "name": ["a", "b"], "start_ts": [0, 4], "duration_ns": [4, 2],
            "op_name": ["a", "b"], "region": ["attention", ""],
        })  # fmt: skip
        writer.close({"segments": [{"kind": "step", "step": 0, "start_ts": 0, "end_ts": 6}]})
    table = neuronprof.load(path).analyze("bottlenecks_by_region")
    assert table.to_dict("records") == [
        {"region": "attention", "class": "tensor", "time_ns": 4, "per_step_ns": 4.0, "share": 4 / 6}
    ]


def test_bottlenecks_by_layer_over_ranks_and_steps(trace):
    # rank 0, step 0: fc computes 4 of 10, and 6 ns before out (ends the gap) are idle: out starts at the end, for 0 ns of this step
    # rank 1, step 0: fc computes 8, idle 2 at the end
    # rank 0, step 1: the collective of out waits 3 (1 of it before the step) and transfers 7; rank 1: out computes 10
    about = {"f": {"layer": "fc", "op_name": "mm"}, "o": {"layer": "out", "op_name": "mm", "step": 1},
             "R": {"layer": "out", "op_name": "reduce", "step": 1}}  # fmt: skip
    events = picture.rows(
        """
        tensor ffff................
        cc     .........~~~RRRRRRRR
        rank 1
        tensor ffffffff..oooooooooo
        """,
        about,
    )
    found = tables(trace(events, [picture.segment(0, 10), picture.segment(10, 20, step=1)]), Bottlenecks())
    assert found["bottlenecks_by_layer"] == [
        "layer class time_ns per_step_ns share",
        "fc tensor 12 3 0.3",
        "out tensor 10 2.5 0.25",
        "'' idle 8 2 0.2",
        "out neuronlink 8 2 0.2",
        "out waiting 2 0.5 0.05",
    ]
    assert spent(found["bottlenecks"]) == [
        "step rank class time_ns share",
        "0 0 tensor 4 0.4",
        "0 0 idle 6 0.6",
        "0 1 tensor 8 0.8",
        "0 1 idle 2 0.2",
        "1 0 neuronlink 8 0.8",
        "1 0 waiting 2 0.2",
        "1 1 tensor 10 1",
    ]


def test_idle_time_is_charged_to_what_ends_it(trace):
    events = picture.rows(
        "tensor aa...bb..", {"a": {"op_name": "mm"}, "b": {"op_name": "softmax", "layer": "attention"}}
    )
    found = tables(trace(events, [picture.segment(0, 9)]), Bottlenecks())
    assert found["bottlenecks_by_operator"] == [
        "class op_name layer phase source time_ns per_step_ns share",
        "idle softmax attention '' '' 3 3 0.3333",
        "tensor mm '' '' '' 2 2 0.2222",
        "tensor softmax attention '' '' 2 2 0.2222",
        "idle '' '' '' '' 2 2 0.2222",
    ]


def test_copies_to_and_from_the_host_are_the_hosts_time(trace):
    events = picture.rows(
        """
        dma:3  cccc....
        hbm    cc......
        dma    ......dd
        """,
        {"c": {"name": "COPY_TO_DEVICE"}},
    )
    found = tables(trace(events, [picture.segment(0, 8)]), Bottlenecks())
    assert spent(found["bottlenecks"], "class", "time_ns") == ["class time_ns", "hbm 2", "host 4", "idle 2"]


def test_evaluation_is_a_step_of_its_own(trace):
    # evaluation runs before and after step 0: 4 + 6 ns, in which the tensor engine is busy for 2 + 1
    events = picture.rows("tensor ee..ssss..e.....", {"e": {"step": -1}, "s": {"op_name": "mm"}})
    segments = [picture.segment(0, 4, -1), picture.segment(4, 10), picture.segment(10, 16, -1)]
    found = tables(trace(events, segments), Bottlenecks())
    assert spent(found["bottlenecks"], "step", "class", "time_ns") == [
        "step class time_ns",
        "-1 tensor 3",
        "-1 idle 7",
        "0 tensor 4",
        "0 idle 2",
    ]
    assert found["bottlenecks_by_operator"][1:] == ["tensor mm '' '' '' 4 4 0.6667", "idle '' '' '' '' 2 2 0.3333"]


def test_underused(trace):
    #           0123456789
    #   tensor  ..aa..b...   busy 3; 2 idle before a: it waited 2 for dma; 2 before b: waited 1 for data, 1 no work; 3 at the end: no work
    #   vector  vvvvvvvvv.   busy 9: not underused
    #   scalar, gpsimd, hbm never; no collectives, so cc, neuronlink and efa are not judged
    #   dma     dd...dd.e.   busy 5 of 10: not below one half
    about = {"a": {"op_name": "mm", "layer": "fc1", "source": "m.py:1", "wait_ns": 2, "wait_for": "dma"},
             "b": {"op_name": "mm", "layer": "fc2", "wait_ns": 1, "wait_for": "data"}}  # fmt: skip
    events = picture.rows(
        """
        tensor ..aa..b...
        vector vvvvvvvvv.
        dma    dd...dd.e.
        """,
        about,
    )
    found = tables(trace(events, [picture.segment(0, 10)]), Underused())
    assert found["underused"] == [
        "engine busy cause idle_ns busy_ns data_ns dma_ns hbm_ns link_ns peer_ns sbuf_ns no_work_ns window_ns",
        "tensor 0.3 no_work 7 3 1 2 0 0 0 0 4 10",
        "scalar 0 no_work 10 0 0 0 0 0 0 0 10 10",
        "gpsimd 0 no_work 10 0 0 0 0 0 0 0 10 10",
        "hbm 0 no_work 10 0 0 0 0 0 0 0 10 10",
    ]
    assert found["underused_gaps"] == [
        "engine rank step start_ts duration_ns waited_for next_name next_op_name next_layer next_source",
        "scalar 0 0 0 10 no_work '' '' '' ''",
        "gpsimd 0 0 0 10 no_work '' '' '' ''",
        "hbm 0 0 0 10 no_work '' '' '' ''",
        "tensor 0 0 7 3 no_work '' '' '' ''",
        "tensor 0 0 0 2 dma MATMUL mm fc1 m.py:1",
        "tensor 0 0 4 2 data MATMUL mm fc2 ''",
    ]
    # by length: below 4 ns means 2 or 3, below 16 from 8 on
    assert found["underused_lengths"] == [
        "engine waited_for shorter_than_ns gaps gap_ns",
        "tensor data 4 1 2",
        "tensor dma 4 1 2",
        "tensor no_work 4 1 3",
        "scalar no_work 16 1 10",
        "gpsimd no_work 16 1 10",
        "hbm no_work 16 1 10",
    ]
    assert len(tables(trace(events, [picture.segment(0, 10)]), Underused(threshold=0.25))["underused"]) == 4


def test_underused_keeps_the_longest_gaps(trace):
    events = picture.rows("vector a.a..a...a....")
    found = tables(trace(events, [picture.segment(0, 14)]), Underused(gaps=2))
    rows = [row.split() for row in found["underused_gaps"] if row.startswith("vector")]
    assert [(row[3], row[4]) for row in rows] == [("10", "4"), ("6", "3")]


def test_roofline(trace):
    # machine: 1 TFLOP/s bf16, 0.25 fp32; HBM 100 GB/s = 100 B/ns. Ridge 1e12 / 1e11 = 10.
    #           01234567
    #   tensor  ..aaaa..   fc1: union of compute and DMA 0-6: 6 ns; 3000 FLOP in 6 ns = 500 GFLOP/s = half of the peak
    #   dma     aaa.....   300 B: intensity 10, roof = min(1000, 10 * 100) = 1000 GFLOP/s: 0.5
    #   vector  ......bb   norm: 100 FLOP fp32 in 2 ns = 50 GFLOP/s = 0.2 of fp32's peak; no bytes
    about = {"a": {"op_name": "mm", "layer": "fc1", "phase": "forward", "dtype": "bfloat16"},
             "b": {"op_name": "norm", "layer": "ln", "phase": "forward", "dtype": "float32", "flops": 100}}  # fmt: skip
    events = picture.rows("tensor ..aaaa..\ndma aaa.....\nvector ......bb", about)
    events[0] |= {"flops": 3000}
    events[1] |= {"bytes": 300}
    figures = {"model_flops": 2000, "hardware_flops": 3000, "model_bytes": 200}
    found = tables(trace(events, [picture.segment(0, 8, **figures)]), Roofline())
    assert found["roofline"] == [
        "op_name layer phase dtype flops bytes time_ns tensor_ns vector_ns scalar_ns gpsimd_ns dma_ns "
        "intensity flops_per_second peak_share roof_share bound",
        "mm fc1 forward bfloat16 3000 300 6 4 0 0 0 3 10 5e+11 0.5 0.5 tensor",
        "norm ln forward float32 100 0 2 0 2 0 0 0 nan 5e+10 0.2 0.2 vector",
    ]
    # mfu = 2000 / (8 ns * 1000 FLOP/ns) = 0.25; hfu = 3000 / 8000; mbu = 200 / (8 * 100) = 0.25; moved 300 / 800; intensity 3100 / 300
    assert found["roofline_steps"] == [
        "step step_time_ns model_flops hardware_flops model_bytes moved_bytes peak_dtype mfu hfu mbu hbm_share intensity ridge",
        "0 8 2000 3000 200 300 bf16 0.25 0.375 0.25 0.375 10.33 10",
    ]


def test_roofline_of_fp8_is_against_the_peak_of_fp8(trace):
    # half of the FLOPs and more in fp8: peak 2000 FLOP/ns; 4 ns: mfu = 4000 / 8000. Two ranks: FLOPs and bytes are those of one.
    about = {
        "a": {"op_name": "mm", "dtype": "float8_e4m3fn", "flops": 3000},
        "b": {"op_name": "mm", "dtype": "bfloat16", "flops": 1000},
    }
    events = picture.rows("tensor aabb\nrank 1\ntensor aabb", about)
    found = run(trace(events, [picture.segment(0, 4, model_flops=4000)]), [Roofline()])["roofline"]
    steps = found["roofline_steps"].iloc[0]
    assert (steps["peak_dtype"], steps["mfu"], steps["hardware_flops"], steps["hfu"]) == ("fp8", 0.5, 4000, 0.5)
    assert np.isnan(steps["mbu"])
    rows = found["roofline"][["dtype", "flops", "time_ns"]]
    assert rows.to_dict("list") == {"dtype": ["float8_e4m3fn"], "flops": [8000], "time_ns": [8]}


def test_memory(trace):
    # capacity 1000
    #                0123456789
    #   weights      2222222222
    #   activations  ..135.4...     peak 7 at 4
    # rank 1: activations 9 for 1 ns at 3, nothing else: peak 9, the highest
    events = (
        picture.levels("2222222222", "weights")
        + picture.levels("..135.4...", "activations")
        + picture.levels("...9......", "activations", rank=1)
    )
    found = tables(trace(events, [picture.segment(0, 10)]), Memory())
    assert found["memory"] == ["rank category bytes share capacity_share", "1 activations 9 1 0.009"]
    assert found["memory_by_rank"] == [
        "rank step peak_ts peak_bytes capacity_bytes capacity_share",
        "0 0 4 7 1000 0.007",
        "1 0 3 9 1000 0.009",
    ]
    assert found["memory_over_time"] == [
        "rank start_ts weights gradients optimizer_state activations inputs workspace bytes",
        *(f"0 {t} 2 0 0 {held} 0 0 {2 + held}" for t, held in ((0, 0), (2, 1), (3, 3), (4, 5), (5, 0), (6, 4), (7, 0))),
        "0 10 0 0 0 0 0 0 0",
        "1 3 0 0 0 9 0 0 9",
        "1 4 0 0 0 0 0 0 0",
    ]


def test_memory_over_time_is_thinned_but_keeps_the_peak(trace):
    events = picture.levels("12345678987654321" * 20, "weights")
    events.append({**events[0], "name": "workspace", "start_ts": 111, "duration_ns": 1, "bytes": 50})
    found = run(trace(events), [Memory(points=10)])["memory"]
    assert len(found["memory_over_time"]) <= 10
    assert found["memory_over_time"]["start_ts"].iloc[[0, -1]].tolist() == [0, 340]
    assert found["memory_by_rank"][["peak_ts", "peak_bytes"]].to_numpy().tolist() == [
        [111, 50 + int(("12345678987654321" * 7)[111])]
    ]
