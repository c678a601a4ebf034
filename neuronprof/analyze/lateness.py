"""Every rank of a job by how late it comes, also those whose events are not in the trace: from the sums that the trace keeps of all."""

from typing import TYPE_CHECKING

import numpy as np

from neuronprof.terms import Engine

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("rank", "chip", "core", "stage", "late_ns", "cause", "slower")
NOTHING = ""
_SLOWER = 1.05  # times the median of the stage; less is within the jitter of healthy ranks
_OF_STEP = 0.01  # of the step: a rank that is no later than this is not late
_LANES = (Engine.VECTOR, Engine.SCALAR, Engine.GPSIMD)


def every_rank(totals: "pd.DataFrame") -> "pd.DataFrame":
    """A row a rank, the latest first.

    totals: the ranks table of the trace. late_ns: by how much less the rank waits for others than the median rank of its pipeline stage,
    mean of the training steps: whom others wait for waits least. Of an even number of ranks the better one of the middle is taken.
    cause, slower: of the engines that are busy for longer than on that median rank, and how many times as long; 'late host' where none is
    and the rank is late all the same; '' where it is not late either. A slow link makes nobody late: all of its group take as long.
    """
    import pandas as pd

    totals = totals[totals["step"] >= 0]
    if totals.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    place = ["rank", "chip", "core", "stage"]
    waits = totals.groupby([*place, "step"])["wait_peer_ns"].first().groupby(place).mean()
    busy = totals.assign(engine=totals["engine"].astype(str)).pivot_table(
        "busy_ns", place, "engine", "mean", fill_value=0
    )
    stage = busy.index.get_level_values("stage")
    late = waits.groupby(level="stage").transform("quantile", 0.5, interpolation="higher") - waits
    step = totals.groupby("step")["end_ts"].max().diff().median()
    times = {name: _times(busy, engines, stage) for name, engines in _PARTS.items()}
    found = pd.DataFrame({"late_ns": late, **times})
    found["cause"], found["slower"] = _cause(found, _OF_STEP * (step if step > 0 else totals["end_ts"].max()))
    found = found.reset_index().sort_values(
        ["late_ns", "slower", "rank"], ascending=[False, False, True], ignore_index=True
    )
    return found[list(COLUMNS)]


_PARTS = {"tensor": (Engine.TENSOR,), "lanes": _LANES, "memory": (Engine.DMA,)}


def _times(busy: "pd.DataFrame", engines: tuple[Engine, ...], stage: "pd.Index[int]") -> "pd.Series[float]":
    """How many times as long as on the median rank of the stage the engines are busy."""
    own = busy.reindex(columns=[str(engine) for engine in engines], fill_value=0).sum(axis=1)
    usual = own.groupby(stage).transform("quantile", 0.5, interpolation="lower")
    return (own / usual.where(usual > 0)).fillna(1.0)


def _cause(found: "pd.DataFrame", least: float) -> tuple[list[str], list[float]]:
    """The first of the causes that `stragglers` knows, and the times as long that tell it."""
    chip = np.minimum(found["tensor"], found["lanes"])
    causes = {"slow chip": chip, "slow tensor engine": found["tensor"], "slow HBM": found["memory"]}
    cause = np.where(found["late_ns"] > least, "late host", NOTHING).astype(object)
    slower = np.ones(len(found))
    for name, times in reversed(causes.items()):
        cause[times > _SLOWER], slower = name, np.where(times > _SLOWER, times, slower)
    return cause.tolist(), slower.tolist()
