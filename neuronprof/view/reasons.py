"""Why events took as long as they did, for a page without a server: a text for all events that were computed alike."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze.durations import worked
from neuronprof.analyze.explain import without_formula
from neuronprof.analyze.sbuf import why_again
from neuronprof.errors import NeuronprofError
from neuronprof.view import why

if TYPE_CHECKING:
    from neuronprof.trace.reader import TraceFile

MOST = 5000  # texts in a page; the commonest ones
# What a duration hangs on, besides the rank and its noise, and what is said of it.
_ALIKE = ("operands", "engine", "replica_group", "name")


@dataclass(frozen=True)
class Reasons:
    """texts: what follows "It took so long"; number: by the ids of events from a first one on, 1 for the first text, 0: none."""

    texts: list[str]
    number: NDArray[np.int64]


def find(trace: "TraceFile", rank: int, first_id: int) -> Reasons:
    """The reasons of a rank's events, whose ids are counted from first_id.

    Raises:
        NeuronprofError: the trace is damaged.
    """
    table = (
        trace.columns(("id", "kind", "chip", "rank", "bytes", *_ALIKE), rank=rank).to_pandas().query("id >= @first_id")
    )
    if table.empty:
        return Reasons([], np.zeros(0, np.int64))
    table["reason"] = table.groupby(list(_ALIKE), dropna=False, observed=True, sort=False).ngroup()
    common = table["reason"].value_counts().index[:MOST]
    first = table.drop_duplicates("reason").set_index("reason").loc[common]
    metadata = {**trace.metadata, "jitter": 0}
    texts = [_text(event, metadata, trace.metadata.get("jitter")) for event in first.to_dict("records")]
    place = np.zeros(int(table["reason"].max()) + 1, np.int64)
    place[common.to_numpy()] = np.arange(1, len(common) + 1)
    own = table["id"].to_numpy() - first_id
    number = np.zeros(int(own.max()) + 1, np.int64)
    number[own] = place[table["reason"].to_numpy()]
    return Reasons(texts, number)


def _text(event: dict[str, Any], metadata: Mapping[str, Any], jitter: float | None) -> str:
    event = {**event, **{name: event[name] if isinstance(event[name], str) else None for name in _ALIKE}}
    if note := without_formula(event, metadata):
        return ".\n\n" + "\n".join(textwrap.wrap(note, why.LETTERS))
    try:
        found = worked(event, metadata)
    except NeuronprofError:  # of one kind of event: the page has all else
        return ".\n\nThe trace keeps no formula that would say why."
    noise = [f"Besides, noise of the rank (jitter {jitter:g})"] if jitter else []
    again = why_again(event["name"] or "", event["bytes"], event["operands"])
    return ", " + "\n\n".join([*why.parts(found, why.LETTERS, again), *noise])
