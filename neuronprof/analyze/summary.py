"""The small set of figures that says how a run went and what to change first."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from neuronprof.analyze import registry
from neuronprof.analyze.analyzer import EVALUATION, Mapper
from neuronprof.analyze.bottlenecks import CLASSES
from neuronprof.trace import reader

if TYPE_CHECKING:
    import pandas as pd

COSTLIEST = 3


@dataclass(frozen=True)
class Cost:
    """Time of a class spent on one operator, in layers that differ only by number taken together.

    layer: module path, a star where layers differ; layers: how many distinct ones. time_ns: mean of a rank's step.
    """

    kind: str
    op_name: str
    layer: str
    layers: int
    source: str
    time_ns: float
    share: float


@dataclass(frozen=True)
class Proposal:
    """A change, as `advice` has it: what is wrong, what to do, what the step would gain alone, and where that shows."""

    rule: str
    wrong: str
    change: str
    gain_ns: int
    gain: float
    confidence: str
    chip: int
    rank: int
    start_ns: int
    end_ns: int
    link: str


@dataclass(frozen=True)
class Summary:
    """Figures of the training steps; NaN where the trace does not tell.

    Times are nanoseconds. split: mean nanoseconds of a rank's step by class. busy: fraction by engine. exposed_ns: collectives that no
    compute hides, a rank's mean step. notes: what the recording softened, with counts. unknown_operators: costed by bytes only.
    left_out: a sentence for each analysis for which the trace is too large.
    """

    trace: str
    script: str
    machine: str
    parameters: int
    values: str
    ranks: int
    world_size: int
    events: int
    steps: int
    step_time_ns: float
    step_time_min_ns: float
    step_time_max_ns: float
    evaluation_ns: int
    split: Mapping[str, float]
    costs: tuple[Cost, ...]
    advice: tuple[Proposal, ...]
    mfu: float
    hfu: float
    mbu: float
    busy: Mapping[str, float]
    peak_bytes: float
    capacity_bytes: float
    at_peak: Mapping[str, int]
    exposed_ns: float
    notes: Mapping[str, int]
    unknown_operators: Mapping[str, int]
    partial: bool
    left_out: tuple[str, ...] = ()


Results = Mapping[str, Mapping[str, "pd.DataFrame"]]


def summarize(trace: reader.TraceFile, *, mapper: Mapper = map) -> Summary:
    """Runs all analyzers over the trace, and the rules of the advice over its typical step, and picks the figures.

    Raises:
        NeuronprofError: the trace is damaged.
    """
    left_out: dict[str, str] = {}
    results = registry.run(trace, [*registry.ANALYZERS, registry.ADVICE], mapper=mapper, left_out=left_out)
    return pick(trace, results, tuple(left_out.values()))


def pick(trace: reader.TraceFile, results: Results, left_out: tuple[str, ...] = ()) -> Summary:
    """The summary of a trace from the finished tables of all analyzers; without advice where that was not asked for.

    left_out: a sentence for each of which the tables are empty because the trace is too large.
    """
    metadata = trace.metadata
    machine = metadata.get("machine") or {}
    by_step = results["roofline"]["roofline_steps"]
    steps = by_step[by_step["step"] != EVALUATION]
    times = steps["step_time_ns"]
    split = results["bottlenecks"]["bottlenecks"]
    split = split[split["step"] != EVALUATION]
    spans = max(len(split) // len(CLASSES), 1)
    communication = results["communication"]["communication_by_rank"]
    return Summary(
        trace=str(trace.path),
        script=str(metadata.get("script") or ""),
        machine=str(machine.get("title") or machine.get("chip") or ""),
        parameters=int(metadata.get("parameters") or 0),
        values=str(metadata.get("values") or ""),
        ranks=len(trace.ranks),
        world_size=int(metadata.get("world_size") or len(trace.ranks)),
        events=trace.num_events,
        steps=len(steps),
        step_time_ns=_mean(times),
        step_time_min_ns=float(times.min()),
        step_time_max_ns=float(times.max()),
        evaluation_ns=int(by_step.loc[by_step["step"] == EVALUATION, "step_time_ns"].sum()),
        split={kind: int(split.loc[split["class"] == kind, "time_ns"].sum()) / spans for kind in CLASSES},
        costs=_costliest(results),
        advice=proposals(results["advice"]["advice"]) if "advice" in results else (),
        mfu=_weighted(steps["mfu"], times),
        hfu=_weighted(steps["hfu"], times),
        mbu=_weighted(steps["mbu"], times),
        busy=dict(results["utilization"]["utilization"][["engine", "busy"]].itertuples(index=False, name=None)),
        **_peak(results["memory"], machine),
        exposed_ns=float(communication["exposed_ns"].sum()) / spans,
        notes=dict(metadata.get("notes") or {}),
        unknown_operators=dict(metadata.get("unknown_operators") or {}),
        partial=bool(metadata.get("partial")),
        left_out=left_out,
    )


def plain(value: Any) -> Any:
    """A value as JSON has it: numbers, text, lists and objects; NaN and infinity, which JSON has not, are None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if hasattr(value, "item"):  # a numpy scalar
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mean(values: "pd.Series[Any]") -> float:
    return float(values.mean()) if len(values) else np.nan


def _weighted(values: "pd.Series[Any]", times: "pd.Series[Any]") -> float:
    total = float(times.sum())
    return float((values * (times / total)).sum(skipna=False)) if total else np.nan


def _peak(memory: Mapping[str, "pd.DataFrame"], machine: Mapping[str, Any]) -> dict[str, Any]:
    held = dict(memory["memory"][["category", "bytes"]].itertuples(index=False, name=None))
    return {
        "peak_bytes": float(sum(held.values())) if held else np.nan,
        "capacity_bytes": float((machine.get("rank") or {}).get("hbm_capacity") or np.nan),
        "at_peak": held,
    }


def proposals(advice: "pd.DataFrame") -> tuple[Proposal, ...]:
    """The rows of the table."""
    columns = list(Proposal.__dataclass_fields__)
    return tuple(Proposal(*row) for row in advice[columns].itertuples(index=False, name=None))


def _costliest(results: Results) -> tuple[Cost, ...]:
    """The classes of operators that cost most, layers that differ only by a number taken together."""
    table = results["bottlenecks"]["bottlenecks_by_operator"].copy()
    table["pattern"] = [re.sub(r"\d+", "*", layer) for layer in table["layer"]]
    by = ["class", "op_name", "pattern", "source"]
    grouped = table.groupby(by, as_index=False).agg(
        time_ns=("time_ns", "sum"), per_step_ns=("per_step_ns", "sum"), share=("share", "sum"),
        layers=("layer", "nunique"), layer=("layer", "first"),
    )  # fmt: skip
    grouped = grouped.sort_values(["time_ns", *by], ascending=[False, *[True] * len(by)]).head(COSTLIEST)
    return tuple(
        Cost(
            r["class"], r["op_name"], r["pattern"] if r["layers"] > 1 else r["layer"], int(r["layers"]), r["source"],
            r["per_step_ns"], r["share"],
        )
        for r in grouped.to_dict("records")
    )  # fmt: skip
