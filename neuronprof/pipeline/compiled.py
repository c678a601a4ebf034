"""Compiles what distribute laid out: each distinct chunk once, however many stages and micro-batches run it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from neuronprof.compile.join import join
from neuronprof.compile.lower import Lowered, lower
from neuronprof.graph.ops import work

if TYPE_CHECKING:
    from neuronprof.distribute.plan import StagePlan
    from neuronprof.graph.ir import Buffer, CollectiveCall, Graph, Signature
    from neuronprof.hardware.spec import Chip
    from neuronprof.pipeline.detail import Detail
    from neuronprof.program import Program
    from neuronprof.simulate.events import Operators


@dataclass(frozen=True)
class Compiled:
    """One segment on every pipeline stage.

    chunks: graphs of each stage; parts: the program of each; orders: the (chunk, micro-batch) that each stage runs; programs: one a
    stage; first_op: of each stage, its first row in the operators table.
    """

    chunks: tuple[tuple["Graph", ...], ...]
    parts: tuple[tuple["Program", ...], ...]
    orders: tuple[tuple[tuple[int, int], ...], ...]
    programs: tuple["Program", ...]
    first_op: tuple[int, ...]


class Compiler:
    """Compiles chunks for one logical NeuronCore of a chip. detail: operators of which single instructions are wanted."""

    def __init__(self, chip: "Chip", lnc: int, detail: "Detail | None" = None) -> None:
        self._detail = detail
        self._chip = chip
        self._lnc = lnc
        self._signatures: dict[Signature, int] = {}
        self._lowered: dict[bytes, Lowered] = {}
        self._chunks: dict[tuple[bytes, bytes], Program] = {}
        self._same: dict[int, tuple[Graph, Program]] = {}  # by the graph's id
        self._joined: dict[tuple[tuple[int, ...], tuple[tuple[int, int], ...]], Program] = {}

    def compile(self, stages: "Sequence[StagePlan]", operators: "Operators | None" = None) -> Compiled:
        """Programs of all stages; operators: gets a row for each operator of each stage."""
        programs, first = [], []
        for stage in stages:
            programs.append(self._stage(stage))
            first.append(_described(stage, operators) if operators is not None else 0)
        return Compiled(
            chunks=tuple(s.chunks for s in stages),
            parts=tuple(tuple(map(self._chunk, s.chunks)) for s in stages),
            orders=tuple(s.order for s in stages),
            programs=tuple(programs),
            first_op=tuple(first),
        )

    def _stage(self, stage: "StagePlan") -> "Program":
        chunks = [self._chunk(graph) for graph in stage.chunks]
        if len(chunks) == 1 and len(stage.order) == 1:
            return _rebound(chunks[0], stage.chunks)
        key = (tuple(map(id, chunks)), stage.order)
        if key not in self._joined:
            self._joined[key] = join(chunks, stage.order)
        return _rebound(self._joined[key], stage.chunks)

    def forget_stages(self) -> None:
        """Gives up the programs of whole stages, which are large; those of their chunks stay."""
        self._joined.clear()

    def _chunk(self, graph: "Graph") -> "Program":
        if id(graph) not in self._same:
            self._same[id(graph)] = (graph, self._compiled(graph))
        return self._same[id(graph)][1]

    def _compiled(self, graph: "Graph") -> "Program":
        touched, rest = self._content(graph)
        detailed = self._detail.operators(graph) if self._detail else frozenset[int]()
        if detailed:  # layers that are alike but for their names need not be alike in this
            touched += repr(sorted(detailed)).encode()
        if touched not in self._lowered:
            self._lowered[touched] = lower(graph, self._chip, self._lnc, detailed)
        if (touched, rest) not in self._chunks:
            self._chunks[touched, rest] = self._lowered[touched].program_of(graph)
        return self._chunks[touched, rest]

    def _content(self, graph: "Graph") -> tuple[bytes, bytes]:
        """Digests of all that a chunk's program depends on: of its operators and what they touch, and of what only takes room in HBM.

        Neither depends on names, nor on which stage is at the other end of a message.
        """
        number = self._signatures
        codes = np.array([number.setdefault(s, len(number)) for s in graph.signatures] or [0], np.int64)
        _, first, inverse = np.unique(graph.operands, return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        digest = hashlib.sha256(codes[graph.signature].tobytes())
        digest.update(graph.phase.tobytes() + rank[inverse].tobytes())
        touched = graph.operands[np.sort(first)].tolist()
        digest.update(";".join(_kept(graph.buffers[i]) if i >= 0 else "-" for i in touched).encode())
        for op, call in sorted(graph.collectives.items()):
            digest.update(repr((op, replace(call, peer=0))).encode())
        rest = set(range(len(graph.buffers))).difference(touched)
        room = sorted(_kept(graph.buffers[i]) for i in rest if graph.buffers[i].nbytes)
        return digest.digest(), hashlib.sha256(";".join(room).encode()).digest()


def _kept(buffer: "Buffer") -> str:
    return f"{buffer.nbytes} {buffer.birth} {buffer.death} {buffer.role}"


def _rebound(program: "Program", chunks: "tuple[Graph, ...]") -> "Program":
    """The program with the collectives of these chunks: stages that run the same code talk to different neighbours."""
    calls: dict[int, CollectiveCall] = {}
    base = 0
    for graph in chunks:
        calls |= {base + op: call for op, call in graph.collectives.items()}
        base += len(graph)
    bound = {i: replace(call, peer=calls[int(program.op[i])].peer) for i, call in program.collectives.items()}
    return replace(program, collectives=bound)


def _described(stage: "StagePlan", operators: "Operators") -> int:
    rows = []
    for graph in stage.chunks:
        works = [work(s) for s in graph.signatures]
        rows.append(operators.add(graph, [w.flops for w in works], [w.nbytes for w in works]))
    return rows[0]
