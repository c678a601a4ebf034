"""Groups: the replica group and mesh axis of each process group that a script made."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from neuronprof.capture.distributed.messages import members
from neuronprof.errors import NeuronprofError
from neuronprof.graph.groups import ReplicaGroup
from neuronprof.graph.ir import CollectiveCall
from neuronprof.terms import Collective

_EVERYBODY = "world"
"""The axis of a group of all ranks where there are others, which are the mesh."""
_KNOWN_AS = {"tensor": "tp", "data": "dp", "pipeline": "pp", "context": "cp", "expert": "ep", "sequence": "cp"}


@dataclass(frozen=True, slots=True)
class Call:
    """A recorded collective: as CollectiveCall, but with the group's name in place of its description.

    peer: a rank of the world; number: of a message between two ranks, counted from the first of the run.
    """

    kind: Collective
    nbytes: int
    group: str
    peer: int = -1
    uneven: float = 1.0
    stream: int = 0
    number: int = 0


@dataclass
class Book:
    """What is known of the groups of a run: their ranks, by name, and the name and sizes of the mesh axes."""

    world: int = 1
    rank: int = 0
    ranks: dict[str, list[int]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def began(self, world: int, rank: int) -> None:
        """The script joined a world."""
        self.world, self.rank = world, rank

    def note(self, group: dist.ProcessGroup) -> str:
        """Remembers a group's ranks, also for when it is destroyed; its name."""
        name = str(group.group_name)
        if name not in self.ranks:
            self.ranks[name] = members(group)
            described = _axis_of(group.group_desc or "")
            if described:
                self.names[name] = described
        return name

    def mesh(self, mesh: DeviceMesh) -> None:
        """Remembers the names of a mesh's axes."""
        for axis, size, group in zip(
            mesh.mesh_dim_names or (), mesh.shape, getattr(mesh, "_dim_group_names", ()), strict=False
        ):
            self.names[group] = axis
            if size > 1:
                self.sizes[axis] = size

    def calls(self, calls: dict[int, Call], note: Callable[[str], None]) -> dict[int, CollectiveCall]:
        """The calls with their replica groups; note is told of groups that are no regular pattern."""
        groups = self._replica_groups(calls.values(), note)
        return {
            op: CollectiveCall(c.kind, c.nbytes, groups[c.group], c.peer, c.uneven, c.stream, c.number)
            for op, c in calls.items()
        }

    def axes(self, calls: Iterable[CollectiveCall]) -> dict[str, int]:
        """Mesh axes, name to size: those of the script's device mesh, and of groups that it made otherwise."""
        if self.world == 1:
            return {}
        found = dict(self.sizes)
        for call in calls:
            if call.axis not in found and call.axis != _EVERYBODY and call.ranks > 1 and len(call.group.extents) == 1:
                found[call.axis] = call.ranks
        return found or {"dp": self.world}

    def _replica_groups(self, calls: Iterable[Call], note: Callable[[str], None]) -> dict[str, ReplicaGroup]:
        used: dict[str, list[Call]] = {}
        for call in calls:
            used.setdefault(call.group, []).append(call)
        taken: dict[str, tuple[tuple[int, int], ...]] = {}
        found: dict[str, ReplicaGroup] = {}
        for name, group_calls in used.items():
            extents = self._extents(self.ranks[name], note)
            whole = extents == ((self.world, 1),)
            axis = self.names.get(name) or _guessed(group_calls, extents, whole, alone=len(used) == 1)
            number, base = 2, axis
            while taken.setdefault(axis, extents) != extents:
                axis, number = f"{base}{number}", number + 1
            found[name] = ReplicaGroup(axis, extents)
        return found

    def _extents(self, ranks: list[int], note: Callable[[str], None]) -> tuple[tuple[int, int], ...]:
        try:
            group = ReplicaGroup.of("", ranks)
        except NeuronprofError:
            group = None
        if group is not None and self.world % group.span == 0:
            return group.extents
        note("groups of ranks at irregular distances, taken as neighbours")
        size = next(n for n in range(len(ranks), self.world + 1) if self.world % n == 0)
        return ((size, 1),)


def _axis_of(description: str) -> str:
    """'tp' for Megatron's TENSOR_MODEL_PARALLEL_GROUP and its like; '' for a description that names no axis."""
    words = description.lower().split("_")
    return next((axis for word, axis in _KNOWN_AS.items() if word in words), "") if "parallel" in words else ""


def _guessed(calls: list[Call], extents: tuple[tuple[int, int], ...], whole: bool, alone: bool) -> str:
    """The axis of a group without a name, by what it is used for. whole: it is all ranks; alone: there is no other group."""
    kinds = {call.kind for call in calls}
    if Collective.SEND in kinds or Collective.RECV in kinds:
        return "pp"
    if any(call.stream for call in calls):
        return "dp"
    if whole and not alone:
        return _EVERYBODY
    if Collective.ALL_TO_ALL in kinds:
        return "ep"
    if Collective.PERMUTE in kinds:
        return "cp"
    return "tp" if not whole and (not extents or extents[0][1] == 1) else "dp"
