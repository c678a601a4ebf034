"""Threads that the script starts: their operators are recorded like those of its main thread.

PyTorch keeps the active modes, and the numbers of autograd's nodes, for each thread alone: a started thread enters the engine, and
its nodes get numbers of their own, so that a gradient still finds its forward operator.
"""

import threading
from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _pop_mode, _push_mode

from neuronprof.capture import engine as engines
from neuronprof.capture.patching import Patches
from neuronprof.capture.signatures import tensors_in


def install(patches: Patches) -> None:
    """Lets threads enter the engine that records when they start, until patches is undone."""
    patches.wrap(threading.Thread, "start", _start)


def _start(original: Callable[..., None], thread: threading.Thread) -> None:
    engine = engines.current()
    if engine is not None and not engine.tape.host:  # else a thread of a data loader
        _enter_when_run(thread, engine)
    original(thread)


def _enter_when_run(thread: threading.Thread, engine: engines.Engine) -> None:
    run = thread.run

    def recorded() -> None:
        with _Numbers(engine.thread_begins()):
            _push_mode(engine)
            try:
                run()
            finally:
                _pop_mode()
                del thread.run

    thread.run = recorded  # type: ignore[method-assign]


class _Numbers(TorchFunctionMode):
    """Moves the numbers of the nodes that this thread makes to where no other thread's are.

    first: is added to the number of each node. Between the results of a function and its arguments lie the nodes that it made.
    """

    def __init__(self, first: int) -> None:
        super().__init__()
        self._first = first

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls a function of PyTorch and numbers its nodes."""
        before = {t.grad_fn for t in tensors_in([*args, *(kwargs or {}).values()])}
        made = func(*args, **(kwargs or {}))
        nodes = [t.grad_fn for t in tensors_in(made)]
        while nodes:
            node = nodes.pop()
            if node is None or node in before or node._sequence_nr() >= self._first:
                continue
            node._set_sequence_nr(node._sequence_nr() + self._first)
            nodes.extend(following for following, _ in node.next_functions)
        return made
