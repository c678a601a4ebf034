"""Tensor parallelism: finds the pairs of products whose weights can be divided by columns and by rows, from the graph alone.

A product's weight is divided by columns if what it makes stays divided, through element-wise work, attention and views, until another
product contracts it with a weight, which is then divided by rows (Megatron-LM's rule, Shoeybi et al. 2019). The vocabulary of embeddings
and of the output layer is divided where it can be.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from neuronprof.distribute.sharding.placement import (
    PARTIAL,
    Dim,
    NotDivisibleError,
    Partial,
    Placements,
    Shard,
    part,
    seen,
    whole,
)
from neuronprof.distribute.sharding.rules import passed
from neuronprof.graph.ir import Graph, Signature, Tensor
from neuronprof.graph.ops import OpKind, work
from neuronprof.terms import PHASES, Phase, Role

_FORWARD = PHASES.index(Phase.FORWARD)
_FARTHEST = 300  # operators between a product and its partner
_MATRIX = 2
_WIDEST = 8  # a state has no fewer bytes than its weight but for the width of the type; a counter has far fewer


@dataclass
class Assignment:
    """place.

    Of each buffer that is divided; columns, rows: products of each kind; refused: module to the size that could not be divided.
    """

    place: dict[int, Shard | Partial] = field(default_factory=dict)
    columns: int = 0
    rows: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    whole_vocabularies: int = 0


def assign(graph: Graph, ranks: int) -> Assignment:
    """What tensor parallelism over so many ranks divides."""
    return _Assigner(graph, ranks).run()


class _Assigner:
    def __init__(self, graph: Graph, ranks: int) -> None:
        self._graph, self._ranks = graph, ranks
        self._origin: dict[int, int] = {}  # copy of a weight in another type: the weight
        self._free: set[int] = set()  # made by products of what nobody divides: could be divided by columns too
        self._forward = [op for op in range(len(graph)) if graph.phase[op] == _FORWARD]
        self._done = Assignment()
        self._kinds = {id(s): work(s).kind for s in graph.signatures}

    def run(self) -> Assignment:
        for op in self._forward:
            self._follow_copy(self._signature(op), self._graph.inputs(op), self._graph.outputs(op))
        for position, op in enumerate(self._forward):
            signature = self._signature(op)
            inputs, outputs = self._graph.inputs(op), self._graph.outputs(op)
            if signature.view:
                continue
            if signature.name.startswith("aten.embedding."):
                self._embedding(inputs[0], signature.inputs[0])
            weight = self._weight(signature, inputs)
            if weight is not None and outputs:
                self._product(position, op, weight)
                self._free.update(outputs)
            self._trace(signature, inputs, outputs)
        self._follow_names()
        return self._done

    def _signature(self, op: int) -> Signature:
        return self._graph.signatures[self._graph.signature[op]]

    def _follow_copy(self, signature: Signature, inputs: list[int], outputs: list[int]) -> None:
        """Notes which buffers are copies of weights in another type."""
        copied = len(inputs) == 1 and bool(outputs) and not signature.view and self._is_weight(inputs[0])
        if copied and self._kinds[id(signature)] is OpKind.COPY:
            self._origin[outputs[0]] = self._origin.get(inputs[0], inputs[0])

    def _trace(self, signature: Signature, inputs: list[int], outputs: list[int]) -> None:
        """Follows what element-wise work makes of products that could be divided."""
        kind = self._kinds[id(signature)]
        if kind in (OpKind.ELEMENTWISE, OpKind.COPY, OpKind.RANDOM) and any(b in self._free for b in inputs):
            self._free.update(outputs)

    def _is_weight(self, buffer: int) -> bool:
        return buffer in self._origin or (buffer >= 0 and self._graph.buffers[buffer].role is Role.WEIGHTS)

    def _weight(self, signature: Signature, inputs: list[int]) -> int | None:
        """Which operand of a product is a weight matrix, if the other one is none."""
        if self._kinds[id(signature)] is not OpKind.GEMM or "convolution" in signature.name:
            return None
        matrices = [i for i, t in enumerate(signature.inputs) if len(t.shape) >= _MATRIX]
        weights = [i for i in matrices if self._is_weight(inputs[i]) and i == matrices[-1]]
        return weights[0] if len(weights) == 1 and len(matrices) > 1 else None

    def _root(self, buffer: int) -> int:
        return self._origin.get(buffer, buffer)

    def _embedding(self, table: int, tensor: Tensor) -> None:
        root = self._root(table)
        if tensor.shape[0] % self._ranks == 0 and self._is_weight(table):
            self._done.place.setdefault(root, whole(tensor, Dim(0, tensor.shape[0])))
        else:
            self._done.whole_vocabularies += 1

    def _product(self, position: int, op: int, weight: int) -> None:
        """Divides a product's weight by columns, if it has a partner."""
        signature, inputs = self._signature(op), self._graph.inputs(op)
        root, tensor = self._root(inputs[weight]), signature.inputs[weight]
        if isinstance(self._done.place.get(root), Shard) and "embedding" not in self._graph.buffers[root].name:
            return  # already the partner of another one, or shared
        result = signature.outputs[0]
        refused = 0
        for columns in self._candidates(position, result):
            probe = _Probe(self, {self._graph.outputs(op)[0]: whole(result, columns)})
            try:
                found = probe.run(self._forward[position + 1 : position + _FARTHEST])
            except NotDivisibleError as error:
                refused = refused or error.size
                continue
            if found == "loss" and columns.count % self._ranks:
                self._done.whole_vocabularies += 1  # classes may stay whole
                return
            if found:
                last = len(tensor.shape) - 1
                self._done.place[root] = whole(tensor, Dim(last, columns.count, columns.inner))
                if weight > 1 and self._is_weight(inputs[0]) and len(signature.inputs[0].shape) == 1:  # addmm's bias
                    self._done.place[self._root(inputs[0])] = whole(
                        signature.inputs[0], Dim(0, columns.count, columns.inner)
                    )
                self._done.place |= probe.weights
                self._done.columns += 1
                self._done.rows += found == "rows"
                return
        if refused:
            self._done.refused[self._graph.modules[self._graph.module[op]]] = refused

    def _candidates(self, position: int, result: Tensor) -> Iterator[Dim]:
        """Ways to divide a product's columns: evenly, or by heads inside the parts into which the next views take it."""
        last, size = len(result.shape) - 1, result.shape[-1]
        yield Dim(last, size)
        seen_before = {size}
        for tensor in self._later_views(position):
            for extent, stride in zip(tensor.shape, tensor.stride or (), strict=False):
                inside = stride * extent <= size and size % max(1, stride * extent) == 0
                if extent > 1 and inside and extent not in seen_before and extent % self._ranks == 0:
                    seen_before.add(extent)
                    yield Dim(last, extent, stride)

    def _later_views(self, position: int) -> Iterator[Tensor]:
        """The shapes that what a product makes takes, also behind a bias."""
        family = set(self._graph.outputs(self._forward[position]))
        for op in self._forward[position + 1 : position + 16]:
            signature, inputs, outputs = self._signature(op), self._graph.inputs(op), self._graph.outputs(op)
            if signature.view and not family.isdisjoint(outputs):
                yield from signature.outputs
            elif not family.isdisjoint(inputs) and self._kinds[id(signature)] is OpKind.ELEMENTWISE:
                family.update(outputs)

    def _follow_names(self) -> None:
        """Gradients from before the step and optimizer state are divided as their weight, whose name they have."""
        graph, place = self._graph, self._done.place
        weights = {b.name: i for i, b in enumerate(graph.buffers) if b.role is Role.WEIGHTS and i in place}
        for index, buffer in enumerate(graph.buffers):
            if buffer.birth >= 0 or buffer.role not in (Role.GRADIENTS, Role.OPTIMIZER_STATE):
                continue
            weight = weights.get(buffer.name, weights.get(buffer.name.rpartition(".")[0], -1))
            if weight >= 0 and buffer.nbytes * _WIDEST >= graph.buffers[weight].nbytes:
                place.setdefault(index, place[weight])

    def is_free(self, buffer: int) -> bool:
        """Whether a tensor that is not divided could be: it comes from a product of the same kind."""
        return buffer in self._free


