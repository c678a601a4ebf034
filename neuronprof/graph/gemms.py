"""The matrix products inside an operator: convolutions as implicit ones, attention's two or five, recurrent gates."""

from math import prod

from neuronprof.graph.cost import Gemm
from neuronprof.graph.ir import Signature

Gemms = tuple[Gemm, ...]


def matmul(signature: Signature) -> Gemms:
    """(..., m, k) x (..., k, n): mm, bmm, matmul, matrix-vector and dot products."""
    return (_product(signature.inputs[0].shape, signature.inputs[1].shape),)


def matmul_added(signature: Signature) -> Gemms:
    """addmm, baddbmm, addmv: what the product is added to comes first."""
    return (_product(signature.inputs[1].shape, signature.inputs[2].shape),)


def linear(signature: Signature) -> Gemms:
    """(..., k) x (n, k) transposed."""
    *rows, k = signature.inputs[0].shape
    return (Gemm(1, prod(rows), k, prod(signature.inputs[1].shape[:-1])),)


def linear_backward(signature: Signature) -> Gemms:
    """Inputs are input, grad_output (..., n), weight (n, k): gradients of the input and of the weight."""
    n, k = signature.inputs[2].shape
    rows = signature.inputs[1].numel // n
    return Gemm(1, rows, n, k), Gemm(1, n, rows, k)


def foreach_mm(signature: Signature) -> Gemms:
    """Two lists of matrices, one after the other."""
    half = len(signature.inputs) // 2
    pairs = zip(signature.inputs[:half], signature.inputs[half:], strict=False)
    return tuple(_product(a.shape, b.shape) for a, b in pairs)


def grouped_matmul(signature: Signature) -> Gemms:
    """Rows of one matrix, each times the matrix of its group: (rows, k) x (groups, k, n)."""
    a, b = signature.inputs[0].shape, signature.inputs[1].shape
    if len(a) == 3 and len(b) == 3:
        return (_product(a, b),)
    if len(a) == 2:
        return (Gemm(1, a[0], a[1], b[-1]),)
    return (Gemm(1, a[1], a[2], b[-1]),)


def bilinear(signature: Signature) -> Gemms:
    """_trilinear of (rows, i), (o, i, j), (rows, j): through the weight, then a dot product for each row and output."""
    rows, i = signature.inputs[0].shape[0], signature.inputs[1].shape[-2]
    out, j = signature.inputs[1].shape[-3], signature.inputs[1].shape[-1]
    return Gemm(1, rows, i, out * j), Gemm(rows, out, j, 1)


def convolution(signature: Signature) -> Gemms:
    """Implicit GEMM, one product a group: m = images x positions, k = channels x taps, n = filters of the group.

    A transposed convolution runs over the positions of its input and spreads each over the taps.
    """
    x, weight = signature.inputs[:2]
    return _convolution(x.shape, weight.shape, signature.outputs[0].shape, _transposed(signature))


def transposed_convolution(signature: Signature) -> Gemms:
    """Operators that are transposed by name."""
    x, weight = signature.inputs[:2]
    return _convolution(x.shape, weight.shape, signature.outputs[0].shape, transposed=True)


