"""Rules about the compute engines: work that is done slower than need be, or needlessly."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from neuronprof import units
from neuronprof.analyze import changes
from neuronprof.analyze.advice.case import Case
from neuronprof.analyze.advice.rule import Confidence, Finding, Rule, scaled
from neuronprof.analyze.pearray import fills
from neuronprof.terms import COMPUTE_ENGINES, Collective, Engine, Phase

_FLOAT32 = ("float32", "float64")


@dataclass(frozen=True)
class Float32Products(Rule):
    """Products run in float32, which takes the PE array several passes (four: hardware.md section 4, MultiplyMoving)."""

    name: ClassVar[str] = "float32-products"
    confidence: ClassVar[Confidence] = Confidence.MEDIUM

    def look(self, case: Case) -> Finding | None:
        """Products in float32 on a machine that is faster in bf16; casts are left out of account."""
        rows = case.on(Engine.TENSOR) & case.among("dtype", _FLOAT32)
        peaks = case.context.machine.get("peak_flops") or {}
        passes = case.quantity("tensor.fp32_passes", peaks.get("bf16", 0) / (peaks.get("fp32") or np.inf))
        if not rows.any() or not passes > 1:
            return None
        share = case.mean(rows) / case.time
        wrong = f"Products in float32 keep the tensor engine busy for {units.percent(share)} of the step, and bf16 is {passes:.3g} times as fast: {case.where(rows)}."  # noqa: E501
        return Finding(wrong, case.say("bf16"), rows, (scaled(rows, 1 / passes),))


@dataclass(frozen=True)
class UnshardedOptimizer(Rule):
    """Every data-parallel replica updates all weights, the same on each."""

    name: ClassVar[str] = "unsharded-optimizer"
    confidence: ClassVar[Confidence] = Confidence.LOW

    def look(self, case: Case) -> Finding | None:
        """The optimizer's work, where replicas could share it out (ZeRO-1).

        What reduces gradients then scatters them, in half of its time, but no sooner than the shortest of them is done, which is nearly
        all latency; as long again takes the gather of weights after the update, which is taken to stand exposed.
        """
        replicas = int(case.mesh.get("dp", 1))
        rows = case.among("phase", [Phase.OPTIMIZER]) & case.on(*COMPUTE_ENGINES, Engine.DMA)
        syncs = changes.collectives(case.step, (Collective.ALL_REDUCE,), "dp") & ~case.among("phase", [Phase.FORWARD])
        shared = changes.collectives(case.step, (Collective.REDUCE_SCATTER,), "dp").any()
        if replicas < 2 or shared or not rows.any() or not syncs.any():
            return None
        whole = case.step.duration
        half = np.maximum(whole / 2, whole[syncs].min())
        gathered = float(case.by_rank(syncs, half).max())

        def scatter(draft: changes.Draft) -> None:
            draft.scale(syncs, half[syncs] / np.maximum(whole[syncs], 1))

        mend = (scaled(rows, 1 / replicas), scatter)
        time = units.time(case.mean(rows))
        wrong = f"All {replicas} replicas do the whole optimizer step, {time}: {case.where(rows)}."
        return Finding(wrong, case.say("zero"), rows, mend, gathered)


@dataclass(frozen=True)
class PoorFill(Rule):
    """Products whose sides leave rows or columns of the PE array empty, as a head dimension of 64 does half of its 128.

    most: of the array filled; above, a mended shape gains little (assumed: three quarters, between a half and a whole).
    """

    name: ClassVar[str] = "poor-pe-fill"
    confidence: ClassVar[Confidence] = Confidence.LOW
    most: float = 0.75

    def look(self, case: Case) -> Finding | None:
        """Products by what their formula says of the array; they would take their share of it."""
        fill = fills(case.events, case.context)
        rows = case.on(Engine.TENSOR) & (fill < self.most)
        if not rows.any():
            return None
        worst = int(np.flatnonzero(rows)[(case.step.duration * (1 - fill))[rows].argmax()])
        side = case.events.text("operands", case.events["operands"][[worst]])[0]
        filled = np.average(fill[rows], weights=np.maximum(case.step.duration[rows], 1))
        where = case.where(rows)
        wrong = f"Products keep {units.percent(filled)} of the PE array at work for {units.time(case.mean(rows))}: {where} ({side})."
        return Finding(wrong, case.say("fill"), rows, (lambda draft: draft.scale(rows, fill[rows]),))
