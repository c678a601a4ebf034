"""Engines that stood idle for most of the step, and what they waited for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze.analyzer import EVALUATION, Analyzer, Chip, Context, Scope, Span, State, add
from neuronprof.analyze.split import codes
from neuronprof.terms import Engine, WaitFor
from neuronprof.trace import schema

if TYPE_CHECKING:
    import pandas as pd

CAUSES = tuple(w.value for w in WaitFor if w is not WaitFor.NONE)
NO_WORK = "no_work"
_TIMES = ("busy_ns", *(f"{cause}_ns" for cause in CAUSES), "no_work_ns", "window_ns")
_LABELS = ("op_name", "layer", "source")
_ENDED_BY = {name: f"next_{name}" for name in ("name", *_LABELS)}
_LENGTH = ("engine", "waited_for", "shorter_than_ns")
_GAP = ("engine", "rank", "step", "start_ts", "duration_ns", "waited_for", *_ENDED_BY.values())
# Tracks on which being busy is not an aim: the host, and engines that only order others.
_NOT_JUDGED = (Engine.SYNC, Engine.HOST)

# A run on one rank has no communication to judge. (Engines are positions in the state, so that they sort in their
# usual order.)
_IF_ANY = tuple(tuple(Engine).index(engine) for engine in (Engine.CC, Engine.NEURONLINK, Engine.EFA))


@dataclass(frozen=True)
class Underused(Analyzer):
    """Engines busy for less than the threshold of the training steps, and what they waited for while idle.

    Every idle gap ends with an event: as much of the gap as that event stood waiting (wait_ns) is charged to what it
    waited for, the rest to no_work: nothing stood in the engine's queues. busy_ns, the causes and no_work_ns add up
    to window_ns. cause is the largest part. Engines that did nothing at all are listed too, collectives and links
    only if the run has any. underused_gaps has the longest gaps. underused_lengths: how many gaps last how long, in classes up to a power
    of two each, by what most of the gap was spent on; their gap_ns add up to the idle time of the engine.

    threshold: fraction of the step below which an engine counts as underused. gaps: how many of the longest gaps are
    kept.
    """

    threshold: float = 0.5
    gaps: int = 20

    name: ClassVar[str] = "underused"
    scope: ClassVar[Scope] = Scope.MOMENT
    needs: ClassVar[tuple[str, ...]] = schema.select("engine", "name", "wait_ns", "wait_for", *_LABELS)
    keys: ClassVar[dict[str, tuple[str, ...]]] = {
        "engines": ("engine",),
        "gaps": _GAP,
        "lengths": _LENGTH,
    }
    tables: ClassVar[dict[str, tuple[str, ...]]] = {
        "underused": ("engine", "busy", "cause", "idle_ns", *_TIMES),
        "underused_gaps": _GAP,
        "underused_lengths": (*_LENGTH, "gaps", "gap_ns"),
    }

    def map(self, chip: Chip) -> State:
        """Idle nanoseconds by engine and cause, and the longest gaps."""
        import pandas as pd

        times: list[tuple[int, ...]] = []
        longest, lengths = [], [_NO_LENGTHS]
        for span in chip.spans:
            if span.window.step == EVALUATION:
                continue
            for position, engine in enumerate(Engine):
                if engine not in _NOT_JUDGED:
                    mine = span.of([engine])
                    found = _idle(mine)
                    times.append((position, *found.times))
                    longest.append(self._rows(mine, position, found))
                    lengths.append(_lengths(position, found))
        engines = pd.DataFrame(times, columns=["engine", *_TIMES], dtype="int64")
        nothing = {name: np.zeros(0, kind) for name, kind in _GAP_TYPES.items()}
        every = {name: np.concatenate([nothing[name], *(gaps[name] for gaps in longest)]) for name in _GAP}
        classes = pd.DataFrame(np.concatenate(lengths), columns=[*_LENGTH, "gaps", "gap_ns"])
        return {
            "engines": add(["engine"], engines),
            "gaps": self._longest(pd.DataFrame(every)),
            "lengths": add(list(_LENGTH), classes),
        }

    def combine(self, a: State, b: State) -> State:
        """Adds the times; keeps the longest gaps of both."""
        import pandas as pd

        both = pd.concat([gaps for gaps in (a["gaps"], b["gaps"]) if len(gaps)] or [a["gaps"]], ignore_index=True)
        summed = {name: add(list(self.keys[name]), a[name], b[name]) for name in ("engines", "lengths")}
        return {**summed, "gaps": self._longest(both)}

    def finish(self, state: State, _context: Context) -> State:
        """Engines below the threshold, the least busy last; their gaps."""
        table = state["engines"]
        present = (table["busy_ns"] > 0) | ~table["engine"].isin(_IF_ANY)
        table = table[present & (table["busy_ns"] < self.threshold * table["window_ns"])].reset_index(drop=True)
        parts = table[[f"{cause}_ns" for cause in CAUSES] + ["no_work_ns"]].to_numpy()
        table["busy"] = table["busy_ns"] / table["window_ns"]
        table["idle_ns"] = table["window_ns"] - table["busy_ns"]
        table["cause"] = [(*CAUSES, NO_WORK)[at] for at in parts.argmax(axis=1)] if len(table) else []
        gaps = state["gaps"]
        gaps = gaps[gaps["engine"].isin(table["engine"])].reset_index(drop=True)
        lengths = state["lengths"]
        lengths = lengths[lengths["engine"].isin(table["engine"])].reset_index(drop=True)
        lengths["waited_for"] = np.array([*CAUSES, NO_WORK], object)[lengths["waited_for"].to_numpy(np.int64)]
        tables = {
            "underused": table[list(self.tables["underused"])].copy(),
            "underused_gaps": gaps,
            "underused_lengths": lengths,
        }
        for finished in tables.values():
            finished["engine"] = [tuple(Engine)[position].value for position in finished["engine"]]
        return tables

    def _rows(self, span: Span, engine: int, found: "_Idle") -> dict[str, NDArray[Any]]:
        """The span's longest gaps as columns."""
        length = found.end - found.start
        least = np.partition(length, -self.gaps)[-self.gaps] if len(length) > self.gaps else 0
        keep = np.flatnonzero(length >= least)
        keep = keep[np.argsort(-length[keep], kind="stable")][: self.gaps]
        ended_by = found.ended_by[keep]
        words = {new: span.events.text(name, codes(span, name, ended_by)) for name, new in _ENDED_BY.items()}
        return {
            "engine": np.full(len(keep), engine),
            "rank": np.full(len(keep), span.rank),
            "step": np.full(len(keep), span.window.step),
            "start_ts": found.start[keep],
            "duration_ns": length[keep],
            "waited_for": np.array([*CAUSES, NO_WORK], object)[found.cause[keep]],
            **words,
        }

    def _longest(self, gaps: "pd.DataFrame") -> "pd.DataFrame":
        order = ["duration_ns", *(name for name in _GAP if name != "duration_ns")]
        ranked = gaps.sort_values(order, ascending=[False, *[True] * (len(order) - 1)])
        return ranked.groupby("engine", sort=False).head(self.gaps).reset_index(drop=True)


