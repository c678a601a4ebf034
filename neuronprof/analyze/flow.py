"""One training step of a trace as a graph: which event stood in the way of which, over all ranks.

An event starts when all of this is over: the event before it in its queue, its dependencies (a DMA between HBM and SBUF: dma_start later),
what HBM or its link served before it, the message it receives; a collective when that holds on every rank of its group. What these do not
explain of a start is kept as its lag, so that the graph gives every trace back event by event, also one whose source knows no dependencies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from neuronprof.analyze import replay
from neuronprof.analyze.analyzer import EVALUATION, Context, Events, Window, context_of, events
from neuronprof.terms import Collective, Engine, Kind
from neuronprof.trace import reader, schema

# What an edge of the graph waits for; the words of the trace's wait_for, but for the queue, which is no wait.
QUEUE, DATA, DMA, SBUF, HBM, LINK, PEER = range(7)
WAITS = ("none", "data", "dma", "sbuf", "hbm", "link", "peer")
HOST_COPIES = ("COPY_TO_DEVICE", "COPY_TO_HOST")
_MESSAGES = (Collective.SEND, Collective.RECV)
_LOADS = ("DMA_LOAD", "DMA_GATHER", "SPILL_RELOAD")
_STREAMS = (Engine.HBM, Engine.NEURONLINK, Engine.EFA)

NEEDS = schema.select(
    "id", "chip", "core", "rank", "step", "engine", "queue", "kind", "name", "start_ts", "duration_ns", "wait_ns", "wait_for", "op",
    "op_name", "layer", "phase", "source", "bytes", "flops", "dtype", "collective", "replica_group", "algorithm", "released_by",
    "operands",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """The events of one step, each after all that it waits for; columns of n rows.

    ptr int64[n + 1], source int32, why int8: the edges into each row, and what they wait for. delay int64: from a dependency's end to the
    earliest start. wire int64: how long the row holds its link (0: none). meeting int32: number of its collective, -1 for none.
    parent int32: the row that a stream of bytes on HBM or a link belongs to, -1 for other rows. released int32: the row that released_by
    names, -1 where it is not there. lag int64: what the edges do not explain.
    """

    window: Window
    events: Events
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    ptr: NDArray[np.int64]
    source: NDArray[np.int32]
    why: NDArray[np.int8]
    delay: NDArray[np.int64]
    wire: NDArray[np.int64]
    meeting: NDArray[np.int32]
    parent: NDArray[np.int32]
    released: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.start)

    @cached_property
    def lag(self) -> NDArray[np.int64]:
        """What the edges leave of each start unexplained, nanoseconds."""
        graph = (self.ptr, self.source, self.why, self.delay, self.meeting)
        found: NDArray[np.int64] = replay.lags(*graph, self.start, self.end, self.start + self.wire, self.window.start)
        return found

    @cached_property
    def duration(self) -> NDArray[np.int64]:
        """Nanoseconds of each row."""
        return self.end - self.start

    @property
    def end_ts(self) -> int:
        """When the last of its events ends."""
        return int(self.end.max(initial=self.window.start))


def typical(trace: reader.TraceFile, context: Context) -> Window | None:
    """The training step of median length, the earlier of two; None if there is none."""
    steps = sorted((w for w in context.windows if w.step != EVALUATION), key=lambda w: (w.time_ns, w.start))
    return steps[(len(steps) - 1) // 2] if steps and trace.num_events else None


def sampled(trace: reader.TraceFile, context: Context, window: Window, most: int) -> list[int] | None:
    """Ranks that together have about `most` events of a step; None: all have no more.

    Whole pipelines: half of them those for which others wait longest (which wait least themselves), half evenly spread.
    """
    lanes: dict[int, list[int]] = {}
    pipeline = context.metadata.get("pipeline") or {}
    count, stride = int(pipeline.get("count") or 1), int(pipeline.get("stride") or 1)
    for rank in trace.ranks:
        lanes.setdefault(rank // (stride * count) * stride + rank % stride, []).append(rank)
    events = trace.num_events / max(1, len(context.windows))
    if events <= most or len(lanes) < 2:
        return None
    keep = max(1, int(most * len(lanes) / events))
    waits = trace.totals[trace.totals["step"] == window.step].groupby("rank")["wait_peer_ns"].sum().to_dict()
    last = sorted(lanes, key=lambda lane: sum(waits.get(rank, 0) for rank in lanes[lane]))[: (keep + 1) // 2]
    spread = list(lanes)[:: max(1, len(lanes) // max(1, keep - len(last)))][: keep - len(last)]
    return sorted(rank for lane in {*last, *spread} for rank in lanes[lane])


def load(trace: reader.TraceFile, window: Window, ranks: Sequence[int] | None = None) -> Step:
    """The events of a step as a graph, of all ranks or of some.

    Raises:
        NeuronprofError: the trace is damaged.
    """
    names = (*NEEDS, "deps")
    if ranks is None:
        table = trace.columns(names, step=window.step)
    else:
        parts = [trace.columns(names, rank=rank, step=window.step) for rank in ranks]
        table = pa.concat_tables(parts).unify_dictionaries()
    lists = table["deps"].combine_chunks()
    rows = events(table.drop_columns(["deps"]))
    counts = np.diff(lists.offsets.to_numpy()) * ~np.asarray(lists.is_null())
    deps = rows["id"].repeat(counts) - lists.flatten().to_numpy()
    keep = ~rows.among("kind", [Kind.MEMORY]) & (rows["start_ts"] < window.end) & (rows["start_ts"] >= window.start)
    return build(rows.take(keep), deps[keep.repeat(counts)], counts[keep], window, context_of(trace))


def build(rows: Events, deps: NDArray[np.int64], counts: NDArray[Any], window: Window, context: Context) -> Step:
    """The graph of some events. deps: identifiers of predecessors, counts[i] of them for row i."""
    start, end = rows["start_ts"], rows["start_ts"] + rows["duration_ns"]
    order = np.lexsort((rows["id"], end, start))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    target = place.repeat(counts)
    rows = rows.take(order)
    start, end = start[order], end[order]
    find = _Finder(rows["id"])
    parent = np.where(_streams(rows), find(rows["released_by"]), -1)
    own = parent < 0
    wire = np.zeros(len(rows), np.int64)
    on_link = ~own & ~rows.among("engine", [Engine.HBM])
    np.maximum.at(wire, parent[on_link], (end - start)[on_link])
    edges = _Edges(rows, own)
    edges.add_dependencies(target, find(deps))
    edges.add_queues()
    edges.add_servers(parent, wire)
    edges.add_messages()
    ptr, source, why = edges.sorted()
    served = rows.among("engine", [Engine.DMA]) & ~rows.among("name", HOST_COPIES)
    delay = np.where(served, round(quantity(context, "dma.start", 0.0) * 1e9), 0)
    return Step(
        window, rows, start, end, ptr, source, why, delay, wire, _meetings(rows, start), parent.astype(np.int32),
        find(rows["released_by"]).astype(np.int32),
    )  # fmt: skip


def quantity(context: Context, name: str, default: float = np.nan) -> float:
    """A number of the machine, as its file has it: 'dma.start'; the default where the trace does not tell it."""
    known = ((context.metadata.get("machine") or {}).get("quantities") or {}).get(name) or {}
    return float(known.get("value", default))


class _Finder:
    """Rows by identifier."""

    def __init__(self, ids: NDArray[np.int64]) -> None:
        self._order = np.argsort(ids, kind="stable")
        self._ids = ids[self._order]

    def __call__(self, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
        if not len(self._ids):
            return np.full(len(wanted), -1)
        at = np.minimum(np.searchsorted(self._ids, wanted), len(self._ids) - 1)
        return np.where(self._ids[at] == wanted, self._order[at], -1)


def _streams(rows: Events) -> NDArray[np.bool_]:
    """Bytes on HBM and links: they run beside the instruction that moves them."""
    found: NDArray[np.bool_] = rows.among("engine", _STREAMS) & rows.among("kind", [Kind.TRANSFER])
    return found


def _meetings(rows: Events, start: NDArray[np.int64]) -> NDArray[np.int32]:
    """A number for each collective of which several ranks are there and start together; -1 elsewhere."""
    number = np.full(len(rows), -1, np.int32)
    mine = np.flatnonzero(
        (rows["collective"] >= 0) & rows.among("engine", [Engine.CC]) & ~rows.among("name", _MESSAGES)
    )
    key = np.stack([rows["collective"][mine], rows["replica_group"][mine], start[mine]])
    _, found, count = np.unique(key, axis=1, return_inverse=True, return_counts=True)
    found = found.reshape(-1)
    number[mine] = np.where(count[found] > 1, found, -1)
    return number


class _Edges:
    """Collects edges between rows; those against the order of the rows are left out, the lags stand in for them."""

    def __init__(self, rows: Events, own: NDArray[np.bool_]) -> None:
        self._rows, self._own = rows, own
        self._parts: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []

    def _add(self, target: NDArray[Any], source: NDArray[Any], why: NDArray[Any] | int) -> None:
        good = (source >= 0) & (source < target) & self._own[target]
        self._parts.append((target[good], source[good], np.broadcast_to(why, len(target))[good]))

    def add_dependencies(self, target: NDArray[Any], source: NDArray[Any]) -> None:
        """Operands: a load that waits for an engine waits for room."""
        rows = self._rows
        dma, load = rows.among("engine", [Engine.DMA]), rows.among("name", _LOADS)
        self._add(target, source, np.where(dma[source], DMA, np.where(load[target], SBUF, DATA)))

    def add_queues(self) -> None:
        """Each row after the one before it in its queue."""
        rows = self._rows
        mine = np.flatnonzero(self._own)
        self._chain(mine, [rows[name][mine].astype(np.int64) for name in ("rank", "engine", "queue")], QUEUE)

    def add_servers(self, parent: NDArray[Any], wire: NDArray[np.int64]) -> None:
        """Each row after what its HBM, or its link, served before it."""
        rows = self._rows
        streams = np.flatnonzero((parent >= 0) & rows.among("engine", [Engine.HBM]))
        by_hbm = np.sort(parent[streams])
        self._chain(by_hbm, [rows["rank"][by_hbm].astype(np.int64)], HBM)
        outside = np.zeros(len(rows), np.int64)
        outside[parent[(parent >= 0) & rows.among("engine", [Engine.EFA])]] = 1
        linked = np.flatnonzero((wire > 0) & rows.among("engine", [Engine.CC]))
        self._chain(linked, [rows["rank"][linked].astype(np.int64), outside[linked]], LINK)

    def add_messages(self) -> None:
        """Each receipt after its message was sent."""
        rows = self._rows
        known = self._own & (rows["collective"] >= 0)
        sent, received = (np.flatnonzero(known & rows.among("name", [message])) for message in _MESSAGES)
        if not len(sent):
            return

        def pair(at: NDArray[Any]) -> NDArray[np.int64]:
            found: NDArray[np.int64] = (
                rows["collective"][at] * (len(rows.words["replica_group"]) + 1) + rows["replica_group"][at]
            )
            return found

        sender = _Finder(pair(sent))(pair(received))
        self._add(received, np.where(sender < 0, -1, sent[sender]), PEER)

    def _chain(self, rows: NDArray[Any], line: list[NDArray[np.int64]], why: int) -> None:
        """Edges between neighbours of a line; rows ascend."""
        order = np.lexsort((rows, *line))
        same = np.ones(max(len(rows) - 1, 0), bool)
        for key in line:
            same &= key[order][1:] == key[order][:-1]
        self._add(rows[order][1:][same], rows[order][:-1][same], why)

    def sorted(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int8]]:
        """All edges by target: bounds, sources and reasons; of one target the queue comes last, so that a wait is named rather than it."""
        target, source, why = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        order = np.argsort(target, kind="stable")
        counts = np.bincount(target, minlength=len(self._rows))
        ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return ptr, source[order].astype(np.int32), why[order].astype(np.int8)
