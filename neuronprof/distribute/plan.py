"""Plans a layout: from the graph of a step on one device to what each pipeline stage runs."""

from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from neuronprof.distribute.chunks import Chunks
from neuronprof.distribute.data_parallel import data_parallel
from neuronprof.distribute.layout import Layout
from neuronprof.distribute.pieces import BACKWARD, FORWARD, STEP, Pieces, cut, regions
from neuronprof.distribute.schedules import Pass, schedule
from neuronprof.distribute.sharding import Sharder
from neuronprof.distribute.zero import Shares, keep_parts, share_out
from neuronprof.errors import NeuronprofError
from neuronprof.graph.edit import GraphEditor
from neuronprof.graph.groups import Mesh, ReplicaGroup
from neuronprof.graph.ir import CollectiveCall, Graph, Signature
from neuronprof.graph.ops import OpKind, work
from neuronprof.terms import PHASES, Collective, Phase

_FORWARD_PHASE = PHASES.index(Phase.FORWARD)


@dataclass(frozen=True)
class StagePlan:
    """What a pipeline stage runs. chunks: graphs; order: (index of chunk, micro-batch; -1 for the step) as the schedule runs them."""

    chunks: tuple[Graph, ...]
    order: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Plan:
    """A layout of a step. mesh: its ranks; stages: one entry a pipeline stage; notes: what had no rule, with counts."""

    mesh: Mesh
    layout: Layout
    stages: tuple[StagePlan, ...]
    notes: dict[str, int] = field(default_factory=dict)


def plan(graph: Graph, layout: Layout) -> Plan:
    """Lays a training step for one device out over the ranks of a layout.

    Raises:
        NeuronprofError: the model cannot be laid out as asked.
    """
    return Planner(graph).plan(layout)


