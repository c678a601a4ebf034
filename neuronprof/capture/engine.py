"""Engine: the dispatch mode that executes every operator, with values or without, and hands it to the tape."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from neuronprof.capture import placement, simtensor
from neuronprof.capture.assemble import assemble
from neuronprof.capture.budget import Budget
from neuronprof.capture.distributed import attention, sharded
from neuronprof.capture.distributed.collectives import Collectives
from neuronprof.capture.distributed.groups import Call as Message
from neuronprof.capture.distributed.messages import FORMS, WRITTEN
from neuronprof.capture.hooks import Hooks
from neuronprof.capture.plans import SMALL, Asked, Plan
from neuronprof.capture.policy import Policy, doubtful
from neuronprof.capture.signatures import Call, Operator, tensors_in
from neuronprof.capture.simtensor import Sim
from neuronprof.capture.tape import Entry, Tape
from neuronprof.graph.ir import Recording

_Tensor, _Parameter = torch.Tensor, torch.nn.Parameter
_mode = torch._C._get_dispatch_mode
_MODES = torch._C._TorchDispatchModeKey
_FAKE, _PROXY, _FUNCTIONAL = _MODES.FAKE, _MODES.PROXY, _MODES.FUNCTIONAL
_READ = torch.ops.aten._local_scalar_dense.default
_sequence = torch.autograd._get_sequence_nr
_MOST_ENTRIES = 1 << 16
_NODES = 40
"""Autograd nodes of one thread have numbers of this many bits."""
_active: list["Engine"] = []


def current() -> "Engine | None":
    """The engine that records in this process, if one is active."""
    return _active[-1] if _active else None


class Engine(TorchDispatchMode):
    """Executes operators, for real or without values, and records them.

    Without values, large float tensors are `Sim`; small ones, integers and scalars stay real, so that shapes, routing and the
    script's own decisions go on. PyTorch's shape rules are asked once for each signature; the answer, a plan, is kept.

    values: 'real' or 'none', what happens now ('auto' begins with 'real').
    """

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else each call goes through a wrapper that costs 2 us

    def __init__(self, values: str = "auto", notice: Callable[[str], None] = print) -> None:
        super().__init__()
        self.values = "none" if values == "none" else "real"
        self.notes: dict[str, int] = {}
        self._call = Call()
        self.tape = Tape(self._call, self.note)
        self._budget = Budget(notice) if values == "auto" else None
        self._policy = Policy(self.note)
        self.collectives = Collectives(self)
        self._operators: dict[Any, Operator] = {}
        self._entries: dict[tuple[Any, ...], Entry] = {}
        self._in_place: dict[tuple[Any, ...], Plan] = {}
        self._hooks = Hooks(self.tape, self)
        self._depth = 0
        self._threads = 0

    @property
    def stop_after(self) -> int | None:
        """After so many complete steps operators still execute but are not recorded."""
        return self.tape.stop_after

    @stop_after.setter
    def stop_after(self, steps: int | None) -> None:
        self.tape.stop_after = steps

    @property
    def on_complete(self) -> Callable[[], None] | None:
        """Called once when stop_after is reached; it may raise to leave the script."""
        return self.tape.on_complete

    @on_complete.setter
    def on_complete(self, call: Callable[[], None] | None) -> None:
        self.tape.on_complete = call

    @property
    def script_folder(self) -> str:
        """Folder that source names are relative to."""
        return self.tape.attribution.sources.script_folder

    @script_folder.setter
    def script_folder(self, folder: str) -> None:
        self.tape.attribution.sources.script_folder = folder

    @property
    def recorded_steps(self) -> int:
        """Complete steps so far."""
        tape = self.tape
        return tape.steps.count() if tape.active and not tape.paused else len(tape.steps.ends(len(tape.recorder)))

    def note(self, key: str, count: int = 1) -> None:
        """Counts a softening that the summary tells the user about."""
        self.notes[key] = self.notes.get(key, 0) + count

    def transfer(self, direction: Literal["h2d", "d2h"], tensor: torch.Tensor) -> None:
        """Records a copy between host and device as 'neuronprof.h2d' (its output is the tensor) or 'neuronprof.d2h' (its input is)."""
        self.tape.transfer(direction, tensor)

    def mark_step(self) -> None:
        """Ends a step by hand; once called, only such marks are boundaries."""
        self.tape.mark_step()

    def region(self, name: str) -> AbstractContextManager[None]:
        """Names the operators issued inside."""
        return self.tape.region(name)

    def finish(self, steps: int = 3, warmup: int = 1, script: str = "", argv: tuple[str, ...] = ()) -> Recording:
        """The recording of at most `steps` steps after the first `warmup` ones (fewer are dropped if there are no later ones).

        Raises:
            NeuronprofError: no step was found.
        """
        self.tape.stop()
        return assemble(self.tape, self.collectives.book, (steps, warmup), self, (script, argv))

    # --- the mode

    def __enter__(self) -> "Engine":
        self._depth += 1
        if self._depth == 1:
            simtensor.set_executor(self)
            _active.append(self)
            self._hooks.install()
            self.tape.resume()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._depth -= 1
        if self._depth == 0:
            self._hooks.remove()
            _active.remove(self)
            self.tape.suspend()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Executes one operator, unless another tracer or tensor subclass must see it first."""
        if _mode(_FAKE) is not None or _mode(_PROXY) is not None or _mode(_FUNCTIONAL) is not None:
            return func(*args, **(kwargs or {}))
        simulated = self.values == "none"
        for kind in types:
            if kind is Sim:
                simulated = True
            elif kind is not _Tensor and kind is not _Parameter:
                return func(*args, **(kwargs or {})) if kind is FakeTensor else NotImplemented
        return self._run(func, args, kwargs or {}, simulated)

    def thread_begins(self) -> int:
        """Called in a thread of the script before it runs; from then on operators execute one at a time.

        Returns what is to be added to the numbers of the thread's autograd nodes.
        """
        with self.tape.lock:
            self._threads += 1
            first = self._threads << _NODES
            self.tape.thread_begins(first)
            return first

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any], simulated: bool) -> Any:
        there = func is _READ and placement.on_host(args[0])  # as DistributedDataParallel's flags of unused parameters
        if not self._threads and not there:
            return self._execute(func, args, kwargs, simulated)
        with self.tape.lock:
            if not there and not self.tape.prepares((*args, *kwargs.values())):
                return self._execute(func, args, kwargs, simulated)
            with self.on_host():
                return self._execute(func, args, kwargs, simulated)

    def execute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Executes one operator on tensors some of which have no values."""
        return self._run(func, args, kwargs, True)

    def fused(self, func: Any, args: tuple[Any, ...]) -> Any:
        """Executes, outside of the mode, what is one operator on the device and several of PyTorch's.

        func: called with args, or with tensors without memory in their place; str(func) is the operator's name.
        """
        return self._run(func, args, {}, self.values == "none" or any(type(t) is Sim for t in tensors_in(args)))

    def joined(self, world: int) -> None:
        """The script joined a process group: of several ranks only one has data, so that only its shapes are worth computing."""
        if world > 1 and self._budget is not None:
            self._budget = None
            self.values = "none"
            self._entries.clear()

    @contextmanager
    def on_host(self) -> Iterator[None]:
        """What runs inside is not recorded."""
        self.tape.host_begins()
        try:
            yield
        finally:
            self.tape.host_ends()

    def _execute(self, func: Any, args: Any, kwargs: dict[str, Any], simulated: bool) -> Any:
        operator = self._operators.get(func) or self._operator(func)
        if operator.parts is not None:
            with self._reentered():  # its parts are the operators; and a kernel among them must not meet a Sim
                out = operator.parts(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if operator.hidden:
            return func(*args, **kwargs)
        if operator.collective:
            out = self.collectives.execute(func, operator, args, simulated)
        elif simulated:
            out = self._simulate(func, operator, args, kwargs)
        elif self.tape.recording or self.tape.starts(args):
            out = self._compute(func, operator, args, kwargs)
        else:
            out = self._unrecorded(func, args, kwargs)
        if placement.in_use() is not None and not operator.view:
            placement.inherit(args, out)
        return out

    def _operator(self, func: Any) -> Operator:
        operator = self._operators[func] = Operator(func)
        operator.collective = operator.name in FORMS
        operator.parts = operator.parts or sharded.parts(operator) or attention.parts(operator)
        operator.written = WRITTEN.get(operator.name, operator.written)
        return operator

    def operators(self) -> int:
        """How many are recorded so far."""
        return len(self.tape.recorder)

    def record(self, func: Any, args: tuple[Any, ...], out: Any, call: Message | None) -> None:
        """Appends a collective that was executed, with the group that it communicates in, or (None) a wait for one."""
        tape = self.tape
        if not (tape.recording or tape.starts(args)):
            return
        operator, (key, operands) = self._operators.get(func) or self._operator(func), self._call.key(func, args, {})
        entry = self._entries.setdefault((*key, "collective"), Entry())
        if call is not None:
            tape.calls[len(tape.recorder)] = call
        tape.record(entry, (operator, args, {}), operands, out, _sequence() - 1)

    @contextmanager
    def _reentered(self) -> Iterator[None]:
        TorchDispatchMode.__enter__(self)
        try:
            yield
        finally:
            TorchDispatchMode.__exit__(self, None, None, None)

    # --- with values

    def _unrecorded(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        budget, tape = self._budget, self.tape
        if budget is None or tape.paused or tape.host:
            return func(*args, **kwargs)
        if not budget.allows_factory(args, tape.recorder.live_bytes):
            self._stop_computing()
            return self._execute(func, args, kwargs, True)
        out = func(*args, **kwargs)
        if isinstance(out, _Tensor) and budget.is_notable(out):
            tape.recorder.buffer(out)
            if not budget.allows(tape.recorder.live_bytes):
                self._stop_computing()
        return out

    def _compute(self, func: Any, operator: Operator, args: Any, kwargs: dict[str, Any]) -> Any:
        sequence = _sequence() - 1
        key, operands = self._call.key(func, args, kwargs)
        found = tuple(key)
        entry = self._entries.get(found)
        if entry is None:
            if self._budget is not None and self._excessive(func, operator, args, kwargs, operands):
                self._stop_computing()
                return self._simulate(func, operator, args, kwargs)
            entry = Entry()
            if not operator.dynamic:
                self._entries[found] = entry
        out = func(*args, **kwargs)
        if operator.dynamic:
            entry = self._dynamic(found, out)
        tape = self.tape
        tape.record(entry, (operator, args, kwargs), operands, out, sequence)
        if self._budget is not None and entry.signature is not None:
            spent = self._budget.spend(tape.recorder.live_bytes, entry.index, entry.signature, tape.boundaries)
            if spent:
                self._stop_computing()
        return out

    def _excessive(self, func: Any, operator: Operator, args: Any, kwargs: Any, operands: Any) -> bool:
        """Whether an operator not seen before would pass the budget all by itself."""
        layouts = [self._call.layout(t) for t in operands]
        if operator.view or operator.dynamic or not doubtful(layouts):
            return False
        results = self._policy.results(Asked(func, operator, args, kwargs, operands, self._policy.shaped))
        signature = self._call.signature(operator, args, kwargs, results, False)
        made = 0 if operator.written else sum(t.nbytes for t in results)
        assert self._budget is not None
        return not self._budget.allows(self.tape.recorder.live_bytes + made, signature)

    def _stop_computing(self) -> None:
        assert self._budget is not None
        self._budget.tell()
        self._budget = None
        self.values = "none"
        self._entries.clear()

    # --- without values

    def _simulate(self, func: Any, operator: Operator, args: Any, kwargs: dict[str, Any]) -> Any:
        sequence = _sequence() - 1
        key, operands = self._call.key(func, args, kwargs)
        simulated, absent, on_meta = _survey(operands)
        if on_meta or (self.tape.host and not simulated):
            return func(*args, **kwargs)
        key.append(absent)
        found = tuple(key)
        entry = self._entries.get(found)
        if operator.view or operator.view_in_place:
            out = simtensor.view(func, args, kwargs, simulated)
            entry = entry or self._entries.setdefault(found, Entry())
        elif entry is None:
            entry, out = self._first(found, func, operator, args, kwargs, operands)
        elif entry.plan is None:
            out = func(*args, **kwargs)
            self._policy.inherit(operands, out)
        else:
            out = self._policy.build(entry.plan, operands)
        if self.tape.recording or self.tape.starts(args):
            self.tape.record(entry, (operator, args, kwargs), operands, out, sequence)
        return out

    def _first(
        self, found: tuple[Any, ...], func: Any, operator: Operator, args: Any, kwargs: dict[str, Any], operands: Any
    ) -> tuple[Entry, Any]:
        """Decides on a call that was not seen before, and makes its result."""
        plan = self._decide(func, operator, args, kwargs, operands, absent=found[-1])
        if plan is None:
            out = func(*args, **kwargs)
            self._policy.inherit(operands, out)
        else:
            out = self._policy.build(plan, operands)
        if operator.dynamic or (plan is not None and not plan.reusable):
            return self._dynamic(found, out), out
        if self.tape.paused and len(self._entries) >= _MOST_ENTRIES:
            self._entries.clear()  # a schedule's changing factors would fill the table for ever
        entry = self._entries[found] = Entry(plan)
        return entry, out

    def _decide(
        self, func: Any, operator: Operator, args: Any, kwargs: dict[str, Any], operands: Any, absent: bool
    ) -> Plan | None:
        asked = Asked(func, operator, args, kwargs, operands, self._policy.shaped)
        if absent and operator.in_place:
            return self._decide_in_place(asked)
        if absent:
            return self._policy.plan(asked)
        device = kwargs.get("device")
        if operator.written or operator.dynamic or (device is not None and torch.device(device).type == "meta"):
            return None
        return self._policy.too_large(asked)

    def _decide_in_place(self, asked: Asked) -> Plan:
        """Factors change with every step (a bias correction, a schedule), but the results are the operands all the same."""
        key = (asked.func, *(self._call.layout(t) for t in asked.operands))
        plan = self._in_place.get(key)
        if plan is None:
            plan = self._policy.plan(asked)
            if plan.reusable:
                self._in_place[key] = plan
        return plan

    def _dynamic(self, found: tuple[Any, ...], out: Any) -> Entry:
        """The entry of a call whose result depends on values: one for each shape of the result."""
        key = (*found, "->", *(self._call.layout(t) for t in tensors_in(out)))
        return self._entries.setdefault(key, Entry())


def _survey(operands: list[Any]) -> tuple[bool, bool, bool]:
    """(some operand is a Sim, some operand's values are not used, some operand is on the meta device)."""
    absent = False
    for tensor in operands:
        if isinstance(tensor, Sim):
            return True, True, False
        if tensor.is_meta:
            return False, False, True
        absent = absent or (tensor.numel() > SMALL and tensor.is_floating_point())
    return False, absent, False
