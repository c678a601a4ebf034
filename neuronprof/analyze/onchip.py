"""How full SBUF and PSUM are."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from neuronprof.analyze import series
from neuronprof.analyze.analyzer import EVALUATION, Analyzer, Chip, Context, Events, Scope, State
from neuronprof.terms import HELD, Kind, OnChip
from neuronprof.trace import schema

_FIGURES = ("peak_bytes", "mean_bytes", "limit_bytes", "peak_share", "mean_share")
_HELD = tuple(f"{held}_bytes" for held in HELD)


@dataclass(frozen=True)
class OnChipUse(Analyzer):
    """Bytes that SBUF and PSUM hold in the training steps: the most at once, and the mean over time.

    on_chip: the rank with the fullest memory, and the mean over ranks. resident, tiles and partial_sums: what is held at the peak. Of tiles
    and partial sums, which come and go by the thousand, a trace tells the most of each few in a row, so that means are upper bounds.
    Shares are of a rank's SBUF or PSUM.
    """

    name: ClassVar[str] = "on_chip"
    scope: ClassVar[Scope] = Scope.RANK
    only: ClassVar[dict[str, tuple[str, ...]]] = {"kind": (Kind.MEMORY,), "engine": tuple(OnChip)}
    needs: ClassVar[tuple[str, ...]] = schema.select("engine", "name", "bytes")
    keys: ClassVar[dict[str, tuple[str, ...]]] = {"levels": ("rank", "memory")}
    tables: ClassVar[dict[str, tuple[str, ...]]] = {
        "on_chip": ("memory", "rank", "peak_ts", *_HELD, *_FIGURES),
        "on_chip_by_rank": ("rank", "memory", "peak_ts", *_FIGURES),
    }

    def map(self, chip: Chip) -> State:
        """Peak and area under the level of each rank's SBUF and PSUM."""
        import pandas as pd

        events = chip.events
        levels = events.take(events.among("kind", [Kind.MEMORY]) & (events["step"] != EVALUATION))
        found = []
        for code, memory in enumerate(OnChip):
            mine = levels.take(levels.among("engine", [memory]))
            found += [
                (int(rank), code, *_level(mine.take(mine["rank"] == rank))) for rank in np.unique(mine["rank"]).tolist()
            ]
        columns = ["rank", "memory", "peak_ts", "peak_bytes", *_HELD, "area"]
        return {"levels": pd.DataFrame(found, columns=columns).astype("int64")}

    def finish(self, state: State, context: Context) -> State:
        """Shares of what a rank has, and means over the steps' time."""
        table, memories = state["levels"].sort_values(["rank", "memory"]), [memory.value for memory in OnChip]
        limits = np.array([context.limit(f"{memory}_capacity") for memory in memories])
        steps = max(sum(window.time_ns for window in context.windows if window.step != EVALUATION), 1)
        code = table["memory"].to_numpy()
        table["memory"] = np.array(memories, object)[code]
        table["limit_bytes"] = limits[code]
        table["mean_bytes"] = table["area"] / steps
        table["peak_share"], table["mean_share"] = (
            table[name] / table["limit_bytes"] for name in ("peak_bytes", "mean_bytes")
        )
        fullest = table.sort_values(["peak_bytes", "rank"], ascending=[False, True]).drop_duplicates("memory")
        for name in ("mean_bytes", "mean_share"):
            fullest[name] = fullest["memory"].map(table.groupby("memory")[name].mean())
        fullest = fullest.sort_values("memory", ascending=False, ignore_index=True)
        return {
            "on_chip": fullest[list(self.tables["on_chip"])],
            "on_chip_by_rank": table[list(self.tables["on_chip_by_rank"])],
        }


def _level(rows: Events) -> tuple[int, ...]:
    """When most is held, how much that is, how much of each sort, and the sum of bytes times nanoseconds."""
    kinds = [list(rows.words["name"]).index(held) if held in rows.words["name"] else -2 for held in HELD]
    held = rows.take(np.isin(rows["name"], kinds))
    if not len(held):  # sorts that nobody knows
        return (0,) * (len(HELD) + 3)
    category = np.searchsorted(np.sort(kinds), held["name"])
    steps = series.held(held["start_ts"], held["duration_ns"], held["bytes"], np.argsort(kinds)[category], len(HELD))
    total = steps.value.sum(axis=1)
    peak = int(total.argmax())
    area = int((held["bytes"] * held["duration_ns"]).sum())
    return int(steps.time[peak]), int(total[peak]), *map(int, steps.value[peak]), area
