"""Why each instruction of one rank did not start sooner, from its start and end times."""

from dataclasses import dataclass

import numpy as np

from neuronprof.simulate.fleet import MEET, NO_LINK, RECV, SERVED, Fleet
from neuronprof.simulate.timing import HBM, LINK, NONE, PEER, WAITS, Timing

_NEVER = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Met:
    """Of each collective of a rank: the rank that came last, and the instruction (of the fleet) whose end let that one come; int32[n]."""

    slowest: np.ndarray
    released: np.ndarray


class Explained:
    """Conditions of the instructions of one stage, the same for all of its ranks. neighbours: from `fleet.neighbours`."""

    def __init__(self, fleet: Fleet, neighbours: np.ndarray, stage: int) -> None:
        self._fleet = fleet
        self._first, self._last = int(fleet.base[stage]), int(fleet.base[stage + 1])
        own = slice(self._first, self._last)
        self._kind, self._link, self._delay = fleet.kind[own], fleet.link[own], fleet.delay[own]
        self._latency = (fleet.duration - fleet.wire)[own]
        before, served_before = neighbours[0][own], neighbours[1][own]
        self._before = np.where(before < 0, -1, before - self._first)
        self._server_before = np.where(served_before < 0, -1, served_before - self._first)
        self._served = (self._kind == SERVED) | (self._link != NO_LINK)
        ptr = fleet.deps_ptr[self._first : self._last + 1]
        self._deps = fleet.deps[ptr[0] : ptr[-1]] - self._first
        self._causes = fleet.causes[ptr[0] : ptr[-1]].astype(np.int64)
        self._target = np.repeat(np.arange(self._last - self._first), np.diff(ptr))

    def timing(
        self, rank: int, times: tuple[np.ndarray, np.ndarray], begin: int, met: Met, across: np.ndarray
    ) -> Timing:
        """The Timing of a rank.

        Times: start and end of its instructions; begin: when it may start; across: rank at the other end of each RECV.
        """
        start, end = times
        latest = np.full((len(WAITS), len(start)), _NEVER)
        latest[NONE] = np.where(self._before >= 0, end[self._before], begin)
        ended = end[self._deps] + self._delay[self._target]
        np.maximum.at(latest, (self._causes, self._target), ended)
        released = end - self._latency * (self._kind != SERVED)
        until = np.where(self._server_before >= 0, released[self._server_before], 0)
        own = np.where(self._kind == SERVED, HBM, LINK)
        rows = np.flatnonzero(self._served)
        latest[own[rows], rows] = until[rows]
        cause, by = self._binding(latest, ended, start)
        on = np.full(len(start), rank, np.int32)
        late = np.flatnonzero(start > latest.max(axis=0))
        cause[late] = PEER
        self._blame_peers(late, by, on, met, across)
        latest[PEER] = _NEVER
        others = np.where(np.arange(len(WAITS))[:, None] == cause, _NEVER, latest).max(axis=0)
        wait = np.where(cause == NONE, 0, start - np.maximum(others, 0))
        return Timing(start, end, wait, cause.astype(np.int8), by.astype(np.int32), on)

    def _binding(self, latest: np.ndarray, ended: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What was met last, and by whom: of several the queue, then the first dependency, then HBM or the link."""
        cause, by = np.full(len(start), NONE), self._before.astype(np.int64)
        undecided = latest[NONE] < start
        hits = np.flatnonzero((ended == start[self._target]) & undecided[self._target])[::-1]
        cause[self._target[hits]], by[self._target[hits]] = self._causes[hits], self._deps[hits]
        undecided[self._target[hits]] = False
        own = np.where(self._kind == SERVED, HBM, LINK)
        rows = np.flatnonzero(undecided & self._served)
        rows = rows[latest[own[rows], rows] == start[rows]]
        cause[rows], by[rows] = own[rows], self._server_before[rows]
        return cause, by

    def _blame_peers(self, late: np.ndarray, by: np.ndarray, on: np.ndarray, met: Met, across: np.ndarray) -> None:
        """Puts the releasers of what waited for peers, counted in the programs of their own ranks."""
        meets = late[self._kind[late] == MEET]
        on[meets], by[meets] = met.slowest[meets], self._in_program(met.released[meets])
        receives = late[self._kind[late] == RECV]
        on[receives] = across[receives]
        by[receives] = self._in_program(self._fleet.partner[receives + self._first])

    def _in_program(self, instruction: np.ndarray) -> np.ndarray:
        base = self._fleet.base
        stage = np.searchsorted(base, np.maximum(instruction, 0), side="right") - 1
        return np.where(instruction < 0, -1, instruction - base[stage])
