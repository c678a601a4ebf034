"""Rules about collectives: time on the links that compute could hide, or that need not be."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from neuronprof import units
from neuronprof.analyze import changes, durations
from neuronprof.analyze.advice.case import Case
from neuronprof.analyze.advice.rule import Confidence, Finding, Rule, scaled
from neuronprof.analyze.changes import Draft
from neuronprof.terms import COMPUTE_ENGINES, Collective, Engine, Phase

_LATENCY_BOUND = 1_000_000  # bytes: below, the mesh algorithm is taken, whose time is latency (hardware.md section 5: mesh below 1 MB)
_SEVERAL = 2  # buckets that one of them may be as large as, for tensors that are not cut


@dataclass(frozen=True)
class LateGradientSync(Rule):
    """Gradients are reduced after backward rather than behind it."""

    name: ClassVar[str] = "late-gradient-sync"
    confidence: ClassVar[Confidence] = Confidence.MEDIUM

    def look(self, case: Case) -> Finding | None:
        """Reductions over replicas that no compute hides, unless they go in buckets of which only the last ones wait for backward's end."""
        rows = changes.gradient_syncs(case.step)
        exposed = case.by_rank(rows, case.exposed).mean()
        if not exposed or _in_buckets(case, rows):
            return None
        count = round(rows.sum() / len(case.ranks))
        size = units.size(case.by_rank(rows, case.events["bytes"]).mean())
        what = f"Reducing {size} of gradients in {count:,} collectives a step"
        wrong = f"{what} stands exposed for {units.time(exposed)}: {case.where(rows)}."
        return Finding(wrong, case.say("gradient sync"), rows, (changes.overlapped("grad_sync"),))


def _in_buckets(case: Case, rows: changes.Mask) -> bool:
    """Whether some of the reductions start while backward runs, and none is of several buckets' size."""
    backward = case.on(*COMPUTE_ENGINES) & case.among("phase", [Phase.BACKWARD])
    last = np.zeros(len(case.ranks), np.int64)
    np.maximum.at(last, case.place[backward], case.step.end[backward])
    early = rows & (case.step.start < last[case.place])
    return bool(early.any()) and int(case.events["bytes"][rows].max()) < _SEVERAL * changes.BUCKET


@dataclass(frozen=True)
class SmallCollectives(Rule):
    """Many small reductions, each of which pays the latency that one of them together would pay once."""

    name: ClassVar[str] = "small-collectives"
    confidence: ClassVar[Confidence] = Confidence.MEDIUM
    least: int = 8  # of them a step: fewer are the norm and the loss of every script

    def look(self, case: Case) -> Finding | None:
        """Collectives over replicas below the size from which bandwidth counts; sent together, in buckets as DistributedDataParallel's."""
        kinds = (Collective.ALL_REDUCE, Collective.REDUCE_SCATTER, Collective.ALL_GATHER)
        rows = changes.collectives(case.step, kinds, "dp") & (case.events["bytes"] < _LATENCY_BOUND)
        count = rows.sum() / len(case.ranks)
        if count < self.least:
            return None
        together = max(1.0, case.by_rank(rows, case.events["bytes"]).mean() / changes.BUCKET)
        moving = _moving(case, rows)

        def bucketed(draft: Draft) -> None:
            latency = np.maximum(draft.duration[rows] - moving, 0)
            draft.scale(rows, (moving + latency * min(1.0, together / count)) / np.maximum(draft.duration[rows], 1))

        size = units.size(float(case.events["bytes"][rows].mean()))
        exposed = units.time(case.by_rank(rows, case.exposed).mean())
        wrong = f"{round(count):,} collectives a step of {size} on average cost latency, {exposed} exposed: {case.where(rows)}."
        return Finding(wrong, case.say("buckets"), rows, (bucketed,))


def _moving(case: Case, rows: changes.Mask) -> np.ndarray:
    """How long the bytes of collectives take at their links' bandwidth, nanoseconds."""
    seconds = np.zeros(len(case.step))
    for link in (Engine.NEURONLINK, Engine.EFA):
        streams = np.flatnonzero((case.step.parent >= 0) & case.on(link))
        bandwidth = case.context.limit(f"{link}_bandwidth") * case.quantity(f"{link}.efficiency", 1.0)
        np.add.at(seconds, case.step.parent[streams], case.events["bytes"][streams] / bandwidth)
    return seconds[rows] * 1e9


