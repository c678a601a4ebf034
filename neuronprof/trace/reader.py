"""Opens a trace, one file or a folder of parts, and reads the columns that are asked for."""

import base64
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neuronprof.errors import NeuronprofError
from neuronprof.trace import metadata, schema, storage

if TYPE_CHECKING:
    import pandas as pd

_MAGIC = b"PAR1"


class TraceFile:
    """A trace on disk; nothing but the footers is read before it is asked for.

    path: what was opened. metadata: the run, as the writer left it; `{"partial": True}` stands in that of a recording
    that never ended.
    num_events: rows of all parts.
    """

    def __init__(
        self, path: Path, parts: Sequence[pq.ParquetFile], metadata: dict[str, Any], tables: dict[bytes, bytes]
    ) -> None:
        self.path = path
        self.metadata = metadata
        self.num_events = sum(part.metadata.num_rows for part in parts)
        self._parts = parts
        self._tables = tables

    @cached_property
    def operators(self) -> "pd.DataFrame":
        """The operators table: a row an operator, columns of `schema.OPERATORS`."""
        return self._table(schema.OPERATORS_KEY, schema.OPERATORS).to_pandas()

    @cached_property
    def totals(self) -> "pd.DataFrame":
        """The ranks table: what every rank of the job did in every step, columns of `schema.RANKS`; empty where the source does not know.

        Raises:
            NeuronprofError: the file that holds it is damaged.
        """
        apart = self.path / schema.RANKS_FILE
        if not apart.is_file():
            return self._table(schema.RANKS_KEY, schema.RANKS).to_pandas()
        try:
            return pq.read_table(apart, schema=schema.RANKS).to_pandas()
        except (pa.ArrowException, OSError) as error:
            raise NeuronprofError(f"{apart} is damaged and cannot be read; record the trace again.") from error

    def _table(self, key: bytes, columns: pa.Schema) -> pa.Table:
        """A small table that stands in the metadata."""
        if not self._tables.get(key):
            return columns.empty_table()
        try:
            with pa.ipc.open_stream(base64.b64decode(self._tables[key])) as stream:
                found = stream.read_all()
            found.validate(full=True)
            return found
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damaged() from error

    @cached_property
    def chips(self) -> list[int]:
        """The chips that have events, sorted."""
        return self._distinct("chip")

    @cached_property
    def ranks(self) -> list[int]:
        """The ranks that have events, sorted."""
        return self._distinct("rank")

    @cached_property
    def steps(self) -> list[int]:
        """The training steps that have events, sorted; evaluation (-1) is not among them."""
        return [step for step in self._distinct("step") if step >= 0]

    def columns(
        self,
        names: Iterable[str] | None = None,
        *,
        chip: int | None = None,
        rank: int | None = None,
        step: int | None = None,
        event: int | None = None,
    ) -> pa.Table:
        """The columns `names` (all if None) of the rows with this chip, rank, step and id, in the order of the file.

        String columns are dictionaries, with one dictionary over all chunks.

        Raises:
            NeuronprofError: the file is damaged.
            KeyError: a name that is not a column.
        """
        wanted = list(schema.select(*(schema.NAMES if names is None else names)))
        asked = (("chip", chip), ("rank", rank), ("step", step), ("id", event))
        conditions = {name: value for name, value in asked if value is not None}
        pieces = [
            self._rows(part, groups, wanted, {} if exact else conditions)
            for part in self._parts
            for groups, exact in [_row_groups(part, conditions)]
            if groups
        ]
        empty = pa.schema([schema.ARROW.field(name) for name in wanted]).empty_table()
        return pa.concat_tables(pieces or [empty]).unify_dictionaries().select(wanted)

    def pieces(self, names: Iterable[str], *, rank: int, between: tuple[int, int] | None = None) -> Iterator[pa.Table]:
        """The columns `names` of one rank a row group at a time, for ranks that memory cannot hold; each with its own dictionaries.

        between: two times; row groups without events that touch the time between them are left out.

        Raises:
            NeuronprofError: the file is damaged.
            KeyError: a name that is not a column.
        """
        wanted = list(schema.select(*names))
        for part in self._parts:
            groups, exact = _row_groups(part, {"rank": rank})
            for group in groups:
                if between and not _touches(part, group, between):
                    continue
                yield self._rows(part, [group], wanted, {} if exact else {"rank": rank}).select(wanted)

    def _rows(self, part: pq.ParquetFile, groups: list[int], wanted: list[str], conditions: dict[str, int]) -> pa.Table:
        names = list(dict.fromkeys([*wanted, *conditions]))
        table = self._columns_of(part, groups, names)
        for name, value in conditions.items():
            table = table.filter(pc.equal(table[name], value))
        return table

    def _distinct(self, name: str) -> list[int]:
        """The values of an integer column, sorted; row groups that have but one are not read, as their statistics name it."""
        found: set[int] = set()
        for part in self._parts:
            position = _positions(part)[name]
            for group in range(part.metadata.num_row_groups):
                statistics = _statistics(part, group, position)
                if statistics is not None and statistics.min == statistics.max:
                    found.add(int(statistics.min))
                else:
                    found.update(pc.unique(self._columns_of(part, [group], [name])[name]).to_pylist())
        return sorted(found)

    def _columns_of(self, part: pq.ParquetFile, groups: list[int], names: list[str]) -> pa.Table:
        try:
            table = part.read_row_groups(groups, columns=names)
            for name in set(names).difference(table.column_names):  # of a later version than the trace
                table = table.append_column(name, pa.nulls(table.num_rows, schema.BY_NAME[name].type))
            table = table.select(names).cast(pa.schema([schema.ARROW.field(name) for name in names]))
        except (pa.ArrowException, OSError) as error:
            raise self._damaged() from error
        if wrong := _impossible(part, groups, names) or _gaps(table):
            raise NeuronprofError(f"{self.path} is damaged: {wrong}; record it again.")
        return table

    def _damaged(self) -> NeuronprofError:
        return NeuronprofError(f"{self.path} is damaged and cannot be read; record it again.")


