"""Data parallelism: every rank runs the whole graph on its own batch, and buckets of gradients are all-reduced as backward makes them."""

from dataclasses import dataclass, replace
from math import inf

import numpy as np

from neuronprof.errors import NeuronprofError
from neuronprof.graph.groups import ReplicaGroup
from neuronprof.graph.ir import CollectiveCall, Graph, Signature, Tensor
from neuronprof.terms import PHASES, Collective, Phase, Role

# PyTorch's DistributedDataParallel sends a small first bucket, so that communication starts early.
_FIRST_BUCKET = 1 << 20
Writes = dict[int, tuple[int, Tensor]]  # gradient buffer: operator that wrote it, and its layout


@dataclass(frozen=True)
class Replicas:
    """Ranks that have the same weights. group: most weights; experts: those whose names are in `names`, if a group shares them out."""

    group: ReplicaGroup
    experts: ReplicaGroup | None = None
    names: frozenset[str] = frozenset()

    @property
    def groups(self) -> list[ReplicaGroup]:
        """Those of more than one rank."""
        return [g for g in (self.group, self.experts) if g is not None and g.size > 1]

    def of(self, name: str) -> ReplicaGroup:
        """The ranks that have the weight, or what belongs to it, of this name."""
        shared = name in self.names or name.rpartition(".")[0] in self.names
        return self.experts if shared and self.experts is not None else self.group

    def having(self, group: ReplicaGroup, writes: Writes, graph: Graph) -> Writes:
        """Those gradients that this group has in common."""
        return {b: w for b, w in writes.items() if self.of(graph.buffers[b].name) == group}


_BACKWARD = (PHASES.index(Phase.BACKWARD), PHASES.index(Phase.RECOMPUTE))


def data_parallel(graph: Graph, replicas: Replicas, bucket_bytes: int | None) -> Graph:
    """The graph of one replica: gradients in buckets of up to bucket_bytes, each followed by its all-reduce.

    A bucket is sent as soon as backward has written its last gradient for the last time before an optimizer takes it, in the order in
    which the gradients become ready; with gradient accumulation that is the last micro-batch. bucket_bytes None: all
    gradients of an optimizer in one bucket. One rank leaves the graph as it is.

    Raises:
        NeuronprofError: buckets of no size.
    """
    if bucket_bytes is not None and bucket_bytes < 1:
        raise NeuronprofError(f"A gradient bucket needs at least 1 byte, not {bucket_bytes}.")
    for group in replicas.groups:
        taken = [replicas.having(group, writes, graph) for writes in gradients_to_reduce(graph, bucket_bytes is None)]
        buckets = [bucket for writes in taken for bucket in in_buckets(writes, graph, bucket_bytes)]
        graph = _insert(graph, buckets, group) if buckets else graph
    return graph


def gradients_to_reduce(graph: Graph, at_once: bool) -> list[Writes]:
    """As `taken_gradients`; at_once: what only updates has the gradients that backward left to it, which are reduced before all else."""
    if not at_once or np.isin(graph.phase, _BACKWARD).any():
        return taken_gradients(graph)
    left: Writes = {}
    for op, number in enumerate(graph.signature.tolist()):
        for buffer, tensor in zip(graph.inputs(op), graph.signatures[number].inputs, strict=True):
            if buffer >= 0 and graph.buffers[buffer].role is Role.GRADIENTS:
                left.setdefault(buffer, (-1, tensor))
    return [left]


def taken_gradients(graph: Graph) -> list[Writes]:
    """The gradients that each optimizer takes, with the backward operator that wrote each last and its layout, in the order of these.

    What takes a gradient is the first operator after backward that has it as an operand: an optimizer's, or what unscales or clips
    before it. Gradients that nobody takes are sent only if nobody takes any.
    """
    taken: list[Writes] = []
    pending: Writes = {}
    between = True  # backward has run since gradients were last taken
    for op, phase in enumerate(graph.phase.tolist()):
        if phase in _BACKWARD:
            for buffer, tensor in _written_gradients(graph, op):
                pending.pop(buffer, None)
                pending[buffer] = (op, tensor)
                between = True
            continue
        for buffer in [b for b in graph.inputs(op) if b in pending and not graph.signatures[graph.signature[op]].view]:
            if between:
                taken.append({})
                between = False
            if buffer in pending:
                taken[-1][buffer] = pending.pop(buffer)
    return [dict(sorted(writes.items(), key=lambda item: item[1][0])) for writes in taken or [pending]]


