"""Many layouts of one captured step on one machine, simulated side by side in several processes."""

import gc
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields, replace
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from neuronprof.distribute.sharding import batch_size, tokens
from neuronprof.distribute.styles import Style, styled
from neuronprof.errors import NeuronprofError
from neuronprof.pipeline.grid import Grid, layouts
from neuronprof.pipeline.laidout import LaidOut, StepSimulator

if TYPE_CHECKING:
    import pandas as pd

    from neuronprof.distribute.layout import Layout
    from neuronprof.graph.ir import Graph, Recording
    from neuronprof.hardware.spec import Chip

_LAYOUT = (
    "dp", "tp", "pp", "cp", "vp", "microbatches", "accumulate", "zero", "sequence_parallel", "schedule", "grad_sync", "prefetch",
)  # fmt: skip
_STYLE = tuple(field.name for field in fields(Style))
FITS, TOO_LARGE, IMPOSSIBLE = "fits", "does not fit", "impossible"
_SECOND = 1e9  # nanoseconds
_MILLION = 1e6
_HOUR = 3600.0


@dataclass(frozen=True)
class Tried:
    """A layout of the step, run in a style."""

    style: Style
    result: LaidOut


@dataclass(frozen=True)
class Machines:
    """How many chips of which kind, at what price: USD for an hour of one."""

    chip: "Chip"
    lnc: int
    count: int
    price: float

    @property
    def ranks(self) -> int:
        """Ranks of all chips."""
        return self.count * self.chip.ranks(self.lnc)


@dataclass(frozen=True)
class Step:
    """The training step to lay out. samples: that the script takes in one; tokens: of one sample (0: unknown)."""

    graph: "Graph"
    samples: int
    tokens: float


def step_of(recorded: "Recording") -> Step:
    """The last training step of a recording.

    Raises:
        NeuronprofError: there is none, or the script distributes itself.
    """
    if recorded.world > 1 or recorded.stages:
        raise NeuronprofError(
            f"{recorded.script} distributes itself over {recorded.world} ranks; layouts can be tried of a script for one device."
        )
    steps = [s for s in recorded.segments if s.kind == "step"]
    if not steps:
        raise NeuronprofError(f"No training step was found in {recorded.script}; give a script that trains.")
    graph = recorded.graph.slice(steps[-1].start, steps[-1].stop)
    samples = max(1, batch_size(graph))
    return Step(graph, samples, (tokens(graph) or 0) / samples)


def sweep(
    step: Step,
    machines: Machines,
    grid: Grid,
    *,
    workers: int = 1,
    done: Callable[[int, int], None] = lambda _done, _count: None,
) -> "pd.DataFrame":
    """Simulates every layout of a grid in every style; a row each, the fastest first, then what does not fit, then what is impossible.

    workers: processes; done: told how many of how many layouts are finished.

    Raises:
        NeuronprofError: no layout of the grid divides the ranks.
    """
    asked = layouts(grid, machines.ranks, step.samples)
    return tried(step, machines, *asked, styles=grid.styles, workers=workers, done=done)


def tried(
    step: Step,
    machines: Machines,
    possible: "Sequence[Layout]",
    refused: "Sequence[tuple[Layout, str]]" = (),
    *,
    styles: Sequence[Style] = (Style(),),
    workers: int = 1,
    done: Callable[[int, int], None] = lambda _done, _count: None,
) -> "pd.DataFrame":
    """As `sweep`, of layouts that are given; refused: layouts that cannot be in any style, with the reason."""
    import pandas as pd

    found = [Tried(styles[0], LaidOut(layout, {}, 0, None, reason)) for layout, reason in refused]
    asked = [(style, layout) for style in styles for layout in possible]
    for results in _simulated(step.graph, machines, asked, workers):
        found += results
        done(len(found) - len(refused), len(asked))
    table = pd.DataFrame([_row(one, step, machines) for one in found])
    table = table.sort_values(
        ["step_time_ns", "over_bytes", *_LAYOUT, *_STYLE], na_position="last", ignore_index=True, kind="stable"
    )
    table["pareto"] = _pareto(table)
    return table


def losses(best: Mapping[Any, Any], other: Mapping[Any, Any]) -> dict[str, float]:
    """Where another layout's rank takes longer than the best one's, nanoseconds of a step; the parts add up to the whole difference.

    Compute is the time in which some compute engine works; memory, host and gaps are what is left of the step.
    """
    parts = {"compute": "compute_ns", "exposed communication": "exposed_ns", "bubble": "bubble_ns"}
    found = {what: other[column] - best[column] for what, column in parts.items()}
    rest = other["step_time_ns"] - best["step_time_ns"] - sum(found.values())
    return found | {"memory, host and gaps": rest}


