"""What a what-if question changes in a step: durations, waits, and which events stand in the way of which."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze import arbitration, durations, flow
from neuronprof.analyze.analyzer import Context
from neuronprof.analyze.flow import DATA, DMA, HBM, LINK, PEER, SBUF, Step
from neuronprof.errors import NeuronprofError
from neuronprof.terms import COMPUTE_ENGINES, Collective, Engine, Phase

Mask = NDArray[np.bool_]
BUCKET = 25 << 20  # bytes: what PyTorch's DistributedDataParallel sends at once (bucket_cap_mb = 25)
_WAITS = {"peer": PEER, "hbm": HBM, "link": LINK, "dma": DMA, "data": DATA, "sbuf": SBUF}
_LINKS = (Engine.NEURONLINK, Engine.EFA)
_PATTERNS = {"layer": "layer", "op": "op_name", "source": "source", "phase": "phase"}
OVERLAPS = ("grad_sync", "weight_gather")
_HBM_BOUND = (
    0.98  # of what HBM can deliver: transfers that reach it have HBM as their limit, slower ones the DMA engines
)
_MOST_DONORS = 16  # ranks whose median stands for a healthy one


@dataclass
class Draft:
    """A step while it is changed; columns of its rows.

    wire: how long a row's link moves bytes; rest: what it takes beside that; lag: as in Step. edges: which of the step's edges stay;
    dropped: kinds of edges left out; speed: of DMA engines and HBM, which only together say how long a transfer takes.
    """

    step: Step
    context: Context

    def __post_init__(self) -> None:
        step = self.step
        self.wire = step.wire.astype(np.float64)
        self.rest = step.duration - _slowest(step, self.wire)
        self.lag = step.lag.copy()
        self.edges = np.ones(len(step.source), bool)
        self.dropped = np.zeros(len(flow.WAITS), bool)
        self.speed = {Engine.DMA: 1.0, Engine.HBM: 1.0}

    def scale(self, rows: Mask | NDArray[np.intp], times: Any) -> None:
        """Rows that take so many times as long; times: a number, or one a row."""
        self.rest[rows] *= times
        self.wire[rows] *= times

    @property
    def duration(self) -> NDArray[np.float64]:
        """How long each row takes; a collective as long as the slowest link of its group."""
        return self.rest + _slowest(self.step, self.wire)

    def without_edges_into(self, rows: Mask, kinds: Sequence[int]) -> None:
        """Rows no longer wait for these kinds of predecessors."""
        target = np.repeat(np.arange(len(self.step)), np.diff(self.step.ptr))
        self.edges &= ~(rows[target] & np.isin(self.step.why, kinds))

    def without_edges_between(self, rows: Mask, same: str) -> None:
        """Rows that agree in the column `same` no longer wait for each other, but in their queues."""
        step = self.step
        target = np.repeat(np.arange(len(step)), np.diff(step.ptr))
        inside = rows[target] & rows[step.source] & (step.events[same][target] == step.events[same][step.source])
        self.edges &= ~(inside & (step.why != flow.QUEUE))


@dataclass(frozen=True)
class Replayed:
    """A step run again: times of its rows, what let each start (-1: nothing), and what that was called; end_ts: when the step ends."""

    start: NDArray[np.int64]
    arrived: NDArray[np.int64]
    end: NDArray[np.int64]
    by: NDArray[np.int32]
    why: NDArray[np.int8]
    end_ts: int


Change = Callable[[Draft], None]


def run(step: Step, context: Context, changes: Sequence[Change] = ()) -> Replayed:
    """Runs a step again with changes; without, it comes out as it was."""
    draft = Draft(step, context)
    for change in changes:
        change(draft)
    _move_memory(draft)
    duration, wire = (np.rint(times).astype(np.int64) for times in (draft.duration, draft.wire))
    same, kept = arbitration.unchanged(step), draft.edges
    graph = replace(
        same,
        target=same.target[kept],
        source=same.source[kept],
        why=same.why[kept],
        lag=draft.lag,
        duration=duration,
        wire=wire,
    )
    times = arbitration.solve(step, graph, draft.dropped, changed=bool(changes))
    start, end, begin = times.start, times.end, step.window.start
    streams = np.flatnonzero(step.parent >= 0)
    start[streams] = start[step.parent[streams]]
    end[streams] = start[streams] + _of_stream(step, streams, duration, wire)
    own = step.parent < 0
    until = int(end[own].max(initial=begin)) + step.window.end - int(step.end[own].max(initial=begin))
    return Replayed(start, times.arrived, end, times.by, times.why, max(until, begin))


def _of_stream(
    step: Step, streams: NDArray[Any], duration: NDArray[np.int64], wire: NDArray[np.int64]
) -> NDArray[np.int64]:
    parent = step.parent[streams]
    on_link = ~step.events.among("engine", [Engine.HBM])[streams]
    return np.where(on_link, wire[parent], duration[parent])


def _move_memory(draft: Draft) -> None:
    """DMA between HBM and SBUF at the new speeds: the slower of HBM and the DMA engines sets the pace, as it does in a recording."""
    faster, wider = draft.speed[Engine.DMA], draft.speed[Engine.HBM]
    if faster == wider == 1:
        return
    rows = np.flatnonzero(moved_by_dma(draft.step))
    reached = draft.step.events["bytes"][rows] * 1e9 / np.maximum(_usual(draft.step, draft.context)[rows], 1)
    hbm, engines = limits(draft.context)
    if not np.isfinite(hbm):  # nobody knows which of them was the limit
        draft.scale(rows, 1 / (faster * wider))
        return
    at_dma = np.where(reached < _HBM_BOUND * hbm, reached, np.maximum(engines, reached))
    now = np.minimum(at_dma, np.maximum(hbm, reached))
    draft.scale(rows, now / np.maximum(np.minimum(at_dma * faster, hbm * wider), 1.0))


def limits(context: Context) -> tuple[float, float]:
    """What HBM can deliver to a rank, and what its DMA engines can move in large pieces, bytes a second; NaN where nobody tells."""
    machine = context.metadata.get("machine") or {}
    ranks, world = int(machine.get("ranks_per_chip") or 1), int(context.metadata.get("world_size") or 1)
    efficiency = flow.quantity(context, "package.hbm_efficiency")
    hbm = flow.quantity(context, "package.hbm_bandwidth") / min(ranks, world) * efficiency
    engines = (
        flow.quantity(context, "dma.engines") * flow.quantity(context, "dma.bandwidth") * int(machine.get("lnc") or 1)
    )
    return hbm, engines * efficiency


def _usual(step: Step, context: Context) -> NDArray[np.float64]:
    """How long each row takes on the median of the ranks that run the same program, so that noise and faults do not count."""
    usual = step.duration.astype(np.float64)
    for rows in programs(step, context):
        usual[rows] = np.median(step.duration[rows[:: max(1, len(rows) // _MOST_DONORS)]], axis=0)
    return usual


def programs(step: Step, context: Context) -> list[NDArray[np.intp]]:
    """Ranks that run the same program: for each such set its rows, int[ranks, instructions], in program order."""
    events = step.events
    pipeline = context.metadata.get("pipeline") or {}
    count, stride = int(pipeline.get("count") or 1), int(pipeline.get("stride") or 1)
    order = np.lexsort((events["id"], events["rank"]))
    ranks, first = np.unique(events["rank"][order], return_index=True)
    pieces = np.split(order, first[1:]) if len(ranks) else []
    alike: dict[tuple[Any, ...], list[NDArray[np.intp]]] = {}
    for rank, rows in zip(ranks.tolist(), pieces, strict=True):
        program = (events["name"][rows].tobytes(), events["engine"][rows].tobytes())
        alike.setdefault((rank // stride % count, *program), []).append(rows)
    return [np.stack(rows) for rows in alike.values()]


def moved_by_dma(step: Step) -> Mask:
    """DMA between HBM and SBUF."""
    events = step.events
    found: Mask = events.among("engine", [Engine.DMA]) & ~events.among("name", flow.HOST_COPIES) & (events["bytes"] > 0)
    return found


def _slowest(step: Step, wire: NDArray[np.float64]) -> NDArray[np.float64]:
    """The time on the wire of each row, for a collective the longest of its group."""
    found, met = wire.copy(), np.flatnonzero(step.meeting >= 0)
    if len(met):
        longest = np.zeros(int(step.meeting.max()) + 1)
        np.maximum.at(longest, step.meeting[met], wire[met])
        found[met] = longest[step.meeting[met]]
    return found


def scaled(target: str, factor: float) -> Change:
    """An engine or link that is `factor` times as fast, or operators that take `factor` times as long.

    target: tensor, vector, scalar, gpsimd, dma, hbm, neuronlink, efa or host; or layer:, op:, source: or phase: and a pattern.

    Raises:
        NeuronprofError: no such engine; when run, a pattern that matches nothing.
    """
    kind, colon, pattern = target.partition(":")
    if colon and kind in _PATTERNS:
        return lambda draft: draft.scale(matching(draft.step, kind, pattern), factor)
    if target in SPEEDS:
        return SPEEDS[target](factor)
    raise NeuronprofError(
        f"--scale {target} names no engine; choose of {', '.join(SPEEDS)}, or layer:, op:, source: or phase: and a pattern."
    )


def matching(step: Step, kind: str, pattern: str) -> Mask:
    """Rows of the layers, operators, lines or phases that a pattern names.

    Raises:
        NeuronprofError: none.
    """
    words = step.events.words[_PATTERNS[kind]]
    found: Mask = step.events.among(_PATTERNS[kind], [word for word in words if fnmatchcase(word, pattern)])
    if not found.any():
        raise NeuronprofError(
            f"{kind}:{pattern} matches nothing in this step; 'neuronprof analyze TRACE roofline' lists what there is."
        )
    return found


def _engine(engine: str) -> Callable[[float], Change]:
    return lambda factor: lambda draft: draft.scale(draft.step.events.among("engine", [engine]), 1 / factor)


def _memory(engine: Engine) -> Callable[[float], Change]:
    def faster(draft: Draft, factor: float) -> None:
        draft.speed[engine] *= factor

    return lambda factor: lambda draft: faster(draft, factor)


def _link(link: Engine) -> Callable[[float], Change]:
    def faster(draft: Draft, factor: float) -> None:
        share = on_link(draft.step, draft.context, link)
        times = np.column_stack((1 - share + share / factor, np.ones(len(share))))
        known, bandwidth = durations.numbers(draft.context.metadata), f"{link}.bandwidth"
        told = np.flatnonzero((share > 0) & (draft.step.events["operands"] >= 0))
        if bandwidth in known and len(told):
            times[told] = by_formula(draft.step, draft.context, told, known | {bandwidth: known[bandwidth] * factor})
        draft.wire *= times[:, 0]
        draft.rest *= times[:, 1]

    return lambda factor: lambda draft: faster(draft, factor)


def by_formula(step: Step, context: Context, rows: NDArray[np.intp], known: Mapping[str, float]) -> NDArray[np.float64]:
    """How many times as long collectives take by their formulas with these numbers of the machine: on the wire, and besides.

    So it is known what of the work inside the chips a link hides. The algorithm stays, also where another would be the faster one then.
    """
    words, at = np.unique(step.events["operands"][rows], return_inverse=True)
    texts = [step.events.words["operands"][word] for word in words.tolist()]
    before, after = (
        np.array([durations.of_collective(text, context.metadata, numbers) for text in texts])
        for numbers in (durations.numbers(context.metadata), known)
    )
    times: NDArray[np.float64] = np.divide(after, before, out=np.ones_like(after), where=before > 0)[at]
    return times


def on_link(step: Step, context: Context, link: Engine) -> NDArray[np.float64]:
    """The share of each row's time on the wire that it spends on this link."""
    seconds = np.zeros((len(_LINKS), len(step)))
    for at, name in enumerate(_LINKS):
        rows = np.flatnonzero((step.parent >= 0) & step.events.among("engine", [name]))
        bandwidth = context.limit(f"{name}_bandwidth")
        seconds[at, step.parent[rows]] = step.events["bytes"][rows] / (bandwidth if bandwidth > 0 else 1.0)
    total = seconds.sum(axis=0)
    share: NDArray[np.float64] = seconds[_LINKS.index(link)] / np.where(total > 0, total, 1.0)
    return share


