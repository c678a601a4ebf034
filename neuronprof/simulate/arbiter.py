"""Who gets HBM and the links first: all stages event by event, one rank of each, without noise.

Each queue is first in, first out. An instruction is ready when the one before it in its queue and all its dependencies have ended (a DMA:
dma_start later). HBM and each link serve a rank's requests one after another, first ready, first served. Ready times never go back, so one
heap over the heads of the queues is the whole event loop. Every rank then follows the order found here, noise or not (no error up to
10 % of jitter, measured against a simulation of each rank's own order).
"""

import numpy as np
from numba import njit

from neuronprof.simulate.fleet import MEET, QUEUES, SERVED, Fleet

_KERNEL = {"nogil": True, "cache": True, "boundscheck": False}
_MEET, _SERVED = int(MEET), int(SERVED)
_SERVERS = 3  # of each stage: HBM, NeuronLink, EFA


def order(fleet: Fleet) -> np.ndarray:
    """All instructions in the order in which they start, int32[n].

    Shorter than n where stages wait for each other in a circle: what is missing can never start.
    """
    return run(fleet)[0]


def run(fleet: Fleet) -> tuple[np.ndarray, np.ndarray]:
    """The order, and the picosecond at which each instruction of an undisturbed rank ends, int64[n], counted from the start."""
    deps_ptr, deps = _with_messages(fleet)
    successors_ptr, successors = _reversed(deps_ptr, deps, len(fleet))
    stage = fleet.stage
    line = stage.astype(np.int64) * QUEUES + fleet.queue
    by_line = np.lexsort((np.arange(len(fleet)), line)).astype(np.int32)
    lines = np.searchsorted(line[by_line], np.arange(len(fleet.programs) * QUEUES + 1)).astype(np.int64)
    parties = np.bincount(fleet.meeting[fleet.meeting >= 0], minlength=1).astype(np.int32)
    n, meetings = len(fleet), len(parties)
    end = np.zeros(n, np.int64)
    found = _order(
        (fleet.kind, line.astype(np.int32), stage, by_line, fleet.duration, fleet.wire, fleet.link, fleet.delay, fleet.meeting),
        (lines, lines[:-1].copy(), np.zeros(len(lines), np.int64), np.zeros(_SERVERS * len(fleet.programs), np.int64)),
        (deps_ptr, deps, successors_ptr, successors, np.diff(deps_ptr).astype(np.int32), end),
        (parties, np.zeros(meetings, np.int64), np.zeros(n, np.int32)),
        (np.empty(n + 1, np.int64), np.empty(n + 1, np.int32), np.empty(n + 1, np.int32), np.empty(n, np.int32)),
    )  # fmt: skip
    return found, end


def _with_messages(fleet: Fleet) -> tuple[np.ndarray, np.ndarray]:
    """Dependencies with the SEND of each RECV among them."""
    received = np.flatnonzero(fleet.partner >= 0)
    deps = np.insert(fleet.deps, fleet.deps_ptr[received + 1], fleet.partner[received])
    counts = np.diff(fleet.deps_ptr)
    counts[received] += 1
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), deps.astype(np.int32)


