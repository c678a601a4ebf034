"""The page that compares traces: what made the step longer or shorter, in words and by operator, below the timelines of both.

A click on an operator shows its places, one below the other.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neuronprof import units
from neuronprof.view import tables
from neuronprof.view.heading import BOUND
from neuronprof.view.tables import Shown

if TYPE_CHECKING:
    import pandas as pd

    from neuronprof.analyze.compare import Difference

_TIMES = (
    Shown("before_ns", "Before", "time"), Shown("after_ns", "After", "time"), Shown("difference_ns", "Difference", "time"),
)  # fmt: skip
_CLASSES = (Shown("class", "Bound by", width=160), *_TIMES)
_OPERATORS = (
    Shown("op_name", "Operator", width=180), Shown("layer", "Layer", width=240), Shown("phase", "Phase"),
    Shown("other", "Called there", width=200), *_TIMES,
)  # fmt: skip


def sentence(difference: "Difference") -> str:
    """What a comparison found, in one line."""
    before, after = units.time(difference.before_ns), units.time(difference.after_ns)
    change = difference.difference_ns
    share = f" ({100 * change / difference.before_ns:+.1f} %)" if difference.before_ns else ""
    told = f"step time {before} -> {after}: {'+' if change > 0 else ''}{units.time(change)}{share}"
    if math.isnan(difference.noise_ns):
        return f"{told}; how much of it is noise is not known, as a trace has fewer than two steps"
    if difference.is_noise:
        return f"{told}, which is noise: the steps differ by {units.time(difference.noise_ns)} among themselves"
    return f"{told}, more than the noise of {units.time(difference.noise_ns)}"


def parts(differences: Sequence["Difference"]) -> list[Any]:
    """The page's parts, for each trace after the first."""
    found: list[Any] = []
    for number, one in enumerate(differences, 1):
        classes = one.classes[one.classes["before_ns"] + one.classes["after_ns"] > 0]
        classes = classes.assign(**{"class": [BOUND.get(name, name) for name in classes["class"]]})
        found += [
            *tables.under(
                tables.sentence(f"{one.before} -> {one.after}: {sentence(one)}."),
                tables.data_table(classes, _CLASSES),
                "differences",
            ),
            *tables.under(
                tables.sentence(
                    "By operator; the rows add up to the difference. A click brings both places above one below the other."
                ),
                _operators(one.operators.head(tables.MOST_ROWS), number),
                "differences_by_operator",
            ),
        ]
    return found


def _operators(table: "pd.DataFrame", number: int) -> Any:
    """The operators, each of which asks the page for its place in the first trace and in this one."""
    from bokeh.models import CustomJS

    own = [" ".join(filter(None, key)) for key in table[["op_name", "layer", "phase"]].itertuples(index=False, name=None)]  # fmt: skip
    there = [other or name for other, name in zip(table["other"], own, strict=True)]
    only = np.select([table["after_ns"] == 0, table["before_ns"] == 0], ["not there", "only there"], table["other"])
    shown = tables.data_table(table.assign(other=only, op_name=table["op_name"].replace("", "no operator")), _OPERATORS)
    code = """
const [row] = cb_obj.indices
if (row !== undefined)
  document.dispatchEvent(new CustomEvent("neuronprof.operator", {detail: [[0, own[row]], [number, there[row]]]}))
"""
    shown.source.selected.js_on_change("indices", CustomJS(args={"own": own, "there": there, "number": number}, code=code))  # fmt: skip
    return shown
