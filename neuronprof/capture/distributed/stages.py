"""Stages: from what each rank of a pipeline recorded to one recording of all stages."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import reduce

from neuronprof.capture.distributed.launch import NOT_STARTED
from neuronprof.errors import NeuronprofError
from neuronprof.graph.groups import ReplicaGroup
from neuronprof.graph.ir import CollectiveCall, Graph, Recording
from neuronprof.terms import PHASES, Collective, Phase, Role

_OTHER = PHASES.index(Phase.OTHER)
_MESSAGES = (Collective.SEND, Collective.RECV)


@dataclass(frozen=True, slots=True)
class _Message:
    """A message as both of its ends know it: the number-th from one rank to the other, in a step."""

    step: int
    sender: int
    receiver: int
    number: int


def joined(recordings: Mapping[int, Recording], note: Callable[[str, int], None]) -> Recording:
    """One recording of the ranks that exchanged messages, each of which stands for the ranks of its pipeline stage.

    Steps are as many as all of them have. A message that one end recorded in another step than the other end is left out, and noted.

    Raises:
        NeuronprofError: the ranks are at no regular distance, so that nobody can tell which stage the others belong to.
    """
    ranks = sorted(recordings)
    across = _across(ranks, recordings[ranks[0]].world)
    kept = [_whole_steps(recordings[rank], _fewest(recordings)) for rank in ranks]
    messages = [_messages(rank, recording) for rank, recording in zip(ranks, kept, strict=True)]
    sent, received = _ends(kept, messages)
    if sent != received:
        note("messages between pipeline stages in different steps at their two ends, left out", len(sent ^ received))
    stages = tuple(
        replace(recording, graph=_graph(recording.graph, own, sent & received, across))
        for recording, own in zip(kept, messages, strict=True)
    )
    notes = reduce(_summed, (stage.notes for stage in stages))
    notes.pop(NOT_STARTED, None)  # the script did not start them, but they ran
    axes: dict[str, int] = reduce(lambda found, stage: stage.axes | found, stages, {})
    return replace(
        stages[0],
        parameters=sum(stage.parameters for stage in stages),
        notes=notes,
        axes=axes,
        stages=stages,
        pipeline=across.extents[0],
    )


def _across(ranks: list[int], world: int) -> ReplicaGroup:
    group = ReplicaGroup.of("pp", ranks)
    count, stride = group.extents[0]
    if len(group.extents) > 1 or world % group.span or ranks[0] // stride % count:
        shown = ", ".join(map(str, ranks[:8]))
        raise NeuronprofError(
            f"The ranks {shown} of {world} send each other messages, and nobody can tell which of the others do the same; give a number of "
            "ranks that makes whole pipelines."
        )
    return group


def _summed(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in one | other}


def _fewest(recordings: Mapping[int, Recording]) -> int:
    return min(sum(s.kind == "step" for s in recording.segments) for recording in recordings.values())


def _whole_steps(recording: Recording, steps: int) -> Recording:
    """The first steps alone: an evaluation of one stage says nothing without the others'."""
    return replace(recording, segments=tuple(s for s in recording.segments if s.kind == "step")[:steps])


def _messages(rank: int, recording: Recording) -> dict[int, _Message]:
    """The messages of a rank by operator."""
    found = {}
    for op, call in recording.graph.collectives.items():
        step = next((s.step for s in recording.segments if s.start <= op < s.stop), -1)
        if call.kind in _MESSAGES:
            ends = (rank, call.peer) if call.kind == Collective.SEND else (call.peer, rank)
            found[op] = _Message(step, *ends, call.number)
    return found


def _ends(recordings: list[Recording], messages: list[dict[int, _Message]]) -> tuple[set[_Message], set[_Message]]:
    sent: set[_Message] = set()
    received: set[_Message] = set()
    for recording, own in zip(recordings, messages, strict=True):
        for op, message in own.items():
            (sent if recording.graph.collectives[op].kind == Collective.SEND else received).add(message)
    return sent, received


def _graph(graph: Graph, own: dict[int, _Message], common: set[_Message], across: ReplicaGroup) -> Graph:
    """The graph of a stage, in which messages name the stage at the other end; they get the module and phase of what they carry."""
    count, stride = across.extents[0]
    calls = dict(graph.collectives)
    signatures, signature = list(graph.signatures), graph.signature.copy()
    phase, module, buffers = graph.phase.copy(), graph.module.copy(), list(graph.buffers)
    for op, message in own.items():
        call = calls[op]
        if message not in common:
            del calls[op]
            signatures.append(replace(graph.signatures[signature[op]], mutates=(), view=True))
            signature[op] = len(signatures) - 1
            continue
        calls[op] = CollectiveCall(call.kind, call.nbytes, across, call.peer // stride % count)
        like = _carried(graph, op, call.kind)
        if like >= 0 and (phase[op] == _OTHER or not module[op]):
            phase[op], module[op] = phase[like], module[like]
        for buffer in graph.inputs(op) if call.kind == Collective.RECV else ():
            buffers[buffer] = replace(buffers[buffer], role=Role.ACTIVATIONS)
    return replace(
        graph,
        signatures=tuple(signatures),
        signature=signature,
        phase=phase,
        module=module,
        buffers=tuple(buffers),
        collectives=calls,
    )


def _carried(graph: Graph, op: int, kind: str) -> int:
    """The nearest operator of a module that touches what is sent or received, or of none; -1: nothing does."""
    wanted = set(graph.inputs(op))
    near = range(op - 1, -1, -1) if kind == Collective.SEND else range(op + 1, len(graph))
    without = -1
    for other in near:
        touched = graph.outputs(other) if kind == Collective.SEND else graph.inputs(other)
        if other in graph.collectives or graph.phase[other] == _OTHER or wanted.isdisjoint(touched):
            continue
        if graph.module[other]:
            return other
        without = other if without < 0 else without
    return without
