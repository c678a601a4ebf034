"""The recurrence of in-order queues one rank at a time, in plain Python: what lanes.py does for many ranks at once, and its judge.

An instruction starts at the latest of: the end of the one before it in its queue; the ends of its dependencies (a DMA: dma_start later);
for a DMA, the end of the one that HBM served before it; for what crosses a link, the moment the link is free; for a RECV, the end of the
SEND on the rank at the other end; for a collective, all of this on every rank of its replica group.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import floor

import numpy as np

from neuronprof import noise
from neuronprof.simulate.fleet import ARRAY, FIXED, MEET, NO_LINK, RECV, SEND, SERVED, Fleet
from neuronprof.simulate.job import Job
from neuronprof.simulate.timing import HBM, LINK, NONE, PEER, Timing


@dataclass(frozen=True, slots=True)
class _Condition:
    """A moment before which an instruction cannot start: what it waits for, and the instruction and rank whose end makes it so."""

    time: int
    cause: int
    by: int
    on: int


def run(fleet: Fleet, order: np.ndarray, job: Job, begin: int = 0, number: int = 0) -> list[Timing]:
    """The Timing of each rank of a job; arguments as for lanes.Lanes.

    Raises:
        RuntimeError: the order is not one in which every rank can go on.
    """
    ranks = [_Rank(fleet, order, job, rank, begin, number) for rank in range(job.world)]
    turns = {rank.rank: rank.turns(ranks) for rank in ranks}
    while turns:
        for rank in list(turns):
            if next(turns[rank], None) is None:
                del turns[rank]
    return [rank.timing() for rank in ranks]


class _Rank:
    """One rank with its queues, HBM and links. What it knows of others, it reads from them."""

    def __init__(self, fleet: Fleet, order: np.ndarray, job: Job, rank: int, begin: int, number: int) -> None:
        self.rank, self.fleet, self.job = rank, fleet, job
        self.stage = job.stage(rank)
        self.order = order[fleet.stage[order] == self.stage].tolist()
        faults, chip = job.faults, rank // job.ranks_per_chip
        self.slow = faults.slow_chips.get(chip, 1.0)
        self.slow_array = self.slow * faults.throttled.get(rank, 1.0)
        self.link = 1 / faults.links.get(chip, 1.0)
        self.jitter = faults.jitter
        self.seed = noise.seed_of(faults.seed, number)
        self.begin = begin + job.late(rank)
        self.last_in_queue: dict[int, int] = {}
        self.server: dict[int, tuple[int, int]] = {}  # HBM (-1) and each link: busy until, because of which instruction
        self.arrived: dict[int, _Condition] = {}  # collective: when this rank came, and what let it
        self.start: dict[int, int] = {}
        self.end: dict[int, int] = {}
        self.why: dict[int, tuple[int, int, int, int]] = {}  # wait, cause, releaser, its rank

    def turns(self, ranks: list["_Rank"]) -> Iterator[bool]:
        """Runs until it has to wait for another rank, then yields; when run again, it looks whether it may go on."""
        for i in self.order:
            conditions, kind = self._conditions(i), self.fleet.kind[i]
            if kind == RECV:
                sender, message = self._across(i, ranks), int(self.fleet.partner[i])
                while message not in sender.end:
                    yield True
                if sender.end[message] > _latest(conditions).time:
                    conditions.append(_Condition(sender.end[message], PEER, message, sender.rank))
            if kind == MEET:
                yield from self._meet(i, conditions, ranks)
            elif kind == SEND:
                self._move(i, conditions, max(self.link, self._across(i, ranks).link))
            else:
                self._finish(i, conditions, self._duration(i))

    def _conditions(self, i: int) -> list[_Condition]:
        """What the rank itself has to have done before: the queue, the dependencies in order, then HBM or the link."""
        fleet = self.fleet
        before = self.last_in_queue.get(int(fleet.queue[i]), -1)
        found = [_Condition(self.end.get(before, self.begin), NONE, before, self.rank)]
        for at in range(int(fleet.deps_ptr[i]), int(fleet.deps_ptr[i + 1])):
            d = int(fleet.deps[at])
            found.append(_Condition(self.end[d] + int(fleet.delay[i]), int(fleet.causes[at]), d, self.rank))
        if fleet.kind[i] == SERVED or fleet.link[i] != NO_LINK:
            until, by = self.server.get(int(fleet.link[i]), (0, -1))
            found.append(_Condition(until, HBM if fleet.kind[i] == SERVED else LINK, by, self.rank))
        return found

    def _duration(self, i: int) -> int:
        duration, scale = int(self.fleet.duration[i]), self.fleet.scale[i]
        if scale == FIXED:
            return duration
        slower = floor(duration * (self.slow_array if scale == ARRAY else self.slow))
        return noise.noisy(slower, self.jitter, self.seed, i - int(self.fleet.base[self.stage]), self.rank)

    def _across(self, i: int, ranks: list["_Rank"]) -> "_Rank":
        """The rank at the other end of a message: the same lane of another stage."""
        return ranks[int(self.job.ranks(int(self.fleet.peer[i]))[self.job.lane(self.rank)])]

    def _meet(self, i: int, conditions: list[_Condition], ranks: list["_Rank"]) -> Iterator[bool]:
        meeting = int(self.fleet.meeting[i])
        members = [ranks[r] for r in self.fleet.groups[self.fleet.group[i]].members(self.rank).tolist()]
        self.arrived[meeting] = _latest(conditions)
        while any(meeting not in m.arrived for m in members):
            yield True
        latest = max(m.arrived[meeting].time for m in members)
        last = next(m for m in _stage_by_stage(members) if m.arrived[meeting].time == latest)
        came = last.arrived[meeting]
        if self.arrived[meeting].time < latest:
            conditions.append(_Condition(latest, PEER, came.by, last.rank))
        self._move(i, conditions, max(m.link for m in members))

    def _move(self, i: int, conditions: list[_Condition], slower: float) -> None:
        """A transfer: it holds its link for its wire time, longer by how much the slowest of its links is slower."""
        wire = floor(int(self.fleet.wire[i]) * slower)
        self._finish(i, conditions, wire + int(self.fleet.duration[i] - self.fleet.wire[i]))
        if self.fleet.link[i] != NO_LINK:
            self.server[int(self.fleet.link[i])] = self.start[i] + wire, i

    def _finish(self, i: int, conditions: list[_Condition], duration: int) -> None:
        found = _latest(conditions)
        others = max((c.time for c in conditions if c.cause != found.cause), default=0)
        self.start[i], self.end[i] = found.time, found.time + duration
        self.why[i] = (0 if found.cause == NONE else found.time - others, found.cause, found.by, found.on)
        self.last_in_queue[int(self.fleet.queue[i])] = i
        if self.fleet.kind[i] == SERVED:
            self.server[NO_LINK] = self.end[i], i

    def timing(self) -> Timing:
        """What this rank did, in program order; releasers are counted in the program of their own rank."""
        first, last = int(self.fleet.base[self.stage]), int(self.fleet.base[self.stage + 1])
        stage = self.fleet.stage
        rows = [(self.start[i], self.end[i], *self.why[i]) for i in range(first, last)]
        start, end, wait, cause, by, on = np.array(rows, np.int64).reshape(-1, 6).T
        local = np.where(by < 0, -1, by - self.fleet.base[stage[np.maximum(by, 0)]])
        return Timing(start, end, wait, cause.astype(np.int8), local.astype(np.int32), on.astype(np.int32))


def _latest(conditions: list[_Condition]) -> _Condition:
    """The condition that is met last; of several the first."""
    return max(conditions, key=lambda c: c.time)


def _stage_by_stage(members: list[_Rank]) -> list[_Rank]:
    return sorted(members, key=lambda m: (m.stage, m.rank))
