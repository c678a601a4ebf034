"""Lowering to tiles: each group becomes loads, instructions on the engines and stores, tile by tile, on the queues of a NeuronCore."""

from collections import defaultdict, deque
from functools import lru_cache

from neuronprof.compile import tile
from neuronprof.compile.fuse import Group
from neuronprof.compile.lowering import Lowering
from neuronprof.compile.plan import RESIDENT_SHARE, GroupPlan, Move
from neuronprof.compile.tilerows import Ring, Shape, Tiling, block
from neuronprof.graph.ir import DTYPE_BYTES, Graph
from neuronprof.graph.ops import Gemm, OpKind, Work
from neuronprof.hardware.spec import Chip
from neuronprof.program import Opcode, Queue
from neuronprof.terms import Held, Role

_EXACT = "float32"  # what engines compute in, whatever they read and write
_SINGLE = (OpKind.ELEMENTWISE, OpKind.COPY, OpKind.FILL)
_FROM_WEIGHTS_RING = (Role.WEIGHTS, Role.GRADIENTS, Role.OPTIMIZER_STATE)


def _ring(group: Group, opcode: Opcode, queue: Queue, moves: list[Move]) -> Ring:
    runs = [(m.nbytes, max(1, min(m.nbytes, group.pieces.get(m.buffer, m.nbytes)))) for m in moves]
    nbytes = sum(size for size, _ in runs)
    run = nbytes // sum(-(-size // run) for size, run in runs)
    return Ring(opcode, queue, [m.buffer for m in moves], nbytes, run, reload=sum(m.reload for m in moves))


