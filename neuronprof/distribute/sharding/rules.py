"""How each kind of operator passes placements on: what it demands of its inputs, and what its outputs are then."""

from neuronprof.distribute.sharding import routing
from neuronprof.distribute.sharding.placement import PARTIAL, Dim, Passed, Placements, Seen
from neuronprof.graph.ir import Signature, Tensor
from neuronprof.graph.ops import OpKind, work

# Sums pass through these, because they are linear: numbers through all, tensors only through additions, so that several sums are resolved
# together, as early as that, and in the type in which they were made.
_ADDS = frozenset(["aten.add", "aten.add_"])
_LINEAR = {*_ADDS, "aten._to_copy", "aten.clone", "aten.copy_", "aten.sub", "aten.stack", "aten.cat", "aten.sum", "aten.mean",
           "aten.linalg_vector_norm", "aten.mul", "aten.div", "aten.mul_", "aten.div_", "aten.neg"}  # fmt: skip
_POSITIONS = 2  # dimension of attention's operands
_POINTWISE = (OpKind.ELEMENTWISE, OpKind.COPY, OpKind.FILL, OpKind.RANDOM)


def passed(signature: Signature, given: Placements, prefers: Dim | None = None) -> Passed:
    """What happens to the placements of an operator's inputs. prefers: where a sum that has to be resolved is put (None: everywhere)."""
    name = ".".join(signature.name.split(".")[:2])
    if not any(given):
        return Passed(given, (None,) * len(signature.outputs))
    if _stays_sum(name, signature, given):
        return Passed(given, (PARTIAL,) * len(signature.outputs))
    return _by_kind(signature, given, name, prefers)


def _by_kind(signature: Signature, given: Placements, name: str, prefers: Dim | None) -> Passed:
    if "_foreach_" in name or "_fused_" in name:
        return _listed(signature, given, name)
    kind = work(signature).kind
    if kind is OpKind.GEMM and "convolution" not in name:
        return _matmul(signature, given)
    resolved = tuple(_resolved(g, t, prefers) for g, t in zip(given, signature.inputs, strict=True))
    by_rows = next((rule for part, rule in _BY_ROWS.items() if part in name), None)
    if by_rows and (result := by_rows(signature, resolved)):
        return result
    rule = next((rule for part, rule in _BY_NAME.items() if part in name), None)
    if rule is None and kind is OpKind.REDUCTION:
        rule = _reduced
    elif rule is None and kind in _POINTWISE and _is_pointwise(signature):
        rule = _pointwise
    return (rule or _by_index)(signature, resolved)


def _resolved(given: Seen, tensor: Tensor, prefers: Dim | None) -> Seen:
    if given is not PARTIAL:
        return given
    return prefers if _has(tensor, prefers) else None


def _has(tensor: Tensor, dim: Dim | None) -> bool:
    return dim is not None and dim.index < len(tensor.shape) and tensor.shape[dim.index] >= dim.count * dim.inner > 1


def _stays_sum(name: str, signature: Signature, given: Placements) -> bool:
    """Whether the result of an operator is a sum because its operands are."""
    if PARTIAL not in given or any(isinstance(g, Dim) for g in given):
        return False
    largest = max(t.numel for t in signature.inputs)
    if largest <= 1:
        return name in _LINEAR
    return name in _ADDS and all(
        g is PARTIAL for t, g in zip(signature.inputs, given, strict=True) if t.numel == largest
    )


def _is_pointwise(signature: Signature) -> bool:
    shape = (signature.outputs or signature.inputs)[0].shape
    return all(len(t.shape) <= len(shape) for t in signature.inputs)


def _pointwise(signature: Signature, given: Placements) -> Passed:
    """Shapes are aligned at their last dimension; what one operand has divided, all have."""
    result = (signature.outputs or signature.inputs)[0]
    chosen: Dim | None = None
    for tensor, dim in zip(signature.inputs, given, strict=True):
        if isinstance(dim, Dim) and tensor.shape[dim.index] > 1:
            chosen = dim.at(dim.index + len(result.shape) - len(tensor.shape))
            break
    if chosen is None:
        return Passed(given, (None,) * len(signature.outputs))

    def aligned(tensor: Tensor) -> Seen:
        index = chosen.index - len(result.shape) + len(tensor.shape)
        fits = index >= 0 and tensor.shape[index] == result.shape[chosen.index]
        return chosen.at(index) if fits else None

    return Passed(tuple(aligned(t) for t in signature.inputs), tuple(aligned(t) for t in signature.outputs))


