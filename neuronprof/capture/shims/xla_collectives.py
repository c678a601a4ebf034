"""The collectives of torch_xla.core.xla_model, by torch.distributed."""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as functional

_Groups = Sequence[Sequence[int]] | None
_made: dict[tuple[int, ...], Any] = {}


def world_size() -> int:
    """Ranks of the job."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def ordinal() -> int:
    """The rank of this process."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def group(groups: _Groups = None) -> Any:
    """The process group of this rank among replica groups; all ranks where none are given."""
    if not dist.is_initialized():
        dist.init_process_group("xla")
        _made.clear()
    if not groups:
        return dist.group.WORLD
    mine = tuple(next(members for members in groups if ordinal() in members))
    if mine not in _made:
        _made[mine] = dist.new_group(list(mine), use_local_synchronization=True)
    return _made[mine]


def optimizer_step(
    optimizer: torch.optim.Optimizer,
    barrier: bool = False,
    optimizer_args: dict[str, Any] | None = None,
    groups: _Groups = None,
    pin_layout: bool = True,
) -> Any:
    """Averages gradients over the ranks and steps."""
    reduce_gradients(optimizer, groups)
    return optimizer.step(**(optimizer_args or {}))


def reduce_gradients(optimizer: torch.optim.Optimizer, groups: _Groups = None, pin_layout: bool = True) -> None:
    """Averages an optimizer's gradients over the ranks."""
    parameters = [p for entry in optimizer.param_groups for p in entry["params"] if p.grad is not None]
    if world_size() > 1:
        all_reduce("sum", [p.grad for p in parameters], 1 / group(groups).size(), groups)


def all_reduce(kind: str, inputs: Any, scale: float = 1.0, groups: _Groups = None, pin_layout: bool = True) -> Any:
    """A reduction over the ranks: in place on a list, in one collective; a new tensor otherwise."""
    listed = [inputs.clone()] if isinstance(inputs, torch.Tensor) else list(inputs)
    if world_size() > 1:
        operation = dist.ReduceOp.PRODUCT if kind == "mul" else getattr(dist.ReduceOp, kind.upper())
        by_type: dict[torch.dtype, list[torch.Tensor]] = {}
        for tensor in listed:
            by_type.setdefault(tensor.dtype, []).append(tensor)
        for alike in by_type.values():
            reduce_together(alike, operation, group(groups))
    for tensor in listed if scale != 1.0 else ():
        tensor.mul_(scale)
    return listed[0] if isinstance(inputs, torch.Tensor) else None


def reduce_together(tensors: list[torch.Tensor], operation: Any, ranks: Any) -> None:
    """Reduces tensors of one dtype in place, in one collective."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its successor reduces one tensor at a time
        dist.all_reduce_coalesced(tensors, operation, ranks)


def all_gather(value: torch.Tensor, dim: int = 0, groups: _Groups = None, *_args: Any, **_options: Any) -> torch.Tensor:
    """The values of all ranks, one after another along a dimension."""
    if world_size() == 1:
        return value
    gathered: torch.Tensor = functional.all_gather_single(value, dim % value.dim(), group(groups))
    return gathered


def reduce_scatter(
    _kind: str,
    value: torch.Tensor,
    scale: float,
    scatter_dim: int,
    shard_count: int,
    groups: _Groups = None,
    **_options: Any,
) -> torch.Tensor:
    """This rank's part, along a dimension, of the sum over the ranks."""
    if world_size() == 1:
        return value * scale
    scattered: torch.Tensor = (
        functional.reduce_scatter_single(value, "sum", scatter_dim % value.dim(), group(groups)) * scale
    )
    return scattered


def all_to_all(
    value: torch.Tensor,
    split_dimension: int,
    concat_dimension: int,
    split_count: int,
    groups: _Groups = None,
    **_options: Any,
) -> torch.Tensor:
    """Parts along one dimension go to the ranks; what comes from them is put together along another one."""
    if world_size() == 1:
        return value
    sent = [part.contiguous() for part in value.chunk(split_count, split_dimension)]
    received = [torch.empty_like(part) for part in sent]
    dist.all_to_all(received, sent, group(groups))
    return torch.cat(received, concat_dimension)


def collective_permute(value: torch.Tensor, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
    """What the rank before this one in (source, target) pairs has; zeros where there is none."""
    received, messages = torch.zeros_like(value), []
    for source, target in pairs if world_size() > 1 else ():
        if source == ordinal():
            messages.append(dist.P2POp(dist.isend, value, target, group()))
        if target == ordinal():
            messages.append(dist.P2POp(dist.irecv, received, source, group()))
    for work in dist.batch_isend_irecv(messages) if messages else ():
        work.wait()
    return received if messages else value


def mesh_reduce(_tag: str, data: Any, reduce_fn: Callable[[list[Any]], Any]) -> Any:
    """reduce_fn over the data of all ranks, which are alike."""
    return reduce_fn([data] * world_size())


def rendezvous(_tag: str, payload: bytes = b"", replicas: Sequence[int] = ()) -> list[bytes]:
    """Waits for all ranks; the payloads of all, which are alike."""
    if world_size() > 1:
        dist.barrier(group())
    return [payload] * world_size()


NAMES: dict[str, Any] = {
    "optimizer_step": optimizer_step,
    "reduce_gradients": reduce_gradients,
    "all_reduce": all_reduce,
    "all_gather": all_gather,
    "all_to_all": all_to_all,
    "collective_permute": collective_permute,
    "reduce_scatter": reduce_scatter,
    "mesh_reduce": mesh_reduce,
    "rendezvous": rendezvous,
}
