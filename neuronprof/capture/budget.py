"""Budget: how much a script may compute before recording goes on without values."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch

from neuronprof import units
from neuronprof.graph.ir import Signature
from neuronprof.graph.ops import work

MOST_BYTES = 2 << 30
MOST_FLOPS = 1e12
_NOTABLE = 1 << 16


class Budget:
    """Live bytes of tensors and FLOPs since the last step boundary, against what a laptop does in a moment."""

    def __init__(self, notice: Callable[[str], None]) -> None:
        self.flops = 0
        self._notice = notice
        self._why = ""
        self._boundary = 0
        self._costs: dict[int, int] = {}

    def spend(self, live_bytes: int, index: int, signature: Signature, boundary: int) -> bool:
        """Adds an executed operator (index: of its signature); whether the budget is passed."""
        if boundary != self._boundary:
            self._boundary, self.flops = boundary, 0
        cost = self._costs.get(index)
        if cost is None:
            cost = self._costs[index] = work(signature).flops
        self.flops += cost
        return self._passed(live_bytes, self.flops)

    def allows(self, live_bytes: int, signature: Signature | None = None) -> bool:
        """Whether so many live bytes, and an operator with this signature, are within the budget."""
        return not self._passed(live_bytes, self.flops + (work(signature).flops if signature else 0))

    def allows_factory(self, args: Any, live_bytes: int) -> bool:
        """Whether a tensor factory with this shape as its first argument is within the budget."""
        if not args or not isinstance(args[0], (list, tuple)) or not all(isinstance(n, int) for n in args[0]):
            return True
        return self.allows(live_bytes + 4 * prod(args[0]))

    def is_notable(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is large enough to be counted before recording starts."""
        return tensor.nbytes >= _NOTABLE

    def tell(self) -> None:
        """Says once that values are no longer computed, and why."""
        self._notice(
            f"{self._why}: from here on no values are computed (--values real computes them, --values none never does)."
        )

    def _passed(self, live_bytes: int, flops: float) -> bool:
        if live_bytes > MOST_BYTES:
            self._why = f"The script's tensors need {units.size(live_bytes)}"
        elif flops > MOST_FLOPS:
            self._why = f"A step of the script needs more than {units.count(MOST_FLOPS, 'FLOP')}"
        return bool(self._why)