def _simulated(
    graph: "Graph", machines: Machines, asked: "Sequence[tuple[Style, Layout]]", workers: int
) -> Iterator[list[Tried]]:
    """Results, in groups that share their parts and stages."""
    groups: dict[Any, list[Layout]] = defaultdict(list)
    for style, layout in asked:
        alike = replace(layout, zero=0, schedule="", accumulate=1, grad_sync="", prefetch=1)
        groups[style, alike].append(layout)
    tasks = sorted(((style, of) for (style, _), of in groups.items()), key=lambda t: -len(t[1]) * t[1][0].pp)
    given = (graph, machines.chip, machines.lnc)
    if min(workers, len(tasks)) <= 1:
        simulators = _Simulators(*given)
        yield from (simulators.run(*task) for task in tasks)
        return
    # A fresh process each: one that is forked would inherit PyTorch's threads in whatever state they are.
    count = min(workers, len(tasks))
    with ProcessPoolExecutor(count, get_context("spawn"), initializer=_prepare, initargs=given) as pool:
        futures: list[Future[list[Tried]]] = [pool.submit(_task, *task) for task in tasks]
        for future in as_completed(futures):
            yield future.result()


class _Simulators:
    """A simulator a style, which divides the model once for all of its layouts."""

    def __init__(self, graph: "Graph", chip: "Chip", lnc: int) -> None:
        self._graph, self._machine = graph, (chip, lnc)
        self._made: dict[Style, StepSimulator] = {}

    def run(self, style: Style, asked: "list[Layout]") -> list[Tried]:
        """Layouts that share their parts and stages, in one style."""
        try:
            simulator = self._of(style)
        except NeuronprofError as error:
            return [Tried(style, LaidOut(layout, {}, 0, None, str(error))) for layout in asked]
        found = [Tried(style, simulator.simulate(layout)) for layout in asked]
        simulator.forget()
        return found

    def _of(self, style: Style) -> StepSimulator:
        if style not in self._made:
            self._made[style] = StepSimulator(styled(self._graph, style), *self._machine)
        return self._made[style]


_simulators: list[_Simulators] = []  # of a process of the pool: one


def _prepare(graph: "Graph", chip: "Chip", lnc: int) -> None:
    # Nothing here refers back to itself: memory stays the same without a collector, which looks through the model a fifth of the time.
    gc.disable()
    _simulators.append(_Simulators(graph, chip, lnc))


def _task(style: Style, asked: "list[Layout]") -> list[Tried]:
    return _simulators[0].run(style, asked)


def _row(one: Tried, step: Step, machines: Machines) -> dict[str, Any]:
    result, layout, found = one.result, one.result.layout, one.result.figures
    row: dict[str, Any] = {name: getattr(layout, name) for name in _LAYOUT}
    row |= {name: getattr(one.style, name) for name in _STYLE}
    row["status"] = FITS if result.fits else IMPOSSIBLE if result.refused else TOO_LARGE
    row["global_batch"] = layout.dp * layout.accumulate * step.samples
    seconds = found.step_ns / _SECOND if found else float("nan")
    cost = seconds / _HOUR * machines.price * machines.count
    peak = machines.chip.peak.bf16 / machines.chip.ranks(machines.lnc)
    row["step_time_ns"] = found.step_ns if found else float("nan")
    row["samples_per_second"] = row["global_batch"] / seconds
    row["tokens_per_second"] = row["samples_per_second"] * (step.tokens or float("nan"))
    row["mfu"] = found.model_flops / (seconds * peak) if found else float("nan")
    for name in ("compute_ns", "exposed_ns", "bubble_ns"):
        row[name] = getattr(found, name) if found else float("nan")
    known = bool(result.peak)
    row["hbm_peak_bytes"] = result.peak_bytes if known else float("nan")
    row["hbm_capacity_bytes"] = result.capacity
    row["over_bytes"] = max(0, result.peak_bytes - result.capacity) if known else float("nan")
    row["cost_per_step"] = cost
    row["cost_per_million_tokens"] = (
        cost / (row["global_batch"] * step.tokens) * _MILLION if step.tokens else float("nan")
    )
    row["reason"] = result.refused
    return row


def _pareto(table: "pd.DataFrame") -> list[bool]:
    """Which layouts no other one beats in both step time and HBM; the table is sorted by step time."""
    least, front = float("inf"), []
    for status, peak in zip(table["status"], table["hbm_peak_bytes"], strict=True):
        front.append(status == FITS and peak < least)
        least = min(least, peak) if status == FITS else least
    return front
