"""Reads one rank piece by piece into tracks: the events of an engine and queue, sorted by start, none overlapping in a lane."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze import spans
from neuronprof.analyze.pyramid import alike, store
from neuronprof.analyze.pyramid.store import Shelf, narrow
from neuronprof.terms import Engine, Kind, OnChip
from neuronprof.trace.batch import Vocabulary

if TYPE_CHECKING:
    import pyarrow as pa

    from neuronprof.trace.reader import TraceFile

MEMORIES = (Engine.HBM, *OnChip)
Report = Callable[[str, float], None]  # what is being done, and the share of it that is done

_TIMES = ("start_ts", "duration_ns", "wait_ns", "id")
_NUMBERS = (*_TIMES, "queue", "released_by", "step", *alike.NUMBERS)
_READ = (*_NUMBERS, "wait_for", "operands", *alike.TEXTS)
_AT_ONCE = 2_000_000  # events of a track that are looked at together
_EVENT = ("start", "duration", "wait", "wait_for", "alike", "id", "released")


@dataclass
class Lane:
    """Events of a row: from `first` to before `last` in the columns.

    crowded: they may overlap; reach: the longest, ns; ordered: ids grow.
    """

    engine: str
    queue: int
    lane: int
    first: int
    last: int
    crowded: bool = False
    reach: int = 0
    ordered: bool = True


@dataclass
class Tracks:
    """A rank's events in columns of `_EVENT` on the shelf, lane after lane; start is counted from `origin`, id from `first_id`.

    released: the id of what released an event, counted from first_id + 1 (0: nothing, or one of another rank, which then stands in
    foreign). memory: start, end, bytes and category of what each memory holds; steps: first start and last end of each step number.
    """

    origin: int
    first_id: int
    lanes: list[Lane]
    columns: dict[str, NDArray[Any]]
    alike: alike.Collector
    wait_words: list[str]
    foreign: list[tuple[int, int]] = field(default_factory=list)
    memory: dict[str, list[NDArray[np.int64]]] = field(default_factory=lambda: {memory: [] for memory in MEMORIES})
    memory_words: Vocabulary = field(default_factory=Vocabulary)
    steps: dict[int, tuple[int, int]] = field(default_factory=dict)


@dataclass
class _Extent:
    """What the first reading finds: events a track, and the range of each number."""

    counts: dict[tuple[str, int], int] = field(default_factory=dict)
    low: dict[str, int] = field(default_factory=dict)
    high: dict[str, int] = field(default_factory=dict)


def read(trace: "TraceFile", rank: int, shelf: Shelf, report: Report) -> Tracks:
    """Reads a rank twice, first to know how much there is; memory holds one piece at a time.

    Raises:
        NeuronprofError: the trace is damaged.
    """
    extent = _measure(trace, rank)
    total = sum(extent.counts.values())
    origin, first_id = extent.low.get("start_ts", 0), extent.low.get("id", 0)
    sizes = {
        "start": extent.high.get("start_ts", 0) - origin,
        "duration": extent.high.get("duration_ns", 0),
        "wait": extent.high.get("wait_ns", 0),
        "id": extent.high.get("id", 0) - first_id,
        "released": extent.high.get("id", 0) - first_id + 1,
    }
    types = {name: narrow(0, size) for name, size in sizes.items()} | {"wait_for": np.int8, "alike": np.uint32}
    lanes, at = [], 0
    for (engine, queue), count in sorted(extent.counts.items()):
        lanes.append(Lane(engine, queue, 0, at, at + count))
        at += count
    columns = {name: shelf.empty(name, total, types[name]) for name in _EVENT}
    tracks = Tracks(origin, first_id, lanes, columns, alike.Collector(), [])
    _fill(trace, rank, tracks, extent.high.get("id", 0), report)
    tracks.lanes = [part for lane in lanes for part in _laid_out(tracks.columns, lane)]
    for lane in tracks.lanes:
        ids = tracks.columns["id"][lane.first : lane.last]
        lane.ordered = not (ids[1:] < ids[:-1]).any()
    return tracks


def _measure(trace: "TraceFile", rank: int) -> _Extent:
    extent = _Extent()
    for table in trace.pieces(("engine", "kind", "queue", *_TIMES), rank=rank):
        timed = table.filter(_is_timed(table))
        for engine, queue, rows in _runs(timed):
            extent.counts[engine, queue] = extent.counts.get((engine, queue), 0) + rows.stop - rows.start
        for name in _TIMES if timed.num_rows else ():
            values = timed[name].to_numpy()
            extent.low[name] = min(extent.low.get(name, int(values.min())), int(values.min()))
            extent.high[name] = max(extent.high.get(name, 0), int(values.max()))
    return extent


def _fill(trace: "TraceFile", rank: int, tracks: Tracks, last_id: int, report: Report) -> None:
    """The second reading: puts each piece's events where they belong."""
    filled = {(lane.engine, lane.queue): lane.first for lane in tracks.lanes}
    waits, done, total = Vocabulary(), 0, max(1, len(tracks.columns["start"]))
    for table in trace.pieces(_READ, rank=rank):
        timed = _is_timed(table)
        _keep_memory(table.filter(~timed), tracks)
        table = table.filter(timed)
        numbers = {name: table[name].fill_null(-1).to_numpy().astype(np.int64) for name in _NUMBERS}
        numbers[alike.THROTTLED] = alike.throttled(table["operands"])
        released = numbers["released_by"]
        own = (released >= tracks.first_id) & (released <= last_id)
        new = {
            "start": numbers["start_ts"] - tracks.origin,
            "duration": numbers["duration_ns"],
            "wait": np.maximum(numbers["wait_ns"], 0),
            "wait_for": alike.coded(table["wait_for"], waits),
            "alike": tracks.alike.take(table, numbers),
            "id": numbers["id"] - tracks.first_id,
            "released": np.where(own, released - tracks.first_id + 1, 0),
        }
        _keep_steps(tracks.steps, numbers)
        foreign = np.flatnonzero((released >= 0) & ~own)
        tracks.foreign += zip(new["id"][foreign].tolist(), released[foreign].tolist(), strict=True)
        for engine, queue, rows in _runs(table):
            at = filled[engine, queue]
            filled[engine, queue] = at + rows.stop - rows.start
            for name, column in tracks.columns.items():
                column[at : at + rows.stop - rows.start] = new[name][rows]
        store.release(tracks.columns.values())
        done += table.num_rows
        report("reading events", done / total)
    tracks.wait_words = waits.words


