import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import picture
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronprof.errors import NeuronprofError
from neuronprof.trace import schema
from neuronprof.trace.reader import open_trace
from neuronprof.trace.writer import TraceWriter


def batch(start, chip=0, rows=3, **columns):
    """Events at start, start + 10, ... on one engine."""
    return {
        "chip": chip, "engine": "tensor", "kind": "compute", "name": "MATMUL", "start_ts": start + 10 * np.arange(rows),
        "duration_ns": np.full(rows, 5), **columns,
    }  # fmt: skip


def write(path, *batches, rows_per_part=100, metadata=None, operators=None):
    with TraceWriter(path, rows_per_part=rows_per_part) as writer:
        for columns in batches:
            writer.write(columns)
        return writer.close(metadata or {"script": "train.py"}, operators)


def starts(path):
    return open_trace(path).columns(["start_ts"])["start_ts"].to_pylist()


# Round trip


def test_every_column_comes_back(tmp_path):
    given = {
        "id": np.array([7, 9]), "step": np.array([0, -1]), "chip": 3, "core": np.array([1, 1]), "rank": 13,
        "engine": (np.array([1, 0]), ["dma", "tensor"]), "queue": np.array([0, 2]), "kind": ["compute", "transfer"],
        "name": pa.array(["MATMUL", "DMA_LOAD"]), "start_ts": np.array([5, 6]), "duration_ns": np.array([2, 3]),
        "wait_ns": np.array([1, 0]), "wait_for": (np.array([0, -1]), ["data"]), "op": np.array([4, -1]), "op_name": ["aten.mm", None],
        "layer": pa.array(["fc1", "fc1"]).dictionary_encode(), "phase": "forward", "source": "train.py:3", "bytes": np.array([0, 64]),
        "flops": np.array([128, 0]), "dtype": "bfloat16", "collective": -1, "replica_group": None, "algorithm": None,
        "released_by": np.array([-1, 7]), "deps": (np.array([0, 0, 2]), np.array([2, 5])),
        "region": [None, "loss/head"], "operands": ["matmul M=3", None],
    }  # fmt: skip
    path = write(tmp_path / "trace.parquet", given)
    expected = {
        "id": [7, 9], "step": [0, -1], "chip": [3, 3], "core": [1, 1], "rank": [13, 13], "engine": ["tensor", "dma"], "queue": [0, 2],
        "kind": ["compute", "transfer"], "name": ["MATMUL", "DMA_LOAD"], "start_ts": [5, 6], "duration_ns": [2, 3], "wait_ns": [1, 0],
        "wait_for": ["data", None], "op": [4, -1], "op_name": ["aten.mm", None], "layer": ["fc1", "fc1"], "phase": ["forward", "forward"],
        "source": ["train.py:3", "train.py:3"], "bytes": [0, 64], "flops": [128, 0], "dtype": ["bfloat16", "bfloat16"],
        "collective": [-1, -1], "replica_group": [None, None], "algorithm": [None, None], "released_by": [-1, 7], "deps": [[], [2, 5]],
        "region": [None, "loss/head"], "operands": ["matmul M=3", None],
    }  # fmt: skip
    table = open_trace(path).columns()
    assert table.to_pydict() == expected
    assert table.schema == schema.ARROW


def test_missing_columns_get_their_defaults(tmp_path):
    row = open_trace(write(tmp_path / "t", batch(0, rows=1), batch(50, rows=1))).columns().to_pylist()[1]
    assert row == {
        "id": 1, "step": 0, "chip": 0, "core": 0, "rank": 0, "engine": "tensor", "queue": 0, "kind": "compute", "name": "MATMUL",
        "start_ts": 50, "duration_ns": 5, "wait_ns": 0, "wait_for": None, "op": -1, "op_name": None, "layer": None, "phase": None,
        "source": None, "bytes": 0, "flops": 0, "dtype": None, "collective": -1, "replica_group": None, "algorithm": None,
        "released_by": -1, "deps": None, "region": None, "operands": None,
    }  # fmt: skip


