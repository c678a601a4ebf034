"""Rows with equal values in some columns: which groups there are, and sums over each.

The trace is sorted so that events of one operator mostly follow each other, so rows are first taken together in runs: what is left to
be sorted or counted is a small part of them.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

_FEW = 1 << 16  # numbers that are counted rather than sorted
_BLOCK = 1 << 16  # rows that are compared at a time, in the cache
_SHORT = 16  # rows of a run that are cheaper to copy one by one


def heads(*columns: NDArray) -> NDArray[np.intp]:
    """The rows that differ from the one before in any of the columns; the first among them."""
    end = len(columns[0])
    found = [np.arange(min(end, 1))]
    for low in range(1, end, _BLOCK):
        rows, before = slice(low, low + _BLOCK), slice(low - 1, min(low + _BLOCK, end) - 1)
        differs = columns[0][rows] != columns[0][before]
        for column in columns[1:]:
            differs |= column[rows] != column[before]
        found.append(low + np.flatnonzero(differs))
    return np.concatenate(found)


@dataclass(frozen=True)
class Runs:
    """Rows as runs of neighbours, in any order: from `first` up to before `last`, int64 arrays of equal length."""

    first: NDArray[np.intp]
    last: NDArray[np.intp]

    @classmethod
    def between(cls, heads: NDArray[np.intp], end: int) -> "Runs":
        """The runs that begin at `heads`, the last of which goes up to `end`."""
        return cls(heads, np.append(heads[1:], end)[: len(heads)])

    def __len__(self) -> int:
        return int((self.last - self.first).sum())

    def where(self, chosen: NDArray | slice) -> "Runs":
        """Some of the runs: a mask, an index array or a slice."""
        return Runs(self.first[chosen], self.last[chosen])

    def of(self, column: NDArray) -> NDArray:
        """These rows of a column; of one run a view."""
        if len(self.first) == 1:
            return column[self.first[0] : self.last[0]]
        if len(self.first) * _SHORT >= len(self):
            return column[self._rows]
        return np.concatenate([column[a:b] for a, b in zip(self.first.tolist(), self.last.tolist(), strict=True)])

    @cached_property
    def _rows(self) -> NDArray[np.int64]:
        """The row numbers."""
        lengths = self.last - self.first
        return np.arange(len(self)) + np.repeat(self.first - np.cumsum(lengths) + lengths, lengths)


class Groups:
    """The groups of rows that agree in columns of codes (-1 and up).

    keys: for each column its value in each group, int64; the groups are sorted by the first column, then the second and so on.
    """

    def __init__(self, *columns: NDArray) -> None:
        self._heads = heads(*columns)
        self._lengths = np.diff(self._heads, append=len(columns[0]))
        self.keys, self._group = _distinct([column[self._heads] for column in columns])

    def __len__(self) -> int:
        return len(self.keys[0])

    @cached_property
    def one(self) -> NDArray[np.intp]:
        """A row of each group, its first."""
        found = np.empty(len(self), np.intp)
        found[self._group[::-1]] = self._heads[::-1]
        return found

    @cached_property
    def position(self) -> NDArray[np.int64]:
        """The group of each row."""
        return np.repeat(self._group, self._lengths)

    @cached_property
    def count(self) -> NDArray[np.int64]:
        """The rows of each group."""
        return self._total(self._lengths)

    def sum(self, values: NDArray) -> NDArray[np.int64]:
        """The sum of whole numbers, one a row, in each group."""
        return self._total(np.add.reduceat(values, self._heads, dtype=np.int64) if len(values) else values)

    def _total(self, of_runs: NDArray) -> NDArray[np.int64]:
        total = np.zeros(len(self), np.int64)
        np.add.at(total, self._group, of_runs)
        return total


def _distinct(columns: list[NDArray]) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """The distinct rows, sorted, as columns, and for each row its position among them."""
    place = np.zeros(len(columns[0]), np.int64)
    keys: list[NDArray[np.int64]] = []
    for column in columns:
        size = int(column.max(initial=-1)) + 2
        rows, place = _unique(place * size + (column + 1), (int(place.max(initial=-1)) + 1) * size)
        keys = [*(key[rows // size] for key in keys), rows % size - 1]
    return keys, place


def _unique(packed: NDArray[np.int64], bound: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct values, sorted, and the place of each; counted instead of sorted where they are small."""
    if bound > max(_FEW, 4 * len(packed)):
        rows, position = np.unique(packed, return_inverse=True)
        return rows, position.astype(np.int64)
    found = np.zeros(bound, bool)
    found[packed] = True
    rows = np.flatnonzero(found)
    place = np.zeros(bound, np.int64)
    place[rows] = np.arange(len(rows))
    return rows, place[packed]