@lru_cache(maxsize=4096)
def _held(total: int, count: int, most: int) -> list[int]:
    """The bytes of so many tiles of a whole, none of them more than `most`."""
    return [min(nbytes, most) for nbytes in tile.shares(total, count).tolist()]


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
        self._sums: deque[tuple[int, int]] = (
            deque()
        )  # (bytes, last instruction) of tiles whose products are in PSUM, oldest first
        self._summed = 0
        self._kept = 0  # bytes resident in SBUF
        self._in_psum: set[int] = set()  # buffers of the group at hand whose results no instruction has taken out yet

    def _compute(self, group: Group, entry: GroupPlan) -> None:
        tiling, first = self._tiling(group, entry), len(self.builder)
        loaded, last = self._write(tiling)
        if entry.kept != self._kept and len(self.builder) > first:
            self._kept = entry.kept
            self.builder.hold(Held.RESIDENT, first, first, entry.kept)
        for move in entry.loads:
            self._read[move.buffer] += loaded
        for ring in tiling.stores:
            self._stored |= {buffer: [ring.last] for buffer in ring.buffers}
        for buffer in group.writes:
            self._made[buffer] = last

    def _tiling(self, group: Group, entry: GroupPlan) -> Tiling:
        gemms = [(op, g) for op in group.ops for g in self._oriented(op)]
        again = self._read_again(group, entry, gemms)
        total = sum(group.reads.values()) + sum(group.writes.values()) + again
        count = tile.pieces(total, self.working)
        # A piece narrower than all PE arrays together would leave some of them idle.
        cut = (count, int(self.tensor.columns), int(self.tensor.moving_max * self.tensor.arrays) * self.lnc)
        count = max((len(tile.split_gemm(g, *cut)) for _, g in gemms), default=count)
        self._in_psum = {b for op in group.ops if self._is_bare(op) for b in self.graph.outputs(op)}
        passes = self._passes(group)
        if group.kind is OpKind.GEMM and not passes:
            # Nobody reads the result out of PSUM on the way: a copy to SBUF has to.
            passes = [(Opcode.TENSOR_SCALAR, Queue.VECTOR, group.ops[0], group.elements, _EXACT)]
        loads, stores = self._load_rings(group, entry, again), self._store_rings(group, entry)
        number = {op: i for i, op in enumerate(group.ops)}
        shape = Shape(
            count=count,
            products=tuple((number[op], g) for op, g in gemms),
            cut=cut,
            passes=tuple((opcode, queue, number[op], n, dtype) for opcode, queue, op, n, dtype in passes),
            loads=tuple(ring.motion for ring in loads),
            stores=tuple(ring.motion for ring in stores),
            dtypes=tuple(map(self._dtype, group.ops)),
            partitions=self.partitions,
            psum=self.psum,
        )
        return Tiling(group.ops, shape, total, {self._made.get(b, -1) for b in entry.resident}, loads, stores)

    def _worked_in(self, op: int) -> str:
        """FP32 in which products stand in PSUM and what passes between the instructions of one operator; else the widest of its operands.

        So only operators of one instruction, out of SBUF, take the vector engine's modes for 16 bits.
        """
        signature, cost = self.graph.signatures[self.graph.signature[op]], self.works[self.graph.signature[op]]
        single = cost.kind in _SINGLE and not cost.scalar and cost.vector <= (1 + cost.two_inputs) * cost.elements
        if not single or not self._in_psum.isdisjoint(self.graph.inputs(op)):
            return _EXACT
        return max((t.dtype for t in (*signature.inputs, *signature.outputs)), key=lambda d: DTYPE_BYTES.get(d, 4))

    def _write(self, tiling: Tiling) -> tuple[list[int], int]:
        """Appends a group's tiles, one after another; returns the loads and the last engine's instruction of the last tile."""
        rows = block(tiling.shape)
        first = self.builder.add_rows(rows.rows, tiling.ops, rows.dtypes)
        last = [first + row if row >= 0 else -1 for row in rows.last]
        if last[0] < 0:
            last[0] = max(tiling.resident, default=-1)
            for store in rows.stores:
                self.builder.need(first + store[0], last[:1])
        held = self._held(tiling)
        for i, nbytes in enumerate(held):
            space = self._make_room(nbytes)
            if space:
                # Of a tile that loads nothing, the result needs the room.
                begins = [load[i] for load in rows.loads] or [rows.starts[i]]
                self.builder.make_wait([first + row for row in begins if row >= 0], space)
            # A result holds its room until it has been stored.
            self._tiles.append((nbytes, [first + store[i] for store in rows.stores] or [last[i]]))
            self.builder.hold(Held.TILES, first + rows.tiles[i][0], first + rows.tiles[i][1], nbytes)
        self._make_room_for_sums(first, rows.products)
        # Queues run in order: what the first tile waits for, the others have behind them.
        for ring, at in (*zip(tiling.loads, rows.loads, strict=True), *zip(tiling.stores, rows.stores, strict=True)):
            self.builder.need(first + at[0], ring.after)
            ring.last = first + at[-1]
        if rows.starts[0] >= 0:
            self.builder.need(first + rows.starts[0], tiling.resident)
        return [first + load[-1] for load in rows.loads], last[-1]

    def _is_bare(self, op: int) -> bool:
        """Whether an operator is a product alone, whose result the next one takes out of PSUM."""
        cost = self.works[self.graph.signature[op]]
        return cost.kind is OpKind.GEMM and not cost.vector + cost.scalar + cost.gpsimd

    def _held(self, tiling: Tiling) -> list[int]:
        """Bytes of SBUF that each tile takes."""
        return _held(tiling.total, tiling.shape.count, int(self.working / tile.IN_FLIGHT))

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

    def _load_rings(self, group: Group, entry: GroupPlan, again: int) -> list[Ring]:
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
                plain = Ring(Opcode.DMA_LOAD, rings[0].queue, [], 0, rings[0].run)
                rings.append(plain)
            plain.nbytes += again
            plain.reread = again
        return rings

    def _store_rings(self, group: Group, entry: GroupPlan) -> list[Ring]:
        """The group's stores; the first tile's wait for those who still read what they overwrite."""
        rings = []
        for spill, opcode in ((False, Opcode.DMA_STORE), (True, Opcode.SPILL_SAVE)):
            moves = [m for m in entry.stores if m.spill == spill]
            if moves:
                ring = _ring(group, opcode, Queue.DMA_STORES, moves)
                ring.after = [i for m in moves for i in self._read.pop(m.buffer, ())]
                rings.append(ring)
        return rings

    def _make_room(self, nbytes: int) -> list[int]:
        """The tiles that have to be done before this many bytes fit beside the others in flight."""
        waits: list[int] = []
        while self._tiles and self._in_flight + nbytes > self.working:
            held, last = self._tiles.popleft()
            self._in_flight -= held
            waits += last
        self._in_flight += nbytes
        return waits

    def _make_room_for_sums(self, first: int, products: list[tuple[int, int, int]]) -> None:
        """Lets products wait until what was in PSUM before leaves room: they run ahead of what empties it by as many tiles as it holds.

        first: the group's first instruction, from which they count.
        """
        for product, last, nbytes in products:
            waits = self._room_in_psum(nbytes)
            if waits:
                self.builder.make_wait([first + product], waits)
            self._hold_in_psum(first + product, first + last, nbytes)

    def _room_in_psum(self, nbytes: int) -> list[int]:
        """The instructions that have to be over before this many bytes fit beside what is in PSUM."""
        waits: list[int] = []
        while self._sums and self._summed + nbytes > self.psum:
            held, emptied = self._sums.popleft()
            self._summed -= held
            waits.append(emptied)
        self._summed += nbytes
        return waits

    def _hold_in_psum(self, first: int, last: int, nbytes: int) -> None:
        """Notes that products take this much, from the first MATMUL to the instruction that takes their results out."""
        self._sums.append((nbytes, last))
        self.builder.hold(Held.PARTIAL_SUMS, first, last, nbytes)