def test_rows_are_sorted_by_chip_core_engine_queue_and_start(tmp_path):
    # engines sort as in terms.Engine: tensor, vector, ..., dma; ties keep their order
    first = {"chip": 1, "core": [1, 0, 0], "engine": ["tensor", "dma", "tensor"], "kind": "compute", "name": ["a", "b", "c"],
             "start_ts": np.array([0, 1, 9]), "duration_ns": np.ones(3)}  # fmt: skip
    second = {"chip": [0, 1, 1, 1], "core": 0, "engine": ["vector", "tensor", "dma", "tensor"], "queue": [0, 0, -1, 0], "kind": "compute",
              "name": ["d", "e", "f", "g"], "start_ts": np.array([5, 2, 4, 9]), "duration_ns": np.ones(4)}  # fmt: skip
    path = write(tmp_path / "t", first, second)
    assert open_trace(path).columns(["name"])["name"].to_pylist() == ["d", "e", "c", "g", "f", "b", "a"]


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(-1, 2), st.sampled_from(["dma", "hbm", "tensor"]), st.integers(0, 9)),
        min_size=1,
    )
)
def test_sorting_is_that_of_plain_python(tmp_path_factory, rows):
    order = ["tensor", "dma", "hbm"]
    chip, core, engine, start = (list(column) for column in zip(*rows, strict=True))
    path = write(
        tmp_path_factory.mktemp("t") / "t",
        {
            "chip": chip,
            "core": core,
            "engine": engine,
            "kind": "compute",
            "name": "x",
            "start_ts": np.array(start),
            "duration_ns": 1,
        },
    )
    found = [
        tuple(row.values()) for row in open_trace(path).columns(["chip", "core", "engine", "start_ts"]).to_pylist()
    ]
    assert found == sorted(rows, key=lambda r: (r[0], r[1], order.index(r[2]), r[3]))


def test_pandas_reads_file_and_folder_alike(tmp_path):
    batches = [
        batch(100 * i, chip=i % 2, engine=["tensor", "vector", "dma"][i % 3], layer=f"layer{i}") for i in range(6)
    ]
    one = pd.read_parquet(write(tmp_path / "one.parquet", *batches))
    many = pd.read_parquet(write(tmp_path / "many.parquet", *batches, rows_per_part=6))
    assert (tmp_path / "one.parquet").is_file()
    assert sorted(f.name for f in (tmp_path / "many.parquet").iterdir()) == [f"part-0000{i}.parquet" for i in range(3)]
    assert len(one) == len(many) == 18
    columns = ["chip", "engine", "layer", "start_ts", "deps"]
    by_start = [
        f[columns].astype({"engine": str, "layer": str}).sort_values("start_ts", ignore_index=True) for f in (one, many)
    ]
    pd.testing.assert_frame_equal(*by_start)
    assert str(one["layer"].dtype) == "category"


def test_the_same_events_are_the_same_bytes(tmp_path):
    batches = [
        batch(100 * i, chip=i % 2, layer=f"layer{i}", deps=(np.arange(4), np.array([1, 2, 3]))) for i in range(6)
    ]
    first, second = (write(tmp_path / name, *batches).read_bytes() for name in ("first", "second"))
    assert first == second


def test_a_row_group_holds_one_chip(tmp_path):
    path = write(tmp_path / "t", *[batch(100 * i, chip=i % 3) for i in range(9)])
    metadata = pq.ParquetFile(path).metadata
    chips = [metadata.row_group(i).column(2).statistics for i in range(metadata.num_row_groups)]
    assert [(s.min, s.max) for s in chips] == [(0, 0), (1, 1), (2, 2)]


def test_dictionaries_hold_only_words_that_occur(tmp_path):
    path = write(tmp_path / "t", batch(0, engine=(np.array([1, 1, 1]), ["vector", "tensor", "dma"])))
    assert pd.read_parquet(path)["engine"].cat.categories.tolist() == ["tensor"]


# Reading


def test_metadata_and_operators_come_back(tmp_path):
    operators = {"op": [0, 1], "op_name": ["aten.mm", "aten.add"], "flops": [10, 2]}
    metadata = {"script": "träin.py", "segments": [], "notes": {"loss": 2}}
    for rows_per_part in (100, 3):
        trace = open_trace(
            write(
                tmp_path / "t", batch(0), batch(50), rows_per_part=rows_per_part, metadata=metadata, operators=operators
            )
        )
        assert trace.metadata == {"schema_version": schema.VERSION, **metadata}
        assert trace.operators[["op", "op_name", "flops"]].to_dict("list") == operators
        assert list(trace.operators) == schema.OPERATORS.names
    stored = pq.read_metadata(sorted((tmp_path / "t").iterdir())[-1]).metadata
    assert json.loads(stored[b"neuronprof"])["script"] == "träin.py"


