"""Collectives over NeuronLink and EFA: which algorithm a message takes, how long it moves, and what each rank puts on each link."""

from dataclasses import dataclass
from math import ceil, log2

from neuronprof.graph.ir import CollectiveCall
from neuronprof.hardware.spec import Chip, Link
from neuronprof.simulate.cost import PICOSECONDS
from neuronprof.terms import Algorithm, Collective, Engine

# Messages that each rank sends, as a share of (ranks - 1) / ranks times the message: an all-reduce is a reduce-scatter and an all-gather.
_ROUNDS = {
    Collective.ALL_REDUCE: 2,
    Collective.ALL_GATHER: 1,
    Collective.REDUCE_SCATTER: 1,
    Collective.ALL_TO_ALL: 1,
    Collective.BROADCAST: 1,
    Collective.BARRIER: 0,
}


@dataclass(frozen=True, slots=True)
class Transfer:
    """A collective on the links.

    picoseconds: from the last rank's arrival to the end; neuronlink, efa: bytes that one rank sends on each. wire: the part of
    picoseconds in which `link` is occupied; the rest is latency.
    """

    picoseconds: int
    algorithm: Algorithm
    neuronlink: int
    efa: int
    wire: int = 0
    link: Engine = Engine.NEURONLINK


def collective(
    call: CollectiveCall,
    chip: Chip,
    ranks_per_chip: int,
    *,
    algorithm: str | None = None,
    oversubscription: float = 1.0,
) -> Transfer:
    """One collective among call.ranks ranks that stand on consecutive chips.

    Inside one UltraServer the links of a chip are shared by its ranks. A group that spans several goes hierarchically: reduce-scatter
    inside, all-reduce between the UltraServers over EFA, all-gather inside (Neuron runtime guide, inter-node collectives).
    """
    inside = min(call.ranks, ranks_per_chip * int(chip.neuronlink.domain))
    servers = ceil(call.ranks / inside)
    rounds = _ROUNDS.get(Collective(call.kind), 1)
    sharing = min(ranks_per_chip, call.ranks)
    sent = rounds * call.nbytes * (inside - 1) // inside
    chosen = Algorithm(algorithm) if algorithm else _algorithm(call.nbytes, inside, chip.neuronlink)
    latency, wire = rounds * _steps(chosen, inside) * chip.neuronlink.latency, _wire(sent, chip.neuronlink, sharing)
    outside = 0
    if servers > 1:
        shard = call.nbytes // inside
        outside = rounds * shard * (servers - 1) // servers
        between = _algorithm(shard, servers, chip.efa)
        latency += rounds * _steps(between, servers) * chip.efa.latency
        wire += _wire(outside, chip.efa, sharing) * oversubscription
        chosen = Algorithm.HIERARCHICAL
    total, moving = max(1, round((latency + wire) * PICOSECONDS)), round(wire * PICOSECONDS)
    return Transfer(total, chosen, sent, outside, min(moving, total), Engine.EFA if outside else Engine.NEURONLINK)


def _algorithm(nbytes: int, ranks: int, link: Link) -> Algorithm:
    """Mesh for small messages, recursive halving-doubling for middling ones, ring above (Neuron runtime guide, intra-node collectives)."""
    if nbytes <= link.mesh_limit:
        return Algorithm.MESH
    return Algorithm.RDH if nbytes <= link.rdh_limit and ranks & (ranks - 1) == 0 else Algorithm.RING


def _steps(algorithm: Algorithm, ranks: int) -> float:
    """Latencies in a row of one round: mesh one, halving-doubling log2 of the ranks, ring one a neighbour."""
    return {Algorithm.MESH: 1.0, Algorithm.RDH: log2(max(ranks, 2)), Algorithm.RING: float(ranks - 1)}[algorithm]


def _wire(nbytes: int, link: Link, sharing: int) -> float:
    return nbytes / (link.bandwidth * link.efficiency / sharing)
