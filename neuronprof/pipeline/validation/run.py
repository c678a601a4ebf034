"""Predicts all rows of a file, in several processes."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from neuronprof.pipeline.validation.predicted import Predictor
from neuronprof.pipeline.validation.rows import Row, Unreadable, read_rows
from neuronprof.pipeline.validation.scores import Outcome

if TYPE_CHECKING:
    from neuronprof.hardware.spec import Chip


def validate(
    path: str | Path,
    *,
    chips: "dict[str, Chip] | None" = None,
    workers: int = 1,
    done: Callable[[int, int], None] = lambda _done, _count: None,
) -> list[Outcome]:
    """Predicts each row of a CSV file of measured steps; the outcomes stand in the order of the file.

    chips: to be taken instead of the shipped ones of the same name; workers: processes; done: told how many of how many rows are finished.

    Raises:
        NeuronprofError: there is no such file, or it is no table of measured steps.
    """
    rows = read_rows(path)
    found = {
        r.number: Outcome(r.number, r.dataset, r.model, 0, r.measured_s, None, r.reason, {})
        for r in rows
        if isinstance(r, Unreadable)
    }
    for outcomes in _predicted([r for r in rows if isinstance(r, Row)], chips, workers):
        found |= {o.number: o for o in outcomes}
        done(len(found), len(rows))
    return [found[number] for number in sorted(found)]


def _predicted(rows: Sequence[Row], chips: "dict[str, Chip] | None", workers: int) -> Iterator[list[Outcome]]:
    groups = _groups(rows)
    if min(workers, len(groups)) <= 1:
        yield from (_group(group, chips) for group in groups)
        return
    # A fresh process each: one that is forked would inherit PyTorch's threads in whatever state they are.
    with ProcessPoolExecutor(min(workers, len(groups)), get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_group, group, chips) for group in groups]):
            yield future.result()


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of one model together, the costliest first."""
    groups: dict[object, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.hidden, row.heads, row.inner, row.vocabulary].append(row)
    return sorted(groups.values(), key=lambda g: -sum(r.pp * r.vp + r.layers for r in g))


def _group(rows: Sequence[Row], chips: "dict[str, Chip] | None") -> list[Outcome]:
    predictor = Predictor(chips)
    return [predictor.predict(row) for row in rows]
