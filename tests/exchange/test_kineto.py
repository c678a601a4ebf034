"""Traces of PyTorch's profiler: figures to the nanosecond, what each row says, and every way in which a file can be bad."""

import gzip
import json
import random
from pathlib import Path

import pytest

import neuronprof
from neuronprof.cli import main
from neuronprof.errors import NeuronprofError
from neuronprof.exchange import glance, kineto_trace
from neuronprof.exchange.nanoseconds import nanoseconds

FILES = Path(__file__).parent / "kineto"
EXPECTED = json.loads((FILES / "expected.json").read_text())
FIGURES = {"gpu_events": "events", "total_ns": "total_ns", "busy_ns": "busy_ns", "idle_ns": "idle_ns", "compute_union_ns": "compute_ns",
           "comm_union_ns": "communication_ns", "mem_union_ns": "memory_ns", "comm_comp_overlap_ns": "overlapped_ns",
           "comm_exposed_ns": "exposed_ns"}  # fmt: skip


def event(category, name, ts, dur, tid=1, **args):
    return {"ph": "X", "cat": category, "name": name, "pid": 0, "tid": tid, "ts": ts, "dur": dur, "args": args}


def written(path, events, **header):
    path.write_text(json.dumps({**header, "traceEvents": events}))
    return path


def imported(tmp_path, *files):
    kineto_trace.write(files, tmp_path / "trace.parquet")
    return neuronprof.load(tmp_path / "trace.parquet")


# A step: the host launches a matmul in fc1 and its gradient in the backward thread, a copy and an all-reduce.
#   host 1   ProfilerStep#7 0-100: [Net [fc1 [aten::linear [aten::mm  cudaLaunchKernel 12-14]]]]
#   host 2   [evaluate_function: MmBackward0 [aten::mm cudaLaunchKernel 42-43]]
#   stream 7           gemm 20-30      gemm 45-60     Memcpy 60-61
#   stream 9                                    nccl 50-80
STEP = [
    event("user_annotation", "ProfilerStep#7", 0, 100),
    event("python_function", "nn.Module: Net_0", 1, 30),
    event("python_function", "home/me/train.py(41): forward", 2, 28),
    event("python_function", "nn.Module: Linear_1", 3, 20),
    event("cpu_op", "aten::linear", 10, 10, **{"Sequence number": 5}),
    event("cpu_op", "aten::mm", 11, 8),
    event("cuda_runtime", "cudaLaunchKernel", 12, 2, correlation=1),
    event("cpu_op", "autograd::engine::evaluate_function: MmBackward0", 40, 10, tid=2, **{"Sequence number": 5}),
    event("cpu_op", "aten::mm", 41, 8, tid=2),
    event("cuda_runtime", "cudaLaunchKernel", 42, 1, tid=2, correlation=2),
    event("kernel", "sm80_gemm", 20, 10, tid=7, stream=7, correlation=1),
    event("kernel", "sm80_gemm", 45, 15, tid=7, stream=7, correlation=2),
    event("gpu_memcpy", "Memcpy DtoD", 60, 1, tid=7, stream=7, bytes=64),
    event("kernel", "ncclDevKernel_AllReduce_Sum_bf16_RING_LL", 50, 30, tid=9, stream=9, dtype="BFloat16",
          **{"Collective name": "allreduce", "In msg nelems": 100, "Out msg nelems": 100, "Process Group Name": "dp",
             "Process Group Ranks": "[0, 1, 2, 5]"}),
]  # fmt: skip


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_figures_of_real_traces_are_exact(tmp_path, name):
    want = {ours: EXPECTED[name][theirs] for theirs, ours in FIGURES.items()}
    read = kineto_trace.write([FILES / name], tmp_path / "trace.parquet").breakdowns
    glanced = glance.breakdowns([FILES / name])
    assert [{n: getattr(b, n) for n in want} for b in (*read, *glanced)] == [want, want]


def test_microseconds_are_read_to_the_last_digit():
    assert [nanoseconds(t) for t in ("1712195495505582.988", 7, "68.0", "1e3", "-0.5", "x", None, 1.5)] == [
        1712195495505582988, 7000, 68000, 1_000_000, -500, None, None, 1500,
    ]  # fmt: skip


def test_every_row_knows_who_launched_it(tmp_path):
    trace = imported(tmp_path, written(tmp_path / "a.json", STEP))
    events = trace.events
    rows = events[events["engine"] != "host"][
        ["engine", "queue", "name", "op_name", "layer", "phase", "source", "start_ts", "duration_ns", "bytes"]
    ]
    net = "Net_0.Linear_1"
    assert rows.astype(object).where(rows.notna(), "").to_numpy().tolist() == [
        ["tensor", 7, "sm80_gemm", "aten::mm", net, "forward", "train.py:41", 20_000, 10_000, 0],
        ["tensor", 7, "sm80_gemm", "aten::mm", net, "backward", "", 45_000, 15_000, 0],
        ["dma", 7, "Memcpy DtoD", "Memcpy DtoD", "", "", "", 60_000, 1_000, 64],
        ["cc", 9, "AllReduce", "ncclDevKernel_AllReduce_Sum_bf16_RING_LL", "", "", "", 50_000, 30_000, 200],
    ]
    assert trace.metadata["segments"] == [{"kind": "step", "step": 0, "start_ts": 0, "end_ts": 100_000}]
    (collective,) = events[events["engine"] == "cc"].to_dict("records")
    assert (collective["replica_group"], collective["algorithm"], collective["dtype"]) == (
        "dp:0-2,5",
        "ring",
        "bfloat16",
    )


