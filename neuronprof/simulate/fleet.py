"""The programs of all pipeline stages as one table of instructions, with what links them: messages, collectives, shared resources."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from neuronprof.errors import NeuronprofError
from neuronprof.graph.groups import ReplicaGroup
from neuronprof.hardware.spec import Chip
from neuronprof.loops import loop
from neuronprof.program import PRODUCTS, Opcode, Program, Queue
from neuronprof.simulate import priced
from neuronprof.simulate.job import Job
from neuronprof.simulate.network import Network, Transfer
from neuronprof.simulate.timing import HBM_OPCODES, dependency_causes
from neuronprof.terms import Collective, Engine

COMPUTE, SERVED, MEET, SEND, RECV = range(5)
# What stretches an instruction on a rank: nothing, the chip's slowness, or that and the throttling of its PE array.
FIXED, CHIP, ARRAY = range(3)
_KINDS = np.where(HBM_OPCODES, SERVED, COMPUTE).astype(np.int8)
_KINDS[[Opcode.COLLECTIVE, Opcode.SEND, Opcode.RECV]] = MEET, SEND, RECV
_SCALES = np.full(len(Opcode), CHIP, np.int8)
_SCALES[[Opcode.LAUNCH, Opcode.HOST_SYNC, Opcode.COLLECTIVE, Opcode.SEND, Opcode.RECV]] = FIXED
_SCALES[[*PRODUCTS, Opcode.LDWEIGHTS]] = ARRAY
NO_LINK = -1
QUEUES = len(Queue)


@dataclass(frozen=True)
class Fleet:
    """Instructions of all stages, one after another; base[s] is the first of stage s. Columns of n instructions, times in picoseconds.

    kind int8 (see above); queue int8; duration int64; wire int64: the part of it in which `link` (0 NeuronLink, 1 EFA, -1 none;
    int8) is occupied; delay int64: from a dependency's end to the earliest start. deps_ptr, deps: predecessors, as in Program, counted
    over all stages. partner int32: the SEND of a RECV. meeting int32: number of the collective, shared by stages that meet in one; group
    int32: index in groups. transfers: by instruction. cold float64: share of a MATMUL in which the PE array is cold, None where no single
    ones are (see throttling.py).
    """

    programs: tuple[Program, ...]
    base: np.ndarray
    kind: np.ndarray
    queue: np.ndarray
    duration: np.ndarray
    wire: np.ndarray
    link: np.ndarray
    delay: np.ndarray
    deps_ptr: np.ndarray
    deps: np.ndarray
    partner: np.ndarray
    meeting: np.ndarray
    group: np.ndarray
    groups: tuple[ReplicaGroup, ...]
    transfers: dict[int, Transfer]
    cold: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def stage(self) -> np.ndarray:
        """Stage of each instruction, int32[n]."""
        return np.repeat(np.arange(len(self.programs), dtype=np.int32), np.diff(self.base))

    @cached_property
    def scale(self) -> np.ndarray:
        """What stretches each instruction on a rank, int8[n] (see above)."""
        return np.concatenate([_SCALES[p.opcode] for p in self.programs])

    @cached_property
    def causes(self) -> np.ndarray:
        """What waiting for each of deps is called, int8, see `dependency_causes`."""
        return np.concatenate([dependency_causes(p) for p in self.programs])

    @cached_property
    def peer(self) -> np.ndarray:
        """The stage at the other end of a SEND or RECV, int32[n], -1 for all else."""
        peer = np.full(len(self), -1, np.int32)
        for program, first in zip(self.programs, self.base.tolist(), strict=False):
            for i, call in program.collectives.items():
                peer[first + i] = call.peer if call.kind in (Collective.SEND, Collective.RECV) else -1
        return peer


def fleet(programs: Sequence[Program], job: Job, durations: Sequence[np.ndarray] | None = None) -> Fleet:
    """The instructions of a job whose stages run these programs. durations: `priced.durations` of each, where they are known.

    Raises:
        NeuronprofError: what a stage sends is not what its neighbour receives.
    """
    base = np.array([0, *accumulate(map(len, programs))], np.int64)
    n, transfers = int(base[-1]), _transfers(programs, base, job)
    kind = np.concatenate([_KINDS[p.opcode] for p in programs])
    duration = np.concatenate([priced.durations(p, job) for p in programs] if durations is None else durations)
    wire, link = _networked(duration, kind, transfers)
    deps_before = [0, *accumulate(len(p.deps) for p in programs)]
    pointers = [p.deps_ptr[1:] + before for p, before in zip(programs, deps_before, strict=False)]
    group, groups = _groups(programs, base, n)
    return Fleet(
        programs=tuple(programs),
        base=base,
        kind=kind,
        queue=np.concatenate([p.queue for p in programs]),
        duration=duration,
        wire=wire,
        link=link,
        delay=np.where(kind == SERVED, int(_start(job.chip) * priced.PICOSECONDS), 0),
        deps_ptr=np.concatenate([[0], *pointers]).astype(np.int64),
        deps=np.concatenate([p.deps + o for p, o in zip(programs, base, strict=False)]).astype(np.int32),
        partner=_partners(programs, base, n),
        meeting=_meetings(programs, base, job, n),
        group=group,
        groups=groups,
        transfers=transfers,
    )


def _start(chip: Chip) -> float:
    """Seconds from what a load or store waits for to its first byte."""
    return chip.kernels.gap if chip.kernels else chip.dma.start


def _networked(duration: np.ndarray, kind: np.ndarray, transfers: dict[int, Transfer]) -> tuple[np.ndarray, np.ndarray]:
    """Times on the wire, and links; the durations of what the network does are filled in."""
    wire, link = np.zeros(len(kind), np.int64), np.full(len(kind), NO_LINK, np.int8)
    for i, transfer in transfers.items():
        if kind[i] == RECV:
            continue  # the sender's transfer is the whole message
        duration[i], wire[i] = transfer.picoseconds, transfer.wire
        if transfer.wire:
            link[i] = 1 if transfer.link is Engine.EFA else 0
    return wire, link


def _transfers(programs: Sequence[Program], base: np.ndarray, job: Job) -> dict[int, Transfer]:
    network = Network(job)
    known: dict[object, Transfer] = {}
    found = {}
    for stage, (program, first) in enumerate(zip(programs, base.tolist(), strict=False)):
        for i, call in program.collectives.items():
            if (call, stage) not in known:
                known[call, stage] = network.transfer(call, stage)
            found[first + i] = known[call, stage]
    return found


def _groups(programs: Sequence[Program], base: np.ndarray, n: int) -> tuple[np.ndarray, tuple[ReplicaGroup, ...]]:
    number: dict[ReplicaGroup, int] = {}
    group = np.full(n, -1, np.int32)
    for program, first in zip(programs, base.tolist(), strict=False):
        for i, call in program.collectives.items():
            group[first + i] = number.setdefault(call.group, len(number))
    return group, tuple(number)


def _partners(programs: Sequence[Program], base: np.ndarray, n: int) -> np.ndarray:
    """The SEND of each RECV: messages between two stages arrive in the order in which they were sent."""
    sent, received = defaultdict(list), defaultdict(list)
    for stage, (program, first) in enumerate(zip(programs, base.tolist(), strict=False)):
        for i, call in sorted(program.collectives.items()):
            if call.kind == Collective.SEND:
                sent[stage, call.peer].append((first + i, call.nbytes))
            elif call.kind == Collective.RECV:
                received[call.peer, stage].append((first + i, call.nbytes))
    partner = np.full(n, -1, np.int32)
    for sender, receiver in {**sent, **received}:
        ours, theirs = sent[sender, receiver], received[sender, receiver]
        if [size for _, size in ours] != [size for _, size in theirs]:
            raise NeuronprofError(
                f"Pipeline stage {sender} sends {len(ours)} messages to stage {receiver}, which receives {len(theirs)}, or of other sizes; "
                "the stages would wait for each other for ever."
            )
        for (source, _), (target, _) in zip(ours, theirs, strict=True):
            partner[target] = source
    return partner


def _meetings(programs: Sequence[Program], base: np.ndarray, job: Job, n: int) -> np.ndarray:
    """A number for each collective; the k-th of a group that spans stages is one and the same on all of them."""
    meeting = np.full(n, -1, np.int32)
    count, stride = job.stages
    number: dict[object, int] = {}
    for stage, (program, first) in enumerate(zip(programs, base.tolist(), strict=False)):
        seen: dict[ReplicaGroup, int] = defaultdict(int)
        met: dict[ReplicaGroup, tuple[int, ...]] = {}  # stages that a group joins
        for i, call in sorted(program.collectives.items()):
            if call.kind in (Collective.SEND, Collective.RECV):
                continue
            if call.group not in met:
                members = call.group.members(int(job.ranks(stage)[0]))
                met[call.group] = tuple(sorted(set((members // stride % count).tolist()))) if count > 1 else (stage,)
            together = met[call.group]
            key = (call.group, seen[call.group], together) if len(together) > 1 else (stage, i)
            seen[call.group] += 1
            meeting[first + i] = number.setdefault(key, len(number))
    return meeting


def neighbours(fleet: Fleet, order: np.ndarray) -> np.ndarray:
    """The instruction before each one in its queue, and before it on its HBM or link, int32[2, n] (-1: none).

    order: of all instructions, from `arbiter.order`, in which HBM and links are granted.
    """
    stage = fleet.stage
    server = np.where(fleet.kind == SERVED, 0, 1 + fleet.link)
    granted = order[(fleet.kind[order] == SERVED) | (fleet.link[order] != NO_LINK)]
    found = np.full((2, len(fleet)), -1, np.int32)
    stages = len(fleet.programs)
    _previous(stage * QUEUES + fleet.queue, np.arange(len(fleet), dtype=np.int32), _none(stages * QUEUES), found[0])
    _previous(3 * stage + server, granted, _none(3 * stages), found[1])
    return found


def _none(count: int) -> np.ndarray:
    return np.full(count, -1, np.int32)


@loop("void(int32[::1], int32[::1], int32[::1], int32[::1])")
def _previous(line: np.ndarray, order: np.ndarray, last: np.ndarray, found: np.ndarray) -> None:
    """For each of the instructions given in order the one before it that stands in the same line, into found; last: of each line, -1."""
    for x in range(len(order)):
        i = order[x]
        found[i] = last[line[i]]
        last[line[i]] = i
