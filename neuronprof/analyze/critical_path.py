"""The chain of events, over all ranks, that sets the length of a step; what it is made of, and how much room everything else has."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze import arbitration, replay
from neuronprof.analyze.analyzer import State
from neuronprof.analyze.attribution import LATE_START, STEP_END
from neuronprof.analyze.flow import WAITS, Step
from neuronprof.analyze.walk import Walk, Whole
from neuronprof.terms import Engine

if TYPE_CHECKING:
    import pandas as pd

LATENCY = "latency"
_WORDS = ("engine", "name", "op_name", "layer", "phase", "source")
_BY = {"engine": "engine", "operator": "op_name", "layer": "layer", "rank": "rank"}


@dataclass(frozen=True)
class Path:
    """Rows of a step in the order of time; each is on the path for time_ns, after latency_ns in which nothing on the path ran."""

    rows: NDArray[np.int64]
    time_ns: NDArray[np.int64]
    latency_ns: NDArray[np.int64]
    tail_ns: int


@dataclass(frozen=True)
class CriticalPath(Walk):
    """The chain of events that sets the length of the median step, over all ranks; its times and latencies add up to the step exactly.

    From the event that ends last back along released_by, from rank to rank; where that event is not in the trace, along the dependency that
    ends last. time_ns: of the step, while the event ran and was on the path; latency_ns: before it, from the end of what released it (the
    start of a DMA, a late host). critical_path_by: the same by engine, operator, layer, rank, and link (mesh axis) of what moves between
    ranks; each adds up to the step. critical_path_slack: of the events of an operator on an engine the least time by which one could end
    later without the step ending later, and how much of them is on the path.
    """

    name: ClassVar[str] = "critical_path"
    tables: ClassVar[dict[str, tuple[str, ...]]] = {
        "critical_path": ("step", "id", "rank", *_WORDS, "waited_for", "start_ts", "time_ns", "latency_ns"),
        "critical_path_by": ("by", "value", "time_ns", "share"),
        "critical_path_slack": ("engine", "op_name", "layer", "events", "time_ns", "on_path_ns", "slack_ns"),
    }

    def answer(self, whole: Whole) -> State:
        """The path of the typical step."""
        import pandas as pd

        step = whole.step
        if step is None:
            return {name: pd.DataFrame(columns=list(columns)) for name, columns in self.tables.items()}
        none = np.zeros(len(WAITS), bool)
        again = arbitration.solve(step, arbitration.unchanged(step), none, changed=False)
        by = np.where(step.released >= 0, step.released, again.by).astype(np.int32)
        path = follow(step, step.start, step.end, by, step.window.end)
        return {
            "critical_path": _rows(step, path, again.why)[list(self.tables["critical_path"])],
            "critical_path_by": composition(step, path),
            "critical_path_slack": _slack(step, path),
        }


def _graph(step: Step) -> tuple[NDArray[Any], ...]:
    return step.ptr, step.source, step.why, step.delay, step.meeting


def follow(step: Step, start: NDArray[np.int64], end: NDArray[np.int64], by: NDArray[np.int32], until: int) -> Path:
    """The path of a step with these times, in which `by` let each row start, and which ends at `until`."""
    own = np.flatnonzero(step.parent < 0)
    if not len(own):
        none = np.zeros(0, np.int64)
        return Path(none, none, none, until - step.window.start)
    last = int(own[end[own].argmax()])
    rows = replay.chain(by, last)
    leaves = np.minimum(end[rows], np.append(start[rows[1:]], end[last]))
    before = np.append(step.window.start, leaves[:-1])
    return Path(rows, leaves - start[rows], start[rows] - before, until - int(end[last]))


def _rows(step: Step, path: Path, why: NDArray[np.int8]) -> "pd.DataFrame":
    import pandas as pd

    events = step.events.take(path.rows)
    words = {name: events.text(name, events[name]) for name in _WORDS}
    return pd.DataFrame(
        {
            "step": step.window.step,
            "id": events["id"],
            "rank": events["rank"],
            **words,
            "waited_for": np.array(WAITS, object)[why[path.rows]],
            "start_ts": step.start[path.rows],
            "time_ns": path.time_ns,
            "latency_ns": path.latency_ns,
        }
    )


def composition(step: Step, path: Path) -> "pd.DataFrame":
    """Time on the path by engine, operator, layer, rank and link; the rest of each is latency and the step's end."""
    import pandas as pd

    events = step.events.take(path.rows)
    columns = {
        by: events.text(name, events[name]) if name in events.words else events[name] for by, name in _BY.items()
    }
    group = events.text("replica_group", events["replica_group"])
    columns["link"] = np.where(events.among("engine", [Engine.CC]), [text.partition(":")[0] for text in group], "none")
    first = path.latency_ns[:1].sum()
    rest = {LATE_START: int(first), LATENCY: int(path.latency_ns.sum() - first), STEP_END: path.tail_ns}
    frames = []
    for by, values in columns.items():
        table = pd.DataFrame({"value": [str(v) for v in values], "time_ns": path.time_ns})
        added = pd.DataFrame({"value": list(rest), "time_ns": list(rest.values())})
        table = pd.concat([table, added[added["time_ns"] > 0]]).groupby("value", as_index=False).sum()
        frames.append(table.assign(by=by).sort_values(["time_ns", "value"], ascending=[False, True]))
    found = pd.concat(frames, ignore_index=True)
    total = int(path.time_ns.sum() + path.latency_ns.sum()) + path.tail_ns
    return found.assign(share=found["time_ns"] / max(total, 1))[["by", "value", "time_ns", "share"]]


def _slack(step: Step, path: Path) -> "pd.DataFrame":
    import pandas as pd

    room = replay.slack(*_graph(step), step.lag, step.start, step.end, step.start + step.wire, step.end_ts)
    on_path = np.zeros(len(step), np.int64)
    on_path[path.rows] = path.time_ns
    own = np.flatnonzero(step.parent < 0)
    events = step.events.take(own)
    keys = ["engine", "op_name", "layer"]
    frame = pd.DataFrame({name: events[name] for name in keys})
    frame = frame.assign(events=1, time_ns=step.duration[own], on_path_ns=on_path[own], slack_ns=room[own])
    table = frame.groupby(keys, as_index=False).agg(
        events=("events", "sum"),
        time_ns=("time_ns", "sum"),
        on_path_ns=("on_path_ns", "sum"),
        slack_ns=("slack_ns", "min"),
    )
    for name in keys:
        table[name] = events.text(name, table[name].to_numpy())
    order = ["slack_ns", "on_path_ns", *keys]
    return table.sort_values(order, ascending=[True, False, True, True, True], ignore_index=True)
