"""Progress on a terminal: one line of stderr, overwritten in place; nothing where nobody watches."""

import sys
import time
from types import TracebackType

from neuronprof import units

_SOONEST = 2.0  # seconds before a time left is worth saying
_OFTEN = 0.2  # seconds between two shares


class Progress:
    """A line that says how far a piece of work is. quiet: say nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self._shown = not quiet and sys.stderr.isatty()
        self._begun = time.monotonic()
        self._said = 0.0

    def say(self, text: str) -> None:
        """Shows a text in place of the one before; '' clears the line."""
        if self._shown:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()

    def of(self, what: str, done: int, count: int) -> None:
        """Shows 'what 3 of 12, 40 s left': done pieces of count."""
        self.say(f"{what} {done} of {count}{self._left(done, count)}")

    def share(self, what: str, done: int, count: int) -> None:
        """Shows 'what 25 %, 40 s left', a few times a second however often it is called."""
        if self._shown and time.monotonic() - self._said > _OFTEN:
            self._said = time.monotonic()
            self.say(f"{what} {done / max(1, count):.0%}{self._left(done, count)}")

    def _left(self, done: int, count: int) -> str:
        passed = time.monotonic() - self._begun
        return f", {units.time(passed / done * (count - done) * 1e9)} left" if done and passed > _SOONEST else ""

    def restart(self) -> None:
        """What follows is timed on its own."""
        self._begun = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.say("")
