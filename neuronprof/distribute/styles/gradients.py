"""Gradients in FP32: sums over micro-batches and replicas lose no bits, at twice the room and the bytes of 16 bits."""

from collections import Counter
from dataclasses import replace

from neuronprof.graph.edit import GraphEditor
from neuronprof.graph.ir import Buffer, Graph, Signature, Tensor
from neuronprof.graph.ops import OpKind, work
from neuronprof.terms import Role

_NARROW = ("bfloat16", "float16")
_WIDE = "float32"


def in_fp32(graph: Graph) -> Graph:
    """A step whose gradients of weights are FP32 (as Megatron's --accumulate-allreduce-grads-in-fp32).

    Products write what their FP32 accumulators hold; behind other operators that make a gradient stands a cast. Gradients that are FP32
    already stay as they are; without others the graph does.
    """
    wide = _wide(graph)
    return _Widening(graph, wide).write() if wide else graph


def _wide(graph: Graph) -> set[int]:
    """The buffers to widen: gradients of 16 bits, and what is made only to be added to them."""
    readers = Counter(b for op in range(len(graph)) if not _signature(graph, op).view for b in {*graph.inputs(op)})
    wide: set[int] = set()
    for op in reversed(range(len(graph))):
        signature = _signature(graph, op)
        inputs, outputs = graph.inputs(op), graph.outputs(op)
        operands = zip(inputs + outputs, signature.inputs + signature.outputs, strict=False)
        wide |= {b for b, t in operands if b >= 0 and t.dtype in _NARROW and graph.buffers[b].role is Role.GRADIENTS}
        if signature.name.startswith(("aten.add.Tensor", "aten.add_.Tensor")) and not wide.isdisjoint(outputs):
            wide |= {b for b in inputs if b >= 0 and readers[b] == 1}
    return wide


def _signature(graph: Graph, op: int) -> Signature:
    return graph.signatures[graph.signature[op]]


class _Widening:
    """A graph with some buffers of twice the bytes, and casts behind those operators that make them of 16 bits."""

    def __init__(self, graph: Graph, wide: set[int]) -> None:
        self._graph, self._wide, self._editor = graph, wide, GraphEditor(graph)

    def write(self) -> Graph:
        """The new graph."""
        for buffer in self._wide:
            old = self._graph.buffers[buffer]
            self._editor.buffers[buffer] = replace(old, nbytes=2 * old.nbytes)
        for op in range(len(self._graph)):
            if self._writes_narrow(op):
                self._cast(op)
            else:
                self._editor.copy(op, self._widened(op))
        return self._editor.finish()

    def _writes_narrow(self, op: int) -> bool:
        """Whether an operator makes gradients out of operands of 16 bits alone, and is no product."""
        signature = _signature(self._graph, op)
        known, made = work(signature), self._wide.intersection(self._graph.outputs(op))
        fresh = made and self._wide.isdisjoint(self._graph.inputs(op))
        return bool(fresh) and known.kind is not OpKind.GEMM and not signature.view

    def _widened(self, op: int) -> Signature:
        """An operator's signature with the wide operands in FP32."""
        signature = _signature(self._graph, op)
        if self._wide.isdisjoint(self._graph.inputs(op) + self._graph.outputs(op)):
            return signature
        inputs = self._tensors(self._graph.inputs(op), signature.inputs)
        return replace(signature, inputs=inputs, outputs=self._tensors(self._graph.outputs(op), signature.outputs))

    def _tensors(self, buffers: list[int], tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        pairs = zip(buffers, tensors, strict=True)
        return tuple(replace(t, dtype=_WIDE) if b in self._wide and t.dtype in _NARROW else t for b, t in pairs)

    def _cast(self, op: int) -> None:
        """Issues an operator on temporaries, and a cast of each to the gradient."""
        signature, outputs = _signature(self._graph, op), self._graph.outputs(op)
        after = min(op + 1, len(self._graph) - 1)
        made = {b: Buffer(self._graph.buffers[b].nbytes, role=Role.WORKSPACE) for b in outputs if b in self._wide}
        fresh = {b: self._editor.buffer(temporary, after) for b, temporary in made.items()}
        self._editor.copy(op, operands=self._graph.inputs(op) + [fresh.get(b, b) for b in outputs])
        for buffer, tensor in zip(outputs, signature.outputs, strict=True):
            if buffer in fresh:
                cast = Signature("aten._to_copy.default", (tensor,), (replace(tensor, dtype=_WIDE),))
                self._editor.issue(cast, [fresh[buffer], buffer], op)
