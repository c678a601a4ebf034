"""What a step would take if something were different: its own dependencies, queues, collectives and messages, run again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from neuronprof.analyze import changes, critical_path
from neuronprof.analyze.analyzer import EVALUATION, Chip, Events, Window, context_of
from neuronprof.analyze.attribution import Attribution
from neuronprof.analyze.changes import Change, Replayed
from neuronprof.analyze.flow import WAITS, Step
from neuronprof.analyze.walk import Whole
from neuronprof.errors import NeuronprofError
from neuronprof.trace import reader

if TYPE_CHECKING:
    import pandas as pd

TOGETHER = "all together"


@dataclass(frozen=True)
class Answer:
    """What came out.

    times: change (the first row is the step as it is), step_time_ns, gain_ns, gain (of the step). split: part, detail, before_ns, after_ns,
    means of a rank. path: by, value, before_ns, after_ns on the critical path. events: the changed step's, as `flow.load` has them, with
    their new times.
    """

    step: int
    times: "pd.DataFrame"
    split: "pd.DataFrame"
    path: "pd.DataFrame"
    events: Events


def parse(
    scale: Sequence[str] = (),
    without_wait: Sequence[str] = (),
    fix_chip: Sequence[int] = (),
    overlap: Sequence[str] = (),
) -> dict[str, Change]:
    """Changes by how a user writes them: scale 'tensor=2' or 'layer:*.mlp=0.5', and so on as `neuronprof whatif` takes them.

    Raises:
        NeuronprofError: what cannot be read.
    """
    found: dict[str, Change] = {}
    for text in scale:
        target, _, value = text.rpartition("=")
        found[text] = changes.scaled(target, _factor(text, value, zero=":" in target))
    found |= {f"without waiting for {kind}": changes.without_wait(kind) for kind in without_wait}
    found |= {f"chip {chip} as good as the others": changes.fixed_chip(chip) for chip in fix_chip}
    found |= {f"{name} overlapped": changes.overlapped(name) for name in overlap}
    return found


def _factor(text: str, value: str, *, zero: bool) -> float:
    try:
        factor = float(value)
    except ValueError:
        factor = -1.0
    if not (factor > 0 or (zero and factor == 0)) or not np.isfinite(factor):
        raise NeuronprofError(f"--scale {text} cannot be read; write it like tensor=2 or 'layer:*.mlp=0.5'.")
    return factor


def ask(whole: Whole, wanted: Mapping[str, Change]) -> Answer:
    """Runs the typical step with each change alone, and with all of them.

    Raises:
        NeuronprofError: there is no training step, or a change does not fit this trace.
    """
    import pandas as pd

    step = whole.step
    if step is None or not len(step):
        raise NeuronprofError(f"{whole.trace.path} has no training step, so there is nothing to run again.")
    before = changes.run(step, whole.context)
    runs = {name: changes.run(step, whole.context, [change]) for name, change in wanted.items()}
    after = changes.run(step, whole.context, list(wanted.values()))
    named = {"as it is": before, **runs} | ({TOGETHER: after} if len(runs) > 1 else {})
    times = np.array([r.end_ts - step.window.start for r in named.values()])
    gain = times[0] - times
    table = pd.DataFrame(
        {"change": list(named), "step_time_ns": times, "gain_ns": gain, "gain": gain / max(times[0], 1)}
    )
    split = _beside([split_of(whole, r) for r in (before, after)], ["part", "detail"])
    path = _beside([_path(step, r) for r in (before, after)], ["by", "value"])
    return Answer(step.window.step, table, split, path, events_of(step, after))


def over_steps(trace: reader.TraceFile, wanted: Mapping[str, Change]) -> "pd.DataFrame":
    """Runs every training step with each change alone, and with all of them: step and the columns of `Answer.times`.

    Raises:
        NeuronprofError: there is no training step, or a change does not fit one.
    """
    import pandas as pd

    numbers: list[int | None] = [w.step for w in context_of(trace).windows if w.step != EVALUATION]
    times = []
    for number in numbers or [None]:
        answer = ask(Whole(trace, number), wanted)  # one step after another: memory holds the events of one
        times.append(answer.times.assign(step=answer.step))
    found = pd.concat(times, ignore_index=True)
    return found[["step", *(name for name in found if name != "step")]]


def events_of(step: Step, run: Replayed) -> Events:
    """The rows of a step with the times of a run."""
    columns = dict(step.events.columns)
    waits = [*step.events.words["wait_for"]]
    waits += [w for w in WAITS if w not in waits]
    columns["start_ts"], columns["duration_ns"] = run.start, run.end - run.start
    own = step.parent < 0
    columns["wait_ns"] = np.where(own, run.start - run.arrived, 0)
    codes = np.array([waits.index(w) for w in WAITS])
    columns["wait_for"] = np.where(own, codes[run.why], waits.index("none"))
    return Events(columns, {**step.events.words, "wait_for": tuple(waits)})


def split_of(whole: Whole, run: Replayed) -> "pd.DataFrame":
    """Where the time of a run goes: part, detail, and the mean nanoseconds of a rank."""
    step = whole.step
    assert step is not None
    window = Window(step.window.step, step.window.start, run.end_ts)
    attribution = Attribution()
    state = attribution.map(Chip(events_of(step, run), (window,)))
    table = attribution.finish(state, whole.context)["attribution"]
    table = table.assign(time_ns=table["per_step_ns"])
    return table.groupby(["part", "detail"], as_index=False)[["time_ns"]].sum()


def _path(step: Step, run: Replayed) -> "pd.DataFrame":
    path = critical_path.follow(step, run.start, run.end, run.by, run.end_ts)
    return critical_path.composition(step, path)[["by", "value", "time_ns"]]


def _beside(tables: "Sequence[pd.DataFrame]", keys: list[str]) -> "pd.DataFrame":
    """Two tables side by side, the largest first."""
    both = tables[0].merge(tables[1], on=keys, how="outer", suffixes=("_a", "_b")).fillna(0)
    both = both.rename(columns={"time_ns_a": "before_ns", "time_ns_b": "after_ns"})
    return both.sort_values([keys[0], "before_ns", *keys[1:]], ascending=[True, False, True], ignore_index=True)
