"""The analyzers there are, and how users name them and their tables."""

from collections.abc import Sequence
from functools import cache
from importlib.metadata import entry_points

from neuronprof.analyze import passes, plan
from neuronprof.analyze.advice.walk import Advice
from neuronprof.analyze.analyzer import Analyzer, Mapper, State
from neuronprof.analyze.attribution import Attribution
from neuronprof.analyze.bottlenecks import Bottlenecks
from neuronprof.analyze.communication import Communication
from neuronprof.analyze.critical_path import CriticalPath
from neuronprof.analyze.links import Links
from neuronprof.analyze.memory import Memory
from neuronprof.analyze.movable import Movable
from neuronprof.analyze.onchip import OnChipUse
from neuronprof.analyze.pearray import PeArray
from neuronprof.analyze.roofline import Roofline
from neuronprof.analyze.sbuf import Sbuf
from neuronprof.analyze.schedule import Schedule
from neuronprof.analyze.semaphores import Semaphores
from neuronprof.analyze.stragglers import Stragglers
from neuronprof.analyze.traffic import Traffic
from neuronprof.analyze.transfers import Transfers
from neuronprof.analyze.underused import Underused
from neuronprof.analyze.utilization import Utilization
from neuronprof.analyze.walk import TooLargeError, Walk, Whole
from neuronprof.errors import NeuronprofError
from neuronprof.trace import reader

ANALYZERS: tuple[Analyzer, ...] = (
    Utilization(),
    Bottlenecks(),
    Attribution(),
    Communication(),
    Traffic(),
    Links(),
    Schedule(),
    Underused(),
    PeArray(),
    Movable(),
    Transfers(),
    Roofline(),
    Memory(),
    OnChipUse(),
)
DETAILS: tuple[Analyzer, ...] = (Sbuf(),)  # when asked by name
ADVICE = Advice()
WALKS: tuple[Walk, ...] = (
    ADVICE,
    CriticalPath(),
    Stragglers(),
    Semaphores(),
)  # these look at one step; but for the advice, when asked by name
NAMES = tuple(analyzer.name for analyzer in ANALYZERS)
GROUP = "neuronprof.analyzers"  # the entry points under which packages offer analyzers of their own


@cache
def installed() -> tuple[Analyzer, ...]:
    """The analyzers that installed packages offer: an entry point is a subclass of `Analyzer` or an object of one.

    Raises:
        NeuronprofError: one cannot be loaded, is no analyzer, or has the name of another.
    """
    found: list[Analyzer] = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            offered = point.load()
            analyzer = offered() if isinstance(offered, type) else offered
        except Exception as error:
            raise NeuronprofError(
                f"The analyzer {point.value} cannot be loaded ({error}); mend or uninstall its package."
            ) from error
        if not isinstance(analyzer, Analyzer):
            raise NeuronprofError(
                f"{point.value} is no neuronprof.analyze.analyzer.Analyzer; mend or uninstall its package."
            )
        if taken := set(analyzer.tables) & {table for one in (*ANALYZERS, *DETAILS, *found) for table in one.tables}:
            raise NeuronprofError(
                f"The analyzer {point.value} has a table '{min(taken)}', as another has; mend or uninstall its package."
            )
        found.append(analyzer)
    return tuple(found)


def find(name: str) -> Analyzer | Walk:
    """The analyzer or walk that is called `name`, or has a table of that name.

    Raises:
        NeuronprofError: there is none.
    """
    every: list[Analyzer | Walk] = [*ANALYZERS, *DETAILS, *WALKS, *installed()]
    for question in every:
        if name in question.tables:
            return question
    tables = ", ".join(table for question in every for table in question.tables)
    raise NeuronprofError(f"There is no analysis '{name}'; choose from {tables}.")


def run(
    trace: reader.TraceFile,
    questions: Sequence[Analyzer | Walk],
    *,
    mapper: Mapper = map,
    report: passes.Report = passes.silent,
    left_out: dict[str, str] | None = None,
) -> dict[str, State]:
    """The finished tables of each question, by its name; see `passes.run` for the arguments.

    Raises:
        NeuronprofError: the trace is damaged, or too large for a question and `left_out` is not given.
    """
    analyzers = [q for q in questions if isinstance(q, Analyzer)]
    results = passes.run(trace, analyzers, mapper=mapper, report=report, left_out=left_out) if analyzers else {}
    whole = Whole(trace, memory=None if left_out is None else plan.MOST_BYTES)
    for walk in questions:
        if isinstance(walk, Walk):
            results[walk.name] = _walked(walk, whole, left_out)
    return results


def _walked(walk: Walk, whole: Whole, left_out: dict[str, str] | None) -> State:
    try:
        return walk.answer(whole)
    except TooLargeError as error:
        if left_out is None:
            raise
        left_out[walk.name] = f"{walk.name} is left out. {error}"
        return walk.nothing()
