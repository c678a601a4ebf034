"""Semaphores: which queue waits for which other one, how long, and the count that ends each of the longest waits."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze.analyzer import State
from neuronprof.analyze.flow import DATA, DMA, SBUF, Step
from neuronprof.analyze.grouping import Groups
from neuronprof.analyze.walk import Walk, Whole
from neuronprof.terms import WaitFor

if TYPE_CHECKING:
    import pandas as pd

_SIGNALLED = (
    WaitFor.DATA,
    WaitFor.DMA,
    WaitFor.SBUF,
)  # HBM, links and peers hold an instruction up without a signal of a queue
_LONGEST = 50


@dataclass(frozen=True)
class Semaphores(Walk):
    """Queues that wait for the semaphores of others, in the median step.

    Each queue (of an engine, or of DMA) counts its semaphore up with every instruction that is done, and an instruction elsewhere that
    needs the result, or the room in SBUF, waits for that count. semaphores: waits are such needs; stood: instructions at the head of their
    queue that this semaphore held up longest, for waited_ns in all. semaphore_waits: the longest of them, and the count that ended each.
    """

    name: ClassVar[str] = "semaphores"
    tables: ClassVar[dict[str, tuple[str, ...]]] = {
        "semaphores": ("queue", "semaphore", "waits", "stood", "waited_ns", "longest_ns"),
        "semaphore_waits": (
            "rank",
            "id",
            "queue",
            "name",
            "op_name",
            "layer",
            "start_ts",
            "wait_ns",
            "semaphore",
            "count",
        ),
    }

    def answer(self, whole: Whole) -> State:
        """Of as many ranks as a sample has."""
        import pandas as pd

        step = whole.sample
        if step is None or not len(step):
            return {name: pd.DataFrame(columns=list(columns)) for name, columns in self.tables.items()}
        queues = _Queues(step)
        return {"semaphores": _pairs(step, queues), "semaphore_waits": _longest(step, queues)}


class _Queues:
    """number: of each row, its queue; names: of each number, 'dma[0]'; count: of its queue's semaphore when the row is done."""

    def __init__(self, step: Step) -> None:
        events = step.events
        queues = Groups(events["engine"], events["queue"])
        (engine, queue), self.number = queues.keys, queues.position
        self.names = [f"{e}[{q}]" for e, q in zip(events.text("engine", engine), queue.tolist(), strict=True)]
        own = np.flatnonzero(step.parent < 0)
        line = Groups(events["rank"][own], self.number[own]).position
        order = np.argsort(line, kind="stable")
        first = np.flatnonzero(np.diff(line[order], prepend=-1))
        self.count = np.zeros(len(step), np.int64)
        self.count[own[order]] = np.arange(len(own)) - np.repeat(first, np.diff(first, append=len(own))) + 1


def _stood(step: Step, queues: _Queues) -> NDArray[np.intp]:
    """Rows that a semaphore of another queue of their rank held up, and whose predecessor there the trace holds."""
    before, rank = step.released, step.events["rank"]
    held = step.events.among("wait_for", _SIGNALLED) & (step.events["wait_ns"] > 0) & (before >= 0) & (step.parent < 0)
    found: NDArray[np.intp] = np.flatnonzero(held & (rank[before] == rank) & (queues.number[before] != queues.number))
    return found


def _pairs(step: Step, queues: _Queues) -> "pd.DataFrame":
    import pandas as pd

    target, source = np.repeat(np.arange(len(step)), np.diff(step.ptr)), step.source
    needs = np.isin(step.why, (DATA, DMA, SBUF)) & (queues.number[target] != queues.number[source])
    size = len(queues.names)
    waits = np.bincount(queues.number[target[needs]] * size + queues.number[source[needs]], minlength=size * size)
    rows = _stood(step, queues)
    pair = queues.number[rows] * size + queues.number[step.released[rows]]
    waited = step.events["wait_ns"][rows]
    total, longest = np.zeros(size * size, np.int64), np.zeros(size * size, np.int64)
    np.add.at(total, pair, waited)
    np.maximum.at(longest, pair, waited)
    stood = np.bincount(pair, minlength=size * size)
    there = np.flatnonzero((waits > 0) | (stood > 0))
    table = pd.DataFrame(
        {
            "queue": [queues.names[i] for i in there // size],
            "semaphore": [queues.names[i] for i in there % size],
            "waits": waits[there],
            "stood": stood[there],
            "waited_ns": total[there],
            "longest_ns": longest[there],
        }
    )
    return table.sort_values(["waited_ns", "queue", "semaphore"], ascending=[False, True, True], ignore_index=True)


def _longest(step: Step, queues: _Queues) -> "pd.DataFrame":
    import pandas as pd

    events, rows = step.events, _stood(step, queues)
    rows = rows[np.lexsort((events["id"][rows], -events["wait_ns"][rows]))][:_LONGEST]
    before = step.released[rows]
    columns = {name: events.text(name, events[name][rows]) for name in ("name", "op_name", "layer")}
    return pd.DataFrame(
        {
            "rank": events["rank"][rows],
            "id": events["id"][rows],
            "queue": [queues.names[i] for i in queues.number[rows]],
            **columns,
            "start_ts": step.start[rows],
            "wait_ns": events["wait_ns"][rows],
            "semaphore": [queues.names[i] for i in queues.number[before]],
            "count": queues.count[before],
        }
    )
