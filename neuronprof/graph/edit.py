"""Rewriting a graph: its operators are issued again one after another, changed, left out, or with others between them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from neuronprof.graph.ir import Buffer, CollectiveCall, Graph, Signature


@dataclass
class GraphEditor:
    """A new graph in the making. `issue` and `copy` return the new operator's index; buffers of the old graph keep their index.

    What an operator inserted for another one describes (phase, module, source line) is taken from that one.
    """

    graph: Graph
    buffers: list[Buffer] = field(init=False)
    signatures: dict[Signature, int] = field(default_factory=dict)
    collectives: dict[int, CollectiveCall] = field(default_factory=dict)
    _like: list[int] = field(default_factory=list)
    _signature: list[int] = field(default_factory=list)
    _counts: list[int] = field(default_factory=list)
    _operands: list[int] = field(default_factory=list)
    _in_order: list[Signature] = field(default_factory=list)
    _known: dict[int, int] = field(default_factory=dict)  # id of a signature: its number; hashing a long one is slow
    _kept: list[Signature] = field(default_factory=list)
    _moved: dict[int, int] = field(default_factory=lambda: {-1: -1})
    _dies_with: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.buffers = list(self.graph.buffers)

    def __len__(self) -> int:
        return len(self._like)

    def copy(self, op: int, signature: Signature | None = None, operands: list[int] | None = None) -> int:
        """Issues an operator of the old graph, with another signature or other operands if given."""
        if operands is None:
            operands = self.graph.inputs(op) + self.graph.outputs(op)
        index = self._issue(signature or self.graph.signatures[self.graph.signature[op]], operands, op)
        self._moved[op] = index
        if op in self.graph.collectives:
            self.collectives[index] = self.graph.collectives[op]
        return index

    def issue(self, signature: Signature, operands: list[int], like: int, call: CollectiveCall | None = None) -> int:
        """Issues an operator that the old graph does not have. operands: buffers, inputs then outputs; call: of a collective."""
        index = self._issue(signature, operands, like)
        if call is not None:
            self.collectives[index] = call
        return index

    def buffer(self, made: Buffer, dies_with: int = -1) -> int:
        """A buffer that the next operator makes and the old graph's operator `dies_with` is the last to need (-1: none)."""
        self.buffers.append(replace(made, birth=len(self._like)))
        self._dies_with[len(self.buffers) - 1] = dies_with
        return len(self.buffers) - 1

    def rename_last(self, buffer: int, by: int) -> None:
        """Lets the operator issued last make another buffer than it did."""
        count = self._counts[-1]
        outputs = count - len(self._in_order[self._signature[-1]].inputs)
        for at in range(len(self._operands) - outputs, len(self._operands)):
            if self._operands[at] == buffer:
                self._operands[at] = by

    def _issue(self, signature: Signature, operands: list[int], like: int) -> int:
        self._like.append(like)
        number = self._known.get(id(signature))
        self._signature.append(self._number(signature) if number is None else number)
        self._counts.append(len(operands))
        self._operands.extend(operands)
        return len(self._like) - 1

    def _number(self, signature: Signature) -> int:
        number = self.signatures.setdefault(signature, len(self._in_order))
        if number == len(self._in_order):
            self._in_order.append(signature)
        self._known[id(signature)] = number
        self._kept.append(signature)  # so that nothing else gets its id
        return number

    def used(self) -> set[int]:
        """Buffers that the operators issued so far have as operands."""
        return set(self._operands) - {-1}

    def finish(self, keep: Sequence[int] | None = None) -> Graph:
        """The new graph. An old buffer is born and dies with the nearest operator that was issued again.

        keep: the buffers that it has, in this order, of those that operators use all (None: every buffer, under its index).
        """
        graph, like = self.graph, np.array(self._like, np.int64)
        operands = np.array(self._operands, np.int32)
        if keep is not None:
            place = np.full(len(self.buffers) + 1, -1, np.int32)
            place[np.array(keep, np.int64)] = np.arange(len(keep))
            operands = place[operands]
        buffers = self._finished(range(len(self.buffers)) if keep is None else keep)
        forward = [self._moved.get(f, -1) for f in graph.forward[like].tolist()]
        return replace(
            graph,
            signatures=tuple(self._in_order),
            signature=np.array(self._signature, np.int32),
            phase=graph.phase[like],
            module=graph.module[like],
            source=graph.source[like],
            region=graph.region[like],
            forward=np.array(forward, np.int32),
            operand_ptr=np.concatenate([[0], np.cumsum(self._counts)]).astype(np.int64),
            operands=operands,
            buffers=buffers,
            collectives=dict(self.collectives),
        )

    def _finished(self, keep: Sequence[int]) -> tuple[Buffer, ...]:
        first, last = (at.tolist() for at in self._positions())
        old, buffers = len(self.graph.buffers), []
        for index in keep:
            b = self.buffers[index]
            birth = b.birth if b.birth < 0 or index >= old else first[b.birth]
            death = b.death if index < old else self._dies_with[index]
            death = death if death < 0 else last[death]
            same = birth == b.birth and death == b.death
            buffers.append(b if same else Buffer(b.nbytes, birth, death, b.role, b.name))
        return tuple(buffers)

    def _positions(self) -> tuple[np.ndarray, np.ndarray]:
        """New index of each old operator; of one left out, that of the next and of the last one issued."""
        n = len(self.graph)
        place = np.full(n, -1, np.int64)
        for op, index in self._moved.items():
            if op >= 0:
                place[op] = index
        last = np.maximum.accumulate(place)
        reverse = np.where(place < 0, len(self._like), place)[::-1]
        return np.minimum(np.minimum.accumulate(reverse)[::-1], max(len(self._like) - 1, 0)), np.maximum(last, 0)
