"""Replica groups as the trace writes them: 'tp:0-7', 'dp:3-59:8' (every eighth), 'dp+cp:0-3,16-19,32-35,...51', 'pp:0>4' (a message)."""

import re
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_RUN = re.compile(r"\s*(\d+)(?:-(\d+)(?::(\d+))?)?\s*")


def axis(group: str) -> str:
    """The mesh axis along which a group runs: dp, tp, pp, cp, ep, or several: 'dp+cp'; '' if the text does not say."""
    return group.partition(":")[0] if ":" in group else ""


@lru_cache(maxsize=4096)
def members(group: str) -> NDArray[np.int64] | None:
    """The ranks of a group, ascending; of a message its source and its destination; None if the text does not say."""
    text = group.partition(":")[2]
    if message := re.fullmatch(r"(\d+)>(\d+)", text):
        return np.array([int(message[1]), int(message[2])])
    listed, _, last = text.partition(",...")
    runs = [_run(part) for part in listed.split(",")]
    known = [run for run in runs if run is not None]
    if len(known) < len(runs):
        return None
    return _continued(known, int(last)) if last else np.concatenate(known)


def size(group: str) -> float:
    """How many ranks a group has; NaN if the text does not say."""
    found = members(group)
    return np.nan if found is None else float(len(found))


def _run(text: str) -> NDArray[np.int64] | None:
    match = _RUN.fullmatch(text)
    if not match:
        return None
    return np.arange(int(match[1]), int(match[2] or match[1]) + 1, int(match[3] or 1))


def _continued(runs: list[NDArray[np.int64]], last: int) -> NDArray[np.int64] | None:
    """The first three runs and the last rank, with the regular runs between them; two runs at one distance may repeat at another."""
    first, second, third = (int(run[0]) for run in runs[:3])
    unit = runs[0] if second - first == third - second else np.concatenate(runs[:2])
    step = (second if len(unit) == len(runs[0]) else third) - first
    times, rest = divmod(last - int(unit[-1]), step)
    return None if rest else np.concatenate([unit + step * n for n in range(times + 1)])
