"""When each instruction of a rank ran, and why not sooner."""

from dataclasses import dataclass

import numpy as np

from neuronprof.program import DMA_OPCODES, Opcode, Program, Queue, among
from neuronprof.terms import WaitFor

WAITS = tuple(WaitFor)
NONE, DATA, DMA, HBM, LINK, PEER, SBUF = (
    WAITS.index(w)
    for w in (WaitFor.NONE, WaitFor.DATA, WaitFor.DMA, WaitFor.HBM, WaitFor.LINK, WaitFor.PEER, WaitFor.SBUF)
)

HBM_OPCODES = among(Opcode, {*DMA_OPCODES} - {Opcode.COPY_TO_DEVICE, Opcode.COPY_TO_HOST})
_BY_QUEUE = np.where([q.name.startswith("DMA") for q in Queue], DMA, DATA).astype(np.int8)


@dataclass(frozen=True)
class Timing:
    """When each instruction of one rank's program ran, columns of n instructions.

    start, end int64, picoseconds. wait int64: how long it stood at the head of its queue, ready but for one thing; wait_for int8: that
    thing, index in WAITS (several operands are one thing). released_by int32: the instruction whose end let it start (-1: none), in the
    program of rank released_on (int32).
    """

    start: np.ndarray
    end: np.ndarray
    wait: np.ndarray
    wait_for: np.ndarray
    released_by: np.ndarray
    released_on: np.ndarray


def served_by_hbm(program: Program) -> np.ndarray:
    """Instructions that HBM serves one after another, bool[n]: DMA between HBM and SBUF."""
    return HBM_OPCODES[program.opcode]


def dependency_causes(program: Program) -> np.ndarray:
    """What waiting for each of program.deps is called, int8 index in WAITS: room, a DMA, or another engine's data."""
    causes = _BY_QUEUE[program.queue[program.deps]]
    causes[program.deps_space] = SBUF
    return causes
