"""Budget: how much a script may compute before recording goes on without values."""

from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import torch

from neuronprof import units
from neuronprof.graph.ir import Signature
from neuronprof.graph.ops import work

MOST_BYTES = 2 << 30
MOST_FLOPS = 1e12
# What a FLOP of a 16-bit product counts on a CPU without instructions for it: measured on one with AVX2 alone, 512 cubed takes 13 times
# as long as in FP32.
EMULATED = 13
_NOTABLE = 1 << 16
_HALVES = {"bfloat16": "_is_mkldnn_bf16_supported", "float16": "_is_mkldnn_fp16_supported"}


@cache
def _emulated() -> frozenset[str]:
    """The 16-bit types for whose products this CPU has no instructions."""
    return frozenset(dtype for dtype, has in _HALVES.items() if not getattr(torch.ops.mkldnn, has)())


class Budget:
    """Live bytes of tensors and FLOPs since the last step boundary, against what a laptop does in a moment."""

    def __init__(self, notice: Callable[[str], None]) -> None:
        self.flops = 0
        self._notice = notice
        self._why = ""
        self._boundary = 0
        self._costs: dict[int, int] = {}
        self._slow = False  # something was counted EMULATED times

    def spend(self, live_bytes: int, index: int, signature: Signature, boundary: int) -> bool:
        """Adds an executed operator (index: of its signature); whether the budget is passed."""
        if boundary != self._boundary:
            self._boundary, self.flops = boundary, 0
        cost = self._costs.get(index)
        if cost is None:
            cost = self._costs[index] = self._cost(signature)
        self.flops += cost
        return self._passed(live_bytes, self.flops)

    def allows(self, live_bytes: int, signature: Signature | None = None) -> bool:
        """Whether so many live bytes, and an operator with this signature, are within the budget."""
        return not self._passed(live_bytes, self.flops + (self._cost(signature) if signature else 0))

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

    def _cost(self, signature: Signature) -> int:
        """FLOPs of an operator, or as many as take as long."""
        cost = work(signature)
        slow = cost.gemms and any(tensor.dtype in _emulated() for tensor in signature.inputs)
        self._slow = self._slow or bool(slow)
        return cost.flops * (EMULATED if slow else 1)

    def _passed(self, live_bytes: int, flops: float) -> bool:
        if live_bytes > MOST_BYTES:
            self._why = f"The script's tensors need {units.size(live_bytes)}"
        elif flops > MOST_FLOPS:
            slowly = f" ({EMULATED} for one in 16 bits, which this CPU only emulates)" if self._slow else ""
            self._why = f"A step of the script needs more than {units.count(MOST_FLOPS, 'FLOP')}{slowly}"
        return bool(self._why)
