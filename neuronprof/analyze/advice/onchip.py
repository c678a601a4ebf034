"""Rules about SBUF: what moves only because it has no room, and transfers that reach little of the bandwidth."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from neuronprof import units
from neuronprof.analyze import changes, sbuf
from neuronprof.analyze.advice.case import Case
from neuronprof.analyze.advice.rule import Confidence, Finding, Rule
from neuronprof.analyze.changes import Change, Mask
from neuronprof.analyze.transfers import pieces


def _spared(case: Case, nbytes: np.ndarray, rows: Mask) -> Change:
    """Rows take less time by their share of these bytes."""
    kept = 1 - nbytes[rows] / np.maximum(case.events["bytes"][rows], 1)
    return lambda draft: draft.scale(rows, kept)


def _room(case: Case, nbytes: np.ndarray, rows: Mask) -> str:
    """How much the operator with the largest share moves so, against what SBUF keeps; '' where the trace does not tell."""
    room = case.context.limit("sbuf_resident")
    op, place = case.events["op"][rows], case.place[rows]
    _, runs = np.unique(op * len(case.ranks) + place, return_inverse=True)
    largest = np.bincount(runs, nbytes[rows]).max()
    if not largest > room:
        return ""
    return f"; the largest moves {units.size(int(largest))}, and SBUF keeps {units.size(int(room))}"


@dataclass(frozen=True)
class Spills(Rule):
    """Tensors leave SBUF because it has no room for them, and the same phase brings them back."""

    name: ClassVar[str] = "spills"
    confidence: ClassVar[Confidence] = Confidence.MEDIUM

    def look(self, case: Case) -> Finding | None:
        """What is stored for want of room, and loaded again; without it, nothing of this moves."""
        rows = case.among("name", sbuf.SPILLS) & changes.moved_by_dma(case.step)
        if not rows.any():
            return None
        nbytes = np.where(rows, case.events["bytes"], 0)
        size, time = units.size(int(case.by_rank(rows, nbytes).mean())), units.time(case.mean(rows))
        wrong = f"Spills move {size} between SBUF and HBM a step, which takes DMA {time}: {case.where(rows)}{_room(case, nbytes, rows)}."
        return Finding(wrong, case.say("less at a time"), rows, (_spared(case, nbytes, rows),))


@dataclass(frozen=True)
class SbufReuse(Rule):
    """The same bytes are loaded several times: by operators that follow each other, or by one product."""

    name: ClassVar[str] = "sbuf-reuse"
    confidence: ClassVar[Confidence] = Confidence.MEDIUM

    def look(self, case: Case) -> Finding | None:
        """Loads of what SBUF has had shortly before; without them, the rest of each transfer stays."""
        again = sbuf.moved_again(case.events)
        nbytes = again[sbuf.RELOAD] + again[sbuf.REREAD]
        rows = (nbytes > 0) & changes.moved_by_dma(case.step)
        if not rows.any():
            return None
        by_products = again[sbuf.REREAD][rows].sum() > again[sbuf.RELOAD][rows].sum()
        size = units.size(int(case.by_rank(rows, nbytes).mean()))
        whom = "products that hold neither operand" if by_products else "operators that follow each other"
        wrong = f"SBUF loads {size} a step once more for {whom}: {case.where(rows)}{_room(case, nbytes, rows)}."
        change = case.say("smaller products" if by_products else "load once")
        return Finding(wrong, change, rows, (_spared(case, nbytes, rows),))


@dataclass(frozen=True)
class SmallTransfers(Rule):
    """DMA in pieces that are too small for its bandwidth (the machine's dma.efficient)."""

    name: ClassVar[str] = "small-transfers"
    confidence: ClassVar[Confidence] = Confidence.MEDIUM

    def look(self, case: Case) -> Finding | None:
        """Transfers in small pieces; in large ones they would take what their bytes take at full bandwidth."""
        enough, piece = case.quantity("dma.efficient", 0.0), pieces(case.events)
        rows = (piece > 0) & (piece < enough) & changes.moved_by_dma(case.step)
        if not rows.any():
            return None
        ideal = case.events["bytes"][rows] * 1e9 / min(changes.limits(case.context))
        taken = np.minimum(ideal / np.maximum(case.step.duration[rows], 1), 1.0)
        usual = np.average(piece[rows], weights=np.maximum(case.step.duration[rows], 1))
        size, time = units.size(int(case.by_rank(rows, case.events["bytes"]).mean())), units.time(case.mean(rows))
        wrong = (
            f"DMA moves {size} a step in pieces of {units.size(int(usual))}, which takes it {time}; from {units.size(int(enough))} on it "
            f"reaches its bandwidth: {case.where(rows)}."
        )
        return Finding(wrong, case.say("larger pieces"), rows, (lambda draft: draft.scale(rows, taken),))
