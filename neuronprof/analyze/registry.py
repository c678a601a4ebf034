"""The analyzers there are, and how users name them and their tables."""

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


def find(name: str) -> Analyzer:
    """The analyzer that is called `name`, or has a table of that name.

    Raises:
        NeuronprofError: there is none.
    """
    for analyzer in ANALYZERS:
        if name in analyzer.tables:
            return analyzer
    tables = ", ".join(table for analyzer in ANALYZERS for table in analyzer.tables)
    raise NeuronprofError(f"There is no analysis '{name}'; choose from {tables}.")
