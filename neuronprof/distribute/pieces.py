"""Cuts a step into the pieces of a pipeline: which operators belong to which, and what crosses from one to another."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from neuronprof.errors import NeuronprofError
from neuronprof.graph.ir import Graph
from neuronprof.graph.ops import OpKind, work
from neuronprof.terms import PHASES, Phase, Role

FORWARD, BACKWARD, WEIGHTS, STEP = REGIONS = range(4)
GRADIENT_REGIONS = (BACKWARD, WEIGHTS)
EVERYWHERE = -1  # cheap, from the input data alone: every piece that needs it computes it
_BACKWARD = [PHASES.index(p) for p in (Phase.BACKWARD, Phase.RECOMPUTE)]
# A byte in HBM costs about as much time as so many operations: 4 PFLOP/s over 20 TB/s, halved for what matmuls reach.
_FLOPS_A_BYTE = 100
_LAYER = re.compile(r"^(.*?)\.?(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Pieces:
    """region: of each operator, FORWARD, BACKWARD, WEIGHTS (backward of weights, where it is a pass of its own) or STEP.

    piece: of each operator (EVERYWHERE; for STEP operators what decides is owner).
    owner: of each parameter's name, its piece; layer: of each operator, its repeated block (-1: none).
    """

    count: int
    region: np.ndarray
    piece: np.ndarray
    layer: np.ndarray
    owner: dict[str, int]


def regions(graph: Graph) -> np.ndarray:
    """FORWARD up to the first backward operator, BACKWARD up to the last, STEP after it, int8[n]."""
    backward = np.flatnonzero(np.isin(graph.phase, _BACKWARD))
    region = np.full(len(graph), FORWARD, np.int8)
    if len(backward):
        region[backward[0] : backward[-1] + 1] = BACKWARD
        region[backward[-1] + 1 :] = STEP
    return region


def layers(graph: Graph) -> np.ndarray:
    """The number of the repeated block in which each operator is, int32[n], -1 for none.

    Blocks are the most numerous children of one module that are called by number: 'model.layers.0', 'model.layers.1'.
    """
    matches = [_LAYER.match(path) for path in graph.modules]
    members: dict[str, set[int]] = defaultdict(set)
    for match in matches:
        if match:
            members[match[1]].add(int(match[2]))
    used = set(np.unique(graph.module).tolist())
    found = {
        p: n
        for p, n in members.items()
        if len(n) > 1 and any(m and m[1] == p for i, m in enumerate(matches) if i in used)
    }
    if not found:
        return np.full(len(graph), -1, np.int32)
    prefix = max(found, key=lambda p: len(found[p]))
    numbers = [int(m[2]) if m and m[1] == prefix else -1 for m in matches]
    return np.array(numbers, np.int32)[graph.module]


def cut(graph: Graph, count: int, sizes: Sequence[int] = ()) -> Pieces:
    """Cuts a step into `count` pieces of about the same cost, between blocks; sizes: blocks of each piece, if they are given.

    Raises:
        NeuronprofError: there are fewer blocks than pieces.
    """
    region, layer = regions(graph), layers(graph)
    blocks = sorted({b for b in layer.tolist() if b >= 0})
    if len(blocks) < count:
        raise NeuronprofError(
            f"A pipeline of {count} stages needs as many repeated blocks, and the model has {len(blocks) or 'none'}; give fewer stages."
        )
    place = {b: i for i, b in enumerate(blocks)}
    forward = region == FORWARD
    position = _positions(layer, forward, place)
    costs = _costs(graph, position, forward, len(blocks))
    bounds = np.cumsum(sizes)[:-1] if sizes else _balanced(costs, count)
    of_block = np.searchsorted(bounds, np.arange(len(blocks)), side="right")
    piece = of_block[np.clip(position, 0, len(blocks) - 1)].astype(np.int32)
    piece[position < 0] = 0
    _spread_backward(graph, region, layer, piece, of_block, place)
    piece[_from_data_alone(graph, region)] = EVERYWHERE
    return Pieces(count, region, piece, layer, _owners(graph, region, piece))


def weights_apart(graph: Graph, pieces: Pieces) -> Pieces:
    """Puts the operators that make nothing but gradients of weights into a region of their own.

    Those are the products (or what else contracts the batch) that make a gradient, and the casts and sums behind them (Qi et al. 2023).
    """
    kinds = [work(s).kind for s in graph.signatures]
    region = pieces.region.copy()
    readers: dict[int, list[int]] = defaultdict(list)
    for op in np.flatnonzero(region == BACKWARD)[::-1].tolist():
        signature, outputs = graph.signatures[graph.signature[op]], graph.outputs(op)
        if signature.view:
            continue
        made = {*outputs, *(graph.inputs(op)[i] for i in signature.mutates)} - {-1}
        if made and all(_only_for_weights(graph, b, readers[b], region, kinds) for b in made):
            region[op] = WEIGHTS
        for buffer in graph.inputs(op):
            readers[buffer].append(op)
    return replace(pieces, region=region)


def _only_for_weights(graph: Graph, buffer: int, readers: list[int], region: np.ndarray, kinds: list[OpKind]) -> bool:
    """Whether a buffer is a gradient of weights, or becomes one by element-wise work alone."""
    if buffer < 0 or graph.buffers[buffer].role is Role.GRADIENTS:
        return True
    pointwise = (OpKind.ELEMENTWISE, OpKind.COPY)
    return bool(readers) and all(region[r] == WEIGHTS and kinds[graph.signature[r]] in pointwise for r in readers)


def _positions(layer: np.ndarray, forward: np.ndarray, place: dict[int, int]) -> np.ndarray:
    """Which block a forward operator stands in or after: -1 before the first, the number of blocks after the last."""
    ordered = np.array([place.get(b, -1) for b in layer.tolist()])
    last_block = np.flatnonzero(forward & (ordered >= 0)).max(initial=-1)
    position = np.maximum.accumulate(np.where(forward, ordered, -1))
    position[(np.arange(len(layer)) > last_block) & forward] = len(place)
    return position


def _costs(graph: Graph, position: np.ndarray, forward: np.ndarray, blocks: int) -> np.ndarray:
    """Cost of each block, with what stands before the first and after the last of them."""
    cost = np.array([w.flops + _FLOPS_A_BYTE * w.nbytes for w in map(work, graph.signatures)], float)[graph.signature]
    costs = np.zeros(blocks)
    np.add.at(costs, np.clip(position[forward], 0, blocks - 1), cost[forward])
    return costs


def even(blocks: int, count: int) -> tuple[int, ...]:
    """Blocks of each of `count` pieces; the last pieces, and then the first, have one less where they do not divide evenly."""
    most = -(-blocks // count)
    sizes = [most] * count
    # The output layer stands in the last piece, the embedding in the first.
    outer = sorted(range(count), key=lambda piece: (min(count - 1 - piece, piece), -piece))
    for piece in outer[: most * count - blocks]:
        sizes[piece] -= 1
    return tuple(sizes)


def _balanced(costs: np.ndarray, count: int) -> np.ndarray:
    """First block of each piece but the first, such that the costliest piece costs least."""
    blocks, total = len(costs), np.concatenate([[0], np.cumsum(costs)])
    best = np.full((count + 1, blocks + 1), np.inf)
    chosen = np.zeros((count + 1, blocks + 1), int)
    best[0, 0] = 0
    for pieces in range(1, count + 1):
        for stop in range(pieces, blocks + 1):
            worst = np.maximum(best[pieces - 1, :stop], total[stop] - total[:stop])
            chosen[pieces, stop] = int(np.argmin(worst))
            best[pieces, stop] = worst[chosen[pieces, stop]]
    bounds, stop = [], blocks
    for pieces in range(count, 1, -1):
        stop = int(chosen[pieces, stop])
        bounds.append(stop)
    return np.array(bounds[::-1])


def _spread_backward(
    graph: Graph, region: np.ndarray, layer: np.ndarray, piece: np.ndarray, of_block: np.ndarray, place: dict[int, int]
) -> None:
    """Backward operators go where their block is, else where their forward operator is, else where the one before them is."""
    last = int(of_block[-1])
    for op in np.flatnonzero(region == BACKWARD).tolist():
        forward, block = int(graph.forward[op]), place.get(int(layer[op]), -1)
        if block >= 0:
            last = int(of_block[block])
        elif forward >= 0 and region[forward] == FORWARD:
            last = int(piece[forward])
        piece[op] = last


def _from_data_alone(graph: Graph, region: np.ndarray) -> list[int]:
    """Forward operators that need no weight, not even through others: masks, positions, shifted labels."""
    of_weights: set[int] = {
        i for i, b in enumerate(graph.buffers) if b.role in (Role.WEIGHTS, Role.OPTIMIZER_STATE, Role.GRADIENTS)
    }
    found = []
    for op in np.flatnonzero(region == FORWARD).tolist():
        signature = graph.signatures[graph.signature[op]]
        if of_weights.isdisjoint(graph.inputs(op)) and not signature.name.startswith("aten._local_scalar_dense"):
            found.append(op)
        else:
            of_weights.update(graph.outputs(op))
            of_weights.update(graph.inputs(op)[i] for i in signature.mutates)
    return found


def _owners(graph: Graph, region: np.ndarray, piece: np.ndarray) -> dict[str, int]:
    """The piece that has each parameter: the first one that computes with it."""
    owner: dict[str, int] = {}
    votes: dict[str, Counter[int]] = defaultdict(Counter)
    for op in np.flatnonzero(region == FORWARD).tolist():
        for buffer in graph.inputs(op):
            if buffer >= 0 and graph.buffers[buffer].role is Role.WEIGHTS and piece[op] >= 0:
                votes[graph.buffers[buffer].name][int(piece[op])] += 1
    for name, counted in votes.items():
        owner[name] = min(counted)
    return owner


def parameter(name: str, owner: dict[str, int]) -> str | None:
    """The parameter that a gradient or an optimizer state belongs to: they have its name, states with their own behind."""
    while name and name not in owner:
        name = name.rpartition(".")[0]
    return name or None