def test_reading_by_chip_rank_and_step(tmp_path):
    batches = [batch(100 * r + 10 * s, chip=r // 2, rank=r, step=s, rows=1) for r in range(4) for s in (0, 1, -1)]
    for rows_per_part in (100, 3):
        trace = open_trace(write(tmp_path / "t", *batches, rows_per_part=rows_per_part))
        assert (trace.num_events, trace.chips, trace.ranks, trace.steps) == (12, [0, 1], [0, 1, 2, 3], [0, 1])
        read = {
            name: sorted(trace.columns(["start_ts"], **which)["start_ts"].to_pylist())
            for name, which in {
                "chip": {"chip": 1},
                "rank": {"rank": 2},
                "step": {"rank": 0, "step": 1},
                "none": {"rank": 9},
            }.items()
        }
        assert read == {"chip": [190, 200, 210, 290, 300, 310], "rank": [190, 200, 210], "step": [10], "none": []}


def test_a_trace_without_events(tmp_path):
    trace = open_trace(write(tmp_path / "t"))
    assert (trace.num_events, trace.chips, trace.ranks, trace.steps, trace.columns().num_rows) == (0, [], [], [], 0)
    assert len(pd.read_parquet(tmp_path / "t")) == 0


# Crashes, and what stood there before


def write_and_fail(path):
    with TraceWriter(path, rows_per_part=3, metadata={"script": "train.py"}) as writer:
        for i in range(3):
            writer.write(batch(100 * i))
        raise RuntimeError


def test_an_error_leaves_the_rows_so_far_in_partial(tmp_path):
    path = write(tmp_path / "t", batch(900, rows=1))
    with pytest.raises(RuntimeError):
        write_and_fail(path)
    assert starts(path) == [900]
    partial = open_trace(f"{path}.partial")
    assert partial.metadata == {"schema_version": schema.VERSION, "script": "train.py", "partial": True}
    assert starts(f"{path}.partial") == [0, 10, 20, 100, 110, 120, 200, 210, 220]
    assert len(pd.read_parquet(f"{path}.partial")) == 9


KILLED = """
import sys
sys.path[:0] = {folders!r}
from test_trace import TraceWriter, batch
writer = TraceWriter({path!r}, rows_per_part=1000)
for i in range(10**6):
    writer.write(batch(10000 * i, rows=500))
    print(i, flush=True)
"""


def test_a_killed_process_leaves_a_readable_partial(tmp_path):
    path = str(tmp_path / "t")
    code = KILLED.format(folders=[str(p) for p in Path(__file__).parents[:2]], path=path)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        written = next(i for i, _ in enumerate(process.stdout, 1) if i == 40)
        os.kill(process.pid, signal.SIGKILL)
    trace = open_trace(f"{path}.partial")
    assert (
        trace.num_events >= 500 * written - 3000
    )  # one part fills, one is being encoded, one may just have been handed over
    assert trace.num_events % 1000 == 0
    assert trace.columns(["duration_ns"])["duration_ns"].unique().to_pylist() == [5]
    assert not Path(path).exists()
    with pytest.raises(NeuronprofError, match=r"There is no trace .*t; the recording did not end, open .*t\.partial"):
        open_trace(path)
    assert starts(write(path, batch(0))) == [0, 10, 20]
    assert not Path(f"{path}.partial").exists()


def test_abort_leaves_what_was_there(tmp_path):
    path = write(tmp_path / "t", batch(900, rows=1))
    writer = TraceWriter(path, rows_per_part=3)
    for i in range(3):
        writer.write(batch(100 * i))
    writer.abort()
    assert [f.name for f in tmp_path.iterdir()] == ["t"]
    assert starts(path) == [900]


@pytest.mark.parametrize("before", [1, 3])
@pytest.mark.parametrize("after", [1, 3])
def test_a_trace_replaces_another_only_at_the_end(tmp_path, before, after):
    path = write(tmp_path / "t", *[batch(1000 + 100 * i) for i in range(before)], rows_per_part=3)
    with TraceWriter(path, rows_per_part=3) as writer:
        for i in range(after):
            writer.write(batch(100 * i))
        assert min(starts(path)) == 1000
        writer.close({})
    assert len(starts(path)) == 3 * after
    assert min(starts(path)) == 0
    assert path.is_file() == (after == 1)
    assert [f.name for f in tmp_path.iterdir()] == ["t"]


def test_a_folder_of_the_users_is_never_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("so far")
    with pytest.raises(
        NeuronprofError, match="thesis is a folder that holds other things than a trace; choose another path"
    ):
        TraceWriter(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "so far"
    (tmp_path / "results").mkdir()
    with pytest.raises(
        NeuronprofError, match=r"results is a folder; write the trace to a file in it with -o .*results/trace\.parquet"
    ):
        TraceWriter(tmp_path / "results")
    (tmp_path / "t.partial").mkdir()
    (tmp_path / "t.partial" / "notes.txt").write_text("mine")
    with pytest.raises(NeuronprofError, match="holds other things"):
        TraceWriter(tmp_path / "t")
    assert (tmp_path / "t.partial" / "notes.txt").read_text() == "mine"


def test_a_path_that_cannot_be_written(tmp_path):
    with pytest.raises(
        NeuronprofError,
        match=r"Cannot write the trace .*missing/t: No such file or directory; choose another path with -o",
    ):
        TraceWriter(tmp_path / "missing" / "t")
    (tmp_path / "file").write_text("")
    with pytest.raises(NeuronprofError, match=r"Cannot write the trace .*: Not a directory"):
        TraceWriter(tmp_path / "file" / "t")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"colour": "red"}, "not columns of the trace: colour"),
        ({"engine": (np.array([0, 5, 0]), ["tensor"])}, "a code lies outside its dictionary"),
        ({"bytes": np.array([1, 2])}, "column bytes has 2 rows, start_ts 3"),
        ({"deps": (np.array([0, 1]), np.array([1]))}, "column deps has 1 rows, start_ts 3"),
    ],
)
def test_columns_that_make_no_batch(tmp_path, columns, message):
    with TraceWriter(tmp_path / "t") as writer, pytest.raises(ValueError, match=message):
        writer.write(batch(0, **columns))


