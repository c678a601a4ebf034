"""What of a trace is read at once: chips that are small as they are, others by rank and step, so that memory stays flat."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from neuronprof import units
from neuronprof.analyze.analyzer import BASE, Analyzer, Scope, Window
from neuronprof.trace.reader import TraceFile

AT_ONCE = 920_000_000  # bytes that the events which are looked at take: 1.6 million for all analyzers together
BYTES_A_VALUE = 24  # of memory, with what is made of it, as measured with all analyzers on 10 million events
MOST_BYTES = 1_200_000_000  # that one analyzer takes which cannot do with less than a whole step, or chip


@dataclass(frozen=True)
class Task:
    """A piece of a trace, and who looks at it. rank, steps: None for all of a chip; cut: in stretches of time; events: how many."""

    path: Path
    chip: int
    analyzers: tuple[Analyzer, ...]
    windows: tuple[Window, ...]
    events: int
    rank: int | None = None
    steps: tuple[int, ...] | None = None
    cut: bool = False
    at_once: int = 0


def columns(analyzers: Sequence[Analyzer]) -> tuple[str, ...]:
    """What the analyzers read, together."""
    return tuple(dict.fromkeys(BASE + tuple(name for analyzer in analyzers for name in analyzer.needs)))


@dataclass(frozen=True)
class _Large:
    """A chip that is too large to be read at once: its events by rank and step."""

    chip: int
    events: Mapping[tuple[int, int], int]

    def steps(self, rank: int, windows: Sequence[Window]) -> dict[int, int]:
        """The rank's events in each step that there is."""
        there = {window.step: 0 for window in windows}
        there |= {step: count for (one, step), count in self.events.items() if one == rank}
        return dict(sorted(there.items()))


def plan(
    trace: TraceFile, analyzers: Sequence[Analyzer], windows: tuple[Window, ...], at_once: int, most: float
) -> tuple[list[Task], dict[str, str]]:
    """The tasks, those of a rank one after another; and the analyzers that would take more than `most` bytes, each with a sentence."""
    sizes = {chip: trace.most_rows(chip) for chip in trace.chips or [0]}
    large = {chip: _Large(chip, trace.census(chip)) for chip, size in sizes.items() if size > at_once}
    large = {chip: one for chip, one in large.items() if sum(one.events.values()) > at_once}
    left_out = {one.name: why for one in analyzers if (why := _too_large(one, large.values(), most, trace.path))}
    asked = tuple(analyzer for analyzer in analyzers if analyzer.name not in left_out)
    tasks: list[Task] = []
    for chip, size in sizes.items():
        if chip in large:
            tasks += _pieces(trace.path, large[chip], asked, windows, at_once)
        else:
            tasks.append(Task(trace.path, chip, asked, windows, size))
    return tasks, left_out


def _too_large(analyzer: Analyzer, chips: Iterable[_Large], most: float, path: Path) -> str:
    """Why an analyzer cannot be run; '' if it can."""
    events, where = 0, ""
    for one in chips:
        if analyzer.scope is Scope.CHIP:
            events, where = max((events, where), (sum(one.events.values()), f"chip {one.chip}"))
        elif analyzer.scope is Scope.STEP:
            steps = ((n, f"step {step} of rank {rank}") for (rank, step), n in one.events.items())
            events, where = max((events, where), *steps)
    needed = events * memory([analyzer])
    if needed <= most:
        return ""
    return (
        f"{analyzer.name} is left out: it has to hold the {events:,} events of {where} of {path} at once, which takes about "
        f"{units.size(needed)} of memory, and {units.size(most)} may be taken. Record less of the model in one step to have it."
    )


def free_memory() -> float:
    """Bytes that can be had without swapping; infinite where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return math.inf
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), math.inf)


def memory(analyzers: Sequence[Analyzer]) -> int:
    """Bytes that an event takes while these look at it."""
    return BYTES_A_VALUE * len(columns(analyzers))


def _pieces(
    path: Path, large: _Large, analyzers: tuple[Analyzer, ...], windows: tuple[Window, ...], at_once: int
) -> Iterator[Task]:
    whole = tuple(one for one in analyzers if one.scope is Scope.CHIP)
    by_rank = tuple(one for one in analyzers if one.scope is not Scope.CHIP)
    by_step = tuple(one for one in analyzers if one.scope is Scope.STEP)
    if whole:
        yield Task(path, large.chip, whole, windows, sum(large.events.values()))
    for rank in sorted({rank for rank, _ in large.events}):
        for steps, count in _together(large.steps(rank, windows), at_once):
            mine = tuple(window for window in windows if window.step in steps)
            if count <= at_once:
                yield Task(path, large.chip, by_rank, mine, count, rank, steps)
                continue
            rest = tuple(one for one in by_rank if one.scope is not Scope.STEP)
            if rest:
                yield Task(path, large.chip, rest, mine, count, rank, steps, True, at_once)
            if by_step:
                yield Task(path, large.chip, by_step, mine, count, rank, steps)


def _together(steps: Mapping[int, int], at_once: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """Steps that follow each other and together have no more than so many events, or one step; with the number of their events."""
    held: list[int] = []
    events = 0
    for step, count in steps.items():
        if held and events + count > at_once:
            yield tuple(held), events
            held, events = [], 0
        held.append(step)
        events += count
    yield tuple(held), events
