"""From script to trace: the only module that knows the order of the stages."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronprof.errors import NeuronprofError

if TYPE_CHECKING:
    from neuronprof.graph.ir import Graph, Recording, Segment
    from neuronprof.program import Program
    from neuronprof.simulate.job import Job


@dataclass(frozen=True)
class Options:
    """How a job is recorded and on what it runs.

    output: path of the trace. chip: name or TOML file; lnc: physical cores in a logical one (None: the chip's default). dp: data-parallel
    ranks; bucket_bytes: size of a gradient bucket. values: real, none or auto; steps, warmup: training steps to keep and to skip (steps
    None: three, and the script runs on to its end); run_on: let the script run on after `steps`; module: the script is a module's name,
    as for `python -m`. allow_oom: simulate a model that does
    not fit. jitter, slow_chips, seed: see simulate.cluster.Job. quiet: no progress on stderr.
    """

    output: str | Path = "trace.parquet"
    chip: str = "trainium4"
    lnc: int | None = None
    dp: int = 1
    bucket_bytes: int = 25 << 20
    values: str = "auto"
    steps: int | None = None
    warmup: int = 1
    run_on: bool = False
    module: bool = False
    allow_oom: bool = False
    jitter: float = 0.0
    slow_chips: dict[int, float] = field(default_factory=dict)
    seed: int = 0
    quiet: bool = False

    @classmethod
    def of(cls, **choices: Any) -> "Options":
        """Options by name.

        Raises:
            NeuronprofError: a name that is no option.
        """
        known = cls.__dataclass_fields__
        unknown = sorted(set(choices) - set(known))
        if unknown:
            raise NeuronprofError(
                f"There is no option '{unknown[0]}' for a recording; the options are {', '.join(known)}."
            )
        return cls(**choices)


@dataclass(frozen=True)
class Recorded:
    """What came out: the trace (None: the script failed before its first step), its exit code, and how it ended (see capture.script)."""

    trace: Path | None
    exit_code: int
    ended_by: str


# Ranks beyond this many events in all would only repeat what the first ones say.
_MOST_EVENTS = 20_000_000
_DEFAULT_STEPS = 3


def record(script: str | Path, argv: tuple[str, ...] = (), options: Options | None = None) -> Recorded:
    """Runs a training script unmodified, simulates its steps, and writes the trace.

    Raises:
        NeuronprofError: what the user can mend: no such script, no training step, a chip that is not known, a model that does not fit.
    """
    from neuronprof.capture.script import CaptureOptions, record_script

    options = options or Options()
    job = _job(options)
    capture = CaptureOptions(
        values=options.values,
        steps=options.steps,
        warmup=options.warmup,
        stop=False if options.run_on else None,
        module=options.module,
    )
    outcome = record_script(str(script), list(argv), capture)
    if outcome.recording is None:
        return Recorded(None, outcome.exit_code, outcome.ended_by)
    return Recorded(write_trace(outcome.recording, job, options), outcome.exit_code, outcome.ended_by)


@contextmanager
def recording(output: str | Path = "trace.parquet", **choices: Any) -> Iterator[None]:
    """Records the block's training steps, in a script or a notebook, and writes the trace when it ends.

    choices: fields of Options. Inside `neuronprof record` the whole script is being recorded already and the block changes nothing.

    Raises:
        NeuronprofError: as `record`; a choice that is no option.
    """
    from neuronprof.capture import engine

    if engine.current() is not None:
        yield
        return
    options = Options.of(output=output, **choices)
    job = _job(options)
    recorder = engine.Engine(values=options.values, notice=_say)
    with recorder:
        yield
    steps = options.steps or _DEFAULT_STEPS
    write_trace(recorder.finish(steps=steps, warmup=options.warmup, script="(block)"), job, options)


def step() -> None:
    """Ends a training step by hand; without a recording it does nothing."""
    if recorder := _current():
        recorder.mark_step()


@contextmanager
def region(name: str) -> Iterator[None]:
    """Names what the block records; without a recording it does nothing."""
    recorder = _current()
    if recorder is None:
        yield
        return
    with recorder.region(name):
        yield


def _current() -> Any:
    """The engine that records, if any; asks without importing PyTorch."""
    module = sys.modules.get("neuronprof.capture.engine")
    return module.current() if module else None


def _job(options: Options) -> "Job":
    from neuronprof.hardware.load import load_chip
    from neuronprof.simulate.job import Job

    chip = load_chip(options.chip)
    lnc = int(chip.package.lnc) if options.lnc is None else options.lnc
    cores = int(chip.package.cores)
    if lnc < 1 or cores % lnc:
        raise NeuronprofError(f"--lnc {lnc} does not divide the {cores} NeuronCores of {chip.name}; choose 1 or 2.")
    if options.dp < 1:
        raise NeuronprofError(f"--dp {options.dp} is not a number of ranks; give at least 1.")
    largest = int(chip.efa.domain) * chip.ranks(lnc)
    if options.dp > largest:
        raise NeuronprofError(
            f"--dp {options.dp} is more than the {largest} ranks of an UltraCluster of {chip.name}; give fewer."
        )
    from neuronprof.simulate.job import Faults

    faults = Faults(options.jitter, options.seed, dict(options.slow_chips))
    return Job(chip, lnc, options.dp, faults=faults)


def write_trace(recorded: "Recording", job: "Job", options: Options) -> Path:
    """Distributes, compiles and simulates a recording and writes its trace; returns the path.

    Raises:
        NeuronprofError: no step was recorded; the model does not fit into HBM.
    """
    from neuronprof.simulate import events
    from neuronprof.simulate.cluster import Cluster
    from neuronprof.trace.writer import TraceWriter

    if not any(s.kind == "step" for s in recorded.segments):
        raise NeuronprofError(
            f"No training step was found in {recorded.script}: no optimizer stepped and no module ran; "
            "mark the steps with neuronprof.step(), or record a script that trains."
        )
    programs = _Programs(job, options)
    cluster, operators, runs = Cluster(job), events.Operators(), []
    for number, segment in enumerate(recorded.segments):
        _progress(options, f"simulating {number + 1} of {len(recorded.segments)}")
        compiled = programs.compile(recorded.graph, segment, operators)
        written = _written_ranks(job, len(recorded.segments) * 4 * len(compiled.program))
        runs.append(events.Recorded(cluster.run([compiled.program], written), segment.step, (compiled.first_op,)))
    rows = events.EventRows(job, runs, operators)
    with TraceWriter(options.output) as writer:
        for rank in written:
            _progress(options, f"writing rank {rank} of {job.world}")
            for columns in rows.rank(rank):
                writer.write(columns)
        metadata = programs.metadata(recorded, runs, written)
        path = writer.close(metadata, operators.columns)
    _progress(options, "")
    return path


def _written_ranks(job: "Job", events_a_rank: int) -> list[int]:
    return list(range(max(1, min(job.world, _MOST_EVENTS // max(events_a_rank, 1)))))


@dataclass(frozen=True)
class _Compiled:
    graph: "Graph"
    program: "Program"
    first_op: int


class _Programs:
    """Compiles segments, each distinct one once, and describes them."""

    def __init__(self, job: "Job", options: Options) -> None:
        self._job = job
        self._options = options
        self._by_content: dict[bytes, _Compiled] = {}
        self._of_segment: list[_Compiled] = []

    def compile(self, graph: "Graph", segment: "Segment", operators: Any) -> _Compiled:
        """The program of a segment; the same content gives the same program."""
        from neuronprof.compile.lower import compile_graph
        from neuronprof.compile.memory import check_fit
        from neuronprof.distribute.data_parallel import data_parallel
        from neuronprof.graph.ops import work

        part = graph.slice(segment.start, segment.stop)
        key = part.content()
        if key not in self._by_content:
            if segment.kind == "step":
                part = data_parallel(part, self._job.world, self._options.bucket_bytes)
            program = compile_graph(part, self._job.chip, self._job.lnc)
            if not self._options.allow_oom:
                check_fit(program, self._capacity(), self._job.chip.name)
            works = [work(s) for s in part.signatures]
            first = operators.add(part, [w.flops for w in works], [w.nbytes for w in works])
            self._by_content[key] = _Compiled(part, program, first)
        self._of_segment.append(self._by_content[key])
        return self._by_content[key]

    def _capacity(self) -> int:
        return int(self._job.chip.package.hbm_capacity) // self._job.ranks_per_chip

    def metadata(self, recorded: "Recording", runs: list[Any], written: list[int]) -> dict[str, Any]:
        """What the trace says of the run beside its events; the keys are documented in trace/schema.py."""
        from neuronprof.compile.memory import peak_levels
        from neuronprof.graph.flops import segment_work

        unknown: dict[str, int] = {}
        for compiled in self._by_content.values():
            for name, count in compiled.program.unknown.items():
                unknown[name] = unknown.get(name, 0) + count
        peaks = [peak_levels(c.program) for c in self._by_content.values()]
        at_peak = max(peaks, key=lambda levels: sum(levels.values()))
        segments = [
            {
                "kind": segment.kind,
                "step": segment.step,
                "start_ts": (run.run.begin + 500) // 1000,
                "end_ts": (run.run.end + 500) // 1000,
                **segment_work(compiled.graph),
            }
            for segment, run, compiled in zip(recorded.segments, runs, self._of_segment, strict=True)
        ]
        return {
            "producer": "neuronprof",
            "script": recorded.script,
            "argv": list(recorded.argv),
            "values": recorded.values,
            "notes": recorded.notes,
            "parameters": recorded.parameters,
            "unknown_operators": unknown,
            "machine": machine(self._job),
            "mesh": {"dp": self._job.world},
            "world_size": self._job.world,
            "written_ranks": written,
            "seed": self._job.faults.seed,
            "jitter": self._job.faults.jitter,
            "slow_chips": {str(chip): factor for chip, factor in self._job.faults.slow_chips.items()},
            "segments": segments,
            "memory_fit": {"peak": sum(at_peak.values()), "capacity": self._capacity(), "at_peak": at_peak},
        }


def machine(job: "Job") -> dict[str, Any]:
    """The machine as the trace describes it: what one rank has of it, and each number's provenance."""
    chip, ranks = job.chip, job.ranks_per_chip
    return {
        "chip": chip.name,
        "title": chip.title,
        "lnc": job.lnc,
        "ranks_per_chip": ranks,
        "rank": {
            "peak_flops": {
                "bf16": chip.peak.bf16 / ranks,
                "fp8": chip.peak.fp8 / ranks,
                "fp32": chip.peak.fp32 / ranks,
            },
            "hbm_bandwidth": min(
                chip.package.hbm_bandwidth / min(ranks, job.world), chip.dma.engines * chip.dma.bandwidth * job.lnc
            ),
            "hbm_capacity": int(chip.package.hbm_capacity) // ranks,
            "neuronlink_bandwidth": chip.neuronlink.bandwidth / min(ranks, job.world),
            "efa_bandwidth": chip.efa.bandwidth / min(ranks, job.world),
        },
        "price_hour": chip.price.hour,
        "quantities": {
            name: {"value": q.value, "unit": q.unit, "provenance": str(q.provenance), "source": q.source}
            for name, q in chip.quantities.items()
        },
    }


def _progress(options: Options, text: str) -> None:
    """One line on a terminal's stderr, overwritten in place; nothing where nobody watches."""
    if not options.quiet and sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def _say(text: str) -> None:
    pass
