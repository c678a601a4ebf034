"""FlexAttention: attention with the script's own change of scores and block mask, as one operator forward and one backward.

PyTorch has a kernel for it only where its compiler writes one; elsewhere it makes all scores, and refuses gradients. The checks of
the arguments stay PyTorch's own; only what it calls to compute is replaced, by the same formulas over some rows of queries at a time.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.attention import flex_attention as flex
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from neuronprof.capture import engine as engines
from neuronprof.capture.patching import Patches
from neuronprof.capture.signatures import tensors_in
from neuronprof.capture.simtensor import is_simulated

_MOST_SCORES = 1 << 24
"""Scores that are in memory at a time."""
_SAMPLED = "density of a block mask too large to compute (seen at the first and last query of each block)"
_ASSUMED = "density of a block mask that was not computed (1.0)"


def install(patches: Patches) -> None:
    """Lets scripts call flex_attention with gradients, until patches is undone."""
    patches.set(flex, "flex_attention_hop", _attention)
    patches.set(flex, "_validate_device", lambda *_tensors: None)
    patches.set(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)  # else the compiler traces the call
    patches.wrap(flex, "_apply_kernel_options", _options)


def _options(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The kernel's options; the maximal scores are refused on the CPU, so they are asked for here."""
    *checked, auxiliary = args
    options = original(*checked, **kwargs)
    options["OUTPUT_MAX"] = auxiliary is not None and auxiliary.max_scores
    return options


@dataclass(frozen=True, eq=False)
class _Scores:
    """What becomes of a score: score_mod, block mask and scale. Called, and named, as score_mod."""

    score_mod: Callable[..., Tensor]
    mask_mod: Callable[..., Tensor]
    scale: float

    @property
    def __name__(self) -> str:
        return getattr(self.score_mod, "__name__", type(self.score_mod).__name__)

    def __call__(self, query: Tensor, key: Tensor, rows: slice) -> Tensor:
        """Scores (batch, heads, rows, keys) of some rows of queries, in at least float32; -inf where the mask is not set."""
        precision = torch.float64 if query.dtype == torch.float64 else torch.float32
        scores = query[:, :, rows].to(precision) @ key.to(precision).transpose(-2, -1) * self.scale
        batch, heads, _, keys = scores.shape
        places = (*map(torch.arange, (batch, heads)), torch.arange(query.shape[2])[rows], torch.arange(keys))
        with _indexing():
            kept = flex._vmap_for_bhqkv(self.mask_mod, prefix=())(*places)
            scores = flex._vmap_for_bhqkv(self.score_mod, prefix=(0,))(scores, *places).to(precision)
        return torch.where(kept, scores, -math.inf)


def _indexing() -> TorchFunctionMode:
    """Indexing of the script's tensors by places that are tensors themselves."""
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    return TransformGetItemToIndex()


class _Operator:
    """An operator of ours: its result with values, or on tensors without memory its shapes."""

    namespace = "higher_order"

    def __init__(self, name: str, compute: Callable[..., Any], shapes: Callable[..., Any]) -> None:
        self._name = name
        self._compute, self._shapes = compute, shapes

    def __str__(self) -> str:
        return self._name

    def __call__(self, *args: Any) -> Any:
        """The result, or its shapes where an operand has no memory; args hold all tensors that it depends on."""
        fake = any(isinstance(t, FakeTensor) for t in tensors_in(args))
        return (self._shapes if fake else self._compute)(*args)

    def run(self, *args: Any) -> Any:
        """Hands the operator to the engine, if one records."""
        engine = engines.current()
        with _disable_current_modes():
            return self._compute(*args) if engine is None else engine.fused(self, args)


# ---- forward


