"""The inner loops of lanes.py, compiled. Times are integer picoseconds; factors are 16.16 fixed-point numbers.

Instructions are rows of an integer table with the columns below; the state of a block of ranks ("lanes") is a table too, one column a lane,
and the instructions say which of its rows they read and write.
"""

from enum import IntEnum

import numpy as np
from numba import njit, uint32

from neuronprof.simulate.fleet import MEET, RECV, SEND


class Column(IntEnum):
    """Columns of the table of instructions.

    KIND: of fleet; QUEUE, SERVER, BUSY, PEERS, FACTOR, LINK_FACTOR, SLOT, PARTNER: rows of the state (-1: none); STAGE; DURATION, WIRE,
    DELAY: picoseconds; FIRST, LAST: range in the dependencies; GROUP: index of the replica group; NUMBER: in its program, for the noise;
    INDEX: in the fleet; BEFORE, SERVED_BEFORE: instruction before it in its queue and on its HBM or link (-1: none).
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
    DURATION = 10
    WIRE = 11
    DELAY = 12
    FIRST = 13
    LAST = 14
    GROUP = 15
    NUMBER = 16
    INDEX = 17
    BEFORE = 18
    SERVED_BEFORE = 19


(KIND, QUEUE, SERVER, BUSY, PEERS, FACTOR, LINK_FACTOR, SLOT, PARTNER, STAGE, DURATION, WIRE, DELAY, FIRST, LAST, GROUP, NUMBER, INDEX,
 BEFORE, SERVED_BEFORE) = map(int, Column)  # fmt: skip
_MEET, _RECV, _SEND = int(MEET), int(RECV), int(SEND)
_OPTIONS = {"nogil": True, "cache": True, "boundscheck": False, "error_model": "numpy"}
_TABLES = "int64[:,::1], int32[:,::1], int64[:,::1]"  # code; dependencies: slot, instruction; state


@njit("uint32(uint32)", inline="always", **_OPTIONS)
def mixed(x):
    """A 32-bit hash. Source: the finalizer `lowbias32` of C. Wellons' hash prospector."""
    # Every operation is cast: numba widens 32-bit products, which would be another hash and half the speed.
    x = uint32(x ^ uint32(x >> uint32(16)))
    x = uint32(x * uint32(0x7FEB352D))
    x = uint32(x ^ uint32(x >> uint32(15)))
    x = uint32(x * uint32(0x846CA68B))
    return uint32(x ^ uint32(x >> uint32(16)))


@njit("void(int64[::1], int64[::1], int32[:,::1], int64[:,::1])", **_OPTIONS)
def _ready(start, code, deps, state):
    """When each lane could start an instruction, were it not for its peers."""
    lanes = start.shape[0]
    row = state[code[QUEUE]]
    for lane in range(lanes):
        start[lane] = row[lane]
    delay = code[DELAY]
    for a in range(code[FIRST], code[LAST]):
        row = state[deps[a, 0]]
        for lane in range(lanes):
            start[lane] = max(start[lane], row[lane] + delay)
    if code[SERVER] >= 0:
        row = state[code[SERVER]]
        for lane in range(lanes):
            start[lane] = max(start[lane], row[lane])


@njit("int32(int64, int64[::1], int32[:,::1], int64[:,::1])", **_OPTIONS)
def _releaser(lane, code, deps, state):
    """The instruction that was last in the way on a lane: before it in its queue, a dependency, or before it on its link."""
    latest, found = state[code[QUEUE], lane], code[BEFORE]
    for a in range(code[FIRST], code[LAST]):
        ended = state[deps[a, 0], lane] + code[DELAY]
        if ended > latest:
            latest, found = ended, deps[a, 1]
    if code[SERVER] >= 0 and state[code[SERVER], lane] > latest:
        found = code[SERVED_BEFORE]
    return found


