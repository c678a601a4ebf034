"""Writes a trace while it is simulated: part files appear complete or not at all, and the final name appears last."""

import base64
import json
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from neuronprof.errors import NeuronprofError
from neuronprof.trace import batch, schema

ROWS_PER_PART = 500_000
PARTIAL_SUFFIX = ".partial"

# Encodings that a benchmark chose (benchmarks/trace_io.py). Times and ids grow by small amounts in a queue; durations
# and distances have few significant bytes; everything else repeats, so that a dictionary with run lengths costs next
# to nothing.
_DELTA = ("id", "start_ts", "op", "released_by")
_SPLIT = ("duration_ns", "wait_ns", "deps.list.element")
_PLAIN_DICTIONARY = (*schema.STRINGS, "step", "chip", "core", "rank", "queue", "bytes", "flops", "collective")
_STATISTICS = [
    "step",
    "chip",
    "core",
    "rank",
    "start_ts",
    "duration_ns",
]  # what readers prune by; strings' statistics cost more than writing them
_ENCODING = {
    "use_dictionary": list(_PLAIN_DICTIONARY),
    "column_encoding": dict.fromkeys(_DELTA, "DELTA_BINARY_PACKED") | dict.fromkeys(_SPLIT, "BYTE_STREAM_SPLIT"),
    "compression": dict.fromkeys((*_DELTA, *_PLAIN_DICTIONARY), "LZ4") | dict.fromkeys(_SPLIT, "ZSTD"),
    "compression_level": dict.fromkeys(_SPLIT, 1),
    "write_statistics": _STATISTICS,
    "write_batch_size": 1 << 14,
}

_MOST_RANK_ROWS = 100_000  # in the footer; more stand in a file of their own


