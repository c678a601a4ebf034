"""Spreads placements over a graph and rewrites it: every tensor becomes a rank's part, and collectives resolve what cannot stay divided."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from neuronprof.distribute.sharding.placement import (
    PARTIAL,
    Dim,
    Partial,
    Passed,
    Placements,
    Shard,
    alike,
    part,
    seen,
    whole,
)
from neuronprof.distribute.sharding.rules import passed
from neuronprof.graph.edit import GraphEditor
from neuronprof.graph.groups import ReplicaGroup
from neuronprof.graph.ir import CollectiveCall, Graph, Signature, Tensor
from neuronprof.terms import Collective, Role


@dataclass
class Spread:
    """What is divided along one axis of `ranks` ranks.

    place: of each buffer, from the seeds on (absent: every rank has all of it). group: who talks (None: nobody has to, the parts follow
    each other in time, as micro-batches do). leaves_sums: gradients of weights stay sums, which somebody else adds up. scatter: the
    elements over which a sum of activations is scattered (None: it is reduced to everybody). notes: what had no rule.
    """

    graph: Graph
    ranks: int
    group: ReplicaGroup | None
    place: dict[int, Shard | Partial]
    leaves_sums: bool = False
    scatter: "Callable[[Tensor], Dim | None] | None" = None
    notes: dict[str, int] = field(default_factory=dict)

    def run(self) -> Graph:
        """The graph of one rank.

        Raises:
            NotDivisibleError: a dimension that has to be divided cannot be.
        """
        writer = _Writer(self)
        for op in range(len(self.graph)):
            writer.operator(op)
        return writer.finish()


@dataclass(frozen=True, slots=True)
class _Decision:
    """Placements of an operator's inputs, and what its rule makes of them."""

    given: Placements
    rule: Passed


