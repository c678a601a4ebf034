"""Rules about pipelines: stages that stand idle for lack of micro-batches, or for one that takes longer."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from neuronprof import units
from neuronprof.analyze.advice.case import Case
from neuronprof.analyze.advice.rule import Confidence, Finding, Rule
from neuronprof.analyze.changes import Draft, Mask
from neuronprof.analyze.grouping import Groups
from neuronprof.analyze.intervals import union_by
from neuronprof.terms import COMPUTE_ENGINES, Collective, Engine, Phase

_PASSES = (Phase.FORWARD, Phase.BACKWARD, Phase.RECOMPUTE)


def _worked(case: Case) -> tuple[Mask, NDArray[np.int64]]:
    """What stages do for micro-batches, compute and DMA, and for how long each rank does it."""
    rows = case.among("phase", _PASSES) & case.on(*COMPUTE_ENGINES, Engine.DMA)
    return rows, case.spent(rows)


@dataclass(frozen=True)
class PipelineBubble(Rule):
    """Too few micro-batches for the stages: the last stages wait for the first micro-batch, the first ones for the last.

    enough: micro-batches a stage from which on the bubble hardly counts (Huang et al. 2019, GPipe, section 2.3).
    """

    name: ClassVar[str] = "pipeline-bubble"
    confidence: ClassVar[Confidence] = Confidence.LOW
    enough: int = 4

    def look(self, case: Case) -> Finding | None:
        """Messages of fewer micro-batches than `enough`.

        With m micro-batches of t on the slowest stage, p stages and v virtual ones each, the bubble is (p - 1) t / v (Narayanan et al.
        2021, section 2.2), t being what the trace shows; of m' micro-batches with as much work in all it is m / m' of that.
        """
        rows = case.on(Engine.CC) & case.among("name", [Collective.RECV])
        count = self._microbatches(case, rows)
        if not count or count >= self.enough * case.stages:
            return None
        busiest = int(_worked(case)[1].max())
        bubble = min((case.stages - 1) * busiest / count / self._virtual(case), case.time - busiest)
        more = self.enough * case.stages
        wrong = (
            f"{count} micro-batches are few for {case.stages} stages: the bubble takes {units.time(bubble)}, "
            f"{units.percent(bubble / case.time)} of the step."
        )
        return Finding(wrong, case.say("micro-batches", count=more), rows, (), -bubble * (1 - count / more))

    @staticmethod
    def _virtual(case: Case) -> int:
        return int(case.layout.get("vp") or 1)

    def _microbatches(self, case: Case, received: Mask) -> int:
        """How many the last stage receives; 0 without a pipeline."""
        last = case.stage_of(case.events["rank"]) == case.stages - 1
        rows = received & last & case.among("phase", [Phase.FORWARD])
        return round(int(np.bincount(case.place[rows]).max(initial=0)) / self._virtual(case)) if case.stages > 1 else 0


@dataclass(frozen=True)
class StageImbalance(Rule):
    """One stage of a pipeline works longer than the others, which wait for it at each micro-batch.

    least: times the mean stage; less cannot be mended by moving whole layers (assumed: a twentieth, as for ranks).
    """

    name: ClassVar[str] = "stage-imbalance"
    confidence: ClassVar[Confidence] = Confidence.MEDIUM
    least: float = 1.05

    def look(self, case: Case) -> Finding | None:
        """The stage that works longest; it then takes the mean of all, but not less than its longest layer, and the others do the rest."""
        if case.stages < 2:
            return None
        rows, time = _worked(case)
        stage = case.stage_of(case.ranks)
        by_stage = np.array([time[stage == own].mean() if (stage == own).any() else 0 for own in range(case.stages)])
        worst, mean = int(by_stage.argmax()), float(by_stage[by_stage > 0].mean())
        if by_stage[worst] <= self.least * mean:
            return None
        theirs = rows & (stage == worst)[case.place]
        after = max(mean, self._longest_layer(case, theirs))
        times = np.full(case.stages, (by_stage.sum() - after) / max(1.0, by_stage.sum() - by_stage[worst]))
        times[worst] = after / by_stage[worst]
        factor = times[stage][case.place]

        def even(draft: Draft) -> None:
            draft.scale(rows, factor[rows])

        wrong = f"Stage {worst} works {units.time(by_stage[worst])} a step, the {case.stages} stages {units.time(mean)} on average: {case.where(theirs)}."  # noqa: E501
        return Finding(wrong, case.say("stages"), theirs, (even,))

    @staticmethod
    def _longest_layer(case: Case, rows: Mask) -> float:
        """How long a rank works at that of its layers which takes longest, nanoseconds."""
        layers = Groups(case.place[rows], case.events["layer"][rows])
        time = union_by(layers.position, case.step.start[rows], case.step.end[rows], len(layers))
        return float(time.max(initial=0))