def _by_index(signature: Signature, given: Placements) -> Passed:
    """Outputs have the divided dimension where the first divided input has it; a gradient of weights that lacks it becomes a sum."""
    at = next((i for i, g in enumerate(given) if isinstance(g, Dim)), None)
    if at is None:
        return Passed(given, (None,) * len(signature.outputs))
    dim, shape = given[at], signature.inputs[at].shape
    assert isinstance(dim, Dim)
    size = shape[dim.index]

    def same(tensor: Tensor) -> Seen:
        return dim if dim.index < len(tensor.shape) and tensor.shape[dim.index] == size else None

    inputs = tuple(
        g if isinstance(g, Dim) else same(t) if len(t.shape) == len(shape) else None
        for t, g in zip(signature.inputs, given, strict=True)
    )
    outputs = tuple(
        same(t) or (PARTIAL if "backward" in signature.name or dim.index == 0 else None) for t in signature.outputs
    )
    return Passed(inputs, outputs, known="backward" in signature.name or any(outputs))


def _matmul(signature: Signature, given: Placements) -> Passed:
    """(.., m, k) x (.., k, n), with what is added first where the name says so."""
    name = signature.name.split(".")[1]
    if name == "_grouped_mm":
        return routing.grouped_product(signature, given)
    added = 1 if name in ("addmm", "baddbmm", "addmv") else 0
    left, right = signature.inputs[added], signature.inputs[added + 1]
    a, b = given[added], given[added + 1]
    if len(left.shape) < 2 or len(right.shape) < 2 or name not in ("mm", "addmm", "bmm", "baddbmm", "matmul"):
        return _by_index(signature, tuple(None if g is PARTIAL else g for g in given))
    rows, columns, batches = len(left.shape) - 2, len(right.shape) - 1, len(left.shape) - 2
    left_role = _role(a, rows, batches)
    right_role = {"k": "n", "m": "k"}.get(_role(b, columns - 1, batches), _role(b, columns - 1, batches))
    left_role, right_role, a, b = _agreed(left_role, right_role, (a, b), (left, right))
    out = _product(left_role, right_role, a, b, signature.outputs[0])
    bias: tuple[Seen, ...] = ()
    if added:
        first = signature.inputs[0]
        fits = (
            isinstance(out, Dim)
            and len(first.shape) > 0
            and first.shape[-1] > 1
            and out.index == len(signature.outputs[0].shape) - 1
        )
        bias = (out.at(len(first.shape) - 1) if fits and isinstance(out, Dim) else None,)
    return Passed((*bias, a, b, *given[added + 2 :]), (out,))


def _role(dim: Seen, rows: int, batches: int) -> str:
    """Which of batch, m and k (for the left operand) a divided dimension is."""
    if not isinstance(dim, Dim):
        return ""
    return "batch" if dim.index < batches else "m" if dim.index == rows else "k"


def _agreed(
    left: str, right: str, dims: tuple[Seen, Seen], tensors: tuple[Tensor, Tensor]
) -> tuple[str, str, Seen, Seen]:
    """Operands of a product as it can use them: rows that are divided while columns are too have to be gathered first."""
    a, b = (None if d is PARTIAL else d for d in dims)
    if (left, right) in (("m", "n"), ("k", "n")):
        return "", "n", None, b  # the tokens of the left operand are gathered
    if (left, right) == ("m", "k"):
        return "m", "", a, None
    if "k" in (left, right):
        dim = a if left == "k" else b
        assert isinstance(dim, Dim)
        columns, rows = len(tensors[0].shape) - 1, len(tensors[1].shape) - 2
        return "k", "k", dim.at(columns), dim.at(rows)
    if "batch" in (left, right):
        dim = a if left == "batch" else b
        return "batch", "batch", dim, dim
    return left, right, a, b


