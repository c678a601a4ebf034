"""The inner loops of lanes.py, compiled. Times are picoseconds, whole numbers in double precision: exact up to 2.5 hours.

Instructions are rows of two tables with the columns below; the state of a block of ranks ("lanes") is a table too, one column a lane, and
the instructions say which of its rows they read and write.
"""

from enum import IntEnum
from typing import Any

import numpy as np
from numba import float64, int32, njit, uint32

from neuronprof.loops import OPTIONS, loop
from neuronprof.simulate.fleet import MEET, RECV, SEND


class Column(IntEnum):
    """Columns of the table of instructions that count something.

    KIND: of fleet; QUEUE, SERVER, BUSY, PEERS, FACTOR, LINK_FACTOR, SLOT, PARTNER: rows of the state (SERVER -1: none); STAGE; FIRST, LAST:
    range in the dependencies; GROUP: index of the replica group; NUMBER: in its program; INDEX: in the fleet.
    """

    KIND = 0
    QUEUE = 1
    SERVER = 2
    BUSY = 3
    PEERS = 4
    FACTOR = 5
    LINK_FACTOR = 6
    SLOT = 7
    PARTNER = 8
    STAGE = 9
    FIRST = 10
    LAST = 11
    GROUP = 12
    NUMBER = 13
    INDEX = 14


class Span(IntEnum):
    """Columns of the table of times, in picoseconds, as fleet has them."""

    DURATION = 0
    WIRE = 1
    DELAY = 2


class Fixed(IntEnum):
    """Rows of the state that are the same for every block: what nobody waits for, where what nobody reads goes, and a factor of one."""

    NEVER = 0
    NOBODY = 1
    ONE = 2


(KIND, QUEUE, SERVER, BUSY, PEERS, FACTOR, LINK_FACTOR, SLOT, PARTNER, STAGE, FIRST, LAST, GROUP, NUMBER, INDEX) = map(
    int, Column
)
DURATION, WIRE, DELAY = map(int, Span)
NEVER, NOBODY, ONE = map(int, Fixed)
_MEET, _RECV, _SEND = int(MEET), int(RECV), int(SEND)
_HALF = float(1 << 15)
# No sum is regrouped: results are the same to the picosecond, whatever the processor.
_SUMS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"nnan", "nsz"}}
_OPTIONS = OPTIONS | _SUMS
_ROW = "float64[::1]"
_TABLES = "int32[:,::1], float64[:,::1], int32[:,::1], float64[:,::1]"  # instructions, their times, dependencies, state
_KEPT = "int64[:,::1], float64[::1], float64[::1], int32[::1], int32[::1]"  # see walk


@njit(**_OPTIONS)
def mixed(x):
    """A 32-bit hash. Source: the finalizer `lowbias32` of C. Wellons' hash prospector."""
    # Every operation is cast: numba widens 32-bit products, which would be another hash and half the speed.
    x = uint32(x ^ uint32(x >> uint32(16)))
    x = uint32(x * uint32(0x7FEB352D))
    x = uint32(x ^ uint32(x >> uint32(15)))
    x = uint32(x * uint32(0x846CA68B))
    return uint32(x ^ uint32(x >> uint32(16)))


@njit(**_OPTIONS)
def _took(duration, slow, key, salt, amplitude):
    """A duration on one lane: times the slowness of the chip, with the noise of the rank (see noise.noisy)."""
    share = (float64(int32(mixed(uint32(salt ^ key)) >> uint32(16))) - _HALF) * amplitude
    slower = np.floor(duration * slow)
    return slower + np.floor(slower * share)


@njit(**_OPTIONS)
def _compute(one, other, delay, queue, busy, slot, key, slow, duration, salt, amplitude):
    """An instruction of an engine, or of the host, that follows two others."""
    for lane in range(queue.shape[0]):
        took = _took(duration, slow[lane], key[lane], salt, amplitude)
        stop = max(queue[lane], max(one[lane], other[lane]) + delay) + took
        queue[lane] = stop
        slot[lane] = stop
        busy[lane] += took


@njit(**_OPTIONS)
def _served(one, other, delay, server, queue, busy, slot, key, slow, duration, salt, amplitude):
    """The same for a transfer that HBM serves."""
    for lane in range(queue.shape[0]):
        took = _took(duration, slow[lane], key[lane], salt, amplitude)
        stop = max(max(queue[lane], server[lane]), max(one[lane], other[lane]) + delay) + took
        queue[lane] = stop
        slot[lane] = stop
        server[lane] = stop
        busy[lane] += took


@njit(**_OPTIONS)
def _dependencies(latest, code, deps, state):
    """When the last of many dependencies ended, into latest."""
    for lane in range(latest.shape[0]):
        latest[lane] = -np.inf
    for a in range(code[FIRST], code[LAST]):
        row = state[deps[a, 0]]
        for lane in range(latest.shape[0]):
            latest[lane] = max(latest[lane], row[lane])


