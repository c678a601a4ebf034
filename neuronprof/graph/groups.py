"""Ranks: the mesh that a job lays over them and the replica groups in which they communicate."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np

from neuronprof.errors import NeuronprofError


@dataclass(frozen=True, slots=True)
class ReplicaGroup:
    """The ranks that take part in one collective, described for all ranks at once.

    extents: (count, stride) digits of the rank number, smallest stride first; the group of a rank is every rank that differs from it
    only in these digits, so that one description partitions the world: ((8, 1),) is eight neighbours, ((4, 8),) four ranks eight apart.
    axis: the mesh axis it runs along ('tp', 'dp', 'dp+cp').
    """

    axis: str
    extents: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """Number of ranks in each group."""
        return prod(count for count, _ in self.extents)

    @property
    def span(self) -> int:
        """Smallest number of consecutive ranks, counted from a multiple of it, that holds whole groups."""
        return max((count * stride for count, stride in self.extents), default=1)

    def first(self, ranks: np.ndarray) -> np.ndarray:
        """The first member of the group of each rank, int64, same shape: equal for ranks of one group."""
        lowest = ranks.astype(np.int64)
        for count, stride in self.extents:
            lowest = lowest - (lowest // stride) % count * stride
        return lowest

    def members(self, rank: int) -> np.ndarray:
        """The ranks of the group that `rank` belongs to, ascending, int64[size]."""
        found = self.first(np.array([rank]))
        for count, stride in self.extents:
            found = (found[None, :] + np.arange(count)[:, None] * stride).ravel()
        return np.sort(found)

    def text(self, rank: int) -> str:
        """The group of a rank, compactly: 'tp:0-7' are eight neighbours, 'dp:3-59:8' every eighth rank, 'dp+cp:0-3,16-19' two runs."""
        members = self.members(rank)
        if len(self.extents) <= 1:
            stride = self.extents[0][1] if self.extents else 1
            ends = f"{members[0]}-{members[-1]}" if len(members) > 1 else f"{members[0]}"
            return f"{self.axis}:{ends}" + (f":{stride}" if stride > 1 else "")
        run = self.extents[0][0]
        inner = ReplicaGroup("", self.extents[:1])
        firsts = members.reshape(-1, run)[:, 0] if self.extents[0][1] == 1 else np.unique(inner.first(members))
        shown = [inner.text(int(first))[1:] for first in firsts[:3].tolist()]
        return f"{self.axis}:" + ",".join(shown + [f"...{members[-1]}"] * (len(firsts) > 3))

    @classmethod
    def of(cls, axis: str, ranks: Sequence[int]) -> "ReplicaGroup":
        """The description under which these ranks are one group.

        Raises:
            NeuronprofError: the ranks are no regular pattern, so that nobody can tell the groups of the other ranks.
        """
        left = sorted(ranks)
        if not left:
            raise NeuronprofError("A replica group needs at least one rank.")
        extents: list[tuple[int, int]] = []
        while len(left) > 1:
            stride = left[1] - left[0]
            count = 1
            while count < len(left) and left[count] - left[count - 1] == stride:
                count += 1
            extents.append((count, stride))
            left = left[::count]
        group = cls(axis, tuple(extents))
        if group.members(ranks[0]).tolist() != sorted(ranks):
            shown = ", ".join(map(str, sorted(ranks)[:8]))
            raise NeuronprofError(f"The ranks {shown} of a group are at no regular distance, which is not supported.")
        return group


@dataclass(frozen=True)
class Mesh:
    """The axes of a job's ranks, innermost (stride 1) first: (('tp', 8), ('dp', 4), ('pp', 2)) is 64 ranks.

    inner: axes that begin where another one does and add no ranks: ('ep', 'dp', 4) is four experts' ranks inside each 'dp'. One that is
    larger than that axis goes on along the next.
    """

    axes: tuple[tuple[str, int], ...]
    inner: tuple[tuple[str, str, int], ...] = ()

    @property
    def world(self) -> int:
        """Number of ranks."""
        return prod(size for _, size in self.axes)

    def size(self, axis: str) -> int:
        """Ranks along an axis; 1 for one that the mesh does not have."""
        sizes = dict(self.axes) | {name: size for name, _, size in self.inner}
        return sizes.get(axis, 1)

    def stride(self, axis: str) -> int:
        """Distance in rank numbers between neighbours along an axis."""
        whole = next((outer for name, outer, _ in self.inner if name == axis), axis)
        names = [name for name, _ in self.axes]
        return prod(size for _, size in self.axes[: names.index(whole)]) if whole in names else 1

    def group(self, *axes: str) -> ReplicaGroup:
        """The replica groups along one axis or several together."""
        found = [(self.size(a), self.stride(a)) for a in axes if self.size(a) > 1]
        return ReplicaGroup("+".join(axes), _merged(sorted(found, key=lambda e: e[1])))

    def coordinate(self, axis: str, rank: int) -> int:
        """A rank's place along an axis."""
        return rank // self.stride(axis) % self.size(axis)

    def sizes(self) -> dict[str, int]:
        """Size of each axis, as the trace's metadata has it."""
        return dict(self.axes) | {name: size for name, _, size in self.inner}


def _merged(extents: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Neighbouring digits as one: ((2, 1), (4, 2)) is ((8, 1),)."""
    found = list(extents)
    for (count, stride), (more, next_stride) in pairwise(found):
        if count * stride == next_stride:
            at = found.index((count, stride))
            return _merged([*found[:at], (count * more, stride), *found[at + 2 :]])
    return tuple(found)
