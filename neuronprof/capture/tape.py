"""Tape: when operators are recorded, and everything the script was heard to do around them."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import torch

from neuronprof.capture import placement
from neuronprof.capture.attribution import BACKWARD, FORWARD, OPTIMIZER, OTHER, Attribution, in_backward, needs_gradient
from neuronprof.capture.distributed.groups import Call as Message
from neuronprof.capture.plans import Plan
from neuronprof.capture.recorder import Recorder
from neuronprof.capture.roles import Roles
from neuronprof.capture.signatures import Call, Operator, tensors_in
from neuronprof.capture.steps import Pass, Steps
from neuronprof.graph.ir import Signature

_P = ParamSpec("_P")
_R = TypeVar("_R")
_Tensor = torch.Tensor
_MOST_EVALUATIONS = 64
"""Forwards without gradients in a row after which the next ones are counted, not recorded: a validation set says nothing new."""


def _in_turn(method: "Callable[Concatenate[Tape, _P], _R]") -> "Callable[Concatenate[Tape, _P], _R]":
    """A method that one thread calls at a time."""

    @functools.wraps(method)
    def wrapped(self: "Tape", *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with self.lock:
            return method(self, *args, **kwargs)

    return wrapped


class _Own(threading.local):
    """What a tape knows of one thread.

    host: how deep it is in host code; started_by_script; open: the pass it is in; scheduling: whether that is one of a pipeline's schedule.
    """

    def __init__(self) -> None:
        self.host = 0
        self.started_by_script = False
        self.scheduling = False
        self.open: Pass | None = None


class Entry:
    """What is known of calls with the same key: how to build the result (None: execute), and the signature they are recorded under."""

    __slots__ = ("index", "mutates", "plan", "signature")

    def __init__(self, plan: Plan | None = None) -> None:
        self.plan = plan
        self.index = -1
        self.mutates: tuple[int, ...] = ()
        self.signature: Signature | None = None


class Tape:
    """The recorded operators and the events between them.

    Recording starts with the first forward of a module, the first operator that autograd follows, or the first mark by hand; it pauses
    for good when `stop_after` steps are complete, and for a while during host code and long evaluations.
    """

    def __init__(self, call: Call, note: Callable[..., None]) -> None:
        self.lock = threading.RLock()
        self.paused = False
        self.active = False
        self._own = _Own()
        self._going = False
        self.boundaries = 0
        self.stop_after: int | None = None
        self.on_complete: Callable[[], None] | None = None
        self.signatures: list[Signature] = []
        self.calls: dict[int, Message] = {}
        self.recorder = Recorder()
        self.attribution = Attribution()
        self.roles = Roles(self.recorder)
        self.steps = Steps()
        self._call = call
        self._note = note
        self._started = self._skipping = False
        self._evaluations = 0
        self._last_backward = -1
        self._mutated = -1
        self._transfers: dict[Any, Entry] = {}
        self.attribution.on_leaf = self.roles.leaf

    @property
    def recording(self) -> bool:
        """Whether operators of this thread are recorded now."""
        return self._going and not self._own.host

    @property
    def host(self) -> int:
        """How many calls of host code this thread is in."""
        return self._own.host

    def thread_begins(self, first: int) -> None:
        """A thread that the script started; first: is added to the numbers of its autograd nodes."""
        self._own.started_by_script = True
        self.attribution.running.first = first

    def prepares(self, args: Any) -> bool:
        """Whether an operator of a thread that the script started prepares data on the host.

        It does unless a module, an optimizer or autograd is at work, or an operand is on the device.
        """
        if not self._own.started_by_script:
            return False
        running = self.attribution.running
        if running.stack or running.optimizing or in_backward():
            return False
        return not (placement.on_device(args) or needs_gradient(tensors_in(args)))

    # --- operators

    def starts(self, args: Any) -> bool:
        """Whether recording begins with this operator: the first that autograd follows."""
        if self._started or self.host or not self.active or not torch.is_grad_enabled():
            return False
        for value in args:
            values = value if type(value) is list or type(value) is tuple else (value,)
            if any(isinstance(v, _Tensor) and v.requires_grad for v in values):
                self.start()
                return self.recording
        return False

    def start(self) -> None:
        """Begins to record."""
        self._started = True
        self._update()

    def resume(self) -> None:
        """The mode is entered."""
        self.active = True
        self._update()

    def suspend(self) -> None:
        """The mode is left."""
        self.active = False
        self.end_mutation()
        self._update()

    def forked(self) -> None:
        """A child process begins in which nothing is recorded."""
        self.lock = threading.RLock()  # may be held by a thread that does not exist here
        self.suspend()

    def stop(self) -> None:
        """Ends recording for good."""
        self.end_mutation()
        self.paused = True
        self._update()

    def _update(self) -> None:
        self._going = self._started and self.active and not (self.paused or self._skipping)

    def record(
        self, entry: Entry, call: tuple[Operator, Any, dict[str, Any]], operands: list[Any], out: Any, sequence: int
    ) -> None:
        """Appends an operator that was executed; call is (operator, args, kwargs)."""
        recorder = self.recorder
        results = [out] if isinstance(out, _Tensor) else tensors_in(out)
        if entry.index < 0:
            self._describe(entry, call, operands, results)
        if not results and entry.mutates:
            results = [operands[i] for i in entry.mutates]
        op = len(recorder)
        place = self.attribution.place(op, sequence, operands, recorder)
        recorder.add(entry.index, place, operands)
        recorder.close(op, results)
        if place[0] == BACKWARD:
            self._last_backward = op
            self.steps.backward_seen = True
        elif entry.mutates and self._last_backward >= 0 and not self.steps.optimizers:
            self._notice_mutation(op, entry, operands)
        elif self._mutated >= 0 and place[0] == FORWARD and not self.signatures[entry.index].view:
            self.end_mutation()

    def _describe(self, entry: Entry, call: tuple[Operator, Any, Any], operands: list[Any], results: list[Any]) -> None:
        operator, args, kwargs = call
        if not results:  # void in-place operators return nothing: their results are what they wrote
            void = self._call.signature(operator, args, kwargs, (), False)
            results = [operands[i] for i in void.mutates]
        view = operator.view or operator.view_in_place or _alias(operator, operands, results)
        self._keep(entry, self._call.signature(operator, args, kwargs, results, view))

    def _keep(self, entry: Entry, signature: Signature) -> None:
        entry.index = len(self.signatures)
        entry.mutates = () if signature.view else signature.mutates
        entry.signature = signature
        self.signatures.append(signature)

    @_in_turn
    def transfer(self, direction: Literal["h2d", "d2h"], tensor: torch.Tensor) -> None:
        """Appends a copy between host and device: 'neuronprof.h2d' has the tensor as its output, 'neuronprof.d2h' as its input."""
        arrives = direction == "h2d"
        if self.recording:
            layout = self._call.layout(tensor).tensor
            entry = self._transfers.setdefault((direction, layout), Entry())
            if entry.index < 0:
                self._keep(
                    entry, Signature(f"neuronprof.{direction}", *((), (layout,)) if arrives else ((layout,), ()))
                )
            place = self.attribution.place(len(self.recorder), -1, (), self.recorder)
            op = self.recorder.add(entry.index, place, () if arrives else (tensor,))
            self.recorder.close(op, (tensor,) if arrives else ())
        if arrives and not self.paused:
            self.roles.input(tensor)

    # --- custom optimizers

    def _notice_mutation(self, op: int, entry: Entry, operands: list[Any]) -> None:
        known, is_weight = self.recorder.known, self.roles.is_weight
        if any(is_weight(known(operands[i])) for i in entry.mutates):
            if self._mutated < 0:
                self.roles.all_gradients()
            self._mutated = op + 1

    def end_mutation(self) -> None:
        """Ends the step whose parameters were changed by hand, if there is one: at the last change."""
        if self._mutated < 0:
            return
        recorder = self.recorder
        for op in range(self._last_backward + 1, self._mutated):
            if recorder.phase[op] == OTHER or self.signatures[recorder.signature[op]].view:
                recorder.phase[op] = OPTIMIZER
        self.steps.mutations.append(self._mutated)
        self._mutated = self._last_backward = -1
        self._boundary()

    # --- events

    @_in_turn
    def mark_step(self) -> None:
        """Ends a step by hand."""
        if not self.paused:
            self.start()
            self.steps.marks.append(len(self.recorder))
            self._boundary()

    @contextmanager
    def region(self, name: str) -> Iterator[None]:
        """Names the operators issued inside."""
        self.start()
        running = self.attribution.running
        before, running.region = running.region, self.attribution.name_region(name)
        try:
            yield
        finally:
            running.region = before

    @_in_turn
    def module_begins(self, module: torch.nn.Module) -> None:
        """A forward begins."""
        modules = self.attribution.modules
        outermost = not modules.stack
        modules.enter(module)
        if not outermost or self.paused or in_backward():
            return
        if self._own.scheduling:
            self._meet(module, modules.stack[0])
        else:
            self._pass_begins(module, modules.stack[0])

    @_in_turn
    def module_ends(self) -> None:
        """The innermost forward ends, also by an exception."""
        modules = self.attribution.modules
        modules.leave()
        if not (modules.stack or self._own.scheduling):
            self._pass_ends()

    def _meet(self, module: torch.nn.Module, path: int) -> None:
        if path not in self.steps.models:
            self.steps.models.add(path)
            self.roles.module(module, self.attribution.modules.paths[path])

    def scheduled(self, step: Callable[[], _R]) -> _R:
        """Calls a pipeline schedule's step, which is one pass."""
        if not (self.paused or self._own.scheduling):
            self.start()
            gradients = torch.is_grad_enabled()
            self._own.open = Pass(len(self.recorder), 0, gradients, gradients)
            self.steps.passes.append(self._own.open)
        before, self._own.scheduling = self._own.scheduling, True
        try:
            return step()
        finally:
            self._own.scheduling = before
            if not before:
                self._pass_ends()

    def _pass_ends(self) -> None:
        last = self._own.open
        if self.paused or last is None:
            return
        self._own.open = None
        if last.stop < 0:
            last.stop = len(self.recorder)
            if not self.steps.training:
                self._boundary()

    def _pass_begins(self, module: torch.nn.Module, path: int) -> None:
        if next(module.parameters(), None) is None:
            return  # a loss, an activation: not a model
        gradients = torch.is_grad_enabled()
        self._evaluations = 0 if gradients else self._evaluations + 1
        self._skipping = self._evaluations > _MOST_EVALUATIONS
        if self._skipping:
            self._note(f"evaluation forwards beyond {_MOST_EVALUATIONS} in a row, not recorded")
        self.start()
        if gradients:
            self.end_mutation()
        if self.recording:
            self._meet(module, path)
            self._own.open = Pass(len(self.recorder), path, gradients, gradients and module.training)
            self.steps.passes.append(self._own.open)

    def optimizer_made(self, optimizer: torch.optim.Optimizer) -> None:
        """The script made an optimizer."""
        self.steps.optimizers.add(id(optimizer))

    @_in_turn
    def optimizer_begins(self, optimizer: torch.optim.Optimizer) -> None:
        """Optimizer.step begins; one inside another's step is part of it."""
        running = self.attribution.running
        if running.optimizing == 0:
            running.optimizer_depth = len(running.stack)
            self._skipping, self._evaluations = False, 0
            self._update()
        running.optimizing += 1
        if self.recording:
            self.roles.gradients(optimizer)

    @_in_turn
    def optimizer_ends(self, optimizer: torch.optim.Optimizer) -> None:
        """Optimizer.step ended: a step may have."""
        running = self.attribution.running
        running.optimizing -= 1
        self.steps.optimizers.add(id(optimizer))
        self.steps.used.add(id(optimizer))
        if self.recording:
            self.roles.gradients(optimizer)  # a closure may have made them inside
            self.roles.state(optimizer)
        if running.optimizing == 0:
            running.optimizer_depth = 0
            if self._started and not self.paused:
                self.steps.updates.append((len(self.recorder), id(optimizer)))
                self._boundary()

    def host_begins(self) -> None:
        """What follows runs on the host."""
        self._own.host += 1

    def host_ends(self) -> None:
        """End of what runs on the host."""
        self._own.host -= 1

    def _boundary(self) -> None:
        self.boundaries += 1
        self._evaluations = 0
        if self.stop_after is not None and self.steps.count() >= self.stop_after:
            self.stop()
            if self.on_complete is not None and self.active:
                self.on_complete()


def _alias(operator: Operator, operands: list[Any], results: list[Any]) -> bool:
    """Whether every result shares storage with an operand that was not written (schemas do not tell for _unsafe_view and its like)."""
    if operator.written or not results or not operands:
        return False
    try:
        storages = {t.untyped_storage()._cdata for t in operands}
        return all(t.untyped_storage()._cdata in storages for t in results)
    except (NotImplementedError, RuntimeError):
        return False
