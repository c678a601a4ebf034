"""How far predictions are from measurements: by dataset, and beside the yardsticks that the file holds."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, median

from neuronprof.pipeline.validation.rows import YARDSTICKS

# A row that cannot be predicted counts as wrong by all of it.
MISSED = 1.0


@dataclass(frozen=True)
class Outcome:
    """A measured step beside its prediction (None: there is none, and `reason` says why)."""

    number: int
    dataset: str
    model: str
    chips: int
    measured_s: float
    predicted_s: float | None
    reason: str
    yardsticks: dict[str, float]
    recompute: str = ""

    @property
    def error(self) -> float | None:
        """How much longer than measured, as a share: 0.1 is ten percent too slow."""
        return None if self.predicted_s is None or not self.measured_s else self.predicted_s / self.measured_s - 1


@dataclass(frozen=True)
class Score:
    """A dataset. Errors as shares; mape counts a row without a prediction as MISSED.

    rank_correlation: Spearman's, the mean over groups of one model and one number of chips (None: there is none).
    yardsticks: mean absolute error of each, over the rows that have it.
    """

    dataset: str
    rows: int
    predicted: int
    mape: float
    median: float
    bias: float | None
    worst: int
    worst_error: float
    rank_correlation: float | None
    yardsticks: dict[str, float]


def scored(outcomes: Sequence[Outcome]) -> list[Score]:
    """A score of each dataset, in the order of the file, and of all rows together where there are several."""
    by_dataset: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_dataset[outcome.dataset].append(outcome)
    scores = [_score(name, rows) for name, rows in by_dataset.items()]
    return scores if len(scores) == 1 else [*scores, _score("all", outcomes)]


def _score(name: str, rows: Sequence[Outcome]) -> Score:
    errors = [r.error for r in rows if r.error is not None]
    absolute = [MISSED if r.error is None else abs(r.error) for r in rows]
    at = max(range(len(rows)), key=absolute.__getitem__)
    return Score(
        dataset=name,
        rows=len(rows),
        predicted=len(errors),
        mape=mean(absolute),
        median=median(absolute),
        bias=mean(errors) if errors else None,
        worst=rows[at].number,
        worst_error=MISSED if rows[at].error is None else rows[at].error or 0.0,
        rank_correlation=_rank_correlation(rows),
        yardsticks={y: _yardstick(rows, y) for y in YARDSTICKS if any(y in r.yardsticks for r in rows)},
    )


def _yardstick(rows: Iterable[Outcome], name: str) -> float:
    return mean(abs(r.yardsticks[name] / r.measured_s - 1) for r in rows if name in r.yardsticks)


def _rank_correlation(rows: Iterable[Outcome]) -> float | None:
    groups: dict[tuple[str, int], list[Outcome]] = defaultdict(list)
    for row in rows:
        if row.predicted_s is not None:
            groups[row.model, row.chips].append(row)
    found = [_spearman(members) for members in groups.values() if len(members) > 1]
    known = [value for value in found if value is not None]
    return mean(known) if known else None


def _spearman(rows: Sequence[Outcome]) -> float | None:
    a, b = _ranks(rows, lambda r: r.measured_s), _ranks(rows, lambda r: r.predicted_s or 0.0)
    middle = (len(rows) + 1) / 2
    together = sum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True))
    spread = sum((x - middle) ** 2 for x in a) * sum((y - middle) ** 2 for y in b)
    return together / spread**0.5 if spread else None


def _ranks(rows: Sequence[Outcome], value: Callable[[Outcome], float]) -> list[float]:
    """Places in ascending order from 1; equal ones share the mean of theirs."""
    values = [value(r) for r in rows]
    return [sum(o < v for o in values) + (1 + sum(o == v for o in values)) / 2 for v in values]
