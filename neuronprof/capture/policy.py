"""Policy: what happens instead of computing, asked of PyTorch's own shape rules once for each signature."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree

from neuronprof.capture import simtensor
from neuronprof.capture.plans import MOST_INTEGERS, SMALL, Asked, Plan, absent, invented, zeros
from neuronprof.capture.signatures import Layout, tensors_in
from neuronprof.capture.simtensor import Sim
from neuronprof.capture.substitutes import ITEM, SUBSTITUTES

_MOST_ZERO_RUN = 1 << 28
_DOUBTFUL = 1 << 29
"""Product of the two largest operands' element counts above which a result may have gigabytes: then its size is asked first."""
_INDICES = frozenset(
    {"topk", "sort", "max", "min", "argmax", "argmin", "argsort", "multinomial", "kthvalue", "mode", "median"}
)
_CPU = torch.device("cpu")
_INVENTED = "_neuronprof_invented"
_Substitution = Callable[[Any], Any]


class Policy:
    """Makes plans, and builds results from them."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._random = torch.Generator().manual_seed(0)

    # --- deciding

    def results(self, asked: Asked) -> list[torch.Tensor]:
        """The tensors an operator would make, without memory; none if that depends on values."""
        try:
            return tensors_in(self._dry_run(asked, _any)[0])
        except Exception:
            return []

    def too_large(self, asked: Asked) -> Plan | None:
        """A plan for an operator on operands with values, if its result is too large to compute; else None."""
        try:
            out, substitutes = self._dry_run(asked, _any)
        except Exception:
            return None  # depends on values, or the user's mistake: the real operator decides
        made = [t for t in tensors_in(out) if t.layout is torch.strided and all(t is not s for s in substitutes)]
        large = any(t.numel() > (SMALL if t.is_floating_point() else MOST_INTEGERS) for t in made)
        return self._plan(asked, out, substitutes) if large else None

    def plan(self, asked: Asked) -> Plan:
        """A plan for an operator on operands some of which have no values.

        Raises:
            Exception: what PyTorch raises for these operands (a mistake in the script).
        """
        substitute = SUBSTITUTES.get(asked.operator.name)
        try:
            return substitute(asked) if substitute else self.shaped(asked)
        except Exception:
            if sum(t.nbytes for t in asked.operands if isinstance(t, Sim)) > _MOST_ZERO_RUN:
                raise
            return self._zero_run(asked)

    def shaped(self, asked: Asked) -> Plan:
        """A plan from PyTorch's own shape rules."""
        # What an operator writes must be recognised in its result, also where it has values.
        out, substitutes = self._dry_run(asked, _any if asked.operator.written else absent)
        return self._plan(asked, out, substitutes)

    def _dry_run(self, asked: Asked, replaced: Callable[[torch.Tensor], bool]) -> tuple[Any, list[Any]]:
        """The call on tensors without memory: its result, and what stood for each operand."""
        stand_in = _substitution(replaced, self._without_memory)
        args = [stand_in(a) for a in asked.args]
        kwargs = {k: stand_in(v) for k, v in asked.kwargs.items()}
        with self._fake:
            out = asked.func(*args, **kwargs)
        return out, [stand_in(t) for t in asked.operands]

    def _without_memory(self, tensor: torch.Tensor) -> FakeTensor:
        with torch._C._DisableTorchDispatch():
            elements = tensor.untyped_storage().nbytes() // max(1, tensor.element_size())
            base = torch.empty((elements,), dtype=tensor.dtype, device="meta")
            meta = base.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        return FakeTensor(self._fake, meta, _CPU)

    def _plan(self, asked: Asked, out: Any, substitutes: Sequence[torch.Tensor]) -> Plan:
        name = getattr(asked.func, "_opname", "")
        same = {id(s): i for i, s in enumerate(substitutes)}
        storages = {s.untyped_storage()._cdata: i for i, s in enumerate(substitutes) if isinstance(s, FakeTensor)}
        chooses = False

        def leaf(value: Any) -> tuple[Any, ...]:
            nonlocal chooses
            if not isinstance(value, torch.Tensor):
                return "constant", value
            if id(value) in same:
                return "input", same[id(value)]
            if value.layout is not torch.strided:
                raise NotImplementedError("a sparse tensor needs its indices")
            shape, base = tuple(value.shape), storages.get(value.untyped_storage()._cdata)
            if base is not None:
                return "view", base, shape, value.stride(), value.storage_offset()
            if not shape and asked.operands:
                return "scalar", invented(name, value.dtype), value.dtype
            if name in _INDICES and value.dtype in (torch.int64, torch.int32) and value.numel() <= MOST_INTEGERS:
                chooses = True
                return "index", shape, _extent(asked.operands[0].shape, shape), value.dtype
            return "new", shape, value.stride(), value.dtype

        container, leaves = _taken_apart(out)
        made = tuple(leaf(v) for v in leaves)
        return Plan(container, made, (f"balanced random indices for {name}",) if chooses else ())

    def _zero_run(self, asked: Asked) -> Plan:
        """Runs the operator once, on zeros."""
        stand_in = _substitution(absent, zeros)
        args, kwargs = [stand_in(a) for a in asked.args], {k: stand_in(v) for k, v in asked.kwargs.items()}
        out = asked.func(*args, **kwargs)
        same = {id(stand_in(t)): i for i, t in enumerate(asked.operands)}

        def leaf(value: Any) -> tuple[Any, ...]:
            if isinstance(value, torch.Tensor):
                if id(value) in same:
                    return "input", same[id(value)]
                if value.is_floating_point() and value.numel() > 1 and value.layout is torch.strided:
                    return "new", tuple(value.shape), value.stride(), value.dtype
            return "constant", value

        container, leaves = _taken_apart(out)
        note = f"{asked.operator.name} depends on values: run on zeros"
        return Plan(container, tuple(leaf(v) for v in leaves), (note,), reusable=False)

    # --- building

    def build(self, plan: Plan, operands: Sequence[torch.Tensor]) -> Any:
        """The result that a plan describes, for these operands."""
        for note in plan.notes:
            self._note(note)
        made = [self._leaf(entry, operands) for entry in plan.leaves]
        container = plan.container
        if container is None:
            return made[0]
        if container is tuple:
            return tuple(made)
        return made if container is list else pytree.tree_unflatten(made, container)

    def _leaf(self, entry: tuple[Any, ...], operands: Sequence[torch.Tensor]) -> Any:
        kind = entry[0]
        if kind == "new":
            return simtensor.new(entry[1], entry[2], entry[3])
        if kind == "input":
            return operands[entry[1]]
        if kind == "view":
            return simtensor.as_strided(operands[entry[1]], entry[2], entry[3], entry[4])
        if kind == "scalar":
            scalar = torch.full((), entry[1], dtype=entry[2])
            _labels(scalar)[_INVENTED] = True
            return scalar
        return self._indices(entry[1], entry[2]).to(entry[3]) if kind == "index" else entry[1]

    def _indices(self, shape: tuple[int, ...], extent: int) -> torch.Tensor:
        """Valid indices below extent: distinct within a row of the last dimension and balanced over the rows."""
        count = prod(shape)
        if len(shape) > 1 and 0 < shape[-1] <= extent:
            rows, width = count // shape[-1], shape[-1]
            first = torch.randint(0, extent, (rows, 1), generator=self._random)
            return ((first + torch.arange(width) * max(1, extent // width)) % extent).reshape(shape)
        return torch.randint(0, max(1, extent), shape, generator=self._random)

    def inherit(self, operands: Sequence[torch.Tensor], out: Any) -> None:
        """Marks a scalar computed from an invented one; a plain number read from one is counted."""
        if any(_INVENTED in _labels(t) for t in operands):
            if isinstance(out, torch.Tensor):
                _labels(out)[_INVENTED] = True
            elif isinstance(out, (bool, int, float)):
                self._note(ITEM)


def _labels(tensor: torch.Tensor) -> dict[str, Any]:
    """What is noted on a tensor's storage, which its views share."""
    return tensor.untyped_storage().__dict__ if tensor.layout is torch.strided else {}


def doubtful(layouts: Sequence[Layout]) -> bool:
    """Whether an operator that is to be computed may have a result, or a cost, out of all proportion to its operands."""
    return not layouts or prod(sorted((m.numel for m in layouts), reverse=True)[:2]) > _DOUBTFUL


def _any(_tensor: torch.Tensor) -> bool:
    return True


def _substitution(replaced: Callable[[torch.Tensor], bool], make: Callable[[torch.Tensor], Any]) -> _Substitution:
    """Replaces tensors inside arguments, the same one always by the same one."""
    made: dict[int, Any] = {}

    def stand_in(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(stand_in(v) for v in value)
        if not isinstance(value, torch.Tensor) or not replaced(value):
            return value
        if id(value) not in made:
            made[id(value)] = make(value)
        return made[id(value)]

    return stand_in


def _taken_apart(out: Any) -> tuple[Any, Any]:
    """Container and leaves of a result, as a Plan has them."""
    if not isinstance(out, (list, tuple, dict)):
        return None, (out,)
    if type(out) in (list, tuple) and not any(isinstance(v, (list, tuple, dict)) for v in out):
        return type(out), out
    leaves, tree = pytree.tree_flatten(out)
    return tree, leaves


def _extent(before: Sequence[int], shape: tuple[int, ...]) -> int:
    """Number of values that an index chooses from: the length of the reduced dimension, where the shapes tell it."""
    before = tuple(before)
    if len(before) == len(shape):
        changed = [b for b, s in zip(before, shape, strict=True) if b != s]
        return changed[0] if changed else (before or (1,))[-1]
    for i, length in enumerate(before):
        if before[:i] + before[i + 1 :] == shape:
            return length
    return prod(before)
