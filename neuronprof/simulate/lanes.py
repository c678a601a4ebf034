"""Many ranks at once: the recurrence of in-order queues, one array element a rank.

Instructions are walked in an order in which every predecessor comes first; the inner loop runs over the lanes of a block, whose state
stays in the cache. A block holds the same lanes of all stages, so that messages between stages never leave it, and whole replica groups
where they are small enough; collectives over more ranks than a block end a phase and are taken over all lanes.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from neuronprof.graph.groups import ReplicaGroup
from neuronprof.simulate import kernels, walkorder
from neuronprof.simulate.fleet import ARRAY, FIXED, MEET, QUEUES, SEND, SERVED, Fleet, neighbours
from neuronprof.simulate.job import Job
from neuronprof.simulate.kernels import Column
from neuronprof.simulate.noise import AMPLITUDE_BITS, seed_of

_BLOCK = 256
_THREADS = 2
_SERVERS = 3  # HBM, NeuronLink, EFA


@dataclass(frozen=True)
class Outcome:
    """What the lanes did, in picoseconds.

    end, peers: int64[stages, lanes], end of a rank's last instruction, and how long it waited for peers; busy: int64[stages, queues,
    lanes], how long each queue was occupied. start, stop: of every instruction of the kept ranks, int64[n, kept] (0 in rows of other
    stages). slowest, released: of every collective of the kept ranks, int32[n, kept]: the rank that came last, and the instruction whose
    end let it.
    """

    end: np.ndarray
    peers: np.ndarray
    busy: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    slowest: np.ndarray
    released: np.ndarray


@dataclass(frozen=True)
class _Rows:
    """Where a block's state has what.

    Queues, servers, busy times, waits for peers, factors of chip, PE array and link, ends of instructions.
    """

    stages: int
    slots: int

    @property
    def server(self) -> int:
        return self.stages * QUEUES

    @property
    def busy(self) -> int:
        return self.server + self.stages * _SERVERS

    @property
    def peers(self) -> int:
        return self.busy + self.stages * QUEUES

    @property
    def factor(self) -> int:
        return self.peers + self.stages

    @property
    def unused(self) -> int:
        return self.factor + 3 * self.stages

    @property
    def slot(self) -> int:
        return self.unused + 1

    @property
    def count(self) -> int:
        return self.slot + self.slots


class Lanes:
    """The programs of a fleet on the lanes of a job. order: from `arbiter.order`."""

    def __init__(self, fleet: Fleet, order: np.ndarray, job: Job) -> None:
        self._fleet, self._job = fleet, job
        self._stages, self._lanes = len(fleet.programs), job.lanes
        self._ranks = np.stack([job.ranks(s)[: self._lanes] for s in range(self._stages)])
        self._width = _width(self._lanes, [g.span for g in fleet.groups])
        self._blocks = self._lanes // self._width
        walked = walkorder.sequence(fleet, order)
        slot, slots = walkorder.slots(fleet, walked)
        self._rows = _Rows(self._stages, slots)
        self._code = _code(fleet, self._rows, slot, neighbours(fleet, order))[walked]
        self._deps = np.stack([self._rows.slot + slot[fleet.deps], fleet.deps], axis=1).astype(np.int32)

    def run(self, begin: int, number: int, keep: np.ndarray) -> Outcome:
        """Runs from `begin` on. number: of the run, for the noise; keep: ranks whose every instruction is wanted, int64[kept]."""
        state = self._initial(begin)
        n, k = len(self._fleet), len(keep)
        kept = np.array(
            [(self._job.stage(r), self._job.lane(r) % self._lanes, i) for i, r in enumerate(keep.tolist())], np.int32
        ).reshape(-1, 3)
        out = (
            np.zeros((n, k), np.int64),
            np.zeros((n, k), np.int64),
            np.full((n, k), -1, np.int32),
            np.full((n, k), -1, np.int32),
        )
        faults = self._job.faults
        noise = round(faults.jitter * 2**AMPLITUDE_BITS), seed_of(faults.seed, number)
        with ThreadPoolExecutor(_THREADS) as pool:
            for code, together in self._phases:
                if together:
                    self._meet(code, state, kept, out)
                else:
                    block = partial(self._walk, code, state, kept, out, noise)
                    list(pool.map(block, range(self._blocks)))
        return self._outcome(state, out)

    def _walk(
        self,
        code: np.ndarray,
        state: np.ndarray,
        kept: np.ndarray,
        out: tuple[np.ndarray, ...],
        noise: tuple[int, int],
        block: int,
    ) -> None:
        first = block * self._width
        here = kept[(kept[:, 1] >= first) & (kept[:, 1] < first + self._width)] - np.array([0, first, 0], np.int32)
        member = np.ascontiguousarray(self._member[:, block]) if len(self._member) else self._no_member
        ranks = np.ascontiguousarray(self._ranks[:, first : first + self._width])
        kernels.walk(code, self._deps, state[block], member, ranks, *noise, here, *out)

    def _meet(self, code: np.ndarray, state: np.ndarray, kept: np.ndarray, out: tuple[np.ndarray, ...]) -> None:
        member, groups = self._wide(int(code[0, Column.GROUP]))
        met, first = np.zeros((groups, 2), np.int64), np.zeros(groups, np.int32)
        kernels.meet(code, self._deps, state, member, self._ranks, met, first, kept, *out)

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
    def _member(self) -> np.ndarray:
        """Place of each lane's group in its block, int32[groups, blocks, stages, lanes of a block]; 0 for groups that are not local."""
        shape = (len(self._firsts), self._blocks, self._stages, self._width)
        member = np.zeros(shape, np.int32)
        for g, first in enumerate(self._firsts):
            if self._is_local[g]:
                by_block = first.reshape(self._stages, self._blocks, self._width).transpose(1, 0, 2)
                for b in range(self._blocks):
                    for s in range(self._stages):
                        member[g, b, s] = np.unique(by_block[b, s], return_inverse=True)[1]
        return member

    _no_member = np.zeros((0, 0, 0), np.int32)

    def _wide(self, group: int) -> tuple[np.ndarray, int]:
        """Group of each rank, int32[stages, blocks, lanes of a block], and how many groups there are."""
        values, inverse = np.unique(self._firsts[group], return_inverse=True)
        shape = (self._stages, self._blocks, self._width)
        return inverse.reshape(shape).astype(np.int32), len(values)

    @cached_property
    def _phases(self) -> list[tuple[np.ndarray, bool]]:
        """Runs of instructions for `walk`, and collectives over several blocks or stages for `meet`."""
        code, phases, start = self._code, [], 0
        kinds, groups = code[:, Column.KIND], code[:, Column.GROUP]
        local = np.array([*self._is_local, True])
        wide = np.flatnonzero((kinds == MEET) & ~local[groups])
        at = 0
        while at < len(wide):
            first = int(wide[at])
            meeting = self._fleet.meeting[code[wide[at:], Column.INDEX]]
            together = int(np.argmax(meeting != meeting[0])) if (meeting != meeting[0]).any() else len(meeting)
            phases += [
                (np.ascontiguousarray(code[start:first]), False),
                (np.ascontiguousarray(code[wide[at : at + together]]), True),
            ]
            start, at = int(wide[at + together - 1]) + 1, at + together
        phases.append((np.ascontiguousarray(code[start:]), False))
        return [phase for phase in phases if len(phase[0])]

    def _initial(self, begin: int) -> np.ndarray:
        """State of all blocks at the start, int64[blocks, rows, lanes of a block]."""
        job, rows = self._job, self._rows
        state = np.zeros((self._blocks, rows.count, self._width), np.int64)
        chips = self._ranks // job.ranks_per_chip
        slow = _looked_up(job.faults.slow_chips, chips, 1.0)
        factors = (
            slow,
            slow * _looked_up(job.faults.throttled, self._ranks, 1.0),
            1 / _looked_up(job.faults.links, chips, 1.0),
        )
        hosts = chips // job.chips_a_host
        late = begin + np.rint(_looked_up(job.faults.late_hosts, hosts, 0.0) * 1e12).astype(np.int64)

        def put(row: int, values: np.ndarray) -> None:
            state[:, row] = values.reshape(self._blocks, self._width)

        for stage in range(self._stages):
            for queue in range(QUEUES):
                put(stage * QUEUES + queue, late[stage])
            for kind, factor in enumerate(factors):
                put(rows.factor + 3 * stage + kind, np.rint(factor[stage] * (1 << 16)).astype(np.int64))
        return state

    def _outcome(self, state: np.ndarray, out: tuple[np.ndarray, ...]) -> Outcome:
        rows, stages = self._rows, self._stages

        def rank_wise(first: int, count: int) -> np.ndarray:
            return state[:, first : first + count].transpose(1, 0, 2).reshape(stages, count // stages, self._lanes)

        return Outcome(
            rank_wise(0, stages * QUEUES).max(axis=1),
            rank_wise(rows.peers, stages)[:, 0],
            rank_wise(rows.busy, stages * QUEUES),
            *out,
        )


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


def _code(fleet: Fleet, rows: _Rows, slot: np.ndarray, before: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The table of instructions that the kernels read, int64[n, columns]."""
    code = np.full((len(fleet), len(Column)), -1, np.int64)
    stage = fleet.stage.astype(np.int64)
    served = (fleet.kind == SERVED) | (fleet.link >= 0)
    server = rows.server + _SERVERS * stage + np.where(fleet.kind == SERVED, 0, 1 + fleet.link)
    code[:, Column.KIND] = fleet.kind
    code[:, Column.QUEUE] = stage * QUEUES + fleet.queue
    code[:, Column.SERVER] = np.where(served, server, np.where(fleet.kind == SEND, rows.unused, -1))
    code[:, Column.BUSY] = rows.busy + stage * QUEUES + fleet.queue
    code[:, Column.PEERS] = rows.peers + stage
    code[:, Column.FACTOR] = np.where(fleet.scale == FIXED, -1, rows.factor + 3 * stage + (fleet.scale == ARRAY))
    code[:, Column.LINK_FACTOR] = rows.factor + 3 * stage + 2
    code[:, Column.SLOT] = np.where(slot < 0, -1, rows.slot + slot)
    partner = np.flatnonzero(fleet.partner >= 0)
    senders = fleet.partner[partner]
    code[partner, Column.PARTNER] = rows.slot + slot[senders]
    code[senders, Column.PARTNER] = rows.factor + 3 * stage[partner] + 2
    code[:, Column.STAGE] = stage
    code[:, Column.DURATION], code[:, Column.WIRE], code[:, Column.DELAY] = fleet.duration, fleet.wire, fleet.delay
    code[:, Column.FIRST], code[:, Column.LAST] = fleet.deps_ptr[:-1], fleet.deps_ptr[1:]
    code[:, Column.GROUP] = fleet.group
    code[:, Column.NUMBER] = np.arange(len(fleet)) - fleet.base[stage]
    code[:, Column.INDEX] = np.arange(len(fleet))
    code[:, Column.BEFORE], code[:, Column.SERVED_BEFORE] = before
    return code
