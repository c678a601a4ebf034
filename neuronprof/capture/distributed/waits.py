"""Waits: where the script, or the reducer of DistributedDataParallel, waits for a collective that it let run beside other work."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._distributed_c10d import Work

from neuronprof.capture.distributed import streams
from neuronprof.capture.patching import Patches


@dataclass(frozen=True, slots=True)
class _Running:
    """A collective that nobody waited for yet. issued: operators that were recorded when it was."""

    issued: int
    tensors: Sequence[torch.Tensor]
    stream: int


class Waits:
    """Finds the collective of each Work that is waited for: by its tensors, which are the same Python objects at both ends.

    operators: how many are recorded so far; record: is called with the tensors of a collective where it is waited for, unless that is at
    once; message: with the tensor of a message that another rank sends or takes.
    """

    def __init__(
        self,
        operators: Callable[[], int],
        record: Callable[[Sequence[torch.Tensor]], None],
        message: Callable[[torch.Tensor], None],
    ) -> None:
        self._operators, self._record, self._message = operators, record, message
        self._running: dict[int, _Running] = {}
        self._reducing: list[int] = []

    def install(self, patches: Patches) -> None:
        """Listens to who waits for what, until patches is undone."""

        def wait(original: Callable[..., Any], work: Any, *args: Any, **kwargs: Any) -> Any:
            value = work.get_future().value()
            for tensor in value if isinstance(value, (list, tuple)) else ():
                if isinstance(tensor, torch.Tensor):
                    self._message(tensor)
                    self.on(tensor)
            return original(work, *args, **kwargs)

        patches.wrap(Work, "wait", wait)

    def issued(self, tensors: Sequence[torch.Tensor], stream: int) -> None:
        """A collective was recorded; one behind the backward pass is waited for where that ends."""
        if not tensors:
            return
        key = id(tensors[0])
        self._running[key] = _Running(self._operators(), tensors, stream)
        if stream == streams.BEHIND and torch._C._current_graph_task_id() != -1:
            if not self._reducing:
                torch.autograd.Variable._execution_engine.queue_callback(self._backward_ends)
            self._reducing.append(key)

    def on(self, tensor: torch.Tensor) -> None:
        """The device waits for the collective of a tensor, unless it was issued just now: then whoever uses it waits."""
        running = self._running.get(id(tensor))
        if running is None:
            return
        since = self._operators() > running.issued
        if since or running.stream == streams.INLINE:
            del self._running[id(tensor)]
        if since:
            self._record(running.tensors)

    def _backward_ends(self) -> None:
        reducing, self._reducing = self._reducing, []
        for key in reducing:
            if key in self._running:
                self.on(self._running[key].tensors[0])
                self._running.pop(key, None)