def _written_gradients(graph: Graph, op: int) -> list[tuple[int, Tensor]]:
    signature, inputs = graph.signatures[graph.signature[op]], graph.inputs(op)
    mutated = [(inputs[i], signature.inputs[i]) for i in signature.mutates]
    written = [] if signature.view else [*zip(graph.outputs(op), signature.outputs, strict=False), *mutated]
    return [(b, t) for b, t in written if b >= 0 and graph.buffers[b].role is Role.GRADIENTS]


def in_buckets(writes: Writes, graph: Graph, bucket_bytes: int | None) -> list[tuple[int, list[int], list[Tensor]]]:
    """(operator after which it is sent, -1: before all, buffers, layouts) of each bucket; bucket_bytes None: one bucket."""
    buckets: list[tuple[int, list[int], list[Tensor]]] = []
    size: float = inf if bucket_bytes is None else bucket_bytes
    limit, held = (min(_FIRST_BUCKET, size) if size < inf else size), 0
    buffers: list[int] = []
    for buffer, (op, _) in writes.items():
        buffers.append(buffer)
        held += graph.buffers[buffer].nbytes
        if held >= limit:
            buckets.append((op, buffers, [_flat(writes[b][1]) for b in buffers]))
            buffers, held, limit = [], 0, size
    if buffers:
        buckets.append((writes[buffers[-1]][0], buffers, [_flat(writes[b][1]) for b in buffers]))
    return buckets


def _flat(tensor: Tensor) -> Tensor:
    return Tensor(tensor.dtype, (tensor.numel,), (1,))


def _insert(graph: Graph, buckets: list[tuple[int, list[int], list[Tensor]]], group: ReplicaGroup) -> Graph:
    """The graph with an all-reduce after the operator that completes each bucket."""
    count = len(buckets)
    at = np.array([op + 1 for op, _, _ in buckets])
    new_index = np.arange(len(graph)) + np.searchsorted(at, np.arange(len(graph)), side="right")
    first_signature = len(graph.signatures)
    signatures = tuple(
        Signature("c10d.allreduce_.default", tuple(t), tuple(t), (group.axis,), tuple(range(len(t))))
        for _, _, t in buckets
    )
    moved = {-1: -1, **dict(enumerate(new_index.tolist()))}
    collectives = {moved[op]: call for op, call in graph.collectives.items()}
    for number, (op, _, tensors) in enumerate(buckets):
        nbytes = sum(t.nbytes for t in tensors)
        collectives[op + 1 + number] = CollectiveCall(Collective.ALL_REDUCE, nbytes, group, stream=2)
    operand_counts = np.insert(np.diff(graph.operand_ptr), at, [2 * len(b) for _, b, _ in buckets])
    operands = np.insert(
        graph.operands,
        np.repeat(graph.operand_ptr[at], [2 * len(b) for _, b, _ in buckets]),
        [b for _, buffers, _ in buckets for b in buffers + buffers],
    )
    forward = np.insert(graph.forward, at, -1)
    return replace(
        graph,
        signatures=graph.signatures + signatures,
        signature=np.insert(graph.signature, at, np.arange(first_signature, first_signature + count)),
        phase=np.insert(graph.phase, at, PHASES.index(Phase.BACKWARD)),
        module=np.insert(graph.module, at, 0),
        source=np.insert(graph.source, at, 0),
        region=np.insert(graph.region, at, 0),
        forward=np.where(forward < 0, -1, new_index[np.maximum(forward, 0)]).astype(np.int32),
        operand_ptr=np.concatenate([[0], np.cumsum(operand_counts)]),
        operands=operands.astype(np.int32),
        buffers=tuple(replace(b, birth=moved[b.birth], death=moved[b.death]) for b in graph.buffers),
        collectives=collectives,
    )
