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
    """_trilinear: three tensors, each stretched over the dimensions it lacks, multiplied and summed over some: one product.

    The attributes are the dimensions that each tensor lacks, then those summed over; with r their number of dimensions and
    D that of the whole, D - r numbers for each tensor and D - r of the output. The outer product of two of them, times the
    third, contracts the summed dimensions.
    """
    out = signature.outputs[0]
    ranks = [len(t.shape) for t in signature.inputs]
    dimensions = (len(signature.attributes) + sum(ranks) + len(out.shape)) // 4
    whole = [1] * dimensions
    missing = list(signature.attributes)
    for tensor, rank in zip(signature.inputs, ranks, strict=True):
        lacks, missing = missing[: dimensions - rank], missing[dimensions - rank :]
        own = [d for d in range(dimensions) if d not in lacks]
        for d, size in zip(own, tensor.shape, strict=True):
            whole[d] = max(whole[d], size)
    m = out.shape[0] if out.shape else 1
    return (Gemm(1, m, prod(whole) // out.numel, out.numel // m),)


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


def flex_attention(signature: Signature) -> Gemms:
    """Q K^T and P V over the blocks that the block mask keeps: each query meets its share of the keys.

    The last attributes say what the mask does: share of the blocks that are computed, share of the blocks that are masked inside,
    whether there is a score_mod, its name.
    """
    query, key, value = (t.shape for t in signature.inputs[:3])
    return _attention(query, *_kept(signature, key, value))


def flex_attention_backward(signature: Signature) -> Gemms:
    """The five products of attention's backward over the same blocks. Inputs are grad_output, query, key, value."""
    query, key, value = (t.shape for t in signature.inputs[1:4])
    return _attention_backward(query, *_kept(signature, key, value))


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


def encoder_layer(signature: Signature) -> Gemms:
    """A whole attention or encoder layer in inference: attention's two products, then one for each weight matrix.

    The first input is (batch, positions, width), the second attribute the number of heads; the weights are the matrices of
    the same dtype among the inputs.
    """
    x = signature.inputs[0]
    batch, positions, width = x.shape
    heads = signature.attributes[1]
    shape = (batch, heads, positions, width // heads)
    weights = [t.shape for t in signature.inputs[1:] if len(t.shape) == 2 and t.dtype == x.dtype]
    return (*_attention(shape, shape, shape), *(Gemm(1, batch * positions, k, n) for n, k in weights))


def recurrent_layers(signature: Signature) -> Gemms:
    """Layers of lstm, gru and rnn in one operator.

    The first input is (steps, batch, width) or batch first; the weights are the matrices among the others, those for inputs
    and those for hidden states in turn.
    """
    *rows, _ = signature.inputs[0].shape
    batch_first = bool(signature.attributes) and signature.attributes[-1] is True
    steps = rows[-1] if batch_first else rows[0]
    weights = [t.shape for t in signature.inputs[1:] if len(t.shape) == 2]
    return tuple(
        Gemm(steps, prod(rows) // steps, k, n) if i % 2 else Gemm(1, prod(rows), k, n)
        for i, (n, k) in enumerate(weights)
    )


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


def _kept(signature: Signature, *keys: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Keys and values with as many positions as a query meets in the mean."""
    density = float(signature.attributes[-4])
    return tuple((*shape[:-2], max(1, round(shape[-2] * density)), shape[-1]) for shape in keys)


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
