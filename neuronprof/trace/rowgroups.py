"""What the footers of a trace's files tell of its row groups, so that only those are read that can hold what is asked for."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from neuronprof.trace import metadata

Range = tuple[int, int]  # the first and the last value, both included

# What a column can hold, as far as its statistics tell.
_LIMITS = {
    "id": (-(2**62), 2**62), "step": (-1, 2**31), "chip": (0, 2**31), "core": (-1, 2**15), "rank": (0, 2**31), "queue": (0, 2**15),
    "op": (-1, 2**24), "start_ts": (-metadata.LATEST, metadata.LATEST), "duration_ns": (0, metadata.LATEST),
    "wait_ns": (0, metadata.LATEST), "bytes": (0, 2**48), "flops": (0, 2**60), "collective": (-1, 2**62), "released_by": (-1, 2**62),
}  # fmt: skip
_COLUMNS = ("step", "chip", "rank", "start_ts", "duration_ns", "id")  # what rows are asked for by
_LEAST, _MOST = np.iinfo(np.int64).min, np.iinfo(np.int64).max


class RowGroups:
    """All row groups of a trace's parts, in their order.

    part, group: the part, and the place in it. rows: how many each has. Arrays of equal length.
    """

    def __init__(self, parts: Sequence[pq.ParquetFile]) -> None:
        sizes = [part.metadata.num_row_groups for part in parts]
        self.part = np.repeat(np.arange(len(parts)), sizes)
        self.group = np.concatenate([np.zeros(0, np.int64), *(np.arange(size) for size in sizes)])
        rows, bounds = [], []
        for part in parts:
            places = [part.schema_arrow.names.index(name) for name in _COLUMNS]
            for group in range(part.metadata.num_row_groups):
                known = part.metadata.row_group(group)
                rows.append(known.num_rows)
                bounds.append([_bounds(known.column(place).statistics) for place in places])
        self.rows = np.array(rows, np.int64)
        self._bounds = np.array(bounds, np.int64).reshape(len(rows), len(_COLUMNS), 2)

    def within(self, ranges: Mapping[str, Range]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which row groups can hold rows with values in all of these ranges, and of which all rows are such."""
        possible, exact = np.ones(len(self.rows), bool), np.ones(len(self.rows), bool)
        for name, (first, last) in ranges.items():
            low, high = self._of(name)
            possible &= (low <= last) & (high >= first)
            exact &= (low >= first) & (high <= last)
        return possible, exact

    def touching(self, between: tuple[int, int]) -> NDArray[np.bool_]:
        """Which can hold events that touch the time between two times."""
        (first, last), longest = self._of("start_ts"), self._of("duration_ns")[1]
        late_enough: NDArray[np.bool_] = (first < between[1]) & (longest > between[0] - last)
        return late_enough

    def only(self, name: str, at: int) -> int | None:
        """The value that all rows of a row group have; None if they differ, or the footer does not tell."""
        low, high = self._of(name)
        return int(low[at]) if low[at] == high[at] else None

    def _of(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The least and the largest value in each row group; the whole range of numbers where a footer does not tell."""
        column = _COLUMNS.index(name)
        return self._bounds[:, column, 0], self._bounds[:, column, 1]


def impossible(part: pq.ParquetFile, group: int, names: Iterable[str]) -> str:
    """What no trace holds in these columns of a row group, as a negative duration; '' if its footer tells of nothing of the kind."""
    known, places = part.metadata.row_group(group), part.schema_arrow.names
    for name in _LIMITS.keys() & set(names) & set(places):
        low, high = _bounds(known.column(places.index(name)).statistics)
        first, last = _LIMITS[name]
        if (low, high) != (_LEAST, _MOST) and not first <= low <= high < last:
            return f"{name} goes from {low} to {high}"
    return ""


def _bounds(statistics: pq.Statistics | None) -> Range:
    """The least and the largest value, as far as int64 goes; the whole of that where a footer does not tell."""
    if statistics is None or not statistics.has_min_max:
        return _LEAST, _MOST
    return max(statistics.min, _LEAST), min(statistics.max, _MOST)
