"""How full SBUF and PSUM are while a rank runs its program."""

from dataclasses import dataclass

import numpy as np

from neuronprof.program import Program
from neuronprof.simulate.timing import Timing
from neuronprof.terms import HELD, Held

# Tiles come and go by the thousand: beyond so many changes, of each few in a row the most that was held is told.
_EXACT = 64
_TOGETHER = 16


@dataclass(frozen=True)
class Levels:
    """What is held, bytes int64, from start to end, picoseconds; what: index in terms.HELD. Nothing is held at other times."""

    what: np.ndarray
    start: np.ndarray
    end: np.ndarray
    nbytes: np.ndarray


def levels(program: Program, timing: Timing, end: int) -> Levels:
    """The levels of a rank. end: when its run is over."""
    found = [(np.zeros(0, np.int64),) * 4]
    for code, what in enumerate(HELD):
        rows = program.on_chip[program.on_chip[:, 0] == code, 1:]
        if len(rows):
            time, level = _thinned(*_changes(what, rows, timing, end))
            found.append((np.full(len(time) - 1, code), time[:-1], time[1:], level[:-1]))
    held, start, until, nbytes = (np.concatenate(parts) for parts in zip(*found, strict=True))
    kept = (nbytes > 0) & (until > start)
    return Levels(held[kept], start[kept], until[kept], nbytes[kept])


def _changes(what: Held, rows: np.ndarray, timing: Timing, end: int) -> tuple[np.ndarray, np.ndarray]:
    """When a level changes, and what is held from then on. rows: first and last instruction and bytes, as Program.on_chip has them."""
    if what is Held.TILES:
        return _summed(*_extents(rows, timing), rows[:, 2])
    if what is Held.PARTIAL_SUMS:
        return _summed(timing.start[rows[:, 0]], timing.end[rows[:, 1]], rows[:, 2])
    # What stays is exchanged group after group, however engines overlap them.
    return np.append(np.maximum.accumulate(timing.start[rows[:, 0]]), end), np.append(rows[:, 2], 0)


def most(program: Program) -> int:
    """Most levels that a rank can have."""
    return 2 * len(program.on_chip)


def _extents(rows: np.ndarray, timing: Timing) -> tuple[np.ndarray, np.ndarray]:
    """When the first of the instructions from rows[:, 0] to rows[:, 1] starts, and the last one ends."""
    edges = np.stack([rows[:, 0], rows[:, 1] + 1], axis=1).ravel()
    first = np.minimum.reduceat(np.append(timing.start, timing.start[-1:]), edges)[::2]
    return first, np.maximum.reduceat(np.append(timing.end, timing.end[-1:]), edges)[::2]


def _summed(start: np.ndarray, end: np.ndarray, nbytes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sum of what is held from each change on; what ends when something else starts has made room for it."""
    time, change = np.concatenate([start, end]), np.concatenate([nbytes, -nbytes])
    order = np.lexsort((change, time))
    time, level = time[order], np.cumsum(change[order])
    last = np.append(time[1:] != time[:-1], True)
    return time[last], level[last]


def _thinned(time: np.ndarray, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest level of each few changes in a row, from the first of them on; a long time in which nothing is held stays."""
    together = min(max(len(time) // _EXACT, 1), _TOGETHER)
    usual = together * (time[-1] - time[0]) // len(time)
    empty = (level == 0) & (np.append(np.diff(time), usual + 1) > usual)
    first = np.flatnonzero((np.arange(len(time)) % together == 0) | empty | np.append(False, empty[:-1]))
    time, level = time[first], np.maximum.reduceat(level, first)
    changed = np.append(True, level[1:] != level[:-1])
    return time[changed], level[changed]
