"""Lowering a graph: operators are fused, planned and written as instructions for the chip at hand."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from neuronprof.compile import levels
from neuronprof.compile.fuse import Group, fuse
from neuronprof.compile.instructions import Instructions
from neuronprof.compile.kernels import Kernels
from neuronprof.compile.plan import plan
from neuronprof.graph.ir import Graph
from neuronprof.graph.ops import OpKind, work
from neuronprof.hardware.spec import Chip
from neuronprof.program import Program


@dataclass(frozen=True)
class Lowered:
    """A graph's instructions, and what its HBM levels are counted from. They depend on no buffer that no operator touches.

    moved: buffers that some group loads or stores, by their place in `touched`; spans: first and last instruction of each group.
    """

    groups: list[Group]
    moved: frozenset[int]
    spans: list[tuple[int, int]]
    program: Program

    def program_of(self, graph: Graph) -> Program:
        """The program of a graph that differs from the lowered one at most in its buffers' numbers and in those no operator touches."""
        place = touched(graph)
        memory = levels.hbm_levels(graph, self.groups, {place[i] for i in self.moved}, self.spans)
        return replace(self.program, memory=np.array(memory, np.int64).reshape(-1, 3))


def touched(graph: Graph) -> list[int]:
    """The buffers of a graph's operands, in the order of their first use."""
    return list(dict.fromkeys(graph.operands.tolist()))


def compile_graph(graph: Graph, chip: Chip, lnc: int) -> Program:
    """Compiles one segment's graph for one logical NeuronCore of lnc physical cores: fusion, memory plan, tiling, instructions."""
    return lower(graph, chip, lnc).program_of(graph)


def lower(graph: Graph, chip: Chip, lnc: int, detailed: frozenset[int] = frozenset()) -> Lowered:
    """The instructions of one segment's graph. detailed: operators of which single instructions are wanted, tile by tile.

    Raises:
        NeuronprofError: these are too many.
    """
    works = [work(s) for s in graph.signatures]
    groups = fuse(graph, works, into_products=chip.kernels is None, chains=not chip.eager)
    plans = plan(graph, groups, chip.memory.sbuf * lnc)
    lowering = Kernels(graph, works, chip) if chip.kernels else Instructions(graph, works, chip, lnc, detailed)
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
    in_hbm = {m.buffer for p in plans for m in (*p.loads, *p.stores)}
    moved = frozenset(i for i, buffer in enumerate(touched(graph)) if buffer in in_hbm)
    return Lowered(groups, moved, lowering.spans, lowering.builder.finish([], dict(unknown), len(graph)))
