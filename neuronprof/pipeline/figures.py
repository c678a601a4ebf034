"""What a layout's step comes to, straight from the simulation: the same figures as `analyze` finds in a trace of it."""

from dataclasses import dataclass, fields

import numpy as np

from neuronprof.analyze import intervals
from neuronprof.graph.flops import segment_work
from neuronprof.pipeline.compiled import Compiled
from neuronprof.program import QUEUE_TRACKS, Opcode, Queue
from neuronprof.simulate.undisturbed import Undisturbed
from neuronprof.terms import COMPUTE_ENGINES, Engine

_HOST_COPIES = (int(Opcode.COPY_TO_DEVICE), int(Opcode.COPY_TO_HOST))


def _queues(*engines: Engine) -> list[int]:
    return [int(q) for q in Queue if QUEUE_TRACKS[q][0] in engines]


_COMPUTE, _DMA, _CC = _queues(*COMPUTE_ENGINES), _queues(Engine.DMA), _queues(Engine.CC)


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

    def extended(self, shorter: "Figures", times: float) -> "Figures":
        """These figures with `times` times their difference from those of a shorter step added."""
        return Figures(
            *(
                getattr(self, f.name) + times * (getattr(self, f.name) - getattr(shorter, f.name))
                for f in fields(Figures)
            )
        )


def figures(run: Undisturbed, compiled: Compiled) -> Figures:
    """The figures of a run of all stages of a layout."""
    last = int(_ns(run.end).max(initial=0))
    stages = [_stage(run, number, last) for number in range(len(compiled.programs))]
    exposed, bubble, compute = (sum(column) / len(stages) for column in zip(*stages, strict=True))
    return Figures(float(last), exposed, bubble, compute, _model_flops(compiled))


def _stage(run: Undisturbed, number: int, last: int) -> tuple[int, int, int]:
    """Exposed communication, bubble and time with compute of one rank of a stage."""
    own = run.stage(number)
    queue, opcode = run.fleet.queue[own], run.fleet.programs[number].opcode
    start, end = _ns(run.start[own]), _ns(run.end[own])
    compute, talking = np.isin(queue, _COMPUTE), np.isin(queue, _CC)
    busy = intervals.merge(start[compute], end[compute])
    hidden = intervals.covered(start[talking], end[talking], *busy)
    exposed = int((end[talking] - start[talking] - hidden).sum())
    moving = talking | (np.isin(queue, _DMA) & ~np.isin(opcode, _HOST_COPIES))
    taken = intervals.merge(np.append(busy[0], start[moving]), np.append(busy[1], end[moving]))
    waited, until = map(_ns, run.waits(number))
    free = intervals.subtract(*intervals.merge(until - waited, until), *taken)
    idle = last - int(end.max(initial=0))
    return exposed, int((free[1] - free[0]).sum()) + idle, int((busy[1] - busy[0]).sum())


def _model_flops(compiled: Compiled) -> float:
    """Products of forward and backward of a rank, averaged over the stages."""
    known: dict[int, int] = {}
    total = 0
    for chunks, order in zip(compiled.chunks, compiled.orders, strict=True):
        for index, graph in enumerate(chunks):
            if id(graph) not in known:
                known[id(graph)] = segment_work(graph)["model_flops"]
            total += known[id(graph)] * sum(index == chunk for chunk, _ in order)
    return total / len(compiled.chunks)


def _ns(picoseconds: np.ndarray) -> np.ndarray:
    return (picoseconds + 500) // 1000