def _reversed(ptr: np.ndarray, deps: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    targets = np.repeat(np.arange(n, dtype=np.int32), np.diff(ptr))
    by_source = np.argsort(deps, kind="stable")
    return np.searchsorted(deps[by_source], np.arange(n + 1)).astype(np.int64), targets[by_source]


@njit("void(int64[::1], int32[::1], int64, int64, int32)", **_KERNEL)
def _push(keys: np.ndarray, items: np.ndarray, size: int, key: int, item: int) -> None:
    at = size
    while at > 0:
        above = (at - 1) >> 1
        if keys[above] < key or (keys[above] == key and items[above] <= item):
            break
        keys[at], items[at] = keys[above], items[above]
        at = above
    keys[at], items[at] = key, item


@njit("void(int64[::1], int32[::1], int64)", **_KERNEL)
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


_INSTRUCTIONS = (
    "Tuple((int8[::1], int32[::1], int32[::1], int32[::1], int64[::1], int64[::1], int8[::1], int64[::1], int32[::1]))"
)
_LINES = "Tuple((int64[::1], int64[::1], int64[::1], int64[::1]))"  # bounds, heads, free from, HBM and links free from
_NEEDS = (
    "Tuple((int64[::1], int32[::1], int64[::1], int32[::1], int32[::1], int64[::1]))"  # deps, successors, missing, ends
)
_MEETINGS = "Tuple((int32[::1], int64[::1], int32[::1]))"  # stages still to come, latest arrival, who has come
_SCRATCH = "Tuple((int64[::1], int32[::1], int32[::1], int32[::1]))"  # heap, offers, result


@njit(f"int64(int32, int64, {_INSTRUCTIONS}, {_LINES}, {_NEEDS}, {_MEETINGS}, {_SCRATCH})", **_KERNEL)
def _offer(i, size, instructions, lines, needs, meetings, scratch):
    """Puts the head of a queue, whose predecessors have all started, into the heap of `size` entries; returns their new number."""
    kind, line, _, by_line, _, _, _, delay, meeting = instructions
    bounds, head, free, _ = lines
    deps_ptr, deps, _, _, _, end = needs
    to_come, latest, waits = meetings
    keys, items, _, _ = scratch
    ready = free[line[i]]
    for a in range(deps_ptr[i], deps_ptr[i + 1]):
        ready = max(ready, end[deps[a]] + delay[i])
    m = meeting[i]
    if kind[i] != _MEET or (to_come[m] == 1 and waits[i] == 0 and latest[m] == 0):
        _push(keys, items, size, ready, i)
        return size + 1
    # A collective with other stages starts on all of them when the last has come.
    waits[i], latest[m] = 1, max(latest[m], ready + 1)
    to_come[m] -= 1
    if to_come[m] == 0:
        for q in range(bounds.shape[0] - 1):
            j = by_line[head[q]] if head[q] < bounds[q + 1] else i
            if waits[j] == 1 and meeting[j] == m:
                waits[j] = 2
                _push(keys, items, size, latest[m] - 1, j)
                size += 1
    return size


@njit(f"int32[::1]({_INSTRUCTIONS}, {_LINES}, {_NEEDS}, {_MEETINGS}, {_SCRATCH})", **_KERNEL)
def _order(instructions, lines, needs, meetings, scratch):
    """The event loop; arguments: tables by instruction, by queue, by dependency, by collective, and scratch space."""
    kind, line, stage, by_line, duration, wire, link, _, _ = instructions
    bounds, head, free, served_until = lines
    _, _, next_ptr, successors, missing, end = needs
    keys, items, offers, result = scratch
    offered, size, count = 0, 0, 0
    for q in range(bounds.shape[0] - 1):
        if head[q] < bounds[q + 1] and missing[by_line[head[q]]] == 0:
            offers[offered] = by_line[head[q]]
            offered += 1
    while True:
        for k in range(offered):
            size = _offer(offers[k], size, instructions, lines, needs, meetings, scratch)
        offered = 0
        if size == 0:
            return result[:count]
        start, i = keys[0], items[0]
        _pop(keys, items, size)
        size -= 1
        if kind[i] == _SERVED or link[i] >= 0:
            server = _SERVERS * stage[i] + 1 + link[i]
            start = max(start, served_until[server])
            served_until[server] = start + (duration[i] if kind[i] == _SERVED else wire[i])
        q = line[i]
        end[i] = free[q] = start + duration[i]
        result[count] = i
        count += 1
        head[q] += 1
        # Heads whose predecessors have all started: their time is known.
        for a in range(next_ptr[i], next_ptr[i + 1]):
            j = successors[a]
            missing[j] -= 1
            if missing[j] == 0 and line[j] != q and head[line[j]] < bounds[line[j] + 1] and by_line[head[line[j]]] == j:
                offers[offered] = j
                offered += 1
        if head[q] < bounds[q + 1] and missing[by_line[head[q]]] == 0:
            offers[offered] = by_line[head[q]]
            offered += 1
