"""Rules about memory: bytes that need not move, and work that is done again though there is room to keep its result."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from neuronprof import units
from neuronprof.analyze.advice.case import Case, Shape
from neuronprof.analyze.advice.rule import Confidence, Finding, Rule, scaled
from neuronprof.analyze.changes import Draft, Mask
from neuronprof.terms import COMPUTE_ENGINES, Engine, Phase

_EXPONENTIALS = ("_softmax", "_safe_softmax", "exp")
_SOFTMAX = ("_softmax", "_safe_softmax", "_softmax_backward_data")
_PARTS_OF_SOFTMAX = ("exp", "amax", "sub", "sum", "div", "neg")  # where a compiler has taken it and its backward apart
_BATCHED = ("bmm", "baddbmm")  # a product for each head; one over all positions makes no scores
_COPIES = ("clone", "contiguous", "_lazy_clone")
Alike = tuple[int, frozenset[int]]
_MOVING = (*COMPUTE_ENGINES, Engine.DMA)
_WIDEST = 4  # bytes an element of an activation
# Backward of fused attention computes the scores again beside its four products (Dao et al. 2022, FlashAttention).
_PRODUCTS = 5 / 4


def _operators(case: Case, names: tuple[str, ...]) -> Mask:
    """Rows of operators of these names, whatever their namespace."""
    return case.among("op_name", [word for word in case.events.words["op_name"] if word.rpartition(".")[2] in names])


@dataclass(frozen=True)
class UnfusedAttention(Rule):
    """Attention as single operators writes its scores, one for each pair of positions, and works on them one operator at a time."""

    name: ClassVar[str] = "unfused-attention"
    confidence: ClassVar[Confidence] = Confidence.MEDIUM

    def look(self, case: Case) -> Finding | None:
        """Operators that read or write what has the shape of a softmax's result and is the operand of a product.

        A fused kernel keeps scores in SBUF: what moves them falls away, and so do operators on them beside products and softmax itself
        (scale, mask and dropout happen on the way) and copies that lay out the other operands. Its backward computes the scores again.
        Its engines work side by side on one tile after another, so that none waits for an operator to end.
        """
        product = case.on(Engine.TENSOR)
        exponentials = _softmax(case) & _operators(case, _EXPONENTIALS)
        scores = _alikes(case, exponentials) & _alikes(case, product & _operators(case, _BATCHED))
        share = np.array([_share(shapes, scores) for shapes in case.shapes])[case.events["op"]]
        rows = (share > 0) & case.on(*_MOVING)
        if not scores or not rows.any():
            return None
        moved, again = rows & case.on(Engine.DMA), rows & product & case.among("phase", [Phase.BACKWARD])
        beside = self._beside(case, rows, scores)

        def fuse(draft: Draft) -> None:
            draft.scale(moved, 1 - share[moved])
            draft.scale(beside, 0.0)
            draft.scale(again, _PRODUCTS)
            draft.without_edges_between(rows, "phase")

        size = units.size(case.by_rank(moved, case.events["bytes"] * share).mean())
        wrong = f"Attention's scores move {size} through HBM a step, and operators on them keep engines busy for {units.time(case.mean(rows))}: {case.where(rows)}."  # noqa: E501
        return Finding(wrong, case.say("attention"), rows, (fuse,))

    @staticmethod
    def _beside(case: Case, rows: Mask, scores: set[Alike]) -> Mask:
        """What works on scores, or lays out the operands of products with them, and has no part in a fused kernel."""
        products = np.unique(case.events["op"][rows & case.on(Engine.TENSOR)])
        operands = {_alike(shape) for op in products for shape in case.shapes[op]} - scores
        made = [_alike(shapes[-1]) if shapes else None for shapes in case.shapes]
        scored, laid_out = (
            np.array([alike in wanted for alike in made])[case.events["op"]] for wanted in (scores, operands)
        )
        computed: Mask = rows & scored & case.on(Engine.VECTOR, Engine.SCALAR, Engine.GPSIMD) & ~_softmax(case)
        return computed | (laid_out & _operators(case, _COPIES) & case.on(*_MOVING))


def _softmax(case: Case) -> Mask:
    """Rows of softmax and its backward, as single operators or in parts."""
    whole = _operators(case, _SOFTMAX)
    return whole if whole.any() else _operators(case, _PARTS_OF_SOFTMAX)


def _alikes(case: Case, rows: Mask) -> set[Alike]:
    """The shapes of several dimensions that the rows' operators have to do with, as _alike."""
    operators = np.unique(case.events["op"][rows])
    return {_alike(shape) for op in operators[operators >= 0] for shape in case.shapes[op] if _may_be_scores(shape)}


def _may_be_scores(shape: Shape) -> bool:
    return len(shape) > 2


def _alike(shape: Shape) -> Alike:
    """What scores have in common however their heads are laid out and whether they are transposed."""
    return prod(shape), frozenset(shape[-2:])


def _share(shapes: list[Shape], scores: set[Alike]) -> float:
    """How much of an operator's tensors are scores."""
    mine = sum(prod(shape) for shape in shapes if _may_be_scores(shape) and _alike(shape) in scores)
    return mine / max(1, sum(prod(shape) for shape in shapes))


@dataclass(frozen=True)
class LayoutCopies(Rule):
    """Tensors are copied only to have their elements in another order."""

    name: ClassVar[str] = "layout-copies"
    confidence: ClassVar[Confidence] = Confidence.MEDIUM

    def look(self, case: Case) -> Finding | None:
        """Copies within the device that change no type."""
        rows = _operators(case, _COPIES) & case.on(*_MOVING)
        if not rows.any():
            return None
        size = units.size(case.by_rank(rows, case.events["bytes"]).mean())
        wrong = f"Copies that only reorder elements move {size} a step and take {units.time(case.mean(rows))}: {case.where(rows)}."
        return Finding(wrong, case.say("layout"), rows, (scaled(rows, 0.0),))


@dataclass(frozen=True)
class RecomputeWithRoom(Rule):
    """Backward computes activations again although HBM has room to keep them."""

    name: ClassVar[str] = "recompute-with-room"
    confidence: ClassVar[Confidence] = Confidence.HIGH

    def look(self, case: Case) -> Finding | None:
        """What is computed again, where its results, all of them at most, fit beside what HBM holds at its fullest."""
        rows = case.among("phase", [Phase.RECOMPUTE]) & case.on(*_MOVING)
        fit = case.context.metadata.get("memory_fit") or {}
        free = int(fit.get("capacity") or 0) - int(fit.get("peak") or 0)
        kept = self._results(case, rows)
        if not rows.any() or kept > free:
            return None
        wrong = (
            f"Backward computes activations again for {units.time(case.mean(rows))} a step, {case.where(rows)}; to keep them takes "
            f"{units.size(kept)} at most, and {units.size(free)} of HBM are free."
        )
        return Finding(wrong, case.say("recompute"), rows, (scaled(rows, 0.0),))

    @staticmethod
    def _results(case: Case, rows: Mask) -> int:
        """Bytes of the results of the rows' operators at most, of the rank with most, of the micro-batches under way at once."""
        size = np.array([_WIDEST * prod(shapes[-1]) if shapes else 0 for shapes in case.shapes])
        place, op = np.unique(np.stack([case.place[rows], case.events["op"][rows]]), axis=1)
        under_way = case.stages if case.layout.get("schedule") != "gpipe" else int(case.layout.get("microbatches") or 1)
        return under_way * int(np.bincount(place, size[op]).max(initial=0))
