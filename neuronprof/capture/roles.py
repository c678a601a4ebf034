"""Roles: which buffers are weights, gradients, optimizer state and inputs, and whose they are."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch

from neuronprof.capture.recorder import Recorder
from neuronprof.terms import Role


class Roles:
    """What is known of buffers beyond their operators, by buffer.

    on_host: step counters, which PyTorch's optimizers keep in host memory unless they are fused or capturable.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.of: dict[int, tuple[Role, str]] = {}
        self.on_host: set[int] = set()
        self._recorder = recorder
        self._names: dict[int, str] = {}
        self._leaves: dict[int, Callable[[], torch.Tensor | None]] = {}
        self._trainable: dict[int, tuple[weakref.ref[torch.Tensor], int]] = {}

    @property
    def parameters(self) -> int:
        """Number of trainable elements."""
        return sum(count for _, count in self._trainable.values())

    def is_weight(self, buffer: int) -> bool:
        """Whether a buffer that was changed outside any backward holds a parameter or a module's persistent state."""
        leaf = self._leaves.pop(buffer, _nothing)()
        if leaf is not None:
            self.parameter(leaf, "")
        return buffer in self.of and self.of[buffer][0] == Role.WEIGHTS

    def module(self, root: torch.nn.Module, path: str) -> None:
        """Notes the parameters and buffers of a module whose forward was called."""
        for name, tensor in [*root.named_parameters(), *root.named_buffers()]:
            self.parameter(tensor, f"{path}.{name}")

    def parameter(self, tensor: torch.Tensor, name: str) -> None:
        """Notes one parameter."""
        key = id(tensor)
        name = self._names.setdefault(key, name)
        if tensor.requires_grad:
            self._trainable[key] = (weakref.ref(tensor), tensor.numel())
        self._set(tensor, Role.WEIGHTS, name)

    def leaf(self, tensor: torch.Tensor) -> None:
        """Notes a tensor that gradients were accumulated for, though it belongs to no module: an input, or a parameter made by hand."""
        self._leaves[self._recorder.buffer(_local(tensor))] = weakref.ref(tensor)

    def gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Notes the gradients that an optimizer is about to use."""
        for parameter in _parameters(optimizer):
            self.parameter(parameter, "")
            self._gradient(parameter)

    def all_gradients(self) -> None:
        """Notes the gradients of every parameter met so far."""
        for parameter in [ref() for ref, _ in self._trainable.values()]:
            if parameter is not None:
                self._gradient(parameter)

    def _gradient(self, parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            self._set(parameter.grad, Role.GRADIENTS, self._names[id(parameter)])

    def state(self, optimizer: torch.optim.Optimizer) -> None:
        """Notes the state that an optimizer keeps."""
        counts_on_host = {
            id(p)
            for group in optimizer.param_groups
            if not (group.get("fused") or group.get("capturable"))
            for p in group["params"]
        }
        for parameter, state in optimizer.state.items():
            name = self._names.get(id(parameter), "")
            for key, value in _tensors(state):
                self._set(value, Role.OPTIMIZER_STATE, f"{name}.{key}" if name else key)
                if key == "step" and id(parameter) in counts_on_host:
                    self.on_host.add(self._recorder.buffer(_local(value)))

    def input(self, tensor: torch.Tensor) -> None:
        """Notes a tensor that came from the host."""
        buffer = self._recorder.buffer(_local(tensor), max(len(self._recorder) - 1, 0))
        self.of.setdefault(buffer, (Role.INPUTS, ""))

    def _set(self, tensor: torch.Tensor, role: Role, name: str) -> None:
        buffer = self._recorder.buffer(_local(tensor))
        if buffer >= 0 and (buffer not in self.of or self.of[buffer][0] == Role.INPUTS):
            self.of[buffer] = (role, name)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """What a rank has of a tensor that is distributed: a DTensor itself claims the bytes of all ranks."""
    local: torch.Tensor = getattr(tensor, "_local_tensor", tensor)
    return local


def _nothing() -> None:
    return None


def _parameters(optimizer: torch.optim.Optimizer) -> Iterable[torch.Tensor]:
    return (p for group in optimizer.param_groups for p in group["params"])


def _tensors(state: Any) -> Iterable[tuple[str, torch.Tensor]]:
    if isinstance(state, dict):
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                yield str(key), value
            elif isinstance(value, (list, tuple)):
                yield from ((f"{key}.{i}", v) for i, v in enumerate(value) if isinstance(v, torch.Tensor))
