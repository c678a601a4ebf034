"""Lowering a graph: operators are fused, planned and written as instructions for the chip at hand."""

from collections import Counter

from neuronprof.compile import levels
from neuronprof.compile.fuse import fuse
from neuronprof.compile.kernels import Kernels
from neuronprof.compile.plan import plan
from neuronprof.compile.tiled import Tiled
from neuronprof.graph.ir import Graph
from neuronprof.graph.ops import OpKind, work
from neuronprof.hardware.spec import Chip
from neuronprof.program import Program


def compile_graph(graph: Graph, chip: Chip, lnc: int) -> Program:
    """Compiles one segment's graph for one logical NeuronCore of lnc physical cores: fusion, memory plan, tiling, instructions."""
    works = [work(s) for s in graph.signatures]
    groups = fuse(graph, works, into_products=chip.kernels is None)
    plans = plan(graph, groups, chip.memory.sbuf * lnc)
    lowering = Kernels(graph, works, chip) if chip.kernels else Tiled(graph, works, chip, lnc)
    # A host that waits for a result launches what follows only then; one that never waits launches ahead of the device. The first launch
    # of a step is due to the last sync of the step before, which is the same.
    lowering.sync = next((g.ops[0] for g in reversed(groups) if g.kind is OpKind.HOST_SYNC), None)
    for group, entry in zip(groups, plans, strict=True):
        lowering.group(group, entry)
    used = Counter(graph.signature.tolist())
    unknown = Counter[str]()
    for sig, count in used.items():
        if not works[sig].known:
            unknown[graph.signatures[sig].name] += count
    memory = levels.hbm_levels(graph, groups, plans, lowering.spans)
    return lowering.builder.finish(memory, dict(unknown), len(graph))
