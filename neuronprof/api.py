"""What scripts and notebooks use: `neuronprof.load` for a trace, `step`, `region` and `recording` inside a training script."""

import html
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronprof.errors import NeuronprofError

if TYPE_CHECKING:
    import pandas as pd

    from neuronprof.analyze.analyzer import Mapper
    from neuronprof.analyze.summary import Summary
    from neuronprof.trace.reader import TraceFile

_PIPELINE = "neuronprof.pipeline"


def load(path: str | Path) -> "Trace":
    """Opens a trace; events are read when they are asked for.

    Raises:
        NeuronprofError: there is no trace, it is damaged, or it is of a newer version.
    """
    from neuronprof.trace.reader import open_trace

    return Trace(open_trace(path))


class Trace:
    """A recorded run. file: the trace as the package's other functions take it."""

    def __init__(self, file: "TraceFile", mapper: "Mapper" = map) -> None:
        """Wraps an open trace.

        Args:
            file: from `open_trace`.
            mapper: what runs the analyzers over the chips; `multiprocessing.Pool().map` uses all cores.
        """
        self.file = file
        self._mapper = mapper
        self._tables: dict[str, pd.DataFrame] = {}

    @property
    def metadata(self) -> dict[str, Any]:
        """Script, machine, mesh, segments: everything about the run that is not an event."""
        return self.file.metadata

    @cached_property
    def events(self) -> "pd.DataFrame":
        """All events with all columns of the schema; strings are categories."""
        return self.file.columns().to_pandas()

    @property
    def operators(self) -> "pd.DataFrame":
        """The operators of the recorded graph; `op` is what events refer to."""
        return self.file.operators

    @property
    def ranks(self) -> "pd.DataFrame":
        """What every rank of the job did, also those whose events are not in the trace: a row a step, rank and engine.

        Columns: step, rank, chip, core, stage, engine, busy_ns (the engine worked), wait_peer_ns (the rank waited for others), end_ts.
        """
        return self.file.totals

    def analyze(self, name: str) -> "pd.DataFrame":
        """The result of an analysis: 'utilization', 'bottlenecks', 'bottlenecks_by_operator', ...

        Raises:
            NeuronprofError: there is no analysis of this name; the message lists all.
        """
        from neuronprof.analyze import registry

        if name not in self._tables:
            wanted = registry.find(name)
            self._tables |= registry.run(self.file, [wanted], mapper=self._mapper)[wanted.name]
        return self._tables[name].copy()

    def summary(self) -> "Report":
        """Step time and its split, what costs most, MFU, memory, communication; prints well."""
        from neuronprof.analyze.summary import summarize

        return Report(summarize(self.file, mapper=self._mapper))

    def explain(self, event: int | str, width: int = 120) -> str:
        """Why an event took as long as it did and did not start sooner, as `neuronprof explain` prints it.

        Args:
            event: its id, or a name, operator or layer (wildcards allowed), of which the longest event is taken.
            width: letters of a line.

        Raises:
            NeuronprofError: there is no such event.
        """
        from neuronprof.analyze.explain import explain
        from neuronprof.view import why

        return why.text(explain(self.file, str(event)), width)

    def timeline(self, **options: Any) -> Any:
        """A Bokeh layout of the timeline, for a notebook; options as `neuronprof.view.timeline.timeline` takes them."""
        from neuronprof.view import timeline

        return timeline.timeline(self.file, **options)

    def roofline(self) -> Any:
        """A Bokeh figure of the operators under the machine's roofs; `analyze("roofline")` is its table."""
        from neuronprof.view import rooflineplot

        return rooflineplot.figure(self.analyze("roofline"), (self.metadata.get("machine") or {}).get("rank") or {})

    def traffic(self) -> Any:
        """A Bokeh figure of the bytes from rank to rank; `analyze("traffic")` is its table.

        Raises:
            NeuronprofError: no rank sends anything.
        """
        from neuronprof.analyze import pairs
        from neuronprof.view import trafficplot

        sent = pairs.matrix(self.analyze("traffic"))
        if not sent.bytes.size:
            raise NeuronprofError(f"{self.file.path} has no collectives between ranks.")
        return trafficplot.figure(sent)

    def schedule(self) -> Any:
        """A Bokeh figure of the pipeline's schedule, stages against time; `analyze("schedule")` is its table.

        Raises:
            NeuronprofError: the job has no pipeline.
        """
        from neuronprof.view import scheduleplot

        table = self.analyze("schedule")
        if table.empty:
            raise NeuronprofError(f"{self.file.path} has no pipeline; record one with --pp.")
        return scheduleplot.figure(table)

    def topology(self) -> Any:
        """A Bokeh layout of the job's chips in their UltraServers, by what they send, how busy links are, or times of their ranks.

        Raises:
            NeuronprofError: the trace does not tell of the machine, or of nothing that differs between chips.
        """
        from neuronprof.analyze import places
        from neuronprof.view import topologyplot

        joined, world = places.Topology.of(self.metadata), int(self.metadata.get("world_size") or len(self.file.ranks))
        if joined is None:
            raise NeuronprofError(f"{self.file.path} does not tell how its chips are joined.")
        known = places.measures(joined, world, self.ranks, self.analyze("traffic"), self.analyze("links"))
        if not known:
            raise NeuronprofError(f"{self.file.path} tells nothing of its chips that could be shown.")
        plan = places.plan(joined, -(-world // joined.ranks_per_chip))
        return topologyplot.figure(joined, plan, known, topologyplot.server(self.metadata["machine"]))

    def rank_map(self) -> Any:
        """A Bokeh layout of all ranks of the job over its steps, by waiting, lateness or busy engine; `ranks` is its table.

        Raises:
            NeuronprofError: the trace does not say what each rank did.
        """
        from neuronprof.analyze.everyrank import over_steps
        from neuronprof.view import heatmap

        if self.ranks.empty:
            raise NeuronprofError(f"{self.file.path} does not say what each rank did; record it again.")
        return heatmap.figure(over_steps(self.ranks))

    def __repr__(self) -> str:
        return f"<neuronprof trace {self.file.path}: {self.file.num_events:,} events>"


@dataclass(frozen=True)
class Report:
    """A summary that prints as text, and as a page's fragment in a notebook. figures: the numbers, NaN where unknown."""

    figures: "Summary"

    def __str__(self) -> str:
        from neuronprof.view.terminal import render_text

        return render_text(self.figures)

    def _repr_html_(self) -> str:
        return f'<pre style="line-height: 1.35">{html.escape(str(self))}</pre>'

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON has them, unknown ones None."""
        from dataclasses import asdict

        from neuronprof.analyze.summary import plain

        figures: dict[str, Any] = plain(asdict(self.figures))
        return figures


def step() -> None:
    """Marks the end of a training step for the recording that runs; does nothing when none does."""
    pipeline = sys.modules.get(_PIPELINE)
    if pipeline is not None:
        pipeline.step()


def region(name: str) -> AbstractContextManager[Any]:
    """A named part of a step: `with neuronprof.region("attention"): ...`; does nothing when no recording runs."""
    pipeline = sys.modules.get(_PIPELINE)
    return nullcontext() if pipeline is None else pipeline.region(name)


def recording(path: str | Path = "trace.parquet", **options: Any) -> AbstractContextManager[Any]:
    """Records the training steps inside the block: `with neuronprof.recording("trace.parquet", chip="trainium4"): ...`."""
    from neuronprof import pipeline

    context: AbstractContextManager[Any] = pipeline.recording(path, **options)
    return context


def record(script: str | Path, *arguments: str, **options: Any) -> Any:
    """Runs a training script as `neuronprof record` does.

    Example: neuronprof.record("train.py", "--epochs", "1", dp=8, output="trace.parquet").

    Args:
        script: what to run, as `__main__`.
        arguments: its command line.
        options: fields of `neuronprof.pipeline.Options`.

    Returns:
        trace (path, None if no step was found) and exit_code.
    """
    from neuronprof import pipeline

    return pipeline.record(script, arguments, pipeline.Options.of(**options))
