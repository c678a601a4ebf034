"""Listens to JAX: each call of a jitted function and each primitive outside one, with the arrays that it takes and makes."""

import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax._src import core, dispatch, pjit
from jax._src.array import ArrayImpl

from neuronprof.capture.jax import host
from neuronprof.capture.jax.arrays import SimArray, nbytes
from neuronprof.capture.jax.boundaries import Boundaries
from neuronprof.capture.jax.functions import Function
from neuronprof.capture.patching import Patches

# Under `--values none` what is larger has no values; under `auto` nothing has, once a call is larger than a laptop would like.
_SMALL = 1 << 18
_MUCH_MEMORY, _MUCH_WORK = 1 << 28, 20e9
_MOVES = ("device_put", "copy", "copy_p", "sharding_constraint")


@dataclass(frozen=True, slots=True)
class Call:
    """A call. inputs, outputs: numbers of arrays, the same for the same array; donated: inputs whose memory the outputs may take.

    region: what the script named it, outer/inner.
    """

    function: Function
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    donated: tuple[bool, ...] = ()
    region: str = ""


@dataclass
class Listener:
    """Executes calls, with values or without, and keeps a list of them.

    values: real, none or auto; boundaries: is told of what may begin or end a step.
    """

    values: str
    boundaries: Boundaries
    calls: list[Call] = field(default_factory=list)
    computes: bool = True
    _regions: list[str] = field(default_factory=list)
    _on_host: set[int] = field(default_factory=set)
    _functions: dict[Hashable, Function] = field(default_factory=dict)
    _numbers: dict[int, tuple[Any, int]] = field(default_factory=dict)
    _count: int = 0

    def __post_init__(self) -> None:
        self.computes = self.values != "none"

    @property
    def shown(self) -> str:
        """What the summary says of the values: real or none."""
        return "real" if self.computes else "none"

    @contextmanager
    def installed(self, patches: Patches) -> Iterator[None]:
        """Listens while the block runs, and until patches is undone."""
        global _listening
        self._listen(patches)
        _listening = self
        try:
            yield
        finally:
            _listening = None

    def _listen(self, patches: Patches) -> None:
        patches.wrap(core.EvalTrace, "process_primitive", self._primitive)
        patches.wrap(core, "check_eval_args", _check)
        patches.wrap(pjit, "_pjit_call_impl_python", self._jitted)
        patches.wrap(dispatch, "_batched_device_put_impl", self._put)
        patches.set(ArrayImpl, "_value", property(partial(self._read, ArrayImpl._value.fget)))
        patches.set(SimArray, "on_read", self._download)
        patches.set(jax.distributed, "initialize", lambda *_args, **_options: None)  # this process is the whole job
        patches.set(pjit, "_get_fastpath_data", lambda *_args, **_options: None)  # the fast path would pass us by

    def mark_step(self) -> None:
        """Ends a step by hand; once called, only such marks are boundaries."""
        self.boundaries.mark(len(self.calls))

    @contextmanager
    def region(self, name: str) -> Iterator[None]:
        """Names the calls inside."""
        self._regions.append(name)
        try:
            yield
        finally:
            self._regions.pop()

    def number(self, array: Any) -> int:
        """The number of an array; numpy arrays and Python numbers are new each time."""
        known = self._numbers.get(id(array))
        if known is not None and known[0]() is array:
            return known[1]
        self._count += 1
        with suppress(TypeError):
            self._numbers[id(array)] = (weakref.ref(array), self._count)
        return self._count

    def _jitted(self, original: Callable[..., Any], *args: Any, **params: Any) -> Any:
        if self._is_simulated(args, params["jaxpr"].out_avals, params["jaxpr"]):
            return self._simulate(args, params), None, None, []
        function = self._function(args, params)
        self._announce(function)
        result = original(*args, **params)
        self._keep(function, args, result[0], params["donated_invars"])
        return result

    def _primitive(
        self, original: Callable[..., Any], trace: Any, primitive: Any, args: Sequence[Any], params: dict[str, Any]
    ) -> Any:
        if primitive is pjit.jit_p:
            if self._is_simulated(args, params["jaxpr"].out_avals, params["jaxpr"]):
                return self._simulate(args, params)
            return original(trace, primitive, args, params)  # comes back through _jitted
        made = _types(primitive, args, params)
        if made is None or not self._is_simulated(args, made, None):
            result = original(trace, primitive, args, params)
            if made is not None and any(isinstance(a, jax.Array) for a in args):
                self._note(primitive, args, params, result if primitive.multiple_results else [result])
            return result
        placed = params.get("devices", [None] * len(made)) if primitive.name == "device_put" else [None] * len(made)
        outputs = [
            SimArray(aval, p if hasattr(p, "device_set") else None) for aval, p in zip(made, placed, strict=False)
        ]
        self._note(primitive, args, params, outputs)
        for before, after in zip(args, outputs, strict=False):
            self._upload(before, after)
        return outputs if primitive.multiple_results else outputs[0]

    def _put(self, original: Callable[..., Any], *arrays: Any, **each: Any) -> list[Any]:
        """jax.device_put outside of any jit. each: lists with an entry an array, of which `devices` says where it goes."""
        there = [i for i, a in enumerate(arrays) if not isinstance(a, SimArray)]
        placed = dict(
            zip(
                there,
                original(*(arrays[i] for i in there), **{k: [v[i] for i in there] for k, v in each.items()}),
                strict=True,
            )
        )
        for i in there:
            self._upload(arrays[i], placed[i])
        for i in set(range(len(arrays))).difference(there):
            target = each["devices"][i]
            placed[i] = SimArray(arrays[i].aval, target if hasattr(target, "device_set") else None)
            self._numbers[id(placed[i])] = (weakref.ref(placed[i]), self.number(arrays[i]))
        return [placed[i] for i in range(len(arrays))]

    def _note(self, primitive: Any, args: Sequence[Any], params: dict[str, Any], outputs: Sequence[Any]) -> None:
        if primitive.name in _MOVES:
            for before, after in zip(args, outputs, strict=False):
                if isinstance(after, SimArray) and isinstance(before, SimArray):
                    self._numbers[id(after)] = (weakref.ref(after), self.number(before))
            return
        key = (primitive, tuple(map(_type, args)), repr(sorted(params.items(), key=str)))
        if key not in self._functions:
            avals = tuple(core.typeof(a) for a in args)
            self._functions[key] = Function(primitive.name, avals, _placed(args), primitive=(primitive, params))
        self._keep(self._functions[key], args, outputs, (False,) * len(args))

    def _is_simulated(self, args: Sequence[Any], made: Sequence[Any], jaxpr: Any) -> bool:
        if any(isinstance(a, SimArray) for a in args):
            return True
        if self.values == "auto" and self.computes:
            done = work(jaxpr.jaxpr) if jaxpr is not None else 0.0
            self.computes = sum(map(nbytes, made)) < _MUCH_MEMORY and done < _MUCH_WORK
        return not self.computes and any(nbytes(aval) > _SMALL for aval in made)

    def _simulate(self, args: Sequence[Any], params: dict[str, Any]) -> list[SimArray]:
        function = self._function(args, params)
        self._announce(function)
        outputs = [SimArray(_aval(v), s) for v, s in zip(params["jaxpr"].out_avals, function.made, strict=True)]
        self._keep(function, args, outputs, params["donated_invars"])
        return outputs

    def _function(self, args: Sequence[Any], params: dict[str, Any]) -> Function:
        placed = _placed(args)
        key = (id(params["jaxpr"]), placed)
        if key not in self._functions:
            jaxpr = params["jaxpr"]
            avals = tuple(jaxpr.in_avals)
            self._functions[key] = Function(params["name"], avals, placed, jaxpr, None, _differentiates(jaxpr.jaxpr))
        return self._functions[key]

    def _announce(self, function: Function) -> None:
        if function.differentiates:
            # The first call may find its arguments elsewhere than the later ones: another function, but the same step.
            shapes = tuple((aval.shape, str(aval.dtype)) for aval in function.avals)
            self.boundaries.differentiates(len(self.calls), (function.name, shapes))

    def _keep(self, function: Function, args: Sequence[Any], outputs: Sequence[Any], donated: Sequence[bool]) -> None:
        sent = [isinstance(a, np.ndarray) for a in args]
        for array, sharding in zip(args, function.taken if any(sent) else sent, strict=True):
            self._upload(array, array, sharding)
        numbers = tuple(self.number(a) for a in args)
        self._append(Call(function, numbers, tuple(self.number(o) for o in outputs), tuple(donated)))

    def _append(self, call: Call) -> None:
        self.calls.append(replace(call, region="/".join(self._regions)))

    def _upload(self, before: Any, after: Any, sharding: Any = None) -> None:
        """Notes that an array of numpy went to the device; single numbers go with the launch."""
        if isinstance(before, np.ndarray) and before.size > 1:
            self._append(
                Call(host.upload(after, sharding or getattr(after, "sharding", None)), (), (self.number(after),))
            )

    def _download(self, array: Any) -> None:
        """Notes that the script reads an array, which is on the host then."""
        number = self.number(array)
        if number not in self._on_host:
            self._on_host.add(number)
            self._append(Call(host.download(array), (number,), (), (False,)))

    def _read(self, original: Callable[[Any], Any], array: Any) -> Any:
        self._download(array)
        return original(array)


