"""How long collectives and messages take on the links of a job's chips, and what they put on them."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np

from neuronprof import formula
from neuronprof.errors import NeuronprofError
from neuronprof.graph.groups import ReplicaGroup
from neuronprof.graph.ir import CollectiveCall
from neuronprof.hardware.spec import Link
from neuronprof.simulate.job import Job
from neuronprof.simulate.network import price
from neuronprof.simulate.network.algorithms import Motion, Ranks
from neuronprof.simulate.network.placement import Distances, Placement, place
from neuronprof.simulate.network.price import Part
from neuronprof.simulate.priced import PICOSECONDS
from neuronprof.terms import Algorithm, Collective, Engine

# What a hierarchical collective does inside an UltraServer (False) and between them (True), and whether with all of the message or with
# the shard that each rank has inside (Neuron runtime guide, inter-node collectives; an all-to-all and a broadcast: by analogy).
_INSIDE, _BETWEEN = False, True
_WHOLE, _SHARD = False, True
_PHASES = {
    Collective.ALL_REDUCE: (
        (Collective.REDUCE_SCATTER, _INSIDE, _WHOLE),
        (Collective.ALL_REDUCE, _BETWEEN, _SHARD),
        (Collective.ALL_GATHER, _INSIDE, _WHOLE),
    ),
    Collective.ALL_GATHER: ((Collective.ALL_GATHER, _BETWEEN, _SHARD), (Collective.ALL_GATHER, _INSIDE, _WHOLE)),
    Collective.REDUCE_SCATTER: ((Collective.REDUCE_SCATTER, _INSIDE, _WHOLE), (Collective.REDUCE_SCATTER, _BETWEEN, _SHARD)),
    Collective.ALL_TO_ALL: ((Collective.ALL_TO_ALL, _INSIDE, _WHOLE), (Collective.ALL_TO_ALL, _BETWEEN, _WHOLE)),
    Collective.BROADCAST: ((Collective.BROADCAST, _BETWEEN, _SHARD), (Collective.ALL_GATHER, _INSIDE, _WHOLE)),
}  # fmt: skip
_Placed = tuple[Placement, Ranks, Ranks]
_PHASES[Collective.BARRIER] = _PHASES[Collective.ALL_REDUCE]


@dataclass(frozen=True, slots=True)
class Transfer:
    """A collective on the links.

    picoseconds: from the last rank's arrival to the end; neuronlink, efa: bytes that a rank, on average, sends on each. wire: the part of
    picoseconds in which `link` is occupied; the rest is latency and what moves inside chips. cost: the formula's name and operands, as
    events have them ('': it takes no time of its own).
    """

    picoseconds: int
    algorithm: Algorithm
    neuronlink: int = 0
    efa: int = 0
    wire: int = 0
    link: Engine = Engine.NEURONLINK
    cost: str = ""


@dataclass(frozen=True, slots=True)
class _Phase:
    """A collective on one kind of link: its algorithm, what it costs, and bytes that a rank sends."""

    algorithm: Algorithm
    part: Part
    sent: float
    between: bool


def check(algorithm: str | None, oversubscription: float) -> None:
    """Refuses what no network can do.

    Raises:
        NeuronprofError: there is no such algorithm, or the oversubscription is below 1.
    """
    if algorithm and algorithm not in tuple(Algorithm):
        raise NeuronprofError(f"There is no collective algorithm '{algorithm}'; choose one of {', '.join(Algorithm)}.")
    if not 1 <= oversubscription < float("inf"):
        raise NeuronprofError(
            f"An oversubscription of {oversubscription:g} is not 1 or more; give how many times more is sent than fits through."
        )


class Network:
    """The links of a job's chips."""

    def __init__(self, job: Job) -> None:
        """Takes the job's algorithm for all collectives that it can carry out; without one each takes the quickest it may.

        Raises:
            NeuronprofError: as `check` does.
        """
        check(job.algorithm, job.oversubscription)
        self._job = job
        self._distances = Distances.of(job.chip.topology, int(job.chip.neuronlink.domain))
        self._place = cache(self._placed)

    def transfer(self, call: CollectiveCall, stage: int = 0) -> Transfer:
        """One collective or message that the ranks of a pipeline stage issue.

        All groups do it at the same time, so the ranks of a chip share its links.
        """
        kind = Collective(call.kind)
        if kind is Collective.RECV:
            return Transfer(1, Algorithm.MESH)  # the sender's transfer is the whole message
        if kind is Collective.SEND:
            return self._messages(self._job.ranks(stage), self._job.ranks(call.peer), call.nbytes, 1.0)
        placed = placement, _, _ = self._place(call.group, stage)
        if kind in (Collective.PERMUTE, Collective.SEND_RECV):
            members = call.group.members(int(self._job.ranks(stage)[0]))
            return self._messages(members, np.roll(members, -1), call.nbytes, placement.groups_a_chip)
        return self._composed([self._phase(*part, placed, call.uneven) for part in _parts(kind, call, placement)])

    def _placed(self, group: ReplicaGroup, stage: int) -> _Placed:
        """Where a group stands, its ranks in an UltraServer, and its UltraServers."""
        placement = place(group, self._job, stage)
        one_instance = len(np.unique(placement.fullest // self._job.chips_a_host)) == 1
        inside = Ranks(placement.fullest, self._distances, one_instance)
        return placement, inside, Ranks(np.arange(placement.servers), Distances(), one_instance=False)

    def _phase(self, kind: Collective, nbytes: int, between: bool, placed: _Placed, uneven: float) -> _Phase:
        placement, inside, servers = placed
        ranks, link = (servers, self._job.chip.efa) if between else (inside, self._job.chip.neuronlink)
        motions = ranks.motions(kind, nbytes, link)
        wanted = [m for m in motions if m.algorithm == self._job.algorithm] or motions
        share = placement.sharing * uneven
        own = 0.0 if kind is Collective.BARRIER or between else nbytes / len(ranks)
        return min(
            (phase for motion in wanted for phase in self._priced(motion, link, share, own, between)),
            key=lambda p: p.part.fixed + p.part.wire,
        )

    def _priced(self, motion: Motion, link: Link, share: float, own: float, between: bool) -> Iterable[_Phase]:
        """A motion in the ordinary protocol and, where there is one, in the quick one. own: bytes that a rank moves to its own result."""
        beside, after = (0.0, motion.local + own) if motion.in_turn else (motion.local, own)
        operands = {"hops": motion.hops, "carried": motion.carried, "sharing": share, "beside": beside, "after": after}
        protocols = [""]
        if motion.algorithm is Algorithm.IN_SWITCH:
            protocols = [price.IN_SWITCH]
        elif link.quick_start:
            protocols.append(price.QUICK)
        for protocol in protocols:
            name = ("efa" if between else "neuronlink") + protocol
            part = price.part(name, self._job.chip.numbers, operands, self._job.oversubscription)
            yield _Phase(motion.algorithm, part, motion.sent, between)

    def _composed(self, phases: list[_Phase]) -> Transfer:
        """Phases one after another."""
        sent = {b: round(sum(p.sent for p in phases if p.between is b)) for b in (False, True)}
        algorithm = Algorithm.HIERARCHICAL if len(phases) > 1 else phases[0].algorithm
        return self._transfer(algorithm, *price.composed([p.part for p in phases]), (sent[False], sent[True]))

    def _messages(self, sources: np.ndarray, targets: np.ndarray, nbytes: int, groups: float) -> Transfer:
        """A message from each source to its target, all at once; groups: that many such sets share each chip's links."""
        job, domain = self._job, int(self._job.chip.neuronlink.domain)
        one, other = sources // job.ranks_per_chip, targets // job.ranks_per_chip
        outside = one // domain != other // domain
        crossing = (one != other) & ~outside
        operands = {
            "bytes": nbytes,
            "hops": int(self._distances.hops(one, other)[crossing].max(initial=1)),
            "near": _busiest(one[crossing]) * groups,
            "far": _busiest(one[outside]) * groups,
            "beside": 0 if (crossing | outside).all() else nbytes,
        }
        sent = round(nbytes * float(crossing.mean())), round(nbytes * float(outside.mean()))
        return self._transfer(Algorithm.MESH, price.MESSAGE, operands, sent)

    def _transfer(self, algorithm: Algorithm, name: str, operands: dict[str, float], sent: tuple[int, int]) -> Transfer:
        """sent: bytes of a rank over NeuronLink and over EFA."""
        numbers = self._job.chip.numbers
        found = price.formula_of(name, numbers).evaluate(self._job.values | operands)
        total, wire = (round(found[line] * PICOSECONDS) for line in (formula.RESULT, price.WIRE))
        link = Engine.EFA if sent[1] else Engine.NEURONLINK
        return Transfer(
            max(1, total), algorithm, *sent, min(max(1, total), wire), link, formula.written(name, operands)
        )


def _parts(kind: Collective, call: CollectiveCall, placement: Placement) -> Iterable[tuple[Collective, int, bool]]:
    """The collectives on one kind of link that make up one: kind, bytes, between UltraServers or inside."""
    inside = len(placement.fullest)
    nbytes = 0 if kind is Collective.BARRIER else call.nbytes
    if placement.servers == 1 or inside == 1:
        return [(kind, nbytes, placement.servers > 1)]
    return [(part, -(-nbytes // inside) if shard else nbytes, between) for part, between, shard in _PHASES[kind]]


def _busiest(chips: np.ndarray) -> int:
    """Messages of the chip that sends most; 0 where none does."""
    return int(np.unique(chips, return_counts=True)[1].max(initial=0))
