"""Questions that no pass over single chips answers: they follow the graph of a step from rank to rank."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from neuronprof.analyze import analyzer, flow
from neuronprof.analyze.analyzer import Context, State
from neuronprof.trace import reader

MOST_SAMPLED = 200_000  # events that are run again in a quarter of a second


@dataclass(frozen=True)
class Whole:
    """A trace, opened; its typical step is read when a question needs it, and once."""

    trace: reader.TraceFile

    @cached_property
    def context(self) -> Context:
        """What the trace tells besides its events."""
        return analyzer.context_of(self.trace)

    @cached_property
    def step(self) -> flow.Step | None:
        """The training step of median length, all ranks; None where there is none."""
        window = flow.typical(self.trace, self.context)
        return flow.load(self.trace, window) if window else None

    @cached_property
    def sample(self) -> flow.Step | None:
        """The same step, of as many ranks as it takes for about `MOST_SAMPLED` events; all of it where it is smaller."""
        window = flow.typical(self.trace, self.context)
        if window is None:
            return None
        ranks = flow.sampled(self.trace, self.context, window, MOST_SAMPLED)
        return self.step if ranks is None else flow.load(self.trace, window, ranks)


class Walk(ABC):
    """One question to a whole step; the subclass's docstring is the sentence that reports print above its tables.

    name: how users call it. tables: the finished tables, each with its columns; the first has the walk's name.
    """

    name: ClassVar[str]
    tables: ClassVar[dict[str, tuple[str, ...]]]

    @abstractmethod
    def answer(self, whole: Whole) -> State:
        """The finished tables."""
