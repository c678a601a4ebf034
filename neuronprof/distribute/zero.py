"""ZeRO: data-parallel ranks share out optimizer state, gradients and weights instead of each keeping all (Rajbhandari et al. 2020).

Stage 1 and 2: gradients are reduce-scattered in buckets, each rank's optimizer works on its part, and the weights are gathered in buckets.
Stage 3 (as PyTorch's fully_shard): a rank keeps its part of each block's weights; they are gathered before the block runs, one block
ahead, and again in backward, and their gradients are reduce-scattered when the block's backward is done.
"""

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from neuronprof.distribute.data_parallel import in_buckets, taken_gradients
from neuronprof.distribute.pieces import BACKWARD, FORWARD, STEP, layers, regions
from neuronprof.graph.edit import GraphEditor
from neuronprof.graph.groups import ReplicaGroup
from neuronprof.graph.ir import CollectiveCall, Graph, Signature, Tensor
from neuronprof.terms import Collective, Role

_GATHER, _REDUCE = 1, 2  # streams
_SHARDED_STATE = 8  # bytes: smaller optimizer states are counters, which every rank keeps
_ROOT = -1


@dataclass(frozen=True)
class Shares:
    """What is shared out: the group, the ZeRO stage, bytes of a bucket."""

    group: ReplicaGroup
    stage: int
    bucket_bytes: int


def share_out(graph: Graph, shares: Shares) -> Graph:
    """A step, or a chunk of one, with ZeRO's collectives and each rank's part of what is shared out."""
    if shares.group.size == 1 or shares.stage == 0:
        return graph
    graph = _Blocks(graph, shares).write() if shares.stage >= 3 else _scattered(graph, shares)
    return keep_parts(_own_step(graph, shares), shares)


def _call(kind: Collective, nbytes: int, shares: Shares, stream: int) -> CollectiveCall:
    return CollectiveCall(kind, nbytes, shares.group, stream=stream)


def _flat(tensor: Tensor) -> Tensor:
    return Tensor(tensor.dtype, (tensor.numel,), (1,))


