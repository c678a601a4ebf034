"""What a rule is, and what it finds."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from neuronprof.analyze.advice.case import Case
from neuronprof.analyze.changes import Change, Mask


class Confidence(StrEnum):
    """How directly a what-if run models the change.

    high: the change takes away, or scales, just what the trace shows. medium: it has side effects, the largest of which are counted.
    low: a careful guess; how much of it can be had depends on things that are not in the trace.
    """

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


@dataclass(frozen=True)
class Finding:
    """What is wrong and how it would be mended.

    wrong: a sentence with figures; change: what to do; rows: the events it is about; mend: the same change to the step that is run again;
    remains: nanoseconds that the change costs beside what is run again; less than 0 for what it saves by a closed form.
    """

    wrong: str
    change: str
    rows: Mask
    mend: tuple[Change, ...]
    remains: float = 0.0


@dataclass(frozen=True)
class Rule(ABC):
    """One thing that can be wrong with a step; the subclass's docstring says what. name: how tables call it."""

    name: ClassVar[str]
    confidence: ClassVar[Confidence]

    @abstractmethod
    def look(self, case: Case) -> Finding | None:
        """What is wrong with the step, None if this is not."""


def scaled(rows: Mask, factor: float) -> Change:
    """Rows that take `factor` times as long."""
    return lambda draft: draft.scale(rows, factor)
