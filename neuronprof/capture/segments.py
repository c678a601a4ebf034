"""Segments: the operators between two steps' ends, split into the step and the evaluation before it."""

from collections.abc import Sequence

from neuronprof.capture.attribution import BACKWARD, EVALUATION, FORWARD, OPTIMIZER, OTHER, RECOMPUTE
from neuronprof.capture.dataflow import Dataflow
from neuronprof.capture.recorder import Recorder
from neuronprof.capture.steps import Pass, Steps

Interval = tuple[int, int]
_LEARNING = (BACKWARD, RECOMPUTE, OPTIMIZER)


def intervals(steps: Steps, recorder: Recorder, wanted: int, warmup: int) -> list[Interval]:
    """The kept steps with what came before each: [end of the step before, end of the step).

    The first step begins at the first forward in training mode. The first `warmup` steps are dropped, unless no later one exists.
    """
    ends = steps.ends(len(recorder))
    first = 0 if steps.marks or not steps.training else _first_training(steps, ends)
    starts = [first, *ends]
    found = [(a, b) for a, b in zip(starts, ends, strict=False) if b > a]
    return found[warmup : warmup + wanted] or found[:wanted]


def _first_training(steps: Steps, ends: Sequence[int]) -> int:
    passes = [p for p in steps.passes if ends and p.start < ends[0]]
    return next((p.start for p in passes if p.training), next((p.start for p in passes if p.gradients), 0))


def split(interval: Interval, steps: Steps, recorder: Recorder, flow: Dataflow) -> tuple[Interval, Interval]:
    """(evaluation, step) inside an interval; the evaluation may be empty, and what precedes it belongs to neither.

    A forward without gradients, or in evaluation mode, is an evaluation if nothing of the step uses its results: a frozen teacher,
    a rollout or a generator's samples belong to the step that learns from them.
    """
    start, stop = interval
    inside = [p for p in steps.passes if start <= p.start < stop]
    learns = next((p.start for p in inside if p.training), stop)
    learns = min(learns, next((op for op in range(start, stop) if recorder.phase[op] in _LEARNING), stop))
    candidates = [p for p in inside if not p.training and 0 <= p.stop <= learns]
    if not candidates or learns == stop:
        return (start, start), interval
    feeding = flow.feeding(start, learns, range(learns, stop), persistent=False)
    evaluations = _leading(candidates, feeding)
    if not evaluations:
        return (start, start), interval
    kept = flow.feeding(start, learns, range(learns, stop), persistent=True)
    begin, end = _extent(evaluations, start, learns, flow, kept)
    return (begin, end), (end, stop)


def _leading(candidates: Sequence[Pass], feeding: set[int]) -> list[Pass]:
    found = []
    for candidate in candidates:
        if any(op in feeding for op in range(candidate.start, candidate.stop)):
            break
        found.append(candidate)
    return found


def _extent(evaluations: Sequence[Pass], start: int, learns: int, flow: Dataflow, kept: set[int]) -> Interval:
    """From the preparation of the first evaluation's data to the last operator that the step does not need."""
    begin, end = evaluations[0].start, evaluations[-1].stop
    prepares = flow.feeding(start, begin, range(begin, end), persistent=False)
    while begin > start and begin - 1 in prepares and begin - 1 not in kept:
        begin -= 1
    while end < learns and end not in kept:
        end += 1
    return begin, end


def relabel(evaluation: Interval, recorder: Recorder) -> None:
    """Gives the operators of an evaluation their phase."""
    for op in range(*evaluation):
        if recorder.phase[op] in (FORWARD, OTHER):
            recorder.phase[op] = EVALUATION