class _Probe:
    """Follows what a divided product makes until its partner."""

    def __init__(self, assigner: _Assigner, place: dict[int, Shard | Partial]) -> None:
        self._assigner = assigner
        self._graph, self._ranks = assigner._graph, assigner._ranks
        self._place = place
        self._also: set[int] = set()  # would be divided beside it
        self.weights: dict[int, Shard | Partial] = {}

    def run(self, ops: list[int]) -> str:
        """'rows': a partner was found; 'loss': the columns are a vocabulary's classes; '': neither.

        Raises:
            NotDivisibleError: a dimension on the way cannot be divided.
        """
        for op in ops:
            signature, inputs = self._assigner._signature(op), self._graph.inputs(op)
            if not any(b in self._place for b in inputs):
                self._beside(signature, inputs, op)
                continue
            if signature.view:
                if not self._through(signature, op):
                    return ""
                continue
            found = self._operator(signature, inputs, op)
            if found is not None:
                return found
        return ""

    def _seen(self, buffer: int, tensor: Tensor) -> Dim | None:
        shard = self._place.get(buffer)
        return seen(tensor, shard) if isinstance(shard, Shard) else None

    def _through(self, signature: Signature, op: int) -> bool:
        """Whether a view sees all of what is divided: a third of a fused projection, if that is cut evenly, is on some ranks alone."""
        for buffer, tensor in zip(self._graph.outputs(op), signature.outputs, strict=True):
            shard, dim = self._place.get(buffer), self._seen(buffer, tensor)
            if dim is None or not isinstance(shard, Shard):
                return False
            part(tensor, dim, self._ranks)
            if whole(tensor, dim).stride * dim.count < shard.stride * shard.count:
                return False
        return True

    def _beside(self, signature: Signature, inputs: list[int], op: int) -> None:
        """A product or element-wise work on other columns, which would be divided in the same way."""
        is_product = self._assigner._weight(signature, inputs) is not None
        if is_product or any(b in self._also or self._assigner.is_free(b) for b in inputs):
            self._also.update(self._graph.outputs(op))

    def _operator(self, signature: Signature, inputs: list[int], op: int) -> str | None:
        """None: goes on."""
        given = tuple(self._seen(b, t) for b, t in zip(inputs, signature.inputs, strict=True))
        rule = passed(signature, given)
        if rule.small:  # a softmax over what is divided
            return "loss" if "_log_softmax" in signature.name else ""
        weight = self._assigner._weight(signature, inputs)
        if PARTIAL in rule.outputs:
            contracted = weight is not None and given[weight] is None
            if contracted:
                self._take(signature, inputs, rule.inputs)
            return "rows" if contracted else ""
        if weight is not None or not rule.known or not self._can(inputs, given, rule.inputs):
            return ""
        self._take(signature, inputs, rule.inputs)
        for buffer, tensor, dim in zip(self._graph.outputs(op), signature.outputs, rule.outputs, strict=True):
            if isinstance(dim, Dim):
                part(tensor, dim, self._ranks)
                self._place[buffer] = whole(tensor, dim)
        return None

    def _can(self, inputs: list[int], given: Placements, wanted: Placements) -> bool:
        """Whether an operator takes its operands as they are divided, or in parts where they could be divided."""
        for buffer, had, wants in zip(inputs, given, wanted, strict=True):
            if had is not None and wants is None:
                return False
            if had is None and wants is not None and not self._could_be(buffer):
                return False
        return True

    def _could_be(self, buffer: int) -> bool:
        return buffer in self._also or self._assigner.is_free(buffer) or self._assigner._is_weight(buffer)

    def _take(self, signature: Signature, inputs: list[int], wanted: Placements) -> None:
        """Divides the weights that an operator needs in parts."""
        for buffer, tensor, dim in zip(inputs, signature.inputs, wanted, strict=True):
            if isinstance(dim, Dim) and buffer not in self._place and self._assigner._is_weight(buffer):
                part(tensor, dim, self._ranks)
                self.weights[self._assigner._root(buffer)] = whole(tensor, dim)
