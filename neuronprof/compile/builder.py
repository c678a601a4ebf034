"""Collects a Program's instructions row by row."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from neuronprof.graph.ir import CollectiveCall
from neuronprof.program import DMA_OPCODES, PRODUCTS, Opcode, Program, Queue

_MOVES = [*DMA_OPCODES, Opcode.COLLECTIVE, Opcode.SEND, Opcode.RECV]
_COMPUTES = [Opcode.ACTIVATE, Opcode.TENSOR_TENSOR, Opcode.TENSOR_SCALAR, Opcode.TENSOR_REDUCE, Opcode.CUSTOM_OP]


@dataclass(frozen=True, slots=True)
class Rows:
    """Instructions to be added at once, counted from the first: columns as Program has them, operands four an instruction.

    op, dtype: places in the lists that `add_rows` is given; edges: int64[k, 3], see `need`.
    """

    opcode: list[int]
    queue: list[int]
    op: np.ndarray
    dtype: np.ndarray
    operands: list[int]
    edges: np.ndarray


@dataclass
class ProgramBuilder:
    """Rows of a Program under construction. `add` returns the new instruction's index."""

    opcode: list[int] = field(default_factory=list)
    queue: list[int] = field(default_factory=list)
    op: list[int] = field(default_factory=list)
    dtype: list[int] = field(default_factory=list)
    operands: list[int] = field(default_factory=list)  # four an instruction
    collectives: dict[int, CollectiveCall] = field(default_factory=dict)
    flops: dict[int, int] = field(default_factory=dict)  # of instructions whose operands do not say how many
    _edges: list[np.ndarray] = field(default_factory=list)
    _single: list[tuple[int, int, int]] = field(default_factory=list)
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
        self.dtype.append(self._code(dtype))
        self.operands += operands
        self.need(index, data, space)
        if self._launch >= 0:
            self._after_launch(queue, index)
        return index

    def add_rows(self, rows: Rows, ops: list[int], dtypes: Sequence[str]) -> int:
        """Adds many instructions that work for these operators on these dtypes; returns the first one's index."""
        first = len(self.opcode)
        self.opcode += rows.opcode
        self.queue += rows.queue
        self.op += np.array(ops)[rows.op].tolist()
        self.dtype += np.array([self._code(dtype) for dtype in dtypes])[rows.dtype].tolist()
        self.operands += rows.operands
        self._edges.append(np.add(rows.edges, (first, first, 0)))
        if self._launch >= 0:
            for queue in set(rows.queue):
                self._after_launch(queue, first + rows.queue.index(queue))
        return first

    def _code(self, dtype: str) -> int:
        return self._dtypes.setdefault(dtype, len(self._dtypes))

    def need(self, index: int, data: Iterable[int], space: Iterable[int] = ()) -> None:
        """Lets an instruction wait for predecessors; see `add`. An edge is (instruction, predecessor, 1 where it waits for room)."""
        self._single += [(index, d, 0) for d in data if d >= 0]
        self._single += [(index, d, 1) for d in space if d >= 0]

    def make_wait(self, rows: list[int], space: list[int]) -> None:
        """Lets each of several instructions wait for the same room."""
        self._single += [(row, needed, 1) for row in rows for needed in space]

    def _after_launch(self, queue: int, index: int) -> None:
        """Queues run in order: the first instruction after a launch holds back all that follow it."""
        if queue not in self._launched and queue != Queue.HOST:
            self._launched.add(queue)
            self.need(index, [self._launch])

    def launch(self, op: int) -> None:
        """Adds a LAUNCH that everything after it waits for."""
        self._launch = self.add(Opcode.LAUNCH, Queue.HOST, op, (0, 0, 0, 0))
        self._launched.clear()

    def finish(self, memory: list[tuple[int, int, int]], unknown: dict[str, int], operators: int = 0) -> Program:
        """The Program of all rows added so far; memory, unknown and operators as Program has them."""
        opcode, operands = np.array(self.opcode, np.int8), np.array(self.operands, np.int64).reshape(-1, 4)
        deps_ptr, deps, space = self._dependencies()
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
            deps_ptr=deps_ptr,
            deps=deps.astype(np.int32),
            deps_space=space.astype(bool),
            memory=np.array(memory, np.int64).reshape(-1, 3),
            dtypes=tuple(self._dtypes),
            collectives=self.collectives,
            unknown=unknown,
            operators=operators,
        )

    def _dependencies(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where each instruction's predecessors begin, those for data before those for room; who is needed for both counts for data."""
        edges = np.concatenate([np.array(self._single, np.int64).reshape(-1, 3), *self._edges])
        edges = edges[edges[:, 1] >= 0]
        edges = edges[np.lexsort((edges[:, 2], edges[:, 1], edges[:, 0]))]
        again = np.zeros(len(edges), bool)
        again[1:] = (edges[1:, :2] == edges[:-1, :2]).all(axis=1)
        edges = edges[~again]
        index, needed, space = edges[np.lexsort((edges[:, 1], edges[:, 2], edges[:, 0]))].T
        return np.searchsorted(index, np.arange(len(self) + 1)).astype(np.int64), needed, space
