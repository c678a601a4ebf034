"""Steps: where a training step ends, from what the script was seen to do. Knows nothing of PyTorch."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

_PATIENCE = 64
"""Optimizer steps after which an optimizer that was made but never used is no longer waited for."""


@dataclass(slots=True)
class Pass:
    """A forward of a module called from outside any module: operators [start, stop), stop -1 while it runs.

    gradients: they were on; training: and the module was in training mode.
    """

    start: int
    module: int
    gradients: bool
    training: bool
    stop: int = -1


def period(keys: Sequence[Hashable]) -> int:
    """Smallest p such that keys repeat every p entries; the last repetition may be incomplete.

    >>> period("DGDGD")
    2
    >>> period("DDDG")
    4
    """
    # Knuth, Morris, Pratt: the longest proper prefix that is also a suffix tells the smallest period.
    border = [0] * len(keys)
    for i in range(1, len(keys)):
        k = border[i - 1]
        while k and keys[i] != keys[k]:
            k = border[k - 1]
        border[i] = k + 1 if keys[i] == keys[k] else 0
    return len(keys) - border[-1] if keys else 1


@dataclass
class Steps:
    """Events that may end a step, as operator numbers.

    marks: by hand. updates: (operator, optimizer) at the end of each optimizer step. mutations: ends of runs of operators that changed
    parameters after a backward, outside any optimizer. passes: forwards from outside any module. models: modules
    of those passes. optimizers: keys of all optimizers
    the script has made; used: of those that have stepped, also inside another one.
    """

    marks: list[int] = field(default_factory=list)
    updates: list[tuple[int, Hashable]] = field(default_factory=list)
    mutations: list[int] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)
    models: set[int] = field(default_factory=set)
    optimizers: set[Hashable] = field(default_factory=set)
    used: set[Hashable] = field(default_factory=set)
    backward_seen: bool = False

    @property
    def training(self) -> bool:
        """Whether the script trains, as far as was seen: then a forward alone is not a step."""
        return bool(self.updates or self.mutations or self.optimizers or self.backward_seen)

    def ends(self, total: int) -> list[int]:
        """Operator numbers at which steps end (the next one starts there), in order; total: operators recorded."""
        if self.marks:
            last = (
                [total] if self.marks[0] == 0 else []
            )  # marked at the start of each step: the last one has no mark after it
            return [m for m in (*self.marks, *last) if m > 0]
        if self.updates:
            return self._by_optimizers()
        if self.mutations:
            return list(self.mutations)
        done = [p for p in self.passes if p.stop >= 0]
        if not done:
            return []
        if not self.backward_seen:
            return _every_period([(p.stop, p.module) for p in done])
        following = [*(p.start for p in done[1:]), total]
        return _every_period([(op, p.module) for op, p in zip(following, done, strict=True)])

    def count(self) -> int:
        """Complete steps that can be counted on while the script still runs."""
        if not (self.marks or self.updates or self.mutations) and self.training:
            return 0
        if self.updates and not self.marks and self.optimizers - self.used and len(self.updates) < _PATIENCE:
            return 0
        return len(self.ends(0))

    def _by_optimizers(self) -> list[int]:
        keys = [key for _, key in self.updates]
        if len(keys) > _PATIENCE and period(keys) * 2 > len(keys):
            rarest = min(dict.fromkeys(keys), key=keys.count)
            return [op for op, key in self.updates if key == rarest]
        return _every_period(self.updates)


def _every_period(events: Sequence[tuple[int, Hashable]]) -> list[int]:
    length = period([key for _, key in events])
    return [op for op, _ in events[length - 1 :: length]]
