"""Neuron Explorer's folder of Parquet tables, written: schema 7.4.0, a folder a rank.

Instructions, DMA transfers, collectives, their dependencies, active time, metadata, and SchemaFields, which describes each field written.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neuronprof.errors import NeuronprofError
from neuronprof.exchange.selected import Selection
from neuronprof.exchange.whole import whole
from neuronprof.terms import COMPUTE_ENGINES, Engine

VERSION = "7.4.0"
INSTRUCTION, DMA, CC, FLOW, METADATA, FIELDS = (
    "Instruction",
    "DmaPacketAggregated",
    "CcOp",
    "Flow",
    "Metadata",
    "SchemaFields",
)
ENGINES = {
    INSTRUCTION: [e.value for e in (*COMPUTE_ENGINES, Engine.SYNC)],
    DMA: [Engine.DMA.value],
    CC: [Engine.CC.value],
}
DIRECTION = {"DMA_LOAD": "read", "DMA_STORE": "write"}  # other opcodes keep their name
_UNITS = {"_ts": "nanoseconds", "_ns": "nanoseconds", "gap_time": "nanoseconds", "_bytes": "bytes", "_size": "bytes",
          "throughput": "bytes_per_second", "_bandwidth": "bytes_per_second"}  # fmt: skip


@dataclass(frozen=True)
class Written:
    """What an export wrote. left_out: events by engine for which the schema has no table."""

    events: int
    ranks: int
    left_out: dict[str, int]


def write(selection: Selection, folder: Path) -> Written:
    """Writes the tables of each rank into a folder of its own, `rank-0`, or into `folder` itself if there is but one.

    Raises:
        NeuronprofError: the folder exists and is not empty, or cannot be written.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise NeuronprofError(
            f"{folder} exists; give the name of a folder that does not, or of a file that ends in .json or .csv."
        )
    left_out: Counter[str] = Counter()
    events, ranks = 0, 0
    alone = selection.rank is not None or len(selection.trace.ranks) == 1
    with whole(folder) as partial:
        partial.mkdir()
        for chip in selection.chips():
            for rank in pc.unique(chip["rank"]).to_pylist():
                table = chip.filter(pc.equal(chip["rank"], rank))
                place = partial if alone else partial / f"rank-{rank}"
                place.mkdir(exist_ok=True)
                events += _rank(table, place, rank, selection.trace.metadata, left_out)
                ranks += 1
    return Written(events, ranks, dict(sorted(left_out.items())))


def _rank(events: pa.Table, folder: Path, rank: int, metadata: dict[str, Any], left_out: Counter[str]) -> int:
    engine = events["engine"].cast(pa.string())
    parts = {name: events.filter(pc.is_in(engine, pa.array(engines))) for name, engines in ENGINES.items()}
    placed = [name for engines in ENGINES.values() for name in engines]
    for row in pc.value_counts(engine).to_pylist():
        if row["values"] not in placed:
            left_out[row["values"]] += row["counts"]
    makers = {INSTRUCTION: _instructions, DMA: _transfers, CC: _collectives}
    tables = {name: maker(parts[name]) for name, maker in makers.items() if parts[name].num_rows}
    tables |= {name: table for name, table in ((FLOW, _flows(parts)),) if table.num_rows}
    tables[METADATA] = _metadata(events, rank, metadata)
    tables[FIELDS] = _fields(tables)
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return sum(part.num_rows for part in parts.values())


def _times(events: pa.Table) -> dict[str, Any]:
    start, duration = events["start_ts"], events["duration_ns"]
    return {
        "start_ts": start,
        "end_ts": pc.add(start, duration),
        "duration_ns": duration,
        "pcore_idx": events["core"].cast(pa.int64()),
    }


def _text(events: pa.Table, name: str) -> pa.ChunkedArray:
    return events[name].cast(pa.string())


def _instructions(events: pa.Table) -> pa.Table:
    count = events.num_rows
    return pa.table({
        **_times(events), "engine": _text(events, "engine"), "opcode": _text(events, "name"), "operands": [""] * count, "id": events["id"],
        "pc": np.arange(count), "bir_id": pc.binary_join_element_wise("op", events["op"].cast(pa.string()), ":"),
        "evt_wait_time_ns": events["wait_ns"], "hlo_name": _text(events, "op_name"), "layer": _text(events, "layer"),
        "bir_debug_info_source_location": _text(events, "source"), "raw_flops": events["flops"],
    })  # fmt: skip


