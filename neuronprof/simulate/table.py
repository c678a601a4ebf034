"""The instructions of a fleet as the kernels read them: which rows of a block's state each one reads and writes."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from neuronprof.simulate import walkorder
from neuronprof.simulate.fleet import ARRAY, FIXED, QUEUES, SEND, SERVED, Fleet
from neuronprof.simulate.kernels import Column, Fixed, Span

_SERVERS = 3  # HBM, NeuronLink, EFA
_FACTORS = 3  # of the chip, of the PE array, of the link


class Rows:
    """Where a block's state has what: the first row of each kind; count: of all.

    Rows that are always the same (see kernels.Fixed), then of every stage its queues, servers, busy times, waits for peers, and factors of
    chip, PE array and link; then the ends of instructions that others wait for.
    """

    def __init__(self, stages: int, slots: int) -> None:
        self.queue = len(Fixed)
        self.server = self.queue + stages * QUEUES
        self.busy = self.server + stages * _SERVERS
        self.peers = self.busy + stages * QUEUES
        self.factor = self.peers + stages
        self.slot = self.factor + _FACTORS * stages
        self.count = self.slot + slots


@dataclass(frozen=True)
class Table:
    """Instructions in the order in which they are walked.

    code: int32[n, columns of kernels.Column]; times: float64[n, columns of kernels.Span]; deps: int32[dependencies, 2], row of the state
    and instruction; before: int32[2, n], the instruction before each in its queue and on its HBM or link, by index in the fleet.
    """

    rows: Rows
    code: np.ndarray
    times: np.ndarray
    deps: np.ndarray
    before: np.ndarray

    @cached_property
    def kind(self) -> np.ndarray:
        """Kind of each instruction, as in Fleet."""
        return np.ascontiguousarray(self.code[:, Column.KIND])


def table(fleet: Fleet, order: np.ndarray, before: np.ndarray) -> Table:
    """The table of a fleet. order: from `arbiter.order`; before: from `fleet.neighbours`.

    Raises:
        NeuronprofError: stages wait for each other in a circle.
    """
    walked = walkorder.sequence(fleet, order)
    slot, slots = walkorder.slots(fleet, walked)
    rows = Rows(len(fleet.programs), slots)
    code = np.empty((len(fleet), len(Column)), np.int32)
    for column, values in _columns(fleet, rows, slot):
        code[:, column] = values[walked]
    times = np.empty((len(fleet), len(Span)))
    for span, durations in zip(Span, (fleet.duration, fleet.wire, fleet.delay), strict=True):
        times[:, span] = durations[walked]
    deps = np.stack([rows.slot + slot[fleet.deps], fleet.deps], axis=1).astype(np.int32)
    return Table(rows, code, times, deps, before)


def _columns(fleet: Fleet, rows: Rows, slot: np.ndarray) -> list[tuple[Column, np.ndarray]]:
    stage, everything = fleet.stage, np.arange(len(fleet), dtype=np.int32)
    served = (fleet.kind == SERVED) | (fleet.link >= 0)
    server = rows.server + _SERVERS * stage + np.where(fleet.kind == SERVED, 0, 1 + fleet.link)
    factor = rows.factor + _FACTORS * stage
    return [
        (Column.KIND, fleet.kind),
        (Column.QUEUE, rows.queue + stage * QUEUES + fleet.queue),
        (Column.SERVER, np.where(served, server, -1)),
        (Column.BUSY, rows.busy + stage * QUEUES + fleet.queue),
        (Column.PEERS, rows.peers + stage),
        (Column.FACTOR, np.where(fleet.scale == FIXED, int(Fixed.ONE), factor + (fleet.scale == ARRAY))),
        (Column.LINK_FACTOR, factor + 2),
        (Column.SLOT, np.where(slot < 0, int(Fixed.NOBODY), rows.slot + slot)),
        (Column.PARTNER, _partners(fleet, rows, slot)),
        (Column.STAGE, stage),
        (Column.FIRST, fleet.deps_ptr[:-1]),
        (Column.LAST, fleet.deps_ptr[1:]),
        (Column.GROUP, fleet.group),
        (Column.NUMBER, everything - fleet.base[stage]),
        (Column.INDEX, everything),
    ]


def _partners(fleet: Fleet, rows: Rows, slot: np.ndarray) -> np.ndarray:
    """Of a RECV the end of its SEND, of a SEND the link of the stage that it goes to."""
    found = np.full(len(fleet), int(Fixed.ONE), np.int64)
    received = np.flatnonzero(fleet.partner >= 0)
    found[received] = rows.slot + slot[fleet.partner[received]]
    sent = np.flatnonzero(fleet.kind == SEND)
    found[sent] = rows.factor + _FACTORS * np.maximum(fleet.peer[sent], 0) + 2
    return found
