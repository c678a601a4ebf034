"""Sets of half-open intervals [start, end) as pairs of int64 arrays, in nanoseconds.

A *union* is a set whose intervals are sorted, disjoint and not empty; only `merge` and what is made from unions are unions. Lengths add up
exactly: for a union u and a window w, length(u within w) + length(gaps of u in w) = length(w).
"""

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.int64]
Rows = NDArray[np.intp]


def merge(starts: Times, ends: Times) -> tuple[Times, Times]:
    """The union of intervals in any order; those that touch become one, empty ones vanish."""
    keep = ends > starts
    starts, ends = starts[keep], ends[keep]
    if not len(starts):
        return starts, ends
    if not _ascending(starts):
        order = np.argsort(starts, kind="stable")
        starts, ends = starts[order], ends[order]
    reach = np.maximum.accumulate(ends)
    first = np.concatenate(([True], starts[1:] > reach[:-1]))
    last = np.concatenate((first[1:], [True]))
    return starts[first], reach[last]


def _ascending(values: Times) -> bool:
    return bool((values[1:] >= values[:-1]).all())


def sorted_by(keys: NDArray[np.int64], count: int) -> Rows:
    """The rows sorted by small keys, 0 to count - 1; those of one key as they stand."""
    if count <= np.iinfo(np.uint16).max:  # numpy sorts short integers by radix, ten times faster
        keys = keys.astype(np.uint16)
    return np.argsort(keys, kind="stable")


def length(starts: Times, ends: Times) -> int:
    """Nanoseconds that at least one of the intervals, in any order, covers."""
    first, last = merge(starts, ends)
    return int((last - first).sum())


def gaps(starts: Times, ends: Times, low: int, high: int) -> tuple[Times, Times]:
    """What a union leaves of the window [low, high)."""
    inside = (ends > low) & (starts < high)
    opens = np.concatenate(([low], ends[inside])).astype(np.int64)
    closes = np.concatenate((starts[inside], [high])).astype(np.int64)
    free = closes > opens
    return opens[free], closes[free]


def intersect(starts: Times, ends: Times, other_starts: Times, other_ends: Times) -> tuple[Times, Times, Rows, Rows]:
    """The common parts of two sets, each sorted and disjoint: starts, ends, and the row in the first and in the second set."""
    first = np.searchsorted(other_ends, starts, side="right")
    last = np.searchsorted(other_starts, ends, side="left")
    count = np.maximum(last - first, 0)
    mine = np.repeat(np.arange(len(starts)), count)
    theirs = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[mine]
    low, high = np.maximum(starts[mine], other_starts[theirs]), np.minimum(ends[mine], other_ends[theirs])
    common = high > low
    return low[common], high[common], mine[common], theirs[common]


def subtract(starts: Times, ends: Times, other_starts: Times, other_ends: Times) -> tuple[Times, Times, Rows]:
    """What a union leaves of a sorted disjoint set: starts, ends, and the row in the set."""
    if not len(starts):
        return starts, ends, np.zeros(0, np.intp)
    free = gaps(other_starts, other_ends, int(starts[0]), int(ends[-1]))
    low, high, mine, _ = intersect(starts, ends, *free)
    return low, high, mine


def partition(starts: Times, ends: Times) -> tuple[Times, Times, Rows]:
    """The union of intervals in any order, each instant given to the interval that started first.

    Returns:
        Starts and ends of the pieces, sorted and disjoint, and the row that each belongs to.
    """
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], ends[order]
    reach = np.maximum.accumulate(ends)
    begin = starts.copy()
    begin[1:] = np.maximum(starts[1:], reach[:-1])
    keep = ends > begin
    return begin[keep], ends[keep], order[keep]


def covered(starts: Times, ends: Times, union_starts: Times, union_ends: Times) -> Times:
    """How much of each interval, in any order and possibly overlapping, a union covers: int64 nanoseconds, one an interval."""
    if not len(union_starts):
        return np.zeros(len(starts), np.int64)
    total = np.concatenate(([0], np.cumsum(union_ends - union_starts)))

    def until(times: Times) -> Times:
        at = np.searchsorted(union_starts, times, side="right") - 1
        inside = np.minimum(times, union_ends[at]) - union_starts[at]
        return np.where(at < 0, 0, total[at] + inside)

    return until(ends) - until(starts)


def union_by(keys: NDArray[np.int64], starts: Times, ends: Times, count: int) -> Times:
    """The length of the union of the intervals of each key.

    Args:
        keys: 0 to count - 1, one an interval.
        starts: in any order.
        ends: one a start.
        count: number of keys.
    """
    from neuronprof.analyze import sweep  # numba takes as long to load as all the rest

    lengths: Times
    lengths, known = sweep.unions(keys, starts, ends, count)
    if not known:
        order = np.argsort(starts, kind="stable")
        lengths, _ = sweep.unions(keys[order], starts[order], ends[order], count)
    return lengths
