"""The graph of one rank of a mesh: tensor, sequence and context parallelism, one axis after the other."""

from neuronprof.distribute.sharding.assign import assign
from neuronprof.distribute.sharding.placement import Dim, NotDivisibleError
from neuronprof.distribute.sharding.split import sequence_length, shard_context
from neuronprof.distribute.sharding.spread import Spread
from neuronprof.errors import NeuronprofError
from neuronprof.graph.groups import Mesh
from neuronprof.graph.ir import Graph, Tensor


def shard(graph: Graph, mesh: Mesh, *, sequence_parallel: bool = False) -> tuple[Graph, dict[str, int]]:
    """The graph of one rank along the axes 'tp' and 'cp', and what had no rule, with counts.

    Raises:
        NeuronprofError: the model cannot be divided as asked.
    """
    graph, notes = shard_context(graph, mesh)
    if mesh.size("tp") == 1:
        return graph, notes
    divided, more = _shard_tensors(graph, mesh, sequence_parallel)
    return divided, notes | more


def _shard_tensors(graph: Graph, mesh: Mesh, sequence_parallel: bool) -> tuple[Graph, dict[str, int]]:
    ranks = mesh.size("tp")
    found = assign(graph, ranks)
    if found.refused:
        module, size = next(iter(found.refused.items()))
        raise NeuronprofError(
            f"--tp {ranks} cannot divide the {size} heads or columns of {module}; choose a divisor of {size}."
        )
    if not found.columns:
        raise NeuronprofError(
            f"--tp {ranks} finds nothing to divide: no two products of the model follow each other as column and row; "
            "use --dp or --zero for this model."
        )
    spread = Spread(graph, ranks, mesh.group("tp"), found.place)
    if sequence_parallel:
        length = sequence_length(graph)
        if not length or length % ranks:
            raise NeuronprofError(
                f"--sequence-parallel cannot divide the sequence of {length or 1} positions among {ranks} ranks; choose another --tp."
            )
        spread.scatter = lambda tensor: _positions(tensor, length)
    try:
        divided = spread.run()
    except NotDivisibleError as error:
        raise NeuronprofError(f"--tp {ranks} cannot divide the model: {error}.") from error
    if found.whole_vocabularies:
        spread.notes["vocabulary that --tp does not divide, kept whole"] = found.whole_vocabularies
    return divided, spread.notes


def _positions(tensor: Tensor, length: int) -> Dim | None:
    """Where a tensor of activations has its positions: (batch, positions, width), or batch and positions together."""
    if len(tensor.shape) >= 3 and tensor.shape[1] == length:
        return Dim(1, length)
    if len(tensor.shape) == 2 and tensor.shape[0] % length == 0 and tensor.shape[0] >= length:
        return Dim(0, length)
    return None