# What a column can hold, as far as its statistics tell.
_LIMITS = {
    "id": (-(2**62), 2**62), "step": (-1, 2**31), "chip": (0, 2**31), "core": (-1, 2**15), "rank": (0, 2**31), "queue": (0, 2**15),
    "op": (-1, 2**24), "start_ts": (-metadata.LATEST, metadata.LATEST), "duration_ns": (0, metadata.LATEST),
    "wait_ns": (0, metadata.LATEST), "bytes": (0, 2**48), "flops": (0, 2**60), "collective": (-1, 2**62), "released_by": (-1, 2**62),
}  # fmt: skip


def _impossible(part: pq.ParquetFile, groups: list[int], names: list[str]) -> str:
    """What no trace holds, as a negative duration; '' if there is nothing of the kind."""
    position = _positions(part)
    for name in _LIMITS.keys() & set(names):
        low, high = _LIMITS[name]
        for group in groups:
            statistics = _statistics(part, group, position[name])
            if statistics is not None and not low <= statistics.min <= statistics.max < high:
                return f"{name} goes from {statistics.min} to {statistics.max}"
    return ""


def _gaps(table: pa.Table) -> str:
    """What events cannot lack; '' if nothing is missing."""
    spared = {"deps", *schema.LATER, *schema.STRINGS} - {"engine"}
    return next(
        (f"events without {name}" for name in table.column_names if name not in spared and table[name].null_count), ""
    )


def _positions(part: pq.ParquetFile) -> dict[str, int]:
    """Where each column stands in a row group."""
    return {name: position for position, name in enumerate(part.schema_arrow.names)}


def _statistics(part: pq.ParquetFile, group: int, position: int) -> Any:
    """Least and most of a column in a row group; None where the file does not tell."""
    found = part.metadata.row_group(group).column(position).statistics
    return found if found is not None and found.has_min_max else None


