"""Assemble: from the tape to a Recording of the kept steps."""

from dataclasses import replace
from itertools import accumulate
from typing import Protocol

import numpy as np

from neuronprof.capture import segments
from neuronprof.capture.attribution import EVALUATION, FORWARD, OTHER
from neuronprof.capture.dataflow import Dataflow
from neuronprof.capture.distributed.groups import Book
from neuronprof.capture.recorder import Recorder
from neuronprof.capture.tape import Tape
from neuronprof.errors import NeuronprofError
from neuronprof.graph.ir import Buffer, Graph, Recording, Segment
from neuronprof.terms import Role

_STAYS = (Role.WEIGHTS, Role.GRADIENTS, Role.OPTIMIZER_STATE)


class Engine(Protocol):
    """What this needs of an engine."""

    values: str
    notes: dict[str, int]

    def note(self, key: str, count: int = 1) -> None:
        """Counts a softening."""


def assemble(
    tape: Tape, book: Book, keep: tuple[int, int], engine: Engine, run: tuple[str, tuple[str, ...]]
) -> Recording:
    """The Recording of keep = (steps, warm-up steps); run = (script, argv).

    Raises:
        NeuronprofError: no step was found.
    """
    recorder = tape.recorder
    kept = segments.intervals(tape.steps, recorder, *keep)
    if not kept:
        raise NeuronprofError(
            "No training step was found: the script called no optimizer's step() and no module's forward; "
            "mark the steps by hand with neuronprof.step()."
        )
    flow = Dataflow(recorder, tape.signatures)
    spans: list[tuple[str, int, tuple[int, int]]] = []
    for number, interval in enumerate(kept):
        evaluation, step = segments.split(interval, tape.steps, recorder, flow)
        if evaluation[1] > evaluation[0] and (number or spans):
            segments.relabel(evaluation, recorder)
            spans.append(("evaluation", -1, evaluation))
        spans.append(("step", number, step))
    first, last = spans[0][2][0], spans[-1][2][1]
    gone = _host_operators(tape, flow, first, last)
    places = [0, *accumulate(0 if op in gone else 1 for op in range(first, last))]
    graph = _graph(tape, flow, (first, last), places, gone)
    called = {places[op - first]: c for op, c in tape.calls.items() if first <= op < last and op not in gone}
    graph = replace(graph, collectives=book.calls(called, engine.note))
    made = tuple(Segment(kind, n, places[a - first], places[b - first]) for kind, n, (a, b) in spans)
    axes = book.axes(graph.collectives.values())
    notes = dict(engine.notes)
    return Recording(graph, made, engine.values, tape.roles.parameters, notes, *run, world=book.world, axes=axes)


def _host_operators(tape: Tape, flow: Dataflow, first: int, last: int) -> set[int]:
    """Operators that ran on the host: what was copied to the device afterwards, and the step counters of optimizers."""
    recorder, counters = tape.recorder, tape.roles.on_host
    arrivals = {i for i, s in enumerate(tape.signatures) if s.name == "neuronprof.h2d"}
    gone: set[int] = set()
    arriving: set[int] = set()
    awaited: set[int] = set()
    for op in range(last - 1, first - 1, -1):
        results = flow.results(op)
        made = [b for b in results if recorder.births[b] == op]
        if recorder.signature[op] in arrivals:
            arriving.update(results)
            awaited.update(results)
        elif (
            _counts(op, flow, counters)
            or any(b in arriving for b in made)  # the copy itself, wherever the script asks for it
            or (recorder.phase[op] == OTHER and any(b in awaited for b in results))
        ):
            gone.add(op)
            awaited.update(flow.reads(op))
        arriving.difference_update(made)
        awaited.difference_update(made)
    return gone


def _counts(op: int, flow: Dataflow, counters: set[int]) -> bool:
    """Whether an operator reads or advances step counters."""
    reads = flow.reads(op)
    return bool(counters) and len(reads) > 0 and reads[0] in counters