_NUMBERS = ("engine", "rank", "step", "start_ts", "duration_ns")
_GAP_TYPES = {name: np.int64 if name in _NUMBERS else object for name in _GAP}


@dataclass(frozen=True)
class _Idle:
    """One engine in one span: times as in _TIMES, and its gaps with the event that ends each (-1: none) and the main cause."""

    times: tuple[int, ...]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    ended_by: NDArray[np.intp]
    cause: NDArray[np.intp]


_NO_LENGTHS = np.zeros((0, len(_LENGTH) + 2), np.int64)
_BITS = 64  # more than a length has


def _lengths(engine: int, found: _Idle) -> NDArray[np.int64]:
    """Rows of engine, cause, the power of two that the gaps stay below, their number and their nanoseconds."""
    length = found.end - found.start
    like = found.cause * _BITS + np.frexp(length.astype(float))[1]
    number, time = np.bincount(like), np.bincount(like, length).astype(np.int64)
    classes = np.flatnonzero(number)
    causes, below = classes // _BITS, np.int64(1) << classes % _BITS
    return np.column_stack([np.full(len(classes), engine), causes, below, number[classes], time[classes]])


def _idle(span: Span) -> _Idle:
    """Of a span with the events of one engine; of stretches of a window, a gap is told of in that in which it ends."""
    from neuronprof.analyze.sweep import gaps  # numba takes as long to load as all the rest

    order = None
    events = span.events
    start = events["start_ts"]  # not clipped: what the engine did last before a stretch tells since when it is idle
    end = np.minimum(start + events["duration_ns"], span.window.end)
    since, until = _known(span)
    if not (start[1:] >= start[:-1]).all():  # several queues
        order = np.argsort(start, kind="stable")
        start, end = start[order], end[order]
    low, high, ended_by = gaps(start, end, since, until)
    if order is not None:
        ended_by = np.where(ended_by < 0, -1, order[ended_by])
    length, words = high - low, (*events.words["wait_for"], None)
    of_word = np.array([CAUSES.index(word) if word in CAUSES else len(CAUSES) for word in words])
    cause, waited = of_word[codes(span, "wait_for", ended_by)], np.zeros(len(low), np.int64)
    known = slice((ended_by >= 0).sum())  # all but the last, which may end with the window
    waited[known] = np.minimum(events["wait_ns"][ended_by[known]], length[known])
    waited[cause == len(CAUSES)] = 0
    by_cause = np.bincount(cause, waited, len(CAUSES) + 1).astype(np.int64)
    by_cause[-1] = int(length.sum()) - int(by_cause.sum())
    time = until - since
    main = np.where(2 * waited >= length, cause, len(CAUSES))
    return _Idle((time - int(length.sum()), *by_cause.tolist(), time), low, high, ended_by, main)


def _known(span: Span) -> tuple[int, int]:
    """The time of which a span tells what an engine did: of a stretch, from the end of the event before it to that of its last one."""
    window, whole, began = span.window, span.whole, span.events["start_ts"]
    before = np.minimum(began + span.events["duration_ns"], window.start)[began < window.start]
    since = int(before.max(initial=whole.start))
    ends = span.end[span.end > span.start]
    return since, whole.end if window.end == whole.end else int(ends.max(initial=since))
