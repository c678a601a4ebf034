"""What each operator costs: `work` looks its rule up and counts products, element passes and bytes."""

from functools import lru_cache
from math import prod

from neuronprof.graph.cost import Gemm, OpKind, Passes, Rule, Work
from neuronprof.graph.ir import DTYPE_BYTES, Signature, Tensor
from neuronprof.graph.passes import updated
from neuronprof.graph.rules import RULES

__all__ = ["Gemm", "OpKind", "Work", "work"]

_COLLECTIVES = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "_dtensor")
# Collectives that start from what stands where they write.
_REDUCES = ("allreduce", "all_reduce", "c10d.reduce_.", "broadcast")
_COLLECTIVE = Rule(OpKind.COLLECTIVE)
_UNKNOWN = Rule(OpKind.UNKNOWN, vector=1)
_OVERWRITES = (OpKind.FILL, OpKind.RANDOM, OpKind.COPY)
# Scatters that add to what was there; those of the second line only if an attribute says so.
_ADDS = ("scatter_add", "scatter_reduce", "index_add", "index_reduce", "_unsafe_masked_index_put_accumulate")
_MAY_ADD = ("index_put", "_index_put_impl", "_unsafe_index_put", "put")
# Fused optimizers take lists of equal length: how many of them they mutate at least.
_FUSED = {"_fused_adam": 4, "_fused_adamw": 4, "_fused_sgd": 2, "_fused_adagrad": 4}


@lru_cache(maxsize=1 << 16)
def work(signature: Signature) -> Work:
    """The cost of an operator.

    An operator without a rule costs its bytes and one vector pass over its largest tensor, and is marked as unknown.
    """
    name, overload = _parts(signature.name)
    rule = _rule(name, overload)
    if signature.view or rule.kind is OpKind.VIEW:
        return _nothing(signature)
    gemms = rule.gemms(signature) if rule.gemms else ()
    elements = _elements(rule, name, signature)
    operands = _operands(name, overload, signature)
    passes = rule.passes(signature, gemms) if rule.passes else _passes(rule, elements, operands)
    return Work(
        kind=rule.kind,
        gemms=gemms,
        vector=passes.vector,
        scalar=passes.scalar,
        gpsimd=passes.gpsimd,
        two_inputs=min(rule.operands, operands) > 1,
        elements=elements,
        reads=_reads(rule, name, overload, signature),
        writes=_writes(rule, name, overload, signature),
        known=rule is not _UNKNOWN,
    )


def _parts(full: str) -> tuple[str, str]:
    """Name and overload: outside aten the name keeps its namespace; in-place and list forms go by the plain name."""
    namespace, _, rest = full.partition(".")
    name, _, overload = rest.partition(".")
    if namespace != "aten":
        return f"{namespace}.{name}", overload
    if name != "_foreach_mm":
        name = name.removeprefix("_foreach_")
    return name if name.endswith("__") else name.removesuffix("_"), overload


def _rule(name: str, overload: str) -> Rule:
    if overload == "other" and name in ("max", "min"):  # these compare two tensors
        return RULES[f"{name}imum"]
    collective = name.split(".")[0] in _COLLECTIVES
    return RULES.get(name, _COLLECTIVE if collective else _UNKNOWN)


def _nothing(signature: Signature) -> Work:
    outputs = len(signature.outputs) + len(signature.mutates)
    return Work(OpKind.VIEW, reads=(0,) * len(signature.inputs), writes=(0,) * outputs)


def _elements(rule: Rule, name: str, signature: Signature) -> int:
    """Size of the iteration space: the output of products and movement, else the largest operand; lists add up."""
    written = signature.outputs or tuple(signature.inputs[i] for i in signature.mutates)
    if name in _FUSED:
        return sum(t.numel for t in signature.inputs[: _parameters(name, signature)])
    if rule.kind in (OpKind.GEMM, OpKind.ATTENTION):
        return written[0].numel if written else 0
    if "_foreach_" in signature.name:
        return sum(t.numel for t in signature.inputs[: len(written)])
    if rule.kind in (OpKind.GATHER, *_OVERWRITES):
        return sum(t.numel for t in written)
    return max((t.numel for t in (*signature.inputs, *signature.outputs)), default=0)


