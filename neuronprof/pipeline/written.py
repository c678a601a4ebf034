"""Writes a simulated recording as a trace."""

from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuronprof.compile.plan import RESIDENT_SHARE
from neuronprof.errors import NeuronprofError
from neuronprof.graph.flops import segment_work
from neuronprof.pipeline.options import Options
from neuronprof.pipeline.simulated import Simulated, Simulation
from neuronprof.progress import Progress
from neuronprof.simulate.events import RANK_STRIDE, EventRows, Recorded
from neuronprof.simulate.ranks import rank_rows
from neuronprof.trace import selection, storage
from neuronprof.trace.writer import TraceWriter

if TYPE_CHECKING:
    from neuronprof.graph.ir import Recording
    from neuronprof.simulate.job import Job

# Beyond this many events in all, ranks stand for each other.
_MOST_EVENTS = 20_000_000


def write_trace(recorded: "Recording", options: Options) -> Path:
    """Distributes, compiles and simulates a recording and writes its trace; returns the path, of a trace in S3 that of its copy here.

    Raises:
        NeuronprofError: no step was recorded; the layout is impossible; the model does not fit into HBM.
    """
    if not any(s.kind == "step" for s in recorded.segments):
        raise NeuronprofError(
            f"No training step was found in {recorded.script}: no optimizer stepped and no module ran; "
            "mark the steps with neuronprof.step(), or record a script that trains."
        )
    with Progress(options.quiet) as progress:
        progress.say("laying out and compiling")
        simulation = Simulation(recorded, options)
        everywhere = simulation.run(progress)
        roles = _chosen(simulation, everywhere, options)
        simulated = everywhere.keeping(list(roles))
        runs = [Recorded(s.run, s.step, s.compiled.first_op) for s in simulated.segments]
        rows = EventRows(simulated.job, runs, simulated.operators)
        progress.restart()
        with storage.writable(options.output) as path, TraceWriter(path) as writer:
            for done, rank in enumerate(roles):
                progress.of("writing rank", done, len(roles))
                for columns in rows.rank(rank):
                    writer.write(columns)
            metadata = _metadata(recorded, simulated, roles, options) | _formulas(rows, simulated.job)
            return writer.close(metadata, simulated.operators.columns, rank_rows(simulated.job, runs))


def _chosen(simulation: Simulation, simulated: Simulated, options: Options) -> dict[int, str]:
    """The ranks to write, with their roles."""
    job, asked = simulation.job, options.trace_ranks
    if asked not in (None, selection.ALL, selection.REPRESENTATIVES):
        return dict.fromkeys(selection.parse(asked or "", job.world), "")
    if asked == selection.ALL or (asked is None and simulation.events <= _MOST_EVENTS):
        return dict.fromkeys(range(job.world), "")
    waited = sum(s.run.totals.peers for s in simulated.segments)
    return selection.representatives(job.stage(np.arange(job.world)), np.asarray(waited))


def _metadata(recorded: "Recording", simulated: Simulated, roles: dict[int, str], options: Options) -> dict[str, Any]:
    """What the trace says of the run beside its events; the keys are documented in trace/schema.py."""
    job, faults = simulated.job, simulated.job.faults
    unknown: dict[str, int] = {}
    for program in {id(p): p for s in simulated.segments for p in s.compiled.programs}.values():
        for name, count in program.unknown.items():
            unknown[name] = unknown.get(name, 0) + count
    return {
        "producer": "neuronprof",
        "script": recorded.script,
        "framework": recorded.framework,
        "argv": list(recorded.argv),
        "values": recorded.values,
        "notes": recorded.notes | simulated.notes,
        "parameters": recorded.parameters,
        "unknown_operators": unknown,
        "machine": machine(job),
        "mesh": simulated.mesh,
        "pipeline": {"count": job.stages[0], "stride": job.stages[1], "passes": _passes(simulated)},
        "world_size": job.world,
        "written_ranks": list(roles),
        "rank_roles": {str(rank): role for rank, role in roles.items() if role},
        "seed": faults.seed,
        "jitter": faults.jitter,
        "slow_chips": {str(chip): factor for chip, factor in faults.slow_chips.items()},
        "throttled": {str(rank): factor for rank, factor in faults.throttled.items()},
        "degraded_links": {str(chip): share for chip, share in faults.links.items()},
        "late_hosts": {str(host): seconds for host, seconds in faults.late_hosts.items()},
        "layout": _layout(options),
        "detail": options.detail,
        "segments": _segments(simulated),
        "memory_fit": {
            "peak": sum(simulated.peak.values()),
            "capacity": simulated.capacity,
            "at_peak": simulated.peak,
        },
    }


