"""Quantities over time as step functions: bandwidth that transfers achieve, bytes that memory holds, and both at coarser zooms."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NOISE = 1e-9  # what is left of a sum of rates after the last transfer ends, relative to the largest value


@dataclass(frozen=True, slots=True)
class Steps:
    """A step function: from time[i] (int64 nanoseconds, strictly growing) on, the values are value[i]; zero before time[0].

    value: float64[times] or, with one column a category, int64[times, categories].
    """

    time: NDArray[np.int64]
    value: NDArray[np.float64] | NDArray[np.int64]


def rate(start: NDArray[np.int64], duration: NDArray[np.int64], amount: NDArray[np.int64]) -> Steps:
    """Bytes a second while transfers run, those at the same time added; a transfer moves its bytes evenly over its duration.

    Args:
        start: int64 nanoseconds.
        duration: int64 nanoseconds; 0 counts as 1.
        amount: bytes of each transfer.
    """
    length = np.maximum(duration, 1)
    height = amount * 1e9 / length
    time, value = _accumulate(np.concatenate((start, start + length)), np.concatenate((height, -height)))
    if len(value):
        value[np.abs(value) < NOISE * np.abs(value).max()] = 0.0
    return _without_repeats(time, value)


def held(
    start: NDArray[np.int64],
    duration: NDArray[np.int64],
    amount: NDArray[np.int64],
    category: NDArray[np.int64],
    categories: int,
) -> Steps:
    """Bytes held over time in each category.

    Args:
        start: int64 nanoseconds, when the level begins.
        duration: int64 nanoseconds, how long it is held.
        amount: int64 bytes.
        category: column of each row, below `categories`.
        categories: how many columns.
    """
    changes = np.zeros((2 * len(start), categories), np.int64)
    rows = np.arange(len(start))
    changes[rows, category] = amount
    changes[len(start) + rows, category] = -amount
    return _without_repeats(*_accumulate(np.concatenate((start, start + duration)), changes))


def means(steps: Steps, level: int, span_ns: int) -> NDArray[np.float64]:
    """The mean of the step function in each bin of 2**level nanoseconds from 0 to `span_ns`."""
    bins = -(-int(span_ns) >> level) if span_ns else 0
    if not len(steps.time) or bins <= 0:
        return np.zeros(max(bins, 0))
    edges = np.arange(bins + 1, dtype=np.int64) << level
    area = np.concatenate(([0.0], np.cumsum(steps.value[:-1] * np.diff(steps.time))))
    before = np.searchsorted(steps.time, edges, side="right") - 1
    at = np.maximum(before, 0)
    filled = np.where(before < 0, 0.0, area[at] + steps.value[at] * (edges - steps.time[at]))
    return np.maximum(np.diff(filled), 0.0) / (1 << level)


def peaks(steps: Steps, level: int) -> NDArray[np.intp]:
    """The times that a coarser picture keeps: in each bin of 2**level nanoseconds the first with the largest total, and the last."""
    if not len(steps.time):
        return np.zeros(0, np.intp)
    total = steps.value.sum(axis=1)
    bins = steps.time >> level
    heads = np.flatnonzero(np.concatenate(([True], bins[1:] != bins[:-1])))
    sizes = np.diff(np.append(heads, len(bins)))
    segment = np.repeat(np.arange(len(heads)), sizes)
    largest = np.flatnonzero(total == np.maximum.reduceat(total, heads)[segment])
    owner = segment[largest]
    first = largest[np.concatenate(([True], owner[1:] != owner[:-1]))]
    return np.union1d(first, heads + sizes - 1)


def _accumulate(time: NDArray[np.int64], change: NDArray) -> tuple[NDArray[np.int64], NDArray]:
    """Sums changes in the order of time, keeping one row a time."""
    order = np.argsort(time, kind="stable")
    time, value = time[order], np.cumsum(change[order], axis=0)
    last = np.concatenate((time[1:] != time[:-1], [True])) if len(time) else np.zeros(0, bool)
    return time[last], value[last]


def _without_repeats(time: NDArray[np.int64], value: NDArray) -> Steps:
    changed = np.ones(len(time), bool)
    if len(time) > 1:
        differs = value[1:] != value[:-1]
        changed[1:] = differs.any(axis=1) if differs.ndim > 1 else differs
    return Steps(time[changed], value[changed])
