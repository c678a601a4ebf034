"""Rules of operators that pick rows by index: lookups, scatters, and the grouped products of experts."""

from neuronprof.distribute.sharding.placement import PARTIAL, Dim, Partial, Passed, Placements, Seen
from neuronprof.graph.ir import Signature, Tensor

_MATRIX = 2


def grouped_product(signature: Signature, given: Placements) -> Passed:
    """Rows by group times a matrix a group; or, contracting the rows, a matrix a group: (N, k) x (g, k, n), (m, N) x (N, n)."""
    a, b = (None if g is PARTIAL else g for g in given[:2])
    rest = tuple(None if isinstance(g, Partial) else g for g in given[2:])
    rows_contracted = len(signature.inputs[1].shape) == _MATRIX
    last = len(signature.outputs[0].shape) - 1
    contracted = 0 if rows_contracted else 1
    if isinstance(a, Dim) and a.index == 1:
        return Passed((a, a.at(contracted), *rest), (PARTIAL,))
    if isinstance(b, Dim) and b.index == contracted:
        return Passed((b.at(1), b, *rest), (PARTIAL,))
    if isinstance(b, Dim):  # columns
        return Passed((None, b, *rest), (b.at(last),))
    return Passed((a, None, *rest), (a.at(last - 1) if isinstance(a, Dim) else None,))


def found(signature: Signature, given: Placements) -> Passed:
    """Positions of what is not zero: as many in each part on average."""
    rows = signature.outputs[0].shape[0]
    return Passed(given, (Dim(0, rows, 1, rough=True),) if any(given) else (None,))


def counted(signature: Signature, given: Placements) -> Passed:
    """Histograms: each rank counts what it has."""
    return Passed(given, (None,) * len(signature.outputs))


def created(signature: Signature, given: Placements) -> Passed:
    """New tensors: divided as the one that they are made like, if they have its shape."""
    like = signature.inputs[0].shape
    return Passed(given, tuple(given[0] if t.shape == like else None for t in signature.outputs))


def unselected(signature: Signature, given: Placements) -> Passed:
    """The gradient of one index of a dimension, set into zeros: attributes end with that dimension and the index."""
    dim = given[0]
    if not isinstance(dim, Dim):
        return Passed(given, (None,))
    selected = signature.attributes[-2] % len(signature.outputs[0].shape)
    return Passed(given, (dim.at(dim.index + (dim.index >= selected)),))


def picked(signature: Signature, given: Placements) -> Passed | None:
    """Rows of a table by divided indices; None: the indices are whole."""
    dim = next((g for g in given[1:] if isinstance(g, Dim)), None)
    if dim is None:
        return None
    size = signature.inputs[1 + given[1:].index(dim)].shape[dim.index]
    indices = tuple(_same(t, dim, size) for t in signature.inputs[1:])
    return Passed((given[0], *indices), (_same(signature.outputs[0], dim, size),))


def put(signature: Signature, given: Placements) -> Passed | None:
    """Rows written or added by index; what takes them is divided as they are, along its first dimension. None: the rows are whole."""
    dim = next((g for g in given[1:] if isinstance(g, Dim) and g.index == 0), None)
    if dim is None:
        return None
    target = signature.inputs[0]
    size = signature.inputs[1 + given[1:].index(dim)].shape[0]
    whole = given[0] if isinstance(given[0], Dim) else Dim(0, target.shape[0], 1, rough=True)
    rows = tuple(_same(t, dim, size) for t in signature.inputs[1:])
    return Passed((whole, *rows), (whole,) * len(signature.outputs))


def _same(tensor: Tensor, dim: Dim, size: int) -> Seen:
    return dim if len(tensor.shape) > dim.index and tensor.shape[dim.index] == size else None
