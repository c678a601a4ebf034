"""Parquet files that say they are traces and are not quite: each is one sentence, exit code 2, and no traceback."""

import json

import picture
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neuronprof.cli import main

PICTURE = """
tensor aa..bb
dma    ..cc..
"""


@pytest.fixture
def trace(tmp_path):
    return picture.write(tmp_path / "trace.parquet", picture.rows(PICTURE), [picture.segment(0, 6)])


def changed(path, columns=None, metadata=None, operators=b""):
    """The trace with other columns, and with other entries in its metadata."""
    file = pq.ParquetFile(path)
    table, kept = file.read(), file.metadata.metadata
    for name, values in (columns or {}).items():
        table = table.set_column(table.column_names.index(name), name, values)
    about = {**json.loads(kept[b"neuronprof"]), **(metadata or {})}
    kept |= {b"neuronprof": json.dumps(about), b"neuronprof.operators": operators}
    pq.write_table(table.replace_schema_metadata(kept), path)
    return path


def refused(path, capsys):
    assert main(["analyze", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix(f"neuronprof: {path} ")


COLUMNS = {
    "a duration below zero": ({"duration_ns": pa.array([2, -2, 2])}, "is damaged: duration_ns goes from -2 to 2; record it again."),
    "a time after all times": (
        {"start_ts": pa.array([0, 1, 2**62])},
        f"is damaged: start_ts goes from 0 to {2**62}; record it again.",
    ),
    "a rank below zero": ({"rank": pa.array([0, -1, 0], pa.int32())}, "is damaged: rank goes from -1 to 0; record it again."),
    "no rank": ({"rank": pa.array([0, None, 0], pa.int32())}, "is damaged: events without rank; record it again."),
    "no engine": ({"engine": pa.array(["dma", None, "dma"])}, "is damaged: events without engine; record it again."),
    "a DMA queue below zero": ({"queue": pa.array([0, 0, -3], pa.int16())}, "is damaged: queue goes from -3 to 0; record it again."),
    "more bytes than there are": (
        {"bytes": pa.array([0, 0, 2**63 - 1])},
        f"is damaged: bytes goes from 0 to {2**63 - 1}; record it again.",
    ),
    "texts for numbers": (
        {"rank": pa.array(["0", "1", "2"])},
        "is not a trace that can be read: its column rank holds string, not int32.",
    ),
    "numbers for texts": (
        {"layer": pa.array([0, 1, 2])},
        "is not a trace that can be read: its column layer holds int64, not dictionary<values=string, indices=int32, ordered=0>.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COLUMNS)
def test_columns_that_no_trace_has(trace, capsys, case):
    columns, sentence = COLUMNS[case]
    assert refused(changed(trace, columns), capsys) == sentence


METADATA = {
    "a list for a table": ({"machine": []}, "'machine' is of type list"),
    "an inner one": ({"machine": {"rank": {"peak_flops": 1}}}, "'machine.rank.peak_flops' is of type int"),
    "a job without ranks": ({"world_size": -1}, "'world_size' is -1"),
    "a job of all the world": ({"world_size": 10**9}, "'world_size' is 1000000000"),
    "segments without time": ({"segments": [{"step": 0}]}, 'a segment is {"step": 0}'),
    "a segment backwards": (
        {"segments": [{"step": 0, "start_ts": 6, "end_ts": 0}]},
        'a segment is {"step": 0, "start_ts": 6, "end_ts": 0}',
    ),
}


@pytest.mark.parametrize("case", METADATA)
def test_metadata_that_no_trace_has(trace, capsys, case):
    metadata, wrong = METADATA[case]
    sentence = f"has unreadable neuronprof metadata: {wrong}; record it again."
    assert refused(changed(trace, metadata=metadata), capsys) == sentence


@pytest.mark.parametrize("stream", [b"not base64", b"QUJDRA=="])
def test_a_damaged_table_of_operators(trace, capsys, stream):
    path = changed(trace, operators=stream)
    assert refused(path, capsys) == "is damaged and cannot be read; record it again."


def test_operands_that_are_none(trace, capsys):
    path = changed(trace, {"operands": pa.array([None, None, "dma bytes=much"])})
    assert main(["analyze", str(path)]) == 2
    assert capsys.readouterr().err == (
        "neuronprof: The trace has 'dma bytes=much' for a formula and its operands; record it again.\n"
    )


def test_what_is_null_counts_as_unknown(trace, capsys):
    path = changed(trace, metadata=dict.fromkeys(("machine", "mesh", "pipeline", "formulas", "given", "world_size")))
    assert main(["analyze", str(path)]) == 0
    assert "Step time" in capsys.readouterr().out


WRITES = {
    "view": ["view", "IN", "-o", "IN", "--no-browser"],
    "diff": ["diff", "IN", "IN", "-o", "IN"],
    "check": ["check", "IN", "--max", "step_time=1ns", "--junit", "IN"],
    "export": ["export", "IN", "-o", "IN"],
    "import": ["import", "IN", "-o", "IN"],
}


@pytest.mark.parametrize("verb", WRITES)
def test_what_is_read_is_not_written_over(trace, capsys, monkeypatch, verb):
    monkeypatch.chdir(trace.parent)
    path = trace.rename(trace.with_name("in.html"))
    before = path.read_bytes()
    assert main([str(path) if word == "IN" else word for word in WRITES[verb]]) == 2
    assert capsys.readouterr().err == f"neuronprof: {path} is read and would be written over; choose another output.\n"
    assert path.read_bytes() == before


def test_a_full_disk_leaves_nothing_behind(trace, tmp_path, capsys, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    source = tmp_path / "in.json"
    source.write_text('[{"ph": "X", "cat": "cpu_op", "name": "mm", "ts": 1, "dur": 1}]')
    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    out = tmp_path / "out.parquet"
    assert main(["import", str(source), "-o", str(out)]) == 2
    assert capsys.readouterr().err == (
        f"neuronprof: Cannot write the trace {out}: No space left on device; choose another path with -o.\n"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.json", "trace.parquet"]
