"""How long collectives and messages take on the links of a job's chips, and what they put on them."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np

from neuronprof.errors import NeuronprofError
from neuronprof.graph.groups import ReplicaGroup
from neuronprof.graph.ir import CollectiveCall
from neuronprof.hardware.spec import Link
from neuronprof.simulate.cost import PICOSECONDS
from neuronprof.simulate.job import Job
from neuronprof.simulate.network.algorithms import Motion, Ranks
from neuronprof.simulate.network.placement import Distances, Placement, place
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
    picoseconds in which `link` is occupied; the rest is latency and what moves inside chips.
    """

    picoseconds: int
    algorithm: Algorithm
    neuronlink: int = 0
    efa: int = 0
    wire: int = 0
    link: Engine = Engine.NEURONLINK


@dataclass(frozen=True, slots=True)
class _Phase:
    """A collective on one kind of link: seconds that do not depend on others, seconds on the wire, and bytes that a rank sends."""

    algorithm: Algorithm
    fixed: float
    wire: float
    sent: float
    between: bool

    @property
    def seconds(self) -> float:
        return self.fixed + self.wire


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
        share = placement.sharing * uneven * (self._job.oversubscription if between else 1.0)
        own = 0.0 if kind is Collective.BARRIER or between else nbytes / len(ranks)
        return min(
            (phase for motion in wanted for phase in _priced(motion, link, share, own, between)),
            key=lambda p: p.seconds,
        )

    def _composed(self, phases: list[_Phase]) -> Transfer:
        """Phases one after another; where a message is cut into pieces, one piece's phases run beside the next one's."""
        pieces = max(1.0, self._job.chip.efa.pieces)
        wires = [p.wire for p in phases]
        wire = sum(wires) / pieces + max(wires) * (1 - 1 / pieces)
        sent = {b: round(sum(p.sent for p in phases if p.between is b)) for b in (False, True)}
        algorithm = Algorithm.HIERARCHICAL if len(phases) > 1 else phases[0].algorithm
        return _transfer(algorithm, sum(p.fixed for p in phases), wire, sent[False], sent[True])

    def _messages(self, sources: np.ndarray, targets: np.ndarray, nbytes: int, groups: float) -> Transfer:
        """A message from each source to its target, all at once; groups: that many such sets share each chip's links.

        A message has no steps between which it could stand, so the quick protocol's start and the ordinary one's bandwidth are taken.
        """
        job, near, far = self._job, self._job.chip.neuronlink, self._job.chip.efa
        one, other = sources // job.ranks_per_chip, targets // job.ranks_per_chip
        outside = one // int(near.domain) != other // int(near.domain)
        crossing = (one != other) & ~outside
        hops = int(self._distances.hops(one, other)[crossing].max(initial=1))
        fixed, wire = (near.quick_start or near.start) + hops * near.latency, 0.0
        if crossing.any():
            wire = _busiest(one[crossing]) * groups * nbytes * hops / (near.bandwidth * near.efficiency)
        if outside.any():
            rate = far.bandwidth * far.efficiency / job.oversubscription
            fixed = (far.quick_start or far.start) + far.latency
            wire = max(wire, _busiest(one[outside]) * groups * nbytes / rate)
        if near.local_bandwidth and not (crossing | outside).all():
            fixed += max(0.0, nbytes / near.local_bandwidth - wire)
        sent = [round(nbytes * float(where.mean())) for where in (crossing, outside)]
        return _transfer(Algorithm.MESH, fixed, wire, *sent)


def _parts(kind: Collective, call: CollectiveCall, placement: Placement) -> Iterable[tuple[Collective, int, bool]]:
    """The collectives on one kind of link that make up one: kind, bytes, between UltraServers or inside."""
    inside = len(placement.fullest)
    nbytes = 0 if kind is Collective.BARRIER else call.nbytes
    if placement.servers == 1 or inside == 1:
        return [(kind, nbytes, placement.servers > 1)]
    return [(part, -(-nbytes // inside) if shard else nbytes, between) for part, between, shard in _PHASES[kind]]


def _priced(motion: Motion, link: Link, share: float, own: float, between: bool) -> Iterable[_Phase]:
    """A motion in the ordinary protocol and, where there is one, in the quick one. own: bytes that a rank moves to its own result."""
    local, copied = (b / link.local_bandwidth if link.local_bandwidth else 0.0 for b in (motion.local, own))
    efficiency = link.in_switch_efficiency if motion.algorithm is Algorithm.IN_SWITCH else link.efficiency
    protocols = [(link.start, efficiency)]
    if link.quick_start and motion.algorithm is not Algorithm.IN_SWITCH:
        protocols.append((link.quick_start, link.quick_efficiency))
    for start, reached in protocols:
        wire = motion.carried * share / (link.bandwidth * reached)
        beside = local if motion.in_turn else max(0.0, local - wire)
        fixed = (start + motion.hops * link.latency if motion.hops else 0.0) + beside + copied
        yield _Phase(motion.algorithm, fixed, wire, motion.sent, between)


def _busiest(chips: np.ndarray) -> int:
    """Messages of the chip that sends most."""
    return int(np.unique(chips, return_counts=True)[1].max())


def _transfer(algorithm: Algorithm, fixed: float, wire: float, neuronlink: int, efa: int) -> Transfer:
    total = max(1, round((fixed + wire) * PICOSECONDS))
    return Transfer(
        total,
        algorithm,
        neuronlink,
        efa,
        min(total, round(wire * PICOSECONDS)),
        Engine.EFA if efa else Engine.NEURONLINK,
    )
