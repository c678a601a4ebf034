"""Which of PyTorch's operators an instruction is: its name, what it takes, and its attributes."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from neuronprof.capture.jax import opcodes, products
from neuronprof.capture.jax.hlo import Instruction, Module
from neuronprof.graph.ir import Tensor


@dataclass(frozen=True, slots=True)
class Value:
    """A result: its buffer and layout. constant: the same scalar everywhere, which engines take as an immediate."""

    buffer: int
    tensor: Tensor
    constant: bool = False


Results = tuple[Value, ...]
Named = tuple[str, Results, tuple[object, ...]]


def named(i: Instruction, values: Results, module: Module) -> Named:
    """The operator of an instruction; one that has no name in PyTorch is xla.NAME, which has no cost rule."""
    if i.opcode in _NAMERS:
        return _NAMERS[i.opcode](i, values, module)
    if i.opcode in opcodes.NAMES:
        return "aten." + opcodes.NAMES[i.opcode], values, i.numbers("dimensions")
    return f"xla.{i.word('custom_call_target') or i.opcode}.default", values, ()


def _dot(i: Instruction, values: Results, _module: Module) -> Named:
    name, tensors = products.dot(i, values[0].tensor, values[1].tensor)
    return name, _seen_as(values, tensors), ()


def _convolution(i: Instruction, values: Results, _module: Module) -> Named:
    tensors = products.convolution(i, values[0].tensor, values[1].tensor)
    return "aten.convolution.default", _seen_as(values, tensors), (False,)


def _seen_as(values: Results, tensors: tuple[Tensor, Tensor]) -> Results:
    return tuple(Value(v.buffer, t) for v, t in zip(values, tensors, strict=False))


def _compare(i: Instruction, values: Results, _module: Module) -> Named:
    return "aten." + opcodes.COMPARISON.get(i.word("direction"), "eq.Tensor"), values, ()


def _reduce(i: Instruction, values: Results, module: Module) -> Named:
    name = "argmax.default" if i.several else opcodes.REDUCTION.get(_combines(i, module), "sum.dim_IntList")
    return "aten." + (name if "." in name else f"{name}.default"), values[:1], i.numbers("dimensions")


def _pool(i: Instruction, values: Results, module: Module) -> Named:
    sizes = re.search(r"window=\{size=([\dx]+)", i.attributes)
    window = tuple(int(n) for n in sizes[1].split("x") if int(n) > 1) if sizes else ()
    kind = "max" if _combines(i, module) == "maximum" else "avg"
    return f"aten.{kind}_pool2d.default", values[:1], window


def _combines(i: Instruction, module: Module) -> str:
    """The opcode by which a reduction adds up."""
    body = module.computations.get(i.word("to_apply"), ())
    return next((x.opcode for x in body if x.root), "add")


def _scatter(_i: Instruction, values: Results, _module: Module) -> Named:
    return "aten.index_add.default", values[:1] + values[2:3] + values[1:2], ()


def _sliced(_i: Instruction, values: Results, _module: Module) -> Named:
    return "aten.slice_copy.Tensor", values[:1], ()


def _gather(i: Instruction, values: Results, _module: Module) -> Named:
    """Rows of a table are an embedding, anything else an index."""
    table = values[0].tensor
    rows = len(table.shape) == 2 and i.numbers("slice_sizes") == (1, table.shape[1])
    return ("aten.embedding.default" if rows else "aten.index.Tensor"), values[:2], ()


_NAMERS: dict[str, Callable[[Instruction, Results, Module], Named]] = {
    "dot": _dot,
    "convolution": _convolution,
    "compare": _compare,
    "reduce": _reduce,
    "reduce-window": _pool,
    "scatter": _scatter,
    "dynamic-slice": _sliced,
    "gather": _gather,
}