def _is_timed(table: "pa.Table") -> NDArray[np.bool_]:
    """Which rows are events, not levels that memory holds."""
    import pyarrow.compute as pc

    timed: NDArray[np.bool_] = pc.not_equal(table["kind"].cast("string"), Kind.MEMORY).fill_null(True).to_numpy()
    return timed


def _runs(table: "pa.Table") -> Iterator[tuple[str, int, slice]]:
    """The runs of rows of one engine and queue."""
    if not table.num_rows:
        return
    words = Vocabulary()
    engine = alike.coded(table["engine"], words)
    queue = table["queue"].fill_null(0).to_numpy()
    cuts = np.flatnonzero((engine[1:] != engine[:-1]) | (queue[1:] != queue[:-1])) + 1
    for first, last in zip([0, *cuts.tolist()], [*cuts.tolist(), len(queue)], strict=True):
        yield words.words[engine[first]] if engine[first] >= 0 else "", int(queue[first]), slice(first, last)


def _keep_memory(table: "pa.Table", tracks: Tracks) -> None:
    """What each memory holds."""
    if not table.num_rows:
        return
    names = alike.coded(table["name"], tracks.memory_words)
    start, duration, held = (
        table[n].fill_null(0).to_numpy().astype(np.int64) for n in ("start_ts", "duration_ns", "bytes")
    )
    engine = table["engine"].cast("string").to_numpy(zero_copy_only=False)
    rows = np.stack((start, start + duration, held, names))
    for memory, parts in tracks.memory.items():
        if (mine := np.array(engine == memory)).any():
            parts.append(rows[:, mine])


def _keep_steps(steps: dict[int, tuple[int, int]], numbers: dict[str, NDArray[np.int64]]) -> None:
    start, end = numbers["start_ts"], numbers["start_ts"] + numbers["duration_ns"]
    for step in np.unique(numbers["step"]).tolist():
        mine = numbers["step"] == step
        first, last = int(start[mine].min()), int(end[mine].max())
        before = steps.get(step, (first, last))
        steps[step] = (min(before[0], first), max(before[1], last))


def _laid_out(columns: dict[str, NDArray[Any]], lane: Lane) -> list[Lane]:
    """Sorts a track and spreads events that overlap over several lanes."""
    if _in_order(columns, lane):
        lane.crowded = lane.engine == Engine.HBM
        return [lane]
    rows = slice(lane.first, lane.last)
    start = columns["start"][rows].astype(np.int64)
    if (start[1:] < start[:-1]).any():
        _reorder(columns, rows, np.argsort(start, kind="stable"))
        start = columns["start"][rows].astype(np.int64)
    if lane.engine == Engine.HBM:  # drawn as bandwidth, not as a row
        lane.crowded = True
        return [lane]
    duration = columns["duration"][rows].astype(np.int64)
    stacked = spans.stack(start, start + duration)
    many = int(stacked.max(initial=0)) + 1
    if many == 1:
        return [lane]
    _reorder(columns, rows, np.argsort(stacked, kind="stable"))
    edges = lane.first + np.concatenate(([0], np.cumsum(np.bincount(stacked))))
    return [
        Lane(lane.engine, lane.queue, n, int(edges[n]), int(edges[n + 1]), n == spans.MOST_LANES - 1, lane.reach)
        for n in range(many)
    ]


def _in_order(columns: dict[str, NDArray[Any]], lane: Lane) -> bool:
    """Whether no event of a track begins before those in front of it have ended, a piece at a time; notes the longest one."""
    ordered, end = True, 0
    for first in range(lane.first, lane.last, _AT_ONCE):
        rows = slice(first, min(first + _AT_ONCE, lane.last))
        start, duration = (columns[name][rows].astype(np.int64) for name in ("start", "duration"))
        ends = np.maximum.accumulate(np.maximum(start + duration, end))
        ordered &= bool((start >= np.concatenate(([end], ends[:-1]))).all())
        lane.reach, end = max(lane.reach, int(duration.max())), int(ends[-1])
    return ordered


def _reorder(columns: dict[str, NDArray[Any]], rows: slice, order: NDArray[np.intp]) -> None:
    for column in columns.values():
        column[rows] = column[rows][order]
