"""Two or more traces side by side: where the difference in step time comes from, and whether it is more than noise."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from typing import TYPE_CHECKING

from neuronprof.analyze import passes
from neuronprof.analyze.analyzer import EVALUATION, Mapper
from neuronprof.analyze.bottlenecks import CLASSES, Bottlenecks
from neuronprof.trace import reader

if TYPE_CHECKING:
    import pandas as pd

# Student's t for a two-sided 95 %, by degrees of freedom from 1; beyond them the normal distribution's.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)
_NORMAL = 1.96
_ALIKE = 0.65  # names less alike than this are not taken for one another
_ELSEWHERE = 0.05  # what another layer number takes off
_NUMBERS = re.compile(r"\d+")
_KEY = ("op_name", "layer", "phase")

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Run:
    """One trace. times: of its steps, nanoseconds, the mean over ranks; parts: mean nanoseconds of a rank's step by operator and class."""

    trace: str
    times: tuple[float, ...]
    parts: "pd.DataFrame"

    @property
    def step_ns(self) -> float:
        """Mean step time."""
        return sum(self.times) / len(self.times) if self.times else math.nan


@dataclass(frozen=True)
class Difference:
    """One trace against the first.

    noise_ns: half width of the 95 % confidence interval of the difference of the mean step times, by Welch's t-test over the steps; NaN
    with fewer than two steps in either. operators: op_name, layer, phase, other (what it is called in the other trace where that differs),
    before_ns, after_ns, difference_ns; classes: class, before_ns, after_ns, difference_ns. Both add up to difference_ns.
    """

    before: str
    after: str
    before_ns: float
    after_ns: float
    noise_ns: float
    operators: "pd.DataFrame"
    classes: "pd.DataFrame"

    @property
    def difference_ns(self) -> float:
        """After minus before."""
        return self.after_ns - self.before_ns

    @property
    def is_noise(self) -> bool:
        """Whether the steps of each trace differ among themselves as much."""
        return abs(self.difference_ns) <= self.noise_ns


def read(trace: reader.TraceFile, mapper: Mapper = map) -> Run:
    """What is compared of a trace.

    Raises:
        NeuronprofError: the trace is damaged.
    """
    return taken(str(trace.path), passes.run(trace, [Bottlenecks()], mapper=mapper)["bottlenecks"])


def taken(name: str, found: Mapping[str, "pd.DataFrame"]) -> Run:
    """What is compared of the trace of a name. found: its tables of `bottlenecks`."""
    steps = found["bottlenecks"]
    steps = steps[steps["step"] != EVALUATION]
    times = steps.groupby(["step", "rank"])["time_ns"].sum().groupby("step").mean()
    parts = found["bottlenecks_by_operator"].groupby([*_KEY, "class"], as_index=False)[["per_step_ns"]].sum()
    return Run(name, tuple(times.astype(float)), parts)


def compare(runs: Sequence[Run]) -> list[Difference]:
    """Each trace against the first."""
    return [_difference(runs[0], other) for other in runs[1:]]


def _difference(before: Run, after: Run) -> Difference:
    ours, theirs = (run.parts.groupby(list(_KEY))["per_step_ns"].sum() for run in (before, after))
    pairs = align(list(ours.index), list(theirs.index))
    return Difference(
        before.trace, after.trace, before.step_ns, after.step_ns, noise(before.times, after.times),
        _operators(ours, theirs, pairs), _classes(before, after),
    )  # fmt: skip


def noise(before: Sequence[float], after: Sequence[float]) -> float:
    """Half the width of the 95 % confidence interval of the difference of two means (Welch, 1947); NaN without two values in each."""
    if min(len(before), len(after)) < 2:
        return math.nan
    a, b = _variance(before) / len(before), _variance(after) / len(after)
    if a + b == 0:
        return 0.0
    freedom = (a + b) ** 2 / (a**2 / (len(before) - 1) + b**2 / (len(after) - 1))
    t = _T[int(freedom) - 1] if freedom < len(_T) + 1 else _NORMAL
    return t * math.sqrt(a + b)


def _variance(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)


def align(ours: Sequence[Key], theirs: Sequence[Key]) -> list[tuple[Key | None, Key | None]]:
    """Operators of two traces that are the same: by name, layer and phase; then the most alike of what is left in the same phase.

    Two are alike if name or layer (numbers aside) is the same, and the other resembles. Each stands in one pair, or alone.
    """
    both = set(ours) & set(theirs)
    left = sorted(set(ours) - both)
    free = sorted(set(theirs) - both)
    pairs: list[tuple[Key | None, Key | None]] = [(key, key) for key in sorted(both)]
    likeness = sorted(
        ((score, a, b) for a in left for b in free if (score := _likeness(a, b)) >= _ALIKE), key=lambda found: (-found[0], *found[1:])
    )  # fmt: skip
    taken: set[tuple[int, Key]] = set()
    for _, a, b in likeness:
        if (0, a) not in taken and (1, b) not in taken:
            taken |= {(0, a), (1, b)}
            pairs.append((a, b))
    pairs += [(key, None) for key in left if (0, key) not in taken]
    return pairs + [(None, key) for key in free if (1, key) not in taken]


def _likeness(a: Key, b: Key) -> float:
    if a[2] != b[2]:
        return 0.0
    ours, theirs = _NUMBERS.sub("", a[1]), _NUMBERS.sub("", b[1])
    if a[0] != b[0] and ours != theirs:
        return 0.0
    same_place = _NUMBERS.findall(a[1]) == _NUMBERS.findall(b[1])
    return (_resemblance(a[0], b[0]) + _resemblance(ours, theirs)) / 2 - (0 if same_place else _ELSEWHERE)


@cache
def _resemblance(a: str, b: str) -> float:
    return 1.0 if a == b else SequenceMatcher(None, a, b, autojunk=False).ratio()


def _operators(
    ours: "pd.Series[float]", theirs: "pd.Series[float]", pairs: Sequence[tuple[Key | None, Key | None]]
) -> "pd.DataFrame":
    import pandas as pd

    rows = []
    for a, b in pairs:
        key = a or b or ("", "", "")
        other = " ".join(filter(None, b)) if a and b and a != b else ""
        rows.append((*key, other, float(ours[a]) if a else 0.0, float(theirs[b]) if b else 0.0))
    return _sorted(pd.DataFrame(rows, columns=[*_KEY, "other", "before_ns", "after_ns"]), [*_KEY])


def _classes(before: Run, after: Run) -> "pd.DataFrame":
    import pandas as pd

    sums = [run.parts.groupby("class")["per_step_ns"].sum().reindex(CLASSES, fill_value=0.0) for run in (before, after)]
    return _sorted(
        pd.DataFrame({"class": list(CLASSES), "before_ns": sums[0].to_numpy(), "after_ns": sums[1].to_numpy()}),
        ["class"],
    )


def _sorted(table: "pd.DataFrame", by: list[str]) -> "pd.DataFrame":
    """With the difference, the largest first."""
    table["difference_ns"] = table["after_ns"] - table["before_ns"]
    table["size"] = table["difference_ns"].abs()
    return table.sort_values(["size", *by], ascending=[False, *[True] * len(by)], ignore_index=True).drop(
        columns="size"
    )
