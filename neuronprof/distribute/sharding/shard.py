"""The graph of one rank of a mesh: micro-batches, context, tensor and sequence parallelism, one after the other."""

from collections.abc import Callable

from neuronprof.distribute.sharding.assign import Assignment, assign
from neuronprof.distribute.sharding.placement import Dim, NotDivisibleError
from neuronprof.distribute.sharding.split import sequence_length, shard_context, split_batch
from neuronprof.distribute.sharding.spread import Spread
from neuronprof.errors import NeuronprofError
from neuronprof.graph.groups import Mesh
from neuronprof.graph.ir import Graph, Tensor

Divided = tuple[Graph, dict[str, int]]


class Sharder:
    """Shards one graph as often as asked; what two meshes have in common is done once."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._done: dict[tuple[object, ...], Divided] = {}
        self._assignments: dict[int, Assignment] = {}

    def shard(self, mesh: Mesh, microbatches: int = 1, *, sequence_parallel: bool = False) -> Divided:
        """The graph of one rank along the axes 'tp' and 'cp' for one micro-batch, and what had no rule, with counts.

        Raises:
            NeuronprofError: the model cannot be divided as asked.
        """
        found = self._assignment(mesh.size("tp"))
        key: tuple[object, ...] = ("mb", microbatches)
        divided = self._once(key, lambda: (split_batch(self._graph, microbatches), {}))
        if mesh.size("cp") > 1:
            key, before = (*key, "cp", mesh.group("cp")), divided
            divided = self._once(key, lambda: shard_context(before[0], mesh))
        if found:
            key, whole = (*key, "tp", mesh.group("tp"), sequence_parallel), divided
            divided = self._once(key, lambda: _shard_tensors(whole, found, mesh, sequence_parallel))
        return divided

    def _once(self, key: tuple[object, ...], make: Callable[[], Divided]) -> Divided:
        if key not in self._done:
            self._done[key] = make()
        return self._done[key]

    def _assignment(self, ranks: int) -> Assignment | None:
        """What tensor parallelism divides.

        Raises:
            NeuronprofError: it finds nothing, or what it finds cannot be divided.
        """
        if ranks == 1:
            return None
        if ranks not in self._assignments:
            self._assignments[ranks] = assign(self._graph, ranks)
        found = self._assignments[ranks]
        if found.refused:
            module, size = next(iter(found.refused.items()))
            raise NeuronprofError(
                f"--tp {ranks} cannot divide the {size} heads or columns of {module}; choose a divisor of {size}."
            )
        if not found.rows:
            raise NeuronprofError(
                f"--tp {ranks} finds nothing to divide: no two products of the model follow each other as column and row; "
                "use --dp or --zero for this model."
            )
        return found


def _shard_tensors(divided: Divided, found: Assignment, mesh: Mesh, sequence_parallel: bool) -> Divided:
    graph, notes = divided
    ranks = mesh.size("tp")
    spread = Spread(graph, ranks, mesh.group("tp"), found.place)
    if sequence_parallel:
        length = sequence_length(graph)
        if not length:
            raise NeuronprofError(
                "--sequence-parallel finds no sequence of positions in the model's input; leave it out."
            )
        if length % ranks:
            raise NeuronprofError(
                f"--sequence-parallel cannot divide the sequence of {length} positions among {ranks} ranks; choose another --tp."
            )
        spread.scatter = lambda tensor: _positions(tensor, length)
    try:
        local = spread.run()
    except NotDivisibleError as error:
        raise NeuronprofError(f"--tp {ranks} cannot divide the model: {error}.") from error
    if found.whole_vocabularies:
        spread.notes["vocabulary or classes that --tp does not divide, kept whole"] = found.whole_vocabularies
    return local, notes | spread.notes


def _positions(tensor: Tensor, length: int) -> Dim | None:
    """Where a tensor of activations has its positions: (batch, positions, width), or batch and positions together."""
    if len(tensor.shape) >= 3 and tensor.shape[1] == length:
        return Dim(1, length)
    if len(tensor.shape) == 2 and tensor.shape[0] % length == 0 and tensor.shape[0] >= length:
        return Dim(0, length)
    return None
