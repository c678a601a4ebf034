"""Many layouts of one captured step on one machine, simulated side by side in several processes."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
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

AXES = ("dp", "tp", "pp", "cp", "vp", "microbatches", "accumulate", "zero", "sequence_parallel", "schedule")
FITS, TOO_LARGE, IMPOSSIBLE = "fits", "does not fit", "impossible"
_SECOND = 1e9  # nanoseconds
_MILLION = 1e6
_HOUR = 3600.0


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


def run_as(step: Step, style: Style) -> Step:
    """The step in an execution style.

    Raises:
        NeuronprofError: nothing in the model repeats.
    """
    return replace(step, graph=styled(step.graph, style))


def sweep(
    step: Step,
    machines: Machines,
    grid: Grid,
    *,
    workers: int = 1,
    done: Callable[[int, int], None] = lambda _done, _count: None,
) -> "pd.DataFrame":
    """Simulates every layout of a grid; a row a layout, the fastest first, then what does not fit, then what is impossible.

    workers: processes; done: told how many of how many layouts are finished.

    Raises:
        NeuronprofError: no layout of the grid divides the ranks.
    """
    return tried(step, machines, *layouts(grid, machines.ranks, step.samples), workers=workers, done=done)


def tried(
    step: Step,
    machines: Machines,
    possible: "Sequence[Layout]",
    refused: "Sequence[tuple[Layout, str]]" = (),
    *,
    workers: int = 1,
    done: Callable[[int, int], None] = lambda _done, _count: None,
) -> "pd.DataFrame":
    """As `sweep`, of layouts that are given; refused: layouts that cannot be, with the reason."""
    import pandas as pd

    found = [LaidOut(layout, {}, 0, None, reason) for layout, reason in refused]
    for results in _simulated(step.graph, machines, possible, workers):
        found += results
        done(len(found) - len(refused), len(possible))
    table = pd.DataFrame([_row(result, step, machines) for result in found])
    table = table.sort_values(
        ["step_time_ns", "over_bytes", *AXES], na_position="last", ignore_index=True, kind="stable"
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


def _simulated(graph: "Graph", machines: Machines, asked: "Sequence[Layout]", workers: int) -> Iterator[list[LaidOut]]:
    """Results, in groups that share their parts and stages."""
    groups: dict[Any, list[Layout]] = defaultdict(list)
    for layout in asked:
        groups[replace(layout, zero=0, schedule="", accumulate=1)].append(layout)
    tasks = sorted(groups.values(), key=lambda g: -len(g) * g[0].pp)
    given = (graph, machines.chip, machines.lnc)
    if min(workers, len(tasks)) <= 1:
        simulator = StepSimulator(*given)
        yield from (_group(simulator, task) for task in tasks)
        return
    # A fresh process each: one that is forked would inherit PyTorch's threads in whatever state they are.
    count = min(workers, len(tasks))
    with ProcessPoolExecutor(count, get_context("spawn"), initializer=_prepare, initargs=given) as pool:
        futures: list[Future[list[LaidOut]]] = [pool.submit(_task, task) for task in tasks]
        for future in as_completed(futures):
            yield future.result()


_simulators: "list[StepSimulator]" = []  # of a process of the pool: one, which divides the model once for all of its layouts


def _prepare(graph: "Graph", chip: "Chip", lnc: int) -> None:
    _simulators.append(StepSimulator(graph, chip, lnc))


def _task(asked: "list[Layout]") -> list[LaidOut]:
    return _group(_simulators[0], asked)


def _group(simulator: StepSimulator, asked: "list[Layout]") -> list[LaidOut]:
    found = [simulator.simulate(layout) for layout in asked]
    simulator.forget()
    return found


def _row(result: LaidOut, step: Step, machines: Machines) -> dict[str, Any]:
    layout, found = result.layout, result.figures
    row: dict[str, Any] = {name: getattr(layout, name) for name in AXES}
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
