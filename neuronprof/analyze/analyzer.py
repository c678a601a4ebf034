"""What an analyzer is, and the events it is given.

An analyzer is a frozen dataclass, one file: it names the columns it needs, maps the events of one chip to small tables, combines two such
tables (associative, blind to order), and finishes the combined ones. So the same code runs serially, on the cores of one machine, or on a
cluster, and over chips that memory cannot hold: see `passes`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from neuronprof.analyze import intervals
from neuronprof.analyze.grouping import Runs, heads
from neuronprof.terms import Kind
from neuronprof.trace import reader, schema

if TYPE_CHECKING:
    import pandas as pd

_FEW = 1 << 16  # numbers that are counted rather than sorted
_FEW_WORDS = 4  # words that are compared one by one
EVALUATION = -1  # the step of what runs between training steps

State = dict[str, "pd.DataFrame"]
Mapper = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


@dataclass(frozen=True, slots=True)
class Window:
    """One segment of the run, the same for all ranks: times in nanoseconds, FLOPs and bytes of one rank (0: unknown)."""

    step: int
    start: int
    end: int
    model_flops: int = 0
    hardware_flops: int = 0
    model_bytes: int = 0

    @property
    def time_ns(self) -> int:
        """Length in nanoseconds."""
        return self.end - self.start


@dataclass(frozen=True)
class Context:
    """What analyzers know besides events: the run's metadata and its windows, sorted by start."""

    metadata: Mapping[str, Any]
    windows: tuple[Window, ...]

    @property
    def machine(self) -> Mapping[str, Any]:
        """Limits of one rank: peak_flops by dtype, hbm_bandwidth, hbm_capacity, neuronlink_bandwidth, efa_bandwidth; empty if unknown."""
        rank: Mapping[str, Any] = (self.metadata.get("machine") or {}).get("rank") or {}
        return rank

    def limit(self, name: str) -> float:
        """One of the machine's limits, NaN if the trace does not tell it."""
        return float(self.machine.get(name) or np.nan)


