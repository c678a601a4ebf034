"""What held each step back: its time split into classes, without gaps and without counting any instant twice."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze import intervals
from neuronprof.analyze.analyzer import EVALUATION, Analyzer, Chip, Context, Span, State, distinct
from neuronprof.terms import Engine, WaitFor
from neuronprof.trace import schema

if TYPE_CHECKING:
    import pandas as pd

HOST_COPIES = ("COPY_TO_DEVICE", "COPY_TO_HOST")
ENGINES_OF_CLASS = {
    "tensor": (Engine.TENSOR,),
    "vector": (Engine.VECTOR,),
    "scalar": (Engine.SCALAR,),
    "gpsimd": (Engine.GPSIMD,),
    "hbm": (Engine.DMA, Engine.HBM),
    "neuronlink": (Engine.CC, Engine.NEURONLINK, Engine.EFA),
    "waiting": (Engine.CC,),
    "host": (Engine.HOST, Engine.DMA, Engine.HBM),
}
CLASSES = (*ENGINES_OF_CLASS, "idle")
LABELS = ("op_name", "layer", "phase", "source")
GROUPS = (*LABELS, "region")
NO_LABEL = -1

Pieces = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.intp]]


@dataclass(frozen=True)
class Bottlenecks(Analyzer):
    """Each step's time split by what held it back; the parts of a rank's step add up to the step exactly.

    An instant belongs to the first of these that holds: tensor, vector, scalar, gpsimd: that engine computes; hbm: a DMA or HBM transfer
    runs and nothing computes; neuronlink: a collective or link transfers, exposed; waiting: a collective waits for a peer; host: a
    launch, a synchronisation or a copy to or from the host; idle: none of them. It is charged to the operator of the event that defines
    it, the one that started first if there are several; idle time to the operator whose event ends it.
    """

    name: ClassVar[str] = "bottlenecks"
    needs: ClassVar[tuple[str, ...]] = schema.select("engine", "name", "wait_ns", "wait_for", *GROUPS)
    keys: ClassVar[dict[str, tuple[str, ...]]] = {
        "steps": ("rank", "step", "class"),
        "operators": ("evaluation", "class", *GROUPS),
    }
    tables: ClassVar[dict[str, tuple[str, ...]]] = {
        "bottlenecks": ("step", "rank", "class", "time_ns", "share"),
        "bottlenecks_by_layer": ("layer", "class", "time_ns", "per_step_ns", "share"),
        "bottlenecks_by_operator": ("class", *LABELS, "time_ns", "per_step_ns", "share"),
        "bottlenecks_by_region": ("region", "class", "time_ns", "per_step_ns", "share"),
    }

    def map(self, chip: Chip) -> State:
        """Nanoseconds by rank, step and class, and by class and operator over all ranks and steps."""
        import pandas as pd

        parts = [_split(span) for span in chip.spans]
        columns = {
            name: np.concatenate([part[name] for part in parts] or [np.zeros(0, np.int64)])
            for name in (*_KEYS, "time_ns")
        }
        rows, position = distinct([columns[name] for name in _KEYS])
        time = np.zeros(len(rows[0]), np.int64)
        np.add.at(time, position, columns["time_ns"])
        frame = pd.DataFrame({**dict(zip(_KEYS, rows, strict=True)), "time_ns": time})
        frame["evaluation"] = frame["step"] == EVALUATION
        operators = frame.groupby(["evaluation", "class", *GROUPS], as_index=False)[["time_ns"]].sum()
        operators = operators[operators["time_ns"] > 0]
        for label in GROUPS:
            operators[label] = chip.events.text(label, operators[label].to_numpy())
        steps = frame.groupby(["rank", "step", "class"], as_index=False)[["time_ns"]].sum()
        return {"steps": steps, "operators": operators.reset_index(drop=True)}

    def finish(self, state: State, _context: Context) -> State:
        """Shares of the step, costly rows first."""
        steps = state["steps"].sort_values(["step", "rank", "class"], ignore_index=True)
        steps["share"] = steps["time_ns"] / steps.groupby(["step", "rank"])["time_ns"].transform("sum").replace(
            0, np.nan
        )
        operators = state["operators"]
        operators = operators[~operators["evaluation"].astype(bool)]
        spans = len(steps[steps["step"] != EVALUATION][["step", "rank"]].drop_duplicates())
        finished = {
            "bottlenecks": steps[list(self.tables["bottlenecks"])],
            "bottlenecks_by_layer": _costs(operators, ["layer", "class"], spans),
            "bottlenecks_by_operator": _costs(operators, ["class", *LABELS], spans),
            "bottlenecks_by_region": _named(_costs(operators, ["region", "class"], spans)),
        }
        for table in finished.values():
            table["class"] = [CLASSES[position] for position in table["class"]]
        return finished


_KEYS = ("rank", "step", "class", *GROUPS)


def _costs(operators: "pd.DataFrame", by: list[str], spans: int) -> "pd.DataFrame":
    table = operators.groupby(by, as_index=False)[["time_ns"]].sum()
    table = table.sort_values(["time_ns", *by], ascending=[False, *[True] * len(by)], ignore_index=True)
    table["per_step_ns"] = table["time_ns"] / max(spans, 1)
    table["share"] = table["time_ns"] / max(int(table["time_ns"].sum()), 1)
    return table


def _named(table: "pd.DataFrame") -> "pd.DataFrame":
    return table[table["region"] != ""].reset_index(drop=True)


def _split(span: Span) -> dict[str, NDArray[Any]]:
    """The span's instants as rows of class, labels (codes) and nanoseconds; each class has at least one row, with zero nanoseconds."""
    found: list[tuple[int, NDArray[np.int64], NDArray[np.intp]]] = []
    taken = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    pieces: list[Pieces] = []
    for position, name in enumerate(ENGINES_OF_CLASS):
        start, end, row = _claims(span, name)
        low, high, of = intervals.subtract(start, end, *taken)
        found.append((position, high - low, row[of]))
        pieces.append((low, high, row[of]))
        taken = intervals.merge(np.concatenate((taken[0], low)), np.concatenate((taken[1], high)))
    low, high = intervals.gaps(*taken, span.window.start, span.window.end)
    found.append((len(CLASSES) - 1, high - low, _ended_by(high, pieces)))
    return _rows(span, found)


