"""ZeRO: data-parallel ranks share out optimizer state, gradients and weights instead of each keeping all (Rajbhandari et al. 2020).

Stage 1 and 2: gradients are reduce-scattered in buckets, each rank's optimizer works on its part, and the weights are gathered in buckets.
Stage 3 (as PyTorch's fully_shard): a rank keeps its part of each block's weights; they are gathered before the block runs, one block
ahead or as many as asked, and again in backward, and their gradients are reduce-scattered when the block's backward is done.
"""

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from neuronprof.distribute.data_parallel import Replicas, gradients_to_reduce, in_buckets, taken_gradients
from neuronprof.distribute.pieces import BACKWARD, FORWARD, STEP, layers, regions
from neuronprof.graph.edit import GraphEditor
from neuronprof.graph.groups import ReplicaGroup
from neuronprof.graph.ir import CollectiveCall, Graph, Signature, Tensor
from neuronprof.terms import Collective, Role

_GATHER, _REDUCE = 1, 2  # streams
_SHARDED_STATE = 8  # bytes: smaller optimizer states are counters, which every rank keeps
_ROOT = -1
_FOLLOWING = (
    4  # operators from the first that uses a weight to the one that reads the activation too: views, casts, that one
)
_Part = tuple[
    int, ReplicaGroup
]  # weights that are gathered together: the block in which they are, the ranks that have them


@dataclass(frozen=True)
class Shares:
    """What is shared out: among whom, the ZeRO stage, bytes of a bucket.

    at_once: gradients are reduced in one go after backward; prefetch: blocks whose weights are gathered ahead of the one that runs.
    """

    replicas: Replicas
    stage: int
    bucket_bytes: int
    at_once: bool = False
    prefetch: int = 1


def share_out(graph: Graph, shares: Shares) -> Graph:
    """A step, or a chunk of one, with ZeRO's collectives and each rank's part of what is shared out."""
    if not shares.replicas.groups or shares.stage == 0:
        return graph
    graph = _Blocks(graph, shares).write() if shares.stage >= 3 else _scattered(graph, shares)
    return keep_parts(_own_step(graph, shares), shares)


def _call(kind: Collective, nbytes: int, group: ReplicaGroup, stream: int) -> CollectiveCall:
    return CollectiveCall(kind, nbytes, group, stream=stream)


def _flat(tensor: Tensor) -> Tensor:
    return Tensor(tensor.dtype, (tensor.numel,), (1,))


