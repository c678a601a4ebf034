"""Who sends how much to whom: the bytes of collectives and messages laid on pairs of ranks."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze import groups
from neuronprof.analyze.analyzer import EVALUATION, Analyzer, Chip, Context, Scope, State, add
from neuronprof.analyze.grouping import Groups
from neuronprof.terms import Algorithm, Collective, Kind
from neuronprof.trace import schema

if TYPE_CHECKING:
    pass

UNKNOWN = -1  # the destination where a group does not tell its members
_PAIR = ("source", "destination", "axis")
_TWO_PASSES = (Collective.ALL_REDUCE, Collective.BARRIER)  # a reduce-scatter, then an all-gather
_TO_NEXT = (Collective.PERMUTE, Collective.SEND_RECV)


class Call(NamedTuple):
    """What one rank issues: a collective or one side of a message."""

    rank: int
    name: str
    algorithm: str
    replica_group: str
    bytes: int


_CALL = Call._fields
Sent = Iterable[tuple[NDArray[np.int64], float, int]]  # destinations, bytes to each, messages to each


@dataclass(frozen=True)
class Traffic(Analyzer):
    """Bytes and messages from each rank to each other one, by mesh axis, in the training steps, as each collective's algorithm sends.

    With S bytes of the message (the larger side of one rank's), n ranks, and 2 passes for an AllReduce, 1 for others, a rank sends, a pass:
    ring and kangaring: (n-1)/n of S to the next rank of the group, in n-1 messages; mesh: S/n to each other rank (of a Broadcast the root
    is not recorded, so its second share is spread evenly: S/n * (1 + 1/n)); single-step-mesh: S to each other rank, in one pass; rdh: S/2,
    S/4, ... to the ranks 1, 2, 4, ... away; in-switch: S * (1 + 1/n) in all, spread evenly; AllToAll: S/n to each other rank, whatever the
    algorithm; Permute and SendRecv: S to the next rank; Send: S to its peer (Recv sends nothing). hierarchical: with m ranks of the group
    in an UltraServer and s UltraServers, inside S/m to each other one a pass, and between the shard S/m (AllToAll: S) in s parts to the
    rank of the same place in each other UltraServer. Without an algorithm: as ring. Where the text of a group does not tell its members,
    the destination is -1. Only ranks whose events are in the trace are sources. Bytes inside a chip count too.
    """

    name: ClassVar[str] = "traffic"
    scope: ClassVar[Scope] = Scope.MOMENT
    needs: ClassVar[tuple[str, ...]] = schema.select(*_CALL)
    keys: ClassVar[dict[str, tuple[str, ...]]] = {"calls": _CALL}
    tables: ClassVar[dict[str, tuple[str, ...]]] = {"traffic": (*_PAIR, "bytes", "messages")}

    def map(self, chip: Chip) -> State:
        """How often each rank took part in each kind of collective."""
        import pandas as pd

        events = chip.events
        rows = events.take(events.among("kind", [Kind.COLLECTIVE]) & (events["step"] != EVALUATION))
        found = Groups(*(rows[name] for name in _CALL))
        calls = pd.DataFrame(dict(zip(_CALL, found.keys, strict=True)))
        for name in ("name", "algorithm", "replica_group"):
            calls[name] = chip.events.text(name, calls[name].to_numpy(np.int64))
        calls["count"] = found.count
        return {"calls": add(list(_CALL), calls)}

    def finish(self, state: State, context: Context) -> State:
        """The calls laid on pairs; what carries most first. Bytes are whole after summing."""
        import pandas as pd

        server = _ranks_a_server(context)
        frames = [pd.DataFrame({name: np.zeros(0, np.int64) for name in (*_PAIR, "bytes", "messages")})]
        for *about, count in state["calls"][[*_CALL, "count"]].itertuples(index=False, name=None):
            call = Call(*about)
            for destinations, nbytes, messages in sent(call, server):
                pairs = {"source": call.rank, "destination": destinations, "axis": groups.axis(call.replica_group)}
                frames.append(pd.DataFrame({**pairs, "bytes": nbytes * count, "messages": messages * count}))
        table = add(list(_PAIR), pd.concat(frames, ignore_index=True))
        table["bytes"] = np.rint(table["bytes"].to_numpy(float)).astype(np.int64)
        table = table.sort_values(["bytes", *_PAIR], ascending=[False, True, True, True], ignore_index=True)
        return {"traffic": table[list(self.tables["traffic"])]}


def _ranks_a_server(context: Context) -> int:
    """Ranks that NeuronLink joins; 0 if the trace does not tell."""
    machine = context.metadata.get("machine") or {}
    domain = ((machine.get("quantities") or {}).get("neuronlink.domain") or {}).get("value") or 0
    return int(domain * (machine.get("ranks_per_chip") or 0))


def sent(call: Call, server: int) -> Sent:
    """What one rank sends for one call; server: ranks that NeuronLink joins, 0 if unknown."""
    members = groups.members(call.replica_group)
    if call.name == Collective.RECV:
        return []
    if members is None or call.rank not in members:
        return [(np.array([UNKNOWN]), float(call.bytes), 1)]
    if call.name == Collective.SEND or len(members) == 1:
        return [(members[1:], float(call.bytes), 1)]
    passes = 2 if call.name in _TWO_PASSES else 1
    place = int(np.searchsorted(members, call.rank))
    if call.name in _TO_NEXT:
        return [(_next(members, place), float(call.bytes), 1)]
    if call.algorithm == Algorithm.HIERARCHICAL and server:
        return _hierarchical(members, call, passes, server)
    return _flat(members, place, call, passes)


def _flat(members: NDArray[np.int64], place: int, call: Call, passes: int) -> Sent:
    n, size = len(members), float(call.bytes)
    others = np.delete(members, place)
    if call.algorithm == Algorithm.SINGLE_STEP_MESH:
        return [(others, size, 1)]
    if call.algorithm == Algorithm.IN_SWITCH:
        return [(others, size * (1 + 1 / n) / (n - 1), 1)]
    if call.algorithm == Algorithm.RDH:
        steps = range((n - 1).bit_length())
        return [(members[[place ^ (1 << k)]], passes * size / 2 ** (k + 1), passes) for k in steps]
    if call.algorithm in (Algorithm.MESH, Algorithm.HIERARCHICAL) or call.name == Collective.ALL_TO_ALL:
        scattered = call.name == Collective.BROADCAST
        return [(others, passes * size / n * (1 + 1 / n if scattered else 1), 2 if scattered else passes)]
    return [(_next(members, place), passes * size * (n - 1) / n, passes * (n - 1))]


def _next(members: NDArray[np.int64], place: int) -> NDArray[np.int64]:
    return members[[(place + 1) % len(members)]]


def _hierarchical(members: NDArray[np.int64], call: Call, passes: int, server: int) -> Sent:
    of = members // server
    inside = members[of == call.rank // server]
    place = int(np.searchsorted(inside, call.rank))
    peers = np.array([members[of == one][place] for one in np.unique(of) if (of == one).sum() > place], np.int64)
    m, s = len(inside), len(peers)
    shard = call.bytes if call.name == Collective.ALL_TO_ALL else call.bytes / m
    return [
        (inside[inside != call.rank], passes * call.bytes / m, passes),
        (peers[peers != call.rank], passes * shard / s, passes),
    ]
