"""Where each step's time went, part by part, down to layer, operator and source line; the parts add up to the step exactly."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze import bubble
from neuronprof.analyze.analyzer import EVALUATION, Analyzer, Chip, Context, Scope, Span, State, add
from neuronprof.analyze.grouping import Groups
from neuronprof.analyze.split import codes, pieces, split
from neuronprof.terms import COMPUTE_ENGINES, Engine, WaitFor
from neuronprof.trace import schema

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("compute", "memory", "communication", "waiting", "bubble", "host", "idle")
COMPUTE, MEMORY, COMMUNICATION, WAITING, BUBBLE, HOST, IDLE = range(len(PARTS))
PIPELINE = "pp"
STEP_END, LATE_START = "step end", "late start"
# In the order of split.KINDS.
_PART_OF_KIND = (*[COMPUTE] * len(COMPUTE_ENGINES), MEMORY, COMMUNICATION, WAITING, HOST)
LABELS = ("op_name", "layer", "phase", "source")
_PLACE = ("step", "rank", "part", "detail", "bound")
_OPERATOR = ("part", "detail", *LABELS)
_TIMES = ("time_ns", "per_step_ns", "share")


@dataclass(frozen=True)
class Attribution(Analyzer):
    """Each rank's step split into compute, memory, communication, waiting, bubble, host and idle; the parts add up to the step exactly.

    An instant belongs to the first that holds: compute: an engine runs (tensor before vector, scalar, gpsimd); memory: DMA or HBM moves;
    communication: a collective or message transfers, exposed; waiting: a collective waits for its peers; bubble: the same for a message of
    the pipeline; host: a launch, a synchronisation or a copy to or from the host; idle: none of them. It is charged to the operator of its
    event, idle time to the operator whose event ends it.
    detail: of compute the engine, of memory and host the opcode, of communication and waiting the mesh axis (step end: a rank that is done
    waits for the others), of idle what the next event waited for. Of bubble: warm-up, until the rank's first backward; cool-down, after its
    last forward; steady, between them; imbalance: as much of these as the busiest rank works longer than this one. bound: for compute, what
    the operator keeps busy longest: an engine, or memory. time_ns: over all ranks and training steps; per_step_ns: a rank's mean step.
    """

    name: ClassVar[str] = "attribution"
    scope: ClassVar[Scope] = Scope.STEP
    needs: ClassVar[tuple[str, ...]] = schema.select(
        "engine", "name", "wait_ns", "wait_for", "op", "replica_group", *LABELS
    )
    keys: ClassVar[dict[str, tuple[str, ...]]] = {"ranks": _PLACE, "operators": _OPERATOR}
    tables: ClassVar[dict[str, tuple[str, ...]]] = {
        "attribution": ("part", "detail", "bound", *_TIMES),
        "attribution_by_rank": (*_PLACE, "time_ns", "share"),
        "attribution_by_layer": ("layer", "part", *_TIMES),
        "attribution_by_operator": ("part", "detail", *LABELS, *_TIMES),
        "attribution_by_source": ("source", "part", *_TIMES),
    }

    def map(self, chip: Chip) -> State:
        """Nanoseconds by rank, step and part, and by part and operator over all ranks and steps."""
        import pandas as pd

        frames = [_split(span) for span in chip.spans if span.window.step != EVALUATION]
        columns = ("time_ns", *_PLACE, *LABELS)
        frame = pd.concat([pd.DataFrame({name: np.zeros(0, np.int64) for name in columns}), *frames], ignore_index=True)
        for name in LABELS:
            frame[name] = chip.events.text(name, frame[name].to_numpy(np.int64))
        frame["part"] = np.array(PARTS, object)[frame["part"].to_numpy(np.int64)]
        ranks = frame[[*_PLACE, "time_ns"]]
        frame["detail"] = np.where(frame["part"] == PARTS[BUBBLE], "", frame["detail"])
        return {"ranks": add(list(_PLACE), ranks), "operators": add(list(_OPERATOR), frame[[*_OPERATOR, "time_ns"]])}

    def finish(self, state: State, context: Context) -> State:
        """Bubbles split further; sums over ranks; the largest parts first."""
        ranks, operators = bubble.with_imbalance(state["ranks"], context), state["operators"]
        spans = max(len(ranks[["step", "rank"]].drop_duplicates()), 1)
        whole = ranks.groupby(["step", "rank"])["time_ns"].transform("sum")
        by_rank = ranks.assign(share=ranks["time_ns"] / whole.where(whole > 0, 1))
        by = {
            "attribution": (ranks, ["part", "detail", "bound"]),
            "attribution_by_layer": (operators, ["layer", "part"]),
            "attribution_by_operator": (operators, ["part", "detail", *LABELS]),
            "attribution_by_source": (operators, ["source", "part"]),
        }
        tables = {name: _shares(table, keys, spans) for name, (table, keys) in by.items()}
        return tables | {"attribution_by_rank": by_rank[list(self.tables["attribution_by_rank"])]}


def _shares(table: "pd.DataFrame", keys: list[str], spans: int) -> "pd.DataFrame":
    found = table.groupby(keys, as_index=False)[["time_ns"]].sum()
    found = found.sort_values(["time_ns", *keys], ascending=[False, *[True] * len(keys)], ignore_index=True)
    found["per_step_ns"] = found["time_ns"] / spans
    found["share"] = found["time_ns"] / max(int(found["time_ns"].sum()), 1)
    return found


def axes(span: Span) -> NDArray[np.object_]:
    """The mesh axis of each replica group of the trace, 'dp' of 'dp:0-7', with '' for null at the end."""
    return np.array([*(str(group).partition(":")[0] for group in span.events.words["replica_group"]), ""], object)


def _split(span: Span) -> "pd.DataFrame":
    """The time of a span by part and labels, as codes but for detail and bound."""
    import pandas as pd

    found, window, words = split(span), span.window, _Words()
    event, kind, time = pieces(span, "name", "replica_group", "op", *LABELS)
    event = np.concatenate([event, found.ended_by])
    part = np.concatenate([np.array(_PART_OF_KIND)[kind], np.full(len(found.gap_start), IDLE)])
    time = np.concatenate([time, found.gap_end - found.gap_start])
    detail = _details(span, part, event, words)
    _name_edges(span, part, detail, words)
    in_bubble = part == BUBBLE
    if in_bubble.any():
        detail[in_bubble] = words.codes(bubble.phases(span, event[in_bubble]))
    bound = np.full(len(part), len(_BOUNDS) - 1)
    bound[part == COMPUTE] = _bounds(span, event[part == COMPUTE])
    groups = Groups(part, detail, bound, *(codes(span, name, event) for name in LABELS))
    part, detail, bound, *labels = groups.keys
    columns: dict[str, Any] = {"step": window.step, "rank": span.rank, "part": part}
    columns |= {"detail": words.text(detail), "bound": np.array(_BOUNDS, object)[bound]}
    return pd.DataFrame({"time_ns": groups.sum(time), **columns, **dict(zip(LABELS, labels, strict=True))})


class _Words:
    """Words by number, from several columns together; '' is 0."""

    def __init__(self) -> None:
        self._number = {"": 0}

    def codes(self, words: Iterable[str]) -> NDArray[np.int64]:
        """The numbers of words, new ones for words not met before."""
        return np.array([self._number.setdefault(str(word), len(self._number)) for word in words], np.int64)

    def text(self, numbers: NDArray[np.int64]) -> NDArray[np.object_]:
        """The words of numbers."""
        return np.array(list(self._number), object)[numbers]


def _details(span: Span, part: NDArray[Any], event: NDArray[Any], words: _Words) -> NDArray[np.int64]:
    """What each piece is in particular; turns messages of the pipeline that are waited for into bubbles."""
    axis_words = axes(span)

    def coded(name: str, as_words: Sequence[str] | NDArray[np.object_]) -> NDArray[np.int64]:
        return words.codes(as_words)[codes(span, name, event)]

    def named(name: str) -> NDArray[np.int64]:
        return coded(name, (*span.events.words[name], ""))

    axis, name = coded("replica_group", axis_words), named("name")
    part[(part == WAITING) & (axis == words.codes([PIPELINE])[0])] = BUBBLE
    return np.choose(part, [named("engine"), name, axis, axis, axis, name, named("wait_for")])


def _name_edges(span: Span, part: NDArray[Any], detail: NDArray[np.int64], words: _Words) -> None:
    """Names the gaps, the last of the pieces, before a rank's first event and after its last."""
    start, end = split(span).gap_start, split(span).gap_end
    rows = len(part) - len(start) + np.arange(len(start))
    no_word, none, step_end, late_start = words.codes(["", WaitFor.NONE, STEP_END, LATE_START])
    piped = bool((axes(span) == PIPELINE)[span.events["replica_group"]].any())
    last = rows[(end == span.window.end) & (detail[rows] == no_word)]
    part[last], detail[last] = (BUBBLE if piped else WAITING), step_end
    first = rows[(start == span.window.start) & (end < span.window.end)]
    late = first[detail[first] == none]
    part[late], detail[late] = HOST, late_start


_BOUNDS = (*(engine.value for engine in COMPUTE_ENGINES), "memory", "")


def _bounds(span: Span, event: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each of these rows the engine, or memory, that its operator keeps busy longest: positions in _BOUNDS."""
    kind, operator, memory = split(span).kind, span.events["op"], len(COMPUTE_ENGINES)
    if operator.max(initial=-1) < 0:  # the source of the trace numbers no operators
        operator = Groups(*(span.events[name] for name in LABELS)).position
    work = Groups(kind, span.events["engine"], operator)
    kinds, engines, operators = work.keys
    hbm = [code for code, word in enumerate(span.events.words["engine"]) if word == Engine.HBM]
    counted = (kinds >= 0) & (kinds <= memory) & ~np.isin(engines, hbm) & (operators >= 0)
    spent = np.zeros((int(operators.max(initial=-1)) + 2, memory + 1), np.int64)
    np.add.at(spent, (operators[counted], kinds[counted]), work.sum(span.end - span.start)[counted])
    return np.where(operator[event] < 0, kind[event], spent.argmax(axis=1)[operator[event]])
