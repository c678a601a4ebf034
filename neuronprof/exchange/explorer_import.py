"""Neuron Explorer's folders of Parquet tables, read as one trace: a folder a rank.

Tables and fields are found by name, whatever their case and underscores, and whichever of several known names a version gives them; what a
table lacks stays empty. The units of times are those that SchemaFields states, nanoseconds if it does not.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from neuronprof.errors import NeuronprofError
from neuronprof.exchange import clocks
from neuronprof.exchange.breakdown import Breakdown, split
from neuronprof.exchange.explorer import CC, DIRECTION, DMA, FIELDS, FLOW, INSTRUCTION, METADATA
from neuronprof.exchange.imported import Imported, check_extent
from neuronprof.exchange.ranks import numbered
from neuronprof.terms import Engine, Kind
from neuronprof.trace.writer import TraceWriter

_TABLES = {INSTRUCTION: Kind.COMPUTE, DMA: Kind.TRANSFER, CC: Kind.COLLECTIVE}
_ENGINES = {"tensor": "tensor", "pe": "tensor", "vector": "vector", "dve": "vector", "scalar": "scalar", "act": "scalar",
            "activation": "scalar", "gpsimd": "gpsimd", "pool": "gpsimd", "sync": "sync", "sp": "sync"}  # fmt: skip
# Names of a field: that of 7.4.0 first, then what it may be called elsewhere.
_START, _END, _DURATION = (
    ("start_ts", "start_timestamp", "start_time"),
    ("end_ts", "end_timestamp", "end_time"),
    ("duration_ns", "duration"),
)
_TEXTS = {
    "name": ("opcode", "operation", "op", "compiler_opcode"), "op_name": ("hlo_name", "variable"), "layer": ("layer",),
    "source": ("bir_debug_info_source_location", "nki_source_location"), "dtype": ("dtype",), "algorithm": ("algorithm",),
    "replica_group": ("replica_group",),
}  # fmt: skip
_NUMBERS = {
    "bytes": ("transfer_bytes", "input_size", "hbm_read_bytes"), "flops": ("raw_flops",), "wait_ns": ("evt_wait_time_ns",),
    "queue": ("queue_idx", "stream_index"), "core": ("pcore_idx",), "collective": ("op_id",),
}  # fmt: skip
_ID = "own id"  # of a row in its table, for the flows
_MISSING = {"collective": -1}
_SCALE = {"picoseconds": 1e-3, "nanoseconds": 1, "microseconds": 1e3, "milliseconds": 1e6, "seconds": 1e9}
_LARGEST = 2**61
_MOST = {"bytes": 2**48 - 1, "queue": 2**15 - 1, "core": 2**15 - 1}

Rows = dict[str, Any]


def is_profile(path: Path) -> bool:
    """Whether a path is a folder with tables of Neuron Explorer."""
    return path.is_dir() and any(
        _plain(file.stem).startswith(_plain(name)) for file in path.glob("*.parquet") for name in (*_TABLES, METADATA)
    )


def folders(path: Path) -> list[Path]:
    """The profiles in a folder: itself, or those one below it.

    Raises:
        NeuronprofError: there is none.
    """
    found = [path] if is_profile(path) else sorted(filter(is_profile, path.iterdir()), key=_number)
    if not found:
        raise NeuronprofError(
            f"{path} is a folder without tables of Neuron Explorer, like Instruction.parquet; give the one that has them."
        )
    return found


def write(paths: Sequence[Path], output: Path, progress: Callable[[str, int, int], None]) -> Imported:
    """Writes the events of all profiles as one trace.

    Raises:
        NeuronprofError: a table cannot be read, or the trace cannot be written.
    """
    places = [folder for path in paths for folder in folders(path)]
    profiles = []
    for number, place in enumerate(places):
        progress("profile", number, len(places))
        profiles.append(_Profile(place))
        check_extent(min(int(one.rows["start_ts"].min()) for one in profiles), int(profiles[-1].end.max()), place)
    ranks = numbered([None] * len(places), places)
    offsets = clocks.align(ranks, [profile.ends for profile in profiles])
    first = min(int(profile.rows["start_ts"].min()) + o.offset_ns for profile, o in zip(profiles, offsets, strict=True))
    last = max(int(profile.end.max()) + o.offset_ns for profile, o in zip(profiles, offsets, strict=True))
    with TraceWriter(output) as writer:
        written = 0
        for rank, profile, offset in sorted(zip(ranks, profiles, offsets, strict=True), key=lambda one: one[0]):
            rows = {name: column for name, column in profile.rows.items() if name != _ID}
            rows["start_ts"] = rows["start_ts"] + offset.offset_ns - first
            count = len(rows["start_ts"])
            released = profile.released_by
            released[released >= 0] += written
            writer.write(
                {"id": written + np.arange(count), "rank": rank, "chip": rank, "released_by": released, **rows}
            )
            written += count
        writer.close({
            "format": "neuron-explorer", "script": places[0].name, "world_size": len(places),
            "segments": [{"kind": "step", "step": 0, "start_ts": 0, "end_ts": last - first}],
            "clocks": [vars(offset) for offset in offsets],
        })  # fmt: skip
    breakdowns = [profile.breakdown(rank) for rank, profile in zip(ranks, profiles, strict=True)]
    return Imported(output, sorted(breakdowns, key=lambda b: b.rank), offsets, 0)


@dataclass(frozen=True)
class _Profile:
    """One folder."""

    folder: Path

    @cached_property
    def rows(self) -> Rows:
        """Columns of the trace, of all tables one below the other, in the order of starts."""
        units = self._units
        parts = [self._columns(table, kind, units) for name, kind in _TABLES.items() for table in self._tables(name)]
        parts = [part for part in parts if len(part["start_ts"])]
        if not parts:
            raise NeuronprofError(
                f"{self.folder} has no instructions, DMA transfers or collectives; capture the profile again."
            )
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        order = np.argsort(joined["start_ts"], kind="stable")
        return {name: column[order] for name, column in joined.items()}

    @property
    def end(self) -> NDArray[np.int64]:
        """When each event ends."""
        end: NDArray[np.int64] = self.rows["start_ts"] + self.rows["duration_ns"]
        return end

    @property
    def ends(self) -> dict[tuple[str, int], int]:
        """When each collective ended, by operation and number."""
        mine = np.flatnonzero((self.rows["engine"] == Engine.CC.value) & (self.rows["collective"] >= 0))
        keys = zip(self.rows["name"][mine].tolist(), self.rows["collective"][mine].tolist(), strict=True)
        return dict(zip(keys, self.end[mine].tolist(), strict=True))

    def breakdown(self, rank: int) -> Breakdown:
        """Exact times of the profile's classes."""
        engine, start, end = self.rows["engine"], self.rows["start_ts"], self.end
        names = ([v for v in dict.fromkeys(_ENGINES.values()) if v != "sync"], [Engine.CC.value], [Engine.DMA.value])
        of = [np.isin(engine.astype(str), group) for group in names]
        return split(rank, *(list(zip(start[m].tolist(), end[m].tolist(), strict=True)) for m in of))

    @property
    def released_by(self) -> NDArray[np.int64]:
        """For each row the place of the latest of those that the table of flows says it depends on; -1 for none."""
        place = {text: row for row, text in enumerate(self.rows[_ID].tolist())}
        end = self.end
        found = np.full(len(end), -1)
        for flows in self._tables(FLOW):
            columns = [_texts(flows, (name,)) for name in ("in_table", "in_id", "out_table", "out_id")]
            for in_table, in_id, out_table, out_id in zip(*columns, strict=True):
                source, target = (
                    place.get(f"{_table(in_table)} {in_id}", -1),
                    place.get(f"{_table(out_table)} {out_id}", -1),
                )
                if source >= 0 and 0 <= target != source and (found[target] < 0 or end[source] > end[found[target]]):
                    found[target] = source
        return found

    @cached_property
    def _units(self) -> dict[tuple[str, str], str]:
        """What SchemaFields says of each field's unit."""
        found = {}
        for fields in self._tables(FIELDS):
            columns = [_texts(fields, (name,)) for name in ("table_name", "field_name", "field_unit")]
            for table, field, unit in zip(*columns, strict=True):
                found[_plain(table or ""), _plain(field or "")] = (unit or "").lower()
        return found

    def _tables(self, name: str) -> Iterator[pa.Table]:
        """The parts of a table: Name.parquet, or Name_0.parquet and so on."""
        for file in sorted(self.folder.glob("*.parquet"), key=_number):
            stem, _, part = file.stem.rpartition("_")
            if _plain(file.stem) == _plain(name) or (part.isdecimal() and _plain(stem) == _plain(name)):
                try:
                    yield pq.read_table(file)
                except (pa.ArrowException, OSError) as error:
                    raise NeuronprofError(f"{file} is damaged or no Parquet file; export the profile again.") from error

    def _columns(self, table: pa.Table, kind: Kind, units: dict[tuple[str, str], str]) -> Rows:
        name = next(name for name, own in _TABLES.items() if own is kind)

        start, end, duration = (_times(table, names, units, name) for names in (_START, _END, _DURATION))
        if duration is None and start is not None and end is not None:
            duration = end - start
        if start is None or duration is None:
            raise NeuronprofError(
                f"Table {name} of {self.folder} has no start and end of its rows; this version of its schema cannot be read."
            )
        rows: Rows = {"start_ts": start, "duration_ns": np.maximum(duration, 0)}
        for ours, names in _TEXTS.items():
            rows[ours] = _texts(table, names)
        for ours, names in _NUMBERS.items():
            least = _MISSING.get(ours, 0)
            rows[ours] = np.clip(_numbers(table, names, least), least, _MOST.get(ours, 2**60 - 1))
        rows["kind"] = np.full(len(start), kind.value, object)
        rows[_ID] = np.array(
            [f"{name} {number}" for number in _numbers(table, ("op_id",) if name == CC else ("id",), -1).tolist()],
            object,
        )
        return rows | _placed(table, name, rows)


