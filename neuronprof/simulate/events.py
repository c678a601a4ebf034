"""Turns simulated runs into the rows of the trace, rank by rank and run by run."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from neuronprof.graph.ir import Graph, Signature, Tensor
from neuronprof.program import QUEUE_TRACKS, Opcode, Queue
from neuronprof.simulate.cluster import Job, Run
from neuronprof.simulate.timing import WAITS, served_by_hbm
from neuronprof.terms import PHASES, ROLES, Engine, Kind

# Ranks count their events from multiples of this, so that an id says whose event it is.
RANK_STRIDE = 1 << 36

_KINDS = {Engine.DMA: Kind.TRANSFER, Engine.CC: Kind.COLLECTIVE, Engine.HOST: Kind.MARKER}
_ENGINES = [str(e) for e in Engine]
_OPCODES = [o.name for o in Opcode]
_OPERATOR_COLUMNS = ("op", "op_name", "layer", "phase", "source", "region", "shapes", "dtype", "flops", "bytes")
_DESCRIBING = ("op_name", "layer", "phase", "source", "region")

Columns = dict[str, Any]


def _by_queue(values: dict[Queue, int]) -> np.ndarray:
    return np.array([values[q] for q in Queue])


_ENGINE_OF = _by_queue({q: _ENGINES.index(e) for q, (e, _) in QUEUE_TRACKS.items()})
_TRACK_OF = _by_queue({q: track for q, (_, track) in QUEUE_TRACKS.items()})
_KIND_NAMES = [str(k) for k in Kind]
_KIND_OF = _by_queue({q: _KIND_NAMES.index(_KINDS.get(e, Kind.COMPUTE)) for q, (e, _) in QUEUE_TRACKS.items()})


@dataclass
class Operators:
    """The operators table: one row for each operator of each compiled graph. Events refer to its rows."""

    columns: dict[str, list[Any]] = field(default_factory=lambda: {c: [] for c in _OPERATOR_COLUMNS})

    def add(self, graph: Graph, flops: list[int], nbytes: list[int]) -> int:
        """Adds a graph's operators; flops, nbytes: of each of graph.signatures. Returns the first row."""
        base = len(self.columns["op"])
        shapes = [shapes_text(s) for s in graph.signatures]
        dtypes = [next((t.dtype for t in (*s.inputs, *s.outputs)), "") for s in graph.signatures]
        signature = graph.signature.tolist()
        self.columns["op"] += range(base, base + len(graph))
        self.columns["op_name"] += [short_name(graph.signatures[s].name) for s in signature]
        self.columns["layer"] += [graph.modules[m] for m in graph.module.tolist()]
        self.columns["phase"] += [str(PHASES[p]) for p in graph.phase.tolist()]
        self.columns["source"] += [graph.sources[s] for s in graph.source.tolist()]
        self.columns["region"] += [graph.regions[r] for r in graph.region.tolist()]
        self.columns["shapes"] += [shapes[s] for s in signature]
        self.columns["dtype"] += [dtypes[s] for s in signature]
        self.columns["flops"] += [flops[s] for s in signature]
        self.columns["bytes"] += [nbytes[s] for s in signature]
        return base


def short_name(name: str) -> str:
    """An operator's name without its overload: 'aten.mm.default' is 'aten.mm'."""
    return ".".join(name.split(".")[:2])


def shapes_text(signature: Signature) -> str:
    """Shapes of an operator's operands: '(32, 1024) x (1024, 4096) -> (32, 4096)'."""

    def listed(tensors: tuple[Tensor, ...]) -> str:
        shown = [f"({', '.join(map(str, t.shape))})" for t in tensors[:4]]
        return " x ".join(shown + [f"{len(tensors) - 4} more"] * (len(tensors) > 4))

    return f"{listed(signature.inputs)} -> {listed(signature.outputs)}"


@dataclass(frozen=True)
class Recorded:
    """A run with the step it belongs to (-1: evaluation) and its first row in the operators table."""

    run: Run
    step: int
    first_op: int