SPEEDS: dict[str, Callable[[float], Change]] = {
    **{engine.value: _engine(engine) for engine in (*COMPUTE_ENGINES, Engine.HOST)},
    **{engine.value: _memory(engine) for engine in (Engine.DMA, Engine.HBM)},
    **{engine.value: _link(engine) for engine in _LINKS},
}


def without_wait(kind: str) -> Change:
    """Nothing waits for this any more: peer, hbm, link, dma, data, sbuf; host: its work takes no time.

    Raises:
        NeuronprofError: no such wait.
    """
    if kind == Engine.HOST:
        return lambda draft: draft.scale(draft.step.events.among("engine", [Engine.HOST]), 0.0)
    if kind not in _WAITS:
        raise NeuronprofError(
            f"--without-wait {kind} is nothing that events wait for; choose of {', '.join(_WAITS)} or host."
        )

    def drop(draft: Draft) -> None:
        draft.dropped[_WAITS[kind]] = True

    return drop


def fixed(ranks: Callable[[Step], Mask], what: str) -> Change:
    """Rows of these ranks take what they take on the median of the other ranks that run the same program.

    Raises:
        NeuronprofError: when run, nothing of it is in the trace, or nobody else runs that program.
    """

    def fix(draft: Draft) -> None:
        step = draft.step
        broken = ranks(step)
        if not broken.any():
            raise NeuronprofError(f"{what} has no events in this trace.")
        for rows in programs(step, draft.context):
            mine = broken[rows[:, 0]] if rows.shape[1] else np.zeros(len(rows), bool)
            if not mine.any():
                continue
            if mine.all():
                raise NeuronprofError(f"{what} cannot be compared: no other rank in the trace runs the same program.")
            others = rows[~mine][:: max(1, int((~mine).sum()) // _MOST_DONORS)]
            for times in (draft.rest, draft.wire, draft.lag):
                times[rows[mine]] = np.median(times[others], axis=0).astype(times.dtype)

    return fix


def fixed_chip(chip: int) -> Change:
    """A chip as good as the others."""
    return fixed(lambda step: step.events["chip"] == chip, f"Chip {chip}")


def overlapped(name: str) -> Change:
    """Communication hidden behind compute.

    grad_sync: gradients are reduced in buckets as soon as they are there, so that of each collective only a bucket's worth is left when its
    last gradient comes, and what backward is too short to hide. weight_gather: weights are gathered ahead of their use.

    Raises:
        NeuronprofError: no such communication.
    """
    if name not in OVERLAPS:
        raise NeuronprofError(f"--overlap {name} is not known; choose of {' or '.join(OVERLAPS)}.")
    return _gradients_in_buckets if name == "grad_sync" else _weights_ahead


def collectives(step: Step, names: Sequence[str], axis: str) -> Mask:
    """Collectives of these kinds along an axis, also where it is one of several."""
    events = step.events
    groups = [g for g in events.words["replica_group"] if axis in g.partition(":")[0].split("+")]
    found: Mask = (
        events.among("engine", [Engine.CC]) & events.among("name", names) & events.among("replica_group", groups)
    )
    return found


def gradient_syncs(step: Step) -> Mask:
    """Collectives that reduce gradients over data-parallel ranks."""
    return collectives(step, (Collective.ALL_REDUCE, Collective.REDUCE_SCATTER), "dp") & ~step.events.among(
        "phase", [Phase.FORWARD]
    )


def _gradients_in_buckets(draft: Draft) -> None:
    step = draft.step
    rows = np.flatnonzero(gradient_syncs(step))
    backward = step.events.among("phase", [Phase.BACKWARD]) & step.events.among("engine", COMPUTE_ENGINES)
    if not len(rows) or not backward.any():
        return
    last = np.minimum(1.0, BUCKET / np.maximum(step.events["bytes"][rows], 1))
    hidden = draft.duration[rows] * (1 - last)
    room = int(step.end[backward].max() - step.start[backward].min())
    ranks, at = np.unique(step.events["rank"][rows], return_inverse=True)
    total = np.bincount(at, hidden, len(ranks))
    hidden *= np.minimum(1.0, room / np.maximum(total, 1.0))[at]
    # All that a bucket takes is hidden with it: links, the way between cores of one chip, which has no link, and latency.
    draft.scale(rows, 1 - hidden / np.maximum(draft.duration[rows], 1.0))


def _weights_ahead(draft: Draft) -> None:
    draft.without_edges_into(collectives(draft.step, (Collective.ALL_GATHER,), "dp"), (DATA, DMA, SBUF))
