"""Many ranks at once: the recurrence of in-order queues, one array element a rank.

Instructions are walked in an order in which every predecessor comes first; the inner loop runs over the lanes of a block, whose state
stays in the cache. A block holds the same lanes of all stages, so that messages between stages never leave it, and whole replica groups
where they are small enough; collectives over more ranks than a block end a phase and are taken over all lanes.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from neuronprof.graph.groups import ReplicaGroup
from neuronprof.noise import key_of, seed_of
from neuronprof.simulate import kernels
from neuronprof.simulate.fleet import MEET, QUEUES, Fleet
from neuronprof.simulate.job import Job
from neuronprof.simulate.kernels import Column, Fixed
from neuronprof.simulate.table import Table

_BLOCK = 256
Tell = Callable[[int, int], None]


def say_nothing(_done: int, _count: int) -> None:
    """For whoever does not want to be told."""


@dataclass(frozen=True)
class Meeting:
    """A collective over several blocks or stages, by replica group.

    met: float64[groups, 2], arrival of the last rank and slowness of the slowest link; last: int32[groups], that rank; released: int32,
    the instruction whose end let it come.
    """

    met: np.ndarray
    last: np.ndarray
    released: np.ndarray


@dataclass(frozen=True)
class Totals:
    """What the lanes did, in picoseconds.

    end, peers: float64[stages, lanes], end of a rank's last instruction, and how long it waited for peers; busy: float64[stages, queues,
    lanes], how long each queue was occupied. meetings: in the order of the run, so that any rank can be run again alone.
    """

    end: np.ndarray
    peers: np.ndarray
    busy: np.ndarray
    meetings: tuple[Meeting, ...]


@dataclass(frozen=True)
class Kept:
    """Every instruction of one rank.

    start, stop: float64[n], picoseconds; slowest, released: int32[n], of its collectives the rank that came last, and the instruction (of
    the fleet) whose end let it come (-1 for all others).
    """

    start: np.ndarray
    stop: np.ndarray
    slowest: np.ndarray
    released: np.ndarray


@dataclass(frozen=True)
class _Phase:
    """Consecutive instructions; together: they are one collective over several blocks or stages."""

    code: np.ndarray
    times: np.ndarray
    together: bool


class Lanes:
    """The programs of a fleet on the lanes of a job."""

    def __init__(self, fleet: Fleet, table: Table, job: Job) -> None:
        self._fleet, self._table, self._job = fleet, table, job
        self._stages, self._lanes = len(fleet.programs), job.lanes
        self._ranks = np.stack([job.ranks(s)[: self._lanes] for s in range(self._stages)]).astype(np.int32)
        self._keys = key_of(self._ranks)
        self._width = _width(self._lanes, [g.span for g in fleet.groups])
        self._blocks = self._lanes // self._width

    def run(self, number: int, tell: Tell = say_nothing) -> Totals:
        """Runs all lanes from time 0 on. number: of the run, for the noise; tell: is called with instructions done and in all."""
        state = self._initial(range(self._blocks))
        meetings: list[Meeting] = []
        nobody, done = _Store(self, ()), 0
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for phase in self._phases:
                if phase.together:
                    meetings.append(self._arrive(phase, state))
                    self._leave(pool, phase, meetings[-1], state, range(self._blocks), nobody)
                else:
                    self._walk(pool, phase, state, range(self._blocks), number, nobody)
                tell(done := done + len(phase.code), len(self._fleet))
        return self._totals(state, tuple(meetings))

    def again(self, number: int, meetings: Sequence[Meeting], ranks: Sequence[int]) -> dict[int, Kept]:
        """Every instruction of some ranks, of a run whose meetings are known: only the blocks that hold them run again."""
        places = tuple((self._job.stage(r), self._job.lane(r) % self._lanes) for r in ranks)
        store = _Store(self, places)
        blocks = sorted({lane // self._width for _, lane in places})
        state = self._initial(blocks)
        known = iter(meetings)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for phase in self._phases:
                if phase.together:
                    self._leave(pool, phase, next(known), state, blocks, store)
                else:
                    self._walk(pool, phase, state, blocks, number, store)
        return dict(zip(ranks, store.kept(), strict=True))

    def _walk(
        self, pool: Executor, phase: _Phase, state: np.ndarray, blocks: Sequence[int], number: int, store: "_Store"
    ) -> None:
        faults = self._job.faults
        noise = faults.jitter / (1 << 15), seed_of(faults.seed, number)

        def walk(at: int) -> None:
            first = blocks[at] * self._width
            lanes = slice(first, first + self._width)
            member = self._member[blocks[at]] if self._member else self._no_member
            keys, ranks = np.ascontiguousarray(self._keys[:, lanes]), np.ascontiguousarray(self._ranks[:, lanes])
            table = phase.code, phase.times, self._table.deps, state[at], self._table.before
            kernels.walk(*table, member, keys, ranks, *noise, store.of_block(first, self._width), *store.arrays)

        list(pool.map(walk, range(len(blocks))))

    def _arrive(self, phase: _Phase, state: np.ndarray) -> Meeting:
        member, groups = self._wide(int(phase.code[0, Column.GROUP]))
        met, last, released = np.zeros((groups, 2)), np.zeros(groups, np.int32), np.full(groups, -1, np.int32)
        table = phase.code, phase.times, self._table.deps, state, self._table.before
        kernels.arrive(*table, member, self._ranks, met, last, released)
        return Meeting(met, last, released)

    def _leave(
        self, pool: Executor, phase: _Phase, meeting: Meeting, state: np.ndarray, blocks: Sequence[int], store: "_Store"
    ) -> None:
        member, _ = self._wide(int(phase.code[0, Column.GROUP]))
        found = meeting.met, meeting.last, meeting.released

        def leave(at: int) -> None:
            here = np.ascontiguousarray(member[:, blocks[at]])
            kept = store.of_block(blocks[at] * self._width, self._width)
            kernels.leave(phase.code, phase.times, self._table.deps, state[at], here, *found, kept, *store.arrays)

        list(pool.map(leave, range(len(blocks))))

    @property
    def fleet(self) -> Fleet:
        """The instructions that the lanes run."""
        return self._fleet

    @cached_property
    def _firsts(self) -> list[np.ndarray]:
        """First rank of each rank's group, for each group: int64[stages, lanes]. One lane stands for all: it meets nobody."""
        if self._lanes == 1:
            return [_alone(g, self._ranks, self._job) for g in self._fleet.groups]
        return [g.first(self._ranks) for g in self._fleet.groups]

    @cached_property
    def _is_local(self) -> list[bool]:
        """Whether every group of a description lies inside one stage and one block."""
        place = np.arange(self._lanes) // self._width + self._blocks * np.arange(self._stages)[:, None]
        return [_constant(f.ravel(), place.ravel()) for f in self._firsts]

    @cached_property
    def _member(self) -> list[np.ndarray]:
        """Place of each lane's group in its block (0 for groups that are not local); of each block int32[groups, stages, lanes]."""
        shape = (len(self._firsts), self._stages, self._width)
        found = [np.zeros(shape, np.int32) for _ in range(self._blocks)] if self._firsts else []
        for g in np.flatnonzero(self._is_local).tolist():
            firsts = self._firsts[g].reshape(self._stages, self._blocks, self._width)
            for b in range(self._blocks):
                for s in range(self._stages):
                    found[b][g, s] = np.unique(firsts[s, b], return_inverse=True)[1]
        return found

    _no_member = np.zeros((0, 0, 0), np.int32)

    def _wide(self, group: int) -> tuple[np.ndarray, int]:
        """Group of each rank, int32[stages, blocks, lanes of a block], and how many groups there are."""
        if group not in self._wide_groups:
            values, inverse = np.unique(self._firsts[group], return_inverse=True)
            shape = (self._stages, self._blocks, self._width)
            self._wide_groups[group] = inverse.reshape(shape).astype(np.int32), len(values)
        return self._wide_groups[group]

    @cached_property
    def _wide_groups(self) -> dict[int, tuple[np.ndarray, int]]:
        return {}

    @cached_property
    def _phases(self) -> list[_Phase]:
        """Runs of instructions for `walk`, and collectives over several blocks or stages."""
        table, phases, start = self._table, [], 0
        local = np.array([*self._is_local, True])
        meets = np.flatnonzero(table.kind == MEET)
        wide = meets[~local[table.code[meets, Column.GROUP]]]
        number = self._fleet.meeting[table.code[wide, Column.INDEX]]
        ends = np.flatnonzero(np.diff(number, append=-1)) + 1
        for first, last in pairwise([0, *ends.tolist()]):
            begin, end = int(wide[first]), int(wide[last - 1]) + 1
            phases += [self._phase(start, begin, False), self._phase(begin, end, True)]
            start = end
        phases.append(self._phase(start, len(table.code), False))
        return [phase for phase in phases if len(phase.code)]

    def _phase(self, start: int, stop: int, together: bool) -> _Phase:
        return _Phase(self._table.code[start:stop], self._table.times[start:stop], together)

    def _initial(self, blocks: Sequence[int]) -> np.ndarray:
        """State of some blocks at the start, float64[blocks, rows, lanes of a block]."""
        job, rows = self._job, self._table.rows
        state = np.zeros((len(blocks), rows.count, self._width))
        chips = self._ranks // job.ranks_per_chip
        slow = _looked_up(job.faults.slow_chips, chips, 1.0)
        factors = (
            slow,
            slow * _looked_up(job.faults.throttled, self._ranks, 1.0),
            1 / _looked_up(job.faults.links, chips, 1.0),
        )
        late = np.rint(_looked_up(job.faults.late_hosts, chips // job.chips_a_host, 0.0) * 1e12)
        chosen = list(blocks)

        def put(row: int, values: np.ndarray) -> None:
            state[:, row] = values.reshape(self._blocks, self._width)[chosen]

        state[:, Fixed.NEVER] = -np.inf
        state[:, Fixed.ONE] = 1.0
        for stage in range(self._stages):
            for queue in range(QUEUES):
                put(rows.queue + stage * QUEUES + queue, late[stage])
            for kind, factor in enumerate(factors):
                put(rows.factor + 3 * stage + kind, factor[stage])
        return state

    def _totals(self, state: np.ndarray, meetings: tuple[Meeting, ...]) -> Totals:
        rows, stages = self._table.rows, self._stages

        def rank_wise(first: int, count: int) -> np.ndarray:
            return state[:, first : first + count].transpose(1, 0, 2).reshape(stages, count // stages, self._lanes)

        return Totals(
            rank_wise(rows.queue, stages * QUEUES).max(axis=1),
            rank_wise(rows.peers, stages)[:, 0],
            rank_wise(rows.busy, stages * QUEUES),
            meetings,
        )


class _Store:
    """Where the kernels put the instructions of ranks that are kept. places: (stage, lane) of each."""

    def __init__(self, lanes: Lanes, places: Sequence[tuple[int, int]]) -> None:
        sizes = [len(lanes.fleet.programs[stage]) for stage, _ in places]
        self._ends = np.cumsum(sizes, dtype=np.int64) if sizes else np.zeros(0, np.int64)
        begins = self._ends - np.array(sizes, np.int64)
        self._where = np.array([(s, lane, b) for (s, lane), b in zip(places, begins.tolist(), strict=True)], np.int64)
        self._where = self._where.reshape(-1, 3)
        total = int(self._ends[-1]) if sizes else 0
        self.arrays = (
            np.zeros(total),
            np.zeros(total),
            np.full(total, -1, np.int32),
            np.full(total, -1, np.int32),
        )

    def of_block(self, first: int, width: int) -> np.ndarray:
        """The kept ranks in a block as the kernels want them, int64[kept, 3]: stage, lane of the block, place in the arrays."""
        lane = self._where[:, 1]
        return self._where[(lane >= first) & (lane < first + width)] - np.array([0, first, 0])

    def kept(self) -> list[Kept]:
        """Of each place what was put for it."""
        return [Kept(*parts) for parts in zip(*(np.split(a, self._ends[:-1]) for a in self.arrays), strict=True)]


def _alone(group: ReplicaGroup, ranks: np.ndarray, job: Job) -> np.ndarray:
    """With one lane a stage: the first stage that a stage meets in a group."""
    count, stride = job.stages
    met = group.members(int(ranks.flat[0])) // stride % count if count > 1 else np.zeros(1, np.int64)
    stages = np.arange(len(ranks))[:, None]
    return np.where(np.isin(stages, met), stages * 0 + int(met.min()), stages) if len(set(met.tolist())) > 1 else stages


def _constant(keys: np.ndarray, values: np.ndarray) -> bool:
    """Whether equal keys always have equal values."""
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    return bool((values[order][1:] == values[order][:-1])[same].all())


def _looked_up(given: dict[int, float], keys: np.ndarray, default: float) -> np.ndarray:
    found = np.full(keys.shape, default)
    for key, value in given.items():
        found[keys == key] = value
    return found


def _width(lanes: int, spans: list[int]) -> int:
    """Lanes of a block: at most _BLOCK, a divisor of all, and such that as many collectives as can be stay inside."""
    divisors = [d for d in range(1, min(lanes, 2 * _BLOCK) + 1) if lanes % d == 0]
    best = max(divisors, key=lambda d: (d >= min(lanes, 32), sum(d % s == 0 for s in spans), d <= _BLOCK, d))
    return best if best >= 32 or lanes <= 2 * _BLOCK else lanes
