"""Finds the experts of a mixture from the graph: which weights are whose, and which operators work on rows that a router picked.

Experts stand in a graph in one of two ways. Stacked: products of groups or batches of rows with a weight of three dimensions, the
first of which counts the experts. Apart: as many products with weights of their own, on rows picked by as many different masks.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from neuronprof.graph.ir import Graph, Signature, Tensor
from neuronprof.graph.ops import OpKind, work
from neuronprof.terms import PHASES, Phase, Role

_MODEL = [PHASES.index(p) for p in (Phase.FORWARD, Phase.BACKWARD, Phase.RECOMPUTE)]
_STACKED = ("aten._grouped_mm", "aten.bmm", "aten.baddbmm")
_WEIGHT_DIMENSIONS = 3
_POINTWISE = (OpKind.ELEMENTWISE, OpKind.COPY, OpKind.RANDOM)


@dataclass
class ExpertPass:
    """One pass of one layer's experts over rows: the operators between dispatch and combine.

    ops: operator to its expert (-1: all, stacked); rows: of each buffer of rows, its expert; entries: rows that come from outside;
    count: experts of the layer; stacked: their weights stand in one.
    """

    count: int
    stacked: bool
    ops: dict[int, int] = field(default_factory=dict)
    rows: dict[int, int] = field(default_factory=dict)
    entries: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class Experts:
    """passes: in order; owned: weights of experts, what is cast from them and their gradients: buffer to (expert, experts)."""

    passes: list[ExpertPass] = field(default_factory=list)
    owned: dict[int, tuple[int, int]] = field(default_factory=dict)


def find_experts(graph: Graph) -> Experts:
    """The experts of a step; none where no weights are chosen by a router."""
    return _Finder(graph).run()


class _Finder:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._kinds = [work(s).kind for s in graph.signatures]
        self._masks: dict[int, int] = {}  # buffer: the operator that made the mask by which its rows were picked
        self._source: dict[int, int] = {}  # mask: the buffer from which its rows were picked
        self._group: dict[int, dict[int, int]] = defaultdict(dict)  # that buffer: mask to expert
        self._inside: dict[int, ExpertPass] = {}
        self._origin: dict[int, int] = {}  # copy of a weight in another type: the weight
        self._picks: dict[tuple[int, int], int] = {}  # a mask of booleans: the first operator that picks rows by it
        self._found = Experts()

    def run(self) -> Experts:
        ops = [op for op in range(len(self._graph)) if self._graph.phase[op] in _MODEL]
        ops = [op for op in ops if not self._signature(op).view]
        for op in ops:
            self._trace_mask(op)
        for op in ops:
            self._follow(op)
        for here in self._found.passes:
            self._without_last_casts(here)
        self._name()
        self._found.passes = sorted({id(p): p for p in self._found.passes if p.ops}.values(), key=lambda p: min(p.ops))
        return self._found

    def _signature(self, op: int) -> Signature:
        return self._graph.signatures[self._graph.signature[op]]

    def _kind(self, op: int) -> OpKind:
        return self._kinds[self._graph.signature[op]]

    # --- experts apart: rows by mask

    def _trace_mask(self, op: int) -> None:
        """Follows rows that were picked by the positions of a mask."""
        signature, inputs, outputs = self._signature(op), self._graph.inputs(op), self._graph.outputs(op)
        if signature.name.startswith("aten.nonzero"):
            self._masks.update(dict.fromkeys(outputs, op))
            return
        masks = [self._masks[b] for b in inputs if b in self._masks] or self._by_booleans(op, signature, inputs)
        if not masks or self._kind(op) is OpKind.SCATTER:
            return
        if self._kind(op) is OpKind.GATHER and inputs[0] not in self._masks and len(signature.inputs[0].shape) > 1:
            self._source.setdefault(masks[0], inputs[0])
        if self._kind(op) is OpKind.GEMM:
            group = self._group[self._source.get(masks[0], -1)]
            group.setdefault(masks[0], len(group))
            if not _by_rows(signature.inputs[0]):
                return  # contracts the rows
        self._masks.update(dict.fromkeys(outputs, masks[0]))

    def _by_booleans(self, op: int, signature: Signature, inputs: list[int]) -> list[int]:
        """The mask of booleans by which an operator picks rows."""
        if not signature.name.startswith("aten.index.") or signature.inputs[1].dtype != "bool":
            return []
        return [self._picks.setdefault((inputs[1], signature.inputs[1].offset), op)]

    def _place(self, op: int) -> tuple[int, int] | None:
        """(expert, experts) of a product of experts."""
        signature, inputs = self._signature(op), self._graph.inputs(op)
        if self._kind(op) is not OpKind.GEMM and not self._sums_rows(op):
            return None
        mask = next((self._masks[b] for b in inputs if b in self._masks), None)
        if mask is not None:
            group = self._group[self._source.get(mask, -1)]
            return (group[mask], len(group)) if len(group) > 1 else None
        if signature.name.startswith(_STACKED):
            return self._stacked(op, signature, inputs)
        return None

    def _sums_rows(self, op: int) -> bool:
        """Whether an operator makes the gradient of a bias."""
        made = [self._graph.buffers[b].role for b in self._graph.outputs(op)]
        return self._kind(op) is OpKind.REDUCTION and Role.GRADIENTS in made

    def _stacked(self, op: int, signature: Signature, inputs: list[int]) -> tuple[int, int] | None:
        for buffer, tensor in zip(inputs, signature.inputs, strict=True):
            if len(tensor.shape) == _WEIGHT_DIMENSIONS and (self._is_weight(buffer) or buffer in self._found.owned):
                return -1, tensor.shape[0]
        forward = int(self._graph.forward[op])
        if forward >= 0 and self._kind(forward) is OpKind.GEMM and self._place(forward):
            return -1, signature.outputs[0].shape[0]
        return None

    def _is_weight(self, buffer: int) -> bool:
        return buffer in self._origin or (buffer >= 0 and self._graph.buffers[buffer].role is Role.WEIGHTS)

    # --- what is between dispatch and combine

    def _follow(self, op: int) -> None:
        signature, inputs, outputs = self._signature(op), self._graph.inputs(op), self._graph.outputs(op)
        place = self._place(op)
        if place is not None:
            self._product(op, place)
            return
        large = [b for b, t in zip(inputs, signature.inputs, strict=True) if t.numel > 1]
        if not large or self._kind(op) not in _POINTWISE:
            return
        owned = [self._found.owned.get(b) for b in large]
        if all(owned):
            self._found.owned.update((b, self._found.owned[large[0]]) for b in outputs)
        elif self._kind(op) is OpKind.COPY and len(large) == 1 and self._is_weight(large[0]):
            self._origin.update((b, self._origin.get(large[0], large[0])) for b in outputs)
        elif all(b in self._inside or o for b, o in zip(large, owned, strict=True)):
            # What forward kept for backward belongs to forward's pass.
            here = [p for b in large if (p := self._inside.get(b)) is not None and self._same_phase(p, op)]
            if here:
                self._add(op, self._joined(here), outputs)

    def _product(self, op: int, place: tuple[int, int]) -> None:
        signature, inputs, outputs = self._signature(op), self._graph.inputs(op), self._graph.outputs(op)
        rows = [
            (b, t)
            for b, t in zip(inputs, signature.inputs, strict=True)
            if len(t.shape) > 1 and not self._is_weight(b) and b not in self._found.owned
        ]
        weights = [b for b in inputs if self._is_weight(b)]
        self._found.owned.update((b, place) for b in (*weights, *(self._origin.get(b, b) for b in weights)))
        known = [self._inside[b] for b, _ in rows if b in self._inside and self._same_phase(self._inside[b], op)]
        known += [p for p in self._found.passes if self._same_phase(p, op) and any(b in p.entries for b, _ in rows)]
        here = self._joined([*known, *self._neighbours(op)]) if known or self._neighbours(op) else self._new(place)
        for buffer, tensor in rows:
            if buffer not in self._inside:
                here.entries.setdefault(buffer, tensor)
                here.rows[buffer] = place[0]
        if len(rows) == 1 and self._kind(op) is OpKind.GEMM:
            self._add(op, here, outputs, place[0])
        else:
            here.ops[op] = place[0]
            self._found.owned.update((b, place) for b in outputs)

    def _neighbours(self, op: int) -> list[ExpertPass]:
        """The pass of this layer's other experts, where they stand apart."""
        mask = next((self._masks[b] for b in self._graph.inputs(op) if b in self._masks), None)
        if mask is None:
            return []
        masks = self._group[self._source.get(mask, -1)]
        return [
            p
            for p in self._found.passes
            if self._same_phase(p, op) and any(self._masks.get(b) in masks for b in p.entries)
        ]

    def _same_phase(self, one: ExpertPass, op: int) -> bool:
        return not one.ops or self._graph.phase[min(one.ops)] == self._graph.phase[op]

    def _new(self, place: tuple[int, int]) -> ExpertPass:
        self._found.passes.append(ExpertPass(place[1], place[0] < 0))
        return self._found.passes[-1]

    def _add(self, op: int, here: ExpertPass, outputs: list[int], expert: int | None = None) -> None:
        inputs = self._graph.inputs(op)
        here.ops[op] = next(here.rows[b] for b in inputs if b in here.rows) if expert is None else expert
        for buffer in outputs:
            here.rows[buffer] = here.ops[op]
            self._inside[buffer] = here

    def _joined(self, passes: list[ExpertPass]) -> ExpertPass:
        """Passes that turn out to be one."""
        first = passes[0]
        for other in passes[1:]:
            if other is not first:
                first.ops |= other.ops
                first.rows |= other.rows
                first.entries |= other.entries
                self._inside.update((b, first) for b, p in self._inside.items() if p is other)
                other.ops, other.rows, other.entries = {}, {}, {}
        return first

    def _without_last_casts(self, here: ExpertPass) -> None:
        """Leaves to others what only widens the experts' results: they are combined as they were made."""
        read: set[int] = set()
        for op in sorted(here.ops, reverse=True):
            inputs, outputs = self._graph.inputs(op), self._graph.outputs(op)
            if self._kind(op) is OpKind.COPY and read.isdisjoint(outputs):
                del here.ops[op]
                for buffer in outputs:
                    here.rows.pop(buffer, None)
            else:
                read.update(inputs)

    def _name(self) -> None:
        """Gradients and optimizer state are whose weight's name they have."""
        names = {self._graph.buffers[b].name: place for b, place in self._found.owned.items() if self._is_weight(b)}
        names.pop("", None)
        for index, buffer in enumerate(self._graph.buffers):
            name = buffer.name if buffer.name in names else buffer.name.rpartition(".")[0]
            if buffer.role in (Role.GRADIENTS, Role.OPTIMIZER_STATE) and name in names:
                self._found.owned.setdefault(index, names[name])


def _by_rows(tensor: Tensor) -> bool:
    """Whether the first dimension of a matrix is its rows in memory; else it is a transposed view."""
    return not tensor.stride or len(tensor.stride) > 2 or tensor.stride[0] >= tensor.stride[-1]
