"""Every rank of a job, also those whose events are not in the trace: what each did in a step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("rank", "chip", "core", "stage", "wait_peer_ns", "busy_ns", "engine")
WAITING, LATE = "waiting for others", "end of the step after the first rank's"
_MOST_CELLS = 2**20  # of a map; of more steps that follow each other the largest value is taken


@dataclass(frozen=True)
class Map:
    """What each rank did in each step. ranks: (R,); steps: (S,), the first of those that a column stands for.

    values: by what is measured, (R, S) of float32, nanoseconds; NaN where the trace does not tell.
    """

    ranks: NDArray[np.int64]
    steps: NDArray[np.int64]
    values: Mapping[str, NDArray[np.float32]]


def every_rank(totals: "pd.DataFrame") -> "pd.DataFrame":
    """A row a rank, those that others wait for first: they wait least.

    totals: the ranks table of the trace. Columns: wait_peer_ns, a step; engine: the busiest one of the job, busy_ns: its time a step.
    """
    import pandas as pd

    if totals.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    steps = max(1, totals["step"].nunique())
    busiest = totals.groupby("engine", observed=True)["busy_ns"].sum().idxmax()
    own = totals[totals["engine"] == busiest]
    found = own.groupby(["rank", "chip", "core", "stage"], as_index=False)[["wait_peer_ns", "busy_ns"]].sum()
    found[["wait_peer_ns", "busy_ns"]] /= steps
    found["engine"] = str(busiest)
    return found.sort_values(["wait_peer_ns", "rank"], ignore_index=True)[list(COLUMNS)]


def over_steps(totals: "pd.DataFrame") -> Map:
    """The map of all ranks over the training steps; totals: the ranks table of the trace."""
    totals = totals[totals["step"] >= 0]
    ranks, row = np.unique(totals["rank"].to_numpy(np.int64), return_inverse=True)
    steps, column = np.unique(totals["step"].to_numpy(np.int64), return_inverse=True)

    def placed(chosen: NDArray[np.bool_], values: NDArray[np.int64]) -> NDArray[np.float32]:
        out = np.full((len(ranks), len(steps)), np.nan, np.float32)
        out[row[chosen], column[chosen]] = values[chosen]
        return out

    every = np.ones(len(totals), bool)
    end = placed(every, totals["end_ts"].to_numpy())
    found = {
        WAITING: placed(every, totals["wait_peer_ns"].to_numpy()),
        LATE: end - np.nanmin(end, axis=0) if end.size else end,
    }
    engine = totals["engine"].astype(str).to_numpy()
    for name in dict.fromkeys(engine.tolist()):
        busy = placed(engine == name, totals["busy_ns"].to_numpy())
        if np.nanmax(busy, initial=0) > 0:
            found[f"{name} busy"] = busy
    together = max(1, -(-len(ranks) * len(steps) // _MOST_CELLS))
    at = np.arange(0, len(steps), together)
    return Map(ranks, steps[at], {name: _largest(values, at) for name, values in found.items()})


def _largest(values: NDArray[np.float32], at: NDArray[np.int64]) -> NDArray[np.float32]:
    """The largest of the columns from each place to the next."""
    return np.fmax.reduceat(values, at, axis=1) if len(at) else values
