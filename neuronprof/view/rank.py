"""One rank's events as arrays, and the lanes of the timeline they stand in."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze import spans
from neuronprof.terms import COMPUTE_ENGINES, Engine, Kind
from neuronprof.trace import schema
from neuronprof.view import tracks

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from neuronprof.trace.reader import TraceFile

_NUMBERS = ("step", "queue", "start_ts", "duration_ns", "wait_ns", "op", "bytes", "flops")
_TEXTS = (
    "engine", "kind", "name", "wait_for", "op_name", "layer", "phase", "source", "dtype", "replica_group", "algorithm",
)  # fmt: skip
COLUMNS = schema.select(*_NUMBERS, *_TEXTS)
# What the same instruction of the same operator shares with its repetitions; the page stores each combination once.
_ALIKE = ("name", "op_name", "layer", "phase", "source", "dtype", "replica_group", "algorithm", "op", "bytes", "flops")


@dataclass(slots=True)
class Events:
    """A rank's rows: whole-number columns as int64, string columns as int64 codes into `strings` (-1: none)."""

    number: dict[str, NDArray[np.int64]]
    code: dict[str, NDArray[np.int64]]
    strings: dict[str, list[str]]

    def having(self, column: str, *texts: str) -> NDArray[np.bool_]:
        """Which rows have one of the texts in a string column."""
        codes = [code for code, text in enumerate(self.strings[column]) if text in texts]
        return np.isin(self.code[column], codes)


@dataclass(slots=True)
class Lane:
    """What stands in one row: start and duration (int64 nanoseconds, sorted by start), the rows of the alike table, waits."""

    at: tracks.Row
    start: NDArray[np.int64]
    duration: NDArray[np.int64]
    alike: NDArray[np.int64]
    wait: NDArray[np.int64]
    wait_for: NDArray[np.int64]
    crowded: bool = False


@dataclass(slots=True)
class Alike:
    """Each distinct combination of what repeated events share: columns of equal length, texts as codes into `strings`."""

    columns: dict[str, NDArray[np.int64]]
    strings: dict[str, list[str]] = field(default_factory=dict)

    def append(self, **values: int | str) -> int:
        """Adds a combination; what is not given is none. Returns its row."""
        for name, column in self.columns.items():
            value = values.get(name, -1)
            if isinstance(value, str):
                self.strings[name].append(value)
                value = len(self.strings[name]) - 1
            self.columns[name] = np.append(column, value)
        return len(next(iter(self.columns.values()))) - 1


def read(trace: "TraceFile", rank: int) -> Events:
    """The events of one rank."""
    table = trace.columns(COLUMNS, rank=rank)
    number = {name: _whole(table[name], schema.BY_NAME[name].default or 0) for name in _NUMBERS}
    code, strings = {}, {}
    for name in _TEXTS:
        code[name], strings[name] = _coded(table[name])
    return Events(number, code, strings)


def _whole(column: "pa.ChunkedArray", default: int) -> NDArray[np.int64]:
    return column.fill_null(default).to_numpy().astype(np.int64)


def _coded(column: "pa.ChunkedArray") -> tuple[NDArray[np.int64], list[str]]:
    if not len(column):
        return np.zeros(0, np.int64), []
    parts = [chunk.indices.fill_null(-1).to_numpy().astype(np.int64) for chunk in column.chunks]
    return np.concatenate(parts), column.chunk(0).dictionary.to_pylist()


def alike(events: Events, operators: "pd.DataFrame") -> tuple[NDArray[np.int64], Alike]:
    """For each event its row of the alike table, and that table, with the operator's shapes."""
    import pandas as pd

    every = {**events.number, **events.code}
    combined = np.zeros(len(every["op"]), np.int64)
    for name in _ALIKE:
        codes, distinct = pd.factorize(every[name])
        combined = pd.factorize(combined * max(1, len(distinct)) + codes)[0].astype(np.int64)
    seen = np.maximum.accumulate(combined) if len(combined) else combined
    first = np.flatnonzero(np.concatenate(([True], combined[1:] > seen[:-1]))) if len(combined) else combined
    columns = {name: every[name][first] for name in _ALIKE}
    strings = {name: list(events.strings[name]) for name in _ALIKE if name in events.strings}
    shapes, texts = pd.factorize(operators["shapes"])
    place = dict(zip(operators["op"].tolist(), shapes.tolist(), strict=True))
    columns["shapes"] = np.array([place.get(op, -1) for op in columns["op"].tolist()], np.int64)
    strings["shapes"] = [str(text) for text in texts]
    return combined, Alike(columns, strings)


