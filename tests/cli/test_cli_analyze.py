import json
from pathlib import Path

import picture
import pytest

from neuronprof import units
from neuronprof.analyze.registry import ANALYZERS
from neuronprof.cli import main

# Two ranks, two steps of 10 ns and 6 ns of evaluation between them.
PICTURE = """
tensor .aaaaaa...ee..cccccc....
dma    aa......................
rank 1
tensor .aaaaaa.........cccccc..
cc     ......~RR...............
"""
ABOUT = {
    "a": {
        "op_name": "aten.mm",
        "layer": "blocks.0.fc",
        "source": "train.py:7",
        "dtype": "float32",
        "flops": 500,
        "bytes": 10,
    },
    "c": {
        "op_name": "aten.mm",
        "layer": "blocks.1.fc",
        "source": "train.py:7",
        "dtype": "float32",
        "flops": 500,
        "step": 1,
    },
    "e": {"op_name": "aten.mm", "layer": "fc", "step": -1},
    "R": {"op_name": "c10d.allreduce_", "bytes": 20, "replica_group": "dp:0-1", "algorithm": "ring"},
}
SEGMENTS = [
    picture.segment(0, 10, model_flops=400),
    picture.segment(10, 14, -1),
    picture.segment(14, 24, step=1, model_flops=400),
]


def recorded(path):
    return picture.write(
        path, picture.rows(PICTURE, ABOUT) + picture.levels("3333333377", "weights") + picture.levels("..2222", "activations"), SEGMENTS,
        script="train.py", world_size=8, notes={"loss is 1.0": 2}, unknown_operators={"my.op": 3},
        machine={"title": "AWS Trainium4 (simulated)", "rank": picture.MACHINE},
    )  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return str(recorded(tmp_path / "trace.parquet"))


