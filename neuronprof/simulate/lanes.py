"""Many ranks at once: the recurrence of in-order queues, one array element a rank."""

import numpy as np

from neuronprof.program import Program, Queue
from neuronprof.simulate.timing import HBM, NONE, PEER, Costs, Timing, dependency_causes, served_by_hbm

_Choice = tuple[np.ndarray, np.ndarray, np.ndarray]


def recurrence(program: Program, costs: Costs, order: np.ndarray, factor: np.ndarray, begin: np.ndarray) -> Timing:
    """Runs a program on every lane; with one lane, a factor of 1 and begin 0 it is plain.simulate.

    order: of the instructions, as plain.simulate gives it; HBM is granted in it. factor: float64[n, lanes], how much longer than
    costs.duration each instruction takes. begin: int64[lanes], when each lane may start. All lanes are one replica group: a
    collective starts when the last has arrived.
    """
    lanes = len(begin)
    timing = _empty(len(program), lanes)
    duration = np.rint(costs.duration[:, None] * factor).astype(np.int64)
    served, causes = served_by_hbm(program).tolist(), dependency_causes(program).tolist()
    free, last = [begin.copy() for _ in Queue], [-1] * len(Queue)
    hbm, hbm_last = begin.copy(), -1
    own = np.arange(lanes, dtype=np.int32)
    for i in order.tolist():
        queue = int(program.queue[i])
        choice = (free[queue], np.full(lanes, NONE, np.int8), np.full(lanes, last[queue], np.int32))
        latest = {NONE: free[queue]}
        delay = costs.dma_start if served[i] else 0
        for at in range(int(program.deps_ptr[i]), int(program.deps_ptr[i + 1])):
            dependency = int(program.deps[at])
            ended = timing.end[dependency] + delay
            latest[causes[at]] = np.maximum(ended, latest.get(causes[at], 0))
            choice = _later(choice, ended, causes[at], dependency)
        on = own
        if served[i]:
            latest[HBM] = hbm
            choice = _later(choice, hbm, HBM, hbm_last)
        elif i in program.collectives:
            choice, on = _meet(choice)
        start, timing.wait_for[i], timing.released_by[i] = choice
        timing.start[i], timing.end[i] = start, start + duration[i]
        timing.wait[i], timing.released_on[i] = _waited(timing.wait_for[i], start, latest), on
        free[queue], last[queue] = timing.end[i], i
        if served[i]:
            hbm, hbm_last = timing.end[i], i
    return timing


def _empty(n: int, lanes: int) -> Timing:
    def column(dtype: type) -> np.ndarray:
        return np.zeros((n, lanes), dtype)

    return Timing(
        start=column(np.int64),
        end=column(np.int64),
        wait=column(np.int64),
        wait_for=column(np.int8),
        released_by=column(np.int32),
        released_on=column(np.int32),
    )


def _later(choice: _Choice, other: np.ndarray, cause: int, by: int) -> _Choice:
    """The later of two conditions, lane by lane; a tie keeps the first."""
    start, why, released = choice
    later = other > start
    return np.where(later, other, start), np.where(later, np.int8(cause), why), np.where(later, np.int32(by), released)


def _waited(cause: np.ndarray, start: np.ndarray, latest: dict[int, np.ndarray]) -> np.ndarray:
    """How long only the cause was missing: since the latest of all other conditions."""
    others = np.zeros_like(start)
    for why, time in latest.items():
        others = np.maximum(others, np.where(cause == why, 0, time))
    return np.where(cause == NONE, 0, start - others)


def _meet(choice: _Choice) -> tuple[_Choice, np.ndarray]:
    """All lanes wait for the last one, whose own predecessor releases them all; also the lane on which that predecessor ran."""
    start, why, released = choice
    slowest = int(np.argmax(start))
    late = start < start[slowest]
    lanes = np.arange(len(start), dtype=np.int32)
    met = (
        np.full_like(start, start[slowest]),
        np.where(late, np.int8(PEER), why),
        np.where(late, released[slowest], released),
    )
    return met, np.where(late, np.int32(slowest), lanes)
