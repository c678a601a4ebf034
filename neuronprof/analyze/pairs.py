"""The traffic between ranks as a matrix that fits on a screen."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

_MOST = 256  # rows and columns; of more ranks, those that follow each other are added up


@dataclass(frozen=True)
class Pairs:
    """Bytes from ranks to ranks. sources, destinations: the first rank of each row and column; together: ranks in one; bytes: (S, D)."""

    sources: NDArray[np.int64]
    destinations: NDArray[np.int64]
    together: tuple[int, int]
    bytes: NDArray[np.float64]


def matrix(traffic: "pd.DataFrame") -> Pairs:
    """The matrix of the analyzers' `traffic`, over all mesh axes; what goes to an unknown rank is left out."""
    known = traffic[traffic["destination"] >= 0]
    sources, row, rows = _binned(known["source"].to_numpy(np.int64))
    destinations, column, columns = _binned(known["destination"].to_numpy(np.int64))
    total = np.zeros((len(sources), len(destinations)))
    np.add.at(total, (row, column), known["bytes"].to_numpy(float))
    return Pairs(sources, destinations, (rows, columns), total)


def _binned(ranks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """The first rank of each bin, the bin of each value, and how many ranks share one."""
    distinct, place = np.unique(ranks, return_inverse=True)
    together = max(1, -(-len(distinct) // _MOST))
    return distinct[::together], place // together, together