@njit("void(int64[::1], int64[::1], int64[::1], int64[:,::1], int64[::1], int64, uint32)", **_OPTIONS)
def _compute(start, stop, code, state, rank, amplitude, seed):
    """An instruction of an engine, HBM or the host: its duration, times the slowness of the chip, with the noise of the rank."""
    lanes, duration = start.shape[0], code[DURATION]
    if code[FACTOR] < 0:
        for lane in range(lanes):
            stop[lane] = start[lane] + duration
        return
    slow, salt = state[code[FACTOR]], uint32(uint32(code[NUMBER]) * uint32(0x9E3779B9) + seed)
    for lane in range(lanes):
        noise = mixed(uint32(salt ^ uint32(uint32(rank[lane]) * uint32(0x85EBCA6B))))
        share = ((np.int64(noise >> uint32(16)) - 32768) * amplitude) >> 15
        took = (duration * slow[lane]) >> 16
        stop[lane] = start[lane] + took + ((took * share) >> 20)
    if code[SERVER] >= 0:
        row = state[code[SERVER]]
        for lane in range(lanes):
            row[lane] = stop[lane]


@njit("void(int64[::1], int64[::1], int64[::1], int64[:,::1])", **_OPTIONS)
def _send(start, stop, code, state):
    """A message to another stage: it holds the link for its wire time, at the pace of the slower end."""
    ours, theirs, link = state[code[LINK_FACTOR]], state[code[PARTNER]], state[code[SERVER]]
    fixed = code[DURATION] - code[WIRE]
    for lane in range(start.shape[0]):
        link[lane] = start[lane] + ((code[WIRE] * max(ours[lane], theirs[lane])) >> 16)
        stop[lane] = link[lane] + fixed


@njit("void(int64[::1], int64[::1], int64[::1], int64[:,::1])", **_OPTIONS)
def _receive(start, stop, code, state):
    """A message from another stage: it is there when the sender is done."""
    sent, peers = state[code[PARTNER]], state[code[PEERS]]
    for lane in range(start.shape[0]):
        late = max(sent[lane] - start[lane], 0)
        peers[lane] += late
        start[lane] += late
        stop[lane] = start[lane]


@njit("void(int64[::1], int32[::1], int64[::1], int64[:,::1], int64[:,::1], int32[::1])", **_OPTIONS)
def _gather(start, groups, code, state, met, first):
    """When the last lane of each group comes and how slow its slowest link is, into met; which lane that is, into first."""
    link = state[code[LINK_FACTOR]]
    met[:] = -1
    for lane in range(start.shape[0]):
        g = groups[lane]
        if start[lane] > met[g, 0]:
            met[g, 0], first[g] = start[lane], lane
        met[g, 1] = max(met[g, 1], link[lane])


@njit("void(int64[::1], int64[::1], int32[::1], int64[::1], int64[:,::1], int64[:,::1])", **_OPTIONS)
def _together(start, stop, groups, code, state, met):
    """A collective: all lanes of a group start with the last and end together; their link is held for the wire time."""
    peers, fixed = state[code[PEERS]], code[DURATION] - code[WIRE]
    for lane in range(start.shape[0]):
        g = groups[lane]
        peers[lane] += met[g, 0] - start[lane]
        start[lane] = met[g, 0]
        stop[lane] = met[g, 0] + fixed + ((code[WIRE] * met[g, 1]) >> 16)
    if code[SERVER] >= 0:
        row = state[code[SERVER]]
        for lane in range(start.shape[0]):
            row[lane] = stop[lane] - fixed


@njit("void(int64[::1], int64[::1], int64[::1], int64[:,::1])", **_OPTIONS)
def _ended(start, stop, code, state):
    """Keeps what later instructions and the totals need of this one."""
    row, busy = state[code[QUEUE]], state[code[BUSY]]
    for lane in range(start.shape[0]):
        row[lane] = stop[lane]
        busy[lane] += stop[lane] - start[lane]
    if code[SLOT] >= 0:
        row = state[code[SLOT]]
        for lane in range(start.shape[0]):
            row[lane] = stop[lane]


