"""The ranks of a job on their chips: runs one program after another on all of them."""

from dataclasses import dataclass, field

import numpy as np

from neuronprof.errors import NeuronprofError
from neuronprof.hardware.spec import Chip
from neuronprof.program import Program
from neuronprof.simulate import cost, lanes, plain
from neuronprof.simulate.network import Transfer, collective
from neuronprof.simulate.timing import Costs, Timing

# Start, end, wait, its cause and its releaser of every instruction on every lane have to fit into memory.
_MOST_LANE_INSTRUCTIONS = 200_000_000


@dataclass(frozen=True)
class Job:
    """Where a job runs.

    world: ranks, placed on consecutive cores and chips. jitter: each instruction of each rank takes up to this share
    longer or shorter; slow_chips: chip to how many times slower it computes; seed: of the jitter.
    """

    chip: Chip
    lnc: int
    world: int
    jitter: float = 0.0
    slow_chips: dict[int, float] = field(default_factory=dict)
    seed: int = 0

    @property
    def ranks_per_chip(self) -> int:
        """Logical NeuronCores of a chip."""
        return self.chip.ranks(self.lnc)

    @property
    def lanes(self) -> int:
        """Ranks that can differ: all of them with jitter or a slow chip, else one stands for all."""
        return self.world if self.jitter or self.slow_chips else 1


@dataclass(frozen=True)
class Run:
    """A program that ran: timing in picoseconds from the start of the job, and what its collectives moved, by instruction."""

    program: Program
    timing: Timing
    begin: int
    end: int
    transfers: dict[int, Transfer]


@dataclass
class Cluster:
    """Simulates a job, program by program. All ranks start each program together."""

    job: Job
    _now: int = 0
    _runs: int = 0
    _done: dict[int, tuple[Program, Costs, dict[int, Transfer], np.ndarray, Timing]] = field(default_factory=dict)

    def run(self, program: Program) -> Run:
        """Runs a program on every rank, after the ones before it; the same program again costs no second simulation without jitter.

        Raises:
            NeuronprofError: more ranks and instructions than fit into memory.
        """
        if id(program) not in self._done:
            costs, transfers = self._costs(program)
            self._done[id(program)] = (program, costs, transfers, *plain.simulate(program, costs))
        _, costs, transfers, order, alone = self._done[id(program)]
        begin, self._runs = self._now, self._runs + 1
        if self.job.lanes == 1:
            timing = _shifted(alone, begin)
        else:
            timing = self._on_lanes(program, costs, order, begin)
        self._now = int(timing.end.max(initial=begin))
        return Run(program, timing, begin, self._now, transfers)

    def _costs(self, program: Program) -> tuple[Costs, dict[int, Transfer]]:
        job = self.job
        duration = cost.durations(program, job.chip, job.lnc, min(job.world, job.ranks_per_chip))
        transfers = {i: collective(call, job.chip, job.ranks_per_chip) for i, call in program.collectives.items()}
        for i, transfer in transfers.items():
            duration[i] = transfer.picoseconds
        return Costs(duration, int(job.chip.dma.start * cost.PICOSECONDS)), transfers

    def _on_lanes(self, program: Program, costs: Costs, order: np.ndarray, begin: int) -> Timing:
        job = self.job
        if len(program) * job.lanes > _MOST_LANE_INSTRUCTIONS:
            raise NeuronprofError(
                f"{job.lanes} different ranks of {len(program)} instructions each are too many to simulate at once; "
                "use fewer ranks, or leave out --jitter and --slow-chip so that one rank stands for all."
            )
        factor = 1 + job.jitter * _noise(job.seed + self._runs, len(program), job.lanes)
        chips = np.arange(job.lanes) // job.ranks_per_chip
        factor *= np.array([job.slow_chips.get(int(c), 1.0) for c in chips])
        factor[list(program.collectives)] = 1.0  # a collective ends on all ranks at once
        return lanes.recurrence(program, costs, order, factor, np.full(job.lanes, begin, np.int64))


def _shifted(timing: Timing, begin: int) -> Timing:
    return Timing(
        timing.start + begin, timing.end + begin, timing.wait, timing.wait_for, timing.released_by, timing.released_on
    )


def _noise(seed: int, instructions: int, ranks: int) -> np.ndarray:
    """Evenly spread numbers in [-1, 1), float64[instructions, ranks], each a hash of (seed, instruction, rank).

    Counting instead of drawing makes any rank's noise independent of how many others there are. Source: the finalizer of splitmix64.
    """
    index = np.arange(instructions, dtype=np.uint64)[:, None] << np.uint64(32) | np.arange(ranks, dtype=np.uint64)
    bits = index + np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (bits ^ (bits >> np.uint64(31))) / 2.0**63 - 1.0
