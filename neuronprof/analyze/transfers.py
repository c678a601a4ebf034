"""DMA transfers: which are too small for the bandwidth, what that costs, and what is spilled from SBUF."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze import durations
from neuronprof.analyze.analyzer import EVALUATION, Analyzer, Chip, Context, Events, Scope, State, add
from neuronprof.analyze.flow import HOST_COPIES, quantity
from neuronprof.analyze.grouping import Groups
from neuronprof.terms import Engine
from neuronprof.trace import schema

if TYPE_CHECKING:
    import pandas as pd

_OPERATOR = ("name", "op_name", "layer", "phase", "source")
_SIZE = (*_OPERATOR, "bytes")
_SUMS = ("transfers", "bytes", "time_ns", "small", "small_bytes", "lost_ns")


@dataclass(frozen=True)
class Transfers(Analyzer):
    """DMA transfers between HBM and SBUF in the training steps, by opcode and operator, and what small ones lose.

    SPILL_SAVE and SPILL_RELOAD are tensors that did not fit SBUF. small: transfers with less for each SBUF partition than the machine's DMA
    engines need for most of their bandwidth (dma.efficient, 2 KiB on Trainium); none where the trace does not tell of the machine. lost_ns:
    how much longer these took than their bytes would at a rank's HBM bandwidth. time_ns: sum of durations over all queues, ranks and steps;
    share: of that sum.
    """

    name: ClassVar[str] = "transfers"
    scope: ClassVar[Scope] = Scope.MOMENT
    needs: ClassVar[tuple[str, ...]] = schema.select("engine", *_SIZE)
    keys: ClassVar[dict[str, tuple[str, ...]]] = {"sizes": _SIZE}
    tables: ClassVar[dict[str, tuple[str, ...]]] = {
        "transfers": (*_OPERATOR, *_SUMS, "share"),
        "transfers_by_opcode": ("name", *_SUMS, "share"),
    }

    def map(self, chip: Chip) -> State:
        """Number and time of the transfers of each operator and size."""
        import pandas as pd

        events = chip.events
        moved = events.among("engine", [Engine.DMA]) & ~events.among("name", HOST_COPIES)
        rows = events.take(moved & (events["step"] != EVALUATION))
        found = Groups(*(rows[name] for name in _SIZE))
        frame = pd.DataFrame(dict(zip(_SIZE, found.keys, strict=True)))
        for name in _OPERATOR:
            frame[name] = events.text(name, frame[name].to_numpy(np.int64))
        frame["transfers"] = found.count
        frame["time_ns"] = found.sum(rows["duration_ns"])
        return {"sizes": add(list(_SIZE), frame)}

    def finish(self, state: State, context: Context) -> State:
        """What is small and what it loses; the longest first."""
        sizes = state["sizes"].copy()
        small = sizes["bytes"] < quantity(context, "dma.efficient", 0.0) * quantity(context, "memory.partitions", 0.0)
        ideal = sizes["bytes"] * sizes["transfers"] * 1e9 / context.limit("hbm_bandwidth")
        sizes["bytes"] *= sizes["transfers"]
        sizes["small"] = sizes["transfers"].where(small, 0)
        sizes["small_bytes"] = sizes["bytes"].where(small, 0)
        sizes["lost_ns"] = (sizes["time_ns"] - ideal).where(small, 0).fillna(0).clip(lower=0)
        return {
            "transfers": _shares(sizes, list(_OPERATOR))[list(self.tables["transfers"])],
            "transfers_by_opcode": _shares(sizes, ["name"])[list(self.tables["transfers_by_opcode"])],
        }


def pieces(rows: Events) -> NDArray[np.float64]:
    """Contiguous bytes that each DMA moves at a time, as its operands say; 0 where they do not."""
    words = rows.words["operands"]
    found = [durations.read_operands(word)[1].get("piece", 0.0) if word.startswith("dma ") else 0.0 for word in words]
    return np.array([*found, 0.0])[rows["operands"]]


def _shares(sizes: "pd.DataFrame", by: list[str]) -> "pd.DataFrame":
    table = sizes.groupby(by, as_index=False)[list(_SUMS)].sum()
    table["lost_ns"] = np.rint(table["lost_ns"].to_numpy(float)).astype(np.int64)
    table = table.sort_values(["time_ns", *by], ascending=[False, *[True] * len(by)], ignore_index=True)
    table["share"] = table["time_ns"] / max(int(table["time_ns"].sum()), 1)
    return table