class TraceWriter:
    """Streams events to `path`.

    Batches are kept in memory until `rows_per_part` rows are there; then they become one part file in the folder
    `<path>.partial`, in which a row group holds rows of one chip only, sorted by `schema.SORT`. A thread encodes a
    part while the next one fills. A part has its name only when it is complete, so whatever kills the process,
    `open_trace` reads the parts so far from `<path>.partial`. `close` moves one part to `path` itself, several to the
    folder `path`, replacing what was there, and puts the metadata and the operators table into the last part.

    As a context manager: if the block raises, or ends without `close`, the rows so far stay readable in
    `<path>.partial`.

    Raises:
        NeuronprofError: the path cannot be written, or is taken by a folder that is not a trace.
    """

    def __init__(
        self, path: str | Path, *, rows_per_part: int = ROWS_PER_PART, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Takes the path and readies the folder for the parts.

        Args:
            path: the final name.
            rows_per_part: rows kept in memory before they become a part.
            metadata: what is known of the run before it ends; stands in the parts of a trace that is never closed.
        """
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + PARTIAL_SUFFIX)
        self._rows_per_part = rows_per_part
        self._metadata = {"schema_version": schema.VERSION, **(metadata or {}), "partial": True}
        self._vocabularies = batch.Vocabularies()
        self._pending: dict[int, list[batch.Batch]] = {}
        self._pending_rows = 0
        self._rows = 0
        self._parts = 0
        self._encoder = ThreadPoolExecutor(1)
        self._encoding: Future[None] | None = None
        self._closed = False
        with _Writing(self.path):
            _refuse_foreign_folder(self.path, empty=False)
            _remove(self.partial)
            self.partial.mkdir()

    def write(self, columns: Mapping[str, Any]) -> None:
        """Takes a batch of events, in any order.

        Args:
            columns: an entry a column of the schema; missing ones get their defaults (ids go on counting). Each value
                is an array, a scalar for all rows, for strings also (codes, list of strings) with code -1 for null,
                for deps also (pointers, values): row i has values[pointers[i]:pointers[i + 1]]. Arrow arrays are
                taken as well. start_ts must be an array. The arrays must not change afterwards.

        Raises:
            ValueError: columns that do not make a batch.
            NeuronprofError: the disk is full or gone.
        """
        rows = batch.normalize(columns, self._vocabularies, self._rows)
        count = len(rows["start_ts"])
        if self._pending_rows and self._pending_rows + count > self._rows_per_part:
            self._write_part(self._metadata, None)
        for chip, part in batch.split_by_chip(rows):
            self._pending.setdefault(chip, []).append(part)
        self._pending_rows += count
        self._rows += count

    def close(
        self,
        metadata: Mapping[str, Any],
        operators: Mapping[str, Any] | None = None,
        ranks: Mapping[str, Any] | None = None,
    ) -> Path:
        """Writes what is left and gives the trace its name.

        Args:
            metadata: JSON values; schema_version is added.
            operators: a list or array a column of `schema.OPERATORS`.
            ranks: the same of `schema.RANKS`; a large table stands in a file of its own, in a folder with the parts.

        Raises:
            NeuronprofError: the disk is full, or the name was taken meanwhile.
        """
        totals = _table(ranks, schema.RANKS)
        small = totals.num_rows <= _MOST_RANK_ROWS
        self._write_part({"schema_version": schema.VERSION, **metadata}, operators, totals if small else None)
        self._finish_encoding()
        if not small:
            with _Writing(self.path):
                pq.write_table(totals, self.partial / schema.RANKS_FILE, compression="zstd")
        self._closed = True
        with _Writing(self.path):
            replaced = self.path.with_name(self.path.name + ".replaced")
            _remove(replaced)
            if self.path.is_dir():
                self.path.rename(replaced)
            if self._parts == 1 and small:
                self._part(0).replace(self.path)
                self.partial.rmdir()
            else:
                self.path.unlink(missing_ok=True)
                self.partial.rename(self.path)
            _remove(replaced)
        return self.path

    def abort(self) -> None:
        """Gives up: nothing of this trace stays on disk, what was at `path` before is untouched."""
        self._closed = True
        self._pending.clear()
        self._encoder.shutdown()
        _remove(self.partial)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._closed:
            return
        try:
            if self._pending_rows:
                self._write_part(self._metadata, None)
            self._finish_encoding()
        finally:
            if not any(self.partial.glob("part-*")):  # not one part was finished
                _remove(self.partial)

    def _part(self, number: int) -> Path:
        return self.partial / f"part-{number:05d}.parquet"

    def _write_part(
        self, metadata: Mapping[str, Any], operators: Mapping[str, Any] | None, ranks: pa.Table | None = None
    ) -> None:
        """Sorts what is pending and hands it to the encoder, as soon as that is done with the part before."""
        extra = {
            schema.METADATA_KEY: json.dumps(metadata, allow_nan=False),
            schema.OPERATORS_KEY: _stream(_table(operators, schema.OPERATORS)),
            schema.RANKS_KEY: _stream(ranks if ranks is not None else schema.RANKS.empty_table()),
        }
        chips = [batch.table(self._pending.pop(chip), self._vocabularies) for chip in sorted(self._pending)]
        self._pending_rows = 0
        self._wait()
        self._encoding = self._encoder.submit(self._encode, self._part(self._parts), chips, extra)
        self._parts += 1

    def _encode(self, part: Path, chips: Sequence[pa.Table], extra: dict[bytes, Any]) -> None:
        unfinished = part.with_name(f".{part.name}")
        try:
            with pq.ParquetWriter(unfinished, schema.ARROW, **_ENCODING) as file:
                for rows in chips:
                    file.write_table(rows, self._rows_per_part)
                file.add_key_value_metadata(extra)
            unfinished.replace(part)
        finally:
            unfinished.unlink(missing_ok=True)

    def _wait(self) -> None:
        if self._encoding:
            with _Writing(self.path):
                self._encoding.result()

    def _finish_encoding(self) -> None:
        self._wait()
        self._encoder.shutdown()


class _Writing:
    """Turns what the disk refuses into one sentence."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise NeuronprofError(
                f"Cannot write the trace {self._path}: {reason}; choose another path with -o."
            ) from error


def _table(columns: Mapping[str, Any] | None, shape: pa.Schema) -> pa.Table:
    """Columns as a table of this schema; missing ones are null."""
    given = columns or {}
    rows = len(next(iter(given.values()))) if given else 0
    arrays = [_array(given[f.name], f.type) if f.name in given else pa.nulls(rows, f.type) for f in shape]
    return pa.Table.from_arrays(arrays, schema=shape)


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    """Values, for strings also as (codes, words)."""
    if isinstance(values, tuple):
        return pa.DictionaryArray.from_arrays(pa.array(values[0], pa.int32()), pa.array(values[1], pa.string()))
    return pa.array(values, kind)


def _stream(table: pa.Table) -> bytes:
    """A table as base64 of a compressed Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        stream.write_table(table)
    return base64.b64encode(sink.getvalue())


def _refuse_foreign_folder(path: Path, *, empty: bool) -> None:
    """Refuses to take the place of a folder that is not one of part files; `empty`: an empty one may be taken."""
    if not path.is_dir():
        return
    names = [entry.name.removeprefix(".") for entry in path.iterdir()]
    if not (names or empty):
        raise NeuronprofError(f"{path} is a folder; write the trace to a file in it with -o {path / 'trace.parquet'}.")
    if not all((name.startswith("part-") and name.endswith(".parquet")) or name == schema.RANKS_FILE for name in names):
        raise NeuronprofError(f"{path} is a folder that holds other things than a trace; choose another path with -o.")


def _remove(path: Path) -> None:
    """Deletes a file, or a folder of part files; never another folder."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    _refuse_foreign_folder(path, empty=True)
    shutil.rmtree(path)
