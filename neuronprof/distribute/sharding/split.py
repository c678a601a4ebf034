"""Micro-batches and context parallelism: the batch or the sequence is divided, weights are not."""

from collections import Counter

from neuronprof.distribute.sharding.placement import NotDivisibleError, Partial, Shard
from neuronprof.distribute.sharding.spread import Spread
from neuronprof.errors import NeuronprofError
from neuronprof.graph.groups import Mesh
from neuronprof.graph.ir import Graph, Tensor
from neuronprof.terms import Role

_TABLE = 2  # dimensions of a batch of sequences
_INTEGERS = ("int", "uint")


def split_batch(graph: Graph, parts: int) -> Graph:
    """The same step with 1/parts of the batch; weights, their gradients and the optimizer stay as they are.

    Raises:
        NeuronprofError: the batch cannot be cut so.
    """
    if parts == 1:
        return graph
    size = batch_size(graph)
    if not size or size % parts:
        raise NeuronprofError(
            f"{parts} micro-batches cannot be cut from the script's batch of {size or 1}; give it a batch that is a multiple of {parts}, "
            "or fewer --microbatches."
        )
    try:
        return Spread(graph, parts, None, _seeds(graph, 0, size)).run()
    except NotDivisibleError as error:
        raise NeuronprofError(f"The batch of {size} cannot be cut into {parts} micro-batches: {error}.") from error


def shard_context(graph: Graph, mesh: Mesh) -> tuple[Graph, dict[str, int]]:
    """The graph of one rank that has its part of every sequence; gradients of weights stay sums over the ranks.

    Raises:
        NeuronprofError: the sequence cannot be divided.
    """
    ranks = mesh.size("cp")
    if ranks == 1:
        return graph, {}
    length = sequence_length(graph)
    if not length:
        raise NeuronprofError(f"--cp {ranks} finds no sequence of positions in the model's input; use another axis.")
    if length % ranks:
        raise NeuronprofError(f"--cp {ranks} cannot divide the sequence of {length} positions; choose a divisor of it.")
    seeds = _seeds(graph, 1, length)
    if not seeds:
        raise NeuronprofError(
            f"--cp {ranks} finds no input data with a sequence of {length} positions; use another axis."
        )
    spread = Spread(graph, ranks, mesh.group("cp"), seeds, leaves_sums=True)
    try:
        return spread.run(), spread.notes
    except NotDivisibleError as error:
        raise NeuronprofError(f"--cp {ranks} cannot divide the sequence of {length} positions: {error}.") from error


def _inputs(graph: Graph) -> dict[int, Tensor]:
    """The step's input data: buffer to the layout in which it is seen first."""
    found: dict[int, Tensor] = {}
    data = {i for i, b in enumerate(graph.buffers) if b.role is Role.INPUTS}
    for op in range(len(graph)):
        operands = graph.inputs(op) + graph.outputs(op)
        if data.isdisjoint(operands):
            continue
        signature = graph.signatures[graph.signature[op]]
        for buffer, tensor in zip(operands, (*signature.inputs, *signature.outputs), strict=True):
            if buffer in data and tensor.shape and tensor.numel > 1:
                found.setdefault(buffer, tensor)
    return found


def _common_size(inputs: dict[int, Tensor], index: int) -> int:
    sizes = Counter(t.shape[index] for t in inputs.values() if len(t.shape) > index)
    return sizes.most_common(1)[0][0] if sizes else 0


def batch_size(graph: Graph) -> int:
    """Samples that a step takes: the first extent that most of its input data has; 0 if it has none."""
    return _common_size(_inputs(graph), 0)


def tokens(graph: Graph) -> int | None:
    """Tokens that a step takes: what its first embedding looks up; None for a model without one."""
    for signature in (graph.signatures[s] for s in graph.signature.tolist()):
        if signature.name.startswith("aten.embedding") and len(signature.inputs) > 1:
            return signature.inputs[1].numel
    return None


def sequence_length(graph: Graph) -> int:
    """Positions that the model sees: of what its first embedding looks up, else of its first norm, else of its tokens; 0: none."""
    for op in range(len(graph)):
        signature = graph.signatures[graph.signature[op]]
        if "aten.embedding." in signature.name and len(signature.inputs[1].shape) == _TABLE:
            indices = signature.inputs[1]
            # Positions are neighbours in memory, also where the batch comes second.
            transposed = bool(indices.stride) and indices.stride[0] < indices.stride[1]
            return indices.shape[0] if transposed else indices.shape[1]
        if "_norm" in signature.name and signature.inputs and len(signature.inputs[0].shape) == _TABLE + 1:
            return signature.inputs[0].shape[1]
    sequences = {b: t for b, t in _inputs(graph).items() if t.dtype.startswith(_INTEGERS) and len(t.shape) == _TABLE}
    return _common_size(sequences, 1)


def _seeds(graph: Graph, index: int, size: int) -> dict[int, Shard | Partial]:
    """Input data that has the dimension `index`, of at least `size`, divided."""
    seeds: dict[int, Shard | Partial] = {}
    for buffer, tensor in _inputs(graph).items():
        if len(tensor.shape) > index and size <= tensor.shape[index] <= size + 1 and tensor.stride:
            seeds[buffer] = Shard(max(1, tensor.stride[index]), size)
    return seeds