class Planner:
    """Plans layouts of one step; what several layouts have in common is done once."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._sharder = Sharder(graph)
        self._chunks: dict[object, Chunks] = {}
        self._pipelines: dict[object, _Pipeline] = {}

    def plan(self, layout: Layout) -> Plan:
        """As the function `plan`.

        Raises:
            NeuronprofError: the model cannot be laid out as asked.
        """
        layout.validate()
        mesh = layout.mesh()
        if layout.passes > 1 or layout.pp > 1:
            _refuse_accumulation(self._graph)
        graph, notes = self._sharder.shard(mesh, layout.microbatches, sequence_parallel=layout.sequence_parallel)
        replicas = mesh.group("cp", "dp") if layout.cp > 1 else mesh.group("dp")
        if layout.pp == 1 and layout.passes == 1:
            return Plan(mesh, layout, (StagePlan((_reduced(graph, layout, replicas),), ((0, 0),)),), notes)
        across, accumulates = mesh.group("pp"), layout.passes > 1
        key = (id(graph), layout.pp, layout.vp, layout.even_stages, across, accumulates)
        if key not in self._chunks:
            count = layout.pp * layout.vp
            pieces = cut(graph, count, even=layout.even_stages) if count > 1 else _whole(graph)
            self._chunks[key] = Chunks(graph, pieces, layout.pp, across, accumulate=accumulates)
        alike = replace(layout, accumulate=1 + accumulates)
        if alike not in self._pipelines:
            self._pipelines[alike] = _Pipeline(layout, replicas, across, self._chunks[key])
        return Plan(mesh, layout, self._pipelines[alike].stages(layout.passes), notes)


def _reduced(graph: Graph, layout: Layout, replicas: ReplicaGroup) -> Graph:
    """With the collectives of data parallelism."""
    if layout.zero:
        return share_out(graph, Shares(replicas, layout.zero, layout.bucket_bytes))
    return data_parallel(graph, replicas, layout.bucket_bytes)


def _refuse_accumulation(graph: Graph) -> None:
    """Refuses a step that runs its model several times: its micro-batches would have to be told apart.

    Raises:
        NeuronprofError: how to write the script instead.
    """
    counts: dict[tuple[int, int], int] = {}
    for op in np.flatnonzero(graph.phase == _FORWARD_PHASE).tolist():
        if graph.module[op] and work(graph.signatures[graph.signature[op]]).kind in (OpKind.GEMM, OpKind.GATHER):
            key = int(graph.signature[op]), int(graph.module[op])
            counts[key] = counts.get(key, 0) + 1
    if counts and min(counts.values()) > 1:
        raise NeuronprofError(
            f"The script runs its model {min(counts.values())} times a step to accumulate gradients; let it run the whole batch at "
            "once, and --microbatches cuts it."
        )


class _Pipeline:
    """The stages of a pipeline, or of one stage that accumulates micro-batches."""

    def __init__(self, layout: Layout, replicas: ReplicaGroup, across: ReplicaGroup, chunks: Chunks) -> None:
        self._layout, self._replicas, self._across, self._chunks = layout, replicas, across, chunks
        self._made: dict[object, Graph] = {}

    def stages(self, passes: int) -> tuple[StagePlan, ...]:
        """What each stage runs in a step of so many micro-batches."""
        return tuple(self._stage(stage, passes) for stage in range(self._layout.pp))

    def _stage(self, stage: int, passes: int) -> StagePlan:
        layout = self._layout
        actions = schedule(layout.schedule, layout.pp, stage, passes, layout.vp)
        chunks: list[Graph] = []
        index: dict[tuple[Pass, int, bool], int] = {}
        order: list[tuple[int, int]] = []
        for action in actions:
            if action.kind is Pass.WEIGHTS:
                continue  # with the chunk of the inputs: see _kind
            last = action.kind is not Pass.FORWARD and action.microbatch == passes - 1
            key = (action.kind, action.virtual, last or layout.zero >= 2)
            if key not in index:
                index[key] = len(chunks)
                chunks.append(self._once(partial(self._chunk, action.virtual * layout.pp + stage, action.kind, key[2])))
            order.append((index[key], action.microbatch))
        for virtual in range(layout.vp):
            order.append((len(chunks), -1))
            chunks.append(self._once(partial(self._step, virtual * layout.pp + stage)))
        return StagePlan(tuple(chunks), tuple(order))

    def _once(self, make: partial[Graph]) -> Graph:
        key = (make.func.__name__, make.args)
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _chunk(self, piece: int, kind: Pass, reduce: bool) -> Graph:
        graph = self._chunks.graph(piece, FORWARD if kind is Pass.FORWARD else BACKWARD)
        if kind is Pass.FORWARD or not reduce:
            return self._gathered(graph)
        if self._layout.zero:
            return share_out(graph, Shares(self._replicas, self._layout.zero, self._layout.bucket_bytes))
        return data_parallel(graph, self._replicas, self._layout.bucket_bytes)

    def _gathered(self, graph: Graph) -> Graph:
        """A chunk that reduces nothing; with ZeRO 3 it gathers its weights all the same."""
        if self._layout.zero < 3:
            shares = Shares(self._replicas, self._layout.zero, self._layout.bucket_bytes)
            return keep_parts(graph, shares) if self._layout.zero else graph
        return share_out(graph, Shares(self._replicas, self._layout.zero, self._layout.bucket_bytes))

    def _step(self, piece: int) -> Graph:
        graph = self._chunks.graph(piece, STEP)
        if self._layout.zero:
            graph = share_out(graph, Shares(self._replicas, self._layout.zero, self._layout.bucket_bytes))
        return _norms_together(graph, self._across) if self._layout.pp > 1 else graph


def _whole(graph: Graph) -> Pieces:
    region = regions(graph)
    piece = np.zeros(len(graph), np.int32)
    names = {b.name: 0 for b in graph.buffers if b.name}
    return Pieces(1, region, piece, piece - 1, names)


def _norms_together(graph: Graph, across: ReplicaGroup) -> Graph:
    """The norm of all gradients is one number for all stages: they add up their parts of it."""
    editor = GraphEditor(graph)
    for op in range(len(graph)):
        editor.copy(op)
        signature, outputs = graph.signatures[graph.signature[op]], graph.outputs(op)
        if signature.name.startswith("aten.linalg_vector_norm") and outputs and signature.outputs[0].numel == 1:
            norm = replace(signature.outputs[0])
            one = Signature("_c10d_functional.all_reduce_.default", (norm,), (norm,), (across.axis,), (0,))
            call = CollectiveCall(Collective.ALL_REDUCE, norm.nbytes, across)
            editor.issue(one, [outputs[0], outputs[0]], op, call)
    return editor.finish()