def convolution_backward(signature: Signature) -> Gemms:
    """Inputs are grad_output, input, weight; the last three attributes say which gradients are wanted.

    A grouped convolution's weight gradient has one product a group; torch.utils.flop_counter counts it `groups` times
    too high, because it takes all input channels for each filter.
    """
    grad, x, weight = (t.shape for t in signature.inputs[:3])
    transposed = _transposed(signature)
    wants_input, wants_weight, _ = output_mask(signature)
    groups = (grad if transposed else x)[1] // weight[1]
    taps = prod(weight[2:])
    positions = (x if transposed else grad)[0] * prod((x if transposed else grad)[2:])
    gemms: Gemms = _convolution(grad, weight, x, not transposed) if wants_input else ()
    if wants_weight:
        gemms += (Gemm(groups, weight[0] // groups, positions, weight[1] * taps),)
    return gemms


def output_mask(signature: Signature) -> tuple[bool, bool, bool]:
    """Which gradients of a convolution are computed: of its input, its weight, its bias."""
    mask = [bool(a) for a in signature.attributes[-3:]]
    return (mask[0], mask[1], mask[2]) if len(mask) == 3 else (True, True, False)


def attention(signature: Signature) -> Gemms:
    """Q K^T and P V of (batch, heads, positions, width); a causal mask spares nothing, as in flop_counter."""
    return _attention(*(t.shape for t in signature.inputs[:3]))


def attention_backward(signature: Signature) -> Gemms:
    """Q K^T again, dO V^T, P^T dO, dS K, dS^T Q. Inputs are grad_output, query, key, value."""
    return _attention_backward(*(t.shape for t in signature.inputs[1:4]))


def attention_rows(signature: Signature) -> Gemms:
    """Attention over (batch, positions, heads, width), the layout of the kernels below scaled_dot_product_attention."""
    return _attention(*(_heads_first(t.shape) for t in signature.inputs[:3]))


def attention_rows_backward(signature: Signature) -> Gemms:
    """Backward of attention over (batch, positions, heads, width)."""
    return _attention_backward(*(_heads_first(t.shape) for t in signature.inputs[1:4]))


def recurrent(signature: Signature) -> Gemms:
    """mkldnn_rnn_layer: input (steps, batch, width), weights (gates, width) and (gates, hidden).

    The inputs of all steps are one product; the hidden states go through theirs step by step (batch counts the steps).
    """
    steps, rows, width = signature.inputs[0].shape
    gates, hidden = signature.inputs[2].shape
    return Gemm(1, steps * rows, width, gates), Gemm(steps, rows, hidden, gates)


def recurrent_backward(signature: Signature) -> Gemms:
    """Each product of the forward pass has two in the backward pass: for its input and for its weight."""
    return tuple(h for g in recurrent(signature) for h in (Gemm(g.batch, g.m, g.n, g.k), Gemm(g.batch, g.k, g.m, g.n)))


def _product(a: tuple[int, ...], b: tuple[int, ...]) -> Gemm:
    m = a[-2] if len(a) > 1 else 1
    n = b[-1] if len(b) > 1 else 1
    if len(b) <= 2:  # one right side for all: the batch is more rows
        return Gemm(1, prod(a[:-2]) * m, a[-1], n)
    return Gemm(max(prod(a[:-2]), prod(b[:-2])), m, a[-1], n)


def _transposed(signature: Signature) -> bool:
    return next((bool(a) for a in signature.attributes if isinstance(a, bool)), False)


def _convolution(x: tuple[int, ...], weight: tuple[int, ...], out: tuple[int, ...], transposed: bool) -> Gemms:
    taps = prod(weight[2:])
    if transposed:
        groups = out[1] // weight[1]
        return (Gemm(groups, x[0] * prod(x[2:]), weight[0] // groups, weight[1] * taps),)
    groups = x[1] // weight[1]
    return (Gemm(groups, out[0] * prod(out[2:]), weight[1] * taps, weight[0] // groups),)


def _heads_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    *batch, positions, heads, width = shape
    return (*batch, heads, positions, width)


def _attention(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...]) -> Gemms:
    heads, positions, width = prod(query[:-2]), query[-2], query[-1]
    return Gemm(heads, positions, width, key[-2]), Gemm(heads, positions, key[-2], value[-1])


def _attention_backward(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...]) -> Gemms:
    heads, q, width = prod(query[:-2]), query[-2], query[-1]
    k, v = key[-2], value[-1]
    return (
        Gemm(heads, q, width, k),
        Gemm(heads, q, v, k),
        Gemm(heads, k, q, v),
        Gemm(heads, q, k, width),
        Gemm(heads, k, q, width),
    )
