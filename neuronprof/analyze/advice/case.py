"""The step that rules look at: where its time goes, and what it would take with a change."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze import changes, flow, intervals, stragglers
from neuronprof.analyze.advice.wording import WORDING
from neuronprof.analyze.analyzer import Context, Events
from neuronprof.analyze.changes import Change, Mask
from neuronprof.analyze.flow import Step
from neuronprof.analyze.grouping import Groups
from neuronprof.terms import COMPUTE_ENGINES, Engine

if TYPE_CHECKING:
    import pandas as pd

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One step as a graph that can be run again. operators: the trace's operators table."""

    step: Step
    context: Context
    operators: "pd.DataFrame"

    @property
    def events(self) -> Events:
        """Its rows."""
        return self.step.events

    @property
    def time(self) -> int:
        """How long the step takes, nanoseconds."""
        return max(self.step.window.time_ns, 1)

    @cached_property
    def _rank(self) -> tuple[NDArray[Any], NDArray[np.int64]]:
        ranks, at = np.unique(self.events["rank"], return_inverse=True)
        return ranks, at.astype(np.int64)

    @property
    def ranks(self) -> NDArray[Any]:
        """The ranks that have events here, sorted."""
        return self._rank[0]

    @property
    def mesh(self) -> Mapping[str, int]:
        """Ranks by axis, as far as the trace tells."""
        return self.context.metadata.get("mesh") or {}

    @property
    def layout(self) -> Mapping[str, Any]:
        """How `record` was told to lay the script out; empty for traces from elsewhere."""
        return self.context.metadata.get("layout") or {}

    def say(self, what: str, **values: Any) -> str:
        """A change in words of the script's framework, from `wording`."""
        by_framework = WORDING[what]
        return by_framework.get(self.framework, by_framework[""]).format(**values)

    @cached_property
    def framework(self) -> str:
        """Of the script: torch, jax, or '' where nothing tells; traces of other tools do not say it but by their operators' names."""
        named = str(self.context.metadata.get("framework") or "")
        return named or ("torch" if any(name.startswith("aten") for name in self.events.words["op_name"]) else "")

    def quantity(self, name: str, default: float = np.nan) -> float:
        """A number of the machine's file, as 'tensor.fp32_passes'."""
        return flow.quantity(self.context, name, default)

    def on(self, *engines: Engine) -> Mask:
        """Rows of these engines."""
        return self.events.among("engine", engines)

    def among(self, column: str, words: Iterable[str]) -> Mask:
        """Rows with one of these words."""
        return self.events.among(column, words)

    def by_rank(self, rows: Mask, weights: NDArray[Any]) -> NDArray[np.float64]:
        """Sums over rows, one a rank."""
        return np.bincount(self._rank[1][rows], weights[rows], len(self.ranks)).astype(np.float64)

    def spent(self, rows: Mask) -> NDArray[np.int64]:
        """Nanoseconds in which at least one of the rows runs, one a rank."""
        return intervals.union_by(self._rank[1][rows], self.step.start[rows], self.step.end[rows], len(self.ranks))

    def mean(self, rows: Mask) -> float:
        """The same, as the mean of a rank."""
        return float(self.spent(rows).mean())

    @property
    def place(self) -> NDArray[np.int64]:
        """The place of each row's rank among `ranks`."""
        return self._rank[1]

    @cached_property
    def shapes(self) -> list[list[Shape]]:
        """Shapes of each operator's operands and results in the order of its text, by number; the last, -1, is of rows that have none."""
        found: list[list[Shape]] = [[] for _ in range(int(self.events["op"].max(initial=-1)) + 2)]
        texts = self.operators["shapes"].fillna("")
        for op, text in zip(self.operators["op"].tolist(), texts.tolist(), strict=True):
            if 0 <= op < len(found) - 1:
                shapes = re.findall(r"\(([\d, ]*)\)", text)
                found[op] = [tuple(map(int, re.findall(r"\d+", shape))) for shape in shapes]
        return found

    @property
    def stages(self) -> int:
        """Stages of the pipeline; 1 without."""
        return int((self.context.metadata.get("pipeline") or {}).get("count") or 1)

    def stage_of(self, ranks: NDArray[Any]) -> NDArray[Any]:
        """The pipeline stage of ranks."""
        stride = int((self.context.metadata.get("pipeline") or {}).get("stride") or 1)
        stage: NDArray[Any] = ranks // stride % self.stages
        return stage

    @cached_property
    def waited_for(self) -> list[tuple[int, int]]:
        """Ranks and the time that others wait for them at collectives, the longest first."""
        table = stragglers.waited_for(self.step)
        return list(zip(table["rank"].astype(int), table["blamed_ns"].astype(int), strict=True))

    @cached_property
    def exposed(self) -> NDArray[np.int64]:
        """How much of each row no compute engine of its rank hides, nanoseconds."""
        busy, found = self.on(*COMPUTE_ENGINES), self.step.duration.copy()
        for place in range(len(self.ranks)):
            mine = self._rank[1] == place
            union = intervals.merge(self.step.start[mine & busy], self.step.end[mine & busy])
            found[mine] -= intervals.covered(self.step.start[mine], self.step.end[mine], *union)
        return found

    def where(self, rows: Mask) -> str:
        """Operator, layers and source line on which the rows spend most: 'aten.mm, blocks.*.up (12 layers), model.py:40'."""
        at = np.flatnonzero(rows & (self.events["op_name"] >= 0))
        if not len(at):
            return ""
        place = Groups(*(self.events[name][at] for name in ("op_name", "source"))).position
        most = place == np.bincount(place, self.step.duration[at]).argmax()
        first = at[most][:1]
        layers = np.unique(self.events.text("layer", np.unique(self.events["layer"][at[most]])))
        patterns = {re.sub(r"\d+", "*", layer) for layer in layers.tolist()}
        shown = (
            layers[0] if len(layers) == 1 else f"{min(patterns)} ({len(layers)} layers)" if len(patterns) == 1 else ""
        )
        operator, source = (self.events.text(name, self.events[name][first])[0] for name in ("op_name", "source"))
        return ", ".join(filter(None, (operator, shown, source)))

    def gain(self, mend: Sequence[Change], remains: float = 0.0) -> float:
        """By how much the step is shorter with changes, nanoseconds. remains: what the change takes besides what is run again."""
        after = changes.run(self.step, self.context, mend)
        return self.time - (after.end_ts - self.step.window.start) - remains

    def extent(self, rows: Mask) -> tuple[int, int, int]:
        """The rank on which the rows take longest; when the first of them starts there and the last ends."""
        place = int(self.by_rank(rows, self.step.duration).argmax())
        mine = rows & (self._rank[1] == place)
        return int(self.ranks[place]), int(self.step.start[mine].min()), int(self.step.end[mine].max())
