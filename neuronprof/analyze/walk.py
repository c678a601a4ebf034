"""Questions that no pass over single chips answers: they follow the graph of a step from rank to rank."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from neuronprof import units
from neuronprof.analyze import analyzer, flow, plan
from neuronprof.analyze.analyzer import EVALUATION, Context, State, Window
from neuronprof.errors import NeuronprofError
from neuronprof.trace import reader

MOST_SAMPLED = 200_000  # events that are run again in a quarter of a second
_BYTES_AN_EVENT = 800  # of a step as a graph, with running it again, as measured on 1.2 million of them


class TooLargeError(NeuronprofError):
    """A step that memory cannot hold as a graph."""


@dataclass(frozen=True)
class Whole:
    """A trace, opened; the step to look at is read when a question needs it, and once.

    number: of that step (None: the one of median length). memory: bytes that its graph may take (None: what is free when it is read).
    """

    trace: reader.TraceFile
    number: int | None = None
    memory: float | None = None

    @cached_property
    def context(self) -> Context:
        """What the trace tells besides its events."""
        return analyzer.context_of(self.trace)

    @cached_property
    def window(self) -> Window | None:
        """When the step runs; None where the trace has no training step.

        Raises:
            NeuronprofError: it has others, but not this one.
        """
        if self.number is None:
            return flow.typical(self.trace, self.context)
        steps = {w.step: w for w in self.context.windows if w.step != EVALUATION}
        if self.number not in steps:
            raise NeuronprofError(
                f"{self.trace.path} has no training step {self.number}; it has {', '.join(map(str, steps)) or 'none'}."
            )
        return steps[self.number]

    @cached_property
    def step(self) -> flow.Step | None:
        """That step, all ranks; None where the trace has no training step.

        Raises:
            TooLargeError: memory cannot hold it.
        """
        return self._load(self.window, None) if self.window else None

    @cached_property
    def sample(self) -> flow.Step | None:
        """The same step, of as many ranks as it takes for about `MOST_SAMPLED` events; all of it where it is smaller.

        Raises:
            TooLargeError: memory cannot hold it.
        """
        if self.window is None:
            return None
        ranks = flow.sampled(self.trace, self.context, self.window, MOST_SAMPLED)
        return self.step if ranks is None else self._load(self.window, ranks)

    def _load(self, window: Window, ranks: list[int] | None) -> flow.Step:
        count = self.trace.count(window.step, ranks)
        needed, most = count * _BYTES_AN_EVENT, plan.free_memory() if self.memory is None else self.memory
        if needed > most:
            raise TooLargeError(
                f"To follow what waits for what in the {count:,} events of step {window.step} of {self.trace.path} takes about "
                f"{units.size(needed)} of memory, and {units.size(most)} may be taken. Record less in one step, or fewer ranks "
                "(--trace-ranks)."
            )
        return flow.load(self.trace, window, ranks)


class Walk(ABC):
    """One question to a whole step; the subclass's docstring is the sentence that reports print above its tables.

    name: how users call it. tables: the finished tables, each with its columns; the first has the walk's name.
    """

    name: ClassVar[str]
    tables: ClassVar[dict[str, tuple[str, ...]]]

    @abstractmethod
    def answer(self, whole: Whole) -> State:
        """The finished tables."""

    def nothing(self) -> State:
        """The tables without rows."""
        import pandas as pd

        return {name: pd.DataFrame(columns=list(columns)) for name, columns in self.tables.items()}
