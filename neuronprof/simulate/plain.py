"""One rank, event by event: the plain form of the simulator, and the judge of who gets HBM first.

Each queue is first in, first out. An instruction is ready when the one before it in its queue and all its dependencies have ended (a
DMA: dma_start later). HBM is one server for all DMA of the core, first ready, first served. Ready times never go back, so one heap
over the heads of the queues is the whole event loop.
"""

import heapq

import numpy as np

from neuronprof.program import Program, Queue
from neuronprof.simulate.timing import HBM, NONE, Costs, Timing, dependency_causes, served_by_hbm


def simulate(program: Program, costs: Costs) -> tuple[np.ndarray, Timing]:
    """The order in which the instructions start, int32[n], and their Timing on one lane that begins at 0."""
    rank = _Rank(program, costs)
    order = []
    for line in rank.lines:
        if line and not rank.missing[line[0]]:
            rank.offer(line[0])
    while rank.heads:
        i = rank.start_next()
        order.append(i)
        rank.release(i)
    timing = Timing(
        start=np.array(rank.start, np.int64)[:, None],
        end=np.array(rank.end, np.int64)[:, None],
        wait=np.array(rank.wait, np.int64)[:, None],
        wait_for=np.array(rank.wait_for, np.int8)[:, None],
        released_by=np.array(rank.released_by, np.int32)[:, None],
        released_on=np.zeros((len(program), 1), np.int32),
    )
    return np.array(order, np.int32), timing


class _Rank:
    """Queues, HBM and dependencies of one rank, as plain lists."""

    def __init__(self, program: Program, costs: Costs) -> None:
        n = len(program)
        self.duration, self.dma_start = costs.duration.tolist(), costs.dma_start
        self.served, self.queue = served_by_hbm(program).tolist(), program.queue.tolist()
        self.ptr, self.deps, self.cause = (
            program.deps_ptr.tolist(),
            program.deps.tolist(),
            dependency_causes(program).tolist(),
        )
        self.successors = _successors(program)
        self.missing = np.diff(program.deps_ptr).tolist()
        self.lines = [np.flatnonzero(program.queue == q).tolist() for q in range(len(Queue))]
        self.at, self.free, self.last = [0] * len(Queue), [0] * len(Queue), [-1] * len(Queue)
        self.hbm_free, self.hbm_last = 0, -1
        self.heads: list[tuple[int, int]] = []
        self.start, self.end, self.wait = [0] * n, [0] * n, [0] * n
        self.wait_for, self.released_by = [NONE] * n, [-1] * n

    def offer(self, i: int) -> None:
        """Puts a queue's head, whose dependencies have all started, among those that can start."""
        queue = self.queue[i]
        ready, by, cause = self.free[queue], self.last[queue], NONE
        latest = {NONE: ready}
        delay = self.dma_start if self.served[i] else 0
        for at in range(self.ptr[i], self.ptr[i + 1]):
            dependency, why = self.deps[at], self.cause[at]
            ended = self.end[dependency] + delay
            latest[why] = max(ended, latest.get(why, 0))
            if ended > ready:
                ready, by, cause = ended, dependency, why
        self.released_by[i], self.wait_for[i] = by, cause
        self.wait[i] = 0 if cause == NONE else ready - max(time for why, time in latest.items() if why != cause)
        heapq.heappush(self.heads, (ready, i))

    def start_next(self) -> int:
        """Starts the instruction that is ready first; returns it."""
        start, i = heapq.heappop(self.heads)
        queue = self.queue[i]
        if self.served[i] and self.hbm_free > start:
            self.wait[i] = self.hbm_free - start
            start, self.released_by[i], self.wait_for[i] = self.hbm_free, self.hbm_last, HBM
        elif self.served[i]:
            self.wait[i] = min(self.wait[i], start - self.hbm_free)
        self.start[i], self.end[i] = start, start + self.duration[i]
        self.free[queue], self.last[queue] = self.end[i], i
        if self.served[i]:
            self.hbm_free, self.hbm_last = self.end[i], i
        return i

    def release(self, i: int) -> None:
        """Offers the heads of queues that waited for nothing but i."""
        queue = self.queue[i]
        self.at[queue] += 1
        for j in self.successors[i]:
            self.missing[j] -= 1
            if not self.missing[j] and self.queue[j] != queue and self._is_head(j):
                self.offer(j)
        line = self.lines[queue]
        if self.at[queue] < len(line) and not self.missing[line[self.at[queue]]]:
            self.offer(line[self.at[queue]])

    def _is_head(self, i: int) -> bool:
        line, at = self.lines[self.queue[i]], self.at[self.queue[i]]
        return at < len(line) and line[at] == i


def _successors(program: Program) -> list[list[int]]:
    successors: list[list[int]] = [[] for _ in range(len(program))]
    targets = np.repeat(np.arange(len(program)), np.diff(program.deps_ptr)).tolist()
    for source, target in zip(program.deps.tolist(), targets, strict=True):
        successors[source].append(target)
    return successors
