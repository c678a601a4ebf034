"""Substitutes: plans for operators whose result depends on values that were not computed, one function an operator."""

from collections.abc import Callable
from dataclasses import replace

import torch

from neuronprof.capture.plans import MOST_INTEGERS, Asked, Plan, absent, half_mask, invented

_HALF = "a mask that was not computed (half dense)"
ITEM = "item() of a value that was not computed (1.0, or False)"


def _item(asked: Asked) -> Plan:
    return Plan(None, (("constant", invented("", asked.args[0].dtype)),), (ITEM,))


def _equal(asked: Asked) -> Plan:
    return Plan(None, (("constant", True),), (f"{asked.operator.name} of tensors that were not computed (True)",))


def _wait(asked: Asked) -> Plan:
    assert asked.operands
    return Plan(None, (("input", 0),))


def _nonzero(asked: Asked) -> Plan:
    mask = asked.args[0]
    if mask.numel() > MOST_INTEGERS:
        return Plan(None, (("new", ((mask.numel() + 1) // 2, mask.dim()), None, torch.int64),), (_HALF,))
    return Plan(None, (("constant", half_mask(mask.shape).nonzero()),), (_HALF,), reusable=False)


def _masked_select(asked: Asked) -> Plan:
    values, mask = asked.args
    elements = torch.broadcast_shapes(values.shape, mask.shape).numel()
    chosen = (elements + 1) // 2 if absent(mask) else int(mask.sum()) * (elements // max(1, mask.numel()))
    return Plan(None, (("new", (chosen,), None, values.dtype),), (_HALF,) if absent(mask) else (), reusable=False)


def _index(asked: Asked) -> Plan:
    """Boolean masks become the integer indices they stand for, so that the shape of the result is known."""
    indices: list[torch.Tensor | None] = []
    notes: list[str] = []
    masks = 0
    for index in asked.args[1]:
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            indices.append(index)
            continue
        masks += 1
        notes.extend([_HALF] * absent(index))
        mask = half_mask(index.shape) if absent(index) else index
        indices.extend(mask.nonzero().unbind(1))
    if not masks:
        return asked.shaped(asked)
    plan = asked.shaped(replace(asked, args=(asked.args[0], indices, *asked.args[2:])))
    return plan._replace(notes=tuple(notes), reusable=False)


def _normalization(weight: int) -> Callable[[Asked], Plan]:
    """Kernels of the CPU keep statistics in the precision of the weight (at this position); PyTorch's shape rule says that of the input."""

    def plan(asked: Asked) -> Plan:
        shaped = asked.shaped(asked)
        scale = asked.args[weight]
        if scale is None:
            return shaped
        first, *statistics = shaped.leaves
        return shaped._replace(leaves=(first, *((*leaf[:3], scale.dtype) for leaf in statistics)))

    return plan


def _group_norm_backward(asked: Asked) -> Plan:
    """The gradient has the precision of the input; PyTorch's shape rule says that of the weight."""
    shaped = asked.shaped(asked)
    gradient, *others = shaped.leaves
    return shaped._replace(leaves=((*gradient[:3], asked.args[1].dtype) if gradient[0] == "new" else gradient, *others))


def _grouped_mm(asked: Asked) -> Plan:
    """PyTorch's own rule accepts bfloat16 only."""
    a, b, *rest = asked.args
    offsets = rest[0] if rest else asked.kwargs.get("offs")
    dtype = asked.kwargs.get("out_dtype") or (rest[2] if len(rest) > 2 else None) or a.dtype
    groups = 0 if offsets is None else offsets.numel()
    shapes = {
        (2, 3): (a.shape[0], b.shape[-1]),
        (3, 2): (a.shape[-2], b.shape[-1]),
        (2, 2): (groups, a.shape[0], b.shape[-1]),
        (3, 3): (a.shape[0], a.shape[-2], b.shape[-1]),
    }
    return Plan(None, (("new", shapes[a.dim(), b.dim()], None, dtype),))


SUBSTITUTES: dict[str, Callable[[Asked], Plan]] = {
    "aten._local_scalar_dense.default": _item,
    "aten.is_nonzero.default": _item,
    "aten.equal.default": _equal,
    "aten.nonzero.default": _nonzero,
    "aten.masked_select.default": _masked_select,
    "aten.index.Tensor": _index,
    "aten._index_put_impl_.default": _index,
    "aten.index_put_.default": _index,
    "aten.index_put.default": _index,
    "aten.native_batch_norm.default": _normalization(1),
    "aten.native_layer_norm.default": _normalization(2),
    "aten.native_group_norm.default": _normalization(1),
    "aten.native_group_norm_backward.default": _group_norm_backward,
    "aten._grouped_mm.default": _grouped_mm,
    "_c10d_functional.wait_tensor.default": _wait,
}
