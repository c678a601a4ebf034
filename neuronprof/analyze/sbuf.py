"""What moves between HBM and SBUF only because SBUF has no room for it: spills, and reuse that is missed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from neuronprof import units
from neuronprof.analyze import durations
from neuronprof.analyze.analyzer import EVALUATION, Analyzer, Chip, Context, Events, Scope, State, add
from neuronprof.analyze.flow import HOST_COPIES
from neuronprof.analyze.grouping import Groups
from neuronprof.terms import Engine
from neuronprof.trace import schema

if TYPE_CHECKING:
    import pandas as pd

SPILLS = ("SPILL_SAVE", "SPILL_RELOAD")
RELOAD, REREAD = "reload", "reread"  # also what the operands of a DMA call them
SPILLED, RELOADED = "spill", "spill reload"
CAUSES = (SPILLED, RELOADED, RELOAD, REREAD)
_OPERATOR = ("op_name", "layer", "phase", "source")
_SUMS = ("runs", "transfers", "bytes", "time_ns")


@dataclass(frozen=True)
class Sbuf(Analyzer):
    """DMA that moves bytes only because SBUF has no room to keep them, in the training steps, by cause and operator.

    spill: a tensor is written to HBM though the same phase wants it back; spill reload: it comes back; reload: an operator loads what one
    shortly before has loaded; reread: a product reads its operands more than once because neither fits. time_ns: of these bytes, as their
    share of each transfer, over all queues, ranks and steps; share: of all DMA. run_bytes: what one run of the operator moves so;
    room_share: of what a rank's SBUF can keep beside the tiles at work: above 1 it cannot stay, whatever else makes room.
    """

    name: ClassVar[str] = "sbuf"
    scope: ClassVar[Scope] = Scope.STEP
    needs: ClassVar[tuple[str, ...]] = schema.select("engine", "queue", "name", "op", *_OPERATOR, "bytes", "operands")
    keys: ClassVar[dict[str, tuple[str, ...]]] = {"moved": ("cause", *_OPERATOR), "all": ("all",)}
    tables: ClassVar[dict[str, tuple[str, ...]]] = {
        "sbuf": ("cause", *_OPERATOR, *_SUMS, "share", "run_bytes", "room_share"),
        "sbuf_by_cause": ("cause", *_SUMS, "share"),
    }

    def map(self, chip: Chip) -> State:
        """Bytes and time of each cause and operator."""
        import pandas as pd

        events = chip.events
        moved = events.among("engine", [Engine.DMA]) & ~events.among("name", HOST_COPIES)
        rows = events.take(moved & (events["step"] != EVALUATION))
        rows = rows.take(np.lexsort((rows["start_ts"], rows["queue"], rows["step"], rows["rank"])))
        run = _runs(rows)
        empty = pd.DataFrame(
            {name: pd.Series(dtype=object) for name in ("cause", *_OPERATOR)} | dict.fromkeys(_SUMS, 0)
        )
        found = [empty.astype(dict.fromkeys(_SUMS, "int64"))]
        for cause, nbytes in moved_again(rows).items():
            at = np.flatnonzero(nbytes)
            if len(at):
                found.append(_by_operator(rows.take(at), nbytes[at], run[at]).assign(cause=cause))
        total = pd.DataFrame({"all": [0], "time_ns": [int(rows["duration_ns"].sum())]})
        return {"moved": add(["cause", *_OPERATOR], *found), "all": total}

    def finish(self, state: State, context: Context) -> State:
        """Shares; what takes longest first."""
        table, total = state["moved"].copy(), max(int(state["all"]["time_ns"].sum()), 1)
        table["share"] = table["time_ns"] / total
        table["run_bytes"] = np.rint(table["bytes"] / table["runs"]).astype(np.int64)
        table["room_share"] = table["run_bytes"] / context.limit("sbuf_resident")
        by_cause = table.groupby("cause", as_index=False)[[*_SUMS, "share"]].sum()
        return {
            "sbuf": _longest_first(table, "op_name")[list(self.tables["sbuf"])],
            "sbuf_by_cause": _longest_first(by_cause, "cause"),
        }


def _longest_first(table: "pd.DataFrame", then: str) -> "pd.DataFrame":
    return table.sort_values(["time_ns", then], ascending=[False, True], ignore_index=True)


def moved_again(rows: Events) -> Mapping[str, NDArray[np.int64]]:
    """Of DMA events, the bytes that each moves for want of room in SBUF, by cause."""
    operands = [_operands(word) for word in (*rows.words["operands"], "")]
    told = {
        cause: np.array([words.get(cause, 0) for words in operands], np.int64)[rows["operands"]]
        for cause in (RELOAD, REREAD)
    }
    spills = {
        cause: np.where(rows.among("name", [name]), rows["bytes"], 0)
        for cause, name in zip((SPILLED, RELOADED), SPILLS, strict=True)
    }
    return {**spills, **told}


def why_again(name: str, nbytes: int, operands: str | None) -> str:
    """Why a DMA moves what need not move if SBUF were larger; '' if it has no such bytes.

    Args:
        name: its opcode.
        nbytes: what it moves.
        operands: what the trace says of them.
    """
    told, size = _operands(operands or ""), units.size
    if name == SPILLS[0]:
        return f"It is a spill: SBUF had no room to keep these {size(nbytes)} until a later operator of the same phase reads them."
    if name == SPILLS[1]:
        return f"It brings back {size(nbytes)} that this phase has made: SBUF had no room to keep them."
    found = []
    if again := int(told.get(REREAD, 0)):
        found.append(
            f"Of the {size(nbytes)}, {size(again)} are read again by the same product, whose operands do not fit SBUF."
        )
    if again := int(told.get(RELOAD, 0)):
        found.append(
            f"Of the {size(nbytes)}, {size(again)} an operator shortly before had loaded: SBUF had no room to keep them."
        )
    return " ".join(found)


def _operands(word: str) -> Mapping[str, float]:
    """The operands that a word of the trace names; none where it has nothing to tell here."""
    if f"{RELOAD}=" not in word and f"{REREAD}=" not in word:
        return {}
    return durations.read_operands(word)[1]


def _runs(rows: Events) -> NDArray[np.int64]:
    """A number for each run of an operator: its transfers follow each other in a queue. rows: sorted by rank, step, queue and start."""
    changed = np.zeros(len(rows), bool)
    for name in ("rank", "step", "queue", "op"):
        changed[1:] |= rows[name][1:] != rows[name][:-1]
    return np.cumsum(changed)


def _by_operator(rows: Events, nbytes: NDArray[np.int64], run: NDArray[np.int64]) -> "pd.DataFrame":
    import pandas as pd

    found = Groups(*(rows[name] for name in _OPERATOR))
    frame = pd.DataFrame({name: rows.text(name, codes) for name, codes in zip(_OPERATOR, found.keys, strict=True)})
    time = np.rint(rows["duration_ns"] * (nbytes / np.maximum(rows["bytes"], 1))).astype(np.int64)
    first = np.unique(run, return_index=True)[1]
    frame["runs"] = np.bincount(found.position[first], minlength=len(frame))
    frame["transfers"] = found.count
    frame["bytes"], frame["time_ns"] = found.sum(nbytes), found.sum(time)
    return frame
