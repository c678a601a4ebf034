"""What a layout's step comes to, straight from the simulation: the same figures as `analyze` finds in a trace of it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from neuronprof.analyze import intervals
from neuronprof.graph.flops import model_flops
from neuronprof.pipeline.compiled import Compiled
from neuronprof.program import QUEUE_TRACKS, Opcode, Queue, among
from neuronprof.simulate.undisturbed import Undisturbed
from neuronprof.terms import COMPUTE_ENGINES, Engine

_HOST_COPIES = among(Opcode, [Opcode.COPY_TO_DEVICE, Opcode.COPY_TO_HOST])


# Micro-batches whose backward passes every stage runs in turn with forward ones, after a cold start, if PASSING more than there are stages
# go through a pipeline.
SETTLED, PASSING = (2, 3, 4), 5
_SAME = 1e-4  # of a micro-batch's time: what two of a settled pipeline may differ by


def _queues(*engines: Engine) -> np.ndarray:
    """Whether a queue is one of these engines, by its number."""
    return np.array([QUEUE_TRACKS[q][0] in engines for q in Queue])


_COMPUTES, _LOADS, _TALKS = _queues(*COMPUTE_ENGINES), _queues(Engine.DMA), _queues(Engine.CC)


@dataclass(frozen=True)
class Figures:
    """Of a step, in nanoseconds, means over the ranks.

    exposed_ns: collectives and messages while no compute engine of the rank works, as the communication analysis has it. bubble_ns:
    waiting for other pipeline stages while nothing of the rank runs, and after its last instruction. compute_ns: at least one compute
    engine works. model_flops: of a rank.
    """

    step_ns: float
    exposed_ns: float
    bubble_ns: float
    compute_ns: float
    model_flops: float

    def plus(self, times: float, further: "Figures") -> "Figures":
        """These figures with others added so many times."""
        return Figures(*(getattr(self, f.name) + times * getattr(further, f.name) for f in fields(Figures)))


def figures(run: Undisturbed, compiled: Compiled) -> Figures:
    """The figures of a run of all stages of a layout."""
    last = int(_ns(run.end).max(initial=0))
    windows = [(0, last)] * len(compiled.programs)
    idle = sum(last - int(_ns(run.end[run.stage(number)]).max(initial=0)) for number in range(len(windows)))
    found = _in_windows(run, windows, _model_flops(compiled, compiled.orders))
    return replace(found, bubble_ns=found.bubble_ns + idle / len(windows))


def of_one_more(run: Undisturbed, compiled: Compiled) -> Figures | None:
    """What each further micro-batch adds to a step whose stages run forward and backward in turn; None: it has not settled yet.

    It has if on every stage the backward passes of the SETTLED micro-batches end at the same distance. That long is the window of each
    stage in which everything else is counted.
    """
    stages = range(len(compiled.programs))
    ends = [_ns(_backward_ends(run, compiled, number)) for number in stages]
    period = int(ends[-1][2] - ends[-1][1])
    if any(abs(int(gap) - period) > _SAME * period for end in ends for gap in np.diff(end)):
        return None
    orders = tuple(tuple(entry for entry in order if entry[1] == SETTLED[-1]) for order in compiled.orders)
    windows = [(int(end[2]) - period, int(end[2])) for end in ends]
    return _in_windows(run, windows, _model_flops(compiled, orders))


def _backward_ends(run: Undisturbed, compiled: Compiled, number: int) -> np.ndarray:
    """When a stage's backward passes of the SETTLED micro-batches end, picoseconds."""
    parts, order = compiled.parts[number], compiled.orders[number]
    after = np.cumsum([len(parts[chunk]) for chunk, _ in order])
    stops = {microbatch: int(stop) for (_, microbatch), stop in zip(order, after, strict=True)}
    return run.end[run.stage(number)][[stops[microbatch] - 1 for microbatch in SETTLED]]


def _in_windows(run: Undisturbed, windows: Sequence[tuple[int, int]], model_flops: float) -> Figures:
    """Figures of one window of time for each stage, all equally long."""
    stages = [_stage(run, number, *window) for number, window in enumerate(windows)]
    exposed, bubble, compute = (sum(column) / len(stages) for column in zip(*stages, strict=True))
    return Figures(float(windows[0][1] - windows[0][0]), exposed, bubble, compute, model_flops)


def _stage(run: Undisturbed, number: int, low: int, high: int) -> tuple[int, int, int]:
    """Exposed communication, bubble and time with compute of one rank of a stage from low to high."""
    own = run.stage(number)
    rows = np.flatnonzero((run.end[own] > low * 1000 - 1000) & (run.start[own] < high * 1000 + 1000))
    # Each queue runs in order: one after another, their times are nearly sorted.
    rows = rows[np.argsort(run.fleet.queue[own][rows], kind="stable")]
    queue, opcode = run.fleet.queue[own][rows], run.fleet.programs[number].opcode[rows]
    start, end = (np.clip(_ns(times[own][rows]), low, high) for times in (run.start, run.end))
    compute, talking = _COMPUTES[queue], _TALKS[queue]
    busy = intervals.merge(start[compute], end[compute])
    hidden = intervals.covered(start[talking], end[talking], *busy)
    exposed = int((end[talking] - start[talking] - hidden).sum())
    moving = talking | (_LOADS[queue] & ~_HOST_COPIES[opcode])
    taken = intervals.merge(np.append(busy[0], start[moving]), np.append(busy[1], end[moving]))
    waited, until = map(_ns, run.waits(number))
    free = intervals.subtract(*intervals.merge(*np.clip((until - waited, until), low, high)), *taken)
    return exposed, int((free[1] - free[0]).sum()), int((busy[1] - busy[0]).sum())


def _model_flops(compiled: Compiled, orders: Sequence[Sequence[tuple[int, int]]]) -> float:
    """Products of forward and backward of a rank that runs these of the chunks, averaged over the stages."""
    known: dict[int, int] = {}
    total = 0
    for chunks, order in zip(compiled.chunks, orders, strict=True):
        runs = Counter(chunk for chunk, _ in order)
        for index, graph in enumerate(chunks):
            if runs[index] and id(graph) not in known:
                known[id(graph)] = model_flops(graph)
            total += known.get(id(graph), 0) * runs[index]
    return total / len(compiled.chunks)


def _ns(picoseconds: np.ndarray) -> np.ndarray:
    return (picoseconds + 500) // 1000
