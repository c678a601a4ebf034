"""Opens a trace, one file or a folder of parts, and reads the columns that are asked for."""

import base64
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neuronprof.errors import NeuronprofError
from neuronprof.trace import metadata, schema, storage
from neuronprof.trace.rowgroups import Range, RowGroups, impossible

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
        pieces = list(self._pieces(wanted, _exactly(chip=chip, rank=rank, step=step, id=event)))
        return joined(pieces, wanted)

    def pieces(
        self,
        names: Iterable[str],
        *,
        chip: int | None = None,
        rank: int | None = None,
        steps: Range | None = None,
        starts: Range | None = None,
        between: tuple[int, int] | None = None,
    ) -> Iterator[pa.Table]:
        """The columns `names` a row group at a time, for what memory cannot hold; each with its own dictionaries.

        chip, rank, steps, starts: only rows of this chip and rank, with a step and a start_ts from the first to the last of these, both
        included. between: two times; row groups without events that touch the time between them are left out.

        Raises:
            NeuronprofError: the file is damaged.
            KeyError: a name that is not a column.
        """
        asked = {"step": steps, "start_ts": starts}
        ranges = {name: values for name, values in asked.items() if values is not None}
        yield from self._pieces(list(schema.select(*names)), _exactly(chip=chip, rank=rank) | ranges, between)

    def _pieces(
        self, wanted: list[str], ranges: Mapping[str, Range], between: tuple[int, int] | None = None
    ) -> Iterator[pa.Table]:
        """Row groups that can hold rows in these ranges, each without its other rows."""
        possible, exact = self._groups.within(ranges)
        if between:
            possible &= self._groups.touching(between)
        for at in np.flatnonzero(possible).tolist():
            yield self._rows(at, wanted, {} if exact[at] else ranges)

    def _rows(self, at: int, wanted: list[str], ranges: Mapping[str, Range]) -> pa.Table:
        names = list(dict.fromkeys([*wanted, *ranges]))
        table = self._columns_of(at, names)
        if ranges:
            bounds = ((table[name], *values) for name, values in ranges.items())
            inside = [
                pc.and_(pc.greater_equal(column, low), pc.less_equal(column, high)) for column, low, high in bounds
            ]
            table = table.filter(reduce(pc.and_, inside))
        return table.select(wanted)

    def census(self, chip: int) -> dict[tuple[int, int], int]:
        """How many events each rank of a chip has in each step, sorted; only row groups with more than one rank or step are read.

        Raises:
            NeuronprofError: the file is damaged.
        """
        found: Counter[tuple[int, int]] = Counter()
        possible, exact = self._groups.within({"chip": (chip, chip)})
        for at in np.flatnonzero(possible).tolist():
            rank, step = (self._groups.only(name, at) for name in ("rank", "step"))
            if exact[at] and rank is not None and step is not None:
                found[rank, step] += int(self._groups.rows[at])
                continue
            rows = self._rows(at, ["rank", "step"], {} if exact[at] else {"chip": (chip, chip)})
            counted = rows.group_by(["rank", "step"]).aggregate([([], "count_all")]).to_pylist()
            found.update({(row["rank"], row["step"]): row["count_all"] for row in counted})
        return dict(sorted(found.items()))

    def count(self, step: int, ranks: Sequence[int] | None) -> int:
        """How many events a step has, on some ranks or on all.

        Raises:
            NeuronprofError: the file is damaged.
        """
        counted = (found for chip in self.chips for found in self.census(chip).items())
        return sum(n for (rank, at), n in counted if at == step and (ranks is None or rank in ranks))

    def most_rows(self, chip: int) -> int:
        """An upper bound of the chip's events, from the footers alone."""
        possible, _ = self._groups.within({"chip": (chip, chip)})
        return int(self._groups.rows[possible].sum())

    @cached_property
    def _groups(self) -> RowGroups:
        return RowGroups(self._parts)

    def _distinct(self, name: str) -> list[int]:
        """The values of an integer column, sorted; row groups that have but one are not read, as their statistics name it."""
        found: set[int] = set()
        for at in range(len(self._groups.rows)):
            only = self._groups.only(name, at)
            found.update(pc.unique(self._columns_of(at, [name])[name]).to_pylist() if only is None else [only])
        return sorted(found)

    def _columns_of(self, at: int, names: list[str]) -> pa.Table:
        part, group = self._parts[self._groups.part[at]], int(self._groups.group[at])
        try:
            table = part.read_row_group(group, columns=names)
            for name in set(names).difference(table.column_names):  # of a later version than the trace
                table = table.append_column(name, pa.nulls(table.num_rows, schema.BY_NAME[name].type))
            table = table.select(names).cast(pa.schema([schema.ARROW.field(name) for name in names]))
        except (pa.ArrowException, OSError) as error:
            raise self._damaged() from error
        if wrong := impossible(part, group, names) or _gaps(table):
            raise NeuronprofError(f"{self.path} is damaged: {wrong}; record it again.")
        return table

    def _damaged(self) -> NeuronprofError:
        return NeuronprofError(f"{self.path} is damaged and cannot be read; record it again.")


def _gaps(table: pa.Table) -> str:
    """What events cannot lack; '' if nothing is missing."""
    spared = {"deps", *schema.LATER, *schema.STRINGS} - {"engine"}
    return next(
        (f"events without {name}" for name in table.column_names if name not in spared and table[name].null_count), ""
    )


def joined(pieces: Sequence[pa.Table], names: Iterable[str]) -> pa.Table:
    """Tables of these columns one below the other, with one dictionary over all of them; without any, no rows."""
    empty = pa.schema([schema.ARROW.field(name) for name in names]).empty_table()
    return pa.concat_tables(pieces or [empty]).unify_dictionaries()


def _exactly(**values: int | None) -> dict[str, Range]:
    """The ranges that hold but one value each, of those that are given."""
    return {name: (value, value) for name, value in values.items() if value is not None}


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
