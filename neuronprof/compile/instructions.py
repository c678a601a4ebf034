"""Lowering to single instructions: the tiles of chosen operators as LDWEIGHTS, MATMUL and one instruction an operator and tile.

What a tile takes is what the NKI guide says of the machine: the PE array holds `rows` x `columns` weights and streams up to moving_max
columns past them, the next weights are loaded meanwhile; a result of `columns` x moving_max stands in one bank of PSUM until an engine has
taken it out. All PE arrays of a logical core run an instruction side by side, each on a tile of its own.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import TypeVar

import numpy as np

from neuronprof.compile.fuse import Group
from neuronprof.compile.lowering import Pass
from neuronprof.compile.plan import GroupPlan
from neuronprof.compile.tiled import Tiled
from neuronprof.compile.tilerows import Ring, Tiling, pieces
from neuronprof.errors import NeuronprofError
from neuronprof.graph.ir import Graph
from neuronprof.graph.ops import Gemm, OpKind, Work
from neuronprof.hardware.spec import Chip
from neuronprof.program import Opcode, Queue
from neuronprof.terms import Held

_Part = TypeVar("_Part")

MOST = 3_000_000  # instructions of a program; each is an event
_SCORES = {2: 1, 5: 2}  # of attention's two products forward and five backward, those before the softmax
_WEIGHTS_HELD = 2  # stationary tiles in the PE array: the one at work and the next


@dataclass(frozen=True, slots=True)
class _Share:
    """The number-th of count tiles, and its part of a whole; the parts add up to the whole."""

    number: int
    count: int

    def of(self, whole: int) -> int:
        """Its part of a number."""
        return whole * (self.number + 1) // self.count - whole * self.number // self.count

    def among(self, parts: Sequence[_Part]) -> list[_Part]:
        """Its parts of a list."""
        return list(parts[len(parts) * self.number // self.count : len(parts) * (self.number + 1) // self.count])


_Stage = Callable[[int, set[int]], int]  # of a tile, and what it needs: its last instruction


def check(count: int) -> None:
    """Refuses more single instructions than anyone would look at.

    Raises:
        NeuronprofError: there are that many.
    """
    if count > MOST:
        raise NeuronprofError(
            f"Single instructions of these operators are more than {MOST:,}; "
            "name fewer with --detail instruction:PATTERN, as 'instruction:layers.0.*'."
        )


@dataclass(frozen=True, slots=True)
class _Wave:
    """Tiles of a result that PE arrays compute side by side: that many arrays, each M x N in `steps` of K; flops: of all together.

    Tiles at the edges are not full, so that flops may be fewer than the tiles hold.
    """

    op: int
    flops: int
    arrays: int
    m: int
    k: int
    n: int
    steps: int

    @property
    def all_steps(self) -> list[tuple["_Wave", int]]:
        """Its steps one by one."""
        return [(self, step) for step in range(self.steps)]


class Instructions(Tiled):
    """Lowering of a graph of which some operators are wanted in detail. detailed: those operators."""

    def __init__(self, graph: Graph, works: list[Work], chip: Chip, lnc: int, detailed: frozenset[int]) -> None:
        super().__init__(graph, works, chip, lnc)
        self._detailed = detailed
        self._chip = chip
        self._in_detail, self._kind = False, OpKind.UNKNOWN
        self._loaded: deque[int] = deque(maxlen=_WEIGHTS_HELD)  # the last MATMULs
        self._bank = int(chip.memory.psum // chip.memory.psum_banks)  # bytes
        self._filled: deque[tuple[int, int]] = deque()  # (first MATMUL, bytes) of results still in PSUM

    def _compute(self, group: Group, entry: GroupPlan) -> None:
        self._in_detail, self._kind = not self._detailed.isdisjoint(group.ops), group.kind
        super()._compute(group, entry)
        if self._in_detail:
            check(len(self.builder))

    def _passes(self, group: Group) -> list[Pass]:
        """In detail each operator has its own, in the order of the operators."""
        if not self._in_detail:
            return super()._passes(group)
        return [one for op in self._working(group) for one in self._passes_of([op])]

    def _write(self, tiling: Tiling) -> tuple[list[int], int]:
        """In detail, tile by tile."""
        if not self._in_detail:
            return super()._write(tiling)
        loaded: list[int] = []
        last, shape = -1, tiling.shape
        passes = [(opcode, queue, tiling.ops[op], n, dtype) for opcode, queue, op, n, dtype in shape.passes]
        cut = [(tiling.ops[op], parts) for op, parts in shape.parts()]
        for i, held in enumerate(self._held(tiling)):
            share, first = _Share(i, shape.count), len(self.builder)
            space = self._make_room(held)
            # Queues run in order: what the first tile waits for, the others have behind them.
            loaded = [self._move(r, tiling.ops[0], share, () if i else r.after, space) for r in tiling.loads]
            begin = len(self.builder)
            products = [(op, part) for op, parts in cut for part in share.among(parts)]
            last = self._engines(products, passes, share, {*loaded, *(() if i else tiling.resident)})
            if space and not tiling.loads and begin < len(self.builder):
                self.builder.make_wait([begin], space)
            for ring in tiling.stores:
                ring.last = self._move(ring, tiling.ops[-1], share, [last, *(() if i else ring.after)], ())
            # A result holds its room until it has been stored.
            self._tiles.append((held, [ring.last for ring in tiling.stores] or [last]))
            self.builder.hold(Held.TILES, first, len(self.builder) - 1, held)
        return loaded, last

    def _move(self, ring: Ring, op: int, share: _Share, data: Iterable[int], space: Iterable[int]) -> int:
        """One tile's DMA on a ring."""
        nbytes = share.of(ring.nbytes)
        operands = (
            nbytes,
            int(pieces(ring.opcode, ring.run, np.array(nbytes), self.partitions)),
            share.of(ring.reread),
            share.of(ring.reload),
        )
        return self.builder.add(ring.opcode, ring.queue, op, operands, dtype=self._dtype(op), data=data, space=space)

    def _engines(self, gemms: list[tuple[int, Gemm]], passes: list[Pass], share: _Share, ready: set[int]) -> int:
        """The tile's instructions on the engines; returns the last."""
        scores = self._scores(gemms)
        waves, after = (
            [w for op, gemm in part for w in self._waves(op, gemm)] for part in (gemms[:scores], gemms[scores:])
        )
        count = len(waves) or max((self._tiles_of(op, queue, share) for _, queue, op, *_ in passes), default=1)
        stages: list[_Stage] = []
        if waves:
            multiply = self._products if passes else self._last_products
            stages.append(lambda at, data: multiply(waves[at].all_steps, data))
        stages += [
            partial(self._pass, one, share, count, bool(waves) and number == 0) for number, one in enumerate(passes)
        ]
        if after:
            steps = [step for wave in after for step in wave.all_steps]
            stages.append(lambda at, data: self._last_products(_Share(at, count).among(steps), data))
        return _flow(stages, count, ready)

    def _scores(self, gemms: list[tuple[int, Gemm]]) -> int:
        """How many of the products come before the other engines' work: of attention those that make scores, else all."""
        if self._kind is not OpKind.ATTENTION or not gemms:
            return len(gemms)
        whole = len(self.works[self.graph.signature[gemms[0][0]]].gemms)
        return len(gemms) * _SCORES.get(whole, whole) // whole

    def _tiles_of(self, op: int, queue: Queue, share: _Share) -> int:
        """Instructions of an engine that it takes to cover an operator's elements."""
        engine = getattr(self._chip, queue.name.lower())
        elements = share.of(self.works[self.graph.signature[op]].elements)
        return max(1, ceil(elements / (engine.lanes * self.lnc * engine.tile)))

    def _pass(self, one: Pass, share: _Share, count: int, drains: bool, at: int, data: set[int]) -> int:
        """One operator's instruction on one of the `count` tiles of a piece. drains: it takes the tile's products out of PSUM."""
        opcode, queue, op, elements, dtype = one
        part = _Share(at, count).of(share.of(elements))
        index = self.builder.add(
            opcode, queue, op, (part, 1, int(at > 0), 0), dtype=dtype or self._dtype(op), data=data
        )
        if drains:
            first, nbytes = self._filled.popleft()
            self._hold_in_psum(first, index, nbytes)
        return index

    def _waves(self, op: int, gemm: Gemm) -> list[_Wave]:
        """The tiles of a product, as many at once as there are PE arrays; where results are too few, arrays share K."""
        engine = self.tensor
        arrays, rows = int(engine.arrays) * self.lnc, int(engine.rows)
        depth = rows * int(engine.fp8_speedup) if self._itemsize(op) == 1 else rows
        deep, m, k = ceil(gemm.k / depth), min(gemm.m, int(engine.columns)), min(gemm.k, depth)
        found: list[tuple[int, int, int]] = []  # arrays, N, steps
        for n, moves in _moves(gemm.n, int(engine.moving_max)):
            results = gemm.batch * ceil(gemm.m / engine.columns) * moves
            for first in range(0, results, arrays):
                side = min(arrays, results - first)
                sharing = min(arrays // side, deep)
                found.append((side * sharing, n, ceil(deep / sharing)))
        flops = 2 * gemm.batch * gemm.m * gemm.k * gemm.n
        return [
            _Wave(op, _Share(i, len(found)).of(flops), side, m, k, n, steps) for i, (side, n, steps) in enumerate(found)
        ]

    def _products(self, steps: list[tuple[_Wave, int]], data: set[int]) -> int:
        """LDWEIGHTS and MATMUL for each step of K; returns the last MATMUL, after which the results stand in PSUM."""
        product = max(data, default=-1)
        if not steps:
            return product
        banks = self._bank * max(wave.arrays for wave, _ in steps)
        room = self._room_in_psum(banks)
        self._filled.append((len(self.builder) + 1, banks))
        for wave, step in steps:
            dtype = self._dtype(wave.op)
            held = [self._loaded[0]] if len(self._loaded) == _WEIGHTS_HELD else []
            operands = (wave.arrays, wave.m, wave.k, 0)
            weights = self.builder.add(
                Opcode.LDWEIGHTS, Queue.WEIGHTS, wave.op, operands, dtype=dtype, data=data, space=held
            )
            operands = (wave.arrays, wave.m, wave.k, wave.n)
            product = self.builder.add(
                Opcode.MATMUL_TILE, Queue.TENSOR, wave.op, operands, dtype=dtype, data=[weights], space=room
            )
            self.builder.flops[product] = _Share(step, wave.steps).of(wave.flops)
            self._loaded.append(product)
            room, data = [], set()
        return product

    def _last_products(self, steps: list[tuple[_Wave, int]], data: set[int]) -> int:
        """The same where no engine's instruction follows that takes the results out of PSUM: they leave it as they are computed."""
        product = self._products(steps, data)
        if steps:
            first, nbytes = self._filled.pop()
            self._hold_in_psum(first, product, nbytes)
        return product


def _flow(stages: list[_Stage], count: int, ready: set[int]) -> int:
    """Tile after tile goes through the stages, each stage one tile behind the one before it; returns the last instruction.

    So an engine never stands in its queue before a tile that others have not finished, while an earlier one is there for it.
    """
    last = [max(ready, default=-1)] * count
    for turn in range(count + len(stages) - 1):
        for number in reversed(range(len(stages))):
            at = turn - number
            if 0 <= at < count:
                data = {last[at]} if number else set() if at else ready
                last[at] = stages[number](at, data)
    return last[-1]


def _moves(n: int, longest: int) -> list[tuple[int, int]]:
    """Columns that move past the weights, in how many moves: 1200 by 512 is [(512, 2), (176, 1)]."""
    whole, rest = divmod(n, longest)
    return [(length, moves) for length, moves in ((longest, whole), (rest, 1)) if length * moves]
