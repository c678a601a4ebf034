"""Turns simulated runs into the rows of the trace, rank by rank and run by run."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from neuronprof import formula
from neuronprof.formula import Formula
from neuronprof.graph.ir import CollectiveCall, Graph, Signature, Tensor
from neuronprof.program import QUEUE_TRACKS, Opcode, Program, Queue
from neuronprof.simulate import onchip, priced
from neuronprof.simulate.cluster import Run
from neuronprof.simulate.job import Job
from neuronprof.simulate.network import price
from neuronprof.simulate.timing import WAITS, served_by_hbm
from neuronprof.terms import HELD, PHASES, ROLES, Collective, Engine, Held, Kind, OnChip

# Ranks count their events from multiples of this, so that an id says whose event it is.
RANK_STRIDE = 1 << 36

_KINDS = {Engine.DMA: Kind.TRANSFER, Engine.CC: Kind.COLLECTIVE, Engine.HOST: Kind.MARKER}
_ENGINES = [str(e) for e in Engine]
# A tile's product is the instruction that the hardware calls MATMUL; the other one stands for a row of them.
_OPCODES = ["MATMUL" if o is Opcode.MATMUL_TILE else o.name for o in Opcode]
_OPERATOR_COLUMNS = ("op", "op_name", "layer", "phase", "source", "region", "shapes", "dtype", "flops", "bytes")
_DESCRIBING = ("op_name", "layer", "phase", "source", "region")

Columns = dict[str, Any]
Texts = tuple[np.ndarray, list[str]]  # codes (-1: none) and the words they stand for


def _by_queue(values: dict[Queue, int]) -> np.ndarray:
    return np.array([values[q] for q in Queue])


_ENGINE_OF = _by_queue({q: _ENGINES.index(e) for q, (e, _) in QUEUE_TRACKS.items()})
_TRACK_OF = _by_queue({q: track for q, (_, track) in QUEUE_TRACKS.items()})
_KIND_NAMES = [str(k) for k in Kind]
_HOLDERS = [str(OnChip.SBUF), str(OnChip.PSUM)]
_HOLDER_OF = np.array([what is Held.PARTIAL_SUMS for what in HELD], np.int8)
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
    """A run with the step it belongs to (-1: evaluation) and each stage's first row in the operators table."""

    run: Run
    step: int
    first_op: tuple[int, ...]


class EventRows:
    """Rows of all events of a job's runs. Identifiers grow in program order within a rank."""

    def __init__(self, job: Job, recorded: list[Recorded], operators: Operators) -> None:
        self._job = job
        self._recorded = recorded
        self._texts = {c: _coded(operators.columns[c]) for c in _DESCRIBING}
        self._first_id: list[list[int]] = []  # by stage, of each run
        for stage in range(job.stages[0]):
            programs = [r.run.stage_program(stage) for r in recorded]
            self._first_id.append([0, *np.cumsum([_most_events(p) for p in programs]).tolist()])
        self._first_collective = [0, *np.cumsum([r.run.instructions for r in recorded]).tolist()]
        self._costs: dict[tuple[int, int], Texts] = {}  # by stage and program

    def count(self, rank: int) -> int:
        """Most events that a rank can have."""
        return self._first_id[self._job.stage(rank)][-1]

    def rank(self, rank: int) -> Iterator[Columns]:
        """Batches of columns, as trace.writer takes them, that hold one rank's events."""
        for number in range(len(self._recorded)):
            yield from _RankRows(self, rank, number).batches()

    def text(self, column: str, op: np.ndarray) -> Texts:
        """A describing column of events that work for these operators (-1: none), as codes and dictionary."""
        codes, words = self._texts[column]
        return np.where(op < 0, -1, codes[op]), words

    def costs(self, rank: int, number: int) -> Texts:
        """Formula and operands of each instruction of a rank's run, as codes and dictionary."""
        run, stage = self._recorded[number].run, self._job.stage(rank)
        key = stage, id(run.stage_program(stage))
        if key not in self._costs:
            codes, words = priced.texts(run.program(rank), self._job, run.cold(rank))
            for i, transfer in run.transfers(rank).items():
                if transfer.cost:
                    codes[i] = len(words)
                    words.append(transfer.cost)
            self._costs[key] = codes, words
        return self._costs[key]

    def formulas(self) -> dict[str, Formula]:
        """The formulas of all events so far, by name."""
        names = {formula.read(word)[0] for _, words in self._costs.values() for word in words}
        known, numbers = priced.formulas(self._job.chip), self._job.chip.numbers
        return {n: known[n] if n in known else price.formula_of(n, numbers) for n in sorted(names)}

    @property
    def first_ids_of_runs(self) -> list[list[int]]:
        """By stage, of each run: what a rank's events are counted from, besides its number times RANK_STRIDE."""
        return [ids[:-1] for ids in self._first_id]

    def first_id(self, rank: int, number: int) -> int:
        """The identifier of a rank's first event of a run."""
        return rank * RANK_STRIDE + self._first_id[self._job.stage(rank)][number]

    def first_ids(self, ranks: np.ndarray, number: int) -> np.ndarray:
        """The same for many ranks at once."""
        by_stage = np.array([ids[number] for ids in self._first_id])
        return ranks * RANK_STRIDE + by_stage[self._job.stage(ranks)]

    def run(self, number: int) -> Recorded:
        """The number-th run."""
        return self._recorded[number]

    def first_collective(self, number: int) -> int:
        """What the collectives of a run are counted from."""
        return self._first_collective[number]