class _Writer:
    """Writes the graph of one rank."""

    def __init__(self, spread: Spread) -> None:
        self._spread, self._graph, self._ranks = spread, spread.graph, spread.ranks
        self._editor = GraphEditor(spread.graph)
        self._place: dict[int, Shard | Partial] = dict(spread.place)
        self._size: dict[int, int] = {b: spread.ranks for b, p in spread.place.items() if isinstance(p, Shard)}
        self._weights = {b.name: i for i, b in enumerate(spread.graph.buffers) if b.role is Role.WEIGHTS}
        self._gathered: dict[int, int] = {}  # divided buffer: where all of it stands
        self._renamed: dict[int, int] = {}  # buffer whose sum was scattered: where the parts stand
        self._decisions: dict[tuple[int, tuple[Shard | Partial | None, ...]], _Decision] = {}
        self._signatures: dict[tuple[int, Placements, tuple[Shard | Partial | None, ...]], Signature] = {}
        self._parts: dict[tuple[Tensor, Dim], Tensor] = {}

    def operator(self, op: int) -> None:
        """Issues one operator on its parts, after the collectives that it needs. Views are left out: nothing runs for them."""
        graph, place = self._graph, self._place
        index = int(graph.signature[op])
        signature = graph.signatures[index]
        if signature.view:
            return
        inputs, outputs = graph.inputs(op), graph.outputs(op)
        of_vocabulary = self._of_vocabulary(signature, outputs)
        if op in graph.collectives or (of_vocabulary is None and place.keys().isdisjoint(inputs + outputs)):
            self._editor.copy(op, operands=[self._current(b) for b in inputs + outputs])
            return
        decision = self._decide(index, signature, inputs)
        given, rule = decision.given, of_vocabulary or decision.rule
        if not rule.known and any(given):
            self._note(f"{signature.name} has no rule for divided tensors")
        operands = [
            self._demanded(op, b, t, g, d)
            for b, t, g, d in zip(inputs, signature.inputs, given, rule.inputs, strict=True)
        ]
        self._produce(op, signature, outputs, rule)
        self._mutate(signature, inputs, given, rule)
        new = self._divided(index, signature, rule, outputs)
        for _ in range(rule.small if self._spread.group else 0):
            self._small(op, new)
        self._editor.copy(op, new, operands + [self._current(b) for b in outputs])

    def _decide(self, index: int, signature: Signature, inputs: list[int]) -> _Decision:
        """What the operator's operands are and what it demands; the same signature on the same placements is asked once."""
        key = (index, tuple(map(self._place.get, inputs)))
        if key not in self._decisions:
            given = tuple(self._seen(b, t) for b, t in zip(inputs, signature.inputs, strict=True))
            self._decisions[key] = _Decision(given, passed(signature, given, self._prefers(signature, given)))
        return self._decisions[key]

    def _divided(self, index: int, signature: Signature, rule: Passed, outputs: list[int]) -> Signature:
        """The signature on a rank's parts."""
        key = (index, rule.inputs, tuple(map(self._place.get, outputs)))
        if key not in self._signatures:
            demanded = tuple(self._part(t, d) for t, d in zip(signature.inputs, rule.inputs, strict=True))
            made = tuple(self._made(b, t) for b, t in zip(outputs, signature.outputs, strict=True))
            self._signatures[key] = replace(signature, inputs=demanded, outputs=made)
        return self._signatures[key]

    def finish(self) -> Graph:
        """The new graph, with the sizes of its buffers."""
        for b, ranks in self._size.items():
            buffer = self._editor.buffers[b]
            self._editor.buffers[b] = replace(buffer, nbytes=-(-buffer.nbytes // ranks))
        return self._editor.finish()

    def _of_vocabulary(self, signature: Signature, outputs: list[int]) -> Passed | None:
        """The gradient of a table whose rows are divided: each rank makes its own rows from all of the gradient."""
        if not signature.name.startswith("aten.embedding_dense_backward"):
            return None
        weight = self._weights.get(self._graph.buffers[outputs[0]].name, -1)
        place = self._spread.place.get(weight)
        if not isinstance(place, Shard):
            return None
        return Passed((None,) * len(signature.inputs), (seen(signature.outputs[0], place),))

    # --- placements

    def _current(self, buffer: int) -> int:
        return self._renamed.get(buffer, buffer)

    def _seen(self, buffer: int, tensor: Tensor) -> Dim | Partial | None:
        place = self._place.get(buffer)
        return seen(tensor, place) if isinstance(place, Shard) else place

    def _prefers(self, signature: Signature, given: Placements) -> Dim | None:
        """Where the operator's sums are scattered, if they are."""
        if self._spread.scatter is None or PARTIAL not in given:
            return None
        return self._spread.scatter(signature.inputs[given.index(PARTIAL)])

    def _part(self, tensor: Tensor, dim: Dim | Partial | None) -> Tensor:
        if not isinstance(dim, Dim):
            return tensor
        if (tensor, dim) not in self._parts:
            self._parts[tensor, dim] = part(tensor, dim, self._ranks)
        return self._parts[tensor, dim]

    def _made(self, buffer: int, tensor: Tensor) -> Tensor:
        return self._part(tensor, self._seen(buffer, tensor))

    def _produce(self, op: int, signature: Signature, outputs: list[int], rule: Passed) -> None:
        """Notes where the outputs are; what they were before is forgotten."""
        for buffer, tensor, dim in zip(outputs, signature.outputs, rule.outputs, strict=True):
            if buffer < 0 or self._graph.buffers[buffer].birth != op or buffer in self._spread.place:
                continue  # an input written in place, or a seed
            self._forget(buffer)
            if isinstance(dim, Dim):
                self._place[buffer] = whole(tensor, dim)
                self._size[buffer] = self._ranks
            elif dim is PARTIAL and self._is_sum(buffer):
                self._place[buffer] = PARTIAL

    def _is_sum(self, buffer: int) -> bool:
        """Whether a sum has to be resolved before it is used.

        Not where the terms follow each other, nor for gradients that others add up.
        """
        if self._spread.group is None:
            return False
        return not (self._spread.leaves_sums and self._graph.buffers[buffer].role is Role.GRADIENTS)

    def _mutate(self, signature: Signature, inputs: list[int], given: Placements, rule: Passed) -> None:
        """What an operator writes in place has the placement that it demands; a state that nobody divided yet is divided from now on."""
        for i in signature.mutates:
            dim, buffer = rule.inputs[i], inputs[i]
            self._gathered.pop(buffer, None)
            if isinstance(dim, Dim) and given[i] is None and buffer >= 0:
                self._place[buffer] = whole(signature.inputs[i], dim)
                self._size[buffer] = self._ranks
            elif i == 0 and given[i] is PARTIAL and rule.outputs[:1] == (PARTIAL,):
                self._place[buffer] = PARTIAL

    def _forget(self, buffer: int) -> None:
        self._place.pop(buffer, None)
        self._renamed.pop(buffer, None)
        self._gathered.pop(buffer, None)

    # --- collectives

    def _demanded(
        self, op: int, buffer: int, tensor: Tensor, given: Dim | Partial | None, wanted: Dim | Partial | None
    ) -> int:
        """The buffer with an operand as the operator demands it, after a collective if that takes one."""
        if given is None or alike(given, wanted) or self._spread.group is None:
            return self._current(buffer)  # a part of what everybody has is there already
        if given is PARTIAL:
            return (
                self._scatter(op, buffer, tensor, wanted)
                if isinstance(wanted, Dim)
                else self._reduce(op, buffer, tensor)
            )
        return self._gather(op, buffer, tensor)

    def _reduce(self, op: int, buffer: int, tensor: Tensor) -> int:
        local = _flat(tensor, self._graph.buffers[buffer].nbytes)
        signature = Signature("_c10d_functional.all_reduce_.default", (local,), (local,), (self._axis,), (0,))
        current = self._current(buffer)
        self._issue(op, signature, [current, current], Collective.ALL_REDUCE, local.nbytes)
        self._place.pop(buffer)
        return current

    def _scatter(self, op: int, buffer: int, tensor: Tensor, dim: Dim) -> int:
        local = self._part(tensor, dim)
        old = self._graph.buffers[buffer]
        made = self._editor.buffer(replace(old, nbytes=-(-old.nbytes // self._ranks)), old.death)
        signature = Signature("_c10d_functional.reduce_scatter_tensor.default", (tensor,), (local,), (self._axis,))
        self._issue(op, signature, [self._current(buffer), made], Collective.REDUCE_SCATTER, tensor.nbytes)
        self._place[buffer], self._renamed[buffer] = whole(tensor, dim), made
        return made

    def _gather(self, op: int, buffer: int, tensor: Tensor) -> int:
        if buffer not in self._gathered:
            old, place = self._graph.buffers[buffer], self._place[buffer]
            assert isinstance(place, Shard)
            made = self._editor.buffer(old, old.death)
            local = self._part(tensor, seen(tensor, place))
            signature = Signature("_c10d_functional.all_gather_into_tensor.default", (local,), (tensor,), (self._axis,))
            self._issue(op, signature, [self._current(buffer), made], Collective.ALL_GATHER, tensor.nbytes)
            self._gathered[buffer] = made
        return self._gathered[buffer]

    def _small(self, op: int, signature: Signature) -> None:
        """An all-reduce of one number a row inside an operator that normalizes over divided columns."""
        rows = Tensor("float32", signature.inputs[0].shape[:-1] or (1,))
        rows = replace(rows, stride=_contiguous(rows.shape))
        made = self._editor.buffer(
            replace(self._graph.buffers[0], nbytes=rows.nbytes, role=Role.WORKSPACE, name=""), op
        )
        reads = self._current(self._graph.inputs(op)[0])
        one = Signature("_c10d_functional.all_reduce.default", (rows,), (rows,), (self._axis,))
        self._issue(op, one, [reads, made], Collective.ALL_REDUCE, rows.nbytes)

    @property
    def _axis(self) -> str:
        return self._spread.group.axis if self._spread.group else ""

    def _issue(self, op: int, signature: Signature, operands: list[int], kind: Collective, nbytes: int) -> None:
        assert self._spread.group is not None
        self._editor.issue(signature, operands, op, CollectiveCall(kind, nbytes, self._spread.group))

    def _note(self, text: str) -> None:
        self._spread.notes[text] = self._spread.notes.get(text, 0) + 1


def _flat(tensor: Tensor, nbytes: int) -> Tensor:
    """All of a tensor, or of its buffer where it is seen stretched."""
    if tensor.stride and 0 in tensor.stride:
        size = max(1, tensor.nbytes // max(tensor.numel, 1))
        return Tensor(tensor.dtype, (nbytes // size,), (1,))
    return tensor


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))
