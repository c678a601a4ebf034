"""Execution styles that change what a step computes: recomputation in backward, products in FP8."""

from neuronprof.distribute.styles.fp8 import in_fp8
from neuronprof.distribute.styles.recompute import RECOMPUTE, recomputed
from neuronprof.graph.ir import Graph

__all__ = ["RECOMPUTE", "styled"]


def styled(graph: Graph, recompute: str = "none", *, fp8: bool = False) -> Graph:
    """A step as it is run.

    recompute: what is thrown away after forward and computed again in backward, see `recomputed`; fp8: products of repeated blocks are, see
    `in_fp8`.

    Raises:
        NeuronprofError: nothing in the model repeats.
    """
    graph = recomputed(graph, recompute)
    return in_fp8(graph) if fp8 else graph
