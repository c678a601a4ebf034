"""Dataflow over recorded operators: what feeds a step, and what ran on the host."""

from collections.abc import Iterable, Sequence

from neuronprof.capture.recorder import Recorder
from neuronprof.graph.ir import Signature


class Dataflow:
    """Reads and writes of each operator, as buffers."""

    def __init__(self, recorder: Recorder, signatures: list[Signature]) -> None:
        self._pointer = recorder.operand_ptr
        self._operands = recorder.operands
        self._signature = recorder.signature
        self._born = recorder.births
        self._inputs = [len(s.inputs) for s in signatures]
        self._mutates = [() if s.view else s.mutates for s in signatures]
        self._views = [s.view for s in signatures]

    def reads(self, op: int) -> Sequence[int]:
        """Buffers of the inputs."""
        start = self._pointer[op]
        return self._operands[start : start + self._inputs[self._signature[op]]]

    def results(self, op: int) -> Sequence[int]:
        """Buffers of the results."""
        return self._operands[self._pointer[op] + self._inputs[self._signature[op]] : self._pointer[op + 1]]

    def is_view(self, op: int) -> bool:
        """Whether the operator only gives another shape to its input."""
        return self._views[self._signature[op]]

    def writes(self, op: int) -> set[int]:
        """Buffers that the operator changes or makes: not those it only views."""
        start = self._pointer[op]
        changed = {self._operands[start + i] for i in self._mutates[self._signature[op]]}
        return changed | {b for b in self.results(op) if self._born[b] == op}

    def feeding(self, start: int, stop: int, later: Iterable[int], persistent: bool) -> set[int]:
        """Operators of [start, stop) whose results the operators `later` use, directly or through others.

        persistent: whether a change to a buffer that is older than `start` counts as a result.
        """
        needed: set[int] = set()
        for op in later:
            needed.update(self.reads(op))
        feeding: set[int] = set()
        for op in range(stop - 1, start - 1, -1):
            if any(b in needed and (persistent or self._born[b] >= start) for b in self.writes(op)):
                feeding.add(op)
                needed.update(self.reads(op))
        return feeding
