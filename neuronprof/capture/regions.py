"""Marks the operators of a module or function that the script handed to a compiler."""

import functools
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch.nn.modules import module as module_hooks

from neuronprof.capture import engine as engines
from neuronprof.capture.patching import Patches

_names: weakref.WeakKeyDictionary[torch.nn.Module, str] = weakref.WeakKeyDictionary()
_open: list[tuple[torch.nn.Module, ExitStack]] = []


def install(patches: Patches) -> None:
    """Watches module calls for marked modules. Global hooks rather than hooks of the module: those would be copied and pickled with it."""
    _names.clear()
    patches.on_exit(module_hooks.register_module_forward_pre_hook(_enter).remove)
    patches.on_exit(module_hooks.register_module_forward_hook(_leave, always_call=True).remove)


def mark(target: Any, name: str) -> Any:
    """Target itself for a module, else a function that calls it; the operators of each call carry the region name."""
    if isinstance(target, torch.nn.Module):
        _names[target] = name
        return target
    return _marked_function(target, name)


def _marked_function(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def marked(*args: Any, **kwargs: Any) -> Any:
        engine = engines.current()
        if engine is None:
            return function(*args, **kwargs)
        with engine.region(name):
            return function(*args, **kwargs)

    return marked


def _enter(module: torch.nn.Module, _args: Any) -> None:
    engine = engines.current()
    if engine is None or module not in _names:
        return
    stack = ExitStack()
    stack.enter_context(engine.region(_names[module]))
    _open.append((module, stack))


def _leave(module: torch.nn.Module, _args: Any, _output: Any) -> None:
    if _open and _open[-1][0] is module:
        _open.pop()[1].close()
