"""Expert parallelism: each rank of a group has a part of the experts, and rows go to the rank that has theirs and back.

This is GShard's scheme (Lepikhin et al. 2020). Before the experts of a layer run, an all-to-all dispatches the rows that each rank's router
picked; behind them another one combines what the experts made of them; backward has both again. Routing counts as balanced: every expert
gets as many rows.
"""

from dataclasses import dataclass, replace

from neuronprof.distribute.experts import ExpertPass, Experts, find_experts
from neuronprof.distribute.owned import restrict
from neuronprof.distribute.sharding.placement import Dim, part
from neuronprof.errors import NeuronprofError
from neuronprof.graph.edit import GraphEditor
from neuronprof.graph.groups import ReplicaGroup
from neuronprof.graph.ir import Buffer, CollectiveCall, Graph, Signature, Tensor
from neuronprof.terms import Collective, Role

_OWNED = (Role.WEIGHTS, Role.GRADIENTS, Role.OPTIMIZER_STATE)
_STACKED = -1
_BATCHED = 3  # dimensions of rows in batches of experts


@dataclass(frozen=True)
class SharedExperts:
    """graph: of one rank; names: of the weights that only the ranks with the same experts have in common."""

    graph: Graph
    names: frozenset[str]


def share_experts(graph: Graph, group: ReplicaGroup) -> SharedExperts:
    """The graph of a rank that has 1/size of the experts.

    Raises:
        NeuronprofError: there are no experts, or their number is no multiple.
    """
    found = find_experts(graph)
    if not found.passes:
        raise NeuronprofError(
            f"--ep {group.size} finds no experts: no weights of the model work on rows that a router picks; leave it out."
        )
    uneven = next((p.count for p in found.passes if p.count % group.size), 0)
    if uneven:
        raise NeuronprofError(f"--ep {group.size} cannot divide the {uneven} experts; choose a divisor of {uneven}.")
    names = {graph.buffers[b].name for b in found.owned if graph.buffers[b].role is Role.WEIGHTS}
    return SharedExperts(_Sharer(graph, group, found).write(), frozenset(names - {""}))


