"""What held each step back: its time split into classes, without gaps and without counting any instant twice."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze.analyzer import EVALUATION, Analyzer, Chip, Context, Scope, Span, State
from neuronprof.analyze.grouping import Groups
from neuronprof.analyze.split import codes, pieces, split
from neuronprof.trace import schema

if TYPE_CHECKING:
    import pandas as pd

# In the order in which an instant is given away, that of split.KINDS.
CLASSES = ("tensor", "vector", "scalar", "gpsimd", "hbm", "neuronlink", "waiting", "host", "idle")
LABELS = ("op_name", "layer", "phase", "source")
GROUPS = (*LABELS, "region")
NO_LABEL = -1


@dataclass(frozen=True)
class Bottlenecks(Analyzer):
    """Each step's time split by what held it back; the parts of a rank's step add up to the step exactly.

    An instant belongs to the first of these that holds: tensor, vector, scalar, gpsimd: that engine computes; hbm: a DMA or HBM transfer
    runs and nothing computes; neuronlink: a collective or link transfers, exposed; waiting: a collective waits for a peer; host: a
    launch, a synchronisation or a copy to or from the host; idle: none of them. It is charged to the operator of the event that defines
    it, the one that started first if there are several; idle time to the operator whose event ends it.
    """

    name: ClassVar[str] = "bottlenecks"
    scope: ClassVar[Scope] = Scope.MOMENT
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
        found = Groups(*(columns[name] for name in _KEYS))
        frame = pd.DataFrame({**dict(zip(_KEYS, found.keys, strict=True)), "time_ns": found.sum(columns["time_ns"])})
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
    found, every = split(span), np.arange(len(CLASSES))
    event, kind, spent = pieces(span, *GROUPS)
    idle = np.full(len(found.gap_start), len(CLASSES) - 1)
    event = np.concatenate([event, found.ended_by, np.full(len(every), NO_LABEL)])
    groups = Groups(np.concatenate([kind, idle, every]), *(codes(span, label, event) for label in GROUPS))
    time = np.concatenate([spent, found.gap_end - found.gap_start, np.zeros(len(every), np.int64)])
    columns = dict(zip(("class", *GROUPS), groups.keys, strict=True))
    place = {"rank": span.rank, "step": span.window.step}
    columns |= {name: np.full(len(groups), value) for name, value in place.items()}
    return columns | {"time_ns": groups.sum(time)}
