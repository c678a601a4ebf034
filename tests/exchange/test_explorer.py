"""Neuron Explorer's tables: out and in again, and versions that name things otherwise."""

from decimal import Decimal

import picture
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import neuronprof
from neuronprof.cli import main

PICTURE = """
tensor ..aaaa..bb
dma    aaaa......
cc     ......CCCC
host   h.........
rank 1
tensor .aaa......
"""
ABOUT = {"a": {"op_name": "aten.mm", "layer": "fc", "source": "train.py:3", "flops": 8, "bytes": 64}, "C": {"collective": 5, "bytes": 32,
         "algorithm": "ring", "replica_group": "dp:0-1", "dtype": "bfloat16"}}  # fmt: skip
KEPT = [
    "rank",
    "engine",
    "queue",
    "kind",
    "name",
    "start_ts",
    "duration_ns",
    "bytes",
    "flops",
    "layer",
    "source",
    "collective",
    "algorithm",
]


@pytest.fixture
def trace(tmp_path):
    events = picture.rows(PICTURE, ABOUT)
    for number, event in enumerate(events):
        event |= {"id": number, "released_by": -1}
    events[0]["released_by"] = 2  # the first matmul waits for the load
    return str(picture.write(tmp_path / "trace.parquet", events, [picture.segment(0, 10)]))


def rows(path, columns=KEPT):
    events = neuronprof.load(path).events
    events = events[events["engine"] != "host"].sort_values(["rank", "start_ts", "engine"])
    return [
        tuple("" if v is None or v != v else v for v in row)
        for row in events[columns].astype(object).to_numpy().tolist()
    ]


def test_what_is_written_is_read_again(trace, tmp_path, capsys):
    assert main(["export", trace, "-o", str(tmp_path / "tables")]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["no table has a place for: 1 events of host"]
    assert sorted(p.name for p in (tmp_path / "tables" / "rank-0").iterdir()) == [
        "CcOp.parquet", "DmaPacketAggregated.parquet", "Flow.parquet", "Instruction.parquet", "Metadata.parquet", "SchemaFields.parquet",
    ]  # fmt: skip
    assert main(["import", str(tmp_path / "tables"), "-o", str(tmp_path / "again.parquet")]) == 0
    again = tmp_path / "again.parquet"
    assert [(r[0], *r[1:7]) for r in rows(again)] == [(r[0], *r[1:7]) for r in rows(trace)]
    compared = [(a, b) for a, b in zip(rows(again), rows(trace), strict=True) if b[1] != "tensor"]
    assert [a[7] for a, _ in compared] == [b[7] for _, b in compared]  # bytes: instructions have none in the tables
    assert [a[8:11] for a in rows(again) if a[1] == "tensor"] == [b[8:11] for b in rows(trace) if b[1] == "tensor"]
    assert [a[11:] for a in rows(again) if a[1] == "cc"] == [(5, "ring")]
    events = neuronprof.load(again).events.set_index("id")
    assert events.loc[events["released_by"] >= 0, "name"].tolist() == ["MATMUL"]
    assert events.loc[events["released_by"].max(), "name"] == "DMA_LOAD"


def test_another_version_with_other_names_units_and_parts(tmp_path):
    """A table in two parts, fields in CamelCase, times in microseconds as SchemaFields says, columns that nobody knows."""
    folder = tmp_path / "profile"
    folder.mkdir()
    for part, start in enumerate([3, 10]):
        table = pa.table(
            {"StartTs": [start], "EndTs": [start + 2], "Engine": ["PE"], "Opcode": ["MATMUL"], "Novelty": [1.5]}
        )
        pq.write_table(table, folder / f"Instruction_{part}.parquet")
    fields = pa.table(
        {"table_name": ["Instruction"] * 2, "field_name": ["StartTs", "EndTs"], "field_unit": ["microseconds"] * 2}
    )
    pq.write_table(fields, folder / "SchemaFields.parquet")
    assert main(["import", str(folder), "-o", str(tmp_path / "t.parquet")]) == 0
    assert rows(tmp_path / "t.parquet", ["engine", "name", "start_ts", "duration_ns"]) == [
        ("tensor", "MATMUL", 0, 2000),
        ("tensor", "MATMUL", 7000, 2000),
    ]


def test_bad_folders_are_one_sentence(tmp_path, capsys):
    empty, broken, other = (tmp_path / name for name in ("empty", "broken", "other"))
    for folder in (empty, broken, other):
        folder.mkdir()
    (broken / "Instruction.parquet").write_bytes(b"PAR1 not really")
    pq.write_table(pa.table({"what": [1]}), other / "Instruction.parquet")
    for folder, sentence in (
        (empty, "without tables of Neuron Explorer"),
        (broken, "is damaged"),
        (other, "has no start and end"),
    ):
        assert main(["import", str(folder), "-o", str(tmp_path / "t.parquet")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert sentence in line
    assert not (tmp_path / "t.parquet").exists()


def test_a_folder_that_exists_is_not_overwritten(trace, tmp_path, capsys):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "mine").write_text("")
    assert main(["export", trace, "-o", str(tmp_path / "tables")]) == 2
    assert "exists; give the name of a folder that does not" in capsys.readouterr().err


def test_columns_of_other_types_are_read_as_far_as_they_go(tmp_path):
    """Starts are timestamps, durations decimals, opcodes bytes that are no text, ids lists; a table of flows lacks a column."""
    folder = tmp_path / "profile"
    folder.mkdir()
    table = pa.table({
        "start_ts": pa.array([1, 2], pa.timestamp("us")), "duration_ns": pa.array([Decimal("5.0"), None]), "engine": ["Vector", "new"],
        "opcode": [b"\xff", b"\xfe"], "id": [[1], [2]], "raw_flops": pa.array([float("nan"), 7.0]),
    })  # fmt: skip
    pq.write_table(table, folder / "Instruction.parquet")
    pq.write_table(pa.table({"in_id": [1], "in_table": ["Instruction"]}), folder / "Flow.parquet")
    assert main(["import", str(folder), "-o", str(tmp_path / "t.parquet")]) == 0
    assert rows(tmp_path / "t.parquet", ["engine", "name", "start_ts", "duration_ns", "flops"]) == [
        ("vector", "", 0, 5, 0),
        ("gpsimd", "", 1000, 0, 7),
    ]