@njit(**_OPTIONS)
def _ready(start, code, delay, deps, state):
    """When each lane could start an instruction, were it not for its peers."""
    _dependencies(start, code, deps, state)
    queue, server = state[code[QUEUE]], state[code[SERVER] if code[SERVER] >= 0 else NEVER]
    for lane in range(start.shape[0]):
        start[lane] = max(max(queue[lane], server[lane]), start[lane] + delay)


@njit(**_OPTIONS)
def _releaser(lane, code, delay, deps, state, before):
    """The instruction that was last in the way on a lane: before it in its queue, a dependency, or before it on its link."""
    latest, found = state[code[QUEUE], lane], before[0, code[INDEX]]
    for a in range(code[FIRST], code[LAST]):
        ended = state[deps[a, 0], lane] + delay
        if ended > latest:
            latest, found = ended, deps[a, 1]
    if code[SERVER] >= 0 and state[code[SERVER], lane] > latest:
        found = before[1, code[INDEX]]
    return found


@njit(**_OPTIONS)
def _send(start, stop, code, times, state):
    """A message to another stage: it holds the link for its wire time, at the pace of the slower end."""
    ours, theirs = state[code[LINK_FACTOR]], state[code[PARTNER]]
    link = state[code[SERVER] if code[SERVER] >= 0 else NOBODY]
    fixed = times[DURATION] - times[WIRE]
    for lane in range(start.shape[0]):
        free = start[lane] + np.floor(times[WIRE] * max(ours[lane], theirs[lane]))
        link[lane] = free
        stop[lane] = free + fixed


@njit(**_OPTIONS)
def _receive(start, stop, code, state):
    """A message from another stage: it is there when the sender is done."""
    sent, peers = state[code[PARTNER]], state[code[PEERS]]
    for lane in range(start.shape[0]):
        late = max(sent[lane] - start[lane], 0.0)
        peers[lane] += late
        start[lane] += late
        stop[lane] = start[lane]


@njit(**_OPTIONS)
def _nobody_came(met):
    # Filled by hand: an assignment to a slice makes numba compile an error message, for two seconds.
    for g in range(met.shape[0]):
        met[g, 0] = met[g, 1] = -1.0


@njit(**_OPTIONS)
def _gather(start, groups, link, met, first, before):
    """When the last lane of each group comes and how slow its slowest link is, into met; which lane that is, into first."""
    for lane in range(start.shape[0]):
        g = groups[lane]
        if start[lane] > met[g, 0]:
            met[g, 0], first[g] = start[lane], before + lane
        met[g, 1] = max(met[g, 1], link[lane])


@njit(**_OPTIONS)
def _together(start, stop, groups, code, times, state, met):
    """A collective: all lanes of a group start with the last and end together; their link is held for the wire time."""
    peers, server = state[code[PEERS]], state[code[SERVER] if code[SERVER] >= 0 else NOBODY]
    fixed = times[DURATION] - times[WIRE]
    for lane in range(start.shape[0]):
        g = groups[lane]
        peers[lane] += met[g, 0] - start[lane]
        start[lane] = met[g, 0]
        free = met[g, 0] + np.floor(times[WIRE] * met[g, 1])
        server[lane] = free
        stop[lane] = free + fixed


@njit(**_OPTIONS)
def _ended(start, stop, code, state):
    """Keeps what later instructions and the totals need of this one."""
    queue, busy, slot = state[code[QUEUE]], state[code[BUSY]], state[code[SLOT]]
    for lane in range(start.shape[0]):
        queue[lane] = stop[lane]
        slot[lane] = stop[lane]
        busy[lane] += stop[lane] - start[lane]


@njit(**_OPTIONS)
def _alone(late, code, times, deps, state, key, salt, amplitude):
    """An instruction that waits for nothing of other ranks."""
    first, count = code[FIRST], code[LAST] - code[FIRST]
    one = other = state[NEVER]
    if count == 1 or count == 2:
        one, other = state[deps[first, 0]], state[deps[first + count - 1, 0]]
    elif count > 2:
        _dependencies(late, code, deps, state)
        one = late
    queue, busy, slot, slow = state[code[QUEUE]], state[code[BUSY]], state[code[SLOT]], state[code[FACTOR]]
    share = 0.0 if code[FACTOR] == ONE else amplitude
    if code[SERVER] >= 0:
        server = state[code[SERVER]]
        _served(one, other, times[DELAY], server, queue, busy, slot, key, slow, times[DURATION], salt, share)
    else:
        _compute(one, other, times[DELAY], queue, busy, slot, key, slow, times[DURATION], salt, share)


