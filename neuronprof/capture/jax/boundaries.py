"""Where the steps of a JAX script begin and end."""

from collections.abc import Callable, Hashable

from neuronprof.capture.ending import StopRecording
from neuronprof.capture.options import CaptureOptions
from neuronprof.capture.steps import Steps, period


class Boundaries:
    """Boundaries of steps as numbers of calls: marks of the script itself, or else calls of functions that differentiate."""

    def __init__(self, options: CaptureOptions) -> None:
        self._enough = options.warmup + options.steps_to_record if options.stops else None
        self._differentiating: list[tuple[int, Hashable]] = []
        self._marks: list[int] = []

    def differentiates(self, at: int, function: Hashable) -> None:
        """A function with a backward pass is about to be call number `at`.

        Raises:
            StopRecording: the last step to record is over, which ends the script.
        """
        if not self._marks:
            self._differentiating.append((at, function))
            self._stop((len(self._differentiating) - 1) // self._period)

    def mark(self, at: int) -> None:
        """The script ends a step by hand before call number `at`; from now on only such marks are boundaries.

        Raises:
            StopRecording: the last step to record is over, which ends the script.
        """
        self._marks.append(at)
        self._stop(sum(mark > 0 for mark in self._marks))

    def steps(self, total: int, inferences: Callable[[], list[int]]) -> list[tuple[int, int]]:
        """The steps as ranges of calls. inferences: finds where steps begin of a script that never differentiates."""
        if self._marks:
            ends = Steps(marks=self._marks).ends(total)
            starts = [0, *ends[:-1]]
        else:
            starts = [call for call, _ in self._differentiating[:: self._period]] or inferences()
            ends = [*starts[1:], total] if starts else []
        return [(a, b) for a, b in zip(starts, ends, strict=True) if b > a]

    @property
    def _period(self) -> int:
        return period([function for _, function in self._differentiating])

    def _stop(self, complete: int) -> None:
        if self._enough is not None and complete >= self._enough:
            raise StopRecording