class _Taken(Mapping[str, NDArray[Any]]):
    """Some rows of columns; a column is copied when it is asked for, and once. rows: how many."""

    def __init__(self, columns: Mapping[str, NDArray[Any]], chosen: NDArray[Any] | Runs) -> None:
        self._columns, self._chosen, self._copied = columns, chosen, dict[str, NDArray[Any]]()
        self.rows = len(chosen)

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._copied:
            column, chosen = self._columns[name], self._chosen
            self._copied[name] = chosen.of(column) if isinstance(chosen, Runs) else column[chosen]
        return self._copied[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


@dataclass(frozen=True)
class Events:
    """Events as numpy arrays; a string column as codes of its words, -1 for null."""

    columns: Mapping[str, NDArray[Any]]
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    _known: dict[tuple[str, frozenset[str]], NDArray[np.bool_]] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return self.columns.rows if isinstance(self.columns, _Taken) else len(next(iter(self.columns.values())))

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def take(self, rows: NDArray[Any] | Runs) -> "Events":
        """The rows of a mask, an index array or runs; each column is copied when it is asked for, one run not at all."""
        if isinstance(rows, np.ndarray) and rows.dtype == bool:
            rows = np.flatnonzero(rows)  # once for all columns
        return Events(_Taken(self.columns, rows), self.words)

    def among(self, name: str, words: Iterable[str]) -> NDArray[np.bool_]:
        """Whether the string column has one of the words; computed once and read-only."""
        key = (name, frozenset(words))
        if key not in self._known:
            codes = [code for code, word in enumerate(self.words[name]) if word in key[1]]
            found = np.isin(self.columns[name], codes) if len(codes) > _FEW_WORDS else self._equal(name, codes)
            found.flags.writeable = False
            self._known[key] = found
        return self._known[key]

    def _equal(self, name: str, codes: list[int]) -> NDArray[np.bool_]:
        found = np.zeros(len(self), bool)
        for code in codes:
            found |= self.columns[name] == code
        return found

    def text(self, name: str, codes: NDArray[Any]) -> NDArray[np.object_]:
        """Codes of a string column as strings, '' for null."""
        return np.array([*self.words[name], ""], object)[codes]


@dataclass(frozen=True)
class Span:
    """The events of one rank in one window, memory levels left out; `known`: what several analyzers ask of it, computed once.

    part_of: the window of which this one is a stretch of time, where that is too large to be held at once (see `slices`). own: the rows
    of the chip, from the first up to before the last, that are read with this stretch; the others reach into it, ended before it, or wait
    in it. first: whether the window begins in it.
    """

    rank: int
    window: Window
    _chip: Events
    _runs: Runs
    known: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    part_of: Window | None = None
    own: tuple[int, int] | None = None
    first: bool = True

    @property
    def whole(self) -> Window:
        """The window, or that of which it is a stretch."""
        return self.part_of or self.window

    @cached_property
    def _whole(self) -> Events:
        return self._chip.take(self._runs)

    @cached_property
    def _clipped(self) -> tuple[Events, NDArray[np.int64], NDArray[np.int64]]:
        events, window = self._whole, self.window
        start = events["start_ts"]
        end = start + events["duration_ns"]
        if len(start) and start.min() >= window.start and start.max() < window.end and end.max() <= window.end:
            return events, start, end
        inside = self._inside
        if not inside.all():
            events, start, end = events.take(inside), start[inside], end[inside]
        return events, np.clip(start, window.start, window.end), np.clip(end, window.start, window.end)

    @property
    def _inside(self) -> NDArray[np.bool_]:
        start, duration = self._whole["start_ts"], self._whole["duration_ns"]
        touches: NDArray[np.bool_] = (start < self.whole.end) & (start + duration >= self.whole.start)
        return touches

    @cached_property
    def is_own(self) -> NDArray[np.bool_]:
        """Of each event whether it is counted here: in one of the stretches of a window."""
        if self.own is None:
            return np.ones(len(self.events), bool)
        first, last = self.own
        lengths = self._runs.last - self._runs.first
        return np.repeat((self._runs.first >= first) & (self._runs.first < last), lengths)[self._inside]

    def once(self, name: str) -> NDArray[Any]:
        """A column of numbers, with 0 for events that are counted in another stretch of the window."""
        return self.events[name] if self.own is None else np.where(self.is_own, self.events[name], 0)

    @property
    def events(self) -> Events:
        """Those that touch the window."""
        return self._clipped[0]

    @property
    def start(self) -> NDArray[np.int64]:
        """Their start_ts, clipped to the window."""
        return self._clipped[1]

    @property
    def end(self) -> NDArray[np.int64]:
        """Their ends, clipped to the window."""
        return self._clipped[2]

    def of(self, engines: Iterable[str]) -> "Span":
        """The events of some engines."""
        mine = self._chip.take(self._runs.first).among("engine", engines)
        return replace(self, _runs=self._runs.where(mine), known={})

    def busy(self) -> int:
        """Nanoseconds of the window in which at least one of the events runs."""
        from neuronprof.analyze import sweep  # numba takes as long to load as all the rest

        times = self._chip["start_ts"], self._chip["duration_ns"]
        found, known = sweep.union(self._runs.first, self._runs.last, *times, self.window.start, self.window.end)
        return int(found) if known else intervals.length(self.start, self.end)


@dataclass(frozen=True)
class Chip:
    """What an analyzer maps: all events of one chip, or a piece of them, and the same cut into spans.

    metadata: of the trace. ranks: those that get spans; None: those that have events.
    """

    events: Events
    windows: tuple[Window, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    ranks: tuple[int, ...] | None = None

    @cached_property
    def spans(self) -> list[Span]:
        """A span for each rank of the chip and each window, also where nothing happened."""
        cut = [self.events[name] for name in ("rank", "step", "kind", "engine") if name in self.events.columns]
        runs = Runs.between(heads(*cut), len(self.events))
        ranks = np.unique(self.events["rank"][runs.first]).tolist() if self.ranks is None else self.ranks
        runs = runs.where(~self.events.take(runs.first).among("kind", [Kind.MEMORY]))
        rank, step = (self.events[name][runs.first] for name in ("rank", "step"))
        order = np.lexsort((step, rank))
        runs, rank, step = runs.where(order), rank[order], step[order]
        spans = []
        for one in ranks:
            low, high = np.searchsorted(rank, [one, one + 1])
            for window in self.windows:
                first, last = low + np.searchsorted(step[low:high], [window.step, window.step + 1])
                spans.append(Span(one, window, self.events, runs.where(slice(first, last))))
        return spans


def _present(values: NDArray[Any]) -> NDArray[np.int64]:
    """The distinct values, sorted; of few, in one pass."""
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, _FEW)
    if low == high:
        return np.array([low])
    if high - low < _FEW:
        return np.flatnonzero(np.bincount(values - low)) + low
    return np.unique(values).astype(np.int64)


class Scope(IntEnum):
    """What `map` must see at once so that the pieces add up to the whole: chips that are too large for memory come in pieces."""

    MOMENT = 0  # any stretch of time of one rank's step, as a span tells of it; `Chip.events` are its own rows
    STEP = 1  # a whole step of one rank
    RANK = 2  # all steps of one rank, but only the events that `only` names
    CHIP = 3  # everything


class Analyzer(ABC):
    """One question to a trace; the subclass's docstring is the sentence that reports print above its tables.

    name: how users call it. needs: columns of the trace. keys: the state's tables, each with the columns that identify a row; the other
    columns are added up by `combine`. tables: the finished tables, each with its columns; the first has the analyzer's name. scope: what
    `map` has to see at once. only: for `Scope.RANK` the words that a column of the events has in which it is interested.
    """

    name: ClassVar[str]
    scope: ClassVar[Scope] = Scope.CHIP
    only: ClassVar[dict[str, tuple[str, ...]]] = {}
    needs: ClassVar[tuple[str, ...]]
    keys: ClassVar[dict[str, tuple[str, ...]]]
    tables: ClassVar[dict[str, tuple[str, ...]]]

    def concerns(self, _metadata: Mapping[str, Any]) -> bool:
        """Whether a trace, of which this is the metadata, has what is asked for; if not, nothing is read for it."""
        return True

    @abstractmethod
    def map(self, chip: Chip) -> State:
        """The state's tables for the events of one chip."""

    def combine(self, a: State, b: State) -> State:
        """One state from two; associative, and the same whichever comes first."""
        return {table: add(list(keys), a[table], b[table]) for table, keys in self.keys.items()}

    @abstractmethod
    def finish(self, state: State, context: Context) -> State:
        """The finished tables from the state of all chips."""


def add(keys: list[str], *tables: "pd.DataFrame") -> "pd.DataFrame":
    """Rows of all tables with equal keys added up, sorted by the keys."""
    import pandas as pd

    filled = [table for table in tables if len(table)] or [tables[0]]
    return pd.concat(filled, ignore_index=True).groupby(keys, sort=True, as_index=False).sum()


BASE = schema.select("step", "rank", "kind", "start_ts", "duration_ns")


def events(table: pa.Table) -> Events:
    """A table of the trace as arrays."""
    columns, words = {}, {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if name in schema.STRINGS:
            words[name] = tuple(column.dictionary.to_pylist())
            column = column.indices.fill_null(-1)
        columns[name] = column.to_numpy(zero_copy_only=False)
    return Events(columns, words)


def context_of(trace: reader.TraceFile) -> Context:
    """What a trace tells besides its events."""
    return Context(trace.metadata, _windows(trace))


def _windows(trace: reader.TraceFile) -> tuple[Window, ...]:
    """The segments that the metadata names; for a trace without, the extent of each step's events."""
    segments = trace.metadata.get("segments")
    if not segments:
        return _extents(events(piece) for piece in trace.pieces(("step", "start_ts", "duration_ns")))
    names = ("model_flops", "hardware_flops", "model_bytes")
    windows = [
        Window(
            EVALUATION if s.get("kind") == "evaluation" else int(s["step"]), int(s["start_ts"]), int(s["end_ts"]),
            *(int(s.get(name) or 0) for name in names),
        )
        for s in segments
    ]  # fmt: skip
    return tuple(sorted(windows, key=lambda w: (w.start, w.end)))


def _extents(pieces: Iterable[Events]) -> tuple[Window, ...]:
    """From the first start to the last end of each step, over all pieces."""
    found: dict[int, tuple[int, int]] = {}
    for rows in pieces:
        start, end = rows["start_ts"], rows["start_ts"] + rows["duration_ns"]
        for step in _present(rows["step"]).tolist():
            mine = rows["step"] == step
            low, high = found.get(step, (int(start[mine].min()), int(end[mine].max())))
            found[step] = (min(low, int(start[mine].min())), max(high, int(end[mine].max())))
    return tuple(sorted((Window(step, low, high) for step, (low, high) in found.items()), key=lambda w: w.start))