def _attention(
    query: Tensor, key: Tensor, value: Tensor, score_mod: Any, block_mask: Any, scale: float, options: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Output, logarithm (base 2) of the sum of exponentials, and the maximal score (base 2) if asked for."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = (t if t.dtype == torch.float64 else t.to(dtype) for t in (query, key, value))
    scores = _Scores(score_mod, block_mask[-1], scale)
    captured = _captured(scores)
    described = (*_density(block_mask, key.shape[2]), score_mod is not flex._identity, scores)
    made: tuple[Tensor, ...] = _Attention.apply(query, key, value, options["OUTPUT_MAX"], described, *captured)
    return made[0], made[1], made[2] if len(made) > 2 else None


class _Attention(torch.autograd.Function):
    """One operator forward and one backward."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        """args: query, key, value, whether the maximal scores are wanted, the description of the scores, and the tensors they use.

        The description: share of the blocks that are computed, share of them that is masked inside, whether there is a score_mod, and
        the scores themselves.
        """
        query, key, value, most, described, *captured = args
        made: tuple[Tensor, ...] = _FORWARD.run(query, key, value, tuple(captured), most, *described)
        ctx.described = described
        ctx.mark_non_differentiable(*made[2:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(query, key, value, *made[:2], *captured)
        return made

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        """Gradients of query, key, value and of the tensors that the scores use."""
        query, key, value, out, lse, *captured = ctx.saved_tensors
        grad, grad_lse = grads[:2]
        if grad is None:
            grad = torch.zeros_like(out)
        wanted = tuple(ctx.needs_input_grad[5:])
        made = _BACKWARD.run(grad, query, key, value, out, lse, tuple(captured), grad_lse, wanted, *ctx.described)
        others = iter(made[3:])
        return (*made[:3], None, None, *(next(others) if wants else None for wants in wanted))


def _forward(
    query: Tensor, key: Tensor, value: Tensor, _captured: Any, most: bool, *described: Any
) -> tuple[Tensor, ...]:
    made = _forward_shapes(query, key, value, _captured, most)
    for rows in _rows(query, key):
        for whole, part in zip(made, _part(query, key, value, described[-1], rows), strict=False):
            whole[:, :, rows] = part
    return made


def _forward_shapes(
    query: Tensor, _key: Tensor, value: Tensor, _captured: Any, most: bool, *_described: Any
) -> tuple[Tensor, ...]:
    precision = torch.float64 if query.dtype == torch.float64 else torch.float32
    sums = [torch.empty(query.shape[:3], dtype=precision, device="cpu") for _ in range(2 if most else 1)]
    return (_laid_out_like(query, value.shape[-1]), *sums)


def _part(query: Tensor, key: Tensor, value: Tensor, scores: _Scores, rows: slice) -> tuple[Tensor, ...]:
    """Output, logarithm of the sum of exponentials, and maximum, for some rows of queries."""
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, 1).expand(query.shape[0], -1, -1, -1) for t in (key, value))
    made = scores(query, key, rows)
    out = torch._safe_softmax(made, -1).to(query.dtype) @ value.to(query.dtype)
    return out, made.logsumexp(-1) / math.log(2), made.amax(-1) / math.log(2)


def _rows(query: Tensor, key: Tensor) -> Iterator[slice]:
    """Slices of the queries whose scores fit into memory together."""
    batch, heads, length, _ = query.shape
    rows = max(1, _MOST_SCORES // max(1, batch * heads * key.shape[2]))
    return (slice(start, min(start + rows, length)) for start in range(0, length, rows))


def _laid_out_like(tensor: Tensor, width: int) -> Tensor:
    """An empty tensor with the order of dimensions of another one, its rows contiguous."""
    shape = (*tensor.shape[:-1], width)
    strides, step = [0, 0, 0, 1], width
    for d in sorted((2, 1, 0), key=lambda d: tensor.stride(d)):
        strides[d], step = step, step * shape[d]
    return torch.empty_strided(shape, strides, dtype=tensor.dtype, device="cpu")


# ---- backward


def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, _out: Tensor, _lse: Tensor, captured: Any,
    grad_lse: Tensor | None, wanted: tuple[bool, ...], *described: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Makes the scores again and lets autograd go through them."""
    made = _backward_shapes(grad, query, key, value, _out, _lse, captured, grad_lse, wanted)
    for whole in made:
        whole.zero_()
    inner = [t.detach().requires_grad_() for t in (query, key, value)]
    leaves = (*inner, *(t for t, wants in zip(captured, wanted, strict=True) if wants))
    for rows in _rows(query, key):
        with torch.enable_grad():
            parts = _part(inner[0], inner[1], inner[2], described[-1], rows)
        pairs = [(part, g[:, :, rows]) for part, g in zip(parts, (grad, grad_lse), strict=False) if g is not None]
        outputs, given = zip(*pairs, strict=True)
        for whole, gradient in zip(made, torch.autograd.grad(outputs, leaves, given, allow_unused=True), strict=True):
            if gradient is not None:
                whole += gradient
    return made


def _backward_shapes(
    _grad: Tensor, query: Tensor, key: Tensor, value: Tensor, _out: Tensor, _lse: Tensor, captured: Any,
    _grad_lse: Tensor | None, wanted: tuple[bool, ...], *_described: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    others = (t for t, wants in zip(captured, wanted, strict=True) if wants)
    return (
        *(_laid_out_like(t, t.shape[-1]) for t in (query, key, value)),
        *(torch.empty(t.shape, dtype=t.dtype, device="cpu") for t in others),
    )


_FORWARD = _Operator("higher_order.flex_attention", _forward, _forward_shapes)
_BACKWARD = _Operator("higher_order.flex_attention_backward", _backward, _backward_shapes)


# ---- what is known of the scores


def _density(block_mask: Any, keys: int) -> tuple[float, float]:
    """Share of the blocks that are computed, and share of the blocks in which mask_mod is asked."""
    partial, full, width, mask_mod = block_mask[2], block_mask[4], block_mask[-2], block_mask[-1]
    if is_simulated(partial) or is_simulated(full):
        return _sampled_density(block_mask, keys)
    blocks = partial.numel() * math.ceil(keys / width)
    with _disable_current_modes():
        asked = int(partial.sum())
        kept = asked + (0 if full is None else int(full.sum()))
    return kept / blocks, 0.0 if mask_mod is flex.noop_mask else asked / blocks


def _sampled_density(block_mask: Any, keys: int) -> tuple[float, float]:
    """As _density, for a mask without values: mask_mod is asked for the first and the last query of evenly spaced blocks."""
    *_, height, width, mask_mod = block_mask
    batch, heads, blocks = block_mask[2].shape
    step = math.ceil(blocks * batch * heads * 2 * keys / _MOST_SCORES)
    places = (*map(torch.arange, (batch, heads)), _first_and_last(blocks, step, height), torch.arange(keys))
    with _off_the_record():
        set_ = flex._vmap_for_bhqkv(mask_mod, prefix=())(*places)
        if is_simulated(set_):
            _note(_ASSUMED)
            return 1.0, 1.0
        _note(_SAMPLED)
        whole = torch.nn.functional.pad(set_, (0, -keys % width), value=True).unflatten(-1, (-1, width)).all(-1)
        some = torch.nn.functional.pad(set_, (0, -keys % width), value=False).unflatten(-1, (-1, width)).any(-1)
        kept = some.unflatten(2, (-1, 2)).any(3)
        cut = kept & ~whole.unflatten(2, (-1, 2)).all(3)
        return float(kept.float().mean()), float(cut.float().mean())


def _first_and_last(blocks: int, step: int, height: int) -> Tensor:
    return (torch.arange(0, blocks, step)[:, None] * height + torch.tensor([0, height - 1])).flatten()


def _note(key: str) -> None:
    engine = engines.current()
    if engine is not None:
        engine.note(key)


@contextmanager
def _off_the_record() -> Iterator[None]:
    """What the script's functions do inside is not recorded."""
    engine = engines.current()
    with _disable_current_modes(), nullcontext() if engine is None else engine.on_host(), torch.no_grad(), _indexing():
        yield


class _Uses(TorchFunctionMode):
    """Collects the tensors that were made elsewhere and whose values are used."""

    def __init__(self, given: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.found: list[Tensor] = []
        self._known: list[Tensor] = list(given)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls a function of PyTorch; asking a tensor for its shape does not use it."""
        made = func(*args, **(kwargs or {}))
        results = tensors_in(made)
        for tensor in tensors_in([*args, *(kwargs or {}).values()]) if results else ():
            if all(tensor is not known for known in self._known):
                self._known.append(tensor)
                self.found.append(tensor)
        self._known.extend(results)
        return made


def _captured(scores: _Scores) -> list[Tensor]:
    """Tensors of the script that score_mod and mask_mod use: seen by calling both for one score."""
    with _off_the_record():
        score, *place = torch.zeros(()), *(torch.zeros((), dtype=torch.int32) for _ in range(4))
        with _Uses((score, *place)) as uses:
            scores.score_mod(score, *place)
            scores.mask_mod(*place)
    return uses.found