def _placed(table: pa.Table, name: str, rows: Rows) -> Rows:
    """Engine, opcode and what a table's numbers mean in ours."""
    count = len(rows["start_ts"])
    if name == CC:
        return {"engine": np.full(count, Engine.CC.value, object)}
    if name == DMA:
        opcodes = {direction: opcode for opcode, direction in DIRECTION.items()}
        names = [opcodes.get(str(text).lower(), text) for text in rows["name"]]
        return {
            "engine": np.full(count, Engine.DMA.value, object),
            "name": np.array(names, object),
            "collective": np.full(count, -1),
        }
    engines = [_ENGINES.get(str(text or "").lower(), Engine.GPSIMD.value) for text in _texts(table, ("engine",))]
    return {"engine": np.array(engines, object), "collective": np.full(count, -1)}


def _column(table: pa.Table, names: Sequence[str]) -> pa.ChunkedArray | None:
    """The first of the named columns that the table has."""
    present = {_plain(name): name for name in table.column_names}
    return next((table[present[_plain(name)]] for name in names if _plain(name) in present), None)


def _times(
    table: pa.Table, names: Sequence[str], units: dict[tuple[str, str], str], name: str
) -> NDArray[np.int64] | None:
    """A column of times in nanoseconds; None if the table has none of the names."""
    found = next((own for own in names if _column(table, (own,)) is not None), None)
    if found is None:
        return None
    scale = _SCALE.get(units.get((_plain(name), _plain(found)), ""), 1)
    values = _whole(_column(table, (found,)), 0)
    return values if values is None or scale == 1 else np.rint(values * scale).astype(np.int64)


