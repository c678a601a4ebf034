"""The one function that scripts, notebooks and clusters need."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronprof.analyze import analyzer, execution, registry
from neuronprof.trace.reader import TraceFile, open_trace

if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client


def analyze(
    trace: str | Path | TraceFile | Any,
    *analyses: str | analyzer.Analyzer,
    workers: int = 1,
    client: "Client | None" = None,
) -> "dict[str, pd.DataFrame]":
    """Runs analyses over a trace, each chip read once.

    Example: neuronprof.analyze("trace.parquet", "bottlenecks", MyAnalyzer(), client=Client("tcp://scheduler:8786")).

    Args:
        trace: a path, or what `neuronprof.load` returns.
        analyses: names, of an analysis or of one of its tables, or analyzers; all that there are if none is given.
        workers: processes of this machine; an analyzer that is written in a notebook cannot go to another process, but to a cluster.
        client: of a Dask cluster whose workers see the trace under the same path; it takes the place of `workers`.

    Returns:
        The tables by name.

    Raises:
        NeuronprofError: there is no such trace or analysis, or the trace is damaged.
    """
    file = open_trace(trace) if isinstance(trace, str | Path) else getattr(trace, "file", trace)
    wanted = [one if isinstance(one, analyzer.Analyzer) else registry.find(one) for one in analyses]
    chosen = list(dict.fromkeys(wanted)) or [*registry.ANALYZERS, *registry.installed()]
    with execution.on(workers) as local:
        results = registry.run(file, chosen, mapper=local if client is None else execution.mapper(client))
    return {name: table for tables in results.values() for name, table in tables.items()}