def _graph(tape: Tape, flow: Dataflow, span: tuple[int, int], places: list[int], gone: set[int]) -> Graph:
    recorder, (first, last) = tape.recorder, span
    ops = [op for op in range(first, last) if op not in gone]
    buffers, number = _buffers(tape, flow, span, places, ops)
    pointer = recorder.operand_ptr
    operands: list[int] = []
    ends = [0]
    for op in ops:
        operands.extend(number[b] if b >= 0 else -1 for b in recorder.operands[pointer[op] : pointer[op + 1]])
        ends.append(len(operands))
    used = sorted({recorder.signature[op] for op in ops})
    renamed = {old: new for new, old in enumerate(used)}
    forward = (recorder.forward[op] for op in ops)
    return Graph(
        signatures=tuple(tape.signatures[i] for i in used),
        signature=np.array([renamed[recorder.signature[op]] for op in ops], np.int32),
        phase=np.array([recorder.phase[op] for op in ops], np.int8),
        module=np.array([recorder.module[op] for op in ops], np.int32),
        source=np.array([recorder.source[op] for op in ops], np.int32),
        region=np.array([recorder.region[op] for op in ops], np.int32),
        forward=np.array([places[f - first] if f >= first and f not in gone else -1 for f in forward], np.int32),
        operand_ptr=np.array(ends, np.int64),
        operands=np.array(operands, np.int32),
        buffers=buffers,
        modules=tuple(tape.attribution.modules.paths),
        sources=tape.attribution.sources.names(),
        regions=tuple(tape.attribution.regions),
    )


def _buffers(
    tape: Tape, flow: Dataflow, span: tuple[int, int], places: list[int], ops: list[int]
) -> tuple[tuple[Buffer, ...], dict[int, int]]:
    """The buffers that the kept operators touch, and what stays on the device untouched; with their new numbers."""
    recorder, (first, last) = tape.recorder, span
    pointer = recorder.operand_ptr
    touched = {b for op in ops for b in recorder.operands[pointer[op] : pointer[op + 1]] if b >= 0}
    for buffer, (role, _) in tape.roles.of.items():
        death = recorder.deaths[buffer]
        if role in _STAYS and recorder.first_use[buffer] < last and not 0 <= death < first:
            touched.add(buffer)
    fed = {b for op in ops if recorder.phase[op] in (FORWARD, EVALUATION) for b in flow.reads(op)}
    number = {old: new for new, old in enumerate(sorted(touched))}
    made = []
    for buffer in number:
        birth, death = _birth(tape, buffer), recorder.deaths[buffer]
        role, name = tape.roles.of.get(buffer) or (_role(recorder, buffer, buffer in fed), "")
        made.append(
            Buffer(
                recorder.nbytes[buffer],
                places[birth - first] if first <= birth < last else -1,
                max(places[death + 1 - first] - 1, 0) if first <= death < last else -1,
                role,
                name,
            )
        )
    return tuple(made), number


def _birth(tape: Tape, buffer: int) -> int:
    """The operator that made a buffer; first use for data from outside PyTorch's dispatcher; -1 for what was there before."""
    recorder = tape.recorder
    birth = recorder.births[buffer]
    role = tape.roles.of.get(buffer, (None, ""))[0]
    return recorder.first_use[buffer] if birth < 0 and role not in _STAYS else birth


def _role(recorder: Recorder, buffer: int, fed: bool) -> Role:
    """The role of a buffer of which nothing else is known; fed: a forward reads it."""
    birth, death = recorder.births[buffer], recorder.deaths[buffer]
    if birth < 0 and not fed:
        return Role.WEIGHTS  # kept by the script beside the model: an average of its weights
    if birth < 0 or recorder.phase[birth] == OTHER:
        return Role.INPUTS if fed else Role.WORKSPACE
    if 0 <= death < len(recorder) and recorder.phase[death] == recorder.phase[birth]:
        return Role.WORKSPACE
    return Role.ACTIVATIONS
