"""Lowering to kernels: each group is one, which loads, computes and stores at the same time, and follows the one before it on a stream."""

from dataclasses import replace

from neuronprof.compile import tile
from neuronprof.compile.fuse import Group
from neuronprof.compile.lowering import Lowering
from neuronprof.compile.plan import GroupPlan, Move
from neuronprof.graph.ir import DTYPE_BYTES, CollectiveCall, Graph
from neuronprof.graph.ops import Gemm, OpKind, Work
from neuronprof.graph.passes import is_causal
from neuronprof.hardware.spec import Chip
from neuronprof.program import Access, Opcode, Queue
from neuronprof.terms import Collective

_ACCESS = {
    OpKind.REDUCTION: Access.ROWS,
    OpKind.GATHER: Access.IRREGULAR,
    OpKind.SCATTER: Access.IRREGULAR,
    OpKind.SORT: Access.IRREGULAR,
}
_STREAM = (
    Queue.TENSOR, Queue.VECTOR, Queue.SCALAR, Queue.GPSIMD, Queue.DMA_WEIGHTS, Queue.DMA_ACTIVATIONS, Queue.DMA_STORES,
)  # fmt: skip


class Kernels(Lowering):
    """Lowering for a chip that runs one kernel after another."""

    def __init__(self, graph: Graph, works: list[Work], chip: Chip) -> None:
        super().__init__(graph, works)
        self._cache = chip.memory.sbuf
        self._eager = chip.eager
        self._exposed = chip.kernels.exposed if chip.kernels else 1.0
        self._before: list[int] = []  # instructions of the kernel before
        self._product: list[int] | None = None  # what that kernel awaited, if it was a product
        self._behind: dict[int, int] = {}  # part of a collective that products wait for: the part that runs beside them
        self._due: list[int] = []  # such parts that the next kernel waits for

    def _collective(self, group: Group) -> None:
        """A collective; of one that operators wait for, a part runs beside the product that makes its operand or takes its result."""
        op = group.ops[0]
        call = self.graph.collectives[op]
        hidden = round(call.nbytes * (1 - self._exposed))
        if call.stream or call.ranks == 1 or not hidden or call.kind in (Collective.SEND, Collective.RECV):
            super()._collective(group)
            return
        ready = [i for b in group.reads for i in self._stored.get(b, ())]
        after_product = self._product is not None and set(ready) == set(self._before)
        parts = ((hidden, self._product or []), (call.nbytes - hidden, ready))
        issued = [self._part(op, call, *part) for part in (parts if after_product else ((parts[1]), (hidden, ready)))]
        if not after_product:
            self._behind[issued[0]] = issued[1]
        for buffer in group.writes:
            self._made[buffer] = issued[-1]
            self._stored[buffer] = issued if after_product else issued[:1]

    def _part(self, op: int, call: CollectiveCall, nbytes: int, ready: list[int]) -> int:
        operands = (nbytes, call.ranks, 0, 0)
        index = self.builder.add(Opcode.COLLECTIVE, Queue.CC, op, operands, dtype=self._dtype(op), data=ready)
        self.builder.collectives[index] = replace(call, nbytes=nbytes)
        return index

    def _compute(self, group: Group, entry: GroupPlan) -> None:
        """One kernel. It waits for the one before it, whatever it needs, and beyond that for collectives and copies."""
        ready = [i for b in group.reads for i in self._stored.get(b, ()) if self.builder.queue[i] not in _STREAM]
        beside = [self._behind[i] for i in ready if i in self._behind]
        products = self._products(group)
        awaited = [*self._before, *self._due, *ready, *(() if products else beside)]
        self._due = beside if products else []
        self._product = awaited if products else None
        if self._eager:
            awaited.append(self.builder.add(Opcode.LAUNCH, Queue.HOST, group.ops[0], (1, 0, 0, 0)))
        kernel = [self._add(*product, awaited) for product in products]
        if group.kind is not OpKind.ATTENTION:  # what fused attention does besides its products is in their efficiency
            kernel += [
                self._add(opcode, queue, op, (elements, 1, 0, 0), awaited)
                for opcode, queue, op, elements, _ in self._passes(group)
            ]
        access = Access.ROWS if group.reduced else _ACCESS.get(group.kind, Access.STREAMING)
        for opcode, queue, nbytes in (
            (Opcode.DMA_LOAD, Queue.DMA_ACTIVATIONS, _bytes(entry.loads) + self._again(group)),
            (Opcode.DMA_STORE, Queue.DMA_STORES, _bytes(entry.stores)),
        ):
            if nbytes:
                kernel.append(self._add(opcode, queue, group.ops[0], (nbytes, nbytes, access, 0), awaited))
        if kernel:
            self._before = kernel
            self._stored |= dict.fromkeys(group.writes, kernel)

    def _add(
        self, opcode: Opcode, queue: Queue, op: int, operands: tuple[int, int, int, int], awaited: list[int]
    ) -> int:
        return self.builder.add(opcode, queue, op, operands, dtype=self._dtype(op), data=awaited)

    def _dtype(self, op: int) -> str:
        """Of a product, that of its matrices, which what is added to it, or says where groups of rows end, need not have."""
        signature = self.graph.signatures[self.graph.signature[op]]
        product = self.works[self.graph.signature[op]].kind is OpKind.GEMM
        matrices = [t for t in signature.inputs if product and len(t.shape) > 1]
        return matrices[-1].dtype if matrices else super()._dtype(op)

    def _products(self, group: Group) -> list[tuple[Opcode, Queue, int, tuple[int, int, int, int]]]:
        """The matrix products; those of fused attention are one instruction, of which a causal mask spares half."""
        found = []
        for op in group.ops:
            signature = self.graph.signatures[self.graph.signature[op]]
            gemms = self.works[self.graph.signature[op]].gemms
            if group.kind is OpKind.ATTENTION and gemms:
                backward = "backward" in signature.name
                opcode = Opcode.ATTENTION_BACKWARD if backward else Opcode.ATTENTION
                rows = -(-gemms[0].m // 2) if is_causal(signature) else gemms[0].m
                shape = sum(g.batch for g in gemms), rows, gemms[0].k, gemms[0].n
                found.append((opcode, Queue.TENSOR, op, shape))
            else:
                found += [(Opcode.MATMUL, Queue.TENSOR, op, (g.batch, g.m, g.k, g.n)) for g in gemms]
        return found

    def _again(self, group: Group) -> int:
        """Bytes that products read again because their operands do not fit the cache."""
        if group.kind is not OpKind.GEMM:
            return 0
        return sum(self._read_again(op, g) for op in group.ops for g in self.works[self.graph.signature[op]].gemms)

    def _read_again(self, op: int, gemm: Gemm) -> int:
        size = DTYPE_BYTES.get(self._dtype(op), 4)
        left, right = gemm.m * gemm.k * size, gemm.k * gemm.n * size
        return gemm.batch * tile.read_again(left, right, size * gemm.m * gemm.n, self._cache)


def _bytes(moves: list[Move]) -> int:
    return sum(move.nbytes for move in moves)