@dataclass(frozen=True)
class SyncEveryMicrobatch(Rule):
    """Gradients are reduced after each micro-batch, though only their sum is needed."""

    name: ClassVar[str] = "sync-every-microbatch"
    confidence: ClassVar[Confidence] = Confidence.HIGH

    def look(self, case: Case) -> Finding | None:
        """Reductions of gradients in backward passes that another forward pass follows, of as many bytes as those of the last."""
        syncs = changes.gradient_syncs(case.step)
        forward = case.on(Engine.TENSOR, Engine.VECTOR) & case.among("phase", [Phase.FORWARD])
        if not syncs.any() or not forward.any():
            return None
        last = np.zeros(len(case.ranks), np.int64)
        np.maximum.at(last, case.place[forward], case.step.start[forward])
        early = syncs & (case.step.end <= last[case.place])
        once, sent = (case.by_rank(rows, case.events["bytes"]).mean() for rows in (syncs & ~early, early))
        if not early.any() or not once or sent < once:
            return None
        wrong = (
            f"Gradients are reduced {1 + round(sent / once)} times a step, after each micro-batch: {units.size(sent)} too many, "
            f"{units.time(case.by_rank(early, case.exposed).mean())} of them exposed."
        )
        return Finding(wrong, case.say("accumulate"), early, (scaled(early, 0.0),))


@dataclass(frozen=True)
class ExposedWeightGather(Rule):
    """Weights that replicas share out (ZeRO-3) are gathered when they are needed rather than ahead."""

    name: ClassVar[str] = "exposed-weight-gather"
    confidence: ClassVar[Confidence] = Confidence.MEDIUM

    def look(self, case: Case) -> Finding | None:
        """Gathers over replicas in forward and backward that no compute hides."""
        gathers = changes.collectives(case.step, (Collective.ALL_GATHER,), "dp")
        rows = gathers & ~case.among("phase", [Phase.OPTIMIZER])
        exposed = case.by_rank(rows, case.exposed).mean()
        if not exposed:
            return None
        size = units.size(case.by_rank(rows, case.events["bytes"]).mean())
        wrong = f"Gathering {size} of weights in {rows.sum() / len(case.ranks):,.0f} collectives a step stands exposed for {units.time(exposed)}: {case.where(rows)}."  # noqa: E501
        return Finding(wrong, case.say("prefetch"), rows, (changes.overlapped("weight_gather"),))


@dataclass(frozen=True)
class TensorParallelFar(Rule):
    """A tensor-parallel group reaches beyond its chips' links, so that each layer's collectives go over the network between hosts."""

    name: ClassVar[str] = "tensor-parallel-far"
    confidence: ClassVar[Confidence] = Confidence.MEDIUM

    def look(self, case: Case) -> Finding | None:
        """Collectives along the tensor-parallel axis that use EFA; inside, the same bytes and steps would go over the chips' links."""
        kinds = tuple(kind for kind in Collective if kind not in (Collective.SEND, Collective.RECV))
        far = (changes.on_link(case.step, case.context, Engine.EFA) > 0) & (case.events["operands"] >= 0)
        rows = changes.collectives(case.step, kinds, "tp") & far
        if not rows.any():
            return None
        times = changes.by_formula(
            case.step, case.context, np.flatnonzero(rows), _joined(durations.numbers(case.context.metadata))
        )

        def inside(draft: Draft) -> None:
            draft.wire[rows] *= times[:, 0]
            draft.rest[rows] *= times[:, 1]

        ways = int(case.mesh.get("tp", 1))
        exposed = units.time(case.by_rank(rows, case.exposed).mean())
        wrong = f"Tensor parallelism over {ways} ranks reaches beyond the chips that NeuronLink joins: {exposed} of it exposed: {case.where(rows)}."  # noqa: E501
        return Finding(wrong, case.say("tensor parallel"), rows, (inside,))


def _joined(known: dict[str, float]) -> dict[str, float]:
    """A machine whose network between hosts is as NeuronLink: in bandwidth, start and steps."""
    far, near = f"{Engine.EFA}.", f"{Engine.NEURONLINK}."
    mine = {name: near + name.removeprefix(far) for name in known if name.startswith(far)}
    return known | {name: known[other] for name, other in mine.items() if other in known}
