"""Element passes of operators where they depend on more than the size of the iteration space."""

from math import log2, prod

from neuronprof.graph.cost import Gemm, Passes
from neuronprof.graph.gemms import output_mask
from neuronprof.graph.ir import Signature


def addend(signature: Signature, _: tuple[Gemm, ...]) -> Passes:
    """One pass over the product; two where the addend is as large as the product and has to be streamed too."""
    elements = sum(t.numel for t in signature.outputs)
    streamed = signature.inputs[0].numel >= elements > 1
    return Passes(vector=elements * (2 if streamed else 1))


def bias(signature: Signature, _: tuple[Gemm, ...]) -> Passes:
    """Convolutions and linear: a third tensor is a bias, one pass over the output."""
    elements = sum(t.numel for t in signature.outputs)
    return Passes(vector=elements if len(signature.inputs) > 2 else 0)


def rescaled(signature: Signature, _: tuple[Gemm, ...]) -> Passes:
    """Products of scaled FP8 matrices: the scales are applied to the product in one pass."""
    return Passes(vector=sum(t.numel for t in signature.outputs))


def bias_gradient(signature: Signature, _: tuple[Gemm, ...]) -> Passes:
    """Backward of a convolution: the gradient of the bias is a sum over the gradient of the output."""
    return Passes(vector=signature.inputs[0].numel if output_mask(signature)[2] else 0)


def attention(signature: Signature, gemms: tuple[Gemm, ...]) -> Passes:
    """Softmax between the two products, tile by tile.

    Maximum and rescaling on the vector engine, the exponential with its sum on the scalar engine; a mask is added in
    two more passes; dropout takes random numbers and a multiplication.
    """
    scores = _scores(gemms)
    masked, dropped = len(signature.inputs) > 3, _dropout(signature) > 0
    return Passes(vector=scores * (2 + 2 * masked + 2 * dropped), scalar=scores, gpsimd=scores * dropped)


def attention_backward(signature: Signature, gemms: tuple[Gemm, ...]) -> Passes:
    """Two instructions of two operands for dS = P (dP - D); P again from the saved log-sum; D = rowsum(dO O)."""
    scores, dropped = _scores(gemms), _dropout(signature) > 0
    return Passes(
        vector=scores * (4 + 2 * dropped) + 2 * signature.inputs[0].numel, scalar=scores, gpsimd=scores * dropped
    )


def flex_attention(signature: Signature, gemms: tuple[Gemm, ...]) -> Passes:
    """Softmax as in `attention`; score_mod and, in the blocks that it cuts, mask_mod are two more passes each over the scores."""
    scores = _scores(gemms)
    return Passes(vector=2 * scores + _changes(signature, scores), scalar=scores)


def flex_attention_backward(signature: Signature, gemms: tuple[Gemm, ...]) -> Passes:
    """As `attention_backward`, with the scores changed and masked again, and their gradient through score_mod."""
    scores = _scores(gemms)
    again = _changes(signature, scores) + (2 * scores if signature.attributes[-2] else 0)
    return Passes(vector=4 * scores + again + 2 * signature.inputs[0].numel, scalar=scores)


def total(signature: Signature, _: tuple[Gemm, ...]) -> Passes:
    """Along the row the scalar engine's running sum, of the identity; over rows alone, one pass of the vector engine."""
    elements, dimensions = signature.inputs[0].numel, len(signature.inputs[0].shape) or 1
    over = [a % dimensions for a in signature.attributes if isinstance(a, int) and not isinstance(a, bool)]
    along = not over or dimensions - 1 in over
    return Passes(scalar=elements) if along else Passes(vector=elements)


def layer_norm(signature: Signature, _: tuple[Gemm, ...]) -> Passes:
    """Statistics, and one instruction that normalizes by two numbers a row.

    Weight and bias are tensors along the row: with both, two instructions (x - mean) weight and (...) / deviation + bias, each of which
    streams two tensors; with one, that comes on top.
    """
    passes = {1: 2, 2: 4}.get(len(signature.inputs), 5)
    return Passes(vector=passes * signature.inputs[0].numel)