def _parameters(name: str, signature: Signature) -> int:
    """How many parameters a fused optimizer updates: amsgrad (Adam) and momentum (SGD) mutate one list more."""
    lists = _FUSED[name]
    if name.startswith("_fused_adam"):
        lists += next((a for a in signature.attributes if isinstance(a, bool)), False)
    elif name == "_fused_sgd":
        _, momentum, *_ = (*(a for a in signature.attributes if not isinstance(a, bool)), 0, 0)
        lists += momentum != 0
    return max(1, len(signature.mutates) // lists)


def _operands(name: str, overload: str, signature: Signature) -> int:
    """How many tensors are streamed in each step: no numbers, not even one for each row, and none given as `out`."""
    if name in _FUSED:
        return 1
    inputs = [t for i, t in enumerate(signature.inputs) if not ("out" in overload and i in signature.mutates)]
    if "_foreach_" not in signature.name:
        return sum(_is_streamed(t, max((i.shape[-1] for i in inputs if i.shape), default=1)) for t in inputs)
    listed = sum(t.numel for t in inputs[: len(signature.mutates) or len(signature.outputs)])
    return round(sum(t.numel for t in inputs) / listed) if listed else 1


def _is_streamed(tensor: Tensor, row: int) -> bool:
    """Whether an operand has more than one number for each row of so many elements."""
    in_row = tensor.shape[-1] if tensor.shape and not (tensor.stride and tensor.stride[-1] == 0) else 1
    return tensor.numel > 1 and (in_row > 1 or row == 1)


def _passes(rule: Rule, elements: int, operands: int) -> Passes:
    vector = rule.vector - max(0, rule.operands - max(1, operands))
    return Passes(round(vector * elements), round(rule.scalar * elements), round(rule.gpsimd * elements))


def _stored(tensor: Tensor) -> int:
    """Bytes that stand in memory: a dimension of stride 0 repeats the same ones."""
    if tensor.stride is None:
        return tensor.nbytes
    unique = prod(size for size, stride in zip(tensor.shape, tensor.stride, strict=False) if stride or not size)
    return unique * DTYPE_BYTES.get(tensor.dtype, 4)


def _reads(rule: Rule, name: str, overload: str, signature: Signature) -> tuple[int, ...]:
    if rule.kind is OpKind.FILL or (rule.kind is OpKind.RANDOM and not rule.vector):  # only the shapes are looked at
        return (0,) * len(signature.inputs)
    reads = [_stored(t) for t in signature.inputs]
    received = rule.kind is OpKind.COLLECTIVE and not any(r in signature.name for r in _REDUCES)
    if rule.kind in _OVERWRITES or "out" in overload or received:
        for i in signature.mutates:
            reads[i] = 0
    if rule.picks:
        reads[0] = _picked(name, signature)
    elif rule.kind is OpKind.SCATTER and 0 in signature.mutates:
        adds = name in _ADDS or (name in _MAY_ADD and True in signature.attributes)
        reads[0] = _updated(signature) if adds else 0
    return tuple(reads)


def _picked(name: str, signature: Signature) -> int:
    """Bytes of the elements or rows that the indices point to; a row that two indices point to moves twice."""
    table, indices = signature.inputs[:2]
    picked = signature.outputs[0].numel
    if "embedding_bag" in name:
        picked = indices.numel * table.shape[-1]
    elif name.startswith("nll_loss"):
        picked = indices.numel
    return picked * DTYPE_BYTES.get(table.dtype, 4)


def _updated(signature: Signature) -> int:
    return updated(signature) * DTYPE_BYTES.get(signature.inputs[0].dtype, 4)


def _writes(rule: Rule, name: str, overload: str, signature: Signature) -> tuple[int, ...]:
    mutated = [_stored(signature.inputs[i]) for i in signature.mutates]
    if rule.kind is OpKind.FILL and not rule.vector:  # memory is set aside, nothing is written
        return (0,) * (len(signature.outputs) + len(mutated))
    if rule.kind is OpKind.SCATTER and signature.mutates[:1] == (0,):
        mutated[0] = _updated(signature)
    if name in _FUSED:
        mutated = _optimizer_writes(name, signature, mutated)
    outputs = [_stored(t) for t in signature.outputs]
    if signature.name.split(".")[1].endswith("_") or "out" in overload:  # the outputs are the mutated inputs
        shared = min(len(outputs), len(mutated))
        outputs[:shared], mutated[:shared] = mutated[:shared], [0] * shared
    return (*outputs, *mutated)


def _optimizer_writes(name: str, signature: Signature, mutated: list[int]) -> list[int]:
    """Gradients are declared mutated but written only with a gradient scale: then it and found_inf end the inputs."""
    length = _parameters(name, signature)
    steps = length if name.startswith("_fused_adam") else 0
    if len(signature.inputs) - len(signature.mutates) - steps >= 2:
        return mutated
    return [0 if length <= i < 2 * length else nbytes for i, nbytes in enumerate(mutated)]
