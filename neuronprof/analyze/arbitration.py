"""Runs the graph of a step, with HBM granted anew when durations change: what is ready first is served first."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze import replay
from neuronprof.analyze.flow import HBM, WAITS, Step

_ROUNDS = 3  # the order found in one run changes who is ready when in the next
_FAITHFUL = 0.999  # share of the grants of a trace that this rule has to explain before it is applied


@dataclass(frozen=True)
class Graph:
    """Columns of rows, and edges into them: a Step's, or what a question made of them; place: the step's row that each row is."""

    place: NDArray[np.int64]
    target: NDArray[np.int64]
    source: NDArray[np.int64]
    why: NDArray[np.int8]
    delay: NDArray[np.int64]
    meeting: NDArray[np.int32]
    lag: NDArray[np.int64]
    duration: NDArray[np.int64]
    wire: NDArray[np.int64]


@dataclass(frozen=True)
class Times:
    """What a run gives, by the step's rows: see replay.run; ready: when a row could have started but for HBM."""

    start: NDArray[np.int64]
    arrived: NDArray[np.int64]
    end: NDArray[np.int64]
    by: NDArray[np.int32]
    why: NDArray[np.int8]
    ready: NDArray[np.int64]


def unchanged(step: Step) -> Graph:
    """The graph of a step as it is."""
    target = np.repeat(np.arange(len(step)), np.diff(step.ptr))
    source = step.source.astype(np.int64)
    return Graph(
        np.arange(len(step)), target, source, step.why, step.delay, step.meeting, step.lag, step.duration, step.wire
    )


def solve(step: Step, graph: Graph, dropped: NDArray[np.bool_], *, changed: bool) -> Times:
    """Times of a graph. dropped: kinds of edges left out; changed: whether HBM may have to be granted in another order."""
    times = _run(step, graph, dropped)
    if not changed or dropped[HBM] or not _first_come_first_served(step):
        return times
    for _ in range(_ROUNDS):
        graph = _granted(step, graph, times.ready)
        times = _run(step, graph, dropped)
    return times


def _run(step: Step, graph: Graph, dropped: NDArray[np.bool_]) -> Times:
    ptr = np.searchsorted(graph.target, np.arange(len(step) + 1))
    columns = (graph.delay, graph.meeting, graph.lag, graph.duration, graph.wire)
    found = replay.run(ptr, graph.source.astype(np.int32), graph.why, *columns, dropped, step.window.start)
    start, arrived, end, by, why, ready = (_back(column, graph.place) for column in found)
    return Times(start, arrived, end, np.where(by >= 0, graph.place[by], -1).astype(np.int32), why, ready)


def _back(column: NDArray[Any], place: NDArray[np.int64]) -> NDArray[Any]:
    result = np.empty_like(column)
    result[place] = column
    return result


def _first_come_first_served(step: Step) -> bool:
    """Whether HBM served the trace in the order in which its transfers were ready; noise and other machines have other orders."""
    edges = np.flatnonzero(step.why == HBM)
    if not len(edges):
        return False
    ready = _run(step, unchanged(step), np.zeros(len(WAITS), bool)).ready
    target = np.searchsorted(step.ptr, edges, side="right") - 1
    return bool((ready[step.source[edges]] <= ready[target]).mean() >= _FAITHFUL)


def _granted(step: Step, graph: Graph, ready: NDArray[np.int64]) -> Graph:
    """The graph with HBM granted in the order of `ready`, its rows sorted so that predecessors come first."""
    key = ready[graph.place].copy()
    met = np.flatnonzero(graph.meeting >= 0)
    if len(met):
        latest = np.full(int(graph.meeting.max()) + 1, np.iinfo(np.int64).min)
        np.maximum.at(latest, graph.meeting[met], key[met])
        key[met] = latest[graph.meeting[met]]
    order = np.lexsort((step.events["id"][graph.place], key))
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    other = graph.why != HBM
    served = np.zeros(len(order), bool)
    served[graph.target[~other]] = served[graph.source[~other]] = True
    rows = order[served[order]]
    rank = step.events["rank"][graph.place[rows]]
    by_rank = np.argsort(rank, kind="stable")
    line, same = position[rows[by_rank]], np.diff(rank[by_rank]) == 0
    target = np.concatenate([position[graph.target[other]], line[1:][same]])
    source = np.concatenate([position[graph.source[other]], line[:-1][same]])
    why = np.concatenate([graph.why[other], np.full(int(same.sum()), HBM, np.int8)])
    sorted_edges = np.argsort(target, kind="stable")
    sorted_edges = sorted_edges[source[sorted_edges] < target[sorted_edges]]
    columns = {name: getattr(graph, name)[order] for name in ("place", "delay", "meeting", "lag", "duration", "wire")}
    return Graph(target=target[sorted_edges], source=source[sorted_edges], why=why[sorted_edges], **columns)
