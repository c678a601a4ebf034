"""Execution styles that change what a step computes: recomputation in backward, products in FP8, gradients in FP32."""

from dataclasses import dataclass

from neuronprof.distribute.styles.fp8 import in_fp8
from neuronprof.distribute.styles.gradients import in_fp32
from neuronprof.distribute.styles.recompute import RECOMPUTE, recomputed
from neuronprof.graph.ir import Graph

__all__ = ["RECOMPUTE", "Style", "styled"]


@dataclass(frozen=True)
class Style:
    """How a step is run.

    recompute: what is thrown away after forward and computed again in backward, see `recomputed`; fp8: products of repeated blocks are, see
    `in_fp8`; fp32_gradients: those of 16 bits are, see `in_fp32`.
    """

    recompute: str = "none"
    fp8: bool = False
    fp32_gradients: bool = False


def styled(graph: Graph, style: Style) -> Graph:
    """A step as it is run.

    Raises:
        NeuronprofError: nothing in the model repeats.
    """
    graph = recomputed(graph, style.recompute)
    graph = in_fp8(graph) if style.fp8 else graph
    return in_fp32(graph) if style.fp32_gradients else graph
