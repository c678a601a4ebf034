"""What fills HBM, and when it is fullest."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze.analyzer import Analyzer, Chip, Context, Events, Scope, State
from neuronprof.terms import ROLES, Kind, OnChip
from neuronprof.trace import schema

if TYPE_CHECKING:
    import pandas as pd

CATEGORIES = tuple(role.value for role in ROLES)


@dataclass(frozen=True)
class Memory(Analyzer):
    """Bytes held in a rank's HBM: the peak of each rank and what is in it then, and the level over time by category.

    memory: the rank with the highest peak. share: of the peak; capacity_share: of the rank's HBM. memory_over_time keeps at most `points`
    times a rank, in each stretch the one at which most was held.
    """

    points: int = 500

    name: ClassVar[str] = "memory"
    scope: ClassVar[Scope] = Scope.RANK
    only: ClassVar[dict[str, tuple[str, ...]]] = {"kind": (Kind.MEMORY,)}
    needs: ClassVar[tuple[str, ...]] = schema.select("engine", "name", "bytes")
    keys: ClassVar[dict[str, tuple[str, ...]]] = {"levels": ("rank", "start_ts")}
    tables: ClassVar[dict[str, tuple[str, ...]]] = {
        "memory": ("rank", "category", "bytes", "share", "capacity_share"),
        "memory_by_rank": ("rank", "step", "peak_ts", "peak_bytes", "capacity_bytes", "capacity_share"),
        "memory_over_time": ("rank", "start_ts", *CATEGORIES, "bytes"),
    }

    def map(self, chip: Chip) -> State:
        """The level of each rank at the times that are kept."""
        import pandas as pd

        of_hbm = chip.events.among("kind", [Kind.MEMORY]) & ~chip.events.among("engine", OnChip)
        rows = chip.events.take(of_hbm)
        empty = pd.DataFrame(
            np.zeros((0, len(CATEGORIES) + 3), np.int64), columns=["rank", "start_ts", *CATEGORIES, "step"]
        )
        found = [self._levels(rows.take(rows["rank"] == rank), int(rank)) for rank in np.unique(rows["rank"])]
        return {"levels": pd.concat([empty, *found], ignore_index=True)}

    def finish(self, state: State, context: Context) -> State:
        """Peaks and shares from the levels."""
        import pandas as pd

        levels = state["levels"].copy()
        levels["bytes"] = levels[list(CATEGORIES)].sum(axis=1)
        capacity = context.limit("hbm_capacity")
        peaks = (
            levels.sort_values(["bytes", "start_ts"], ascending=[False, True])
            .drop_duplicates("rank")
            .sort_values("rank")
        )
        by_rank = peaks.rename(columns={"start_ts": "peak_ts", "bytes": "peak_bytes"}).reset_index(drop=True)
        by_rank["capacity_bytes"] = capacity
        by_rank["capacity_share"] = by_rank["peak_bytes"] / capacity
        held = [] if levels.empty else _at_peak(peaks.sort_values(["bytes", "rank"], ascending=[False, True]).iloc[0])
        memory = pd.DataFrame(held, columns=["rank", "category", "bytes", "share"])
        memory["capacity_share"] = memory["bytes"] / capacity
        tables = {"memory": memory, "memory_by_rank": by_rank, "memory_over_time": levels}
        return {name: table[list(self.tables[name])] for name, table in tables.items()}

    def _levels(self, rows: Events, rank: int) -> "pd.DataFrame":
        """One rank's level at each change, thinned to `points`."""
        import pandas as pd

        codes = [list(rows.words["name"]).index(name) if name in rows.words["name"] else -2 for name in CATEGORIES]
        start, end, size = rows["start_ts"], rows["start_ts"] + rows["duration_ns"], rows["bytes"]
        times, at = np.unique(np.concatenate((start, end)), return_inverse=True)
        change = np.zeros((len(times), len(CATEGORIES)), np.int64)
        for column, code in enumerate(codes):
            mine = rows["name"] == code
            np.add.at(change[:, column], at[: len(start)][mine], size[mine])
            np.add.at(change[:, column], at[len(start) :][mine], -size[mine])
        level = np.cumsum(change, axis=0)
        step = np.zeros(len(times), np.int64)
        step[at[: len(start)]] = rows["step"]
        kept = _thinned(times, level.sum(axis=1), self.points)
        frame: dict[str, Any] = {"rank": np.full(len(kept), rank), "start_ts": times[kept]}
        frame |= {name: level[kept, column] for column, name in enumerate(CATEGORIES)}
        return pd.DataFrame({**frame, "step": step[kept]})


def _thinned(times: NDArray[np.int64], total: NDArray[np.int64], points: int) -> NDArray[np.intp]:
    """At most `points` rows: in each of as many equal stretches of time the first of those with the largest total; first and last stay."""
    if len(times) <= points:
        return np.arange(len(times))
    inner = np.arange(1, len(times) - 1)
    stretch = (times[inner] - times[0]) * (points - 2) // (times[-1] - times[0])
    order = np.lexsort((inner, -total[inner], stretch))
    first = np.concatenate(([True], np.diff(stretch[order]) > 0))
    return np.concatenate(([0], inner[order[first]], [len(times) - 1]))


def _at_peak(peak: "pd.Series[Any]") -> list[tuple[int, str, int, float]]:
    total = max(int(peak["bytes"]), 1)
    held = [(int(peak["rank"]), name, int(peak[name]), int(peak[name]) / total) for name in CATEGORIES if peak[name]]
    return sorted(held, key=lambda row: -row[2])
