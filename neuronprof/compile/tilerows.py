"""The instructions of a group's tiles as whole columns: each tile loads, computes engine after engine, and stores."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from neuronprof.compile import tile
from neuronprof.compile.builder import Rows
from neuronprof.compile.lowering import Pass
from neuronprof.graph.ops import Gemm
from neuronprof.program import Opcode, Queue

_ACCUMULATOR_BYTES = 4  # PSUM sums up in FP32


@dataclass(slots=True)
class Ring:
    """What a group moves on one DMA ring: bytes in all, contiguous bytes of a run on average, and what its DMA has to wait for.

    reread, reload: bytes of it that move only for want of room in SBUF, see `program.Opcode`.
    """

    opcode: Opcode
    queue: Queue
    buffers: list[int]
    nbytes: int
    run: int
    reread: int = 0
    reload: int = 0
    after: list[int] = field(default_factory=list)
    last: int = -1

    @property
    def motion(self) -> "Motion":
        """What its instructions depend on."""
        return self.opcode, self.queue, self.nbytes, self.run, self.reread, self.reload


Motion = tuple[Opcode, Queue, int, int, int, int]  # of a ring: opcode, queue, bytes, run, reread, reload


@dataclass(frozen=True, slots=True)
class Shape:
    """All that a group's instructions depend on; operators are counted within the group.

    count: tiles; products: operators and their matmuls, cut into about `pieces` by stationary and moving; passes: with counted operators;
    loads, stores: rings; dtypes: of each operator; partitions of SBUF; psum: bytes.
    """

    count: int
    products: tuple[tuple[int, Gemm], ...]
    cut: tuple[int, int, int]  # pieces, stationary, moving: see `tile.split_gemm`
    passes: tuple[Pass, ...]
    loads: tuple[Motion, ...]
    stores: tuple[Motion, ...]
    dtypes: tuple[str, ...]
    partitions: int
    psum: float

    def parts(self) -> list[tuple[int, tuple[Gemm, ...]]]:
        """The products, cut."""
        return [(op, tile.split_gemm(gemm, *self.cut)) for op, gemm in self.products]


@dataclass(slots=True)
class Tiling:
    """A group in tiles. total: bytes that it moves; resident: who made what SBUF has already; loads, stores: as the shape has them."""

    ops: list[int]
    shape: Shape
    total: int
    resident: set[int]
    loads: list[Ring]
    stores: list[Ring]


@dataclass(frozen=True, slots=True)
class Block:
    """A group's instructions, counted from its first, operators within the group, dtypes in `dtypes`.

    loads, stores: rows of each ring by tile; starts: each tile's first instruction on an engine (-1: it has none); last: its last one, of a
    tile without any its last load (-1: it has none either); tiles: each one's first and last row; products: of each tile with any its first
    MATMUL, its last instruction on an engine, and the bytes of PSUM that it takes in between.
    """

    rows: Rows
    dtypes: tuple[str, ...]
    loads: list[list[int]]
    stores: list[list[int]]
    starts: list[int]
    last: list[int]
    tiles: list[tuple[int, int]]
    products: list[tuple[int, int, int]]


@lru_cache(maxsize=4096)
def block(shape: Shape) -> Block:
    """The instructions of a group of this shape; blocks of a model that are alike have them written once."""
    return _Writer(shape).block()


class _Writer:
    """Writes the rows of a shape's tiles, of which each loads, computes engine after engine, and stores."""

    def __init__(self, shape: Shape) -> None:
        self._shape, n = shape, shape.count
        self._gemms = [(op, _operands(parts)) for op, parts in shape.parts()]
        # The tile of each part of each product, product by product.
        self._tile = np.concatenate([*(_tile_of(len(g), n) for _, g in self._gemms), np.zeros(0, np.int64)])
        self._products = np.bincount(self._tile, minlength=n)
        self._engines = self._products + len(shape.passes)
        length = len(shape.loads) + self._engines + len(shape.stores)
        self._length = int(length.sum())
        self._end = np.cumsum(length)
        begin = self._end - length
        self._starts = begin + len(shape.loads)
        self._loads = begin + np.arange(len(shape.loads))[:, None]
        self._stores = self._starts + self._engines + np.arange(len(shape.stores))[:, None]
        some = (self._engines > 0) | bool(shape.loads)
        self._last = np.where(some, self._starts + self._engines - 1, -1)
        # In a tile product stands after product.
        place = np.argsort(np.argsort(self._tile, kind="stable"))
        self._rows = self._starts[self._tile] + place - (np.cumsum(self._products) - self._products)[self._tile]
        self._codes: dict[str, int] = {}

    def block(self) -> Block:
        """The whole."""
        n = self._length
        opcode, queue, op, dtype = (np.empty(n, t) for t in (np.int8, np.int8, np.int64, np.int8))
        operands = np.zeros((n, 4), np.int64)
        for at, what, values in self._parts():
            opcode[at], queue[at], op[at], named = what
            dtype[at] = self._codes.setdefault(named or self._shape.dtypes[what[2]], len(self._codes))
            operands[at] = values
        queues, first = np.unique(queue, return_index=True)
        found = dict(zip(queues.tolist(), first.tolist(), strict=True))
        rows = Rows(opcode.tobytes(), queue.tobytes(), op, dtype, operands.tobytes(), self._edges(), found)
        starts = np.where(self._engines > 0, self._starts, -1).tolist()
        tiles = list(zip([0, *self._end[:-1].tolist()], (self._end - 1).tolist(), strict=True))
        moves = self._loads.tolist(), self._stores.tolist()
        return Block(rows, tuple(self._codes), *moves, starts, self._last.tolist(), tiles, self._in_psum())

    def _in_psum(self) -> list[tuple[int, int, int]]:
        """What each tile's products take of PSUM, see Block; of half of it at most: a larger result drains while it is computed."""
        if not self._gemms:
            return []
        results = np.concatenate([gemms for _, gemms in self._gemms])[:, [0, 1, 3]].prod(axis=1)
        sums = _ACCUMULATOR_BYTES * np.bincount(self._tile, results, minlength=self._shape.count)
        room = np.minimum(sums, self._shape.psum // 2).astype(np.int64)
        held = np.flatnonzero(self._products > 0)
        return list(zip(*(column[held].tolist() for column in (self._starts, self._last, room)), strict=True))

    def _parts(self) -> Iterator[tuple[np.ndarray, tuple[Opcode, Queue, int, str], np.ndarray]]:
        """Rows, what is the same in all of them (opcode, queue, operator, dtype; '': the operator's), and their operands."""
        shape, before = self._shape, 0
        for motion, at in zip(shape.loads, self._loads, strict=True):
            yield at, (*motion[:2], 0, ""), self._moved(motion)
        for op, gemms in self._gemms:
            yield self._rows[before : before + len(gemms)], (Opcode.MATMUL, Queue.TENSOR, op, ""), gemms
            before += len(gemms)
        for number, (opcode, queue, op, elements, dtype) in enumerate(shape.passes):
            at = self._starts + self._products + number
            yield at, (opcode, queue, op, dtype), _four(tile.shares(elements, shape.count), 1)
        for motion, at in zip(shape.stores, self._stores, strict=True):
            yield at, (*motion[:2], len(shape.dtypes) - 1, ""), self._moved(motion)

    def _moved(self, motion: Motion) -> np.ndarray:
        opcode, _, whole, run, reread, reload = motion
        nbytes, *again = (tile.shares(part, self._shape.count) for part in (whole, reread, reload))
        return _four(nbytes, pieces(opcode, run, nbytes, self._shape.partitions), *again)

    def _edges(self) -> np.ndarray:
        """Loads before the first engine, engine after engine, the last one before the stores."""
        works = self._engines > 0
        chained = np.ones(self._length, bool)
        for rows in (*self._loads, *self._stores, self._starts[works]):
            chained[rows] = False
        rows = np.flatnonzero(chained)
        found = [_edge(rows, rows - 1)]
        found += [_edge(self._starts[works], load[works]) for load in self._loads]
        found += [_edge(store, self._last) for store in self._stores]
        edges = np.concatenate(found)
        return edges[edges[:, 1] >= 0]


def pieces(opcode: Opcode, run: int, nbytes: np.ndarray, partitions: int) -> np.ndarray:
    """Contiguous bytes of a DMA of so many: a run in HBM, cut over the partitions of SBUF."""
    return np.maximum(1, run if opcode is Opcode.DMA_GATHER else np.minimum(run, nbytes // partitions))


def _four(first: np.ndarray, *others: np.ndarray | int) -> np.ndarray:
    """Operands of which there are fewer than four."""
    operands = np.zeros((len(first), 4), np.int64)
    for at, values in enumerate((first, *others)):
        operands[:, at] = values
    return operands


def _edge(rows: np.ndarray, needed: np.ndarray) -> np.ndarray:
    return np.stack([rows, needed, np.zeros(len(rows), np.int64)], axis=1)


@lru_cache(maxsize=4096)
def _operands(gemms: tuple[Gemm, ...]) -> np.ndarray:
    return np.array([(g.batch, g.m, g.k, g.n) for g in gemms], np.int64).reshape(-1, 4)


@lru_cache(maxsize=4096)
def _tile_of(parts: int, count: int) -> np.ndarray:
    """In which of `count` tiles each part of a product is."""
    return np.repeat(np.arange(count), tile.shares(parts, count))