def recurrent(_: Signature, gemms: tuple[Gemm, ...]) -> Passes:
    """Gates: two sums and a product an element, one non-linearity each, and one more on the cell."""
    gates = gemms[0].m * gemms[0].n
    return Passes(vector=4 * gates, scalar=gates + gates // 4)


def recurrent_backward(_: Signature, gemms: tuple[Gemm, ...]) -> Passes:
    """Derivatives of the gates: about twice the forward arithmetic."""
    gates = gemms[0].m * gemms[0].k
    return Passes(vector=8 * gates, scalar=gates)


def recurrent_layers(_: Signature, gemms: tuple[Gemm, ...]) -> Passes:
    """As `recurrent`, over the layers and directions; every second product is that of the hidden states."""
    gates = sum(g.m * g.n for g in gemms[::2])
    return Passes(vector=4 * gates, scalar=gates + gates // 4)


def encoder_layer(signature: Signature, gemms: tuple[Gemm, ...]) -> Passes:
    """Attention's softmax, a bias on each product, and for a whole layer two norms and two residual sums (one activation)."""
    scores = _scores(gemms)
    biases = sum(g.m * g.n for g in gemms[2:])
    whole = len(gemms) > 4
    hidden = gemms[4].m * gemms[4].n if whole else 0
    return Passes(vector=2 * scores + biases + 16 * whole * signature.inputs[0].numel, scalar=scores + hidden)


def distances(signature: Signature, _: tuple[Gemm, ...]) -> Passes:
    """Differences, powers and sums of every pair of rows; the first input but for the gradient holds the rows."""
    pairs = signature.inputs[0].numel if "backward" in signature.name else signature.outputs[0].numel
    return Passes(vector=4 * pairs * signature.inputs[1].shape[-1])


def recurrent_cell(signature: Signature, _: tuple[Gemm, ...]) -> Passes:
    """One step of fused gates whose products were made before: inputs are both halves of the gates."""
    gates = signature.inputs[0].numel
    return Passes(vector=4 * gates, scalar=gates + gates // 4)


def comparison_sort(signature: Signature, _: tuple[Gemm, ...]) -> Passes:
    """Comparisons, n log2 n a row; without a dimension the whole tensor is one row."""
    tensor = max((*signature.inputs, *signature.outputs), key=lambda t: t.numel)
    row = tensor.shape[_dimension(signature, len(tensor.shape))] if tensor.shape else 1
    return Passes(gpsimd=int(tensor.numel * max(1.0, log2(max(row, 2)))))


def whole_sort(signature: Signature, _: tuple[Gemm, ...]) -> Passes:
    """Sort of all elements as one row."""
    elements = max(t.numel for t in (*signature.inputs, *signature.outputs))
    return Passes(gpsimd=int(elements * log2(max(elements, 2))))


def top_k(signature: Signature, _: tuple[Gemm, ...]) -> Passes:
    """4 n + k cycles a row of n on gpsimd (NKI instruction reference, top-k)."""
    return Passes(gpsimd=4 * signature.inputs[0].numel + signature.outputs[0].numel)


def gather(signature: Signature, _: tuple[Gemm, ...]) -> Passes:
    """One gpsimd step an index; the rows are moved by DMA."""
    return Passes(gpsimd=_indices(signature))


def gather_sum(signature: Signature, _: tuple[Gemm, ...]) -> Passes:
    """embedding_bag: one gpsimd step an index, one vector pass over the gathered rows."""
    indices = signature.inputs[1].numel
    return Passes(vector=indices * signature.inputs[0].shape[-1], gpsimd=indices)


def scatter(signature: Signature, _: tuple[Gemm, ...]) -> Passes:
    """One gpsimd step an index, one vector pass over what is added."""
    return Passes(vector=updated(signature), gpsimd=_indices(signature))


def embedding_gradient(signature: Signature, _: tuple[Gemm, ...]) -> Passes:
    """Rows of the gradient are added up by index; the rest is filled with zeros."""
    return Passes(
        vector=signature.inputs[0].numel + sum(t.numel for t in signature.outputs), gpsimd=signature.inputs[1].numel
    )


def loss_gradient(signature: Signature, _: tuple[Gemm, ...]) -> Passes:
    """nll_loss_backward: zeros, and one element a row."""
    return Passes(vector=sum(t.numel for t in signature.outputs), gpsimd=signature.inputs[2].numel)


def pooling(signature: Signature, _: tuple[Gemm, ...]) -> Passes:
    """One vector pass an element of each window. The window is the first list of the attributes."""
    name = signature.name.partition(".")[2]
    dimensions = next((d for d in (1, 2, 3) if f"{d}d" in name), 2)
    window = [a for a in signature.attributes[:dimensions] if isinstance(a, int)]
    return Passes(vector=signature.outputs[0].numel * prod(window))


def decomposition(signature: Signature, _: tuple[Gemm, ...]) -> Passes:
    """Factorizations and solvers: each of n steps touches the whole matrix."""
    elements = max(t.numel for t in (*signature.inputs, *signature.outputs))
    return Passes(gpsimd=elements * signature.inputs[0].shape[-1])


def fourier(signature: Signature, _: tuple[Gemm, ...]) -> Passes:
    """Radix-2 transform: 5 log2 n operations an element (Cooley and Tukey) over the transformed dimensions."""
    tensor = max((*signature.inputs, *signature.outputs), key=lambda t: t.numel)
    dimensions = [a for a in signature.attributes[:-2] if isinstance(a, int)]
    length = prod(tensor.shape[d] for d in dimensions if -len(tensor.shape) <= d < len(tensor.shape))
    return Passes(vector=int(5 * tensor.numel * log2(max(length, 2))))


def updated(signature: Signature) -> int:
    """Elements that a scatter changes: as many as its largest operand besides the tensor itself, at most all."""
    return min(signature.inputs[0].numel, max((t.numel for t in signature.inputs[1:]), default=0))


def _indices(signature: Signature) -> int:
    return max((t.numel for t in signature.inputs[1:] if t.dtype in ("int64", "int32", "bool", "uint8")), default=0)


def _scores(gemms: tuple[Gemm, ...]) -> int:
    return gemms[0].batch * gemms[0].m * gemms[0].n


def _changes(signature: Signature, scores: int) -> int:
    """Passes of score_mod and mask_mod; attributes as in gemms.flex_attention."""
    density, masked, modified, _ = signature.attributes[-4:]
    return 2 * scores * bool(modified) + round(2 * scores * masked / density if density else 0)


def is_causal(signature: Signature) -> bool:
    """Whether a fused attention spares what a causal mask hides: the flag after dropout_p."""
    pairs = zip(signature.attributes, signature.attributes[1:], strict=False)
    return next((b for a, b in pairs if isinstance(a, float) and isinstance(b, bool)), False)


def _dropout(signature: Signature) -> float:
    """The attribute dropout_p: in every form of attention the float before is_causal or another flag."""
    pairs = zip(signature.attributes, signature.attributes[1:], strict=False)
    return next((a for a, b in pairs if isinstance(a, float) and isinstance(b, bool)), 0.0)


def _dimension(signature: Signature, dimensions: int) -> int:
    numbers = [a for a in signature.attributes if isinstance(a, int) and not isinstance(a, bool)]
    return numbers[-1] if numbers and -dimensions <= numbers[-1] < dimensions else -1
