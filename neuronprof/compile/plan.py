"""Memory plan: which tensors stay in SBUF between groups, and which are loaded from HBM, stored there or spilled."""

import heapq
from collections import defaultdict, deque
from dataclasses import dataclass, field

from neuronprof.compile.fuse import Group
from neuronprof.graph.ir import Graph
from neuronprof.graph.ops import OpKind
from neuronprof.terms import Role

# Half of SBUF holds tensors that stay; the other half the tiles in flight.
RESIDENT_SHARE = 0.5
_NEVER = 1 << 60
# What is loaded twice within so many groups counts as reuse that SBUF missed: the projections of an attention, the parts of a loss.
_NEAR = 8
_PERSISTENT = (Role.WEIGHTS, Role.GRADIENTS, Role.OPTIMIZER_STATE)
# These work on HBM directly and find nothing in SBUF.
HBM_ONLY = frozenset({OpKind.COLLECTIVE, OpKind.TRANSFER, OpKind.HOST_SYNC})

# So does a gather, of whose rows nobody knows whether they are the same.
_READS_ROWS = HBM_ONLY | {OpKind.GATHER}


@dataclass(frozen=True, slots=True)
class Move:
    """One tensor between HBM and SBUF.

    spill: it leaves SBUF only for want of room: the same phase wants it back, and nothing else needs it in HBM. reload: bytes of a load
    that another group near by has loaded already, which SBUF had no room to keep.
    """

    buffer: int
    nbytes: int
    spill: bool
    reload: int = 0


@dataclass(slots=True)
class GroupPlan:
    """What a group loads before, finds resident in SBUF, and stores after. kept: bytes that are resident once it has begun."""

    loads: list[Move] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    stores: list[Move] = field(default_factory=list)
    kept: int = 0


class _Residents:
    """The resident half of SBUF. Evicts what is needed furthest in the future, which is optimal when the program is known (Belady)."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.used = 0
        self._size: dict[int, int] = {}
        self._next_use: dict[int, int] = {}
        self._furthest: list[tuple[int, int]] = []

    def __contains__(self, buffer: int) -> bool:
        return buffer in self._size

    def keep(self, buffer: int, nbytes: int, next_use: int) -> None:
        """Keeps a buffer until its next use, unless others are needed sooner and fill the room."""
        self.drop(buffer)
        if next_use == _NEVER or nbytes > self._capacity:
            return
        self._size[buffer], self._next_use[buffer] = nbytes, next_use
        self.used += nbytes
        heapq.heappush(self._furthest, (-next_use, buffer))
        while self.used > self._capacity:
            use, victim = heapq.heappop(self._furthest)
            if self._next_use.get(victim) == -use:
                self.drop(victim)

    def drop(self, buffer: int) -> None:
        """Gives up a buffer's room, if it has any."""
        self.used -= self._size.pop(buffer, 0)
        self._next_use.pop(buffer, None)


class _Uses:
    """The groups that read each buffer, asked in the order of the groups."""

    def __init__(self, groups: list[Group]) -> None:
        self._later: dict[int, deque[int]] = defaultdict(deque)
        for group in groups:
            for buffer in group.reads:
                self._later[buffer].append(group.index)

    def after(self, buffer: int, index: int) -> int:
        """The first group after `index` that reads the buffer."""
        later = self._later[buffer]
        while later and later[0] <= index:
            later.popleft()
        return later[0] if later else _NEVER


class _Loaded:
    """What groups have loaded before, so that a load of the same bytes tells of reuse that is missed."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._last: dict[
            int, tuple[Group, int]
        ] = {}  # buffer: who loaded it last, and the bytes that its phase has loaded of it

    def before(self, buffer: int, group: Group) -> int:
        """Bytes of a buffer that the group loads, and groups near by have loaded; parts of it that nobody has are not among them."""
        last, nbytes = self._last.get(buffer, (group, 0))
        if last.phase != group.phase or group.kind in _READS_ROWS or group.index - last.index > _NEAR:
            return 0
        return min(group.reads[buffer], max(0, nbytes + group.reads[buffer] - self._graph.buffers[buffer].nbytes))

    def by(self, group: Group) -> None:
        """Notes what a group loads and overwrites."""
        for buffer, nbytes in group.reads.items() if group.kind not in _READS_ROWS else ():
            last, before = self._last.get(buffer, (group, 0))
            self._last[buffer] = (group, nbytes + (before if last.phase == group.phase else 0))
        for buffer in group.writes:
            self._last.pop(buffer, None)


def plan(graph: Graph, groups: list[Group], sbuf: float) -> list[GroupPlan]:
    """A plan for each group. sbuf: bytes of the logical core's SBUF.

    A tensor that dies in SBUF is never written to HBM. One that has to leave is written by the group that made it, once, so that
    its eviction is free and its next reader loads it.
    """
    residents = _Residents(int(sbuf * RESIDENT_SHARE))
    uses, loaded = _Uses(groups), _Loaded(graph)
    plans = [GroupPlan() for _ in groups]
    writer: dict[int, int] = {}
    reloaded_by: dict[tuple[int, int], list[int]] = defaultdict(list)
    for group, entry in zip(groups, plans, strict=True):
        for buffer, nbytes in group.reads.items():
            if buffer in residents and group.kind not in HBM_ONLY:
                entry.resident.append(buffer)
                continue
            made_by = writer.get(buffer)
            if made_by is not None:
                reloaded_by[buffer, made_by].append(group.index)
            spill = made_by is not None and _is_spill(graph, buffer, groups[made_by], group)
            entry.loads.append(Move(buffer, nbytes, spill, 0 if spill else loaded.before(buffer, group)))
        loaded.by(group)
        for buffer in {**group.reads, **group.writes} if group.kind not in HBM_ONLY else ():
            residents.keep(buffer, graph.buffers[buffer].nbytes, uses.after(buffer, group.index))
        for buffer in group.writes if group.kind in HBM_ONLY else ():
            residents.drop(buffer)
        entry.kept = residents.used
        writer.update(dict.fromkeys(group.writes, group.index))
    _add_stores(graph, groups, plans, writer, reloaded_by)
    return plans


def _is_spill(graph: Graph, buffer: int, made_by: Group, wanted_by: Group) -> bool:
    return (
        wanted_by.kind not in HBM_ONLY
        and made_by.phase == wanted_by.phase
        and graph.buffers[buffer].role not in _PERSISTENT
    )


def _add_stores(
    graph: Graph,
    groups: list[Group],
    plans: list[GroupPlan],
    writer: dict[int, int],
    reloaded_by: dict[tuple[int, int], list[int]],
) -> None:
    """Stores what a later group will not find in SBUF, and what outlives the segment."""
    for (buffer, made_by), wanted_by in reloaded_by.items():
        stays = graph.buffers[buffer].death < 0 and writer[buffer] == made_by
        spill = not stays and all(_is_spill(graph, buffer, groups[made_by], groups[i]) for i in wanted_by)
        plans[made_by].stores.append(Move(buffer, groups[made_by].writes[buffer], spill))
    for buffer, made_by in writer.items():
        lives_on = graph.buffers[buffer].death < 0 and graph.buffers[buffer].nbytes > 0
        if lives_on and (buffer, made_by) not in reloaded_by:
            plans[made_by].stores.append(Move(buffer, groups[made_by].writes[buffer], spill=False))
