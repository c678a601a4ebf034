"""The analyzers there are, and how users name them and their tables."""

from functools import cache
from importlib.metadata import entry_points

from neuronprof.analyze.analyzer import Analyzer
from neuronprof.analyze.attribution import Attribution
from neuronprof.analyze.bottlenecks import Bottlenecks
from neuronprof.analyze.communication import Communication
from neuronprof.analyze.memory import Memory
from neuronprof.analyze.roofline import Roofline
from neuronprof.analyze.underused import Underused
from neuronprof.analyze.utilization import Utilization
from neuronprof.errors import NeuronprofError

ANALYZERS: tuple[Analyzer, ...] = (
    Utilization(),
    Bottlenecks(),
    Attribution(),
    Communication(),
    Underused(),
    Roofline(),
    Memory(),
)
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
        if taken := set(analyzer.tables) & {table for one in (*ANALYZERS, *found) for table in one.tables}:
            raise NeuronprofError(
                f"The analyzer {point.value} has a table '{min(taken)}', as another has; mend or uninstall its package."
            )
        found.append(analyzer)
    return tuple(found)


def find(name: str) -> Analyzer:
    """The analyzer that is called `name`, or has a table of that name.

    Raises:
        NeuronprofError: there is none.
    """
    every = (*ANALYZERS, *installed())
    for analyzer in every:
        if name in analyzer.tables:
            return analyzer
    tables = ", ".join(table for analyzer in every for table in analyzer.tables)
    raise NeuronprofError(f"There is no analysis '{name}'; choose from {tables}.")
