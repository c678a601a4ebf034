"""Limits that a trace must keep, and limits that another trace sets: what a change may not make worse."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neuronprof import units
from neuronprof.analyze.bottlenecks import CLASSES
from neuronprof.analyze.summary import Summary
from neuronprof.errors import NeuronprofError

TIME, SHARE, SIZE = "time", "share", "size"
_READ = {TIME: units.parse_time, SHARE: units.parse_fraction, SIZE: units.parse_size}
_SHOW = {TIME: units.time, SHARE: units.percent, SIZE: units.size}

# What a limit can be set on. exposed_communication and the classes of `bottlenecks` are shares of the step.
METRICS = {
    "step_time": TIME, "step_time_max": TIME, "mfu": SHARE, "hfu": SHARE, "mbu": SHARE, "hbm_peak": SIZE, "exposed_communication": SHARE,
    **dict.fromkeys(CLASSES, SHARE),
}  # fmt: skip
AGAINST_BASELINE = {"step_time": "max", "hbm_peak": "max", "mfu": "min"}


@dataclass(frozen=True)
class Limit:
    """One limit. side: 'max' or 'min'; origin: what else is said about it, '' for nothing."""

    metric: str
    side: str
    value: float
    origin: str = ""

    def __str__(self) -> str:
        sign = "<=" if self.side == "max" else ">="
        return f"{self.metric} {sign} {_SHOW[METRICS[self.metric]](self.value)}{self.origin}"


@dataclass(frozen=True)
class Verdict:
    """A limit and what was found; value is NaN, and the limit not kept, where the trace does not tell."""

    limit: Limit
    value: float

    @property
    def kept(self) -> bool:
        """Whether the limit holds."""
        return self.value <= self.limit.value if self.limit.side == "max" else self.value >= self.limit.value

    def __str__(self) -> str:
        limit = self.limit
        if math.isnan(self.value):
            return f"{limit.metric} is not known from this trace, the limit is {limit}"
        show = _SHOW[METRICS[limit.metric]]
        where = "within" if self.kept else "above" if limit.side == "max" else "below"
        return f"{limit.metric} {show(self.value)} is {where} {show(limit.value)}{limit.origin}"


def read_limit(side: str, metric: str, text: Any) -> Limit:
    """A limit from what a user writes: 'max', 'step_time', '12ms'.

    Raises:
        NeuronprofError: there is no such metric, or the value cannot be read.
    """
    if metric not in METRICS:
        raise NeuronprofError(f"There is no metric '{metric}' to set a limit on; choose from {', '.join(METRICS)}.")
    return Limit(metric, side, float(_READ[METRICS[metric]](str(text))))


def from_baseline(base: Summary, tolerance: float, name: str) -> list[Limit]:
    """Limits on step time, HBM peak and MFU that allow for being worse than another trace by the tolerance, a fraction."""
    known = {
        metric: value for metric, value in measure(base).items() if metric in AGAINST_BASELINE and not math.isnan(value)
    }
    return [
        Limit(
            metric,
            side,
            known[metric] * (1 + tolerance if side == "max" else 1 - tolerance),
            f", {units.percent(tolerance)} off {name}",
        )
        for metric, side in AGAINST_BASELINE.items()
        if metric in known
    ]


def measure(figures: Summary) -> dict[str, float]:
    """The value of each metric; NaN where the trace does not tell."""
    step = figures.step_time_ns or math.nan
    return {
        "step_time": figures.step_time_ns,
        "step_time_max": figures.step_time_max_ns,
        "mfu": figures.mfu,
        "hfu": figures.hfu,
        "mbu": figures.mbu,
        "hbm_peak": figures.peak_bytes,
        "exposed_communication": figures.exposed_ns / step,
        **{name: time / step for name, time in figures.split.items()},
    }


def judge(figures: Summary, limits: list[Limit]) -> list[Verdict]:
    """What was found for each limit."""
    values: Mapping[str, float] = measure(figures)
    return [Verdict(limit, values[limit.metric]) for limit in limits]