def _row_groups(part: pq.ParquetFile, conditions: dict[str, int]) -> tuple[list[int], bool]:
    """Row groups that can hold matching rows, and whether all their rows match."""
    position = _positions(part)
    groups, exact = [], True
    for group in range(part.metadata.num_row_groups):
        ranges = []
        for name, value in conditions.items():
            known = _statistics(part, group, position[name])
            ranges.append((value - 1, value, value + 1) if known is None else (known.min, value, known.max))
        if all(low <= value <= high for low, value, high in ranges):
            groups.append(group)
            exact = exact and all(low == high for low, _, high in ranges)
    return groups, exact


def _touches(part: pq.ParquetFile, group: int, between: tuple[int, int]) -> bool:
    """Whether a row group can have events that touch the time between two times."""
    position = _positions(part)
    start, duration = (_statistics(part, group, position[name]) for name in ("start_ts", "duration_ns"))
    if start is None:
        return True
    return bool(start.min < between[1] and (duration is None or start.max + duration.max > between[0]))


def open_trace(path: str | Path) -> TraceFile:
    """Opens the trace at `path`: a file, a folder of parts, the `.partial` folder of a recording that was killed, or one of these in S3.

    Raises:
        NeuronprofError: there is no trace, it is damaged, or it is of a newer version.
    """
    path = storage.fetched(path)
    try:
        files = _part_files(path)
        parts = [_open_part(file, path) for file in files]
    except OSError as error:
        raise NeuronprofError(f"Cannot read {path}: {error.strerror or error}.") from error
    extras = [part.metadata.metadata or {} for part in parts]
    last = next((extra for extra in reversed(extras) if schema.METADATA_KEY in extra), None)
    if last is None:
        raise NeuronprofError(
            f"{path} is a Parquet file but not a neuronprof trace: it has no neuronprof metadata; "
            "record one with neuronprof record."
        )
    about = metadata.read(last[schema.METADATA_KEY], str(path))
    for part in parts:
        _check_columns(part, path)
    return TraceFile(path, parts, about, last)


def _part_files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(path.glob("part-*.parquet"))
        if files:
            return files
        what = "holds no part-*.parquet files" if any(path.iterdir()) else "is empty"
        raise NeuronprofError(f"{path} is a folder but not a trace: it {what}.")
    if not path.exists():
        partial = path.with_name(path.name + ".partial")
        hint = (
            f"the recording did not end, open {partial} for what was written" if partial.exists() else "check the path"
        )
        raise NeuronprofError(f"There is no trace {path}; {hint}.")
    return [path]


def _open_part(file: Path, path: Path) -> pq.ParquetFile:
    """The file's footer.

    Raises:
        NeuronprofError: it is empty, truncated or not Parquet.
        OSError: it cannot be read.
    """
    name = str(path) if file == path else f"{path}: its part {file.name}"
    with file.open("rb") as stream:
        head = stream.read(4)
        if not head:
            raise NeuronprofError(f"{name} is empty; record it again.")
        if head != _MAGIC:
            raise NeuronprofError(
                f"{name} is not a Parquet file, so it is not a trace; give the file that neuronprof record wrote."
            )
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise NeuronprofError(f"{name} is truncated or damaged; record it again.") from error


def _check_columns(part: pq.ParquetFile, path: Path) -> None:
    present = {field.name: field.type for field in part.schema_arrow}
    if missing := [name for name in schema.NAMES if name not in present and name not in schema.LATER]:
        raise NeuronprofError(f"{path} is not a complete trace: it lacks the column {missing[0]}.")
    for column in schema.COLUMNS:
        found = present.get(column.name, column.type)
        if not _alike(found, column.type):
            raise NeuronprofError(
                f"{path} is not a trace that can be read: its column {column.name} holds {found}, not {column.type}."
            )


def _alike(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a column can be read as the schema's type: whole numbers as whole numbers, texts as texts."""
    if pa.types.is_dictionary(wanted):
        found = found.value_type if pa.types.is_dictionary(found) else found
        return pa.types.is_string(found) or pa.types.is_large_string(found)
    if pa.types.is_list(wanted):
        return pa.types.is_list(found) and pa.types.is_integer(found.value_type)
    return pa.types.is_integer(found)