def _numbers(table: pa.Table, names: Sequence[str], missing: int) -> NDArray[np.int64]:
    """A column of whole numbers; `missing` where it has none."""
    found = _whole(_column(table, names), missing)
    return np.full(table.num_rows, missing, np.int64) if found is None else found


def _whole(column: pa.ChunkedArray | None, missing: int) -> NDArray[np.int64] | None:
    """A column as whole numbers, whatever holds them, times in nanoseconds; None if it holds no numbers."""
    if column is None:
        return None
    for has, kind in ((pa.types.is_timestamp, pa.timestamp("ns")), (pa.types.is_duration, pa.duration("ns"))):
        column = column.cast(kind) if has(column.type) else column
    fractions = pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)
    try:
        values = column.cast(pa.float64() if fractions else pa.int64()).fill_null(missing).to_numpy()
    except pa.ArrowException:
        return None
    if fractions:
        values = np.where(np.isfinite(values), values, missing)
    return np.clip(values, -_LARGEST, _LARGEST).astype(np.int64)


def _texts(table: pa.Table, names: Sequence[str]) -> NDArray[np.object_]:
    column = _column(table, names)
    if column is None:
        return np.full(table.num_rows, None, object)
    try:
        texts: NDArray[np.object_] = column.cast(pa.string()).to_numpy(zero_copy_only=False).astype(object)
    except pa.ArrowException:  # lists, or bytes that are no text
        return np.full(table.num_rows, None, object)
    texts[texts == ""] = None
    return texts


def _table(text: Any) -> str:
    """A table as flows name it: instruction, dma_block, cc_op, or its own name."""
    plain = _plain(str(text))
    return next(
        (name for begin, name in (("inst", INSTRUCTION), ("dma", DMA), ("cc", CC)) if plain.startswith(begin)), ""
    )


def _plain(name: str) -> str:
    return name.lower().replace("_", "")


def _number(path: Path) -> tuple[str, int]:
    """Sorts part 10 after part 9."""
    head, _, number = path.stem.replace("-", "_").rpartition("_")
    return (head, int(number)) if number.isdecimal() else (path.stem, -1)
