"""How much of the PE array products fill, from what their durations were computed with."""

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze.analyzer import Context, Events
from neuronprof.analyze.flow import quantity

_FORMULA = "matmul"  # the one whose operands are the sides of a product: M stationary, K contracted, N moving


def fills(events: Events, context: Context) -> NDArray[np.float64]:
    """Of each row the share of the PE array's cells and cycles that its product needs, 1 where it is no product or the trace does not tell.

    K rows of the array and M columns work in whole arrays, and each pass over N moving columns takes at least the shortest time of an
    instruction (NKI guide, Trainium architecture, tensor engine).
    """
    words = events.words["operands"]
    by_word = np.array([*(_fill(word, context) for word in words), 1.0])
    filled: NDArray[np.float64] = by_word[events["operands"]]
    return filled


def _fill(operands: str, context: Context) -> float:
    formula, *given = operands.split()
    rows, columns = quantity(context, "tensor.rows"), quantity(context, "tensor.columns")
    if formula != _FORMULA or not np.isfinite(rows * columns):
        return 1.0
    sides = {name: float(value) for name, _, value in (pair.partition("=") for pair in given)}
    shortest = max(quantity(context, "tensor.interval_min"), quantity(context, "tensor.weight_load"))
    moving = shortest * np.ceil(sides["N"] / quantity(context, "tensor.moving_max"))
    return float(_whole(sides["K"], rows) * _whole(sides["M"], columns) * sides["N"] / max(sides["N"], moving))


def _whole(side: float, array: float) -> float:
    """The share of arrays that a side fills."""
    return float(side / (array * np.ceil(side / array)))