def _transfers(events: pa.Table) -> pa.Table:
    count = events.num_rows
    names = _text(events, "name").to_pylist()
    moved = events["bytes"]
    seconds = pc.divide(pc.max_element_wise(events["duration_ns"], 1).cast(pa.float64()), 1e9)
    nothing = {name: [""] * count for name in ("source", "dest", "semaphore_id", "read_sbuf_partitions", "read_shape", "read_offset",
               "read_steps", "write_sbuf_partitions", "write_shape", "write_offset", "write_steps")}  # fmt: skip
    return pa.table({
        **_times(events), "id": events["id"], "block_id": events["op"], "queue_idx": events["queue"].cast(pa.int64()),
        "queue_name": [f"q{queue}" for queue in events["queue"].to_pylist()], "queue_type": ["data"] * count,
        "op": [DIRECTION.get(name, name) for name in names], "variable": pc.fill_null(_text(events, "op_name"), ""),
        "read_bytes": moved, "write_bytes": moved, "transfer_bytes": moved,
        "throughput": pc.divide(moved.cast(pa.float64()), seconds).cast(pa.float32()), **nothing,
        "read_num_sbuf_partitions": np.zeros(count, np.int32), "write_num_sbuf_partitions": np.zeros(count, np.int32),
    })  # fmt: skip


def _collectives(events: pa.Table) -> pa.Table:
    count = events.num_rows
    stream = events["queue"].cast(pa.int64())
    seconds = pc.divide(pc.max_element_wise(events["duration_ns"], 1).cast(pa.float64()), 1e9)
    return pa.table({
        **_times(events), "operation": _text(events, "name"), "algorithm": pc.fill_null(_text(events, "algorithm"), ""),
        "num_elements": np.zeros(count, np.int64), "dtype": pc.fill_null(_text(events, "dtype"), ""), "op_id": events["collective"],
        "stream_id": stream, "stream_index": stream, "trigger_engine": [""] * count, "input_size": events["bytes"],
        "algorithm_bandwidth": pc.divide(events["bytes"].cast(pa.float64()), seconds).cast(pa.float32()),
        "replica_group": _text(events, "replica_group"),
    })  # fmt: skip


def _flows(parts: dict[str, pa.Table]) -> pa.Table:
    """An edge from the event that let another start to that one; both have a table."""
    known = np.concatenate([part["id"].to_numpy() for part in parts.values()])
    told = np.concatenate([part["collective" if name == CC else "id"].to_numpy() for name, part in parts.items()])
    table = np.concatenate([np.full(part.num_rows, at) for at, part in enumerate(parts.values())])
    released = np.concatenate([part["released_by"].to_numpy() for part in parts.values()])
    start = np.concatenate([part["start_ts"].to_numpy() for part in parts.values()])
    end = start + np.concatenate([part["duration_ns"].to_numpy() for part in parts.values()])
    order = np.argsort(known)
    at = np.minimum(np.searchsorted(known[order], released), max(len(known) - 1, 0))
    rows = np.flatnonzero(known[order][at] == released) if len(known) else np.zeros(0, np.intp)
    source = order[at[rows]]
    names = np.array(list(parts), object)
    return pa.table({
        "in_id": told[source], "out_id": told[rows], "in_table": names[table[source]], "out_table": names[table[rows]],
        "gap_time": start[rows] - end[source],
    })  # fmt: skip


def _metadata(events: pa.Table, rank: int, about: dict[str, Any]) -> pa.Table:
    start = pc.min(events["start_ts"]).as_py()
    end = pc.max(pc.add(events["start_ts"], events["duration_ns"])).as_py()
    machine = (about.get("machine") or {}).get("rank") or {}
    return pa.table({
        "profile_schema_version": [VERSION], "first_hw_timestamp": pa.array([start], pa.int64()),
        "last_hw_timestamp": pa.array([end], pa.int64()), "hbm_ddr_bandwidth": pa.array([machine.get("hbm_bandwidth")], pa.float32()),
        "profile_name": [str(about.get("script") or "")], "neuroncore_idx": pa.array([rank], pa.int64()),
        "is_simulation": ["format" not in about],
    })  # fmt: skip


def _fields(tables: dict[str, pa.Table]) -> pa.Table:
    rows = [
        (name, field.name, str(field.type), _unit(field.name))
        for name, table in tables.items()
        for field in table.schema
    ]
    columns = list(zip(*rows, strict=True))
    count = len(rows)
    return pa.table({
        "table_name": columns[0], "table_description": [""] * count, "field_name": columns[1], "field_description": [""] * count,
        "field_type": columns[2], "field_required": [False] * count, "field_unit": columns[3],
    })  # fmt: skip


def _unit(field: str) -> str:
    return next((unit for ending, unit in _UNITS.items() if field.endswith(ending)), "")