def test_the_summary_says_what_costs_most(path, capsys):
    # Of 40 ns (2 ranks, 2 steps of 10) tensor has 4 * 6; hbm 1 (0-1 of rank 0); neuronlink 2 (7-9 of rank 1, whose wait at 6-7 is hidden);
    # idle 3 + 4 + 1 + 2 = 10 at the ends of steps and 1 + 2 = 3 before products of rank 1. All divided by 4: a rank's mean step.
    assert main(["analyze", path, "communication_by_rank"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "train.py on AWS Trainium4 (simulated): 2 steps, 2 of 8 ranks, 10 events",
        "",
        "Step time  10 ns",
        "  tensor           6 ns   60.0 %  ########################",
        "  hbm           0.25 ns    2.5 %  #",
        "  neuronlink     0.5 ns    5.0 %  ##",
        "  idle          3.25 ns   32.5 %  #############",
        "Evaluation between steps: 4 ns, not counted above.",
        "",
        "What costs most time",
        "  1. 6 ns a step, 60.0 %: tensor engine in aten.mm, blocks.*.fc (2 layers), train.py:7",
        "  2. 2.5 ns a step, 25.0 %: idle",
        "  3. 0.75 ns a step, 7.5 %: idle before aten.mm, blocks.*.fc (2 layers), train.py:7",
        "",
        "MFU 4.0 %, HFU 5.0 %, MBU unknown",
        "Engines busy: tensor 60.0 %, dma 5.0 %, cc 5.0 %",
        "HBM peak 7 B of 1000 B (0.7 %): weights 7 B",
        "Exposed communication 0.5 ns a step",
        "",
        "Softened to record: loss is 1.0 (2)",
        "Operators without a cost rule, costed by their bytes: my.op (3)",
        "",
        "== communication_by_rank",
        "rank  bytes  count  transfer_ns  wait_ns  overlapped_ns  exposed_ns",
        "   1   20 B      1         2 ns     1 ns           0 ns        2 ns",
    ]


def test_tables_print_their_sentence_and_count_what_they_leave_out(path, capsys):
    assert main(["analyze", path, "utilization", "--top", "2"]) == 0
    text = capsys.readouterr().out
    assert text[text.index("== utilization\n") :].splitlines()[:6] == [
        "== utilization",
        "Share of the steps' time in which each engine had at least one event running, by the union of their intervals.",
        "engine  busy_ns  window_ns    busy",
        "tensor    24 ns      40 ns  60.0 %",
        "vector     0 ns      40 ns   0.0 %",
        "... and 9 more rows",
    ]
    assert "== utilization_by_step" in text
    assert "== memory" not in text


def test_without_names_the_main_tables_are_printed_that_have_rows(capsys):
    # one rank, so no communication
    assert main(["analyze", str(Path(__file__).parents[2] / "sample_traces/mlp.parquet")]) == 0
    headings = [line[3:] for line in capsys.readouterr().out.splitlines() if line.startswith("== ")]
    assert headings == [
        "bottlenecks_by_operator", "utilization", "underused", "pe_array", "movable", "roofline", "roofline_steps", "memory", "on_chip",
    ]  # fmt: skip


def test_json_is_one_object(path, capsys):
    assert main(["analyze", path, "bottlenecks", "roofline_steps", "--json", "--top", "3"]) == 0
    engines = dict.fromkeys(
        ["tensor", "vector", "scalar", "gpsimd", "sync", "dma", "cc", "hbm", "neuronlink", "efa", "host"], 0.0
    )
    steps = {"step_time_ns": 10, "model_flops": 400, "hardware_flops": 500.0, "model_bytes": 0, "peak_dtype": "bf16", "mfu": 0.04,
             "hfu": 0.05, "mbu": None, "ridge": 10.0}  # fmt: skip
    idle = {"op_name": "", "layer": "", "phase": "", "source": ""}
    mm = {"op_name": "aten.mm", "phase": "", "source": "train.py:7"}
    assert json.loads(capsys.readouterr().out) == {
        "trace": path,
        "steps": 2,
        "step_time_ns": 10,
        "mfu": 0.04,
        "engines": engines | {"tensor": 0.6, "dma": 0.05, "cc": 0.05},
        "left_out": [],
        "analyses": {
            "bottlenecks": [
                {"step": -1, "rank": 0, "class": "tensor", "time_ns": 2, "share": 0.5},
                {"step": -1, "rank": 0, "class": "vector", "time_ns": 0, "share": 0.0},
                {"step": -1, "rank": 0, "class": "scalar", "time_ns": 0, "share": 0.0},
            ],
            "bottlenecks_by_layer": [
                {"layer": "blocks.0.fc", "class": "tensor", "time_ns": 12, "per_step_ns": 3.0, "share": 0.3},
                {"layer": "blocks.1.fc", "class": "tensor", "time_ns": 12, "per_step_ns": 3.0, "share": 0.3},
                {"layer": "", "class": "idle", "time_ns": 10, "per_step_ns": 2.5, "share": 0.25},
            ],
            "bottlenecks_by_operator": [
                {"class": "tensor", **mm, "layer": "blocks.0.fc", "time_ns": 12, "per_step_ns": 3.0, "share": 0.3},
                {"class": "tensor", **mm, "layer": "blocks.1.fc", "time_ns": 12, "per_step_ns": 3.0, "share": 0.3},
                {"class": "idle", **idle, "time_ns": 10, "per_step_ns": 2.5, "share": 0.25},
            ],
            "bottlenecks_by_region": [],
            "roofline_steps": [
                steps | {"step": -1, "step_time_ns": 4, "model_flops": 0, "hardware_flops": 0.0, "mfu": None, "hfu": 0.0,
                         "moved_bytes": 0.0, "hbm_share": 0.0, "intensity": None},
                steps | {"step": 0, "moved_bytes": 5.0, "hbm_share": 0.005, "intensity": 100.0},
                steps | {"step": 1, "moved_bytes": 0.0, "hbm_share": 0.0, "intensity": None},
            ],
        },
    }  # fmt: skip


def test_json_without_names_has_every_table_and_no_nan(path, tmp_path, capsys):
    for trace in (path, str(picture.write(tmp_path / "empty", []))):
        assert main(["analyze", trace, "--json"]) == 0
        found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert list(found["analyses"]) == ["advice", *(table for analyzer in ANALYZERS for table in analyzer.tables)]
        assert list(found["engines"]) == [
            "tensor",
            "vector",
            "scalar",
            "gpsimd",
            "sync",
            "dma",
            "cc",
            "hbm",
            "neuronlink",
            "efa",
            "host",
        ]
    assert (found["steps"], found["step_time_ns"], found["mfu"]) == (0, None, None)


def test_a_trace_without_steps_says_so(tmp_path, capsys):
    assert main(["analyze", str(picture.write(tmp_path / "empty", []))]) == 0
    assert capsys.readouterr().out.splitlines()[2] == "No training step in this trace."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.parquet"], "neuronprof: There is no trace missing.parquet; check the path.\n"),
        (
            ["TRACE", "speed"],
            "neuronprof: There is no analysis 'speed'; choose from utilization, utilization_by_rank, ",
        ),
    ],
)
def test_mistakes_are_one_sentence(path, capsys, arguments, message):
    assert main(["analyze", *(path if a == "TRACE" else a for a in arguments)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(message)


@pytest.mark.parametrize("top", ["0", "-1", "many"])
def test_top_is_a_number_of_rows(path, capsys, top):
    with pytest.raises(SystemExit, match="2"):
        main(["analyze", path, f"--top={top}"])
    assert f"'{top}' is not a whole number above 0; write 1 or more." in capsys.readouterr().err


def test_a_partial_trace_is_told(tmp_path, capsys):
    from neuronprof.trace.writer import TraceWriter

    with TraceWriter(tmp_path / "t", rows_per_part=1) as writer:
        writer.write(
            {"engine": "tensor", "kind": "compute", "name": "MATMUL", "start_ts": [0], "duration_ns": [2 * 10**6]}
        )
    assert main(["analyze", f"{tmp_path}/t.partial", "memory_by_rank"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path}/t.partial: 1 step, 1 rank, 1 event (the recording did not end)"
    assert lines[2] == f"Step time  {units.time(2e6)}"
    assert lines[-2:] == ["rank  step  peak_ts  peak_bytes  capacity_bytes  capacity_share", "(no rows)"]