def _formulas(rows: EventRows, job: "Job") -> dict[str, Any]:
    """What durations were computed with, so that a trace tells of them when the chip's file and this version are gone."""
    given = {
        "lnc": "physical NeuronCores of a rank",
        "ranks_on_chip": "ranks of the job on a chip, which share its HBM bandwidth",
        "oversubscription": "how much narrower EFA is between UltraServers than what feeds it",
    }
    return {
        "formulas": {name: formula.to_dict() for name, formula in rows.formulas().items()},
        "given": {name: {"value": job.values[name], "meaning": meaning} for name, meaning in given.items()},
        "numbering": {"rank_stride": RANK_STRIDE, "first_ids": rows.first_ids_of_runs},
    }


def _layout(options: Options) -> dict[str, Any]:
    layout = options.layout()
    names, mesh = ("microbatches", "accumulate", "zero", "sequence_parallel", "schedule", "vp"), layout.mesh()
    strides = {axis: mesh.stride(axis) for axis, size in mesh.sizes().items() if size > 1}
    return {**{name: getattr(layout, name) for name in names}, "strides": strides}


def _passes(simulated: Simulated) -> list[list[list[int]]]:
    """By stage, of each pass: the number of its first instruction in a run, and its micro-batch (-1: none's); nothing where runs differ."""
    found = []
    for segment in simulated.segments:
        compiled, of_run = segment.compiled, []
        for parts, order in zip(compiled.parts, compiled.orders, strict=True):
            first = [0, *accumulate(len(parts[chunk]) for chunk, _ in order)]
            of_run.append([first[:-1], [microbatch for _, microbatch in order]])
        found.append(of_run)
    alike = all(of_run == found[0] for of_run in found)
    return found[0] if alike and len(found[0]) > 1 else []


def _segments(simulated: Simulated) -> list[dict[str, Any]]:
    """When each segment ran, and its work: a rank's, averaged over the stages of a pipeline."""
    found = []
    for segment in simulated.segments:
        works = [
            segment_work(graph, times=sum(chunk == c for c, _ in order))
            for chunks, order in zip(segment.compiled.chunks, segment.compiled.orders, strict=True)
            for chunk, graph in enumerate(chunks)
        ]
        stages = len(segment.compiled.chunks)
        found.append(
            {
                "kind": segment.kind,
                "step": segment.step,
                "start_ts": (segment.run.begin + 500) // 1000,
                "end_ts": (segment.run.end + 500) // 1000,
                **{key: sum(w[key] for w in works) // stages for key in works[0]},
            }
        )
    return found


def machine(job: "Job") -> dict[str, Any]:
    """The machine as the trace describes it: what one rank has of it, and each number's provenance."""
    chip, ranks = job.chip, job.ranks_per_chip
    return {
        "chip": chip.name,
        "title": chip.title,
        "topology": chip.topology,
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
            # On chips that run kernels these are caches, of whose contents nothing is recorded.
            "sbuf_capacity": None if chip.kernels else int(chip.memory.sbuf) * job.lnc,
            "sbuf_resident": None if chip.kernels else int(chip.memory.sbuf * RESIDENT_SHARE) * job.lnc,
            "psum_capacity": None if chip.kernels else int(chip.memory.psum) * job.lnc,
            "neuronlink_bandwidth": chip.neuronlink.bandwidth / min(ranks, job.world),
            "efa_bandwidth": chip.efa.bandwidth / min(ranks, job.world),
        },
        "price_hour": chip.price.hour,
        "quantities": {
            name: {"value": q.value, "unit": q.unit, "provenance": str(q.provenance), "source": q.source}
            for name, q in chip.quantities.items()
        },
    }
