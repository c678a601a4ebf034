"""A step that nothing disturbs: all ranks of a stage are the same, and the arbiter's event loop already says when everything runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neuronprof.errors import NeuronprofError
from neuronprof.program import Program
from neuronprof.simulate import arbiter
from neuronprof.simulate.fleet import MEET, RECV, Fleet, fleet
from neuronprof.simulate.job import Job


@dataclass(frozen=True)
class Undisturbed:
    """A run from 0 on: start and end of every instruction of one rank a stage, int64[n], picoseconds."""

    fleet: Fleet
    start: np.ndarray
    end: np.ndarray

    def stage(self, number: int) -> slice:
        """The instructions of a stage."""
        return slice(int(self.fleet.base[number]), int(self.fleet.base[number + 1]))

    def waits(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """How long a stage's rank stood waiting for other stages, and until when, int64[k], picoseconds.

        It waits from the moment at which the message, or the collective of several stages, could have started for all that the stage
        itself has to do.
        """
        flat, own = self.fleet, self.stage(number)
        kind, queue = flat.kind[own], flat.queue[own]
        late = np.flatnonzero((kind == MEET) | (kind == RECV))
        since = self._ready(late + own.start)
        for line in np.unique(queue[late]).tolist():
            mine = np.flatnonzero(queue == line)
            before = np.concatenate([[0], self.end[own][mine[:-1]]])
            there = np.flatnonzero(queue[late] == line)
            since[there] = np.maximum(since[there], before[np.searchsorted(mine, late[there])])
        until = self.start[own][late]
        return until - since, until

    def _ready(self, rows: np.ndarray) -> np.ndarray:
        """When all that these instructions depend on had ended, int64[k]; 0 for what depends on nothing."""
        first = self.fleet.deps_ptr[rows]
        count = self.fleet.deps_ptr[rows + 1] - first
        row = np.repeat(np.arange(len(rows)), count)
        place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        found = np.zeros(len(rows), np.int64)
        np.maximum.at(found, row, self.end[self.fleet.deps[first[row] + place]])
        return found


def run(programs: Sequence[Program], job: Job, durations: Sequence[np.ndarray] | None = None) -> Undisturbed:
    """Runs one program a stage without faults. durations: of each program's instructions, as `fleet` has them.

    Raises:
        NeuronprofError: stages wait for each other for ever.
    """
    flat = fleet(programs, job, durations)
    end = arbiter.ends(flat)
    if (end < 0).any():
        raise NeuronprofError(
            "The pipeline stages wait for each other in a circle; check the order of sends, receives and collectives."
        )
    return Undisturbed(flat, end - flat.duration, end)
