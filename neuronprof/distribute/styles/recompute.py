"""Recomputation: what forward made is thrown away and made again when backward needs it."""

from collections import defaultdict
from dataclasses import replace
from functools import cached_property

import numpy as np

from neuronprof.distribute.pieces import BACKWARD, FORWARD, layers, regions
from neuronprof.errors import NeuronprofError
from neuronprof.graph.edit import GraphEditor
from neuronprof.graph.ir import Graph
from neuronprof.graph.ops import Gemm, OpKind, work
from neuronprof.terms import PHASES, Phase

RECOMPUTE = ("none", "selective", "full")
_RECOMPUTE_PHASE = PHASES.index(Phase.RECOMPUTE)


def recomputed(graph: Graph, what: str) -> Graph:
    """A step that keeps less from forward to backward.

    what: none; selective: only the core of each layer's attention, from the first to the last of its batched products, is computed again
    (Korthikanti et al. 2022; fused attention does so by itself); full: each repeated block is, from its input.

    Raises:
        NeuronprofError: there is no such choice, or nothing in the model repeats.
    """
    if what not in RECOMPUTE:
        raise NeuronprofError(f"--recompute {what} does not exist; choose of {', '.join(RECOMPUTE)}.")
    region, layer = regions(graph), _layers(graph)
    if what == "none" or not (region == BACKWARD).any():
        return graph
    again = _again(graph, region, layer, what)
    if not again and what == "full":
        raise NeuronprofError("--recompute full computes repeated blocks again, and the model has none; leave it out.")
    return _Rewriting(graph, region, layer, again).write() if again else graph


def _layers(graph: Graph) -> np.ndarray:
    """The repeated block of each operator; backward operators outside have that of their forward operator."""
    layer, forward = layers(graph), graph.forward
    linked = np.where(forward >= 0, layer[np.maximum(forward, 0)], -1)
    return np.where(layer >= 0, layer, linked)


def _again(graph: Graph, region: np.ndarray, layer: np.ndarray, what: str) -> dict[int, list[int]]:
    """The forward operators of each block that run again."""
    members: dict[int, list[int]] = defaultdict(list)
    for op in np.flatnonzero((region == FORWARD) & (layer >= 0)).tolist():
        members[int(layer[op])].append(op)
    return members if what == "full" else {b: core for b, ops in members.items() if (core := _core(graph, ops))}


def _core(graph: Graph, ops: list[int]) -> list[int]:
    """From the first to the last product over more than one batch."""
    batched = [op for op in ops if any(g.batch > 1 for g in _gemms(graph, op))]
    return [op for op in ops if batched[0] <= op <= batched[-1]] if len(batched) > 1 else []


def _gemms(graph: Graph, op: int) -> tuple[Gemm, ...]:
    known = work(graph.signatures[graph.signature[op]])
    return known.gemms if known.kind is OpKind.GEMM else ()


class _Rewriting:
    """A graph in which some forward operators of each block run again before the block's backward."""

    def __init__(self, graph: Graph, region: np.ndarray, layer: np.ndarray, again: dict[int, list[int]]) -> None:
        self._graph, self._region, self._layer, self._again = graph, region, layer, again
        self._editor = GraphEditor(graph)
        self._block_of = {op: block for block, ops in again.items() for op in ops}
        self._made = self._thrown_away()
        self._fresh: dict[int, int] = {}
        self._repeated: list[int] = []

    def write(self) -> Graph:
        """The new graph."""
        graph, started = self._graph, set[int]()
        for op in range(len(graph)):
            block = int(self._layer[op])
            if self._region[op] == BACKWARD and block in self._again and block not in started:
                started.add(block)
                self._repeat(block)
            operands = graph.inputs(op) + graph.outputs(op)
            mine = self._region[op] == BACKWARD
            self._editor.copy(op, operands=[self._current(b, block) if mine else b for b in operands])
        self._let_go()
        found = self._editor.finish()
        phase = found.phase.copy()
        phase[self._repeated] = _RECOMPUTE_PHASE
        return replace(found, phase=phase)

    def _thrown_away(self) -> dict[int, int]:
        """The buffers that a block makes in what runs again and its own backward needs: buffer to block.

        What the rest of forward reads anyway is kept where only a part of the block runs again.
        """
        made: dict[int, int] = {}
        for block, ops in self._again.items():
            for op in ops:
                if not self._graph.signatures[self._graph.signature[op]].view:
                    made.update(dict.fromkeys(self._graph.outputs(op), block))
        whole = {b for b, ops in self._again.items() if len(ops) == self._size(b)}
        for op in np.flatnonzero(self._region == FORWARD).tolist():
            for buffer in self._graph.inputs(op):
                if made.get(buffer) not in (None, self._block_of.get(op)) and made[buffer] not in whole:
                    del made[buffer]
        return made

    def _size(self, block: int) -> int:
        return int(((self._region == FORWARD) & (self._layer == block)).sum())

    def _current(self, buffer: int, block: int) -> int:
        return self._fresh.get(buffer, buffer) if self._made.get(buffer) == block else buffer

    def _repeat(self, block: int) -> None:
        """Issues a block's operators again, on fresh buffers."""
        for op in self._again[block]:
            for buffer in self._graph.outputs(op):
                if self._made.get(buffer) == block and buffer not in self._fresh:
                    self._fresh[buffer] = self._editor.buffer(self._graph.buffers[buffer], self._last(buffer, block))
            operands = self._graph.inputs(op) + self._graph.outputs(op)
            renamed = [self._current(b, block) for b in operands]
            signature = self._graph.signatures[self._graph.signature[op]]
            self._repeated.append(self._editor.issue(signature, renamed, op))

    def _last(self, buffer: int, block: int) -> int:
        """The last backward operator of the block that needs a buffer."""
        used = self._uses.get((buffer, block), [])
        return used[-1] if used else int(np.flatnonzero((self._region == BACKWARD) & (self._layer == block))[0])

    @cached_property
    def _uses(self) -> dict[tuple[int, int], list[int]]:
        """The backward operators of each block that read each buffer, by (buffer, block)."""
        used: dict[tuple[int, int], list[int]] = defaultdict(list)
        for op in np.flatnonzero(self._region == BACKWARD).tolist():
            for buffer in self._graph.inputs(op):
                used[buffer, int(self._layer[op])].append(op)
        return used

    def _let_go(self) -> None:
        """The first ones die with their last reader outside their block's backward."""
        last: dict[int, int] = {}
        for op in range(len(self._graph)):
            for buffer in self._graph.inputs(op) + self._graph.outputs(op):
                block = self._made.get(buffer)
                if block is not None and not (self._region[op] == BACKWARD and self._layer[op] == block):
                    last[buffer] = op
        for buffer, op in last.items():
            self._editor.buffers[buffer] = replace(self._editor.buffers[buffer], death=op)
