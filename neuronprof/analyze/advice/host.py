"""Rules about the host: when the device stands still for it."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from neuronprof import units
from neuronprof.analyze.advice.case import Case
from neuronprof.analyze.advice.rule import Confidence, Finding, Rule, scaled
from neuronprof.terms import Engine


@dataclass(frozen=True)
class HostSync(Rule):
    """The script reads a value in the middle of a step: the device drains, and the host launches the rest anew."""

    name: ClassVar[str] = "host-sync"
    confidence: ClassVar[Confidence] = Confidence.HIGH

    def look(self, case: Case) -> Finding | None:
        """Copies to the host, and what the host does before the device goes on."""
        copies = case.among("name", ["COPY_TO_HOST"])
        rows = copies | (case.on(Engine.HOST) & (launches(case) < LaunchBound.least))
        if not copies.any():
            return None
        time = case.by_rank(rows, case.exposed).mean()
        reads = int(copies.sum() / len(case.ranks))
        often = "once" if reads == 1 else f"{reads:,} times"
        wrong = f"The host reads a value {often} a step, and the device stands still for {units.time(time)}: {case.where(rows)}."
        return Finding(wrong, case.say("host sync"), rows, (scaled(rows, 0.0),))


@dataclass(frozen=True)
class InputCopies(Rule):
    """The batch is copied to the device when the step needs it."""

    name: ClassVar[str] = "input-copies"
    confidence: ClassVar[Confidence] = Confidence.HIGH

    def look(self, case: Case) -> Finding | None:
        """Copies to the device that no compute hides."""
        rows = case.among("name", ["COPY_TO_DEVICE"])
        time = case.by_rank(rows, case.exposed).mean()
        if not time:
            return None
        size = units.size(case.by_rank(rows, case.events["bytes"]).mean())
        wrong = f"The device waits {units.time(time)} a step for {size} that the host copies to it: {case.where(rows)}."
        return Finding(wrong, case.say("input"), rows, (scaled(rows, 0.0),))


def launches(case: Case) -> float:
    """How often the host launches something on a rank in the step."""
    return float(case.among("name", ["LAUNCH"]).sum() / len(case.ranks))


@dataclass(frozen=True)
class LaunchBound(Rule):
    """The host launches each operator by itself, and the device waits for the next launch.

    least: launches a step; a compiled step has one, and one more after each value that the script reads.
    """

    name: ClassVar[str] = "launch-bound"
    confidence: ClassVar[Confidence] = Confidence.MEDIUM
    least: ClassVar[int] = 16

    def look(self, case: Case) -> Finding | None:
        """All launches but each rank's first."""
        rows = case.among("name", ["LAUNCH"])
        count = launches(case)
        if count < self.least:
            return None
        first = np.full(len(case.ranks), len(case.step))
        np.minimum.at(first, case.place[rows], np.flatnonzero(rows))
        later = rows.copy()
        later[first[first < len(case.step)]] = False
        exposed = case.by_rank(rows, case.exposed).mean()
        wrong = f"The host launches {count:,.0f} operators a step one by one, and the device stands still for {units.time(exposed)}: {case.where(rows)}."  # noqa: E501
        return Finding(wrong, case.say("launches"), rows, (scaled(later, 0.0),))