def _product(left: str, right: str, a: Seen, b: Seen, result: Tensor) -> Seen:
    last = len(result.shape) - 1
    if left == "k":
        return PARTIAL
    if left == "batch":
        return a
    if left == "m" and isinstance(a, Dim):
        return a.at(last - 1)
    return b.at(last) if right == "n" and isinstance(b, Dim) else None


def _attention(signature: Signature, given: Placements) -> Passed:
    """(batch, heads, positions, width): batches and heads are independent; divided positions need all keys and values."""
    dim = next((g for g in given if isinstance(g, Dim)), None)
    if dim is None or dim.index > _POSITIONS:  # the width of a head is contracted
        return Passed((None,) * len(given), (None,) * len(signature.outputs), known=dim is None)
    backward = "backward" in signature.name
    first = 1 if backward else 0
    keys = (first + 1, first + 2)
    whole = dim.index == _POSITIONS

    def of(i: int, tensor: Tensor) -> Seen:
        if whole and i in keys:
            return None
        own = given[i]
        size = tensor.shape[dim.index] if dim.index < len(tensor.shape) and len(tensor.shape) >= 3 else 0
        return own if isinstance(own, Dim) else Dim(dim.index, size) if size > 1 else None

    def made(i: int, tensor: Tensor) -> Seen:
        if whole and backward and i in (1, 2):
            return PARTIAL
        fits = len(tensor.shape) >= 3 and dim.index < len(tensor.shape) and tensor.shape[dim.index] > 1
        return Dim(dim.index, tensor.shape[dim.index]) if fits else None

    inputs = tuple(of(i, t) for i, t in enumerate(signature.inputs))
    return Passed(inputs, tuple(made(i, t) for i, t in enumerate(signature.outputs)))


def _embedding(signature: Signature, given: Placements) -> Passed:
    """A table and indices: a divided vocabulary makes sums; divided indices divide the result; its gradient sums over indices."""
    if "backward" in signature.name:
        gradient, indices = given[0], given[1]
        vocabulary = signature.outputs[0].shape[0]
        if isinstance(indices, Dim) or isinstance(gradient, Dim):
            dim = indices if isinstance(indices, Dim) else gradient
            assert isinstance(dim, Dim)
            last = len(signature.inputs[0].shape) - 1
            if dim.index == last and not isinstance(indices, Dim):
                return Passed(given, (dim.at(1),))
            return Passed((dim, dim, *given[2:]), (PARTIAL,))
        return Passed(given, (None,), known=vocabulary > 0)
    table, indices = given[0], given[1]
    if isinstance(table, Dim) and table.index == 0:
        return Passed((table, None, *given[2:]), (PARTIAL,))
    if isinstance(indices, Dim):
        return Passed((None, indices, *given[2:]), (indices, *((None,) * (len(signature.outputs) - 1))))
    width = table.at(len(signature.outputs[0].shape) - 1) if isinstance(table, Dim) else None
    return Passed(given, (width, *((None,) * (len(signature.outputs) - 1))))


def _loss(signature: Signature, given: Placements) -> Passed:
    """Negative log-likelihood of (rows, classes): a mean over divided rows is a sum; over divided classes, whoever has it tells.

    Its gradient is divided as they are.
    """
    at = 1 if "backward" in signature.name else 0
    scores, targets = given[at], given[at + 1]
    if isinstance(targets, Dim) and not isinstance(scores, Dim):
        scores = targets
    if not isinstance(scores, Dim):
        return Passed(given, (None,) * len(signature.outputs))
    row = scores if scores.index == 0 else None
    inputs = tuple(scores if i == at else row if i == at + 1 else None for i in range(len(given)))
    outputs = (scores,) if at else (PARTIAL if row else None, *((None,) * (len(signature.outputs) - 1)))
    return Passed(inputs, outputs, small=1 if scores.index and not at else 0)


