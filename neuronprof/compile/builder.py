"""Collects a Program's instructions row by row."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from neuronprof.graph.ir import CollectiveCall
from neuronprof.program import DMA_OPCODES, PRODUCTS, Opcode, Program, Queue

_MOVES = [*DMA_OPCODES, Opcode.COLLECTIVE, Opcode.SEND, Opcode.RECV]
_COMPUTES = [Opcode.ACTIVATE, Opcode.TENSOR_TENSOR, Opcode.TENSOR_SCALAR, Opcode.TENSOR_REDUCE, Opcode.CUSTOM_OP]


@dataclass
class ProgramBuilder:
    """Rows of a Program under construction. `add` returns the new instruction's index."""

    opcode: list[int] = field(default_factory=list)
    queue: list[int] = field(default_factory=list)
    op: list[int] = field(default_factory=list)
    dtype: list[int] = field(default_factory=list)
    operands: list[tuple[int, int, int, int]] = field(default_factory=list)
    deps_ptr: list[int] = field(default_factory=lambda: [0])
    deps: list[int] = field(default_factory=list)
    deps_space: list[bool] = field(default_factory=list)
    collectives: dict[int, CollectiveCall] = field(default_factory=dict)
    flops: dict[int, int] = field(default_factory=dict)  # of instructions whose operands do not say how many
    _dtypes: dict[str, int] = field(default_factory=dict)
    _launch: int = -1
    _launched: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.opcode)

    def add(
        self,
        opcode: Opcode,
        queue: Queue,
        op: int,
        operands: tuple[int, int, int, int],
        *,
        dtype: str = "",
        data: Iterable[int] = (),
        space: Iterable[int] = (),
    ) -> int:
        """Adds an instruction; data: predecessors whose result it needs; space: predecessors whose room in SBUF or PSUM it needs."""
        index = len(self.opcode)
        self.opcode.append(opcode)
        self.queue.append(queue)
        self.op.append(op)
        self.dtype.append(self._dtypes.setdefault(dtype, len(self._dtypes)))
        self.operands.append(operands)
        needed = {d for d in data if d >= 0}
        if self._launch >= 0 and queue not in self._launched and queue != Queue.HOST:
            # Queues run in order: the first instruction after a launch holds back all that follow it.
            self._launched.add(queue)
            needed.add(self._launch)
        room = {d for d in space if d >= 0} - needed
        self.deps.extend(sorted(needed))
        self.deps_space.extend([False] * len(needed))
        self.deps.extend(sorted(room))
        self.deps_space.extend([True] * len(room))
        self.deps_ptr.append(len(self.deps))
        return index

    def launch(self, op: int) -> None:
        """Adds a LAUNCH that everything after it waits for."""
        self._launch = self.add(Opcode.LAUNCH, Queue.HOST, op, (0, 0, 0, 0))
        self._launched.clear()

    def finish(self, memory: list[tuple[int, int, int]], unknown: dict[str, int], operators: int = 0) -> Program:
        """The Program of all rows added so far; memory, unknown and operators as Program has them."""
        opcode, operands = np.array(self.opcode, np.int8), np.array(self.operands, np.int64).reshape(-1, 4)
        flops = np.select(
            [np.isin(opcode, PRODUCTS), np.isin(opcode, _COMPUTES)],
            [2 * operands.prod(axis=1), operands[:, 0] * operands[:, 1]],
            0,
        )
        flops[list(self.flops)] = list(self.flops.values())
        return Program(
            opcode=opcode,
            queue=np.array(self.queue, np.int8),
            op=np.array(self.op, np.int32),
            dtype=np.array(self.dtype, np.int8),
            operands=operands,
            nbytes=np.where(np.isin(opcode, _MOVES), operands[:, 0], 0),
            flops=flops,
            deps_ptr=np.array(self.deps_ptr, np.int64),
            deps=np.array(self.deps, np.int32),
            deps_space=np.array(self.deps_space, bool),
            memory=np.array(memory, np.int64).reshape(-1, 3),
            dtypes=tuple(self._dtypes),
            collectives=self.collectives,
            unknown=unknown,
            operators=operators,
        )
