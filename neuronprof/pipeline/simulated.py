"""Lays a recording out over a machine and simulates it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from neuronprof.compile import instructions
from neuronprof.compile.memory import check_fit, peak_levels
from neuronprof.distribute.plan import StagePlan, plan
from neuronprof.distribute.recorded import stage_plan
from neuronprof.distribute.styles import Style, styled
from neuronprof.errors import NeuronprofError
from neuronprof.hardware.load import load_chip
from neuronprof.hardware.spec import Chip
from neuronprof.pipeline.compiled import Compiled, Compiler
from neuronprof.pipeline.detail import Detail
from neuronprof.pipeline.machine import check_world, cores_a_rank
from neuronprof.pipeline.options import Options
from neuronprof.progress import Progress
from neuronprof.simulate.cluster import Cluster, Run
from neuronprof.simulate.events import Operators
from neuronprof.simulate.job import Job

if TYPE_CHECKING:
    from neuronprof.graph.ir import Graph, Recording, Segment


@dataclass(frozen=True)
class SimulatedSegment:
    """A segment of the recording, compiled and run."""

    kind: str
    step: int
    compiled: Compiled
    run: Run


@dataclass(frozen=True)
class Simulated:
    """A recording on a machine.

    mesh: name of each axis to its size. peak: bytes of each category when the HBM of the fullest stage is fullest; capacity: bytes a rank
    has. notes: what the layout softened, with counts.
    """

    job: Job
    mesh: dict[str, int]
    segments: tuple[SimulatedSegment, ...]
    operators: Operators
    peak: dict[str, int]
    capacity: int
    notes: dict[str, int]

    def keeping(self, ranks: Sequence[int]) -> "Simulated":
        """The same with every event of some ranks: only what is around them is simulated again."""
        segments = tuple(replace(s, run=s.run.keeping(ranks)) for s in self.segments)
        return replace(self, segments=segments)


class Simulation:
    """A recording laid out and compiled, ready to run."""

    def __init__(self, recording: "Recording", options: Options) -> None:
        """Lays out and compiles.

        Raises:
            NeuronprofError: the layout is impossible, or the model does not fit into HBM.
        """
        self.operators = Operators()
        self.notes: dict[str, int] = {}
        self.job, self.mesh = _job(recording, options)
        self.capacity = int(self.job.chip.package.hbm_capacity) // self.job.ranks_per_chip
        detail = Detail.of(options.detail, self.job.chip) if options.detail else None
        compiler = Compiler(self.job.chip, self.job.lnc, detail)
        plans: dict[bytes, tuple[StagePlan, ...]] = {}
        done: dict[int, Compiled] = {}
        self.compiled: list[tuple[Segment, Compiled]] = []
        for number, segment in enumerate(recording.segments):
            stages = self._stages(recording, number, options, plans)
            if stages is None:
                self.notes["evaluation left out, for which no layout is planned"] = (
                    self.notes.get("evaluation left out, for which no layout is planned", 0) + 1
                )
                continue
            if id(stages) not in done:
                done[id(stages)] = compiler.compile(stages, self.operators)
            self.compiled.append((segment, done[id(stages)]))
        if detail:
            instructions.check(max(len(p) for _, c in self.compiled for p in c.programs))
            detail.check(chunk for _, c in self.compiled for chunks in c.chunks for chunk in chunks)
        fullest = (peak_levels(p) for _, c in self.compiled for p in {id(p): p for p in c.programs}.values())
        self.peak = max(fullest, key=lambda levels: sum(levels.values()))
        if not options.allow_oom:
            check_fit(self.peak, self.capacity, self.job.chip.name)

    def _stages(
        self, recording: "Recording", number: int, options: Options, plans: dict[bytes, tuple[StagePlan, ...]]
    ) -> tuple[StagePlan, ...] | None:
        """What each stage runs in a segment; None for an evaluation that the layout cannot run."""
        segment = recording.segments[number]
        if recording.stages:
            parts = [_part(stage, number, segment.kind) for stage in recording.stages]
            return None if None in parts else _once(plans, [p for p in parts if p is not None], stage_plan)
        part = recording.graph.slice(segment.start, segment.stop)
        layout = options.layout()
        if segment.kind != "step" or recording.world > 1:
            whole = layout.world == layout.dp and layout.zero < 3
            return _once(plans, [part]) if segment.kind == "step" or whole else None
        key = part.content()
        if key not in plans:
            made = plan(styled(part, options.style()), layout)
            self.notes |= made.notes
            plans[key] = made.stages
        return plans[key]

    @property
    def events(self) -> int:
        """About how many events all ranks have."""
        stages = self.job.stages[0]
        return sum(2 * len(p) * self.job.world // stages for _, c in self.compiled for p in c.programs)

    def run(self, progress: Progress) -> Simulated:
        """Simulates all segments on every rank."""
        cluster, segments = Cluster(self.job), []
        for number, (segment, compiled) in enumerate(self.compiled, 1):
            progress.restart()
            tell = partial(progress.share, f"simulating {number} of {len(self.compiled)}:")
            segments.append(
                SimulatedSegment(segment.kind, segment.step, compiled, cluster.run(compiled.programs, (), tell))
            )
        return Simulated(self.job, self.mesh, tuple(segments), self.operators, self.peak, self.capacity, self.notes)


def _one_chunk(part: "Graph") -> StagePlan:
    return StagePlan((part,), ((0, 0),))


def _once(
    plans: dict[bytes, tuple[StagePlan, ...]],
    parts: "list[Graph]",
    planned: "Callable[[Graph], StagePlan]" = _one_chunk,
) -> tuple[StagePlan, ...]:
    """Graphs as plans; equal ones are planned once."""
    key = b"|".join(p.content() for p in parts)
    if key not in plans:
        plans[key] = tuple(planned(p) for p in parts)
    return plans[key]


def _part(stage: "Recording", number: int, kind: str) -> "Graph | None":
    """The graph of a stage's segment, if it has the same segments as the first stage."""
    if number >= len(stage.segments) or stage.segments[number].kind != kind:
        return None
    return stage.graph.slice(stage.segments[number].start, stage.segments[number].stop)


