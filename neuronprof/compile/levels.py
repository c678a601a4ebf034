"""What HBM holds through a segment, by category."""

from collections import defaultdict

from neuronprof.compile.fuse import Group
from neuronprof.graph.ir import Graph
from neuronprof.terms import ROLES, Role

_PERSISTENT = (Role.WEIGHTS, Role.GRADIENTS, Role.OPTIMIZER_STATE)


def hbm_levels(
    graph: Graph, groups: list[Group], in_hbm: set[int], spans: list[tuple[int, int]]
) -> list[tuple[int, int, int]]:
    """Level changes as (instruction after whose end it holds, index in terms.ROLES, bytes held from then on); -1: from the start.

    in_hbm: buffers that some group loads or stores; spans: first and last instruction of each group. Counted is what stands in HBM:
    weights, gradients and optimizer state while they live, and every other tensor that some group loads or stores, from the group that
    makes it to the one after which it is free.
    """
    position = _group_positions(graph, groups)
    changes: dict[tuple[int, int], int] = defaultdict(int)
    for index, buffer in enumerate(graph.buffers):
        if not buffer.nbytes or not (index in in_hbm or (buffer.birth < 0 and buffer.role in _PERSISTENT)):
            continue
        role = ROLES.index(buffer.role)
        born = spans[position[buffer.birth]][0] if buffer.birth >= 0 and spans else -1
        changes[born, role] += buffer.nbytes
        if buffer.death >= 0 and spans:
            changes[max(born, spans[position[buffer.death]][1]), role] -= buffer.nbytes
    held = dict.fromkeys(range(len(ROLES)), 0)
    levels = []
    for (instruction, role), delta in sorted(changes.items()):
        if delta or instruction < 0:
            held[role] += delta
            levels.append((instruction, role, held[role]))
    return levels


def _group_positions(graph: Graph, groups: list[Group]) -> list[int]:
    """For each operator the latest group that has started by then."""
    position = [-1] * len(graph)
    for group in groups:
        for op in group.ops:
            position[op] = group.index
    latest = 0
    for op, index in enumerate(position):
        latest = max(latest, index)
        position[op] = latest
    return position
