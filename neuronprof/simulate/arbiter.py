"""Who gets HBM and the links first: all stages event by event, one rank of each, without noise.

Each queue is first in, first out. An instruction is ready when the one before it in its queue and all its dependencies have ended (a DMA:
dma_start later). HBM and each link serve a rank's requests one after another, first ready, first served. Ready times never go back, so one
heap over the heads of the queues is the whole event loop. Every rank then follows the order found here, noise or not (no error up to
10 % of jitter, measured against a simulation of each rank's own order).
"""

import numpy as np
from numba import njit

from neuronprof.loops import OPTIONS, loop
from neuronprof.simulate.fleet import COMPUTE, MEET, QUEUES, SERVED, Fleet

_COMPUTE, _MEET, _SERVED, _QUEUES = int(COMPUTE), int(MEET), int(SERVED), QUEUES
_PENDING = -1  # the end of what has not started
_SERVERS = 3  # of each stage: HBM, NeuronLink, EFA


def order(fleet: Fleet) -> np.ndarray:
    """All instructions in the order in which they start, int32[n].

    Shorter than n where stages wait for each other in a circle: what is missing can never start.
    """
    return _run(fleet, ahead=False)[0]


def ends(fleet: Fleet) -> np.ndarray:
    """The picosecond at which each instruction of an undisturbed rank ends, int64[n], counted from the start; -1: it can never start.

    What waits for no server and no other stage is timed as soon as what it depends on is: half as long as finding the order.
    """
    return _run(fleet, ahead=True)[1]


def _run(fleet: Fleet, *, ahead: bool) -> tuple[np.ndarray, np.ndarray]:
    n, stages = len(fleet), len(fleet.programs)
    lines = QUEUES * stages
    line = fleet.stage * np.int32(QUEUES) + fleet.queue
    parties = np.bincount(fleet.meeting[fleet.meeting >= 0], minlength=1).astype(np.int32)
    end = np.full(n, _PENDING, np.int64)
    head, following = np.full(lines, -1, np.int32), np.full(n, -1, np.int32)
    _queued(line, head, following)
    count, order = _order(
        (fleet.kind, line, fleet.duration, fleet.wire, fleet.link, fleet.meeting, following, np.zeros(_SERVERS * stages, np.int64)),
        (head, fleet.deps_ptr[head], np.zeros(lines, np.int64), np.zeros(lines, np.int64), np.full(lines, -1, np.int32)),
        (fleet.deps_ptr, fleet.deps, fleet.partner, fleet.delay, end, np.full(n, -1, np.int32)),
        (parties, np.zeros(len(parties), np.int64), np.full(lines, -1, np.int32)),
        (np.empty(lines, np.int64), np.empty(lines, np.int32), np.empty(lines, np.int32), np.empty(n, np.int32)),
        ahead,
    )  # fmt: skip
    return order[:count], end


@loop("void(int32[::1], int32[::1], int32[::1])")
def _queued(line: np.ndarray, head: np.ndarray, following: np.ndarray) -> None:
    """The first instruction of each queue into head, and the one after each instruction in its queue into following."""
    for i in range(len(line) - 1, -1, -1):
        following[i] = head[line[i]]
        head[line[i]] = i


@njit(**OPTIONS)
def _push(keys: np.ndarray, items: np.ndarray, size: int, key: int, item: int) -> None:
    at = size
    while at > 0:
        above = (at - 1) >> 1
        if keys[above] < key or (keys[above] == key and items[above] <= item):
            break
        keys[at], items[at] = keys[above], items[above]
        at = above
    keys[at], items[at] = key, item


@njit(**OPTIONS)
def _pop(keys: np.ndarray, items: np.ndarray, size: int) -> None:
    """Removes the smallest of `size` entries."""
    last = size - 1
    key, item, at = keys[last], items[last], 0
    while True:
        below = 2 * at + 1
        if below >= last:
            break
        right = below + 1
        if right < last and (keys[right] < keys[below] or (keys[right] == keys[below] and items[right] < items[below])):
            below = right
        if key < keys[below] or (key == keys[below] and item <= items[below]):
            break
        keys[at], items[at] = keys[below], items[below]
        at = below
    keys[at], items[at] = key, item