def _part(tensor: Tensor, ranks: int) -> Tensor:
    """A rank's part of a tensor, as a flat run."""
    return Tensor(tensor.dtype, (max(1, -(-tensor.numel // ranks)),), (1,))


# --- stages 1 and 2


def _scattered(graph: Graph, shares: Shares) -> Graph:
    """Reduce-scatters gradients in buckets after backward has made them, and gathers the weights in buckets after the optimizer."""
    after = _buckets(graph, shares)
    editor = GraphEditor(graph)
    for op in range(-1, len(graph)):
        if op >= 0:
            editor.copy(op)
        for buffers, tensors, group in after[op]:
            _reduce_scatter(editor, max(op, 0), buffers, tensors, group)
    updated = _updated_weights(graph)
    for group in shares.replicas.groups:
        own = [(b, t) for b, t in updated if shares.replicas.of(graph.buffers[b].name) == group]
        for weights in _grouped(own, shares.bucket_bytes):
            _gather_in_place(editor, len(graph) - 1, weights, group)
    return editor.finish()


def _buckets(graph: Graph, shares: Shares) -> dict[int, list[tuple[list[int], list[Tensor], ReplicaGroup]]]:
    """Gradients that are reduced together, with their layouts and ranks, by the operator after which they are sent (-1: before all)."""
    found: dict[int, list[tuple[list[int], list[Tensor], ReplicaGroup]]] = defaultdict(list)
    size = None if shares.at_once else shares.bucket_bytes
    for writes in gradients_to_reduce(graph, shares.at_once):
        for group in shares.replicas.groups:
            together = shares.replicas.having(group, writes, graph)
            for op, buffers, tensors in in_buckets(together, graph, size):
                found[op].append((buffers, tensors, group))
    return found


def _reduce_scatter(
    editor: GraphEditor, op: int, buffers: list[int], tensors: list[Tensor], group: ReplicaGroup
) -> None:
    parts = [_part(t, group.size) for t in tensors]
    signature = Signature(
        "c10d._reduce_scatter_base_.default",
        tuple(tensors),
        tuple(parts),
        (group.axis,),
    )
    nbytes = sum(t.nbytes for t in tensors)
    call = _call(Collective.REDUCE_SCATTER, nbytes, group, _REDUCE)
    editor.issue(signature, buffers + buffers, op, call)


def _gather_in_place(editor: GraphEditor, op: int, weights: list[tuple[int, Tensor]], group: ReplicaGroup) -> None:
    buffers, tensors = [b for b, _ in weights], [t for _, t in weights]
    parts = tuple(_part(t, group.size) for t in tensors)
    signature = Signature("c10d._allgather_base_.default", parts, tuple(map(_flat, tensors)), (group.axis,))
    call = _call(Collective.ALL_GATHER, sum(t.nbytes for t in tensors), group, _GATHER)
    editor.issue(signature, buffers + buffers, op, call)


def _updated_weights(graph: Graph) -> list[tuple[int, Tensor]]:
    """The weights that the step writes, in order."""
    found: dict[int, Tensor] = {}
    for op in (
        np.flatnonzero(regions(graph) == STEP).tolist() if (regions(graph) == BACKWARD).any() else range(len(graph))
    ):
        signature, inputs = graph.signatures[graph.signature[op]], graph.inputs(op)
        for i in signature.mutates:
            if inputs[i] >= 0 and graph.buffers[inputs[i]].role is Role.WEIGHTS:
                found.setdefault(inputs[i], signature.inputs[i])
    return list(found.items())


def _grouped(weights: list[tuple[int, Tensor]], bucket_bytes: int) -> list[list[tuple[int, Tensor]]]:
    groups: list[list[tuple[int, Tensor]]] = []
    held = bucket_bytes
    for buffer, tensor in weights:
        if held >= bucket_bytes:
            groups.append([])
            held = 0
        groups[-1].append((buffer, tensor))
        held += tensor.nbytes
    return groups


# --- stage 3


class _Blocks:
    """Gathers and scatters block by block.

    What is in no block is gathered at the start of forward and kept (as the root module of FSDP is).
    """

    def __init__(self, graph: Graph, shares: Shares) -> None:
        self._graph, self._shares = graph, shares
        self._editor = GraphEditor(graph)
        self._layer, self._region = layers(graph), self._regions()
        self._block = self._blocks()
        self._gathered: dict[int, int] = {}
        self._waiting: dict[_Part, dict[int, Tensor]] = defaultdict(dict)  # gradients: complete, but not reduced
        self._sizes = self._weights()

    def _regions(self) -> np.ndarray:
        found = regions(self._graph)
        if (found == BACKWARD).any() or not any(self._writes_weights(op) for op in range(len(self._graph))):
            return found
        return np.full(len(self._graph), STEP, np.int8)  # a chunk that only updates

    def _writes_weights(self, op: int) -> bool:
        signature, inputs = self._graph.signatures[self._graph.signature[op]], self._graph.inputs(op)
        return any(self._graph.buffers[inputs[i]].role is Role.WEIGHTS for i in signature.mutates if inputs[i] >= 0)

    def _blocks(self) -> np.ndarray:
        """Block of each forward and backward operator; backward operators without one have that of their forward operator."""
        forward = self._graph.forward
        linked = np.where(forward >= 0, self._layer[np.maximum(forward, 0)], _ROOT)
        return np.where(self._layer >= 0, self._layer, linked)

    def _part_of(self, op: int, buffer: int) -> _Part:
        """The weights with which a weight or a gradient is gathered or scattered."""
        return int(self._block[op]), self._shares.replicas.of(self._graph.buffers[buffer].name)

    def _weights(self) -> dict[_Part, dict[int, Tensor]]:
        """The weights of each block, with the layout in which they are seen first."""
        found: dict[_Part, dict[int, Tensor]] = defaultdict(dict)
        known: set[int] = set()
        for op in np.flatnonzero(self._region != STEP).tolist():
            signature = self._graph.signatures[self._graph.signature[op]]
            for buffer, tensor in zip(self._graph.inputs(op), signature.inputs, strict=True):
                if buffer >= 0 and self._graph.buffers[buffer].role is Role.WEIGHTS and buffer not in known:
                    known.add(buffer)
                    found[self._part_of(op, buffer)][buffer] = _flat(tensor)
        return found

    def write(self) -> Graph:
        """The graph with its collectives."""
        graph, needs = self._graph, self._uses()
        order = [(op, part) for op, part, _ in needs]
        final = self._final_gradients()
        ahead, gathered_at = 0, self._gathered_at(order)
        for op in range(len(graph)):
            while ahead < len(order) and gathered_at[ahead] <= op:
                self._gather(op, order[ahead][1], needs[ahead][2])
                ahead += 1
            self._editor.copy(op, operands=[self._current(b, op) for b in graph.inputs(op) + graph.outputs(op)])
            for buffer, tensor in final.get(op, ()):
                self._waiting[self._part_of(op, buffer)][buffer] = tensor
            self._reduce_done(op)
        for part in list(self._waiting):
            self._reduce(len(graph) - 1, part)
        return self._editor.finish()

    def _gathered_at(self, order: list[tuple[int, _Part]]) -> list[int]:
        """The operator before which each use's weights are gathered: `prefetch` uses ahead, but not before the same weights' last use."""
        found: list[int] = []
        before: dict[_Part, int] = {}
        for number, (op, part) in enumerate(order):
            ahead = order[max(0, number - self._shares.prefetch)][0]
            found.append(max(ahead, before.get(part, ahead)))
            before[part] = op
        return found

    def _uses(self) -> list[tuple[int, _Part, int]]:
        """(first operator, part, last operator) of each stretch in which a block's weights are used, in order."""
        found: list[tuple[int, _Part, int]] = []
        open_at: dict[tuple[_Part, int], int] = {}
        for op in np.flatnonzero(self._region != STEP).tolist():
            for buffer in self._graph.inputs(op):
                if buffer < 0 or self._graph.buffers[buffer].role is not Role.WEIGHTS:
                    continue
                part = self._home[buffer]
                if part[1].size == 1:
                    continue
                key = (part, FORWARD if part[0] == _ROOT else int(self._region[op]))
                if key not in open_at:
                    open_at[key] = len(found)
                    found.append((op, part, op))
                first, _, _ = found[open_at[key]]
                found[open_at[key]] = (first, part, op)
        return found

    @property
    def _home(self) -> dict[int, _Part]:
        if not hasattr(self, "_home_of"):
            self._home_of = {buffer: part for part, weights in self._sizes.items() for buffer in weights}
        return self._home_of

    def _current(self, buffer: int, op: int) -> int:
        return self._gathered.get(buffer, buffer) if self._region[op] != STEP else buffer

    def _gather(self, op: int, part: _Part, last: int) -> None:
        """Gathers a block's weights into fresh memory, which is free after its last use; not before the block before it has begun."""
        weights, group = self._sizes[part], part[1]
        buffers, tensors = list(weights), list(weights.values())
        made = [
            self._editor.buffer(replace(self._graph.buffers[b], role=Role.WORKSPACE, name=""), last) for b in buffers
        ]
        parts = tuple(_part(t, group.size) for t in tensors)
        trigger, layout = self._trigger(op)
        signature = Signature("c10d._allgather_base_.default", (*parts, *layout), tuple(tensors), (group.axis,))
        call = _call(Collective.ALL_GATHER, sum(t.nbytes for t in tensors), group, _GATHER)
        self._editor.issue(signature, buffers + trigger + made, op, call)
        self._gathered.update(zip(buffers, made, strict=True))

    def _trigger(self, op: int) -> tuple[list[int], tuple[Tensor, ...]]:
        """What `op`, or where it only views a weight one that soon follows, reads of those before it: no gather runs further ahead.

        A stand-in of one element.
        """
        graph = self._graph
        for reader in range(op, min(op + _FOLLOWING, len(graph))):
            layouts = graph.signatures[graph.signature[reader]].inputs
            for buffer, tensor in zip(graph.inputs(reader), layouts, strict=True):
                if buffer >= 0 and 0 <= graph.buffers[buffer].birth < op:
                    return [self._current(buffer, op)], (Tensor(tensor.dtype, (1,), (1,)),)
        return [], ()

    def _final_gradients(self) -> dict[int, list[tuple[int, Tensor]]]:
        """The operator that writes each gradient last: operator to (gradient, layout)."""
        last: dict[int, tuple[int, Tensor]] = {}
        for writes in taken_gradients(self._graph):
            last |= writes
        found: dict[int, list[tuple[int, Tensor]]] = defaultdict(list)
        for buffer, (op, tensor) in last.items():
            found[op].append((buffer, _flat(tensor)))
        return found

    def _reduce_done(self, op: int) -> None:
        """Reduces the blocks behind the one that runs now."""
        if self._region[op] == BACKWARD:
            for part in [p for p in self._waiting if p[0] not in (_ROOT, int(self._block[op]))]:
                self._reduce(op, part)
        elif self._region[op] == BACKWARD or (op + 1 < len(self._region) and self._region[op + 1] == STEP):
            for part in list(self._waiting):
                self._reduce(op, part)

    def _reduce(self, op: int, part: _Part) -> None:
        gradients = self._waiting.pop(part)
        if gradients and part[1].size > 1:
            _reduce_scatter(self._editor, op, list(gradients), list(gradients.values()), part[1])


# --- what each rank then works on and keeps


def _own_step(graph: Graph, shares: Shares) -> Graph:
    """The optimizer on a rank's part of each tensor."""
    region = regions(graph)
    updates = (
        region == STEP
        if (region == BACKWARD).any()
        else np.array([_updates(graph, op) for op in range(len(graph))], bool)
    )
    editor = GraphEditor(graph)
    for op in range(len(graph)):
        signature = graph.signatures[graph.signature[op]]
        if not updates[op] or op in graph.collectives:
            editor.copy(op)
            continue
        ranks = _ranks(graph, op, shares.replicas)
        inputs = tuple(_part(t, ranks[i % len(ranks)]) if t.numel > 1 else t for i, t in enumerate(signature.inputs))
        outputs = tuple(_part(t, ranks[i % len(ranks)]) if t.numel > 1 else t for i, t in enumerate(signature.outputs))
        editor.copy(op, replace(signature, inputs=inputs, outputs=outputs))
    return editor.finish()


def _ranks(graph: Graph, op: int, replicas: Replicas) -> list[int]:
    """Among how many ranks each place of an optimizer's lists is shared out; an operator on one tensor has lists of one place."""
    if replicas.experts is None:
        return [replicas.group.size]
    inputs, outputs = graph.inputs(op), graph.outputs(op)
    buffers = [graph.buffers[b] for b in inputs if b >= 0]
    count = sum(b.role is Role.WEIGHTS for b in buffers) or len(outputs) or 1
    ranks = [replicas.group.size] * count
    for place, buffer in enumerate(inputs):
        if buffer >= 0 and replicas.of(graph.buffers[buffer].name) == replicas.experts:
            ranks[place % count] = replicas.experts.size
    return ranks


def _updates(graph: Graph, op: int) -> bool:
    """Whether an operator of a chunk that has no backward works for the optimizer."""
    return any(b >= 0 and graph.buffers[b].role in (Role.OPTIMIZER_STATE, Role.GRADIENTS) for b in graph.inputs(op))


def keep_parts(graph: Graph, shares: Shares) -> Graph:
    """Buffers as large as a rank's part of them."""
    roles = (
        Role.OPTIMIZER_STATE,
        *((Role.GRADIENTS,) if shares.stage >= 2 else ()),
        *((Role.WEIGHTS,) if shares.stage >= 3 else ()),
    )
    buffers = tuple(
        replace(b, nbytes=-(-b.nbytes // shares.replicas.of(b.name).size))
        if b.role in roles and b.nbytes > _SHARDED_STATE
        else b
        for b in graph.buffers
    )
    return replace(graph, buffers=buffers)
