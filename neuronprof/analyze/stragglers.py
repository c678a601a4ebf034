"""Who comes last to the collectives, why, and what the step would take if they were as quick as the others."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze import changes, lateness
from neuronprof.analyze.analyzer import Context, State
from neuronprof.analyze.changes import Change, programs
from neuronprof.analyze.flow import Step
from neuronprof.analyze.walk import Walk, Whole
from neuronprof.terms import COMPUTE_ENGINES, Engine, WaitFor

if TYPE_CHECKING:
    import pandas as pd

_SLOWER = 1.05  # times the median of like ranks; less is within the jitter of healthy ones
_OF_CHIPS = ("slow chip", "slow HBM", "slow link")  # what all ranks of a chip share
_LATE_HOST = "late host"
_PRICED = 4  # ranks whose price is computed
_CAUSES = {
    **dict.fromkeys(COMPUTE_ENGINES, "compute"),
    Engine.DMA: "memory",
    Engine.CC: "collective",
    Engine.HOST: "host",
}


@dataclass(frozen=True)
class Stragglers(Walk):
    """Ranks by the time that others wait for them at collectives of the median step, why, and what the step would gain without it.

    blamed_ns: time that others wait, over all ranks; last: collectives to which the rank comes last, of those at which somebody waits.
    cause: slow chip (all its engines take longer than on the median of the ranks with the same program), slow tensor engine (as throttling
    makes it), slow HBM, slow link, late host; else uneven work. gain_ns: of the step, by what-if, if the rank (of what a chip
    shares: its chip; of a late host: all ranks that begin as late) were as the others; of the worst four. arrivals: who came last to
    each collective, how long after the first, and from what. stragglers_every_rank: all ranks of the job, also those that are not written,
    by how late they come, from what the trace tells of each (lateness.every_rank says how).
    """

    name: ClassVar[str] = "stragglers"
    tables: ClassVar[dict[str, tuple[str, ...]]] = {
        "stragglers": ("rank", "chip", "last", "blamed_ns", "cause", "slower", "gain_ns", "gain"),
        "arrivals": (
            "step",
            "collective",
            "name",
            "replica_group",
            "start_ts",
            "last_rank",
            "skew_ns",
            "waited_ns",
            "cause",
            "op_name",
            "layer",
        ),
        "stragglers_every_rank": lateness.COLUMNS,
    }

    def answer(self, whole: Whole) -> State:
        """Arrivals of the typical step, added up by who came last."""
        import pandas as pd

        step = whole.step
        every = {"stragglers_every_rank": lateness.every_rank(whole.trace.totals)}
        if step is None or not len(step):
            return {name: pd.DataFrame(columns=list(columns)) for name, columns in self.tables.items()} | every
        arrivals = _arrivals(step)
        table = blamed(arrivals)
        chip = dict(zip(step.events["rank"].tolist(), step.events["chip"].tolist(), strict=True))
        table["chip"] = [chip[rank] for rank in table["rank"]]
        causes = [cause(step, whole.context, int(rank)) for rank in table["rank"]]
        table["cause"], table["slower"] = [c for c, _ in causes], [s for _, s in causes]
        table["gain_ns"] = [
            _gain(step, whole.context, int(rank), causes[n][0]) if n < _PRICED else np.nan
            for n, rank in enumerate(table["rank"])
        ]
        table["gain"] = table["gain_ns"] / max(step.window.time_ns, 1)
        return {"stragglers": table[list(self.tables["stragglers"])], "arrivals": arrivals} | every


def waited_for(step: Step) -> "pd.DataFrame":
    """Ranks by how long others wait for them at collectives: rank, last, blamed_ns."""
    return blamed(_arrivals(step))


def blamed(arrivals: "pd.DataFrame") -> "pd.DataFrame":
    """The same from the table of arrivals."""
    late = arrivals[arrivals["waited_ns"] > 0]
    table = late.groupby("last_rank", as_index=False).agg(last=("waited_ns", "size"), blamed_ns=("waited_ns", "sum"))
    table = table.sort_values(["blamed_ns", "last_rank"], ascending=[False, True], ignore_index=True)
    return table.rename(columns={"last_rank": "rank"})


def _arrivals(step: Step) -> "pd.DataFrame":
    """A row a collective of several ranks."""
    import pandas as pd

    events = step.events
    rows = np.flatnonzero(step.meeting >= 0)
    waited = np.where(events.among("wait_for", [WaitFor.PEER])[rows], events["wait_ns"][rows], 0)
    order = np.lexsort((events["rank"][rows], waited, step.meeting[rows]))
    rows, waited = rows[order], waited[order]
    first = np.flatnonzero(np.diff(step.meeting[rows], prepend=-1))
    last = rows[first]  # who waits least comes last
    before = step.released[last]
    engines = events.text("engine", np.append(events["engine"], -1)[before])
    columns = {name: events.text(name, events[name][last]) for name in ("name", "replica_group")}
    labels = {name: events.text(name, np.append(events[name], -1)[before]) for name in ("op_name", "layer")}
    return pd.DataFrame(
        {
            "step": step.window.step,
            "collective": events["collective"][last],
            **columns,
            "start_ts": step.start[last],
            "last_rank": events["rank"][last],
            "skew_ns": np.maximum.reduceat(waited, first) if len(first) else waited,
            "waited_ns": np.add.reduceat(waited, first) if len(first) else waited,
            "cause": [_CAUSES.get(engine, "unknown") for engine in engines],
            **labels,
        }
    )


def cause(step: Step, context: Context, rank: int) -> tuple[str, float]:
    """What is slow about a rank, and how many times as slow as the median of the ranks with its program (NaN: nobody else runs it)."""
    for rows in programs(step, context):
        mine = step.events["rank"][rows[:, 0]] == rank
        if mine.any():
            return _compared(step, rows, mine) if len(rows) > 1 else ("uneven work", np.nan)
    return "uneven work", np.nan


def _compared(step: Step, rows: NDArray[np.intp], mine: NDArray[np.bool_]) -> tuple[str, float]:
    events, own = step.events, rows[mine][0]

    def slower(times: NDArray[np.int64], of: NDArray[np.bool_]) -> float:
        chosen = of[own]
        usual = np.median(times[rows[~mine][:, chosen]], axis=0).sum() if chosen.any() else 0
        return float(times[own[chosen]].sum() / usual) if usual else 1.0

    tensor = slower(step.duration, events.among("engine", [Engine.TENSOR]))
    lanes = slower(step.duration, events.among("engine", [e for e in COMPUTE_ENGINES if e is not Engine.TENSOR]))
    memory = slower(step.duration, events.among("engine", [Engine.DMA]))
    link = slower(step.wire, step.wire > 0)
    late = int(step.start[own].min()) > int(np.median(step.start[rows[~mine]].min(axis=1)))
    found = {"slow chip": min(tensor, lanes), "slow tensor engine": tensor, "slow HBM": memory, "slow link": link}
    for cause, times in found.items():
        if times > _SLOWER:
            return cause, times
    return (_LATE_HOST, 1.0) if late else ("uneven work", max(tensor, lanes, memory))


def suffering(step: Step, context: Context, rank: int, cause: str) -> NDArray[np.bool_]:
    """Rows of the rank, of its chip where that is what is slow, or of all ranks that begin as late, as those of one host do."""
    events = step.events
    if cause == _LATE_HOST:
        return _as_late(step, context, rank)
    found: NDArray[np.bool_] = (
        events["chip"] == events["chip"][events["rank"] == rank][0] if cause in _OF_CHIPS else events["rank"] == rank
    )
    return found


def _as_late(step: Step, context: Context, rank: int) -> NDArray[np.bool_]:
    """Rows of ranks that begin, after the first with their program, at least half as late as this one."""
    late = np.zeros(len(step), np.int64)
    for rows in programs(step, context):
        first = step.start[rows].min(axis=1)
        late[rows] = (first - first.min())[:, None]
    found: NDArray[np.bool_] = 2 * late >= max(int(late[step.events["rank"] == rank][0]), 1)
    return found


def healed(step: Step, context: Context, rank: int, cause: str) -> Change | None:
    """The rank, its chip or its host, as the others with its program; None where there are none."""
    same = suffering(step, context, rank, cause)
    if any(same[rows[:, 0]].all() for rows in programs(step, context)):
        return None
    return changes.fixed(lambda _: same, f"Rank {rank}")


def _gain(step: Step, context: Context, rank: int, cause: str) -> float:
    change = healed(step, context, rank, cause)
    if change is None:
        return np.nan
    return float(step.window.time_ns - (changes.run(step, context, [change]).end_ts - step.window.start))