def test_what_let_a_kernel_start(tmp_path):
    """The first gemm starts because of its launch, the second too (its stream was free at 30), the copy because the second ended."""
    events = imported(tmp_path, written(tmp_path / "a.json", STEP)).events.set_index("id", drop=False)
    device = events[events["engine"].isin(["tensor", "dma"])].sort_values("start_ts")
    assert [events.loc[i, "name"] for i in device["released_by"]] == [
        "cudaLaunchKernel",
        "cudaLaunchKernel",
        "sm80_gemm",
    ]
    by_deps = [[events.loc[row["id"] - d, "start_ts"] for d in row["deps"]] for row in device.to_dict("records")]
    assert by_deps == [[12_000], [42_000, 20_000], [45_000]]


def test_clocks_are_brought_together_by_the_ends_of_collectives(tmp_path, capsys):
    """Rank 1's clock is 500 us ahead; its three all-reduces end 500, 503 and 499 us after rank 0's by its clock."""
    files = []
    for rank, ends in enumerate([(100, 200, 300), (600, 703, 799)]):
        kernels = [event("kernel", "ncclKernel_AllReduce_RING", end - 10, 10, stream=1) for end in ends]
        files.append(written(tmp_path / f"r{rank}.json", kernels, distributedInfo={"rank": rank}))
    assert main(["import", *map(str, files), "-o", str(tmp_path / "t.parquet")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "clock of rank 1: moved by -500 us, error 1 us (at most 3 us, 3 shared collectives)"
    )
    events = neuronprof.load(tmp_path / "t.parquet").events
    assert events[events["rank"] == 1]["start_ts"].tolist() == [0, 103_000, 199_000]
    assert events["collective"].tolist() == [0, 1, 2, 0, 1, 2]


def test_a_trace_of_the_cpu_alone(tmp_path):
    trace = imported(tmp_path, written(tmp_path / "cpu.json", [event("cpu_op", "aten::mm", "1.5", "2.25")]))
    assert trace.events[["engine", "start_ts", "duration_ns"]].to_numpy().tolist() == [["host", 0, 2250]]
    assert "Step time" in str(trace.summary())


def test_fields_that_are_missing_or_odd_do_no_harm(tmp_path):
    odd = [
        {"ph": "X", "cat": "kernel", "ts": 1},
        {"ph": "X", "cat": "kernel", "name": "k", "ts": "soon", "dur": 1},
        {"ph": "X", "cat": "kernel", "name": "k", "ts": 3, "dur": -4, "args": [], "tid": "stream 7"},
        {
            "ph": "X",
            "cat": "kernel",
            "name": "k",
            "ts": 5,
            "dur": 1,
            "args": {"stream": "0x7", "correlation": None, "bytes": "8"},
        },
        {"ph": "X", "cat": ["kernel"], "name": "k", "ts": 5},
        {"ph": "X", "cat": "Kernel", "name": "k", "ts": 8, "dur": 1},
        ["not", "an", "event"],
        None,
    ]
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(odd))
    result = kineto_trace.write([path], tmp_path / "trace.parquet")
    assert (result.breakdowns[0].events, result.breakdowns[0].total_ns, result.skipped) == (4, 8000, 1)


