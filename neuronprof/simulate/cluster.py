"""The ranks of a job on their chips: runs one set of programs after another on all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from neuronprof.graph.groups import ReplicaGroup
from neuronprof.program import Program
from neuronprof.simulate import arbiter
from neuronprof.simulate.explain import Explained, Met
from neuronprof.simulate.fleet import MEET, RECV, Fleet, fleet, neighbours
from neuronprof.simulate.job import Job
from neuronprof.simulate.lanes import Kept, Lanes, Tell, say_nothing
from neuronprof.simulate.lanes import Totals as LaneTotals
from neuronprof.simulate.network import Transfer
from neuronprof.simulate.table import table
from neuronprof.simulate.throttling import throttled
from neuronprof.simulate.timing import Timing


@dataclass(frozen=True)
class Totals:
    """What every rank did in a run, in picoseconds, by rank.

    end: of its last instruction; peers: time it waited for other ranks, int64[world]; busy: time that each queue was occupied,
    int64[world, queues].
    """

    end: np.ndarray
    peers: np.ndarray
    busy: np.ndarray


class Prepared:
    """All that depends on the programs alone, so that they run again at no cost."""

    def __init__(self, instructions: Fleet, job: Job) -> None:
        """Arbitrates HBM and links once for all ranks.

        Raises:
            NeuronprofError: stages wait for each other for ever.
        """
        self.job, self.fleet = job, instructions
        self.order = arbiter.order(instructions)
        self.before = neighbours(instructions, self.order)
        self.lanes = Lanes(instructions, table(instructions, self.order, self.before), job)

    def run(self, begin: int, number: int, keep: Sequence[int], tell: Tell = say_nothing) -> "Run":
        """Runs from `begin` on, as the number-th run of the job, and keeps the timing of some ranks."""
        lanes = self.lanes.run(number, tell)
        run = Run(self.job, begin, begin + int(max(0, lanes.end.max())), number, self, lanes)
        return run.keeping(keep) if len(keep) else run

    @cached_property
    def first_of_meeting(self) -> np.ndarray:
        """The first instruction of each collective, over all stages that take part."""
        met = np.flatnonzero(self.fleet.meeting >= 0)[::-1]
        first = np.zeros(int(self.fleet.meeting.max(initial=-1)) + 1, np.int64)
        first[self.fleet.meeting[met]] = met
        return first

    @cached_property
    def explained(self) -> list[Explained]:
        """Of each stage."""
        return [Explained(self.fleet, self.before, stage) for stage in range(len(self.fleet.programs))]


@dataclass(frozen=True)
class Run:
    """Programs that ran: one a stage.

    Begin, end: picoseconds from the start of the job, over all ranks; number: of the run in its job; kept: ranks whose timing is known.
    """

    job: Job
    begin: int
    end: int
    number: int
    _prepared: Prepared
    _lanes: LaneTotals
    _kept: dict[int, Kept] = field(default_factory=dict)

    @property
    def kept(self) -> tuple[int, ...]:
        """Ranks whose timing is known; with one lane for all the first of each stage, which stands for the others."""
        return tuple(self._kept)

    def keeping(self, ranks: Sequence[int]) -> "Run":
        """The same run with the timing of these ranks: only the lanes around them run again."""
        job = self.job
        chosen = sorted(set(ranks)) if job.lanes > 1 else [int(job.ranks(stage)[0]) for stage in range(job.stages[0])]
        return replace(self, _kept=self._prepared.lanes.again(self.number, self._lanes.meetings, chosen))

    def program(self, rank: int) -> Program:
        """What a rank ran."""
        return self._prepared.fleet.programs[self.job.stage(rank)]

    def cold(self, rank: int) -> np.ndarray | None:
        """Of each instruction of a rank's program, the share in which the PE array is cold; None: never."""
        flat, stage = self._prepared.fleet, self.job.stage(rank)
        return None if flat.cold is None else flat.cold[flat.base[stage] : flat.base[stage + 1]]

    def transfers(self, rank: int) -> dict[int, Transfer]:
        """What each collective of a rank's program puts on the links, by instruction."""
        first = int(self._prepared.fleet.base[self.job.stage(rank)])
        program = self.program(rank)
        return {i: self._prepared.fleet.transfers[first + i] for i in program.collectives}

    def stage_program(self, stage: int) -> Program:
        """What the ranks of a stage ran."""
        return self._prepared.fleet.programs[stage]

    @property
    def instructions(self) -> int:
        """Instructions of all stages together."""
        return len(self._prepared.fleet)

    def collective_numbers(self, rank: int) -> dict[int, int]:
        """A number below `instructions` for each collective of a rank's program, the same at both ends of a message and on all stages."""
        flat, first = self._prepared.fleet, int(self._prepared.fleet.base[self.job.stage(rank)])
        numbers = {}
        for i in self.program(rank).collectives:
            at = first + i
            sent = int(flat.partner[at]) if flat.kind[at] == RECV else at
            numbers[i] = sent if flat.meeting[at] < 0 else int(self._prepared.first_of_meeting[flat.meeting[at]])
        return numbers

    def timing(self, rank: int) -> Timing:
        """When each instruction of a kept rank ran, and why not sooner."""
        job, flat = self.job, self._prepared.fleet
        # With one lane for all, the ranks of a stage are the same but for their numbers.
        stands_for = rank if job.lanes > 1 else int(job.ranks(job.stage(rank))[0])
        kept, stage = self._kept[stands_for], job.stage(rank)
        own = slice(int(flat.base[stage]), int(flat.base[stage + 1]))
        across = np.full(own.stop - own.start, -1, np.int32)
        for i in np.flatnonzero(flat.partner[own] >= 0).tolist():
            across[i] = job.ranks(int(flat.stage[flat.partner[own.start + i]]))[job.lane(rank)]
        slowest = kept.slowest.copy()
        if job.lanes == 1:
            for i in np.flatnonzero((flat.kind[own] == MEET) & (slowest >= 0)).tolist():
                slowest[i] = self._first_of(flat.groups[flat.group[own.start + i]], rank, int(slowest[i]))
        times = kept.start.astype(np.int64) + self.begin, kept.stop.astype(np.int64) + self.begin
        met = Met(slowest, kept.released)
        return self._prepared.explained[stage].timing(rank, times, self.begin + job.late(rank), met, across)

    def _first_of(self, group: ReplicaGroup, rank: int, example: int) -> int:
        """The first rank in the group of `rank` that runs the same stage as an example."""
        members = group.members(rank)
        return int(members[self.job.stage(members) == self.job.stage(example)][0])

    @cached_property
    def totals(self) -> Totals:
        """What every rank did."""
        job, lanes = self.job, self._lanes
        ranks = np.stack([job.ranks(s) for s in range(job.stages[0])])
        end, peers = np.zeros(job.world, np.int64), np.zeros(job.world, np.int64)
        busy = np.zeros((job.world, lanes.busy.shape[1]), np.int64)
        end[ranks], peers[ranks] = lanes.end + self.begin, lanes.peers
        for stage in range(job.stages[0]):
            busy[ranks[stage]] = lanes.busy[stage].T
        return Totals(end, peers, busy)


@dataclass
class Cluster:
    """Simulates a job, one set of programs after another. All ranks start each of them together, but for late hosts."""

    job: Job
    _now: int = 0
    _runs: int = 0
    _prepared: dict[tuple[int, ...], Prepared] = field(default_factory=dict)

    def run(self, programs: Sequence[Program], keep: Sequence[int] = (0,), tell: Tell = say_nothing) -> Run:
        """Runs one program a stage on every rank, after the ones before. keep: ranks of which every instruction is wanted.

        Without faults, ranks of a stage are the same: keeping one keeps all.

        Raises:
            NeuronprofError: stages wait for each other for ever.
        """
        key = tuple(map(id, programs))
        if key not in self._prepared:
            self._prepared[key] = Prepared(throttled(fleet(programs, self.job), self.job), self.job)
        run = self._prepared[key].run(self._now, self._runs, keep, tell)
        self._now, self._runs = run.end, self._runs + 1
        return run
