"""Which rank a file of a profiler is of."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from neuronprof.errors import NeuronprofError

_NAMED = re.compile(r"rank[-_]?(\d{1,7})(?!\d)", re.IGNORECASE)


def numbered(stated: Sequence[int | None], paths: Sequence[Path]) -> list[int]:
    """The rank of each file: what it states, else what its name says, else the first that is free.

    Raises:
        NeuronprofError: two files state the same.
    """
    for rank, count in Counter(rank for rank in stated if rank is not None).items():
        if count > 1:
            twice = ", ".join(str(p) for r, p in zip(stated, paths, strict=True) if r == rank)
            raise NeuronprofError(f"{count} files are of rank {rank} ({twice}); give one file a rank.")
    taken = {rank for rank in stated if rank is not None}
    found: list[int] = []
    for own, path in zip(stated, paths, strict=True):
        found.append(_free(path, taken) if own is None else own)
        taken.add(found[-1])
    return found


def _free(path: Path, taken: set[int]) -> int:
    named = _NAMED.search(path.name)
    if named and int(named[1]) not in taken:
        return int(named[1])
    return next(number for number in range(len(taken) + 1) if number not in taken)
