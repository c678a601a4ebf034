"""Products in FP8: the matrix products of repeated blocks take operands of 8 bits, cast beforehand."""

from collections import defaultdict
from dataclasses import replace

from neuronprof.distribute.pieces import BACKWARD, layers, regions
from neuronprof.graph.edit import GraphEditor
from neuronprof.graph.ir import Buffer, Graph, Signature, Tensor
from neuronprof.graph.ops import OpKind, work
from neuronprof.terms import Role

_WIDE = ("bfloat16", "float16")
_NARROW = "float8_e4m3fn"


def in_fp8(graph: Graph) -> Graph:
    """A step whose products of two matrices inside repeated blocks run in FP8 (as Transformer Engine's linear layers).

    Each activation and gradient is cast once, before its first product, each weight once in forward and once in backward; the first and
    last layers stay in 16 bits.
    """
    return _Casting(graph).write()


class _Casting:
    """Casts, and where they are still good."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._editor = graph, GraphEditor(graph)
        self._region = regions(graph)
        self._cast: dict[tuple[int, int, int], int] = {}  # (buffer, offset, region of a weight): its cast copy
        self._casts_of: dict[int, set[tuple[int, int, int]]] = defaultdict(set)

    def write(self) -> Graph:
        """The new graph."""
        graph, layer = self._graph, layers(self._graph)
        products = [self._is_product(s) for s in graph.signatures]
        last = self._last_products(products)
        for op, number in enumerate(graph.signature.tolist()):
            forward = int(graph.forward[op])
            inside = layer[op] >= 0 or (forward >= 0 and layer[forward] >= 0)
            if products[number] and inside:
                self._narrow(op, last)
            else:
                self._editor.copy(op)
            self._forget(op)
        return self._editor.finish()

    def _is_product(self, signature: Signature) -> bool:
        """Two matrices, after what is added to their product, if anything is."""
        known = work(signature)
        matrices = signature.inputs[-2:]
        two = len(matrices) == 2 and all(len(t.shape) == 2 and t.dtype in _WIDE for t in matrices)
        return two and len(signature.inputs) <= 3 and known.kind is OpKind.GEMM and len(known.gemms) == 1

    def _last_products(self, products: list[bool]) -> dict[tuple[int, int], int]:
        """(buffer, region) to the last product there that takes it."""
        last: dict[tuple[int, int], int] = {}
        for op, number in enumerate(self._graph.signature.tolist()):
            if products[number]:
                last |= {(buffer, int(self._region[op])): op for buffer in self._graph.inputs(op)}
        return last

    def _narrow(self, op: int, last: dict[tuple[int, int], int]) -> None:
        """Issues one product on casts of its operands."""
        signature, buffers = self._graph.signatures[self._graph.signature[op]], self._graph.inputs(op)
        matrices = list(zip(buffers, signature.inputs, strict=True))[-2:]
        added = len(buffers) - 2
        operands = [self._narrowed(op, buffer, tensor, last) for buffer, tensor in matrices]
        narrow = tuple(replace(t, dtype=_NARROW) for _, t in matrices)
        self._editor.copy(
            op,
            replace(signature, inputs=signature.inputs[:added] + narrow),
            buffers[:added] + operands + self._graph.outputs(op),
        )

    def _narrowed(self, op: int, buffer: int, tensor: Tensor, last: dict[tuple[int, int], int]) -> int:
        weight = self._graph.buffers[buffer].role is Role.WEIGHTS
        region = int(self._region[op]) if weight else 0
        key = buffer, tensor.offset, region
        if key not in self._cast:
            made = Buffer(tensor.numel, role=Role.WORKSPACE)
            self._cast[key] = self._editor.buffer(made, last.get((buffer, region if weight else BACKWARD), op))
            self._casts_of[buffer].add(key)
            narrow = replace(tensor, dtype=_NARROW)
            self._editor.issue(Signature("aten._to_copy.default", (tensor,), (narrow,)), [buffer, self._cast[key]], op)
        return self._cast[key]

    def _forget(self, op: int) -> None:
        """Casts of what an operator writes are good no more."""
        signature, inputs = self._graph.signatures[self._graph.signature[op]], self._graph.inputs(op)
        for buffer in [*self._graph.outputs(op), *(inputs[i] for i in signature.mutates)] if not signature.view else ():
            for key in self._casts_of.pop(buffer, ()):
                del self._cast[key]
