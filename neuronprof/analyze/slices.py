"""A step of one rank in stretches of time, for steps that memory cannot hold: what analyzers find in them adds up to what they find in all.

The stretches meet inside of events, so that no time in which nothing runs is cut in two. A row is the own one of the stretch that was read
when it started. A stretch also gets the rows of others that concern it: those that reach into it; for each engine the one that ended last
before it, because the engine is idle since; and collectives that wait for their peers in it and start later.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from neuronprof.analyze.analyzer import Chip, Events, Span, Window, events
from neuronprof.analyze.grouping import Runs, heads
from neuronprof.terms import Engine, Kind, WaitFor
from neuronprof.trace.reader import TraceFile, joined

NEEDS = ("engine", "wait_ns", "wait_for")  # besides analyzer.BASE
_ONE_OF = 64  # rows, of which one start is looked at to find equal parts
_RUNNING = tuple(engine for engine in Engine if engine is not Engine.SYNC)  # what instants are charged to
_LEAST, _MOST = np.iinfo(np.int64).min, np.iinfo(np.int64).max


@dataclass(frozen=True)
class Stretch(Chip):
    """The own rows of a stretch; cut: its spans, with the rows of others."""

    cut: Sequence[Span] = ()

    @property
    def spans(self) -> list[Span]:
        """One of each window that the stretch is part of."""
        return list(self.cut)


@dataclass(frozen=True)
class Cutter:
    """Reads a step of one rank. names: columns, with those of `NEEDS`; windows: of the step; at_once: events of a stretch."""

    trace: TraceFile
    names: Sequence[str]
    chip: int
    rank: int
    step: int
    windows: tuple[Window, ...]
    at_once: int

    def stretches(self) -> Iterator[tuple[pa.Table, Stretch]]:
        """The own rows of each stretch, and what analyzers map of it.

        Raises:
            NeuronprofError: the trace is damaged.
        """
        edges, starts, waits = self._outline()
        carried, since = joined([], self.names), _LEAST
        for low, high in pairwise([_LEAST, *edges, _MOST]):
            ahead = np.unique(starts[(starts >= high) & (starts - waits < high)]).tolist() if high < _MOST else []
            own = self._read((low, high - 1))
            later = [_waiting(self._read((start, start))) for start in ahead]
            table = pa.concat_tables([carried, own, *later]).unify_dictionaries()
            rows = events(table)
            mine = (len(carried), len(carried) + len(own))
            own_rows = rows.take(Runs(*np.array(mine)[:, np.newaxis]))
            until = _MOST if high == _MOST else max(since, _last_start(own_rows) + 1)
            spans = tuple(self._spans(rows, mine, since, until))
            yield own, Stretch(own_rows, self.windows, self.trace.metadata, (self.rank,), spans)
            carried, since = table.take(_reaching(rows, mine[1], until)), until

    def _read(self, starts: tuple[int, int]) -> pa.Table:
        return joined(list(self._pieces(self.names, starts)), self.names)

    def _pieces(self, names: Sequence[str], starts: tuple[int, int] | None = None) -> Iterator[pa.Table]:
        return self.trace.pieces(names, chip=self.chip, rank=self.rank, steps=(self.step, self.step), starts=starts)

    def _outline(self) -> tuple[list[int], NDArray[np.int64], NDArray[np.int64]]:
        """Where to cut, and the start of each collective that waits for peers with the time that it waits."""
        seen, waiting = [np.zeros(0, np.int64)], [np.zeros((0, 2), np.int64)]
        count = 0
        for piece in self._pieces(("start_ts", *NEEDS)):
            rows = events(piece)
            count += len(rows)
            seen.append(rows["start_ts"][::_ONE_OF].copy())
            waits = np.flatnonzero(_waits(rows))
            waiting.append(np.column_stack([rows["start_ts"][waits], rows["wait_ns"][waits]]))
        starts = np.sort(np.concatenate(seen))
        parts = -(-count // self.at_once)
        edges = np.unique(starts[len(starts) * np.arange(1, parts) // parts])
        both = np.concatenate(waiting)
        return edges.tolist(), both[:, 0], both[:, 1]

    def _spans(self, rows: Events, own: tuple[int, int], since: int, until: int) -> Iterator[Span]:
        """What belongs to each window that the stretch from `since` to `until`, or one of its own rows, is in; clipped to both."""
        cuts = np.union1d(heads(rows["kind"], rows["engine"]), [cut for cut in own if cut < len(rows)]).astype(np.intp)
        runs = Runs.between(cuts, len(rows))
        runs = runs.where(~rows.take(runs.first).among("kind", [Kind.MEMORY]))
        for window in self.windows:
            low, high = (min(max(time, window.start), window.end) for time in (since, until))
            first, part = since <= window.start < until, replace(window, start=low, end=high)
            span = Span(self.rank, part, rows, runs, part_of=window, own=own, first=first)
            if first or low < high or span.is_own.any():
                yield span


def _waits(rows: Events) -> NDArray[np.bool_]:
    """Collectives that wait for a peer before they start."""
    found: NDArray[np.bool_] = (
        rows.among("engine", [Engine.CC]) & rows.among("wait_for", [WaitFor.PEER]) & (rows["wait_ns"] > 0)
    )
    return found


def _waiting(table: pa.Table) -> pa.Table:
    return table.filter(pa.array(_waits(events(table))))


def _last_start(rows: Events) -> int:
    """When the last of the rows starts that stands for time in which something runs; before all of them if there is none."""
    runs = (rows["duration_ns"] > 0) & rows.among("engine", _RUNNING) & ~rows.among("kind", [Kind.MEMORY])
    return int(rows["start_ts"][runs].max(initial=_LEAST))


def _reaching(rows: Events, seen: int, until: int) -> NDArray[np.int64]:
    """The rows that the next stretch gets, in the order of their start: those that are not over, and each engine's last one."""
    start, duration, engine = (rows[name][:seen] for name in ("start_ts", "duration_ns", "engine"))
    end = start + duration
    timed = ~rows.among("kind", [Kind.MEMORY])[:seen]
    keep = timed & ((end > until) | (start >= until))
    over = timed & (duration > 0) & (start < until)
    for code in np.unique(engine[over]).tolist():
        mine = np.flatnonzero(over & (engine == code))
        keep[mine[end[mine].argmax()]] = True
    found = np.flatnonzero(keep)
    return found[np.argsort(start[found], kind="stable")]
