"""How much of the PE array products keep at work, from what their durations were computed with, and what dI/dt throttling costs them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze import durations
from neuronprof.analyze.analyzer import EVALUATION, Analyzer, Chip, Context, Events, Scope, State
from neuronprof.analyze.flow import quantity
from neuronprof.analyze.grouping import Groups
from neuronprof.terms import Engine
from neuronprof.trace import schema

if TYPE_CHECKING:
    pass

_PRODUCTS = (
    "matmul",
    "matmul_tile",
    "matmul_cold",
)  # formulas whose operands are M stationary, K contracted and N moving
_OPERATOR = ("op_name", "layer", "phase", "source")
_SUMS = ("products", "time_ns", "unfilled_ns", "throttled_ns")


@dataclass(frozen=True)
class PeArray(Analyzer):
    """Products by operator: how much of the PE array they keep at work, and how long they take for what they leave empty.

    fill: share of the array's cells and cycles that the products need, the mean over their time; unfilled_ns: the time of the rest, of
    time_ns; throttled_ns: how much longer they took while the array was cold (dI/dt throttling; told with --detail). operands: of the
    product that takes most of the time. time_ns: over all ranks and training steps; share: of that sum.
    """

    name: ClassVar[str] = "pe_array"
    scope: ClassVar[Scope] = Scope.MOMENT
    needs: ClassVar[tuple[str, ...]] = schema.select("engine", "operands", *_OPERATOR)
    keys: ClassVar[dict[str, tuple[str, ...]]] = {"products": ("operands", *_OPERATOR)}
    tables: ClassVar[dict[str, tuple[str, ...]]] = {"pe_array": (*_OPERATOR, *_SUMS, "fill", "share", "operands")}

    def map(self, chip: Chip) -> State:
        """Number and time of the products of each operator and size."""
        import pandas as pd

        events = chip.events
        words = [word for word in events.words["operands"] if _sides(word)]
        rows = events.take(
            events.among("engine", [Engine.TENSOR]) & events.among("operands", words) & (events["step"] != EVALUATION)
        )
        keys = self.keys["products"]
        found = Groups(*(rows[name] for name in keys))
        frame = pd.DataFrame({name: rows.text(name, codes) for name, codes in zip(keys, found.keys, strict=True)})
        frame["products"] = found.count
        frame["time_ns"] = found.sum(rows["duration_ns"])
        return {"products": frame}

    def finish(self, state: State, context: Context) -> State:
        """What is left empty; the operators that lose most first."""
        table = (
            state["products"].sort_values(["time_ns", *_OPERATOR, "operands"], ascending=[False, *[True] * 5]).copy()
        )
        words = table["operands"].unique().tolist()
        fill, throttled = ({word: share(word, context) for word in words} for share in (_fill, _throttled))
        table["throttled_ns"] = table["time_ns"] * table["operands"].map(throttled).astype(float)
        table["unfilled_ns"] = table["time_ns"] * (1 - table["operands"].map(fill).astype(float))
        found = table.groupby(list(_OPERATOR), as_index=False).agg(dict.fromkeys(_SUMS, "sum") | {"operands": "first"})
        found = found.sort_values(
            ["unfilled_ns", "time_ns", *_OPERATOR], ascending=[False, False, *[True] * 4], ignore_index=True
        )
        found["fill"] = 1 - found["unfilled_ns"] / found["time_ns"].clip(lower=1)
        found["share"] = found["time_ns"] / max(int(found["time_ns"].sum()), 1)
        for name in ("unfilled_ns", "throttled_ns"):
            found[name] = np.rint(found[name].to_numpy(float)).astype(np.int64)
        return {"pe_array": found[list(self.tables["pe_array"])]}


def fills(events: Events, context: Context) -> NDArray[np.float64]:
    """Of each row the share of the PE array that its product needs, 1 where it is no product or the trace does not tell."""
    by_word = np.array([*(_fill(word, context) for word in events.words["operands"]), 1.0])
    filled: NDArray[np.float64] = by_word[events["operands"]]
    return filled


def _sides(operands: str) -> Mapping[str, float]:
    """What a product multiplies, K, M and N; empty of what is no product, or does not tell."""
    sides = durations.read_operands(operands)[1] if operands.partition(" ")[0] in _PRODUCTS else {}
    return sides if sides.keys() >= {"K", "M", "N"} else {}


def _fill(operands: str, context: Context) -> float:
    """K rows and M columns work in whole arrays, and each pass over N moving columns takes at least the shortest time of an instruction.

    Source: NKI guide, Trainium architecture, tensor engine.
    """
    rows, columns = quantity(context, "tensor.rows"), quantity(context, "tensor.columns")
    sides = _sides(operands)
    if not sides or not np.isfinite(rows * columns):
        return 1.0
    shortest = max(quantity(context, "tensor.interval_min"), quantity(context, "tensor.weight_load"))
    moving = shortest * np.ceil(sides["N"] / quantity(context, "tensor.moving_max"))
    return float(_whole(sides["K"], rows) * _whole(sides["M"], columns) * sides["N"] / max(sides["N"], moving))


def _whole(side: float, array: float) -> float:
    """The share of arrays that a side fills."""
    return float(side / (array * np.ceil(side / array)))


def _throttled(operands: str, context: Context) -> float:
    """The share of a product's time by which it is longer for a cold array, as its formula (matmul_cold) has it."""
    name, given = durations.read_operands(operands)
    longer = given.get("cold", 0.0) * (1 / quantity(context, "tensor.cold_speed", 1.0) - 1)
    return longer / (1 + longer) if name == "matmul_cold" else 0.0