BAD = {
    "empty": (b"", "is empty"),
    "foreign": (b"\x89PNG\r\n\x1a\n" + bytes(64), "is not a JSON trace"),
    "text": (b"hello", "is not a JSON trace"),
    "other json": (b'{"a": 1}', "has no traceEvents"),
    "other trace": (
        b'{"traceEvents": [{"ph": "X", "name": "chrome", "ts": 1, "dur": 1}]}',
        "no operators and no kernels",
    ),
    "damaged": (b'{"traceEvents": [{"ph": "X"}, {"ph" "X"}]}', "is damaged"),
    "damaged gzip": (b"\x1f\x8b" + bytes(40), "is damaged"),
    "cut gzip": (gzip.compress(json.dumps({"traceEvents": STEP}).encode())[:-30], "is cut off"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("output", [[], ["-o", "t.parquet"]])
def test_a_bad_file_is_one_sentence(tmp_path, capsys, monkeypatch, name, output):
    monkeypatch.chdir(tmp_path)
    content, sentence = BAD[name]
    Path("bad.json").write_bytes(content)
    assert main(["import", "bad.json", *output]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("neuronprof: bad.json ")
    assert sentence in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.json"]


def test_a_time_that_is_none_makes_no_trace_of_centuries(tmp_path, capsys):
    file = written(tmp_path / "a.json", [event("cpu_op", "mm", ts, 1) for ts in (1, 4_000_000_000_000_000)])
    assert main(["import", str(file), "-o", str(tmp_path / "t.parquet")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"neuronprof: {file} is damaged: its events are 127 years apart; export it again."
    ]
    assert not (tmp_path / "t.parquet").exists()


def test_a_file_cut_anywhere_is_cut_off_or_damaged(tmp_path):
    """Never a traceback, never figures of half a trace."""
    text = json.dumps({"schemaVersion": 1, "traceEvents": STEP, "displayTimeUnit": "ms"})
    for length in random.Random(0).sample(range(1, len(text) - 1), 200):
        (tmp_path / "cut.json").write_text(text[:length])
        with pytest.raises(NeuronprofError, match=r"is cut off|is damaged"):
            glance.breakdowns([tmp_path / "cut.json"])


def test_two_files_of_one_rank_are_refused(tmp_path, capsys):
    file = str(FILES / "mi250.json.gz")
    stated = [written(tmp_path / name, STEP, distributedInfo={"rank": 3}) for name in ("a.json", "b.json")]
    assert main(["import", *map(str, stated)]) == 2
    assert "2 files are of rank 3" in capsys.readouterr().err
    assert main(["import", file, str(tmp_path / "none.json")]) == 2
    assert "There is no file" in capsys.readouterr().err


def test_a_rank_stands_in_the_name_of_the_file_if_nowhere_else(tmp_path, capsys):
    files = [written(tmp_path / name, STEP) for name in ("job_rank5.json", "a.json", "b.json")]
    assert main(["import", *map(str, files), "--json"]) == 0
    assert [r["rank"] for r in json.loads(capsys.readouterr().out)["ranks"]] == [0, 1, 5]


# What profilers wrote, and what is meant.
NOT_QUITE_JSON = {
    "a Windows path": (
        r'"name": "C:\Users\new\train.py(41): forward", "cat": "cpu_op"',
        "C:\\Users\\new\\train.py(41): forward",
    ),
    "quotes in a name": (r'"name": "{"device": "cpu"}(12): run", "cat": "cpu_op"', '{"device": "cpu"}(12): run'),
    "an escape and a quote": (r'"name": "say \"a" b", "cat": "cpu_op"', 'say "a" b'),
    "a path elsewhere": (r'"name": "mm", "cat": "cpu_op", "args": {"file": "D:\x.py"}', "mm"),
    "no number": (r'"name": "mm", "cat": "cpu_op", "args": {"GB/s": inf, "%": [-nan, 1], "SM": N/A}', "mm"),
    "nothing": (r'"name": "mm", "cat": "cpu_op", "args": {"Device": , "rank": 1}', "mm"),
    "a comma too many": (r'"name": "a, ]", "cat": "cpu_op", "args": {"dims": [1, 2, ], }', "a, ]"),
    "a control character": ('"name": "a\nb", "cat": "cpu_op"', "a\nb"),
}


@pytest.mark.parametrize("case", NOT_QUITE_JSON)
@pytest.mark.parametrize(
    "shape", ['{"schemaVersion": 1, "traceEvents": [%s], "traceName": "C:\\Users\\a.json"}', "[%s]"]
)
def test_what_is_not_quite_json_is_read_as_it_is_meant(tmp_path, case, shape):
    """The event itself, and the one before and after it."""
    written, name = NOT_QUITE_JSON[case]
    plain = '{"ph": "X", "cat": "cpu_op", "name": "%s", "pid": 1, "tid": 1, "ts": %d, "dur": 1}'
    odd = '{"ph": "X", ' + written + ', "pid": 1, "tid": 1, "ts": 2, "dur": 1}'
    path = tmp_path / "odd.json"
    path.write_text(shape % ",\n".join([plain % ("first", 1), odd, plain % ("last", 3)]))
    assert imported(tmp_path, path).events["name"].tolist() == ["first", name, "last"]


def test_the_profiler_of_autograd_names_tracks_instead_of_categories(tmp_path):
    tracks = [
        {"ph": "X", "name": "mm", "ts": i, "dur": 1, "tid": 1, "pid": f"{of} functions"}
        for i, of in enumerate(["CPU", "CUDA"])
    ]
    events = imported(tmp_path, written(tmp_path / "a.json", tracks)).events
    assert events["engine"].tolist() == ["host", "vector"]


@pytest.mark.parametrize("vendor", ["cuda", "hip", "xpu", "mtia", "privateuse1"])
def test_a_launch_is_found_whatever_the_device(tmp_path, vendor):
    launch = event(f"{vendor}_runtime", "launch", 1, 1, correlation=3)
    events = imported(
        tmp_path, written(tmp_path / "a.json", [launch, event("kernel", "k", 5, 1, correlation=3)])
    ).events
    (kernel,) = events[events["engine"] == "vector"].to_dict("records")
    assert events.set_index("id").loc[kernel["released_by"], "name"] == "launch"