class _Sharer:
    def __init__(self, graph: Graph, group: ReplicaGroup, found: Experts) -> None:
        self._graph, self._group, self._found = graph, group, found
        self._editor = GraphEditor(graph)
        self._passes = {min(p.ops): p for p in found.passes}
        self._expert_ops = {op for p in found.passes for op in p.ops}
        self._elsewhere = self._used_elsewhere()
        self._lost = {b for b, (expert, count) in found.owned.items() if expert >= count // group.size}
        self._pass_of = {b: p for p in found.passes for b in p.rows}
        self._moved: dict[int, int] = {}  # rows: where this rank's experts have theirs
        self._sent: set[int] = set()  # rows that were dispatched

    def write(self) -> Graph:
        """The graph of one rank."""
        op = 0
        while op < len(self._graph):
            if op in self._passes:
                op = self._window(self._passes[op])
            else:
                self._plain(op)
                op += 1
        self._resize()
        return _relived(self._editor.finish())

    def _signature(self, op: int) -> Signature:
        return self._graph.signatures[self._graph.signature[op]]

    def _used_elsewhere(self) -> set[int]:
        """Buffers that other operators than the experts' have."""
        used: set[int] = set()
        for op in range(len(self._graph)):
            if op not in self._expert_ops and not self._signature(op).view:
                used.update(self._graph.inputs(op))
        return used

    # --- operators

    def _plain(self, op: int) -> None:
        """An operator outside of the experts, on the weights and states that this rank has."""
        signature, inputs, outputs = self._signature(op), self._graph.inputs(op), self._graph.outputs(op)
        if signature.view or (self._found.owned.keys().isdisjoint(inputs + outputs) and self._lost.isdisjoint(inputs)):
            self._editor.copy(op)
            return
        listed = "_foreach_" in signature.name or "_fused_" in signature.name
        owners = [self._owner(b, listed) for b in inputs]
        if 1 in owners and 0 not in owners:
            self._lost.update(b for b in outputs if b >= 0)
            return
        new, operands = restrict(signature, inputs, outputs, owners, 0)
        self._lost.update(set(outputs).difference(operands))
        count = len(new.inputs)
        parts = [self._owned_part(b, t) for b, t in zip(operands, (*new.inputs, *new.outputs), strict=True)]
        self._editor.copy(op, replace(new, inputs=tuple(parts[:count]), outputs=tuple(parts[count:])), operands)

    def _owner(self, buffer: int, listed: bool) -> int:
        """0: this rank, 1: another one, -1: nobody in particular."""
        if buffer in self._lost:
            return 1
        known = buffer >= 0 and self._graph.buffers[buffer].role in _OWNED
        return 0 if known or not listed else -1

    def _owned_part(self, buffer: int, tensor: Tensor) -> Tensor:
        """This rank's part of a stack of weights."""
        expert, count = self._found.owned.get(buffer, (0, 1))
        if expert != _STACKED or tensor.numel < count:
            return tensor
        outermost = max(range(len(tensor.shape)), key=lambda i: tensor.stride[i] if tensor.stride else -i)
        return part(tensor, Dim(outermost, count, tensor.shape[outermost] // count), self._group.size)

    # --- a pass of a layer's experts

    def _window(self, here: ExpertPass) -> int:
        """Issues what lies between the first and the last operator of a pass, the experts' own together; returns the operator after it."""
        start, stop = min(here.ops), max(here.ops) + 1
        after = self._dependent(here, start, stop)
        for op in range(start, stop):
            if op not in here.ops and op not in after:
                self._plain(op)
        self._dispatch(here, start)
        exits = self._exits(here)
        for buffer in exits:
            if here.rows[buffer] < self._share(here):
                self._moved[buffer] = self._fresh(buffer, here)
        for op in sorted(here.ops):
            self._local(op, here)
        self._combine(here, exits, stop - 1)
        for op in sorted(after):
            self._plain(op)
        return stop

    def _dependent(self, here: ExpertPass, start: int, stop: int) -> set[int]:
        """Operators in between that have to wait for the experts, or must not overwrite what waits."""
        after: set[int] = set()
        written: set[int] = set()
        read: set[int] = set()
        for op in range(start, stop):
            inputs, outputs = self._graph.inputs(op), self._graph.outputs(op)
            changed = {*outputs, *(inputs[i] for i in self._signature(op).mutates)}
            if op in here.ops or not written.isdisjoint(inputs) or not read.isdisjoint(changed):
                written |= changed
                if op not in here.ops:
                    after.add(op)
                    read.update(inputs)
        return after

    def _share(self, here: ExpertPass) -> int:
        """Experts of one rank."""
        return here.count // self._group.size

    def _size(self, here: ExpertPass) -> int:
        """Rows of each expert of this rank, where they stand apart."""
        rows: dict[int, int] = {}
        for buffer, tensor in here.entries.items():
            rows.setdefault(here.rows[buffer], tensor.shape[_outermost(tensor)])
        return max(1, round(sum(rows.values()) / self._share(here)))

    def _rows(self, tensor: Tensor, here: ExpertPass) -> Tensor:
        """Rows as this rank's experts see them: as many as before in all, of fewer experts."""
        if not here.stacked:
            return replace(tensor, shape=_with(tensor.shape, _outermost(tensor), self._size(here)))
        if len(tensor.shape) < _BATCHED or not tensor.stride:
            return tensor  # rows in groups: they are sorted by expert, whoever has these
        ranks, (experts, *_) = self._group.size, tensor.shape
        inner = 1 if tensor.stride[1] >= tensor.stride[2] else 2
        shape = _with(_with(tensor.shape, 0, experts // ranks), inner, tensor.shape[inner] * ranks)
        return replace(tensor, shape=shape)

    def _local(self, op: int, here: ExpertPass) -> None:
        if here.ops[op] >= self._share(here):
            self._lost.update(b for b in self._graph.outputs(op) if b not in self._elsewhere)
            return
        signature = self._signature(op)
        buffers = self._graph.inputs(op) + self._graph.outputs(op)
        tensors = [
            self._seen(b, t, here) for b, t in zip(buffers, (*signature.inputs, *signature.outputs), strict=True)
        ]
        count = len(signature.inputs)
        new = replace(signature, inputs=tuple(tensors[:count]), outputs=tuple(tensors[count:]))
        self._editor.copy(op, new, [self._moved.get(b, b) for b in buffers])

    def _seen(self, buffer: int, tensor: Tensor, here: ExpertPass) -> Tensor:
        if buffer in self._pass_of:
            return self._rows(tensor, self._pass_of[buffer])
        if here.stacked and tensor.shape == (here.count,):  # where each expert's rows end
            return replace(tensor, shape=(self._share(here),))
        return self._owned_part(buffer, tensor)

    # --- collectives

    def _exits(self, here: ExpertPass) -> list[int]:
        """Rows that the experts make for others."""
        made = {b for op in here.ops for b in self._graph.outputs(op)}
        return [b for b in here.rows if b in made and b in self._elsewhere]

    def _fresh(self, buffer: int, here: ExpertPass) -> int:
        nbytes = round(self._graph.buffers[buffer].nbytes * self._growth(buffer, here))
        return self._editor.buffer(replace(self._graph.buffers[buffer], nbytes=nbytes))

    def _growth(self, buffer: int, here: ExpertPass) -> float:
        """How many times as many rows a local expert has."""
        if here.stacked:
            return 1.0
        own = next(t.shape[_outermost(t)] for b, t in here.entries.items() if here.rows[b] == here.rows[buffer])
        return self._size(here) / max(own, 1)

    def _dispatch(self, here: ExpertPass, like: int) -> None:
        entries = {b: t for b, t in here.entries.items() if b not in self._sent}
        self._sent.update(entries)
        local = [b for b in entries if here.rows[b] < self._share(here)]
        for buffer in local:
            self._moved[buffer] = self._fresh(buffer, here)
        sent = {b: _flat(t) for b, t in entries.items()}
        received = {self._moved[b]: _flat(self._rows(entries[b], here)) for b in local}
        self._exchange(sent, received, like)

    def _combine(self, here: ExpertPass, exits: list[int], like: int) -> None:
        tensors = self._layouts(here)
        sent = {self._moved[b]: _flat(self._rows(tensors[b], here)) for b in exits if b in self._moved}
        self._exchange(sent, {b: _flat(tensors[b]) for b in exits}, like)

    def _layouts(self, here: ExpertPass) -> dict[int, Tensor]:
        """The tensor as which each of the pass's rows is made."""
        return {
            b: t
            for op in here.ops
            for b, t in zip(self._graph.outputs(op), self._signature(op).outputs, strict=True)
            if b in here.rows
        }

    def _exchange(self, sent: dict[int, Tensor], received: dict[int, Tensor], like: int) -> None:
        if not sent:
            return
        signature = Signature(
            "c10d.alltoall_.default", tuple(sent.values()), tuple(received.values()), (self._group.axis,)
        )
        nbytes = max(sum(t.nbytes for t in sent.values()), sum(t.nbytes for t in received.values()))
        call = CollectiveCall(Collective.ALL_TO_ALL, nbytes, self._group)
        self._editor.issue(signature, [*sent, *received], like, call)

    def _resize(self) -> None:
        """Buffers as large as this rank's part of them."""
        buffers = self._editor.buffers
        for index, (expert, _) in self._found.owned.items():
            if expert == _STACKED:
                buffers[index] = replace(buffers[index], nbytes=-(-buffers[index].nbytes // self._group.size))
        for here in self._found.passes:
            exits = {*self._exits(here), *here.entries}
            for buffer in here.rows.keys() - exits:
                grown = round(buffers[buffer].nbytes * self._growth(buffer, here))
                buffers[buffer] = replace(buffers[buffer], nbytes=grown)


def _outermost(tensor: Tensor) -> int:
    """The dimension with the largest stride."""
    return max(range(len(tensor.shape)), key=lambda i: (tensor.stride[i], -i) if tensor.stride else (0, -i))


def _with(sizes: tuple[int, ...], index: int, size: int) -> tuple[int, ...]:
    return (*sizes[:index], size, *sizes[index + 1 :])


def _flat(tensor: Tensor) -> Tensor:
    return Tensor(tensor.dtype, (tensor.numel,), (1,))


def _relived(graph: Graph) -> Graph:
    """Buffers born with their first operator and dead after their last one, in the order as it is now; what none has is no more."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for op in range(len(graph)):
        if not graph.signatures[graph.signature[op]].view:
            for buffer in graph.inputs(op) + graph.outputs(op):
                first.setdefault(buffer, op)
                last[buffer] = op
    buffers = []
    for index, b in enumerate(graph.buffers):
        if index not in first:
            gone = b.birth >= 0 or b.role in _OWNED
            buffers.append(Buffer(0, -1, -1, b.role, b.name) if gone else b)
        else:
            birth = b.birth if b.birth < 0 else first[index]
            dead = b.death >= 0 or (b.role not in _OWNED and b.birth >= 0)
            buffers.append(Buffer(b.nbytes, birth, last[index] if dead else -1, b.role, b.name))
    return replace(graph, buffers=tuple(buffers))
