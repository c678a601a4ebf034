"""Packs a rank's events and levels of detail into bytes that a page decodes: columns of small integers, split by byte.

Layout: uint32 length of a JSON header, the header, then the columns one after another. The header's `columns` say
of each one [offset, values, bytes a value, zigzag, delta]; a column's bytes are grouped by significance (all lowest bytes first),
which makes the mostly empty high bytes vanish where a page keeps them compressed.
"""

import gzip
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

GZIP_LEVEL = 6


class Packer:
    """Collects named integer columns and one JSON header."""

    def __init__(self) -> None:
        self._columns: dict[str, list[int]] = {}
        self._payload: list[bytes] = []
        self._size = 0

    def add(self, name: str, values: NDArray, *, delta: bool = False) -> None:
        """Adds a column of whole numbers up to 2**50 in magnitude.

        Args:
            name: what the page calls it.
            values: one dimension.
            delta: store differences between neighbours, for sorted or slowly changing columns.
        """
        whole = np.asarray(values, np.int64)
        if delta:
            whole = np.diff(whole, prepend=0)
        zigzag = bool(len(whole)) and int(whole.min()) < 0
        if zigzag:
            whole = (whole << 1) ^ (whole >> 63)
        width = max(1, -(-int(whole.max()).bit_length() // 8)) if len(whole) else 1
        planes = np.ascontiguousarray(whole.astype("<i8")).view(np.uint8).reshape(-1, 8)[:, :width].T
        self._columns[name] = [self._size, len(whole), width, int(zigzag), int(delta)]
        self._payload.append(np.ascontiguousarray(planes).tobytes())
        self._size += width * len(whole)

    def pack(self, header: Mapping[str, Any]) -> bytes:
        """Everything; the header gets the key `columns`."""
        text = json.dumps({**header, "columns": self._columns}).encode()
        return b"".join((struct.pack("<I", len(text)), text, *self._payload))


def compressed(packed: bytes) -> NDArray[np.uint8]:
    """What is packed as a page keeps it: gzipped, an array of bytes."""
    return np.frombuffer(gzip.compress(packed, GZIP_LEVEL, mtime=0), np.uint8)
