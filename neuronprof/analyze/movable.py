"""Element-wise work that another engine could do: how long it takes there, and what it frees here."""

from collections import ChainMap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from neuronprof import formula
from neuronprof.analyze.analyzer import EVALUATION, Analyzer, Chip, Context, Scope, State
from neuronprof.analyze.flow import quantity
from neuronprof.analyze.grouping import Groups
from neuronprof.errors import NeuronprofError
from neuronprof.formula import Formula
from neuronprof.terms import Engine
from neuronprof.trace import schema

if TYPE_CHECKING:
    import pandas as pd

# Which other engines have the instruction (NKI API reference, nki.isa: tensor_tensor, tensor_scalar, tensor_copy name theirs).
_ELSEWHERE = {
    "TENSOR_TENSOR": (Engine.VECTOR, Engine.GPSIMD),
    "TENSOR_SCALAR": (Engine.VECTOR, Engine.SCALAR, Engine.GPSIMD),
}
_LANES = (Engine.VECTOR, Engine.SCALAR, Engine.GPSIMD)
_OPERATOR = ("op_name", "layer", "phase", "source")
_WORK = ("engine", "name", "operands", *_OPERATOR)
_SUMS = ("instructions", "time_ns", "there_ns")


@dataclass(frozen=True)
class Movable(Analyzer):
    """Element-wise work by operator that another of vector, scalar and gpsimd could do: how long it would take there (`to`).

    Listed is what would go to an engine that is idle for longer than it. time_ns: what it takes here, and what moving it frees; there_ns:
    by the formula of the other engine; idle_ns: how long that one is idle. Times are sums over all ranks and training steps.
    """

    name: ClassVar[str] = "movable"
    scope: ClassVar[Scope] = Scope.MOMENT
    needs: ClassVar[tuple[str, ...]] = schema.select(*_WORK)
    keys: ClassVar[dict[str, tuple[str, ...]]] = {"work": _WORK, "engines": ("engine",)}
    tables: ClassVar[dict[str, tuple[str, ...]]] = {"movable": ("engine", "to", *_OPERATOR, *_SUMS, "idle_ns")}

    def map(self, chip: Chip) -> State:
        """Number and time of the instructions of each operator and size, and how long the engines are idle."""
        import pandas as pd

        events = chip.events
        own = events.among("name", _ELSEWHERE) & events.among("engine", _LANES) & (events["operands"] >= 0)
        rows = events.take(own & (events["step"] != EVALUATION))
        found = Groups(*(rows[name] for name in _WORK))
        work = pd.DataFrame({name: rows.text(name, codes) for name, codes in zip(_WORK, found.keys, strict=True)})
        work["instructions"] = found.count
        work["time_ns"] = found.sum(rows["duration_ns"])
        return {"work": work, "engines": pd.DataFrame({"engine": list(_LANES), "idle_ns": self._idle(chip)})}

    @staticmethod
    def _idle(chip: Chip) -> list[int]:
        """Of each engine, over the chip's ranks and training steps."""
        idle = [0] * len(_LANES)
        for span in chip.spans:
            if span.window.step == EVALUATION:
                continue
            for position, engine in enumerate(_LANES):
                idle[position] += span.window.time_ns - span.of([engine]).busy()
        return idle

    def finish(self, state: State, context: Context) -> State:
        """What fits where; what frees most first."""
        import pandas as pd

        work, idle = state["work"], dict(zip(state["engines"]["engine"], state["engines"]["idle_ns"], strict=True))
        found = [self._moved(work, to, context) for to in _LANES] if _known(context) else []
        keys = ["engine", "to", *_OPERATOR]
        table = pd.concat([work.assign(to="", there_ns=0.0).iloc[:0], *found], ignore_index=True)
        table = table.groupby(keys, as_index=False)[list(_SUMS)].sum()
        table["there_ns"] = np.rint(table["there_ns"].to_numpy(float)).astype(np.int64)
        table["idle_ns"] = table["to"].map(idle).astype(np.int64)
        table = table[table["there_ns"] < table["idle_ns"]]
        table = table.sort_values(["time_ns", "there_ns", *keys], ascending=[False, *[True] * 7], ignore_index=True)
        return {"movable": table[list(self.tables["movable"])]}

    @staticmethod
    def _moved(work: "pd.DataFrame", to: Engine, context: Context) -> "pd.DataFrame":
        """The work that `to` could do for others, with the time it takes there."""
        can = [name for name, engines in _ELSEWHERE.items() if to in engines]
        mine = work[work["name"].isin(can) & (work["engine"] != to)]
        each = mine["operands"].map(_seconds(mine["operands"].unique(), to, context)).astype(float)
        return mine.assign(to=str(to), there_ns=each * 1e9 * mine["instructions"])


def _known(context: Context) -> bool:
    """Whether the trace keeps the formulas of engines that work beside each other; those of a GPU are one and the same."""
    formulas = context.metadata.get("formulas") or {}
    return Engine.VECTOR in formulas and not np.isfinite(quantity(context, "kernels.gap"))


def _seconds(operands: Iterable[str], engine: Engine, context: Context) -> dict[str, float]:
    """How long instructions would take on an engine: its own formula, or that of the vector engine with its numbers."""
    try:
        kept = context.metadata["formulas"]
        text = kept[engine]["text"] if engine in kept else kept[Engine.VECTOR]["text"].replace("vector.", f"{engine}.")
        own = Formula(text, {})
        numbers: dict[str, Any] = {name: q["value"] for name, q in context.metadata["machine"]["quantities"].items()}
        numbers |= {name: given["value"] for name, given in context.metadata["given"].items()}
        given = {word: ChainMap(formula.read(word)[1], numbers) for word in operands}
        return {word: float(own.evaluate(scope)[formula.RESULT]) for word, scope in given.items()}
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise NeuronprofError("The formulas of the trace cannot be read; record it again.") from error
