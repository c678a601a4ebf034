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
        since = np.zeros(len(late), np.int64)
        for at, row in enumerate((late + own.start).tolist()):
            deps = flat.deps[flat.deps_ptr[row] : flat.deps_ptr[row + 1]]
            since[at] = self.end[deps].max(initial=0)
        for line in np.unique(queue[late]).tolist():
            mine = np.flatnonzero(queue == line)
            before = np.concatenate([[0], self.end[own][mine[:-1]]])
            there = np.flatnonzero(queue[late] == line)
            since[there] = np.maximum(since[there], before[np.searchsorted(mine, late[there])])
        until = self.start[own][late]
        return until - since, until


def run(programs: Sequence[Program], job: Job) -> Undisturbed:
    """Runs one program a stage without faults.

    Raises:
        NeuronprofError: stages wait for each other for ever.
    """
    flat = fleet(programs, job)
    order, end = arbiter.run(flat)
    if len(order) < len(flat):
        raise NeuronprofError(
            "The pipeline stages wait for each other in a circle; check the order of sends, receives and collectives."
        )
    return Undisturbed(flat, end - flat.duration, end)
