"""How busy each engine was."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from neuronprof.analyze.analyzer import EVALUATION, Analyzer, Chip, Context, Scope, State
from neuronprof.terms import Engine
from neuronprof.trace import schema

if TYPE_CHECKING:
    import pandas as pd

_MEASURES = ("busy_ns", "window_ns", "busy")


@dataclass(frozen=True)
class Utilization(Analyzer):
    """Share of the steps' time in which each engine had at least one event running, by the union of their intervals.

    busy = busy_ns / window_ns, both added over the ranks and training steps of the row. Evaluation stands as step -1 in the table by
    step and is left out of the others.
    """

    name: ClassVar[str] = "utilization"
    scope: ClassVar[Scope] = Scope.MOMENT
    needs: ClassVar[tuple[str, ...]] = schema.select("engine")
    keys: ClassVar[dict[str, tuple[str, ...]]] = {"spans": ("rank", "step", "engine")}
    tables: ClassVar[dict[str, tuple[str, ...]]] = {
        "utilization": ("engine", *_MEASURES),
        "utilization_by_rank": ("rank", "engine", *_MEASURES),
        "utilization_by_step": ("step", "engine", *_MEASURES),
    }

    def map(self, chip: Chip) -> State:
        """Busy nanoseconds of each rank, step and engine."""
        import pandas as pd

        rows = [
            (span.rank, span.window.step, place, span.of([engine]).busy(), span.window.time_ns)
            for span in chip.spans
            for place, engine in enumerate(Engine)
        ]
        frame = pd.DataFrame(rows, columns=["rank", "step", "engine", "busy_ns", "window_ns"], dtype="int64")
        return {"spans": frame.groupby(["rank", "step", "engine"], as_index=False).sum()}

    def finish(self, state: State, _context: Context) -> State:
        """Sums over ranks and steps, engines in their usual order."""
        spans = state["spans"]
        steps = spans[spans["step"] != EVALUATION]
        return {
            "utilization": _shares(_every_engine(steps), ["engine"]),
            "utilization_by_rank": _shares(steps, ["rank", "engine"]),
            "utilization_by_step": _shares(spans, ["step", "engine"]),
        }


def _every_engine(spans: "pd.DataFrame") -> "pd.DataFrame":
    """With a row of zeros for each engine, so that also a trace without events has them all."""
    import pandas as pd

    zeros = {name: [0] * len(Engine) for name in spans}
    return pd.concat([spans, pd.DataFrame({**zeros, "engine": range(len(Engine))})], ignore_index=True)


def _shares(spans: "pd.DataFrame", by: list[str]) -> "pd.DataFrame":
    table = spans.groupby(by, as_index=False)[["busy_ns", "window_ns"]].sum()
    table["busy"] = table["busy_ns"] / table["window_ns"]
    table["engine"] = [str(tuple(Engine)[position]) for position in table["engine"]]
    return table
