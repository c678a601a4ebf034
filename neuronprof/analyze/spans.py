"""Events at every zoom: what is wide enough stands alone, what is narrower is merged into bars; nothing is dropped.

Level k has bins of 2**k nanoseconds. At that level an event shorter than a bin that shares its bin with another short event is part of
a bar; every other event is drawn as itself. Bins are nested, so an event that is merged at one level is merged at all coarser ones: one
small number an event (the level at which it disappears into a bar) and one table of bars describe every zoom.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NEVER = 255  # the level of an event that no zoom merges
COARSEST_BINS = 256  # no screen shows the whole trace in fewer bins
MOST_LANES = 8  # overlapping events beyond this many share the last lane


@dataclass(frozen=True, slots=True)
class Bars:
    """Runs of merged events, sorted by level, then start; arrays of equal length.

    level: uint8; start, end: int64 nanoseconds, of the first and the last event inside; busy: int64, sum of the durations; count: int64,
    events inside; longest: int64, row of the longest event inside.
    """

    level: NDArray[np.uint8]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    busy: NDArray[np.int64]
    count: NDArray[np.int64]
    longest: NDArray[np.int64]


def top_level(span_ns: int) -> int:
    """The coarsest level that a trace of this length needs."""
    return max(0, int(span_ns) // COARSEST_BINS).bit_length()


class Items(NamedTuple):
    """What is drawn at one level, sorted by start: lone events (count 1) and bars; int64 arrays of equal length.

    start, end: nanoseconds, of the first and the last event inside; busy: sum of the durations; count: events inside; longest: row of
    the longest event inside; most: its duration.
    """

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    busy: NDArray[np.int64]
    count: NDArray[np.int64]  # type: ignore[assignment]  # tuples have a method of this name
    longest: NDArray[np.int64]
    most: NDArray[np.int64]


def single(start: NDArray[np.int64], duration: NDArray[np.int64], rows: NDArray[np.int64]) -> Items:
    """Events, sorted by start, as items of their own."""
    return Items(start, start + duration, duration, np.ones(len(start), np.int64), rows, duration)


def levels(items: Items, first: int, last: int) -> Iterator[Items]:
    """The items of the levels from `first` to `last`, from those of any finer level, such as the events themselves."""
    for level in range(first, last + 1):
        items = _coarser(items, level)[0]
        yield items


def merge(start: NDArray[np.int64], duration: NDArray[np.int64], top: int) -> tuple[NDArray[np.uint8], Bars]:
    """Merges the events of one lane at every level.

    Args:
        start: int64 nanoseconds, sorted.
        duration: int64 nanoseconds, same length.
        top: the coarsest level, from `top_level`.

    Returns:
        For each event the level from which on it is part of a bar (`NEVER`: at none), and the bars of all levels.
    """
    merged_at = np.full(len(start), NEVER, np.uint8)
    items = single(start, duration, np.arange(len(start)))
    found: list[list[NDArray[np.int64]]] = []
    for level in range(1, top + 1):
        items, lost = _coarser(items, level)
        merged_at[lost] = level
        bars = np.flatnonzero(items.count > 1)
        found.append([np.full(len(bars), level), *(column[bars] for column in items[:5])])
    columns = [np.concatenate(parts) for parts in zip(*found, strict=True)] if found else [np.zeros(0, np.int64)] * 6
    return merged_at, Bars(columns[0].astype(np.uint8), *columns[1:])


def _coarser(items: Items, level: int) -> tuple[Items, NDArray[np.int64]]:
    """A level up: items that are short and share a bin become one item. Also the rows of the events that lost their own item."""
    short = (items.count > 1) | (items.busy < (1 << level))
    rows = np.flatnonzero(short)
    bins = items.start[rows] >> level
    heads = np.flatnonzero(np.concatenate(([True], bins[1:] != bins[:-1]))) if len(rows) else rows
    if len(heads) == len(rows):
        return items, rows[:0]
    sizes = np.diff(np.append(heads, len(rows)))
    joined = rows[np.repeat(sizes > 1, sizes)]
    lost = items.longest[joined[items.count[joined] == 1]]

    leaders = rows[heads]
    winner = rows[_first_longest(items.most[rows], heads, sizes)]
    end, busy, count = items.end.copy(), items.busy.copy(), items.count.copy()
    longest, most = items.longest.copy(), items.most.copy()
    end[leaders] = np.maximum.reduceat(items.end[rows], heads)
    busy[leaders] = np.add.reduceat(items.busy[rows], heads)
    count[leaders] = np.add.reduceat(items.count[rows], heads)
    longest[leaders], most[leaders] = items.longest[winner], items.most[winner]
    keep = ~short
    keep[leaders] = True
    return Items(*(column[keep] for column in (items.start, end, busy, count, longest, most))), lost


def _first_longest(duration: NDArray[np.int64], heads: NDArray[np.intp], sizes: NDArray[np.intp]) -> NDArray[np.intp]:
    """For each run of rows the first row that has the run's longest duration."""
    segment = np.repeat(np.arange(len(heads)), sizes)
    candidates = np.flatnonzero(duration == np.maximum.reduceat(duration, heads)[segment])
    owner = segment[candidates]
    return candidates[np.concatenate(([True], owner[1:] != owner[:-1]))]


def stack(start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """A lane for each event so that events of one lane do not overlap, as long as `MOST_LANES` suffice.

    Args:
        start: int64 nanoseconds, sorted.
        end: int64 nanoseconds, same length.
    """
    lanes = np.zeros(len(start), np.int64)
    if len(start) < 2 or (start[1:] >= np.maximum.accumulate(end)[:-1]).all():
        return lanes
    free = [int(start[0])] * MOST_LANES
    for row, (begin, stop) in enumerate(zip(start.tolist(), end.tolist(), strict=True)):
        lane = next((n for n, at in enumerate(free) if at <= begin), MOST_LANES - 1)
        free[lane] = max(stop, free[lane])
        lanes[row] = lane
    return lanes


def runs(
    start: NDArray[np.int64], end: NDArray[np.int64], label: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Bands of equal labels, for events sorted by start: (start, end, label) of each run, which ends with its last event or at the next."""
    if not len(start):
        return start, end, label
    heads = np.flatnonzero(np.concatenate(([True], label[1:] != label[:-1])))
    first = start[heads]
    last = np.maximum.reduceat(end, heads)
    last[:-1] = np.minimum(last[:-1], first[1:])
    return first, last, label[heads]
