"""ZeRO 1 of torch_xla and neuronx_distributed: each replica updates a part of every parameter, in FP32, and gathers the others'."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as exchange
from torch.nn import functional
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from neuronprof.capture.shims import parallel_state, xla_collectives

_BUCKET_MB = 130  # ALL_GATHER_REDUCE_SCATTER_BUCKET_CAP_MB of neuronx_distributed
_Pair = tuple[torch.nn.Parameter, torch.nn.Parameter]


class ZeroRedundancyOptimizer(torch.optim.Optimizer):
    """Shares an optimizer out among the replicas.

    grad_norm: of all gradients over all ranks that have a part of the model, before they were clipped; None before the first step.
    """

    grad_norm: torch.Tensor | None = None

    def __init__(
        self,
        params: Iterable[Any],
        optimizer_class: Callable[..., torch.optim.Optimizer],
        optimizer_dtype: torch.dtype = torch.float32,
        grad_clipping: bool = True,
        max_norm: float | None = None,
        sharding_groups: Any = None,
        bucket_cap_mb_reduce_scatter: int = _BUCKET_MB,
        higher_cc_precision: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(params, {})
        self._clipped = (1.0 if max_norm is None else max_norm) if grad_clipping else None
        self._bucket, self._precise = bucket_cap_mb_reduce_scatter << 20 or 1, higher_cc_precision
        self._ranks = xla_collectives.group(sharding_groups) if xla_collectives.world_size() > 1 else None
        self._many = self._ranks.size() if self._ranks is not None else 1
        self._mine = dist.get_rank(self._ranks) if self._ranks is not None else 0
        dtype = torch.float32 if optimizer_dtype is torch.double else optimizer_dtype
        self._parts = {p: torch.nn.Parameter(self._part(p, dtype)) for p in self._all()}
        groups = [{**entry, "params": [self._parts[p] for p in entry["params"]]} for entry in self.param_groups]
        self.base_optimizer = optimizer_class(groups, **{k: v for k, v in options.items() if k not in _OF_THE_MACHINE})
        for entry, shared in zip(self.param_groups, self.base_optimizer.param_groups, strict=True):
            entry.update({k: v for k, v in shared.items() if k != "params"})  # what schedulers read and write

    def _all(self) -> Iterator[torch.nn.Parameter]:
        return (p for entry in self.param_groups for p in entry["params"])

    def _flat(self, value: torch.Tensor) -> torch.Tensor:
        """As one row, with zeros behind it, so that every replica has as much."""
        return functional.pad(value.reshape(-1), (0, -value.numel() % self._many))

    def _part(self, parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self._flat(parameter.detach()).chunk(self._many)[self._mine].to(dtype, copy=True)

    @torch.no_grad()
    def step(self, closure: Any = None, **_options: Any) -> Any:
        """Reduces the gradients, clips and steps on this replica's parts, and gathers the weights."""
        loss = closure() if closure is not None else None
        pairs = [(p, self._parts[p]) for p in self._all() if p.grad is not None]
        for bucket in self._buckets(pairs):
            self._scatter(bucket)
        if self._clipped is not None:
            self._clip([part for _, part in pairs], self._clipped)
        for entry, shared in zip(self.param_groups, self.base_optimizer.param_groups, strict=True):
            shared.update({k: v for k, v in entry.items() if k != "params"})
        self.base_optimizer.step()
        for bucket in self._buckets(pairs):
            self._gather(bucket)
        return loss

    def _buckets(self, pairs: list[_Pair]) -> Iterator[list[_Pair]]:
        """Parameters of one type whose collectives run as one."""
        bucket: list[_Pair] = []
        for pair in pairs:
            if bucket and (
                pair[0].dtype != bucket[0][0].dtype or sum(p.nbytes for p, _ in bucket) + pair[0].nbytes > self._bucket
            ):
                yield bucket
                bucket = []
            bucket.append(pair)
        if bucket:
            yield bucket

    def _scatter(self, bucket: list[_Pair]) -> None:
        gradients = [self._flat(p.grad) for p, _ in bucket if p.grad is not None]
        if self._precise:
            gradients = [g.float() for g in gradients]
        if self._ranks is not None and self._many > 1:
            torch._foreach_div_(gradients, self._many)
            scattered = exchange.reduce_scatter_single_coalesced(gradients, "sum", [0] * len(gradients), self._ranks)
            gradients = [exchange.wait_tensor(g) for g in scattered]
        for (_, part), gradient in zip(bucket, gradients, strict=True):
            part.grad = gradient.to(part.dtype)

    def _clip(self, parts: list[torch.nn.Parameter], most: float) -> None:
        squares = get_total_norm([p.grad for p in parts if p.grad is not None]).square()
        groups = [self._ranks] if self._many > 1 else []
        groups += [parallel_state.group(axis) for axis in ("tp", "pp") if parallel_state.size(axis) > 1]
        for ranks in groups:
            dist.all_reduce(squares, group=ranks)
        self.grad_norm = squares.sqrt()
        clip_grads_with_norm_(parts, most, self.grad_norm)

    def _gather(self, bucket: list[_Pair]) -> None:
        values = [part.detach().to(p.dtype) for p, part in bucket]
        if self._ranks is not None and self._many > 1:
            gathered = exchange.all_gather_single_coalesced(values, self._ranks)
            values = [exchange.wait_tensor(v) for v in gathered]
        for (p, _), value in zip(bucket, values, strict=True):
            p.copy_(value[: p.numel()].view_as(p))

    def state_dict(self) -> dict[str, Any]:
        """That of the optimizer of this replica's parts."""
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Into the optimizer of this replica's parts."""
        self.base_optimizer.load_state_dict(state_dict)

    def init_zero(self) -> None:
        """Takes the parts anew from parameters that were loaded."""
        for parameter, part in self._parts.items():
            part.data.copy_(self._part(parameter, part.dtype))


# What these optimizers take beside the arguments of the one that they share out; it does not show in the order of the work.
_OF_THE_MACHINE = frozenset(
    (
        *(
            "pin_layout",
            "grad_norm_groups",
            "lazy_init",
            "coalesce_cc",
            "bucket_cap_mb_all_gather",
            "use_grad_acc_hook",
        ),
        *("save_master_weights", "use_world_for_grad_norm", "decoupled_weight_decay"),
    )
)


class NeuronZero1Optimizer(ZeroRedundancyOptimizer):
    """The same among the data-parallel replicas."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options["sharding_groups"] = options.get("sharding_groups") or parallel_state.replica_groups("dp")
        super().__init__(*args, **options)
