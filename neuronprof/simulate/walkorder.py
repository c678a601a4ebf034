"""In which order the lanes walk the instructions of all stages, and where the ends that later ones need are kept."""

from collections import defaultdict

import numpy as np

from neuronprof.errors import NeuronprofError
from neuronprof.loops import loop
from neuronprof.simulate.fleet import MEET, RECV, Fleet


def sequence(fleet: Fleet, order: np.ndarray) -> np.ndarray:
    """The instructions of all stages in one order: each stage's own as arbitrated, and as long as possible from one stage at a time.

    A stage is left when it has to wait for a message, or for other stages in a collective: so the state it works on stays in the cache.
    A collective of several stages stands in the order once for each of them, without anything between.

    Raises:
        NeuronprofError: stages wait for each other in a circle.
    """
    walk = _Walk(fleet, order)
    turn = list(range(len(fleet.programs)))
    while turn:
        turn = sorted({freed for stage in turn for freed in walk.advance(stage)})
    found = np.concatenate(walk.pieces) if walk.pieces else np.zeros(0, np.int64)
    if len(found) < len(fleet):
        raise NeuronprofError(
            "The pipeline stages wait for each other in a circle: a message that one expects is only sent after its own; "
            "check the order of sends, receives and collectives in the script."
        )
    return found


class _Walk:
    def __init__(self, fleet: Fleet, order: np.ndarray) -> None:
        stage = fleet.stage
        self._fleet = fleet
        self._stage = stage.tolist()
        self._lines = [order[stage[order] == s] for s in range(len(fleet.programs))]
        self._place = np.full(len(fleet), -1, np.int64)
        for line in self._lines:
            self._place[line] = np.arange(len(line))
        self._parties = np.bincount(fleet.meeting[fleet.meeting >= 0], minlength=1)
        wide = (fleet.kind == MEET) & (self._parties[fleet.meeting] > 1)
        stops = wide | ((fleet.kind == RECV) & (fleet.partner >= 0))
        self._stops = [np.flatnonzero(stops[line]).tolist() for line in self._lines]
        self._done = [0] * len(self._lines)
        self._next_stop = [0] * len(self._lines)
        self._arrived: dict[int, list[int]] = defaultdict(list)
        self.pieces: list[np.ndarray] = []

    def advance(self, stage: int) -> list[int]:
        """Walks a stage until it has to wait; returns the stages that may go on because of it."""
        line, stops, begun = self._lines[stage], self._stops[stage], self._done[stage]
        freed: list[int] = []
        while True:
            at = self._next_stop[stage]
            until = stops[at] if at < len(stops) else len(line)
            if until > self._done[stage]:
                self.pieces.append(line[self._done[stage] : until])
                self._done[stage] = until
            if at == len(stops):
                break
            i = int(line[until])
            if self._fleet.kind[i] == MEET:
                freed += self._arrive(i)
                break
            sender = int(self._fleet.partner[i])
            if self._place[sender] < 0 or self._done[self._stage[sender]] <= self._place[sender]:
                break
            self._next_stop[stage] += 1
            self.pieces.append(line[until : until + 1])
            self._done[stage] = until + 1
        if self._done[stage] > begun:
            freed += [s for s in range(len(self._lines)) if s != stage]
        return freed

    def _arrive(self, i: int) -> list[int]:
        """A stage reaches a collective with other stages; the last one to come frees them all."""
        meeting = int(self._fleet.meeting[i])
        there = self._arrived[meeting]
        if i not in there:
            there.append(i)
        if len(there) < self._parties[meeting]:
            return []
        self.pieces.append(np.array(sorted(there)))
        for j in there:
            self._next_stop[self._stage[j]] += 1
            self._done[self._stage[j]] += 1
        return [self._stage[j] for j in there]


def slots(fleet: Fleet, walked: np.ndarray) -> tuple[np.ndarray, int]:
    """Where each instruction's end is kept until its last reader, int64[n] (-1: nobody reads it), and how many places that takes."""
    position = np.empty(len(fleet), np.int64)
    position[walked] = np.arange(len(walked))
    last = np.full(len(fleet), -1, np.int64)
    readers = np.repeat(position, np.diff(fleet.deps_ptr))
    np.maximum.at(last, fleet.deps, readers)
    received = np.flatnonzero(fleet.partner >= 0)
    np.maximum.at(last, fleet.partner[received], position[received])
    slot = np.full(len(fleet), -1, np.int32)
    return slot, int(_placed(walked.astype(np.int32), last, slot))


@loop("int64(int32[::1], int64[::1], int32[::1])")
def _placed(walked: np.ndarray, last: np.ndarray, slot: np.ndarray) -> int:
    """Puts a place for each instruction that has a last reader into slot; returns how many places that takes."""
    # Places in use by when they are free again: a chain for each position of the walk.
    ends, chain, free = (
        np.full(len(walked), -1, np.int32),
        np.empty(len(walked), np.int32),
        np.empty(len(walked), np.int32),
    )
    count, spare = 0, 0
    for at in range(len(walked)):
        # A place is free after its last reader, which may be this very instruction only after it has read.
        place = ends[at - 1] if at else -1
        while place >= 0:
            free[spare] = place
            spare += 1
            place = chain[place]
        i = walked[at]
        if last[i] < 0:
            continue
        if spare:
            spare -= 1
            place = free[spare]
        else:
            place = count
            count += 1
        slot[i] = place
        chain[place] = ends[last[i]]
        ends[last[i]] = place
    return count