class EventRows:
    """Rows of all events of a job's runs. Identifiers grow in program order within a rank."""

    def __init__(self, job: Job, recorded: list[Recorded], operators: Operators) -> None:
        self._job = job
        self._recorded = recorded
        self._texts = {c: _coded(operators.columns[c]) for c in _DESCRIBING}
        self._served = [np.flatnonzero(served_by_hbm(r.run.program)) for r in recorded]
        programs = [r.run.program for r in recorded]
        counts = [
            len(p) + len(s) + 2 * len(p.collectives) + len(p.memory)
            for p, s in zip(programs, self._served, strict=True)
        ]
        self._first_id = [0, *np.cumsum(counts).tolist()]
        self.count = self._first_id[-1]  # most events that a rank can have

    def rank(self, rank: int) -> Iterator[Columns]:
        """Batches of columns, as trace.writer takes them, that hold one rank's events."""
        for number in range(len(self._recorded)):
            yield self._instructions(rank, number)
            yield self._hbm_transfers(rank, number)
            yield self._hbm_levels(rank, number)
            yield self._link(rank, number, Engine.NEURONLINK)
            yield self._link(rank, number, Engine.EFA)

    def _instructions(self, rank: int, number: int) -> Columns:
        program, timing, lane = self._recorded[number].run.program, self._recorded[number].run.timing, self._lane(rank)
        rows = np.arange(len(program))
        released = timing.released_by[:, lane].astype(np.int64)
        releaser = timing.released_on[:, lane].astype(np.int64) if self._job.lanes > 1 else rank
        columns = self._common(rank, number, rows) | {
            "id": self._id(rank, number, rows),
            "engine": (_ENGINE_OF[program.queue], _ENGINES),
            "queue": _TRACK_OF[program.queue],
            "kind": (_KIND_OF[program.queue], _KIND_NAMES),
            "wait_ns": (timing.wait[:, lane] + 500) // 1000,
            "wait_for": (timing.wait_for[:, lane], WAITS),
            "flops": program.flops,
            "released_by": np.where(released < 0, -1, releaser * RANK_STRIDE + self._first_id[number] + released),
            "deps": (program.deps_ptr, np.repeat(rows, np.diff(program.deps_ptr)) - program.deps),
        }
        calls = np.array(list(program.collectives), np.int64)
        if len(calls):
            columns |= self._collective_columns(number, calls, rows)
        return columns

    def _collective_columns(self, number: int, calls: np.ndarray, rows: np.ndarray) -> Columns:
        """Columns that say which collective an event belongs to; calls: the collective instructions among rows."""
        run = self._recorded[number].run
        names, groups, algorithms = (np.zeros(len(rows), object) for _ in range(3))
        names[:], groups[:], algorithms[:] = [_OPCODES[o] for o in run.program.opcode[rows].tolist()], None, None
        identity = np.full(len(rows), -1)
        for i in calls.tolist():
            call, at = run.program.collectives[i], int(np.searchsorted(rows, i))
            names[at], groups[at] = str(call.kind), f"{call.axis}:0-{call.ranks - 1}"
            algorithms[at], identity[at] = str(run.transfers[i].algorithm), self._first_id[number] + i
        return {
            "name": list(names),
            "replica_group": list(groups),
            "algorithm": list(algorithms),
            "collective": identity,
        }

    def _hbm_transfers(self, rank: int, number: int) -> Columns:
        rows = self._served[number]
        place = len(self._recorded[number].run.program) + np.arange(len(rows))
        return self._common(rank, number, rows) | self._caused(rank, number, rows, place) | {"engine": str(Engine.HBM)}

    def _link(self, rank: int, number: int, link: Engine) -> Columns:
        run = self._recorded[number].run
        sent = {i: t.neuronlink if link is Engine.NEURONLINK else t.efa for i, t in sorted(run.transfers.items())}
        position = {i: n for n, i in enumerate(sent)}
        rows = np.array([i for i, nbytes in sent.items() if nbytes], np.int64)
        before = len(run.program) + len(self._served[number]) + (len(sent) if link is Engine.EFA else 0)
        place = before + np.array([position[i] for i in rows.tolist()], np.int64)
        columns = self._common(rank, number, rows) | self._caused(rank, number, rows, place)
        columns |= self._collective_columns(number, rows, rows)
        return columns | {"engine": str(link), "bytes": np.array([sent[i] for i in rows.tolist()], np.int64)}

    def _caused(self, rank: int, number: int, rows: np.ndarray, place: np.ndarray) -> Columns:
        """Columns of events that the instructions `rows` brought about; they are the run's `place`-th events."""
        return {
            "id": self._id(rank, number, place),
            "kind": str(Kind.TRANSFER),
            "queue": 0,
            "wait_for": "none",
            "released_by": self._id(rank, number, rows),
            "deps": (np.arange(len(rows) + 1), place - rows),
        }

    def _hbm_levels(self, rank: int, number: int) -> Columns:
        run, lane = self._recorded[number].run, self._lane(rank)
        at, role, level = run.program.memory.T
        time = np.where(at < 0, run.begin, run.timing.end[np.maximum(at, 0), lane]) if len(run.program) else at * 0
        order = np.lexsort((np.arange(len(time)), time, role))
        time, role, level = time[order], role[order], level[order]
        until = np.append(time[1:], run.end)[: len(time)]
        until[np.append(role[1:] != role[:-1], True)[: len(time)]] = run.end
        held = np.flatnonzero((level > 0) & (until > time))
        start = _ns(time[held])
        place = len(run.program) + len(self._served[number]) + 2 * len(run.transfers) + held
        return self._place(rank, number) | {
            "id": self._id(rank, number, place),
            "engine": str(Engine.HBM),
            "queue": 1,
            "kind": str(Kind.MEMORY),
            "name": (role[held], [str(r) for r in ROLES]),
            "start_ts": start,
            "duration_ns": _ns(until[held]) - start,
            "wait_for": "none",
            "bytes": level[held],
        }

    def _common(self, rank: int, number: int, rows: np.ndarray) -> Columns:
        """The columns that events of instructions share."""
        recorded, lane = self._recorded[number], self._lane(rank)
        program, timing = recorded.run.program, recorded.run.timing
        op = np.where(program.op[rows] < 0, -1, program.op[rows] + recorded.first_op)
        start = _ns(timing.start[rows, lane])
        described = {c: (np.where(op < 0, -1, codes[op]), texts) for c, (codes, texts) in self._texts.items()}
        return (
            self._place(rank, number)
            | described
            | {
                "name": (program.opcode[rows], _OPCODES),
                "start_ts": start,
                "duration_ns": _ns(timing.end[rows, lane]) - start,
                "op": op,
                "bytes": program.nbytes[rows],
                "dtype": (program.dtype[rows], list(program.dtypes)),
            }
        )

    def _place(self, rank: int, number: int) -> Columns:
        chip, core = divmod(rank, self._job.ranks_per_chip)
        return {"step": self._recorded[number].step, "chip": chip, "core": core, "rank": rank}

    def _lane(self, rank: int) -> int:
        return rank if self._job.lanes > 1 else 0

    def _id(self, rank: int, number: int, place: np.ndarray) -> np.ndarray:
        return rank * RANK_STRIDE + self._first_id[number] + place


def _coded(texts: list[str]) -> tuple[np.ndarray, list[str]]:
    """Texts as codes and dictionary; one more code stands at the end, for operators that are not there."""
    words = dict.fromkeys(texts)
    number = {word: i for i, word in enumerate(words)}
    return np.array([*(number[t] for t in texts), -1]), list(words)


def _ns(picoseconds: np.ndarray) -> np.ndarray:
    return (picoseconds + 500) // 1000