def test_an_event_needs_a_start(tmp_path):
    with (
        TraceWriter(tmp_path / "t") as writer,
        pytest.raises(ValueError, match="an event needs the columns duration_ns, kind, start_ts"),
    ):
        writer.write({"engine": "tensor", "name": "MATMUL"})


# Files that are no trace


def plain(path, **columns):
    pq.write_table(pa.table(columns), path)


def rewritten(path, columns, metadata):
    """The trace at path with other columns and metadata."""
    table = pq.read_table(path).select(columns)
    pq.write_table(table.replace_schema_metadata({"neuronprof": metadata}), path)


def test_a_trace_of_an_earlier_version_lacks_what_came_later(tmp_path):
    path = write(tmp_path / "trace.parquet", batch(0))
    names = [name for name in schema.NAMES if name != "operands"]
    rewritten(path, names, json.dumps({"schema_version": "1.0.0"}))
    table = open_trace(path).columns(["name", "operands"])
    assert table["operands"].null_count == table.num_rows > 0


def no_trace(path, bad):
    write(path, batch(0), batch(50), rows_per_part=3 if bad.startswith("part") else 100)
    version = json.dumps({"schema_version": schema.VERSION})
    parts = sorted(path.iterdir()) if path.is_dir() else []
    acts = {
        "missing": path.unlink,
        "empty": lambda: path.write_bytes(b""),
        "text": lambda: path.write_text("<html>not found</html>"),
        "short": lambda: path.write_bytes(path.read_bytes()[:3]),
        "truncated": lambda: path.write_bytes(path.read_bytes()[:-100]),
        "half": lambda: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "foreign": lambda: plain(path, a=[1, 2]),
        "no columns": lambda: rewritten(path, ["id"], version),
        "newer": lambda: rewritten(path, list(schema.NAMES), json.dumps({"schema_version": "2.0.0"})),
        "no version": lambda: rewritten(path, list(schema.NAMES), "{}"),
        "no json": lambda: rewritten(path, list(schema.NAMES), "oops"),
        "part truncated": lambda: parts[0].write_bytes(parts[0].read_bytes()[:-9]),
        "part foreign": lambda: plain(parts[0], a=[1]),
        "parts gone": lambda: [part.unlink() for part in parts],
        "parts among others": lambda: [part.rename(path / f"{i}.csv") for i, part in enumerate(parts)],
    }
    acts[bad]()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("missing", "There is no trace {}; check the path."),
        ("empty", "{} is empty; record it again."),
        ("text", "{} is not a Parquet file, so it is not a trace; give the file that neuronprof record wrote."),
        ("short", "{} is not a Parquet file, so it is not a trace; give the file that neuronprof record wrote."),
        ("truncated", "{} is truncated or damaged; record it again."),
        ("half", "{} is truncated or damaged; record it again."),
        (
            "foreign",
            "{} is a Parquet file but not a neuronprof trace: it has no neuronprof metadata; record one with neuronprof record.",
        ),
        ("no columns", "{} is not a complete trace: it lacks the column step."),
        ("newer", "{} has trace schema 2.0.0, this neuronprof reads 1.2.0; install a newer neuronprof."),
        ("no version", "{} has unreadable neuronprof metadata; record it again."),
        ("no json", "{} has unreadable neuronprof metadata; record it again."),
        ("part truncated", "{}: its part part-00000.parquet is truncated or damaged; record it again."),
        ("part foreign", "{} is not a complete trace: it lacks the column id."),
        ("parts gone", "{} is a folder but not a trace: it is empty."),
        ("parts among others", "{} is a folder but not a trace: it holds no part-*.parquet files."),
    ],
)
def test_what_is_no_trace_is_said_in_one_sentence(tmp_path, bad, message):
    path = tmp_path / "trace.parquet"
    no_trace(path, bad)
    with pytest.raises(NeuronprofError) as error:
        open_trace(path)
    assert str(error.value) == message.format(path)


