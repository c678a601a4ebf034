"""Every rank of a job, also those whose events are not in the trace: what each did in a step, on average."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("rank", "chip", "core", "stage", "wait_peer_ns", "busy_ns", "engine")


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