def lanes(events: Events, rows: NDArray[np.int64]) -> list[Lane]:
    """The lanes of everything but memory, top to bottom; HBM's transfers are drawn as bandwidth, so they have no lane.

    Args:
        events: of one rank.
        rows: each event's row of the alike table.
    """
    shown = np.flatnonzero(~events.having("engine", Engine.HBM) & ~events.having("kind", Kind.MEMORY))
    engine, queue = events.code["engine"][shown], events.number["queue"][shown]
    order = shown[np.lexsort((events.number["start_ts"][shown], queue, engine))]
    engine, queue = events.code["engine"][order], events.number["queue"][order]
    cuts = np.flatnonzero((engine[1:] != engine[:-1]) | (queue[1:] != queue[:-1])) + 1
    out = []
    for part in np.split(order, cuts) if len(order) else []:
        name = events.strings["engine"][events.code["engine"][part[0]]] if events.code["engine"][part[0]] >= 0 else ""
        start = events.number["start_ts"][part]
        stacked = spans.stack(start, start + events.number["duration_ns"][part])
        for lane in np.unique(stacked).tolist():
            at = tracks.row(name, int(events.number["queue"][part[0]]), lane)
            out.append(_lane(events, rows, part[stacked == lane], at))
    return sorted(out, key=lambda lane: lane.at)


def _lane(events: Events, rows: NDArray[np.int64], part: NDArray[np.intp], at: tracks.Row) -> Lane:
    number = events.number
    crowded = at.lane == spans.MOST_LANES - 1
    return Lane(
        at,
        number["start_ts"][part],
        number["duration_ns"][part],
        rows[part],
        number["wait_ns"][part],
        events.code["wait_for"][part],
        crowded,
    )


def bands(events: Events, segments: list[dict[str, Any]], table: Alike) -> list[Lane]:
    """The bands above the engines: steps (from the run's segments) and phases (from what the compute engines ran)."""
    steps = [
        (s["start_ts"], s["end_ts"], table.append(name=f"step {s['step']}" if s["kind"] == "step" else "evaluation"))
        for s in segments
    ]
    found = [_band(tracks.STEP, steps), _band(tracks.PHASE, _phases(events, table))]
    return [band for band in found if len(band.start)]


def extents(events: Events) -> list[dict[str, Any]]:
    """Segments of a trace whose metadata has none: each step from its first to its last event."""
    start, step = events.number["start_ts"], events.number["step"]
    end = start + events.number["duration_ns"]
    timed = ~events.having("kind", Kind.MEMORY)
    segments = []
    for number in np.unique(step[timed]).tolist():
        rows = timed & (step == number)
        kind = "evaluation" if number < 0 else "step"
        segments.append(
            {"kind": kind, "step": number, "start_ts": int(start[rows].min()), "end_ts": int(end[rows].max())}
        )
    return segments


def _phases(events: Events, table: Alike) -> list[tuple[int, int, int]]:
    """(start, end, row of the alike table) of each run of one phase in one step."""
    rows = np.flatnonzero(events.having("engine", *COMPUTE_ENGINES) & (events.code["phase"] >= 0))
    rows = rows[np.argsort(events.number["start_ts"][rows], kind="stable")]
    start, phase = events.number["start_ts"][rows], events.code["phase"][rows]
    many = len(events.strings["phase"]) + 1
    mixed = events.number["step"][rows] * many + phase
    first, last, label = spans.runs(start, start + events.number["duration_ns"][rows], mixed)
    names = {code: table.append(name=text, phase=code) for code, text in enumerate(events.strings["phase"])}
    return [(a, b, names[c % many]) for a, b, c in zip(first.tolist(), last.tolist(), label.tolist(), strict=True)]


def _band(name: str, entries: list[tuple[int, int, int]]) -> Lane:
    whole = np.array(sorted(entries), np.int64).reshape(-1, 3)
    none = np.zeros(len(whole), np.int64)
    return Lane(tracks.row(name), whole[:, 0], whole[:, 1] - whole[:, 0], whole[:, 2], none, none - 1)
