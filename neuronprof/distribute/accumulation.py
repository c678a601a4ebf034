"""Gradient accumulation in a script: its own micro-batches become those of the layout."""

import numpy as np

from neuronprof.distribute.pieces import STEP, regions
from neuronprof.graph.edit import GraphEditor
from neuronprof.graph.ir import Graph
from neuronprof.graph.ops import OpKind, work
from neuronprof.terms import PHASES, Phase

_BACKWARD = [PHASES.index(p) for p in (Phase.BACKWARD, Phase.RECOMPUTE)]
_FORWARD = PHASES.index(Phase.FORWARD)


def model_passes(graph: Graph) -> list[int]:
    """Where each pass of the model (forward and backward of one micro-batch) ends: the operator after it.

    A step in which the passes do not make the same products runs its model once: what looks like several are several models or losses.
    """
    products = np.array([work(s).kind is OpKind.GEMM for s in graph.signatures], bool)[graph.signature]
    backward = np.isin(graph.phase, _BACKWARD)
    forward = products & (graph.phase == _FORWARD)
    ends: list[int] = []
    behind = False  # the last product was one of a backward
    last = 0
    for op in np.flatnonzero(backward | forward).tolist():
        if backward[op]:
            behind, last = True, op + 1
        elif behind:
            ends.append(last)
            behind = False
    ends.append(last if behind else len(graph))
    runs = [graph.signature[a:b][forward[a:b]].tolist() for a, b in zip([0, *ends], ends, strict=False)]
    return ends if all(run == runs[0] for run in runs) else [ends[-1]]


def first_pass(graph: Graph, passes: list[int]) -> Graph:
    """The step with the first pass of the model alone."""
    step = regions(graph) == STEP
    editor = GraphEditor(graph)
    for op in range(len(graph)):
        if op < passes[0] or step[op]:
            editor.copy(op)
    used = editor.used()
    lost = set(graph.operands.tolist()) - used
    for index in lost - {-1}:
        buffer = editor.buffers[index]
        editor.buffers[index] = type(buffer)(0, -1, -1, buffer.role, buffer.name)
    return editor.finish()
