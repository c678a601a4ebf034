"""Lowering to tiles: each group becomes loads, instructions on the engines and stores, tile by tile, on the queues of a NeuronCore."""

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from neuronprof.compile import tile
from neuronprof.compile.fuse import Group
from neuronprof.compile.lowering import Lowering, Pass
from neuronprof.compile.plan import RESIDENT_SHARE, GroupPlan, Move
from neuronprof.graph.ir import Graph
from neuronprof.graph.ops import Gemm, OpKind, Work
from neuronprof.hardware.spec import Chip
from neuronprof.program import Opcode, Queue
from neuronprof.terms import Role

_ACCUMULATOR_BYTES = 4  # PSUM sums up in FP32
_FROM_WEIGHTS_RING = (Role.WEIGHTS, Role.GRADIENTS, Role.OPTIMIZER_STATE)

_Part = TypeVar("_Part")


@dataclass(frozen=True, slots=True)
class Share:
    """The number-th of count tiles, and its part of a whole; the parts add up to the whole."""

    number: int
    count: int

    def of(self, whole: int) -> int:
        """Its part of a number."""
        return whole * (self.number + 1) // self.count - whole * self.number // self.count

    def among(self, parts: list[_Part]) -> list[_Part]:
        """Its parts of a list."""
        return parts[len(parts) * self.number // self.count : len(parts) * (self.number + 1) // self.count]


@dataclass(slots=True)
class _Ring:
    """What a group moves on one DMA ring: bytes in all, contiguous bytes of a run on average, and what its DMA has to wait for."""

    opcode: Opcode
    queue: Queue
    buffers: list[int]
    nbytes: int
    run: int
    after: list[int] = field(default_factory=list)
    last: int = -1


def _ring(group: Group, opcode: Opcode, queue: Queue, moves: list[Move]) -> _Ring:
    runs = [(m.nbytes, max(1, min(m.nbytes, group.pieces.get(m.buffer, m.nbytes)))) for m in moves]
    nbytes = sum(size for size, _ in runs)
    return _Ring(opcode, queue, [m.buffer for m in moves], nbytes, nbytes // sum(-(-size // run) for size, run in runs))


class Tiled(Lowering):
    """Lowering for PE arrays, with what still occupies SBUF."""

    def __init__(self, graph: Graph, works: list[Work], chip: Chip, lnc: int) -> None:
        super().__init__(graph, works)
        self.tensor = chip.tensor
        self.lnc = lnc
        self.psum = chip.memory.psum * lnc
        self.working = chip.memory.sbuf * lnc * (1 - RESIDENT_SHARE)
        self.partitions = int(chip.memory.partitions)
        self._read: dict[int, list[int]] = defaultdict(list)  # buffer: loads since it was last stored
        self._tiles: deque[tuple[int, list[int]]] = (
            deque()
        )  # (bytes, last instructions) of the tiles in flight, oldest first
        self._in_flight = 0

    def _compute(self, group: Group, entry: GroupPlan) -> None:
        gemms = [(op, g) for op in group.ops for g in self._oriented(op)]
        again = self._read_again(group, entry, gemms)
        total = sum(group.reads.values()) + sum(group.writes.values()) + again
        count = tile.pieces(total, self.working)
        # A piece narrower than all PE arrays together would leave some of them idle.
        stationary, moving = int(self.tensor.columns), int(self.tensor.moving_max * self.tensor.arrays) * self.lnc
        cut = [(op, tile.split_gemm(g, count, stationary, moving)) for op, g in gemms]
        count = max((len(parts) for _, parts in cut), default=count)
        passes = self._passes(group)
        if group.kind is OpKind.GEMM and not passes:
            # Nobody reads the result out of PSUM on the way: a copy to SBUF has to.
            passes = [(Opcode.TENSOR_SCALAR, Queue.VECTOR, group.ops[0], group.elements)]
        resident = {self._made.get(b, -1) for b in entry.resident}
        loads, stores = self._load_rings(group, entry, again), self._store_rings(group, entry)
        tiles: list[int] = []
        loaded: list[int] = []
        for i in range(count):
            share = Share(i, count)
            held = min(share.of(total), int(self.working / tile.IN_FLIGHT))
            space = self._make_room(held)
            # Queues run in order: what the first tile waits for, the others have behind them.
            loaded = [self._move(ring, group.ops[0], share, ring.after if i == 0 else (), space) for ring in loads]
            products = [(op, part) for op, parts in cut for part in share.among(parts)]
            tiles.append(self._engines(products, passes, share, {*loaded, *(resident if i == 0 else ())}, tiles))
            for ring in stores:
                after = [tiles[-1], *(ring.after if i == 0 else ())]
                ring.last = self._move(ring, group.ops[-1], share, after, [])
            # A result holds its room until it has been stored.
            self._tiles.append((held, [ring.last for ring in stores] or [tiles[-1]]))
        for move in entry.loads:
            self._read[move.buffer] += loaded
        for ring in stores:
            self._stored |= {buffer: [ring.last] for buffer in ring.buffers}
        for buffer in group.writes:
            self._made[buffer] = tiles[-1]

    def _oriented(self, op: int) -> list[Gemm]:
        t = self.tensor
        gemms = self.works[self.graph.signature[op]].gemms
        return [tile.orient(g, int(t.columns), int(t.moving_max), int(t.interval_min)) for g in gemms]

    def _read_again(self, group: Group, entry: GroupPlan, gemms: list[tuple[int, Gemm]]) -> int:
        if not entry.loads or not gemms or group.kind is not OpKind.GEMM:
            return 0
        return sum(self._streamed_again(op, g, entry) for op, g in gemms)

    def _streamed_again(self, op: int, gemm: Gemm, entry: GroupPlan) -> int:
        """Bytes that one product reads again; none if an operand stays in SBUF anyway and the other streams past it once."""
        reads = self.works[self.graph.signature[op]].reads
        # An implicit matmul of a convolution has each element of its input in many places, but reads it from one.
        largest, size = max(reads, default=0) // gemm.batch, self._itemsize(op)
        left, right = min(gemm.m * gemm.k * size, largest), min(gemm.k * gemm.n * size, largest)
        stay = [n for b, n in zip(self.graph.inputs(op), reads, strict=False) if b in entry.resident]
        if max(stay, default=0) >= gemm.batch * min(left, right):
            return 0
        return gemm.batch * tile.read_again(left, right, 4 * gemm.m * gemm.n, self.working)

    def _load_rings(self, group: Group, entry: GroupPlan, again: int) -> list["_Ring"]:
        """The group's loads by ring; each waits until HBM has what it loads. again: bytes that are read once more: no spill."""
        moves: dict[tuple[Queue, Opcode], list[Move]] = defaultdict(list)
        gather = group.kind is OpKind.GATHER
        for move in entry.loads:
            weights = self.graph.buffers[move.buffer].role in _FROM_WEIGHTS_RING
            opcode = Opcode.SPILL_RELOAD if move.spill else Opcode.DMA_GATHER if gather else Opcode.DMA_LOAD
            moves[Queue.DMA_WEIGHTS if weights else Queue.DMA_ACTIVATIONS, opcode].append(move)
        rings = [_ring(group, opcode, queue, listed) for (queue, opcode), listed in moves.items()]
        for ring in rings:
            ring.after = [i for b in ring.buffers for i in self._stored.get(b, ())]
        if again:
            plain = next((r for r in rings if r.opcode is Opcode.DMA_LOAD), None)
            if plain is None:
                plain = _Ring(Opcode.DMA_LOAD, rings[0].queue, [], 0, rings[0].run)
                rings.append(plain)
            plain.nbytes += again
        return rings

    def _store_rings(self, group: Group, entry: GroupPlan) -> list["_Ring"]:
        """The group's stores; the first tile's wait for those who still read what they overwrite."""
        rings = []
        for spill, opcode in ((False, Opcode.DMA_STORE), (True, Opcode.SPILL_SAVE)):
            moves = [m for m in entry.stores if m.spill == spill]
            if moves:
                ring = _ring(group, opcode, Queue.DMA_STORES, moves)
                ring.after = [i for m in moves for i in self._read.pop(m.buffer, ())]
                rings.append(ring)
        return rings

    def _move(self, ring: "_Ring", op: int, share: Share, data: Iterable[int], space: Iterable[int]) -> int:
        """One tile's DMA on a ring. A piece is a run in HBM, cut over the 128 partitions of SBUF."""
        nbytes = share.of(ring.nbytes)
        piece = ring.run if ring.opcode is Opcode.DMA_GATHER else min(ring.run, nbytes // self.partitions)
        operands = (nbytes, max(1, piece), 0, 0)
        return self.builder.add(ring.opcode, ring.queue, op, operands, dtype=self._dtype(op), data=data, space=space)

    def _make_room(self, nbytes: int) -> list[int]:
        """The tiles that have to be done before this many bytes fit beside the others in flight."""
        waits: list[int] = []
        while self._tiles and self._in_flight + nbytes > self.working:
            held, last = self._tiles.popleft()
            self._in_flight -= held
            waits += last
        self._in_flight += nbytes
        return waits

    def _engines(
        self,
        gemms: list[tuple[int, Gemm]],
        passes: list[Pass],
        share: Share,
        ready: set[int],
        tiles: list[int],
    ) -> int:
        """The tile's instructions, engine after engine; returns the last.

        A matmul runs ahead of what empties PSUM by as many tiles as PSUM holds, or by one: a larger result drains while it is computed.
        """
        last = max(ready, default=-1)
        sums = _ACCUMULATOR_BYTES * sum(g.batch * g.m * g.n for _, g in gemms)
        ahead = max(2, int(self.psum // max(sums, 1)))
        psum = [tiles[-ahead]] if len(tiles) >= ahead else []
        for op, g in gemms:
            operands = (g.batch, g.m, g.k, g.n)
            last = self.builder.add(
                Opcode.MATMUL, Queue.TENSOR, op, operands, dtype=self._dtype(op), data=ready, space=psum
            )
            ready = {last}
        for opcode, queue, op, elements in passes:
            operands = (share.of(elements), 1, 0, 0)
            last = self.builder.add(opcode, queue, op, operands, dtype=self._dtype(op), data=ready)
            ready = {last}
        return last
