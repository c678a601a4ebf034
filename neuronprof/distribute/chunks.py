"""Chunks: what a pipeline stage runs of a micro-batch in one go, as graphs of their own with their messages as operators."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from neuronprof.distribute.pieces import BACKWARD, EVERYWHERE, FORWARD, STEP, Pieces, parameter
from neuronprof.graph.edit import GraphEditor
from neuronprof.graph.groups import ReplicaGroup
from neuronprof.graph.ir import Buffer, CollectiveCall, Graph, Signature, Tensor
from neuronprof.terms import Collective, Role

_OWNED = (Role.WEIGHTS, Role.GRADIENTS, Role.OPTIMIZER_STATE)
_SYNC = "aten._local_scalar_dense"


@dataclass(frozen=True, slots=True)
class Message:
    """A tensor that one piece makes and another needs; region: of the chunk that receives it."""

    buffer: int
    sender: int
    receiver: int
    made_in: int
    region: int


class Chunks:
    """The operators of each piece's forward, backward and step, and the messages between them."""

    def __init__(self, graph: Graph, pieces: Pieces, stages: int, group: ReplicaGroup, accumulate: bool) -> None:
        self._graph, self._pieces, self._stages, self._group = graph, pieces, stages, group
        self._accumulate = accumulate
        self._seen: dict[int, Tensor] = {}
        self._ops = self._members()
        self._messages = self._crossings()
        self._last_use = self._last_uses()

    def graph(self, piece: int, region: int) -> Graph:
        """One chunk: receives, operators, sends."""
        editor = GraphEditor(self._graph)
        ops = self._ops[piece, region]
        anchor = ops[0] if ops else 0
        for message in self._messages:
            if (message.receiver, message.region) == (piece, region):
                self._transfer(editor, message, anchor, Collective.RECV)
        for op in ops:
            editor.copy(op, *self._own(op, piece) if region == STEP else ())
            if region == BACKWARD and self._accumulate:
                self._add_up(editor, op)
        for message in self._messages:
            if (message.sender, message.made_in) == (piece, region):
                self._transfer(editor, message, ops[-1] if ops else 0, Collective.SEND)
        return self._with_buffers(editor, piece, region)

    # --- membership

    def _members(self) -> dict[tuple[int, int], list[int]]:
        """Operators of each (piece, region), in order."""
        members: dict[tuple[int, int], list[int]] = defaultdict(list)
        everywhere: list[int] = []
        region, piece = self._pieces.region.tolist(), self._pieces.piece.tolist()
        for op in range(len(self._graph)):
            if region[op] == STEP:
                for p in self._step_pieces(op):
                    members[p, STEP].append(op)
            elif self._signature(op).name.startswith(_SYNC):
                members[self._pieces.count - 1, STEP].append(op)
            elif piece[op] == EVERYWHERE:
                everywhere.append(op)
            else:
                members[piece[op], region[op]].append(op)
        for p in range(self._pieces.count):
            for r in (FORWARD, BACKWARD):
                members[p, r] = sorted(members[p, r] + (self._needed(everywhere, p, members) if r == FORWARD else []))
        return members

    def _needed(self, everywhere: list[int], piece: int, members: dict[tuple[int, int], list[int]]) -> list[int]:
        """Of the operators on input data alone, those whose results a piece needs."""
        wanted = {b for r in (FORWARD, BACKWARD) for op in members[piece, r] for b in self._graph.inputs(op)}
        found = []
        for op in reversed(everywhere):
            mutated = [self._graph.inputs(op)[i] for i in self._signature(op).mutates]
            if not wanted.isdisjoint([*self._graph.outputs(op), *mutated]):
                found.append(op)
                wanted.update(self._graph.inputs(op))
        return found

    def _step_pieces(self, op: int) -> Iterable[int]:
        """The pieces that run an operator of the step: those that own one of its parameters; all, where it has none."""
        found = {p for b in self._graph.inputs(op) if (p := self._owner(b)) is not None}
        return sorted(found) or range(self._pieces.count)

    def _owner(self, buffer: int) -> int | None:
        if buffer < 0 or self._graph.buffers[buffer].role not in _OWNED:
            return None
        name = parameter(self._graph.buffers[buffer].name, self._pieces.owner)
        return self._pieces.owner[name] if name else None

    def _own(self, op: int, piece: int) -> tuple[Signature, list[int]]:
        """An operator of the step on the tensors that a piece owns: lists lose those of other pieces."""
        signature, inputs, outputs = self._signature(op), self._graph.inputs(op), self._graph.outputs(op)
        owners = [self._owner(b) for b in inputs]
        places = [o for o in owners if o is not None]
        if all(o == piece for o in places):
            return signature, inputs + outputs
        lost = [o is not None and o != piece for o in owners]
        # A list without names stands beside one with: its places are lost together.
        count = len(outputs) or next(
            (n for n in range(1, len(inputs) + 1) if owners[n:] and owners[n] is None), len(inputs)
        )
        keep = [
            i
            for i in range(len(inputs))
            if not lost[i] and not (owners[i] is None and len(inputs) > count and lost[i % count])
        ]
        kept = [i for i in range(len(outputs)) if i >= len(lost) or not lost[i]]
        moved = {old: new for new, old in enumerate(keep)}
        new = replace(
            signature,
            inputs=tuple(signature.inputs[i] for i in keep),
            outputs=tuple(signature.outputs[i] for i in kept),
            mutates=tuple(moved[i] for i in signature.mutates if i in moved),
        )
        return new, [inputs[i] for i in keep] + [outputs[i] for i in kept]

    def _signature(self, op: int) -> Signature:
        return self._graph.signatures[self._graph.signature[op]]

    # --- messages

    def _crossings(self) -> list[Message]:
        """Each tensor that is made in one piece and needed in another, in the order in which they are made."""
        made: dict[int, tuple[int, int]] = {}
        found: dict[tuple[int, int], Message] = {}
        piece, region = self._pieces.piece.tolist(), self._pieces.region.tolist()
        for op in range(len(self._graph)):
            signature, inputs = self._signature(op), self._graph.inputs(op)
            if region[op] == STEP or piece[op] == EVERYWHERE or signature.name.startswith(_SYNC):
                continue
            for buffer, tensor in zip(inputs, signature.inputs, strict=True):
                home = made.get(buffer)
                if home and home[0] != piece[op] and (buffer, piece[op]) not in found:
                    found[buffer, piece[op]] = Message(buffer, home[0], piece[op], home[1], region[op])
                    self._seen[buffer] = tensor
            if not signature.view:
                written = [*self._graph.outputs(op), *(inputs[i] for i in signature.mutates)]
                made.update({b: (piece[op], region[op]) for b in written if b >= 0})
        return list(found.values())

    def _transfer(self, editor: GraphEditor, message: Message, like: int, kind: Collective) -> None:
        tensor = self._seen[message.buffer]
        flat = replace(tensor, offset=0)
        other = message.sender if kind is Collective.RECV else message.receiver
        call = CollectiveCall(kind, tensor.nbytes, self._group, peer=other % self._stages)
        if kind is Collective.RECV:
            signature = Signature("c10d.recv_.default", (flat,), (flat,), (), (0,))
            editor.issue(signature, [message.buffer, message.buffer], like, call)
        else:
            editor.issue(Signature("c10d.send.default", (flat,), ()), [message.buffer], like, call)

    # --- buffers

    def _add_up(self, editor: GraphEditor, op: int) -> None:
        """Adds a gradient that was just completed to the sum of the micro-batches before."""
        for buffer, tensor in zip(self._graph.outputs(op), self._signature(op).outputs, strict=False):
            if buffer < 0 or self._graph.buffers[buffer].role is not Role.GRADIENTS or self._last_writer(buffer) != op:
                continue
            # What the operator made becomes a temporary; the sum keeps the gradient's place.
            fresh = editor.buffer(replace(self._graph.buffers[buffer], role=Role.WORKSPACE, name=""), op)
            editor.rename_last(buffer, fresh)
            add = Signature("aten.add_.Tensor", (tensor, tensor), (tensor,), (), (0,))
            editor.issue(add, [buffer, fresh, buffer], op)

    def _last_writer(self, buffer: int) -> int:
        return self._writers.get(buffer, -1)

    @property
    def _writers(self) -> dict[int, int]:
        if not hasattr(self, "_written"):
            self._written: dict[int, int] = {}
            for op in np.flatnonzero(self._pieces.region == BACKWARD).tolist():
                if not self._signature(op).view:
                    self._written.update(dict.fromkeys(self._graph.outputs(op), op))
        return self._written

    def _last_uses(self) -> dict[tuple[int, int], int]:
        """The last region in which each piece uses each buffer: (piece, buffer) to FORWARD, BACKWARD or STEP."""
        last: dict[tuple[int, int], int] = {}
        for region in (FORWARD, BACKWARD, STEP):
            for piece in range(self._pieces.count):
                for op in self._ops[piece, region]:
                    operands = (
                        self._own(op, piece)[1] if region == STEP else self._graph.inputs(op) + self._graph.outputs(op)
                    )
                    last.update(((piece, buffer), region) for buffer in operands)
        return last

    def _with_buffers(self, editor: GraphEditor, piece: int, region: int) -> Graph:
        """The chunk's graph, with buffers born and dead as this piece sees them."""
        graph = editor.finish()
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for op in range(len(graph)):
            mutated = {graph.inputs(op)[i] for i in graph.signatures[graph.signature[op]].mutates}
            made = set(graph.outputs(op)) - (set(graph.inputs(op)) - mutated)
            received = op in graph.collectives and graph.collectives[op].kind == Collective.RECV
            for buffer in (*graph.inputs(op), *graph.outputs(op)):
                first.setdefault(buffer, op if buffer in made and (received or buffer not in mutated) else -1)
                last[buffer] = op
        buffers = tuple(self._buffer(i, b, (piece, region), first, last) for i, b in enumerate(graph.buffers))
        return replace(graph, buffers=buffers)

    def _buffer(
        self, index: int, buffer: Buffer, place: tuple[int, int], first: dict[int, int], last: dict[int, int]
    ) -> Buffer:
        piece, region = place
        if buffer.role in _OWNED and index < len(self._graph.buffers):
            mine = self._owner(index) == piece or (piece, index) in self._last_use
            old = buffer.role is Role.GRADIENTS and self._graph.buffers[index].birth < 0 and index not in first
            unmade = buffer.role is Role.GRADIENTS and not self._accumulate and index not in first
            if not mine or old or unmade:
                return replace(buffer, nbytes=0, birth=-1, death=-1)
            summed = buffer.role is not Role.GRADIENTS or self._accumulate
            return replace(buffer, birth=-1 if summed else first.get(index, -1), death=-1)
        if index not in first:
            return replace(buffer, nbytes=0, birth=-1, death=-1)
        ends = self._last_use.get((piece, index), region) <= region
        return replace(buffer, birth=first[index], death=last[index] if ends else -1)