@loop(f"void({_TABLES}, int32[:,::1], int32[:,:,::1], uint32[:,::1], int32[:,::1], float64, uint32, {_KEPT})", **_SUMS)
def walk(
    code, times, deps, state, before, member, keys, ranks, amplitude, seed, kept, starts, stops, slowest, released
):
    """Runs instructions on one block of lanes.

    before: int32[2, instructions], the one before in the queue and on the link; member: int32[groups, stages, lanes], place of each lane's
    replica group in the block; keys and ranks: [stages, lanes], what a rank's noise is hashed with, and its number; amplitude: of the
    noise, per half of the hash; kept: int64[kept, 3], (stage, lane, where its first instruction goes) of the ranks whose times are put into
    starts, stops, slowest, released.
    """
    lanes = state.shape[1]
    start, stop = np.empty(lanes), np.empty(lanes)
    met, first = np.empty((lanes, 2)), np.empty(lanes, np.int32)
    for x in range(code.shape[0]):
        c, t = code[x], times[x]
        kind, stage = c[KIND], c[STAGE]
        salt = uint32(uint32(c[NUMBER]) * uint32(0x9E3779B9) + seed)
        if kind in (_MEET, _RECV, _SEND):
            _ready(start, c, t[DELAY], deps, state)
            if kind == _MEET:
                groups = member[c[GROUP], stage]
                _nobody_came(met)
                _gather(start, groups, state[c[LINK_FACTOR]], met, first, 0)
                for k in range(kept.shape[0]):
                    if kept[k, 0] == stage:
                        last, at = first[groups[kept[k, 1]]], kept[k, 2] + c[NUMBER]
                        slowest[at], released[at] = (
                            ranks[stage, last],
                            _releaser(last, c, t[DELAY], deps, state, before),
                        )
                _together(start, stop, groups, c, t, state, met)
            elif kind == _RECV:
                _receive(start, stop, c, state)
            else:
                _send(start, stop, c, t, state)
            _ended(start, stop, c, state)
            for k in range(kept.shape[0]):
                if kept[k, 0] == stage:
                    at = kept[k, 2] + c[NUMBER]
                    starts[at], stops[at] = start[kept[k, 1]], stop[kept[k, 1]]
            continue
        _alone(start, c, t, deps, state, keys[stage], salt, amplitude)
        share = 0.0 if c[FACTOR] == ONE else amplitude
        for k in range(kept.shape[0]):
            if kept[k, 0] == stage:
                at, lane = kept[k, 2] + c[NUMBER], kept[k, 1]
                stops[at] = state[c[QUEUE], lane]
                starts[at] = stops[at] - _took(t[DURATION], state[c[FACTOR], lane], keys[stage, lane], salt, share)


@loop(
    "void(int32[:,::1], float64[:,::1], int32[:,::1], float64[:,:,::1], int32[:,::1], int32[:,:,::1], int32[:,::1], float64[:,::1], "
    "int32[::1], int32[::1])",
    **_SUMS,
)
def arrive(code, times, deps, state, before, member, ranks, met, last, released):
    """Who comes when to a collective over all blocks, and over all stages that take part in it.

    code: the instruction of each stage. state: float64[blocks, rows, lanes of a block]. member: int32[stages, blocks, lanes], group of each
    rank. Results, by group: met, arrival of the last and slowness of the slowest link; last, the rank that comes last; released, the
    instruction that let it.
    """
    blocks, width = state.shape[0], state.shape[2]
    start = np.empty(width)
    _nobody_came(met)
    for x in range(code.shape[0]):
        for b in range(blocks):
            _ready(start, code[x], times[x, DELAY], deps, state[b])
            place = (x * blocks + b) * width
            _gather(start, member[code[x, STAGE], b], state[b, code[x, LINK_FACTOR]], met, last, place)
    for g in range(met.shape[0]):
        if met[g, 0] < 0.0:
            continue
        x, place = last[g] // (blocks * width), last[g] % (blocks * width)
        block = state[place // width]
        released[g] = _releaser(place % width, code[x], times[x, DELAY], deps, block, before)
        last[g] = ranks[code[x, STAGE], place]


@loop(f"void({_TABLES}, int32[:,::1], float64[:,::1], int32[::1], int32[::1], {_KEPT})", **_SUMS)
def leave(code, times, deps, state, member, met, last, released, kept, starts, stops, slowest, releasers):
    """What `arrive` found becomes the end of the collective on one block. member: int32[stages, lanes]; kept to releasers: as for walk."""
    start, stop = np.empty(state.shape[1]), np.empty(state.shape[1])
    for x in range(code.shape[0]):
        c, t = code[x], times[x]
        groups = member[c[STAGE]]
        _ready(start, c, t[DELAY], deps, state)
        _together(start, stop, groups, c, t, state, met)
        _ended(start, stop, c, state)
        for k in range(kept.shape[0]):
            if kept[k, 0] == c[STAGE]:
                lane, at = kept[k, 1], kept[k, 2] + c[NUMBER]
                starts[at], stops[at] = start[lane], stop[lane]
                slowest[at], releasers[at] = last[groups[lane]], released[groups[lane]]
