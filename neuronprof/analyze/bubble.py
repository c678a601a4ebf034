"""The time a pipeline stage waits for its neighbours, by what makes it wait."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze.analyzer import Context, Span
from neuronprof.terms import COMPUTE_ENGINES, Phase

if TYPE_CHECKING:
    import pandas as pd

WARM_UP, STEADY, COOL_DOWN, IMBALANCE = "warm-up", "steady", "cool-down", "imbalance"
_TAKEN_FROM = (STEADY, COOL_DOWN, WARM_UP)  # where imbalance shows first: an even pipeline has no bubble in between
_BUSY = ("compute", "memory", "communication")


def phases(span: Span, event: NDArray[Any]) -> NDArray[np.object_]:
    """Warm-up, steady or cool-down of pieces of a rank's bubble. event: the row that each belongs to, -1 for the end of the step."""
    compute = span.events.among("engine", COMPUTE_ENGINES)
    backward = span.start[compute & span.events.among("phase", [Phase.BACKWARD, Phase.RECOMPUTE])]
    forward = span.end[compute & span.events.among("phase", [Phase.FORWARD])]
    turn = backward.min(initial=span.window.end)
    over = forward.max() if len(forward) else span.window.end
    at = np.append(span.start, span.window.end)[event]
    return np.where(at <= turn, WARM_UP, np.where(at > over, COOL_DOWN, STEADY)).astype(object)


def with_imbalance(ranks: "pd.DataFrame", context: Context) -> "pd.DataFrame":
    """Takes out of each rank's bubble what the busiest rank of the step works longer than it, as a detail of its own.

    Args:
        ranks: step, rank, part, detail, bound, time_ns.
        context: of a run without pipeline nothing changes.
    """
    import pandas as pd

    piped = ranks[ranks["part"] == "bubble"]
    if piped.empty or int((context.metadata.get("pipeline") or {}).get("count") or 2) < 2:
        return ranks
    place = ["step", "rank"]
    busy = ranks[ranks["part"].isin(_BUSY)].groupby(place)["time_ns"].sum()
    gap = (busy.groupby("step").transform("max") - busy).rename("gap")
    wide = piped.pivot_table(index=place, columns="detail", values="time_ns", aggfunc="sum", fill_value=0)
    wide = wide.reindex(columns=[*_TAKEN_FROM, IMBALANCE], fill_value=0).astype(np.int64)
    left = gap.reindex(wide.index).fillna(0).astype(np.int64)
    for detail in _TAKEN_FROM:
        taken = np.minimum(wide[detail], left)
        wide[detail] -= taken
        wide[IMBALANCE] += taken
        left = left - taken
    rows = wide.reset_index().melt(place, var_name="detail", value_name="time_ns")
    rows = rows[rows["time_ns"] > 0].assign(part="bubble", bound="")
    both = pd.concat([ranks[ranks["part"] != "bubble"], rows[list(ranks.columns)]], ignore_index=True)
    return both.sort_values(["step", "rank", "part", "detail", "bound"], ignore_index=True)
