"""Plans a layout: from the graph of a step on one device to what each pipeline stage runs."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from neuronprof.distribute.accumulation import first_pass, model_passes
from neuronprof.distribute.chunks import Chunks
from neuronprof.distribute.data_parallel import Replicas, data_parallel
from neuronprof.distribute.expert_parallel import SharedExperts, share_experts
from neuronprof.distribute.layout import Layout
from neuronprof.distribute.pieces import (
    BACKWARD,
    FORWARD,
    STEP,
    WEIGHTS,
    Pieces,
    cut,
    even,
    layers,
    regions,
    weights_apart,
)
from neuronprof.distribute.schedules import Pass, schedule
from neuronprof.distribute.sharding import Sharder
from neuronprof.distribute.zero import Shares, keep_parts, share_out
from neuronprof.errors import NeuronprofError
from neuronprof.graph.edit import GraphEditor
from neuronprof.graph.groups import Mesh, ReplicaGroup
from neuronprof.graph.ir import CollectiveCall, Graph, Signature
from neuronprof.terms import Collective


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
    """Plans layouts of one step; what several layouts have in common is done once.

    sizes: blocks of each pipeline piece, if they are given. Of more than three pieces only three are given, the first, an inner one and the
    last, and the graph has no others: it stands for a model whose inner pieces are all alike.
    """

    def __init__(self, graph: Graph, sizes: tuple[int, ...] = ()) -> None:
        self._graph, self._sizes = graph, sizes
        self._whole = Sharder(graph)
        self._chunks: dict[object, Chunks] = {}
        self._pipelines: dict[object, _Pipeline] = {}
        self._experts: dict[tuple[int, ReplicaGroup], SharedExperts] = {}

    def plan(self, layout: Layout) -> Plan:
        """As the function `plan`.

        Raises:
            NeuronprofError: the model cannot be laid out as asked.
        """
        layout.validate()
        mesh, sharder, parts = layout.mesh(), self._whole, layout.microbatches
        if layout.passes > 1 or layout.pp > 1:
            sharder, own = self._accumulated
            layout = _with_own_microbatches(layout, own)
            parts = layout.microbatches // own
        graph, notes = sharder.shard(mesh, parts, sequence_parallel=layout.sequence_parallel)
        graph, replicas = self._with_experts(graph, layout, mesh)
        if layout.pp == 1 and layout.passes == 1:
            return Plan(mesh, layout, (StagePlan((_reduced(graph, layout, replicas),), ((0, 0),)),), notes)
        across, accumulates = mesh.group("pp"), layout.passes > 1
        apart = layout.schedule == "zero-bubble"
        key = (id(graph), layout.pp, layout.vp, layout.even_stages, across, accumulates, apart)
        if key not in self._chunks:
            pieces = self._pieces(graph, layout)
            pieces = weights_apart(graph, pieces) if apart else pieces
            self._chunks[key] = Chunks(graph, pieces, layout.pp, across, accumulate=accumulates)
        alike = replace(layout, accumulate=1 + accumulates)
        if alike not in self._pipelines:
            self._pipelines[alike] = _Pipeline(layout, replicas, across, self._chunks[key])
        return Plan(mesh, layout, self._pipelines[alike].stages(layout.passes), notes)

    def _with_experts(self, graph: Graph, layout: Layout, mesh: Mesh) -> tuple[Graph, Replicas]:
        """The graph of a rank that has its part of the experts, and who has the same weights."""
        group = mesh.group("cp", "dp") if layout.cp > 1 else mesh.group("dp")
        if layout.ep == 1:
            return graph, Replicas(group)
        key = id(graph), mesh.group("ep")
        if key not in self._experts:
            self._experts[key] = share_experts(graph, key[1])
        shared = self._experts[key]
        return shared.graph, Replicas(group, layout.expert_replicas(), shared.names)

    @cached_property
    def _accumulated(self) -> tuple[Sharder, int]:
        """The step as if it ran its model once, and how often it does."""
        passes = model_passes(self._graph)
        return (Sharder(first_pass(self._graph, passes)), len(passes)) if len(passes) > 1 else (self._whole, 1)

    def _pieces(self, graph: Graph, layout: Layout) -> Pieces:
        count = layout.pp * layout.vp
        if count == 1:
            return _whole(graph)
        if self._sizes:
            return cut(graph, len(self._sizes), self._sizes)
        blocks = len(set(layers(graph).tolist()) - {-1})
        return cut(graph, count, even(blocks, count) if layout.even_stages and blocks >= count else ())


def _with_own_microbatches(layout: Layout, own: int) -> Layout:
    """The layout with the micro-batches of a script that accumulates the gradients of so many.

    Raises:
        NeuronprofError: those that are asked for are no parts of them.
    """
    if layout.microbatches == 1:
        return replace(layout, microbatches=own)
    if layout.microbatches % own:
        raise NeuronprofError(
            f"The script accumulates the gradients of {own} micro-batches, of which --microbatches {layout.microbatches} is no "
            f"multiple; give {own} or leave it out."
        )
    return layout


def _reduced(graph: Graph, layout: Layout, replicas: Replicas) -> Graph:
    """With the collectives of data parallelism."""
    if layout.zero:
        graph = share_out(graph, _shares(layout, replicas))
        for group in _norm_groups(layout, None, replicas):
            graph = _norms_together(graph, group)
        return graph
    return data_parallel(graph, replicas, None if layout.grad_sync == "after" else layout.bucket_bytes)


def _shares(layout: Layout, replicas: Replicas) -> Shares:
    return Shares(replicas, layout.zero, layout.bucket_bytes, layout.grad_sync == "after", layout.prefetch)


_REGIONS = {Pass.FORWARD: FORWARD, Pass.BACKWARD: BACKWARD, Pass.INPUTS: BACKWARD, Pass.WEIGHTS: WEIGHTS}


class _Pipeline:
    """The stages of a pipeline, or of one stage that accumulates micro-batches."""

    def __init__(self, layout: Layout, replicas: Replicas, across: ReplicaGroup, chunks: Chunks) -> None:
        self._layout, self._replicas, self._across, self._chunks = layout, replicas, across, chunks
        self._made: dict[object, Any] = {}

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
            last = action.kind is not Pass.FORWARD and action.microbatch == passes - 1
            reduces = (last and layout.grad_sync == "overlapped") or layout.zero >= 2
            key = (action.kind, action.virtual, reduces)
            if key not in index:
                index[key] = len(chunks)
                chunks.append(self._at(action.virtual * layout.pp + stage, self._chunk, action.kind, key[2]))
            order.append((index[key], action.microbatch))
        once = self._once_a_step([virtual * layout.pp + stage for virtual in range(layout.vp)])
        order += [(len(chunks) + i, -1) for i in range(len(once))]
        return StagePlan((*chunks, *once), tuple(order))

    def _once_a_step(self, pieces: list[int]) -> list[Graph]:
        """What a stage with these pieces runs after its micro-batches: tied gradients come before all steps, tied weights after them."""
        before = [self._exchange(piece, before=True) for piece in pieces]
        steps = [self._at(piece, self._step) for piece in pieces]
        after = [self._exchange(piece, before=False) for piece in pieces]
        return [graph for graph in (*before, *steps, *after) if graph is not None]

    def _exchange(self, piece: int, *, before: bool) -> Graph | None:
        """What the first and the last piece exchange of tied weights."""
        count, cut_into = self._layout.pp * self._layout.vp, self._chunks.pieces
        if count == cut_into:
            return self._chunks.exchange(piece, before=before)
        if piece not in (0, count - 1):
            return None
        graph = self._chunks.exchange(0 if piece == 0 else cut_into - 1, before=before)
        return self._between(graph, cut_into - 1, count - 1) if graph and piece == 0 else graph

    def _at(self, piece: int, make: Callable[..., Graph], *args: Any) -> Graph:
        """What a piece runs: made once for all pieces that are alike, but for their neighbours."""
        count, cut_into = self._layout.pp * self._layout.vp, self._chunks.pieces
        like = piece if count == cut_into else 0 if piece == 0 else 2 if piece == count - 1 else 1
        key = (make.__name__, like, args)
        if key not in self._made:
            self._made[key] = make(like, *args)
        return self._made[key] if count == cut_into else self._between(self._made[key], like, piece)

    def _between(self, graph: Graph, like: int, piece: int) -> Graph:
        """A chunk with the messages of another piece that is like it."""
        calls = {
            op: replace(call, peer=(piece + call.peer - like) % self._layout.pp)
            if call.kind in (Collective.SEND, Collective.RECV)
            else call
            for op, call in graph.collectives.items()
        }
        return replace(graph, collectives=calls)

    def _chunk(self, piece: int, kind: Pass, reduce: bool) -> Graph:
        graph = self._chunks.graph(piece, _REGIONS[kind])
        if kind is Pass.FORWARD or not reduce:
            return self._gathered(graph)
        if self._layout.zero:
            return share_out(graph, _shares(self._layout, self._replicas))
        return data_parallel(graph, self._replicas, self._layout.bucket_bytes)

    def _gathered(self, graph: Graph) -> Graph:
        """A chunk that reduces nothing; with ZeRO 3 it gathers its weights all the same."""
        shares = _shares(self._layout, self._replicas)
        if self._layout.zero < 3:
            return keep_parts(graph, shares) if self._layout.zero else graph
        return share_out(graph, shares)

    def _step(self, piece: int) -> Graph:
        graph = self._chunks.graph(piece, STEP)
        if self._layout.zero:
            graph = share_out(graph, _shares(self._layout, self._replicas))
        elif self._layout.grad_sync == "after":
            graph = data_parallel(graph, self._replicas, None)
        for group in _norm_groups(self._layout, self._across, self._replicas):
            graph = _norms_together(graph, group)
        return graph


def _whole(graph: Graph) -> Pieces:
    region = regions(graph)
    piece = np.zeros(len(graph), np.int32)
    names = {b.name: 0 for b in graph.buffers if b.name}
    return Pieces(1, region, piece, piece - 1, names)


def _norm_groups(layout: Layout, across: ReplicaGroup | None, replicas: Replicas) -> list[ReplicaGroup]:
    """The groups over which each rank has its part of the gradients: stages, and with ZeRO replicas."""
    groups = [across if layout.pp > 1 else None, replicas.group if layout.zero else None]
    return [g for g in groups if g is not None and g.size > 1]


def _norms_together(graph: Graph, across: ReplicaGroup) -> Graph:
    """The norm of all gradients is one number for a group: its ranks add up their parts of it."""
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