def chip_run(name: str, eager: bool) -> Chip:
    """A chip by name or file; eager: whose host launches each operator as a kernel of its own.

    Raises:
        NeuronprofError: it is unknown, or has no kernels that could be launched so.
    """
    chip = load_chip(name)
    if eager and chip.kernels is None:
        raise NeuronprofError(
            f"--eager is for GPUs, whose operators are kernels; {chip.name} runs a step as one compiled graph, so leave it out."
        )
    return replace(chip, eager=eager)


def _job(recording: "Recording", options: Options) -> tuple[Job, dict[str, int]]:
    chip = chip_run(options.chip, options.eager)
    lnc = cores_a_rank(chip, options.lnc)
    layout = options.layout()
    if recording.world > 1 or recording.stages:
        if layout.world > 1 or options.style() != Style():
            raise NeuronprofError(
                f"{recording.script} distributes itself over {recording.world} ranks; leave out --dp, --tp and the other layout options, "
                "--recompute, --fp8 and --fp32-gradients, or record it as one process."
            )
        world, stages, mesh = recording.world, recording.pipeline, dict(recording.axes) or {"dp": recording.world}
    else:
        layout.validate()
        planned = layout.mesh()
        world, mesh = planned.world, {axis: n for axis, n in planned.sizes().items() if n > 1 or axis == "dp"}
        stages = (planned.size("pp"), planned.stride("pp")) if planned.size("pp") > 1 else (1, 1)
    check_world(chip, lnc, world)
    job = Job(chip, lnc, world, stages, options.faults(), options.collective_algorithm, options.oversubscription)
    return job, mesh