def _normalized(signature: Signature, given: Placements) -> Passed:
    """Softmax and its gradient; over a divided dimension it takes small all-reduces: of the maximum and the sum, or of the sum alone.

    The gradient of a logarithm of it takes none: a log-likelihood's gradient has the same sum for every row (as loss_parallel does it).
    """
    result = _pointwise(signature, given)
    dim = next((g for g in result.inputs if isinstance(g, Dim)), None)
    over = next((a for a in signature.attributes if isinstance(a, int) and not isinstance(a, bool)), -1)
    shape = signature.inputs[0].shape
    if dim is None or dim.index != over % len(shape):
        return result
    backward = "backward" in signature.name
    return Passed(result.inputs, result.outputs, small=2 - backward - (backward and "log_softmax" in signature.name))


def _cat(signature: Signature, given: Placements) -> Passed:
    """Parts side by side: divided alike, also along the dimension in which they are put together."""
    dim = next((g for g in given if isinstance(g, Dim)), None)
    if dim is None:
        return Passed(given, (None,))
    parts = tuple(dim if t.numel else None for t in signature.inputs)
    return Passed(parts, (dim,))


def _reduced(signature: Signature, given: Placements) -> Passed:
    """Sums, means, norms and the like over some dimensions of the first operand."""
    dim, shape = given[0], signature.inputs[0].shape
    if not isinstance(dim, Dim):
        return (
            _by_index(signature, given)
            if any(isinstance(g, Dim) for g in given)
            else Passed(given, (None,) * len(signature.outputs))
        )
    outputs = tuple(_kept(shape, t.shape, dim, signature.attributes) for t in signature.outputs)
    return Passed((dim, *(_same(dim, shape, t) for t in signature.inputs[1:])), outputs)


def _same(dim: Dim, shape: tuple[int, ...], tensor: Tensor) -> Seen:
    return dim if len(tensor.shape) == len(shape) and tensor.shape[dim.index] == shape[dim.index] else None


def _kept(shape: tuple[int, ...], result: tuple[int, ...], dim: Dim, attributes: tuple[object, ...]) -> Seen:
    """The divided dimension in a reduction's result; a sum where it was reduced."""
    if len(result) == len(shape):
        return dim if result[dim.index] == shape[dim.index] and shape[dim.index] > 1 else PARTIAL
    reduced = {
        a % len(shape)
        for a in attributes
        if isinstance(a, int) and not isinstance(a, bool) and -len(shape) <= a < len(shape)
    }
    if not result or dim.index in reduced:
        return PARTIAL
    return dim.at(dim.index - sum(r < dim.index for r in reduced))


def _listed(signature: Signature, given: Placements, name: str) -> Passed:
    """Lists of tensors, each for itself: an output is as the input of its place in the first list; norms of parts are sums."""
    inputs = tuple(None if g is PARTIAL else g for g in given)
    count = len(signature.outputs)
    if name == "aten._foreach_norm":
        return Passed(inputs, tuple(PARTIAL if isinstance(g, Dim) else None for g in inputs[:count]))
    outputs: list[Seen] = []
    for i, tensor in enumerate(signature.outputs):
        places = range(i % count, len(inputs), count)
        alike = (inputs[j] for j in places if isinstance(inputs[j], Dim) and signature.inputs[j].shape == tensor.shape)
        outputs.append(next(alike, inputs[i] if i < len(inputs) else None))
    return Passed(inputs, tuple(outputs))


# Rules of operators that take rows by index, if it is the rows that are divided.
_BY_ROWS = {
    "nonzero": routing.found,
    "histc": routing.counted,
    "bincount": routing.counted,
    "aten.new_": routing.created,
    "index_put": routing.put,
    "index_add": routing.put,
    "aten.index": routing.picked,
    "select_backward": routing.unselected,
}

# Rules of operators whose name says more than their kind.
_BY_NAME = {
    "attention": _attention,
    "embedding": _embedding,
    "nll_loss": _loss,
    "softmax": _normalized,
    "layer_norm": _by_index,
    "rms_norm": _by_index,
    "group_norm": _by_index,
    "aten.cat": _cat,
}
