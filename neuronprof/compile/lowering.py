"""Lowering: what compiled chips and chips that run kernels have in common: collectives, transfers, waiting for the host."""

from abc import ABC, abstractmethod

from neuronprof.compile.builder import ProgramBuilder
from neuronprof.compile.fuse import Group
from neuronprof.compile.plan import GroupPlan
from neuronprof.graph.ir import DTYPE_BYTES, CollectiveCall, Graph, Signature
from neuronprof.graph.ops import OpKind, Work
from neuronprof.program import Opcode, Queue
from neuronprof.terms import Collective

Pass = tuple[
    Opcode, Queue, int, int, str
]  # opcode, queue, operator, elements, dtype of what is worked on ('': as the operator says)

_STREAMS = (Queue.CC, Queue.CC_GATHER, Queue.CC_REDUCE)


def _issued(call: CollectiveCall) -> tuple[Opcode, Queue]:
    if call.kind == Collective.SEND:
        return Opcode.SEND, Queue.CC_SEND
    if call.kind == Collective.RECV:
        return Opcode.RECV, Queue.CC_RECV
    return Opcode.COLLECTIVE, _STREAMS[call.stream]


def _is_cast(signature: Signature) -> bool:
    """Whether an operator gives each element another type and leaves it where it is."""
    if not signature.name.startswith("aten._to_copy"):
        return False
    before, after = signature.inputs[0], signature.outputs[0]
    return (before.dtype, before.stride) != (after.dtype, after.stride) and before.stride == after.stride


class Lowering(ABC):
    """State of a lowering: instructions so far, and after which of them each buffer's data is there."""

    def __init__(self, graph: Graph, works: list[Work]) -> None:
        self.graph = graph
        self.works = works
        self.builder = ProgramBuilder()
        self.sync: int | None = None  # the operator for whose result the host has waited and not launched since
        self.spans: list[tuple[int, int]] = []  # first and last instruction of each group
        self._made: dict[int, int] = {}  # buffer: instruction after which SBUF has it
        self._stored: dict[int, list[int]] = {}  # buffer: instructions after which HBM has it

    def group(self, group: Group, entry: GroupPlan) -> None:
        """Appends one group's instructions."""
        first = len(self.builder)
        if self.sync is not None and group.kind is not OpKind.HOST_SYNC:
            self.builder.launch(self.sync)
            self.sync = None
        if group.kind is OpKind.COLLECTIVE:
            self._collective(group)
        elif group.kind is OpKind.HOST_SYNC:
            self._host_sync(group)
        elif group.kind is OpKind.TRANSFER:
            self._transfer(group)
        else:
            self._compute(group, entry)
        self.spans.append((first, max(first, len(self.builder) - 1)))

    def _collective(self, group: Group) -> None:
        op = group.ops[0]
        call = self.graph.collectives[op]
        ready = [i for b in group.reads for i in self._stored.get(b, ())]
        operands = (call.nbytes, call.ranks, 0, 0)
        opcode, queue = _issued(call)
        index = self.builder.add(opcode, queue, op, operands, dtype=self._dtype(op), data=ready)
        self.builder.collectives[index] = call
        for buffer in group.writes:
            self._made[buffer] = index
            self._stored[buffer] = [index]

    def _host_sync(self, group: Group) -> None:
        op, buffers = group.ops[0], list(group.reads)
        ready = [i for b in buffers for i in (*self._stored.get(b, ()), self._made.get(b, -1))]
        nbytes = sum(group.reads.values())
        copy = self.builder.add(Opcode.COPY_TO_HOST, Queue.DMA_HOST, op, (nbytes, nbytes, 0, 0), data=ready)
        self.builder.add(Opcode.HOST_SYNC, Queue.HOST, op, (0, 0, 0, 0), data=[copy])
        self.sync = op

    def _transfer(self, group: Group) -> None:
        op = group.ops[0]
        to_device = self.graph.signatures[self.graph.signature[op]].name.endswith("h2d")
        opcode = Opcode.COPY_TO_DEVICE if to_device else Opcode.COPY_TO_HOST
        nbytes = sum(group.reads.values()) or sum(group.writes.values())
        ready = [] if to_device else [i for b in group.reads for i in (*self._stored.get(b, ()), self._made.get(b, -1))]
        index = self.builder.add(opcode, Queue.DMA_HOST, op, (nbytes, nbytes, 0, 0), dtype=self._dtype(op), data=ready)
        for buffer in (group.writes or group.reads) if to_device else ():
            self._made[buffer] = index
            self._stored[buffer] = [index]

    @abstractmethod
    def _compute(self, group: Group, entry: GroupPlan) -> None:
        """Appends the instructions of a group of operators that compute."""

    def _passes(self, group: Group) -> list[Pass]:
        """Work of the vector, scalar and gpsimd engines, one entry an opcode."""
        return self._passes_of(self._working(group))

    def _working(self, group: Group) -> list[int]:
        """The operators that take instructions of their own: not the casts beside others, as these read and write any element type."""
        others = [op for op in group.ops if not _is_cast(self.graph.signatures[self.graph.signature[op]])]
        return others or group.ops

    def _worked_in(self, _op: int) -> str:
        """The element type in which an operator's vector instructions work, where that is another than the operator's."""
        return ""

    def _passes_of(self, ops: list[int]) -> list[Pass]:
        merged: dict[tuple[Opcode, Queue, str], tuple[int, int]] = {}

        def note(opcode: Opcode, queue: Queue, op: int, elements: int, dtype: str = "") -> None:
            if elements:
                lead, before = merged.get((opcode, queue, dtype), (op, 0))
                merged[opcode, queue, dtype] = (lead, before + elements)

        for op in ops:
            cost = self.works[self.graph.signature[op]]
            vector = (
                Opcode.TENSOR_REDUCE
                if cost.kind is OpKind.REDUCTION
                else Opcode.TENSOR_TENSOR
                if cost.two_inputs
                else Opcode.TENSOR_SCALAR
            )
            note(Opcode.CUSTOM_OP, Queue.GPSIMD, op, cost.gpsimd)
            note(Opcode.ACTIVATE, Queue.SCALAR, op, cost.scalar)
            note(vector, Queue.VECTOR, op, cost.vector, self._worked_in(op))
        return [(opcode, queue, op, elements, dtype) for (opcode, queue, dtype), (op, elements) in merged.items()]

    def _dtype(self, op: int) -> str:
        signature = self.graph.signatures[self.graph.signature[op]]
        tensors = signature.inputs or signature.outputs
        return tensors[0].dtype if tensors else ""

    def _itemsize(self, op: int) -> int:
        return DTYPE_BYTES.get(self._dtype(op), 4)