def _most_events(program: Program) -> int:
    served = int(served_by_hbm(program).sum())
    return len(program) + served + 2 * len(program.collectives) + len(program.memory) + onchip.most(program)


class _RankRows:
    """The rows of one rank in one run."""

    def __init__(self, rows: EventRows, rank: int, number: int) -> None:
        self._rows, self._rank, self._number = rows, rank, number
        self._recorded = rows.run(number)
        self._run = self._recorded.run
        self._job, self._stage = self._run.job, self._run.job.stage(rank)
        self._program, self._timing = self._run.program(rank), self._run.timing(rank)
        self._served = np.flatnonzero(served_by_hbm(self._program))
        self._transfers = dict(sorted(self._run.transfers(rank).items()))
        self._first_id = rows.first_id(rank, number)
        self._costs = rows.costs(rank, number)

    def batches(self) -> Iterator[Columns]:
        """Instructions, what HBM served, what it and SBUF and PSUM held, and what went over the links."""
        yield self._instructions()
        yield self._hbm_transfers()
        yield self._hbm_levels()
        yield self._on_chip_levels()
        yield self._link(Engine.NEURONLINK)
        yield self._link(Engine.EFA)

    def _instructions(self) -> Columns:
        program, timing = self._program, self._timing
        rows = np.arange(len(program))
        released = timing.released_by.astype(np.int64)
        columns = self._common(rows) | {
            "id": self._first_id + rows,
            "engine": (_ENGINE_OF[program.queue], _ENGINES),
            "queue": _TRACK_OF[program.queue],
            "kind": (_KIND_OF[program.queue], _KIND_NAMES),
            "wait_ns": (timing.wait + 500) // 1000,
            "wait_for": (timing.wait_for, WAITS),
            "flops": program.flops,
            "released_by": np.where(
                released < 0, -1, self._rows.first_ids(timing.released_on.astype(np.int64), self._number) + released
            ),
            "deps": (program.deps_ptr, np.repeat(rows, np.diff(program.deps_ptr)) - program.deps),
        }
        calls = np.array(list(program.collectives), np.int64)
        if len(calls):
            columns |= self._collective_columns(calls, rows)
        return columns

    def _collective_columns(self, calls: np.ndarray, rows: np.ndarray) -> Columns:
        """Columns that say which collective an event belongs to; calls: the collective instructions among rows."""
        names, groups, algorithms = (np.zeros(len(rows), object) for _ in range(3))
        names[:], groups[:], algorithms[:] = [_OPCODES[o] for o in self._program.opcode[rows].tolist()], None, None
        identity = np.full(len(rows), -1)
        numbers, first = self._run.collective_numbers(self._rank), self._rows.first_collective(self._number)
        for i in calls.tolist():
            call, at = self._program.collectives[i], int(np.searchsorted(rows, i))
            names[at], groups[at] = str(call.kind), self._members(call)
            algorithms[at], identity[at] = str(self._transfers[i].algorithm), first + numbers[i]
        return {
            "name": list(names),
            "replica_group": list(groups),
            "algorithm": list(algorithms),
            "collective": identity,
        }

    def _members(self, call: CollectiveCall) -> str:
        if call.kind not in (Collective.SEND, Collective.RECV):
            return call.group.text(self._rank)
        peer = int(self._job.ranks(call.peer)[self._job.lane(self._rank)])
        first, second = (self._rank, peer) if call.kind == Collective.SEND else (peer, self._rank)
        return f"{call.axis}:{first}>{second}"

    def _hbm_transfers(self) -> Columns:
        place = len(self._program) + np.arange(len(self._served))
        return self._common(self._served) | self._caused(self._served, place) | {"engine": str(Engine.HBM)}

    def _link(self, link: Engine) -> Columns:
        """What the rank sends over a link, and how long its own link needs; a collective takes as long as its slowest link."""
        sent = {i: t.neuronlink if link is Engine.NEURONLINK else t.efa for i, t in self._transfers.items()}
        position = {i: n for n, i in enumerate(sent)}
        rows = np.array(
            [i for i, nbytes in sent.items() if nbytes and self._program.opcode[i] != Opcode.RECV], np.int64
        )
        before = len(self._program) + len(self._served) + (len(sent) if link is Engine.EFA else 0)
        place = before + np.array([position[i] for i in rows.tolist()], np.int64)
        columns = self._common(rows) | self._caused(rows, place)
        columns |= self._collective_columns(rows, rows)
        wire = np.array([self._transfers[i].wire for i in rows.tolist()], np.int64) / self._job.link_share(self._rank)
        until = np.minimum(self._timing.start[rows] + np.rint(wire).astype(np.int64), self._timing.end[rows])
        columns["duration_ns"] = _ns(until) - columns["start_ts"]
        return columns | {"engine": str(link), "bytes": np.array([sent[i] for i in rows.tolist()], np.int64)}

    def _caused(self, rows: np.ndarray, place: np.ndarray) -> Columns:
        """Columns of events that the instructions `rows` brought about; they are the run's `place`-th events."""
        return {
            "id": self._first_id + place,
            "kind": str(Kind.TRANSFER),
            "queue": 0,
            "wait_for": "none",
            "released_by": self._first_id + rows,
            "deps": (np.arange(len(rows) + 1), place - rows),
        }

    def _hbm_levels(self) -> Columns:
        run, program = self._run, self._program
        at, role, level = program.memory.T
        time = np.where(at < 0, run.begin, self._timing.end[np.maximum(at, 0)]) if len(program) else at * 0
        order = np.lexsort((np.arange(len(time)), time, role))
        time, role, level = time[order], role[order], level[order]
        until = np.append(time[1:], run.end)[: len(time)]
        until[np.append(role[1:] != role[:-1], True)[: len(time)]] = run.end
        held = np.flatnonzero((level > 0) & (until > time))
        names = (role[held], [str(r) for r in ROLES])
        return self._levels(held, names, (time[held], until[held], level[held])) | {
            "engine": str(Engine.HBM),
            "queue": 1,
        }

    def _on_chip_levels(self) -> Columns:
        found = onchip.levels(self._program, self._timing, self._run.end)
        place = len(self._program.memory) + np.arange(len(found.what))
        columns = self._levels(
            place, (found.what, [str(what) for what in HELD]), (found.start, found.end, found.nbytes)
        )
        return columns | {"engine": (_HOLDER_OF[found.what], _HOLDERS), "queue": 0}

    def _levels(self, number: np.ndarray, names: Texts, held: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Columns:
        """Columns of memory events. number: of each among the run's; held: start, end and bytes."""
        start, nbytes = _ns(held[0]), held[2]
        return self._place() | {
            "id": self._first_id + len(self._program) + len(self._served) + 2 * len(self._transfers) + number,
            "kind": str(Kind.MEMORY),
            "name": names,
            "start_ts": start,
            "duration_ns": _ns(held[1]) - start,
            "wait_for": "none",
            "bytes": nbytes,
        }

    def _common(self, rows: np.ndarray) -> Columns:
        """The columns that events of instructions share."""
        program, timing = self._program, self._timing
        op = np.where(program.op[rows] < 0, -1, program.op[rows] + self._recorded.first_op[self._stage])
        start = _ns(timing.start[rows])
        described = {column: self._rows.text(column, op) for column in _DESCRIBING}
        return (
            self._place()
            | described
            | {
                "name": (program.opcode[rows], _OPCODES),
                "start_ts": start,
                "duration_ns": _ns(timing.end[rows]) - start,
                "op": op,
                "bytes": program.nbytes[rows],
                "dtype": (program.dtype[rows], list(program.dtypes)),
                "operands": (self._costs[0][rows], self._costs[1]),
            }
        )

    def _place(self) -> Columns:
        chip, core = divmod(self._rank, self._job.ranks_per_chip)
        return {"step": self._recorded.step, "chip": chip, "core": core, "rank": self._rank}


def _coded(texts: list[str]) -> tuple[np.ndarray, list[str]]:
    """Texts as codes and dictionary; one more code stands at the end, for operators that are not there."""
    words = dict.fromkeys(texts)
    number = {word: i for i, word in enumerate(words)}
    return np.array([*(number[t] for t in texts), -1]), list(words)


def _ns(picoseconds: np.ndarray) -> np.ndarray:
    return (picoseconds + 500) // 1000
