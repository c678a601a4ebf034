"""dI/dt throttling of the PE array: after idling it works at a part of its speed for a while (NKI architecture guides).

It concerns single MATMULs of operators in detail. When each of them is cold depends on when it runs, and that on how long the others
take: the step is run, and run again, until nothing changes.
"""

from dataclasses import replace

import numpy as np

from neuronprof.loops import loop
from neuronprof.program import Opcode, Queue
from neuronprof.simulate import arbiter, priced
from neuronprof.simulate.fleet import Fleet
from neuronprof.simulate.job import Job

_MOST_RUNS = 8  # after which what still changes is a few instructions at the edge


def throttled(instructions: Fleet, job: Job) -> Fleet:
    """The same instructions with the durations of cold MATMULs."""
    opcode = np.concatenate([p.opcode for p in instructions.programs])
    engine, tiles = job.chip.tensor, opcode == Opcode.MATMUL_TILE
    if not tiles.any() or not engine.cold_time:
        return instructions
    found, warm = instructions, instructions.duration
    for _ in range(_MOST_RUNS):
        end = arbiter.ends(found)
        start, cold = end - found.duration, np.zeros(len(found))
        for stage in range(len(found.programs)):
            rows = np.flatnonzero((found.stage == stage) & (found.queue == Queue.TENSOR))
            cold[rows] = _cold(
                start[rows], end[rows], warm[rows], round(engine.cold_time * priced.PICOSECONDS), engine.cold_speed
            )
        cold = np.round(cold * tiles, 6)
        if found.cold is not None and (cold == found.cold).all():
            break
        found = replace(found, duration=_durations(found, job, cold), cold=cold)
    return found


def _durations(found: Fleet, job: Job, cold: np.ndarray) -> np.ndarray:
    """Durations, with those of a program's own instructions taken anew; the network's stay."""
    duration = found.duration.copy()
    for stage, program in enumerate(found.programs):
        own = slice(int(found.base[stage]), int(found.base[stage + 1]))
        again = priced.durations(program, job, cold[own])
        duration[own] = np.where(program.opcode == Opcode.MATMUL_TILE, again, duration[own])
    return duration


@loop("float64[::1](int64[::1], int64[::1], int64[::1], int64, float64)")
def _cold(start: np.ndarray, end: np.ndarray, warm: np.ndarray, time: int, speed: float) -> np.ndarray:
    """The share of each instruction of a PE array in which it is cold. warm: how long each takes when it is not.

    The array is cold at first, until it has worked for `time`, and again when it was busy for less than half of the last `time`.
    """
    cold = np.zeros(len(start))
    worked, first, busy = (
        0.0,
        0,
        0,
    )  # since it was cold; the first instruction in the window, and how long all in it take
    for i in range(len(start)):
        since = start[i] - time
        while first < i and end[first] <= since:
            busy -= end[first] - start[first]
            first += 1
        before = max(since - start[first], 0) if first < i else 0  # of the first one, what lies before the window
        if worked >= time and 2 * (busy - before) < time:
            worked = 0.0
        left = time - worked  # for which it stays cold
        if left > 0 and warm[i] > 0:
            cold[i] = min(1.0, left * speed / warm[i])
        worked += warm[i] * (1 - cold[i] + cold[i] / speed)
        busy += end[i] - start[i]
    return cold
