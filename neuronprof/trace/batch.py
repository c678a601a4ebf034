"""Batches of events on their way into the trace: any form of input becomes arrays, a chip's rows one sorted table."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from neuronprof.terms import Engine, OnChip
from neuronprof.trace import schema

ENGINE_ORDER = (*Engine, *OnChip)
THREADS = 2  # numpy and Arrow copy columns side by side; more threads than two only wait for memory
_UINT16 = np.iinfo(np.uint16).max

Batch = dict[str, Any]  # an array a column; strings as codes of the vocabularies; deps as a pa.ListArray


@dataclass
class Vocabulary:
    """The strings of one column, each with the code it has in the whole trace; -1 is null."""

    words: list[str] = field(default_factory=list)
    _codes: dict[str, int] = field(default_factory=dict)
    _last: tuple[Sequence[str | None] | None, int, np.ndarray] = (None, 0, np.zeros(0, np.int32))

    def code(self, word: str | None) -> int:
        """The code of a word, a new one for a new word."""
        if word is None:
            return -1
        known = self._codes.setdefault(word, len(self.words))
        if known == len(self.words):
            self.words.append(word)
        return known

    def translate(self, codes: np.ndarray, dictionary: Sequence[str | None]) -> np.ndarray:
        """Codes that index `dictionary` (-1: null) as codes of this vocabulary.

        Raises:
            ValueError: a code outside the dictionary.
        """
        source, size, mapping = self._last
        if source is not dictionary or size != len(dictionary):
            mapping = np.array([*map(self.code, dictionary), -1], np.int32)
            self._last = (dictionary, len(dictionary), mapping)
        if len(codes) and not (codes.min() >= -1 and codes.max() < len(dictionary)):
            raise ValueError("a code lies outside its dictionary")
        return mapping[codes]


class Vocabularies(dict[str, Vocabulary]):
    """One vocabulary a string column; the engines first in the order in which the trace sorts them."""

    def __init__(self) -> None:
        super().__init__((name, Vocabulary()) for name in schema.STRINGS)
        for engine in ENGINE_ORDER:
            self["engine"].code(engine.value)


def normalize(columns: Mapping[str, Any], vocabularies: Vocabularies, first_id: int) -> Batch:
    """Columns of a batch as arrays of the schema's types, missing ones filled with their defaults.

    Args:
        columns: see `TraceWriter.write`.
        vocabularies: grow with the words of the batch.
        first_id: id of the first row if the batch has no ids.

    Raises:
        ValueError: an unknown or missing column, or columns of different length.
    """
    if unknown := set(columns) - set(schema.NAMES):
        raise ValueError(f"not columns of the trace: {', '.join(sorted(unknown))}")
    if missing := set(schema.REQUIRED) - set(columns):
        raise ValueError(f"an event needs the columns {', '.join(sorted(missing))}")
    rows = len(np.asarray(columns["start_ts"]))
    batch: Batch = {}
    for column in schema.COLUMNS:
        name = column.name
        if name == "deps":
            batch[name] = _lists(columns.get(name), rows)
        elif name in schema.STRINGS:
            batch[name] = _codes(columns.get(name), rows, vocabularies[name])
        elif name == "id" and name not in columns:
            batch[name] = np.arange(first_id, first_id + rows)
        else:
            batch[name] = _numbers(columns.get(name, column.default), rows, column.type.to_pandas_dtype())
        if len(batch[name]) != rows:
            raise ValueError(f"column {name} has {len(batch[name])} rows, start_ts {rows}")
    return batch


def _numbers(values: Any, rows: int, dtype: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim == 0:
        return np.full(rows, array, dtype)
    return array.astype(dtype, copy=False)


def _codes(values: Any, rows: int, vocabulary: Vocabulary) -> np.ndarray:
    if values is None or isinstance(values, str):
        return np.full(rows, vocabulary.code(values), np.int32)
    if isinstance(values, tuple):
        codes, dictionary = values
        return vocabulary.translate(np.asarray(codes), dictionary)
    array = values if isinstance(values, pa.Array) else pa.array(values, pa.string())
    encoded = array if isinstance(array, pa.DictionaryArray) else array.dictionary_encode()
    return vocabulary.translate(encoded.indices.fill_null(-1).to_numpy(), encoded.dictionary.to_pylist())


def _lists(values: Any, rows: int) -> pa.ListArray:
    if values is None:
        return pa.nulls(rows, schema.BY_NAME["deps"].type)
    if isinstance(values, tuple):
        pointers, flat = (np.asarray(v) for v in values)
        return pa.ListArray.from_arrays(pointers.astype(np.int32), flat.astype(np.int64, copy=False))
    return values if isinstance(values, pa.ListArray) else pa.array(values, schema.BY_NAME["deps"].type)


def split_by_chip(batch: Batch) -> list[tuple[int, Batch]]:
    """The rows of each chip, in the order of the chips."""
    chips = batch["chip"]
    if not len(chips) or (chips == chips[0]).all():
        return [(int(chips[0]), batch)] if len(chips) else []
    return [(int(chip), _take(batch, np.flatnonzero(chips == chip))) for chip in np.unique(chips)]


def _take(batch: Batch, rows: np.ndarray) -> Batch:
    return {name: column.take(pa.array(rows)) if name == "deps" else column[rows] for name, column in batch.items()}


def table(batches: Sequence[Batch], vocabularies: Vocabularies) -> pa.Table:
    """One chip's batches as a table in the order of `schema.SORT`; dictionaries keep only the words that occur."""
    order = _order({name: _join(batches, name) for name in ("core", "engine", "queue", "start_ts")})

    def column(name: str) -> pa.Array:
        values = _join(batches, name)
        if name == "deps":
            return values if order is None else values.take(pa.array(order))
        if order is not None:
            values = values.take(order)
        return _dictionary_array(values, vocabularies[name]) if name in schema.STRINGS else pa.array(values)

    with ThreadPoolExecutor(THREADS) as threads:
        return pa.Table.from_arrays(list(threads.map(column, schema.NAMES)), schema=schema.ARROW)


