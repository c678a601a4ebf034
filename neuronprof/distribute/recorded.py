"""Stages as a script wrote them: cut at their messages, so that micro-batches which run the same operators are compiled once."""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from neuronprof.distribute.plan import StagePlan
from neuronprof.graph.ir import Graph, Signature
from neuronprof.terms import PHASES, Collective, Phase, Role

_OPTIMIZER = PHASES.index(Phase.OPTIMIZER)


def stage_plan(graph: Graph) -> StagePlan:
    """What a recorded pipeline stage runs: the pieces between its messages, one after another."""
    graph = _without_offsets(graph)
    bounds = _cuts(graph)
    chunks: list[Graph] = []
    number: dict[bytes, int] = {}
    order = []
    for microbatch, (start, stop) in zip(_microbatches(graph, bounds), pairwise(bounds), strict=True):
        piece = graph.piece(start, stop)
        chunk = number.setdefault(_key(piece), len(chunks))
        if chunk == len(chunks):
            chunks.append(piece)
        order.append((chunk, microbatch))
    return StagePlan(tuple(chunks), tuple(order))


def _microbatches(graph: Graph, bounds: list[int]) -> list[int]:
    """Of each piece a number that it shares with those that made the activations it uses; -1 for what the optimizer is in."""
    number = list(range(len(bounds) - 1))
    of = np.searchsorted(bounds, np.arange(len(graph)), side="right") - 1
    for op, piece in enumerate(of.tolist()):
        for buffer in graph.inputs(op):
            made = graph.buffers[buffer] if buffer >= 0 else None
            if made is not None and made.birth >= 0 and made.role is Role.ACTIVATIONS:
                number[piece] = min(number[piece], number[int(of[made.birth])])
    for piece in np.unique(of[graph.phase == _OPTIMIZER]).tolist():
        number[piece] = -1
    return number


def _without_offsets(graph: Graph) -> Graph:
    """Micro-batches are views of one batch of token numbers at different offsets, which cost the same."""
    number: dict[Signature, int] = {}
    same = [number.setdefault(_at_zero(s), len(number)) for s in graph.signatures]
    return replace(graph, signatures=tuple(number), signature=np.array(same, np.int32)[graph.signature])


def _at_zero(signature: Signature) -> Signature:
    inputs, outputs = (
        tuple(replace(t, offset=0) if "int" in t.dtype else t for t in tensors)
        for tensors in (signature.inputs, signature.outputs)
    )
    return replace(signature, inputs=inputs, outputs=outputs)


def _key(piece: Graph) -> bytes:
    """A digest of what a piece does, with whom it exchanges what, and what it frees without having touched it."""
    touched = set(piece.operands.tolist())
    freed = sorted(
        (b.death, b.nbytes, b.role)
        for i, b in enumerate(piece.buffers)
        if b.death >= 0 and b.nbytes and i not in touched
    )
    return piece.content() + repr((sorted(piece.collectives.items()), freed)).encode()


def _cuts(graph: Graph) -> list[int]:
    """Where pieces begin, and the end: before what is received and after what is sent, unless what a cut separates waits for each other."""
    messages = {op: call.kind for op, call in graph.collectives.items()}
    wanted = {op for op, kind in messages.items() if kind == Collective.RECV}
    wanted |= {op + 1 for op, kind in messages.items() if kind == Collective.SEND}
    together = _together(graph)
    return [0, *sorted(op for op in wanted if 0 < op < len(graph) and not together[op]), len(graph)]


def _together(graph: Graph) -> np.ndarray:
    """Whether a cut before an operator would part a transfer from what makes its data, or from the first to use its result, bool[n + 1]."""
    change = np.zeros(len(graph) + 2, np.int64)
    written: dict[int, int] = {}  # buffer: the operator that wrote it last
    arriving: dict[int, int] = {}  # buffer: the transfer that nobody has used yet
    for op in range(len(graph)):
        signature = graph.signatures[graph.signature[op]]
        if signature.view:
            continue
        inputs, transfer = graph.inputs(op), op in graph.collectives or signature.name.startswith("neuronprof.h2d")
        starts = [arriving.pop(b) for b in inputs if b in arriving]
        starts += [written[b] for b in inputs if transfer and b in written]
        if starts:  # no cut between the first of them and this one
            change[min(starts) + 1] += 1
            change[op + 1] -= 1
        for buffer in (*graph.outputs(op), *(inputs[i] for i in signature.mutates)):
            written[buffer] = op
            if transfer:
                arriving[buffer] = op
    return np.cumsum(change) > 0