def test_a_trace_that_may_not_be_read(tmp_path, monkeypatch):
    path = write(tmp_path / "t", batch(0))
    monkeypatch.setattr(Path, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(NeuronprofError, match=r"Cannot read .*t: Permission denied\."):
        open_trace(path)


def test_damage_inside_a_column_is_said_when_it_is_read(tmp_path):
    path = write(tmp_path / "t", batch(0, rows=1000, duration_ns=np.arange(1000) ** 3))
    column = pq.read_metadata(path).row_group(0).column(schema.NAMES.index("duration_ns"))
    content = bytearray(path.read_bytes())
    content[column.data_page_offset : column.data_page_offset + column.total_compressed_size] = (
        b"\xff" * column.total_compressed_size
    )
    path.write_bytes(content)
    trace = open_trace(path)
    with pytest.raises(NeuronprofError, match=r"t is damaged and cannot be read; record it again\."):
        trace.columns(["duration_ns"])


def test_pictures_are_traces(trace):
    events = picture.rows(
        """
        tensor ..aa.bb
        cc     ~~CCC..
        """
    )
    names = ["engine", "op_name", "start_ts", "duration_ns", "wait_ns", "wait_for"]
    assert picture.table(trace(events).columns(names).to_pandas()) == [
        "engine op_name start_ts duration_ns wait_ns wait_for",
        "tensor a 2 2 0 none",
        "tensor b 5 2 0 none",
        "cc C 2 3 2 peer",
    ]


def test_pieces_between_two_times_leave_out_the_row_groups_before_and_after(tmp_path):
    # Three parts of three events each: they end at 25, 125 and 225, and begin at 0, 100 and 200.
    path = tmp_path / "t.parquet"
    write(path, batch(0), batch(100), batch(200), rows_per_part=3)
    opened = open_trace(path)

    def found(*between):
        return [piece["start_ts"].to_pylist() for piece in opened.pieces(["start_ts"], rank=0, between=between)]

    assert found(25, 200) == [[100, 110, 120]]
    assert found(24, 201) == [[0, 10, 20], [100, 110, 120], [200, 210, 220]]
    assert found(300, 400) == []
