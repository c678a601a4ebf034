"""What repeated events share, each combination kept once: the same instruction of the same operator differs only in its times."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze import durations
from neuronprof.trace.batch import Vocabulary

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

TEXTS = (
    "engine", "kind", "name", "op_name", "layer", "phase", "source", "dtype", "replica_group", "algorithm", "region",
)  # fmt: skip
NUMBERS = ("op", "bytes", "flops")
THROTTLED = "throttled"  # 1 where the formula of a duration says that the PE array was cold
COLUMNS = (*TEXTS, *NUMBERS, THROTTLED)
_MOST = 2**62


@dataclass(frozen=True)
class Alike:
    """The distinct combinations: columns int64 of equal length, texts as codes into `words` (-1: none); count: events that have each."""

    columns: Mapping[str, NDArray[np.int64]]
    words: Mapping[str, list[str]]
    count: NDArray[np.int64]


@dataclass
class Collector:
    """Numbers combinations as they come, piece by piece."""

    words: dict[str, Vocabulary] = field(default_factory=lambda: {name: Vocabulary() for name in TEXTS})
    _rows: dict[tuple[int, ...], int] = field(default_factory=dict)
    _count: list[int] = field(default_factory=list)

    def take(self, table: "pa.Table", numbers: Mapping[str, NDArray[np.int64]]) -> NDArray[np.int64]:
        """The number of each row's combination.

        Args:
            table: with the columns of TEXTS, as one chunk each.
            numbers: the columns of NUMBERS, and THROTTLED.
        """
        columns = [coded(table[name], self.words[name]) for name in TEXTS]
        columns += [numbers[name] for name in (*NUMBERS, THROTTLED)]
        if not len(columns[0]):
            return columns[0]
        first, place = _distinct(columns)
        rows = zip(*(column[first].tolist() for column in columns), strict=True)
        known = np.array([self._row(row) for row in rows], np.int64)
        for row, count in zip(known.tolist(), np.bincount(place, minlength=len(first)).tolist(), strict=True):
            self._count[row] += count
        return known[place]

    def band(self, band: str, name: str) -> int:
        """The number of a combination for a stretch of a band: a step, a phase, a region of this name."""
        given = {"engine": band, "name": name, band: name}
        texts = [self.words[column].code(given.get(column)) for column in TEXTS]
        return self._row((*texts, *(-1 for _ in NUMBERS), 0))

    def column(self, name: str) -> NDArray[np.int64]:
        """One column of the combinations so far."""
        place = COLUMNS.index(name)
        return np.array([row[place] for row in self._rows], np.int64)

    def finish(self, shapes: Mapping[int, str]) -> Alike:
        """All combinations so far; `shapes` of the operators become a column of their own."""
        columns = dict(zip(COLUMNS, np.array(list(self._rows), np.int64).reshape(-1, len(COLUMNS)).T, strict=True))
        known = Vocabulary()
        columns["shapes"] = np.array([known.code(shapes.get(op)) for op in columns["op"].tolist()], np.int64)
        words = {name: vocabulary.words for name, vocabulary in self.words.items()}
        return Alike(columns, {**words, "shapes": known.words}, np.array(self._count, np.int64))

    def _row(self, combination: tuple[int, ...]) -> int:
        row = self._rows.setdefault(combination, len(self._rows))
        if row == len(self._count):
            self._count.append(0)
        return row


def coded(column: "pa.ChunkedArray", vocabulary: Vocabulary) -> NDArray[np.int64]:
    """A string column as codes of the vocabulary, which grows; -1 for null."""
    parts = [
        vocabulary.translate(chunk.indices.fill_null(-1).to_numpy(), chunk.dictionary.to_pylist())
        for chunk in column.chunks
    ]
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)


def throttled(operands: "pa.ChunkedArray") -> NDArray[np.int64]:
    """Which events' formulas name the share of them in which the PE array was cold."""
    words = Vocabulary()
    code = coded(operands, words)
    cold = [int("cold" in durations.read_operands(word)[1]) for word in words.words]
    return np.array([*cold, 0], np.int64)[code]


def shapes_of(operators: "pd.DataFrame") -> dict[int, str]:
    """The shapes of each operator that tells them."""
    known = operators[operators["shapes"].notna()]
    return dict(zip(known["op"].tolist(), known["shapes"].tolist(), strict=True))


def _distinct(columns: list[NDArray[np.int64]]) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """The first row of each distinct combination, in order of appearance, and each row's place among them."""
    import pandas as pd

    combined, size = np.zeros(len(columns[0]), np.int64), 1
    for column in columns:
        low, high = int(column.min()), int(column.max())
        if high - low >= _MOST // size:
            column, values = pd.factorize(column)
            low, high = 0, len(values) - 1
        if high - low >= _MOST // size:
            combined, distinct = pd.factorize(combined)
            size = len(distinct)
        combined = combined * (high - low + 1) + (column - low)
        size *= high - low + 1
    place = pd.factorize(combined)[0]
    seen = np.maximum.accumulate(place)
    first = np.flatnonzero(np.concatenate(([True], place[1:] > seen[:-1])))
    return first, place
