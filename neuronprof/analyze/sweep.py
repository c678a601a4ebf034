"""The compiled loops: one sweep over the events of a rank gives every instant to exactly one of them; unions of intervals by key."""

import numpy as np
from numba import njit

from neuronprof.loops import OPTIONS, loop


def charge(start, end, kind, kinds, low, high):
    """Gives each instant of [low, high) to the event of the lowest kind that runs then, among those to the one that started first.

    Args:
        start: int64 nanoseconds, in any order; rows that overlap may share a kind.
        end: int64 nanoseconds.
        kind: int8, 0 to kinds - 1, or -1 for rows that get nothing.
        kinds: how many there are; the lower wins.
        low: start of the window.
        high: its end.

    Returns:
        charged, int64 nanoseconds a row; then the gaps in which nothing runs: start, end, and the row that ends each, -1 for none.
        charged.sum() + the gaps' lengths = high - low.
    """
    rows = np.flatnonzero((kind >= 0) & (end > start))
    order = rows[np.argsort(start[rows], kind="stable")]
    return _sweep(order, start, end, kind.astype(np.int8), kinds, low, high)


@njit(**OPTIONS)
def _pieces(order, start, end, kind, kinds):
    """The rows of each kind as disjoint pieces in time: bounds of the kinds, then row, begin and end of each piece."""
    bounds = np.zeros(kinds + 1, np.int64)
    for row in order:
        bounds[kind[row] + 1] += 1
    for k in range(kinds):
        bounds[k + 1] += bounds[k]
    first, last = bounds[:-1].copy(), bounds[:-1].copy()
    reach = np.full(kinds, np.iinfo(np.int64).min)
    piece, begin = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
    for row in order:
        k = kind[row]
        if end[row] > reach[k]:
            piece[last[k]], begin[last[k]] = row, max(start[row], reach[k])
            reach[k] = end[row]
            last[k] += 1
    return first, last, piece, begin


@loop("(int64[::1], int64[::1], int64[::1], int8[::1], int64, int64, int64)")
def _sweep(order, start, end, kind, kinds, low, high):
    at, last, piece, begin = _pieces(order, start, end, kind, kinds)
    charged = np.zeros(len(start), np.int64)
    gaps, found = np.empty((2 * len(order) + 1, 3), np.int64), 0
    now = low
    while now < high:
        until, owner, ends_gap = high, -1, -1
        for k in range(kinds):
            while at[k] < last[k] and end[piece[at[k]]] <= now:
                at[k] += 1
            if at[k] == last[k]:
                continue
            row, opens = piece[at[k]], begin[at[k]]
            if opens <= now:
                owner, until = row, min(until, end[row])
                break
            if opens < until:
                until, ends_gap = opens, row
        if owner >= 0:
            charged[owner] += until - now
        else:
            gaps[found, 0], gaps[found, 1], gaps[found, 2] = now, until, ends_gap
            found += 1
        now = until
    return charged, gaps[:found, 0].copy(), gaps[:found, 1].copy(), gaps[:found, 2].copy()


_TIMES = "Array(int64, 1, 'C', True)"  # columns of the trace are read-only


@loop(f"(int64[::1], int64[::1], {_TIMES}, {_TIMES}, int64, int64)")
def union(first, last, starts, durations, low, high):
    """The length of the union of the intervals in runs of rows, inside [low, high); and whether starts ascend: else it is wrong."""
    length, reach, before = 0, low, np.iinfo(np.int64).min
    for run in range(len(first)):
        for row in range(first[run], last[run]):
            start, end = max(starts[row], reach), min(starts[row] + durations[row], high)
            if starts[row] < before:
                return length, False
            before = starts[row]
            if end > start:
                length += end - start
                reach = end
    return length, True


@loop(f"({_TIMES}, {_TIMES}, int64, int64)")
def gaps(starts, ends, low, high):
    """What intervals inside [low, high), whose starts ascend, leave of it: start, end, and the first row that starts then, -1 for none."""
    gaps = np.empty((3, len(starts) + 1), np.int64)
    found, first, reach = 0, 0, low
    for row in range(len(starts)):
        if starts[row] != starts[first]:
            first = row
        if ends[row] > starts[row] > reach:
            gaps[0, found], gaps[1, found], gaps[2, found] = reach, starts[row], first
            found += 1
        if ends[row] > starts[row]:
            reach = max(reach, ends[row])
    if high > reach:
        gaps[0, found], gaps[1, found], gaps[2, found] = reach, high, -1
        found += 1
    return gaps[0, :found], gaps[1, :found], gaps[2, :found]


@loop(f"(int64[::1], {_TIMES}, {_TIMES}, int64)")
def unions(keys, starts, ends, count):
    """The length of the union of the intervals of each key, 0 to count - 1; and whether the starts of each key ascend: else it is wrong."""
    length = np.zeros(count, np.int64)
    reach = np.full(count, np.iinfo(np.int64).min)
    before = reach.copy()
    for row in range(len(keys)):
        key, start, end = keys[row], starts[row], ends[row]
        if start < before[key]:
            return length, False
        before[key] = start
        if end > reach[key]:
            length[key] += end - max(start, reach[key])
            reach[key] = end
    return length, True
