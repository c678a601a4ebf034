"""The schedule of a pipeline: which micro-batch each stage works on when, and where it stands still."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze import groups, intervals
from neuronprof.analyze.analyzer import EVALUATION, Analyzer, Chip, Context, Scope, Span, State
from neuronprof.analyze.bubble import COOL_DOWN, STEADY, WARM_UP
from neuronprof.analyze.grouping import heads
from neuronprof.terms import COMPUTE_ENGINES, Engine, Phase, WaitFor
from neuronprof.trace import schema

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("forward", "backward", "backward of weights", "optimizer", "collectives", "bubble")
FORWARD, BACKWARD, WEIGHTS, OPTIMIZER, COLLECTIVES, BUBBLE = range(len(KINDS))
PARTS = (WARM_UP, STEADY, COOL_DOWN)
_PIPELINE = "pp"
_KEY = ("step", "rank", "number")
_STATE = (*_KEY, "kind", "of", "microbatch", "part", "start_ts", "end_ts")
_SUMS = {
    "forward": "forward_ns", "backward": "backward_ns", "backward of weights": "backward_ns", "optimizer": "optimizer_ns",
    "collectives": "collectives_ns", "bubble": "bubble_ns",
}  # fmt: skip


@dataclass(frozen=True)
class Schedule(Analyzer):
    """What each pipeline stage does when, on its first rank in the trace; the rows of a stage and step add up to the step exactly.

    kind: forward and backward passes of a micro-batch, backward of weights (where the schedule puts it off), optimizer, collectives
    that no pass hides, bubble. Where the recording does not tell which instructions are whose, a pass is what a rank computes from one
    message of the pipeline, or change of direction, to the next. A pass that begins before its message is there is cut where it waits.
    part: warm-up, until the stage's first backward pass; cool-down, after its last forward one; steady, between them. microbatch: from 0
    -1 for what is none's; chunk: which of a stage's virtual stages (Narayanan et al.
    2021). schedule_stages: a stage's mean step.
    """

    name: ClassVar[str] = "schedule"
    scope: ClassVar[Scope] = Scope.STEP
    needs: ClassVar[tuple[str, ...]] = schema.select(
        "id", "engine", "phase", "op", "replica_group", "wait_ns", "wait_for"
    )
    keys: ClassVar[dict[str, tuple[str, ...]]] = {"pieces": _KEY}
    tables: ClassVar[dict[str, tuple[str, ...]]] = {
        "schedule": ("step", "stage", "rank", "kind", "microbatch", "chunk", "part", "start_ts", "duration_ns"),
        "schedule_stages": ("stage", "rank", *dict.fromkeys(_SUMS.values()), "bubble_share"),
    }

    def concerns(self, metadata: Mapping[str, Any]) -> bool:
        """A trace with a pipeline."""
        return int((metadata.get("pipeline") or {}).get("count") or 1) > 1

    def map(self, chip: Chip) -> State:
        """The pieces of each step of each rank, as numbers; none where no rank sends along the pipeline."""
        import pandas as pd

        group = chip.events.words["replica_group"]
        if not any(groups.axis(text) == _PIPELINE for text in group):
            return {"pieces": pd.DataFrame({name: np.zeros(0, np.int64) for name in _STATE})}
        frames = [
            _pieces(span, chip.metadata) for span in chip.spans if span.window.step != EVALUATION and len(span.events)
        ]
        empty = pd.DataFrame({name: np.zeros(0, np.int64) for name in _STATE})
        return {"pieces": pd.concat([empty, *frames], ignore_index=True)}

    def finish(self, state: State, context: Context) -> State:
        """The first rank of each stage; micro-batches numbered."""
        import pandas as pd

        pipeline = context.metadata.get("pipeline") or {}
        stages, stride = int(pipeline.get("count") or 1), int(pipeline.get("stride") or 1)
        pieces = state["pieces"]
        if stages < 2 or pieces.empty:
            return {name: pd.DataFrame(columns=list(columns)) for name, columns in self.tables.items()}
        pieces = pieces.assign(stage=pieces["rank"] // stride % stages)
        pieces = pieces[pieces["rank"] == pieces.groupby("stage")["rank"].transform("min")]
        layout = context.metadata.get("layout") or {}
        parts = [_numbered(piece, layout) for _, piece in pieces.groupby(["step", "stage"], sort=True)]
        table = pd.concat(parts, ignore_index=True)
        table["kind"] = np.array(KINDS, object)[table["kind"].to_numpy(np.int64)]
        table["part"] = np.array(PARTS, object)[table["part"].to_numpy(np.int64)]
        table["duration_ns"] = table["end_ts"] - table["start_ts"]
        return {"schedule": table[list(self.tables["schedule"])], "schedule_stages": _stages(table)}


def _pieces(span: Span, metadata: Mapping[str, Any]) -> "pd.DataFrame":
    """A span cut into passes, collectives between them, and bubbles, in the order of time."""
    import pandas as pd

    kind, microbatch, start, end = _passes(span, metadata)
    start, end, of = intervals.subtract(start, end, *_waiting(span))
    kind, microbatch = kind[of], microbatch[of]
    busy = intervals.merge(start, end)
    gaps = intervals.gaps(*busy, span.window.start, span.window.end)
    of_group = np.array([groups.axis(text) != _PIPELINE for text in span.events.words["replica_group"]] + [False])
    shown = span.events.among("engine", [Engine.CC]) & of_group[span.events["replica_group"]]
    sent = intervals.merge(span.start[shown], span.end[shown])
    exposed = intervals.intersect(*gaps, *sent)[:2]
    idle = intervals.subtract(*gaps, *exposed)[:2]
    kinds = np.concatenate([kind, np.full(len(exposed[0]), COLLECTIVES), np.full(len(idle[0]), BUBBLE)])
    begins = np.concatenate([start, exposed[0], idle[0]])
    order = np.argsort(begins, kind="stable")
    turn = start[kind == BACKWARD].min(initial=span.window.end)
    over = end[kind == FORWARD].max(initial=span.window.start)
    begins = begins[order]
    columns = {
        "step": span.window.step, "rank": span.rank, "number": np.arange(len(order)), "kind": kinds[order],
        "microbatch": np.append(microbatch, np.full(len(order) - len(of), -1))[order],
        "of": np.append(of, np.full(len(order) - len(of), -1))[order],
        "part": np.where(begins < turn, 0, np.where(begins >= over, 2, 1)),
        "start_ts": begins, "end_ts": np.concatenate([end, exposed[1], idle[1]])[order],
    }  # fmt: skip
    return pd.DataFrame(columns)


def _passes(span: Span, metadata: Mapping[str, Any]) -> tuple[NDArray[np.int64], ...]:
    """Kind, micro-batch (-1: unknown), start and end of each pass and piece of the optimizer; one ends where the next begins, or sooner."""
    events = span.events
    message = _among_pipeline(span)
    rows = np.flatnonzero(events.among("engine", COMPUTE_ENGINES) | message)
    rows = rows[np.argsort(events["id"][rows], kind="stable")]  # as the program has them
    direction = np.full(len(events), OPTIMIZER)
    direction[events.among("phase", [Phase.FORWARD])] = FORWARD
    direction[events.among("phase", [Phase.BACKWARD, Phase.RECOMPUTE])] = BACKWARD
    kind, stop = direction[rows], message[rows]
    number, microbatch = _numbers(events["id"][rows], span.rank, metadata)
    own = microbatch < 0  # what the order of passes does not tell
    last = np.flatnonzero(~stop & (kind != OPTIMIZER)).max(initial=-1)
    keep = ~stop & (
        (kind != OPTIMIZER) | (np.arange(len(rows)) > last)
    )  # what belongs to no phase is in the pass around it
    keys = (number[keep], np.where(own, np.cumsum(stop), 0)[keep], np.where(own, kind, 0)[keep])
    rows, kind, microbatch = rows[keep], kind[keep], microbatch[keep]
    if not len(rows):
        return (np.zeros(0, np.int64),) * 4
    first = heads(*keys)
    start, end = np.minimum.reduceat(span.start[rows], first), np.maximum.reduceat(span.end[rows], first)
    order = np.argsort(start, kind="stable")
    start, end = start[order], end[order]
    end[:-1] = np.minimum(end[:-1], start[1:])
    microbatch = np.where(microbatch < 0, -1, np.unique(np.maximum(microbatch, 0), return_inverse=True)[1])
    return kind[first][order].astype(np.int64), microbatch[first][order], start, end


def _numbers(ids: NDArray[Any], rank: int, metadata: Mapping[str, Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pass of each event and its micro-batch, where the recording tells; 0 and -1 where it does not."""
    pipeline, numbering = metadata.get("pipeline") or {}, metadata.get("numbering") or {}
    if not pipeline.get("passes") or not numbering:
        return np.zeros(len(ids), np.int64), np.full(len(ids), -1)
    stage = rank // pipeline["stride"] % pipeline["count"]
    first, microbatch = (np.array(column, np.int64) for column in pipeline["passes"][stage])
    runs = np.array(numbering["first_ids"][stage], np.int64)
    own = ids - rank * numbering["rank_stride"]
    run = np.searchsorted(runs, own, side="right") - 1
    at = np.searchsorted(first, own - runs[run], side="right") - 1
    return at, microbatch[at]


