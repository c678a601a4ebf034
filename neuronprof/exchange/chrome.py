"""A trace as Chrome JSON, which Perfetto and chrome://tracing show: slices, flows along `released_by`, and counters of memory.

A rank is a process, a queue of an engine a thread. The format: "Trace Event Format" (Google).
"""

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa

from neuronprof.exchange.selected import Selection
from neuronprof.exchange.whole import whole
from neuronprof.terms import Engine, Kind

_ENGINES = [engine.value for engine in Engine]
_QUEUES = 2**15  # threads of an engine
_TEXTS = ("op_name", "layer", "phase", "source", "region", "dtype", "replica_group", "algorithm")
_NUMBERS = ("bytes", "flops", "wait_ns")

Event = dict[str, Any]


def write(selection: Selection, path: Path) -> int:
    """Writes the events; packed if the name ends in .gz. Returns how many slices.

    Raises:
        NeuronprofError: the file cannot be written.
    """
    slices = 0
    with whole(path) as partial, _opened(partial, path.suffix == ".gz") as stream:
        stream.write('{"displayTimeUnit": "ns", "traceEvents": [')
        separator = "\n"
        for table in selection.chips():
            for event in _events(table):
                slices += event["ph"] == "X"
                stream.write(separator + json.dumps(event, separators=(",", ":")))
                separator = ",\n"
        stream.write("\n]}\n")
    return slices


def _opened(path: Path, packed: bool) -> TextIO:
    if packed:
        return io.TextIOWrapper(gzip.open(path, "wb", compresslevel=5), encoding="utf-8")
    return path.open("w", encoding="utf-8")


def _events(table: pa.Table) -> Iterator[Event]:
    is_level = pa.compute.equal(table["kind"].cast(pa.string()), Kind.MEMORY.value)
    work = table.filter(pa.compute.invert(is_level))
    places = {}
    for batch in work.to_batches(max_chunksize=1 << 16):
        for row in batch.to_pylist():
            places[row["id"]] = (row["rank"], _thread(row), row["start_ts"] + row["duration_ns"])
            yield from _slice(row)
    yield from _threads(work)
    yield from _flows(work, places)
    yield from _counters(table.filter(is_level))


def _thread(row: dict[str, Any]) -> int:
    return int(_ENGINES.index(row["engine"]) * _QUEUES + row["queue"])


def microseconds(ns: int) -> float:
    """A time as the format has it; three decimals are nanoseconds."""
    return ns / 1000


def _slice(row: dict[str, Any]) -> Iterator[Event]:
    args = {name: row[name] for name in _TEXTS if row[name]} | {name: row[name] for name in _NUMBERS if row[name]}
    if row["wait_ns"]:
        args["wait_for"] = row["wait_for"]
    yield {
        "ph": "X", "name": row["op_name"] or row["name"] or "", "cat": row["kind"], "pid": row["rank"], "tid": _thread(row),
        "ts": microseconds(row["start_ts"]), "dur": microseconds(row["duration_ns"]),
        "args": {"id": row["id"], "step": row["step"], "opcode": row["name"], **args},
    }  # fmt: skip


def _threads(work: pa.Table) -> Iterator[Event]:
    """Names and order of processes and threads."""
    tracks = work.select(["rank", "engine", "queue"]).group_by(["rank", "engine", "queue"]).aggregate([]).to_pylist()
    for rank in sorted({track["rank"] for track in tracks}):
        yield {"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"rank {rank}"}}
    for track in sorted(tracks, key=lambda track: (track["rank"], _thread(track))):
        about = {"ph": "M", "pid": track["rank"], "tid": _thread(track)}
        yield {**about, "name": "thread_name", "args": {"name": f"{track['engine']} {track['queue']}"}}
        yield {**about, "name": "thread_sort_index", "args": {"sort_index": _thread(track)}}


def _flows(work: pa.Table, places: dict[int, tuple[int, int, int]]) -> Iterator[Event]:
    """An arrow from the event that let another start, where the two are in different queues."""
    for batch in work.select(["id", "rank", "engine", "queue", "start_ts", "released_by"]).to_batches(
        max_chunksize=1 << 16
    ):
        for row in batch.to_pylist():
            source = places.get(row["released_by"])
            here = row["rank"], _thread(row)
            if source is None or source[:2] == here:
                continue
            about = {"name": "released by", "cat": "flow", "id": row["id"]}
            yield {"ph": "s", **about, "pid": source[0], "tid": source[1], "ts": microseconds(max(source[2] - 1, 0))}
            yield {"ph": "f", "bp": "e", **about, "pid": here[0], "tid": here[1], "ts": microseconds(row["start_ts"])}


def _counters(levels: pa.Table) -> Iterator[Event]:
    """What HBM, SBUF and PSUM hold in each category at each change."""
    memory = pa.compute.utf8_upper(levels["engine"].cast(pa.string()))
    names = pa.compute.binary_join_element_wise(memory, levels["name"].cast(pa.string()), " ").to_numpy(
        zero_copy_only=False
    )
    columns = {name: levels[name].to_numpy() for name in ("rank", "start_ts", "duration_ns", "bytes")}
    for rank in np.unique(columns["rank"]).tolist():
        for name in sorted(set(names[columns["rank"] == rank])):
            mine = (columns["rank"] == rank) & (names == name)
            start, size = columns["start_ts"][mine], columns["bytes"][mine]
            times, at = np.unique(np.concatenate((start, start + columns["duration_ns"][mine])), return_inverse=True)
            change = np.zeros(len(times), np.int64)
            np.add.at(change, at, np.concatenate((size, -size)))
            for time, held in zip(times.tolist(), np.cumsum(change).tolist(), strict=True):
                yield {"ph": "C", "name": name, "pid": rank, "ts": microseconds(time), "args": {"bytes": held}}
