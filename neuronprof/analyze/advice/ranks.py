"""Rules about ranks that differ: the others wait for the slowest."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from neuronprof import units
from neuronprof.analyze import stragglers
from neuronprof.analyze.advice.case import Case
from neuronprof.analyze.advice.rule import Confidence, Finding, Rule
from neuronprof.analyze.changes import Draft, programs
from neuronprof.terms import COMPUTE_ENGINES

_BLAMED = 8  # ranks that are looked at, those first for which others wait longest


@dataclass(frozen=True)
class Straggler(Rule):
    """Others wait for a rank because something about it, or its chip, is slower than on the ranks that run the same program."""

    cause: ClassVar[str]  # as `stragglers` names it
    what: ClassVar[str]
    advice: ClassVar[str]
    confidence: ClassVar[Confidence] = Confidence.HIGH

    def look(self, case: Case) -> Finding | None:
        """The rank with this cause for which others wait longest."""
        for rank, waited in case.waited_for[:_BLAMED]:
            cause, slower = stragglers.cause(case.step, case.context, rank)
            mend = stragglers.healed(case.step, case.context, rank, cause) if cause == self.cause else None
            if mend is None:
                continue
            rows = stragglers.suffering(case.step, case.context, rank, cause)
            chip = int(case.events["chip"][rows][0])
            what = self.what.format(rank=rank, chip=chip, times=f"{slower:.2f}")
            wrong = f"{what}; others wait {units.time(waited)} for rank {rank}."
            return Finding(wrong, self.advice.format(rank=rank, chip=chip), rows, (mend,))
        return None


class SlowChip(Straggler):
    """All engines of a chip are slow."""

    name = "slow-chip"
    cause = "slow chip"
    what = "Chip {chip} takes {times} times as long as the others on every engine"
    advice = "Take chip {chip} out of the job, or have it looked at."


class ThrottledCore(Straggler):
    """The tensor engine of a rank is slow, and only that: it is throttled for power or heat."""

    name = "throttled-core"
    cause = "slow tensor engine"
    what = "The tensor engine of rank {rank} (chip {chip}) takes {times} times as long as the others': it is throttled"
    advice = "Check power and cooling of chip {chip}, and move rank {rank} to a spare until then."


class SlowMemory(Straggler):
    """The HBM of a chip is slow."""

    name = "slow-hbm"
    cause = "slow HBM"
    what = "HBM transfers of chip {chip} take {times} times as long as the others'"
    advice = "Have the HBM of chip {chip} tested, and take it out of the job until then."


@dataclass(frozen=True)
class DegradedLink(Rule):
    """The links of a chip are slow, and every collective that uses them is as slow on all ranks."""

    name: ClassVar[str] = "degraded-link"
    confidence: ClassVar[Confidence] = Confidence.HIGH
    least: float = 1.05  # times the median; less is within the jitter of healthy links, as in stragglers

    def look(self, case: Case) -> Finding | None:
        """The rank whose links hold their bytes longest, next to the median of the ranks with its program."""
        found = [self._slowest(case, rows) for rows in programs(case.step, case.context)]
        times, rank = max(found, default=(1.0, 0))
        mend = stragglers.healed(case.step, case.context, rank, "slow link") if times > self.least else None
        if mend is None:
            return None
        rows = (case.events["rank"] == rank) & (case.step.wire > 0)
        chip = int(case.events["chip"][rows][0])
        wrong = f"Links of chip {chip} take {times:.2f} times as long for their bytes as the others', and all wait for them."
        return Finding(
            wrong, f"Have the links of chip {chip} tested, and take it out of the job until then.", rows, (mend,)
        )

    @staticmethod
    def _slowest(case: Case, rows: NDArray[np.intp]) -> tuple[float, int]:
        wire = case.step.wire[rows].sum(axis=1)
        worst = int(wire.argmax())
        return float(wire[worst] / max(np.median(wire), 1)), int(
            case.events["rank"][rows[worst, 0]]
        ) if rows.size else 0


class LateHost(Straggler):
    """A host begins the step later than others."""

    name = "late-host"
    cause = "late host"
    what = "The host of chip {chip} begins the step later than the others"
    advice = (
        "Look at what that host does before the step (input, logging, checkpoints), and move it to workers of its own."
    )


@dataclass(frozen=True)
class UnevenWork(Rule):
    """Ranks of one stage do different amounts of work: longer sequences, more padding, fuller experts."""

    name: ClassVar[str] = "uneven-work"
    confidence: ClassVar[Confidence] = Confidence.MEDIUM
    least: float = 1.05  # times the mean; less is within the jitter of healthy ranks, as in stragglers

    def look(self, case: Case) -> Finding | None:
        """The stage's rank that computes longest, where the ranks run programs of their own."""
        compute = case.on(*COMPUTE_ENGINES)
        busy = case.spent(compute)
        different = len(programs(case.step, case.context)) > case.stages
        stage = case.stage_of(case.ranks)
        mean = np.array([busy[stage == own].mean() for own in stage])
        worst = int((busy / np.maximum(mean, 1)).argmax())
        if not different or busy[worst] <= self.least * mean[worst]:
            return None
        factor = (mean / np.maximum(busy, 1))[case.place]

        def share_out(draft: Draft) -> None:
            draft.scale(compute, factor[compute])

        rank = int(case.ranks[worst])
        rows = compute & (case.events["rank"] == rank)
        times = f"{units.time(busy[worst])} a step, its peers {units.time(mean[worst])} on average"
        return Finding(f"Rank {rank} computes {times}: {case.where(rows)}.", case.say("even work"), rows, (share_out,))