def _join(batches: Sequence[Batch], name: str) -> Any:
    parts = [batch[name] for batch in batches]
    if len(parts) == 1:
        return parts[0]
    return pa.concat_arrays(parts) if name == "deps" else np.concatenate(parts)


def _order(batch: Batch) -> np.ndarray | None:
    """The permutation that sorts the rows of one chip, stable; None if they are sorted."""
    core, queue, start = batch["core"], batch["queue"], batch["start_ts"]
    queues = int(queue.max()) - int(queue.min()) + 1
    engine = batch["engine"].astype(np.int64)
    key = ((core - int(core.min())) * np.int64(engine.max() + 1) + engine) * queues + (queue - int(queue.min()))
    if _sorted(key, start):
        return None
    if key.max() <= _UINT16:  # numpy sorts short integers by radix, ten times faster
        order = np.argsort(key.astype(np.uint16), kind="stable")
        if _sorted(key[order], start[order]):
            return order
    return np.lexsort((start, key))


def _sorted(key: np.ndarray, start: np.ndarray) -> bool:
    step = np.diff(key)
    return bool(((step > 0) | ((step == 0) & (np.diff(start) >= 0))).all())


def _dictionary_array(codes: np.ndarray, vocabulary: Vocabulary) -> pa.DictionaryArray:
    nulls = codes < 0 if len(codes) and codes.min() < 0 else None
    used = np.zeros(len(vocabulary.words) + 1, bool)  # the last slot stands for null, code -1
    used[codes] = True
    present = np.flatnonzero(used[:-1])
    if len(present) < len(vocabulary.words):
        codes = (np.cumsum(used, dtype=np.int32) - np.int32(1))[codes]
    words = pa.array([vocabulary.words[i] for i in present], pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=nulls), words)