def _claims(span: Span, name: str) -> Pieces:
    """The instants that a class would take, before the classes above it: sorted, disjoint, each with the event it comes from."""
    events = span.events
    mine = events.among("engine", ENGINES_OF_CLASS[name])
    if name == "waiting":
        rows = np.flatnonzero(mine & events.among("wait_for", [WaitFor.PEER]) & (events["wait_ns"] > 0))
        end = events["start_ts"][rows]
        start = np.maximum(end - events["wait_ns"][rows], span.window.start)
    else:
        copies = events.among("name", HOST_COPIES)
        if name == "hbm":
            mine = mine & ~copies
        elif name == "host":
            mine = mine & (copies | events.among("engine", [Engine.HOST]))
        rows = np.flatnonzero(mine)
        start, end = span.start[rows], span.end[rows]
    low, high, of = intervals.partition(start, end)
    return low, high, rows[of]


def _ended_by(ends: NDArray[np.int64], pieces: list[Pieces]) -> NDArray[np.intp]:
    """For each gap the event whose piece starts where the gap ends; NO_LABEL at the end of the window."""
    starts = np.concatenate([low for low, _, _ in pieces])
    rows = np.concatenate([row for _, _, row in pieces])
    order = np.argsort(starts, kind="stable")
    at = np.searchsorted(starts[order], ends)
    known = at < len(starts)
    result = np.full(len(ends), NO_LABEL, np.intp)
    result[known] = rows[order][at[known]]
    return result


def _rows(span: Span, found: list[tuple[int, NDArray[np.int64], NDArray[np.intp]]]) -> dict[str, NDArray[Any]]:
    classes = np.concatenate([np.full(len(time) + 1, position) for position, time, _ in found])
    time = np.concatenate([np.append(time, 0) for _, time, _ in found])
    event = np.concatenate([np.append(row, NO_LABEL) for _, _, row in found])
    columns: dict[str, NDArray[Any]] = {
        "rank": np.full(len(time), span.rank),
        "step": np.full(len(time), span.window.step),
        "class": classes,
        "time_ns": time,
    }
    for label in GROUPS:
        columns[label] = np.append(span.events[label], NO_LABEL)[event]  # row -1 of the array is the label of no event
    return columns