@njit(
    f"void({_TABLES}, int32[:,:,::1], int64[:,::1], int64, uint32, int32[:,::1], int64[:,::1], int64[:,::1], int32[:,::1], int32[:,::1])",
    **_OPTIONS,
)
def walk(code, deps, state, member, ranks, amplitude, seed, kept, starts, stops, slowest, released):
    """Runs instructions on one block of lanes.

    member: int32[groups, stages, lanes], place of each lane's replica group in the block; ranks: int64[stages, lanes]; amplitude: of the
    noise, in 2 ** -20; kept: int32[kept, 3], (stage, lane, column) of the ranks whose times are put into starts, stops, slowest, released.
    """
    lanes = state.shape[1]
    start, stop = np.empty(lanes, np.int64), np.empty(lanes, np.int64)
    met, first = np.empty((lanes, 2), np.int64), np.empty(lanes, np.int32)
    for x in range(code.shape[0]):
        c = code[x]
        kind, stage = c[KIND], c[STAGE]
        _ready(start, c, deps, state)
        if kind == _MEET:
            groups = member[c[GROUP], stage]
            _gather(start, groups, c, state, met, first)
            for k in range(kept.shape[0]):
                if kept[k, 0] == stage:
                    last = first[groups[kept[k, 1]]]
                    slowest[c[INDEX], kept[k, 2]] = ranks[stage, last]
                    released[c[INDEX], kept[k, 2]] = _releaser(last, c, deps, state)
            _together(start, stop, groups, c, state, met)
        elif kind == _RECV:
            _receive(start, stop, c, state)
        elif kind == _SEND:
            _send(start, stop, c, state)
        else:
            _compute(start, stop, c, state, ranks[stage], amplitude, seed)
        _ended(start, stop, c, state)
        for k in range(kept.shape[0]):
            if kept[k, 0] == stage:
                starts[c[INDEX], kept[k, 2]], stops[c[INDEX], kept[k, 2]] = start[kept[k, 1]], stop[kept[k, 1]]


@njit(
    "void(int64[:,::1], int32[:,::1], int64[:,:,::1], int32[:,:,::1], int64[:,::1], int64[:,::1], int32[::1], int32[:,::1], int64[:,::1],"
    " int64[:,::1], int32[:,::1], int32[:,::1])",
    **_OPTIONS,
)
def meet(code, deps, state, member, ranks, met, first, kept, starts, stops, slowest, released):
    """One collective over all blocks, and over all stages that take part in it.

    code: the instruction of each stage. state: int64[blocks, rows, lanes of a block]. member: int32[stages, blocks, lanes], group of each
    rank; met: int64[groups, 2] and first: int32[groups], scratch. kept: as for walk, with lanes counted over all blocks.
    """
    blocks, width = state.shape[0], state.shape[2]
    start, stop = np.empty((code.shape[0], blocks, width), np.int64), np.empty(width, np.int64)
    met[:] = -1
    for x in range(code.shape[0]):
        c = code[x]
        for b in range(blocks):
            _ready(start[x, b], c, deps, state[b])
            for lane in range(width):
                g = member[c[STAGE], b, lane]
                if start[x, b, lane] > met[g, 0]:
                    met[g, 0], first[g] = start[x, b, lane], (x * blocks + b) * width + lane
                met[g, 1] = max(met[g, 1], state[b, c[LINK_FACTOR], lane])
    for x in range(code.shape[0]):
        for k in range(kept.shape[0]):
            if kept[k, 0] == code[x, STAGE]:
                last = first[member[kept[k, 0], kept[k, 1] // width, kept[k, 1] % width]]
                y, place = last // (blocks * width), last % (blocks * width)
                slowest[code[x, INDEX], kept[k, 2]] = ranks[code[y, STAGE], place]
                released[code[x, INDEX], kept[k, 2]] = _releaser(place % width, code[y], deps, state[place // width])
    for x in range(code.shape[0]):
        c = code[x]
        for b in range(blocks):
            _together(start[x, b], stop, member[c[STAGE], b], c, state[b], met)
            _ended(start[x, b], stop, c, state[b])
            for k in range(kept.shape[0]):
                lane = kept[k, 1] - b * width
                if kept[k, 0] == c[STAGE] and 0 <= lane < width:
                    starts[c[INDEX], kept[k, 2]], stops[c[INDEX], kept[k, 2]] = start[x, b, lane], stop[lane]
