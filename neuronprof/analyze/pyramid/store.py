"""Where levels of detail are kept: arrays by name, in memory or as .npy files that are mapped, and a header in JSON."""

import json
import mmap
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_HEADER = "header.json"
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Detail:
    """The levels of detail of one rank. header: see `build`; columns: arrays, mapped from disk where they are kept there."""

    header: Mapping[str, Any]
    columns: Mapping[str, NDArray[Any]]

    def release(self) -> None:
        """Lets the system have back the memory in which mapped columns stand; what is needed of them is read again."""
        release(self.columns.values())


class Shelf:
    """Takes arrays and a header. folder: where files are written, complete or not at all; None: everything stays in memory."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._columns: dict[str, NDArray[Any]] = {}
        if folder:
            self._partial = folder.with_name(folder.name + _PARTIAL)
            shutil.rmtree(self._partial, ignore_errors=True)
            self._partial.mkdir(parents=True)

    def empty(self, name: str, length: int, dtype: DTypeLike) -> NDArray[Any]:
        """A new array to be filled."""
        if self._folder and length:
            file = self._partial / f"{name}.npy"
            self._columns[name] = np.lib.format.open_memmap(file, mode="w+", dtype=np.dtype(dtype), shape=(length,))
        else:
            self._columns[name] = np.empty(length, dtype)
        return self._columns[name]

    def add(self, name: str, values: NDArray[Any]) -> None:
        """A finished array; whole numbers take no more bytes than they need."""
        least = narrow(int(values.min()), int(values.max())) if values.dtype.kind in "iu" and values.size else None
        values = values.astype(least or values.dtype, copy=False)
        if self._folder:
            np.save(self._partial / f"{name}.npy", values)
        self._columns[name] = values

    def finish(self, header: Mapping[str, Any]) -> Detail:
        """What was taken; on disk it has its name from now on."""
        if not self._folder:
            return Detail(header, self._columns)
        for name, values in self._columns.items():
            if isinstance(values, np.memmap):
                values.flush()
            elif not (self._partial / f"{name}.npy").exists():
                np.save(self._partial / f"{name}.npy", values)
        self._columns.clear()
        (self._partial / _HEADER).write_text(json.dumps(header), encoding="utf-8")
        shutil.rmtree(self._folder, ignore_errors=True)
        self._partial.rename(self._folder)
        return load(self._folder)


def release(columns: Iterable[NDArray[Any]]) -> None:
    """Lets the system have back the memory of those columns that are mapped; what was written to them is kept."""
    for column in columns:
        if isinstance(column.base, mmap.mmap):
            column.base.madvise(mmap.MADV_DONTNEED)


def narrow(low: int, high: int) -> np.dtype[Any]:
    """The smallest type for whole numbers from low to high."""
    return np.min_scalar_type(high) if low >= 0 and high < 2**32 else np.dtype(np.int64)


def exists(folder: Path) -> bool:
    """Whether levels of detail are kept there."""
    return (folder / _HEADER).is_file()


def load(folder: Path) -> Detail:
    """What a shelf left in a folder."""
    header = json.loads((folder / _HEADER).read_text(encoding="utf-8"))
    columns = {file.stem: _mapped(file) for file in sorted(folder.glob("*.npy"))}
    return Detail(header, columns)


def _mapped(file: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(file, mmap_mode="r")
    except ValueError:  # nothing in it to map
        array = np.load(file)
    return array
