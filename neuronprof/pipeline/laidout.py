"""One captured step under many layouts: what they share is made once, and no trace is written."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from neuronprof.compile.memory import peak_levels
from neuronprof.distribute.plan import Planner
from neuronprof.errors import NeuronprofError
from neuronprof.pipeline.compiled import Compiled, Compiler
from neuronprof.pipeline.figures import PASSING, Figures, figures, of_one_more
from neuronprof.simulate import undisturbed
from neuronprof.simulate.job import Job
from neuronprof.simulate.priced import durations

if TYPE_CHECKING:
    from neuronprof.distribute.layout import Layout
    from neuronprof.graph.ir import Graph
    from neuronprof.hardware.spec import Chip

# Micro-batches beyond those that fill and drain the pipeline until one follows another at the same distance.
_SETTLED = 2


@dataclass(frozen=True)
class LaidOut:
    """A layout of the step.

    peak: bytes of each category when the HBM of the fullest stage is fullest; capacity: bytes that a rank has; figures: None where it
    does not fit; refused: why the model cannot be laid out so ('': it can).
    """

    layout: "Layout"
    peak: dict[str, int]
    capacity: int
    figures: Figures | None
    refused: str = ""

    @property
    def peak_bytes(self) -> int:
        """HBM that the fullest stage needs."""
        return sum(self.peak.values())

    @property
    def fits(self) -> bool:
        """Whether it can run at all."""
        return bool(self.peak) and self.peak_bytes <= self.capacity


class StepSimulator:
    """Simulates one training step, captured as for one device, under one layout after another. sizes: as Planner has them."""

    def __init__(self, graph: "Graph", chip: "Chip", lnc: int, sizes: tuple[int, ...] = ()) -> None:
        self._graph, self._chip, self._lnc, self._sizes = graph, chip, lnc, sizes
        self._compiler = Compiler(chip, lnc)
        self._durations: dict[int, np.ndarray] = {}  # by the id of a chunk's program

    def retune(self, chip: "Chip") -> None:
        """Goes on with a chip that costs differ on, but that programs are compiled for alike."""
        self._chip = chip
        self._durations.clear()

    def forget(self) -> None:
        """Gives up the programs of all layouts so far; how the model was divided stays."""
        self._compiler = Compiler(self._chip, self._lnc)
        self._durations.clear()

    @cached_property
    def _planner(self) -> Planner:
        return Planner(self._graph, self._sizes)

    @property
    def capacity(self) -> int:
        """Bytes of HBM that a rank has."""
        return int(self._chip.package.hbm_capacity) // self._chip.ranks(self._lnc)

    def simulate(self, layout: "Layout", *, oversized: bool = False) -> LaidOut:
        """Lays out, compiles, and runs what fits; oversized: and what does not.

        A step of many micro-batches is simulated with few of them, enough for the pipeline to settle: from there on every further one
        adds the same to each figure.
        """
        try:
            return self._settled(layout, oversized) or self._extended(layout, oversized)
        except NeuronprofError as error:
            return LaidOut(layout, {}, self.capacity, None, str(error))
        finally:
            self._compiler.forget_stages()

    def _settled(self, layout: "Layout", oversized: bool) -> LaidOut | None:
        """From one smaller step, in which forward and backward of settled micro-batches show what a further one takes."""
        fewest = -(-(layout.pp + PASSING) // layout.microbatches)
        if layout.schedule != "1f1b" or layout.accumulate <= fewest:
            return None
        compiled = self._compiled(replace(layout, accumulate=fewest))
        peak = self._peak(compiled)
        if sum(peak.values()) > self.capacity and not oversized:
            return LaidOut(layout, peak, self.capacity, None)
        run = self._run(compiled, layout)
        further = of_one_more(run, compiled)
        if further is None:
            return None
        parts = len({microbatch for _, microbatch in compiled.orders[0]} - {-1})
        found = figures(run, compiled).plus((layout.accumulate - fewest) * parts // fewest, further)
        return LaidOut(layout, peak, self.capacity, found)

    def _extended(self, layout: "Layout", oversized: bool) -> LaidOut:
        """From two smaller steps, whose difference is what each further round of micro-batches adds; or as it is, if it is short."""
        shorter, short = _rounds(layout)
        compiled = self._compiled(short)
        peak = self._peak(compiled)
        times = 0.0
        if shorter is not None:
            before = self._compiled(shorter)
            times = (layout.accumulate - short.accumulate) / (short.accumulate - shorter.accumulate)
            less = self._peak(before)
            peak = {role: round(nbytes + times * (nbytes - less[role])) for role, nbytes in peak.items()}
        if sum(peak.values()) > self.capacity and not oversized:
            return LaidOut(layout, peak, self.capacity, None)
        found = figures(self._run(compiled, short), compiled)
        if shorter is not None:
            less_found = figures(self._run(before, shorter), before)
            found = found.plus(times, found.plus(-1, less_found))
        return LaidOut(layout, peak, self.capacity, found)

    def _compiled(self, layout: "Layout") -> Compiled:
        return self._compiler.compile(self._planner.plan(layout).stages)

    def _run(self, compiled: Compiled, layout: "Layout") -> undisturbed.Undisturbed:
        mesh = layout.mesh()
        stages = (mesh.size("pp"), mesh.stride("pp")) if mesh.size("pp") > 1 else (1, 1)
        job = Job(self._chip, self._lnc, mesh.world, stages)
        for part in (part for parts in compiled.parts for part in parts):
            if id(part) not in self._durations:
                self._durations[id(part)] = durations(part, job)
        taken = [
            np.concatenate([self._durations[id(parts[chunk])] for chunk, _ in order])
            for parts, order in zip(compiled.parts, compiled.orders, strict=True)
        ]
        return undisturbed.run(compiled.programs, job, taken)

    def _peak(self, compiled: Compiled) -> dict[str, int]:
        programs = {id(p): p for p in compiled.programs}.values()
        return max(map(peak_levels, programs), key=lambda levels: sum(levels.values()))


def _rounds(layout: "Layout") -> "tuple[Layout | None, Layout]":
    """The two smaller steps that stand for a long one; (None, the layout) for one that is short itself.

    Once a pipeline has settled, its times repeat after as many micro-batches as it has stages.
    """
    step = next(n for n in range(1, layout.pp + 1) if n * layout.microbatches % layout.pp == 0)
    passes = 2 * layout.pp * layout.vp if layout.schedule == "interleaved" else layout.pp
    fewest = -(-(passes + _SETTLED) // layout.microbatches)
    fewest += (layout.accumulate - fewest) % step
    if layout.accumulate <= 2 * fewest + step:
        return None, layout
    return replace(layout, accumulate=fewest), replace(layout, accumulate=fewest + step)