# By instruction; following: the next one in its queue; the last: by server, until when it serves.
_INSTRUCTIONS = "Tuple((int8[::1], int32[::1], int64[::1], int64[::1], int8[::1], int32[::1], int32[::1], int64[::1]))"
# By queue: its head, the dependency of the head to look at next, the end of those before, free from, another that waits for the same.
_LINES = "Tuple((int32[::1], int64[::1], int64[::1], int64[::1], int32[::1]))"
_NEEDS = (
    "Tuple((int64[::1], int32[::1], int32[::1], int64[::1], int64[::1], int32[::1]))"  # the last: a queue that waits
)
_MEETINGS = (
    "Tuple((int32[::1], int64[::1], int32[::1]))"  # stages still to come, latest arrival; by queue: where it waits
)
_SCRATCH = "Tuple((int64[::1], int32[::1], int32[::1], int32[::1]))"  # heap, queues to look at, result


@njit(**OPTIONS)
def _ready(q, lines, needs):
    """When the head of a queue has all it depends on; before one of these has started nobody knows, and the queue waits for that one."""
    head, scanned, latest, free, also = lines
    deps_ptr, deps, partner, delay, end, waiting = needs
    i = head[q]
    own = deps_ptr[i + 1]
    while scanned[q] < own + (partner[i] >= 0):
        before = deps[scanned[q]] if scanned[q] < own else partner[i]
        if end[before] == _PENDING:
            also[q], waiting[before] = waiting[before], q
            return _PENDING
        latest[q] = max(latest[q], end[before] + delay[i])
        scanned[q] += 1
    return max(latest[q], free[q])


@njit(**OPTIONS)
def _offer(q, ready, size, instructions, lines, meetings, scratch):
    """Puts the head of a queue into the heap of `size` entries; returns their new number."""
    kind, _, _, _, _, meeting, _, _ = instructions
    head = lines[0]
    to_come, latest, where = meetings
    keys, items, _, _ = scratch
    m = meeting[head[q]]
    if kind[head[q]] != _MEET or (to_come[m] == 1 and latest[m] == 0):
        _push(keys, items, size, ready, head[q])
        return size + 1
    # A collective with other stages starts on all of them when the last has come.
    where[q], latest[m] = m, max(latest[m], ready + 1)
    to_come[m] -= 1
    if to_come[m] == 0:
        for other in range(len(where)):
            if where[other] == m:
                where[other] = -1
                _push(keys, items, size, latest[m] - 1, head[other])
                size += 1
    return size


@njit(**OPTIONS)
def _started(i, stop, calls, look, instructions, lines, needs):
    """Notes when an instruction ends. Whose time may be known now, the next of its queue and what waited for it, is to be looked at."""
    _, line, _, _, _, _, following, _ = instructions
    head, scanned, latest, free, also = lines
    deps_ptr, _, _, _, end, waiting = needs
    q = line[i]
    end[i] = free[q] = stop
    other = waiting[i]
    while other >= 0:
        look[calls] = other
        calls, other = calls + 1, also[other]
    head[q] = following[i]
    if head[q] >= 0:
        scanned[q], latest[q] = deps_ptr[head[q]], 0
        look[calls] = q
        calls += 1
    return calls


@njit(**OPTIONS)
def _all(head: np.ndarray, look: np.ndarray) -> int:
    """Lets every queue that has something be looked at; returns how many."""
    calls = 0
    for q in range(len(head)):
        if head[q] >= 0:
            look[calls] = q
            calls += 1
    return calls


@loop(f"Tuple((int64, int32[::1]))({_INSTRUCTIONS}, {_LINES}, {_NEEDS}, {_MEETINGS}, {_SCRATCH}, boolean)")
def _order(instructions, lines, needs, meetings, scratch, ahead):
    """The event loop; arguments: tables by instruction, by queue, by dependency, by collective, scratch space; ahead: see `ends`."""
    kind, line, duration, wire, link, _, _, served_until = instructions
    head, (keys, items, look, result) = lines[0], scratch
    size, count, calls = 0, 0, _all(head, look)
    while True:
        i, start = -1, 0
        while calls > 0 and i < 0:
            calls -= 1
            q = look[calls]
            ready = _ready(q, lines, needs)
            if ready != _PENDING and ahead and kind[head[q]] == _COMPUTE and link[head[q]] < 0:
                i, start = head[q], ready
            elif ready != _PENDING:
                size = _offer(q, ready, size, instructions, lines, meetings, scratch)
        if i < 0:
            if size == 0:
                return count, result
            start, i = keys[0], items[0]
            _pop(keys, items, size)
            size -= 1
        if kind[i] == _SERVED or link[i] >= 0:
            server = _SERVERS * (line[i] // _QUEUES) + 1 + link[i]
            start = max(start, served_until[server])
            served_until[server] = start + (duration[i] if kind[i] == _SERVED else wire[i])
        result[count] = i
        count += 1
        calls = _started(i, start + duration[i], calls, look, instructions, lines, needs)
