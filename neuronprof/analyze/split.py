"""Every instant of a span given to one event or to none: what both splits of a step, bottlenecks and attribution, are made of."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze.analyzer import Span
from neuronprof.analyze.flow import HOST_COPIES
from neuronprof.analyze.grouping import Groups, heads
from neuronprof.terms import COMPUTE_ENGINES, Engine, WaitFor

# The order in which an instant is given away: the four compute engines, memory, links, waiting for peers, the host.
KINDS = len(COMPUTE_ENGINES) + 4
MEMORY, LINKS, WAITING, HOST = range(len(COMPUTE_ENGINES), KINDS)
_NONE = -1


@dataclass(frozen=True)
class Split:
    """The instants of a span by the event that they belong to.

    kind: as what each event takes its instants, -1 for those that take none; time: nanoseconds of each. waiting: events that wait for a
    peer besides, rows of the span; waited: nanoseconds of that. gap_start, gap_end, ended_by: what is left, and the row that ends it, -1
    for none. All times add up to the window.
    """

    kind: NDArray[np.int8]
    time: NDArray[np.int64]
    waiting: NDArray[np.int64]
    waited: NDArray[np.int64]
    gap_start: NDArray[np.int64]
    gap_end: NDArray[np.int64]
    ended_by: NDArray[np.int64]


def split(span: Span) -> Split:
    """The split of a span, computed once."""
    if "split" not in span.known:
        span.known["split"] = _split(span)
    found: Split = span.known["split"]
    return found


def _split(span: Span) -> Split:
    from neuronprof.analyze.sweep import charge  # numba takes as long to load as all the rest

    events, window = span.events, span.window
    waiting = np.flatnonzero(events.among("engine", [Engine.CC]))
    collectives = events.take(waiting)
    waiting = waiting[collectives.among("wait_for", [WaitFor.PEER]) & (collectives["wait_ns"] > 0)]
    waiting = waiting[np.argsort(events["start_ts"][waiting], kind="stable")]
    came = events["start_ts"][waiting]
    own = _kinds(span)
    kind = np.concatenate([own, np.full(len(waiting), WAITING, np.int8)])
    # As they stand in the trace: of two that began before the window, or the stretch of it, the earlier one is charged.
    start = np.concatenate([events["start_ts"], came - events["wait_ns"][waiting]])
    end = np.concatenate([span.end, np.minimum(came, window.end)])
    time, gap_start, gap_end, ended_by = charge(start, end, kind, KINDS, window.start, window.end)
    by_wait = ended_by >= len(own)
    ended_by[by_wait] = waiting[ended_by[by_wait] - len(own)]
    return Split(own, time[: len(own)], waiting, time[len(own) :], gap_start, gap_end, ended_by)


def _kinds(span: Span) -> NDArray[np.int8]:
    """As what each event takes its instants; -1 for those that take none."""
    events = span.events
    places: dict[Any, int] = {str(engine): k for k, engine in enumerate(COMPUTE_ENGINES)}
    places |= {Engine.DMA: MEMORY, Engine.HBM: MEMORY, Engine.HOST: HOST}
    places |= dict.fromkeys((Engine.CC, Engine.NEURONLINK, Engine.EFA), LINKS)
    of_engine = np.array([*(places.get(engine, _NONE) for engine in events.words["engine"]), _NONE], np.int8)
    first = heads(events["engine"])
    kind = np.repeat(of_engine[events["engine"][first]], np.diff(first, append=len(events)))
    kind[(kind == MEMORY) & events.among("name", HOST_COPIES)] = HOST
    return kind


def pieces(span: Span, *names: str) -> tuple[NDArray[np.int64], NDArray[np.int8], NDArray[np.int64]]:
    """The instants that belong to events, of those of one kind that agree in the columns `names` together.

    Returns:
        A row of the span that stands for them, their kind and their nanoseconds; a row stands twice if it waits and works.
    """
    found = split(span)
    alike = Groups(found.kind, *(span.events[name] for name in names))
    row = np.concatenate([alike.one, found.waiting])
    kind = np.concatenate([found.kind[alike.one], np.full(len(found.waiting), WAITING, np.int8)])
    time = np.concatenate([alike.sum(found.time), found.waited])
    some = time > 0
    return row[some], kind[some], time[some]


def codes(span: Span, name: str, event: NDArray[np.int64]) -> NDArray[Any]:
    """A string column of rows as codes of its words, -1 for row -1."""
    column = span.events[name]
    if not len(column):
        return np.full(len(event), _NONE)
    found = column[event]
    found[event == _NONE] = _NONE
    return found
