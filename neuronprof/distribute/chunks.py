"""Chunks: what a pipeline stage runs of a micro-batch in one go, as graphs of their own with their messages as operators."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from neuronprof.distribute.owned import Owned
from neuronprof.distribute.pieces import EVERYWHERE, FORWARD, GRADIENT_REGIONS, REGIONS, STEP, Pieces
from neuronprof.distribute.tied import untie
from neuronprof.graph.edit import GraphEditor
from neuronprof.graph.groups import ReplicaGroup
from neuronprof.graph.ir import Buffer, CollectiveCall, Graph, Signature, Tensor
from neuronprof.terms import Collective, Role

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
    """The operators of each piece's forward, backward and step, and the messages between them.

    stages, group: the pipeline's; accumulate: gradients are sums over micro-batches, which stay from one to the next.
    """

    def __init__(self, graph: Graph, pieces: Pieces, stages: int, group: ReplicaGroup, accumulate: bool) -> None:
        graph, pieces, self._tied = untie(graph, pieces)
        self._graph, self._pieces, self._stages, self._group = graph, pieces, stages, group
        self._accumulate = accumulate
        self._owned = Owned(graph, pieces.owner)
        self._seen: dict[int, Tensor] = {}
        self._ops = self._members()
        self._messages = self._crossings()
        self._last_use = self._last_uses()
        self._graphs: dict[tuple[int, int], Graph] = {}

    @property
    def pieces(self) -> int:
        """How many pieces there are."""
        return self._pieces.count

    def graph(self, piece: int, region: int) -> Graph:
        """One chunk: receives, operators, sends."""
        if (piece, region) not in self._graphs:
            self._graphs[piece, region] = self._write(piece, region)
        return self._graphs[piece, region]

    def _write(self, piece: int, region: int) -> Graph:
        editor = GraphEditor(self._graph)
        ops = self._ops[piece, region]
        anchor = ops[0] if ops else 0
        for message in self._messages:
            if (message.receiver, message.region) == (piece, region):
                self._transfer(editor, message, anchor, Collective.RECV)
        for op in ops:
            editor.copy(op, *self._owned.restricted(op, piece) if region == STEP else ())
            if region in GRADIENT_REGIONS and self._accumulate:
                self._add_up(editor, op)
        for message in self._messages:
            if (message.sender, message.made_in) == (piece, region):
                self._transfer(editor, message, ops[-1] if ops else 0, Collective.SEND)
        return self._with_buffers(editor, piece, region)

    def exchange(self, piece: int, *, before: bool) -> Graph | None:
        """What a piece exchanges of tied weights: gradients before the step, the weight after it; None: nothing."""
        editor = GraphEditor(self._graph)
        like = len(self._graph) - 1
        for tied in self._tied:
            buffer, sender, receiver = tied.part, tied.other, tied.owner
            if not before:
                buffer, sender, receiver = tied.weight, tied.owner, tied.other
            self._seen.setdefault(buffer, tied.tensor)
            for end, kind in ((sender, Collective.SEND), (receiver, Collective.RECV)):
                if end == piece:
                    self._transfer(editor, Message(buffer, sender, receiver, STEP, STEP), like, kind)
        return self._with_buffers(editor, piece, STEP) if len(editor) else None

    # --- membership

    def _members(self) -> dict[tuple[int, int], list[int]]:
        """Operators of each (piece, region), in order."""
        members: dict[tuple[int, int], list[int]] = defaultdict(list)
        everywhere: list[int] = []
        piece, views = self._pieces.piece.tolist(), [s.view for s in self._graph.signatures]
        syncs = [s.name.startswith(_SYNC) for s in self._graph.signatures]
        columns = zip(self._graph.signature.tolist(), self._pieces.region.tolist(), strict=True)
        for op, (signature, region) in enumerate(columns):
            if views[signature]:
                continue
            if region == STEP:
                for p in self._owned.pieces(op) or range(self._pieces.count):
                    members[p, STEP].append(op)
            elif syncs[signature]:
                members[self._pieces.count - 1, STEP].append(op)
            elif piece[op] == EVERYWHERE:
                everywhere.append(op)
            else:
                members[piece[op], region].append(op)
        for p in range(self._pieces.count):
            members[p, FORWARD] = sorted(members[p, FORWARD] + self._needed(everywhere, p, members))
        return members

    def _needed(self, everywhere: list[int], piece: int, members: dict[tuple[int, int], list[int]]) -> list[int]:
        """Of the operators on input data alone, those whose results a piece needs."""
        if not everywhere:
            return []
        wanted = {b for r in REGIONS[:STEP] for op in members[piece, r] for b in self._graph.inputs(op)}
        found = []
        for op in reversed(everywhere):
            mutated = [self._graph.inputs(op)[i] for i in self._signature(op).mutates]
            if not wanted.isdisjoint([*self._graph.outputs(op), *mutated]):
                found.append(op)
                wanted.update(self._graph.inputs(op))
        return found

    def _signature(self, op: int) -> Signature:
        return self._graph.signatures[self._graph.signature[op]]

    # --- messages

    def _crossings(self) -> list[Message]:
        """Each tensor that is made in one piece and needed in another, in the order in which they are made."""
        made: dict[int, tuple[int, int]] = {}
        found: dict[tuple[int, int], Message] = {}
        piece, region = self._pieces.piece.tolist(), self._pieces.region.tolist()
        for op in range(len(self._graph)):
            signature = self._signature(op)
            if region[op] == STEP or piece[op] == EVERYWHERE or signature.view or signature.name.startswith(_SYNC):
                continue
            here, inputs = piece[op], self._graph.inputs(op)
            for at, buffer in enumerate(inputs):
                home = made.get(buffer)
                if home and home[0] != here:
                    known = found.get((buffer, here))
                    if known is None or region[op] < known.region:
                        found[buffer, here] = Message(buffer, home[0], here, home[1], region[op])
                        self._seen.setdefault(buffer, signature.inputs[at])
            for buffer in (*self._graph.outputs(op), *(inputs[i] for i in signature.mutates)):
                if buffer >= 0:
                    made[buffer] = (here, region[op])
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
            if self._writers.get(buffer, -1) != op:
                continue
            # What the operator made becomes a temporary; the sum keeps the gradient's place.
            fresh = editor.buffer(replace(self._graph.buffers[buffer], role=Role.WORKSPACE, name=""), op)
            editor.rename_last(buffer, fresh)
            add = Signature("aten.add_.Tensor", (tensor, tensor), (tensor,), (), (0,))
            editor.issue(add, [buffer, fresh, buffer], op)

    @cached_property
    def _writers(self) -> dict[int, int]:
        """The operator that makes each gradient last."""
        written: dict[int, int] = {}
        roles = [b.role is Role.GRADIENTS for b in self._graph.buffers]
        for op in np.flatnonzero(np.isin(self._pieces.region, GRADIENT_REGIONS)).tolist():
            if not self._signature(op).view:
                written.update((b, op) for b in self._graph.outputs(op) if b >= 0 and roles[b])
        return written

    def _last_uses(self) -> dict[tuple[int, int], int]:
        """The last region in which each piece uses each buffer: (piece, buffer) to FORWARD, BACKWARD or STEP."""
        last: dict[tuple[int, int], int] = {}
        for (piece, region), ops in sorted(self._ops.items(), key=lambda item: item[0][1]):
            for op in ops:
                operands: Iterable[int] = self._graph.inputs(op) + self._graph.outputs(op)
                if region == STEP:
                    operands = self._owned.restricted(op, piece)[1]
                for buffer in operands:
                    last[piece, buffer] = region
        for message in self._messages:  # what waits to be sent, or was received, is in use too
            key = message.sender, message.buffer
            last[key] = max(last.get(key, FORWARD), message.made_in)
        return last

    @cached_property
    def _kept(self) -> dict[int, list[int]]:
        """Weights, gradients and optimizer state that each piece has."""
        kept: dict[int, set[int]] = defaultdict(set)
        for buffer, home in enumerate(self._owned.owner):
            if home >= 0:
                kept[home].add(buffer)
        received = {(tied.owner, tied.part) for tied in self._tied}
        for piece, buffer in self._last_use:
            if buffer >= 0 and self._owned.is_owned(buffer) and (piece, buffer) not in received:
                kept[piece].add(buffer)
        return {piece: sorted(buffers) for piece, buffers in kept.items()}

    def _with_buffers(self, editor: GraphEditor, piece: int, region: int) -> Graph:
        """The chunk's graph, with the buffers of this piece alone, born and dead as it sees them."""
        keep = sorted(editor.used().union(self._kept.get(piece, ())))
        graph = editor.finish(keep)
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for op in range(len(graph)):
            inputs, outputs = graph.inputs(op), graph.outputs(op)
            mutated = {inputs[i] for i in graph.signatures[graph.signature[op]].mutates}
            received = op in graph.collectives and graph.collectives[op].kind == Collective.RECV
            made = outputs if received else [b for b in outputs if b not in mutated and b not in inputs]
            for buffer in made:
                first.setdefault(buffer, op)
            for buffer in inputs + outputs:
                first.setdefault(buffer, -1)
                last[buffer] = op
        buffers = tuple(
            self._buffer(old, b, (piece, region), first.get(new, -2), last.get(new, -1))
            for new, (old, b) in enumerate(zip(keep, graph.buffers, strict=True))
        )
        return replace(graph, buffers=buffers)

    def _buffer(self, index: int, buffer: Buffer, place: tuple[int, int], first: int, last: int) -> Buffer:
        """A buffer in a chunk. first: the operator that makes it (-1: it was there before, -2: none uses it); last: its last user."""
        piece, region = place
        if self._owned.is_owned(index):
            is_gradient = buffer.role is Role.GRADIENTS
            old = is_gradient and self._graph.buffers[index].birth < 0 and first == -2
            unmade = is_gradient and not self._accumulate and first == -2
            if old or unmade:
                return Buffer(0, -1, -1, buffer.role, buffer.name)
            summed = not is_gradient or self._accumulate
            return Buffer(buffer.nbytes, -1 if summed else max(first, -1), -1, buffer.role, buffer.name)
        ends = self._last_use.get((piece, index), region) <= region
        return Buffer(buffer.nbytes, first, last if ends else -1, buffer.role, buffer.name)