def _waiting(span: Span) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """When the rank waits for a message of the pipeline and computes nothing, which is no part of a pass that has begun without it."""
    events = span.events
    message = _among_pipeline(span) & (events["wait_ns"] > 0) & events.among("wait_for", [WaitFor.PEER])
    came = span.start[message]
    computes = events.among("engine", COMPUTE_ENGINES)
    busy = intervals.merge(span.start[computes], span.end[computes])
    return intervals.subtract(*intervals.merge(came - events["wait_ns"][message], came), *busy)[:2]


def _among_pipeline(span: Span) -> NDArray[np.bool_]:
    along = np.array([groups.axis(text) == _PIPELINE for text in span.events.words["replica_group"]] + [False])
    return span.events.among("engine", [Engine.CC]) & along[span.events["replica_group"]]


def _numbered(pieces: "pd.DataFrame", layout: Mapping[str, Any]) -> "pd.DataFrame":
    """Micro-batches and chunks of one stage in one step; where the recording does not tell, the passes of a direction are counted."""
    kind, microbatch = pieces["kind"].to_numpy(np.int64).copy(), pieces["microbatch"].to_numpy(np.int64).copy()
    chunk = np.zeros(len(pieces), np.int64)
    for direction in (FORWARD, BACKWARD):
        mine = np.flatnonzero(kind == direction)
        _, first, of = np.unique(
            pieces["of"].to_numpy()[mine], return_index=True, return_inverse=True
        )  # pieces of a pass
        if (microbatch[mine] < 0).all():
            microbatch[mine] = of
        again = pieces.iloc[mine[first]].groupby(microbatch[mine[first]]).cumcount().to_numpy()[of]
        if direction == BACKWARD and layout.get("schedule") == "zero-bubble":
            kind[mine[again > 0]] = WEIGHTS
        else:
            chunk[mine] = again if direction == FORWARD else again.max(initial=0) - again
    return pieces.assign(kind=kind, chunk=chunk, microbatch=microbatch)


def _stages(table: "pd.DataFrame") -> "pd.DataFrame":
    """The mean step of each stage by what it does; the columns of time add up to the step."""
    names = list(dict.fromkeys(_SUMS.values()))
    sums = table.assign(what=table["kind"].map(_SUMS)).pivot_table(
        index=["stage", "rank"], columns="what", values="duration_ns", aggfunc="sum", fill_value=0
    )
    means = sums.reindex(columns=names, fill_value=0) / table["step"].nunique()
    means["bubble_share"] = means["bubble_ns"] / means[names].sum(axis=1)
    return means.rename_axis(columns=None).reset_index()