def _part(tensor: Tensor, ranks: int) -> Tensor:
    """A rank's part of a tensor, as a flat run."""
    return Tensor(tensor.dtype, (max(1, -(-tensor.numel // ranks)),), (1,))


# --- stages 1 and 2


def _scattered(graph: Graph, shares: Shares) -> Graph:
    """Reduce-scatters gradients in buckets after backward has made them, and gathers the weights in buckets after the optimizer."""
    buckets = [b for writes in taken_gradients(graph) for b in in_buckets(writes, graph, shares.bucket_bytes)]
    after: dict[int, list[tuple[list[int], list[Tensor]]]] = defaultdict(list)
    for op, buffers, tensors in buckets:
        after[op].append((buffers, tensors))
    editor = GraphEditor(graph)
    for op in range(len(graph)):
        editor.copy(op)
        for buffers, tensors in after[op]:
            _reduce_scatter(editor, op, buffers, tensors, shares)
    updated = _updated_weights(graph)
    last = len(graph) - 1
    for weights in _grouped(updated, shares.bucket_bytes):
        _gather_in_place(editor, last, weights, shares)
    return editor.finish()


def _reduce_scatter(editor: GraphEditor, op: int, buffers: list[int], tensors: list[Tensor], shares: Shares) -> None:
    parts = [_part(t, shares.group.size) for t in tensors]
    signature = Signature(
        "c10d._reduce_scatter_base_.default",
        tuple(tensors),
        tuple(parts),
        (shares.group.axis,),
        tuple(range(len(tensors))),
    )
    nbytes = sum(t.nbytes for t in tensors)
    call = _call(Collective.REDUCE_SCATTER, nbytes, shares, _REDUCE)
    editor.issue(signature, buffers + buffers, op, call)


def _gather_in_place(editor: GraphEditor, op: int, weights: list[tuple[int, Tensor]], shares: Shares) -> None:
    buffers, tensors = [b for b, _ in weights], [t for _, t in weights]
    parts = tuple(_part(t, shares.group.size) for t in tensors)
    signature = Signature("c10d._allgather_base_.default", parts, tuple(map(_flat, tensors)), (shares.group.axis,))
    call = _call(Collective.ALL_GATHER, sum(t.nbytes for t in tensors), shares, _GATHER)
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
        self._waiting: dict[int, dict[int, Tensor]] = defaultdict(
            dict
        )  # block: gradients that are complete but not reduced
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

    def _weights(self) -> dict[int, dict[int, Tensor]]:
        """The weights of each block, with the layout in which they are seen first."""
        found: dict[int, dict[int, Tensor]] = defaultdict(dict)
        known: set[int] = set()
        for op in np.flatnonzero(self._region != STEP).tolist():
            signature = self._graph.signatures[self._graph.signature[op]]
            for buffer, tensor in zip(self._graph.inputs(op), signature.inputs, strict=True):
                if buffer >= 0 and self._graph.buffers[buffer].role is Role.WEIGHTS and buffer not in known:
                    known.add(buffer)
                    found[int(self._block[op])][buffer] = _flat(tensor)
        return found

    def write(self) -> Graph:
        """The graph with its collectives."""
        graph, needs = self._graph, self._uses()
        order = [(op, block) for op, block, _ in needs]
        final = self._final_gradients()
        ahead = 0
        for op in range(len(graph)):
            while ahead < len(order) and (order[ahead][0] <= op or (ahead > 0 and order[ahead - 1][0] <= op)):
                self._gather(op, order[ahead][1], needs[ahead][2])
                ahead += 1
            self._editor.copy(op, operands=[self._current(b, op) for b in graph.inputs(op) + graph.outputs(op)])
            for buffer, tensor in final.get(op, ()):
                self._waiting[int(self._block[op])][buffer] = tensor
            self._reduce_done(op)
        for block in list(self._waiting):
            self._reduce(len(graph) - 1, block)
        return self._editor.finish()

    def _uses(self) -> list[tuple[int, int, int]]:
        """(first operator, block, last operator) of each stretch in which a block's weights are used, in order."""
        found: list[tuple[int, int, int]] = []
        open_at: dict[tuple[int, int], int] = {}
        for op in np.flatnonzero(self._region != STEP).tolist():
            for buffer in self._graph.inputs(op):
                if buffer < 0 or self._graph.buffers[buffer].role is not Role.WEIGHTS:
                    continue
                block = (
                    next((b for b, weights in self._sizes.items() if buffer in weights), _ROOT)
                    if len(self._sizes) < 3
                    else self._home[buffer]
                )
                key = (block, FORWARD if block == _ROOT else int(self._region[op]))
                if key not in open_at:
                    open_at[key] = len(found)
                    found.append((op, block, op))
                first, _, _ = found[open_at[key]]
                found[open_at[key]] = (first, block, op)
        return found

    @property
    def _home(self) -> dict[int, int]:
        if not hasattr(self, "_home_of"):
            self._home_of = {buffer: block for block, weights in self._sizes.items() for buffer in weights}
        return self._home_of

    def _current(self, buffer: int, op: int) -> int:
        return self._gathered.get(buffer, buffer) if self._region[op] != STEP else buffer

    def _gather(self, op: int, block: int, last: int) -> None:
        """Gathers a block's weights into fresh memory, which is free after its last use; not before the block before it has begun."""
        weights = self._sizes[block]
        buffers, tensors = list(weights), list(weights.values())
        made = [
            self._editor.buffer(replace(self._graph.buffers[b], role=Role.WORKSPACE, name=""), last) for b in buffers
        ]
        parts = tuple(_part(t, self._shares.group.size) for t in tensors)
        trigger, layout = self._trigger(op)
        signature = Signature(
            "c10d._allgather_base_.default", (*parts, *layout), tuple(tensors), (self._shares.group.axis,)
        )
        call = _call(Collective.ALL_GATHER, sum(t.nbytes for t in tensors), self._shares, _GATHER)
        self._editor.issue(signature, buffers + trigger + made, op, call)
        self._gathered.update(zip(buffers, made, strict=True))

    def _trigger(self, op: int) -> tuple[list[int], tuple[Tensor, ...]]:
        """What the operator `op` reads of other operators: no gather runs further ahead than this. A stand-in of one element."""
        for buffer, tensor in zip(
            self._graph.inputs(op), self._graph.signatures[self._graph.signature[op]].inputs, strict=True
        ):
            if buffer >= 0 and self._graph.buffers[buffer].birth >= 0 and self._graph.buffers[buffer].birth < op:
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
            for block in [b for b in self._waiting if b not in (_ROOT, int(self._block[op]))]:
                self._reduce(op, block)
        elif self._region[op] == BACKWARD or (op + 1 < len(self._region) and self._region[op + 1] == STEP):
            for block in list(self._waiting):
                self._reduce(op, block)

    def _reduce(self, op: int, block: int) -> None:
        gradients = self._waiting.pop(block)
        if gradients:
            _reduce_scatter(self._editor, op, list(gradients), list(gradients.values()), self._shares)


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
        inputs = tuple(_part(t, shares.group.size) if t.numel > 1 else t for t in signature.inputs)
        outputs = tuple(_part(t, shares.group.size) if t.numel > 1 else t for t in signature.outputs)
        editor.copy(op, replace(signature, inputs=inputs, outputs=outputs))
    return editor.finish()


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
        replace(b, nbytes=-(-b.nbytes // shares.group.size)) if b.role in roles and b.nbytes > _SHARDED_STATE else b
        for b in graph.buffers
    )
    return replace(graph, buffers=buffers)
