"""Collects a Program's instructions row by row."""

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from neuronprof.graph.ir import CollectiveCall
from neuronprof.program import DMA_OPCODES, PRODUCTS, Opcode, Program, Queue, among
from neuronprof.terms import HELD, Held

_PRODUCTS = among(Opcode, PRODUCTS)
_MOVES = among(Opcode, [*DMA_OPCODES, Opcode.COLLECTIVE, Opcode.SEND, Opcode.RECV])
_COMPUTES = among(
    Opcode, [Opcode.ACTIVATE, Opcode.TENSOR_TENSOR, Opcode.TENSOR_SCALAR, Opcode.TENSOR_REDUCE, Opcode.CUSTOM_OP]
)


@dataclass(frozen=True, slots=True)
class Rows:
    """Instructions to be added at once, counted from the first.

    opcode, queue, operands: the bytes of such columns of a Program; op, dtype: places in the lists that `add_rows` is given; edges:
    int64[k, 3], see `need`; first: of each queue, its first instruction.
    """

    opcode: bytes
    queue: bytes
    op: np.ndarray
    dtype: np.ndarray
    operands: bytes
    edges: np.ndarray
    first: dict[int, int]


def _column(code: str) -> Callable[[], "array[int]"]:
    """A column that grows, of integers of a type code of the array module."""
    return partial(array, code)


@dataclass
class ProgramBuilder:
    """Rows of a Program under construction. `add` returns the new instruction's index."""

    opcode: "array[int]" = field(default_factory=_column("b"))
    queue: "array[int]" = field(default_factory=_column("b"))
    op: "array[int]" = field(default_factory=_column("i"))
    dtype: "array[int]" = field(default_factory=_column("b"))
    operands: "array[int]" = field(default_factory=_column("q"))  # four an instruction
    collectives: dict[int, CollectiveCall] = field(default_factory=dict)
    flops: dict[int, int] = field(default_factory=dict)  # of instructions whose operands do not say how many
    _on_chip: "array[int]" = field(default_factory=_column("q"))  # four a row, as Program has them
    _edges: list[np.ndarray] = field(default_factory=list)
    _single: "array[int]" = field(default_factory=_column("q"))  # three an edge
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
        self.operands.extend(operands)
        self.need(index, data, space)
        if self._launch >= 0:
            self._after_launch(queue, index)
        return index

    def add_rows(self, rows: Rows, ops: list[int], dtypes: Sequence[str]) -> int:
        """Adds many instructions that work for these operators on these dtypes; returns the first one's index."""
        first = len(self.opcode)
        self.opcode.frombytes(rows.opcode)
        self.queue.frombytes(rows.queue)
        self.op.frombytes(np.array(ops, np.int32)[rows.op].tobytes())
        self.dtype.frombytes(np.array([self._code(dtype) for dtype in dtypes], np.int8)[rows.dtype].tobytes())
        self.operands.frombytes(rows.operands)
        self._edges.append(rows.edges + np.array((first, first, 0)))
        if self._launch >= 0:
            for queue, row in rows.first.items():
                self._after_launch(queue, first + row)
        return first

    def _code(self, dtype: str) -> int:
        return self._dtypes.setdefault(dtype, len(self._dtypes))

    def need(self, index: int, data: Iterable[int], space: Iterable[int] = ()) -> None:
        """Lets an instruction wait for predecessors (-1: none), see `add`. An edge: instruction, predecessor, 1 where it waits for room."""
        for needed in data:
            self._single.extend((index, needed, 0))
        for needed in space:
            self._single.extend((index, needed, 1))

    def hold(self, what: Held, first: int, last: int, nbytes: int) -> None:
        """Notes what SBUF or PSUM holds from one instruction to another, see Program.on_chip."""
        self._on_chip.extend((HELD.index(what), first, last, nbytes))

    def make_wait(self, rows: list[int], space: list[int]) -> None:
        """Lets each of several instructions wait for the same room."""
        self._single.extend([number for row in rows for needed in space for number in (row, needed, 1)])

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
        opcode, operands = np.array(self.opcode), np.array(self.operands).reshape(-1, 4)
        deps_ptr, deps, space = self._dependencies()
        pairs = operands[:, 0] * operands[:, 1]
        flops = np.where(_COMPUTES[opcode], pairs, 0)
        products = np.flatnonzero(_PRODUCTS[opcode])
        flops[products] = 2 * pairs[products] * operands[products, 2] * operands[products, 3]
        flops[list(self.flops)] = list(self.flops.values())
        return Program(
            opcode=opcode,
            queue=np.array(self.queue),
            op=np.array(self.op),
            dtype=np.array(self.dtype),
            operands=operands,
            nbytes=np.where(_MOVES[opcode], operands[:, 0], 0),
            flops=flops,
            deps_ptr=deps_ptr,
            deps=deps.astype(np.int32),
            deps_space=space.astype(bool),
            memory=np.array(memory, np.int64).reshape(-1, 3),
            dtypes=tuple(self._dtypes),
            collectives=self.collectives,
            unknown=unknown,
            operators=operators,
            on_chip=np.array(self._on_chip).reshape(-1, 4),
        )

    def _dependencies(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where each instruction's predecessors begin, those for data before those for room; who is needed for both counts for data."""
        n = max(len(self), 1)
        index, needed, space = np.concatenate([np.array(self._single).reshape(-1, 3), *self._edges]).T
        key = np.sort(((index * n + needed) * 2 + space)[needed >= 0])  # sorting one number is faster than three
        first = np.ones(len(key), bool)
        first[1:] = key[1:] // 2 != key[:-1] // 2
        edge, space = np.divmod(key[first], 2)
        index, needed = np.divmod(edge, n)
        key = np.sort((index * 2 + space) * n + needed)
        counts = np.bincount(index, minlength=len(self))
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), key % n, key // n % 2
