"""The one pass over a trace that runs analyzers: piece by piece, so that memory stays flat however large the trace is."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from threading import get_ident
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from neuronprof.analyze.analyzer import Analyzer, Chip, Context, Events, Mapper, Scope, State, context_of, events
from neuronprof.analyze.plan import AT_ONCE, MOST_BYTES, Task, columns, free_memory, memory, plan
from neuronprof.analyze.slices import NEEDS, Cutter
from neuronprof.errors import NeuronprofError
from neuronprof.trace import reader

if TYPE_CHECKING:
    import pandas as pd

Report = Callable[[int, int], None]  # events that are done, and all of them


def silent(_done: int, _all: int) -> None:
    """A report to nobody."""


def run(
    trace: reader.TraceFile,
    analyzers: Sequence[Analyzer],
    *,
    mapper: Mapper = map,
    report: Report = silent,
    left_out: dict[str, str] | None = None,
    at_once: int | None = None,
) -> "dict[str, dict[str, pd.DataFrame]]":
    """Runs analyzers over a trace, each piece read once.

    Args:
        trace: an open trace.
        analyzers: what to ask.
        mapper: like `map`: applies a function to each task, here or elsewhere: `pool.map` of multiprocessing, or of a Dask client
            `lambda function, tasks: client.gather(client.map(function, tasks))`. Functions, tasks and results pickle.
        report: is told how far the work is.
        left_out: takes a sentence for each analyzer that would need more than `plan.MOST_BYTES`; its tables are then empty. Without it,
            an analyzer may take what memory is free.
        at_once: events that are held at once; a chip with more comes in pieces. None: as many as take `plan.AT_ONCE` bytes.

    Returns:
        For each analyzer's name its finished tables.

    Raises:
        NeuronprofError: the trace is damaged, or too large for an analyzer and `left_out` is not given.
    """
    context = context_of(trace)
    most = free_memory() if left_out is None else MOST_BYTES
    asked = [analyzer for analyzer in analyzers if analyzer.concerns(trace.metadata)]
    held = AT_ONCE // memory(asked) if at_once is None else at_once
    tasks, refused = plan(trace, asked, context.windows, held, most) if asked else ([], {})
    if left_out is None and refused:
        raise NeuronprofError(next(iter(refused.values())))
    states, done, whole = _Sums(), 0, sum(task.events for task in tasks)

    def tell(events: int) -> None:
        nonlocal done
        done += events
        report(done, whole)

    here = mapper is map
    for task, found in zip(tasks, mapper(partial(_map, tell=tell) if here else _map, tasks), strict=True):
        states.add(task, found, context)
        if not here:
            tell(task.events)
    states.finish_rank(context)
    if left_out is not None:
        left_out |= refused
    return {a.name: a.finish(states.of(a, context), context) for a in analyzers}


@dataclass
class _Sums:
    """The states of all analyzers, added up as they come; of those that look at a rank its rows, until all of them are there."""

    _states: dict[str, State] = field(default_factory=dict)
    _place: tuple[int, int | None] = (0, None)
    _rows: dict[Analyzer, list[pa.Table]] = field(default_factory=lambda: defaultdict(list))

    def add(self, task: Task, found: "_Found", context: Context) -> None:
        """What was found in a piece."""
        if (task.chip, task.rank) != self._place:
            self.finish_rank(context)
            self._place = (task.chip, task.rank)
        for analyzer in task.analyzers:
            if analyzer.name in found.states:
                self._combine(analyzer, found.states[analyzer.name])
            else:
                self._rows[analyzer] += found.rows[analyzer.name]

    def finish_rank(self, context: Context) -> None:
        """Maps the rows that were kept of a rank."""
        for analyzer, tables in self._rows.items():
            rows = events(reader.joined(tables, columns([analyzer])))
            self._combine(analyzer, analyzer.map(Chip(rows, context.windows, context.metadata)))
        self._rows.clear()

    def of(self, analyzer: Analyzer, context: Context) -> State:
        """The state of an analyzer; that of no events if it was left out."""
        if analyzer.name not in self._states:
            nothing = reader.joined([], columns([analyzer]))
            self._states[analyzer.name] = analyzer.map(Chip(events(nothing), context.windows, context.metadata))
        return self._states[analyzer.name]

    def _combine(self, analyzer: Analyzer, state: State) -> None:
        known = self._states.get(analyzer.name)
        self._states[analyzer.name] = analyzer.combine(known, state) if known else state


@dataclass(frozen=True)
class _Found:
    """What analyzers, by name, made of a piece: their states; or the rows that they need of a rank of which the piece is a part."""

    states: dict[str, State]
    rows: dict[str, list[pa.Table]]


@lru_cache(maxsize=8)
def _opened(path: Path, _stamp: int, _thread: int) -> reader.TraceFile:
    """An open trace: the footers of many parts are read once a thread, not once a task."""
    return reader.open_trace(path)


def _map(task: Task, tell: Callable[[int], None] | None = None) -> _Found:
    """Runs a task; tell: is told of each piece how many events it had."""
    if task.rank is not None:  # a piece of many: what the one before took goes back before this one takes as much
        pa.default_memory_pool().release_unused()
    stamp = task.path.stat().st_mtime_ns if task.path.exists() else 0
    trace = _opened(task.path, stamp, get_ident())
    found = _Found({}, defaultdict(list))
    for table, chip in _looked_at(trace, task):
        for analyzer in task.analyzers:
            if task.rank is not None and analyzer.scope is Scope.RANK:
                found.rows[analyzer.name].append(_only(table.select(columns([analyzer])), analyzer))
                continue
            known, state = found.states.get(analyzer.name), analyzer.map(chip)
            found.states[analyzer.name] = analyzer.combine(known, state) if known else state
        if tell:
            tell(len(table))
    return found


def _looked_at(trace: reader.TraceFile, task: Task) -> Iterator[tuple[pa.Table, Chip]]:
    """The rows of a task, and what analyzers map of them."""
    names = columns(task.analyzers)
    if task.rank is None or task.steps is None:
        table = trace.columns(names, chip=task.chip)
        yield table, Chip(events(table), task.windows, trace.metadata)
    elif task.cut:
        names = tuple(dict.fromkeys((*names, *NEEDS)))
        yield from Cutter(trace, names, task.chip, task.rank, task.steps[0], task.windows, task.at_once).stretches()
    else:
        steps = (min(task.steps), max(task.steps))
        table = reader.joined(list(trace.pieces(names, chip=task.chip, rank=task.rank, steps=steps)), names)
        yield table, Chip(events(table), task.windows, trace.metadata, (task.rank,))


def _only(table: pa.Table, analyzer: Analyzer) -> pa.Table:
    """The rows in which an analyzer is interested."""
    rows: Events = events(table.select(list(analyzer.only))) if analyzer.only else events(table)
    wanted = np.ones(len(table), bool)
    for name, words in analyzer.only.items():
        wanted &= rows.among(name, words)
    return table.filter(pa.array(wanted))