_listening: Listener | None = None


def current() -> Listener | None:
    """The one that listens, if any."""
    return _listening


def _check(_original: Callable[..., Any], args: Sequence[Any]) -> None:
    for arg in args:
        if isinstance(arg, core.Tracer) and not isinstance(arg, SimArray):
            raise core.escaped_tracer_error(arg)


def _types(primitive: Any, args: Sequence[Any], params: dict[str, Any]) -> list[Any] | None:
    """Types of what a primitive makes; None where JAX only knows by computing it."""
    try:
        made, _ = primitive.abstract_eval(*(core.typeof(a) for a in args), **params)
    except Exception:  # whatever a primitive's rule raises: then it is not for us to say what it makes
        return None
    return list(made) if primitive.multiple_results else [made]


def _aval(v: Any) -> Any:
    return v if isinstance(v, core.ShapedArray) else core.typeof(v)


def _type(array: Any) -> tuple[Any, ...]:
    aval = core.typeof(array)
    return getattr(aval, "shape", ()), str(getattr(aval, "dtype", "")), getattr(array, "sharding", None)


def _placed(args: Sequence[Any]) -> tuple[Any, ...]:
    """Shardings of the arguments that are spread over several devices."""
    found = (getattr(a, "sharding", None) for a in args)
    return tuple(s if s is not None and len(s.device_set) > 1 else None for s in found)


def _differentiates(jaxpr: Any) -> bool:
    """Whether a jaxpr has a part that was transposed: the backward pass."""
    return any(
        "transpose" in str(eqn.source_info.name_stack) or any(map(_differentiates, core.jaxprs_in_params(eqn.params)))
        for eqn in jaxpr.eqns
    )


def work(jaxpr: Any) -> float:
    """Floating-point operations of the matrix products of a jaxpr, those of inner ones included."""
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            contracted, _ = eqn.params["dimension_numbers"]
            size = 2.0 * eqn.outvars[0].aval.size
            for d in contracted[0]:
                size *= eqn.invars[0].aval.shape[d]
            total += size
        turns = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        total += turns * sum(work(inner) for inner in core.jaxprs_in_params(eqn.params))
    return total
