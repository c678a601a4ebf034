"""Hooks: how an engine hears of modules, optimizers and data loaders; all undone at the end."""

import functools
import os
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.nn.modules import module as nn_module
from torch.optim import optimizer as optim
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode, _pop_mode
from torch.utils.data import dataloader

from neuronprof.capture.simtensor import Sim


class Listener(Protocol):
    """What an engine is told."""

    def module_begins(self, module: torch.nn.Module) -> None:
        """A forward begins."""

    def module_ends(self) -> None:
        """The innermost forward ends, also by an exception."""

    def optimizer_made(self, optimizer: torch.optim.Optimizer) -> None:
        """The script made an optimizer."""

    def optimizer_begins(self, optimizer: torch.optim.Optimizer) -> None:
        """Optimizer.step begins."""

    def optimizer_ends(self, optimizer: torch.optim.Optimizer) -> None:
        """Optimizer.step ended."""

    def host_begins(self) -> None:
        """What follows runs on the host, not on the device."""

    def host_ends(self) -> None:
        """End of what runs on the host."""

    def forked(self) -> None:
        """A child process begins."""


class Hooks:
    """Installs the hooks of one listener."""

    def __init__(self, listener: Listener, mode: TorchDispatchMode) -> None:
        self._listener = listener
        self._mode = mode
        self._undo: list[Callable[[], None]] = []

    def install(self) -> None:
        """Begins to listen."""
        told = self._listener
        handles = [
            nn_module.register_module_forward_pre_hook(lambda module, _args: told.module_begins(module)),
            nn_module.register_module_forward_hook(lambda _module, _args, _out: told.module_ends(), always_call=True),
            optim.register_optimizer_step_pre_hook(lambda opt, _args, _kwargs: told.optimizer_begins(opt)),
            optim.register_optimizer_step_post_hook(lambda opt, _args, _kwargs: told.optimizer_ends(opt)),
        ]
        self._undo.extend(handle.remove for handle in handles)
        self._after(optim.Optimizer, "__init__", told.optimizer_made)
        self._as_host(dataloader.DataLoader, "__iter__")
        self._as_host(dataloader._BaseDataLoaderIter, "__next__")
        self._know_sim()
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # one opaque operator for a whole layer otherwise
        self._undo.append(lambda: torch.backends.mha.set_fastpath_enabled(fast))
        _forks[:] = [(told, self._mode)]
        self._undo.append(_forks.clear)

    def remove(self) -> None:
        """Leaves PyTorch as it was."""
        while self._undo:
            self._undo.pop()()

    def _know_sim(self) -> None:
        # Optimizers and clip_grad_norm_ choose their path by exact type; without this it would be another one without values.
        for known in (optim._foreach_supported_types, _foreach_utils._foreach_supported_types):
            if Sim not in known:
                known.append(Sim)
                self._undo.append(functools.partial(known.remove, Sim))

    def _after(self, owner: Any, name: str, tell: Callable[..., None]) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
            out = original(self, *args, **kwargs)
            tell(self)
            return out

        self._replace(owner, name, wrapped)

    def _as_host(self, owner: Any, name: str) -> None:
        original, told = getattr(owner, name), self._listener

        @functools.wraps(original)
        def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
            told.host_begins()
            try:
                return original(self, *args, **kwargs)
            finally:
                told.host_ends()

        self._replace(owner, name, wrapped)

    def _replace(self, owner: Any, name: str, made: Any) -> None:
        original = owner.__dict__[name]
        setattr(owner, name, made)
        self._undo.append(lambda: setattr(owner, name, original))


_forks: list[tuple[Listener, TorchDispatchMode]] = []


def _leave_modes() -> None:
    """A forked worker of a data loader is host code: it runs without the engine."""
    for listener, mode in _forks:
        listener.forked()
        while _get_current_dispatch_mode() is mode:
            _pop_mode(None)


os.register_at_fork(after_in_child=_leave_modes)
