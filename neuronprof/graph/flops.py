"""What a segment has to compute and to read, whatever machine runs it: the numerators of MFU, HFU and MBU."""

import numpy as np

from neuronprof.graph.ir import Graph
from neuronprof.graph.ops import work
from neuronprof.terms import PHASES, Phase, Role

_MODEL_PHASES = {PHASES.index(p) for p in (Phase.FORWARD, Phase.BACKWARD, Phase.EVALUATION, Phase.OTHER)}


def model_flops(graph: Graph) -> int:
    """Products of forward and backward, without what is computed again."""
    return int(_flops(graph)[np.isin(graph.phase, list(_MODEL_PHASES))].sum())


def _flops(graph: Graph) -> np.ndarray:
    """Floating-point operations of each operator."""
    return np.array([work(s).flops for s in graph.signatures] or [0], np.int64)[graph.signature]


def segment_work(graph: Graph, times: int = 1) -> dict[str, int]:
    """model_flops: products of forward and backward; hardware_flops: with recomputation; model_bytes: weights and inputs, once.

    times: how often the graph runs in the step.
    """
    flops = _flops(graph)
    read = {buffer for op in range(len(graph)) for buffer in graph.inputs(op) if buffer >= 0}
    kept = (graph.buffers[b] for b in read)
    return {
        "model_flops": times * model_flops(graph),
        "hardware_flops": times * int(flops.sum()),
        "model_bytes": times * sum(b.nbytes for b in kept if b.role in (Role.WEIGHTS, Role.INPUTS)),
    }
