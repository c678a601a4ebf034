"""Results of collectives, of which only one rank's data exists: as if every rank of the group held the same."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._C._distributed_c10d import _create_work_from_future  # type: ignore[attr-defined]

from neuronprof.capture import simtensor
from neuronprof.capture.distributed.messages import Message
from neuronprof.capture.plans import MOST_INTEGERS, SMALL
from neuronprof.capture.simtensor import Sim
from neuronprof.terms import Collective

_operations: list[str] = []


def write(message: Message) -> None:
    """Gives the received tensors plausible values, where sent and received ones have any."""
    if any(isinstance(t, Sim) for t in (*message.sent, *message.received)):
        return
    writer = _WRITERS.get(message.kind)
    if writer is not None and message.received:
        writer(message)


def make(message: Message, simulated: bool) -> Any:
    """The new tensors of a functional collective: one, or a list of them; simulated: large ones get no values."""
    made = [_make(message, t, simulated) for t in message.sent]
    return made if isinstance(message.args[0], (list, tuple)) else made[0]


def work(value: Any) -> torch.ScriptObject:
    """A finished Work that holds value, as the dispatcher returns it."""
    future: torch.futures.Future[Any] = torch.futures.Future()
    future.set_result(value if isinstance(value, list) else [value])
    return _create_work_from_future(future).boxed()


def _make(message: Message, tensor: torch.Tensor, simulated: bool) -> torch.Tensor:
    shape = _shape(message, tensor)
    numel = torch.Size(shape).numel()
    large = numel > (SMALL if tensor.is_floating_point() else MOST_INTEGERS)
    if isinstance(tensor, Sim) or (simulated and large):
        return simtensor.new(shape, None, tensor.dtype)
    if message.kind == Collective.BROADCAST:
        return tensor.clone()
    if message.kind == Collective.ALL_REDUCE:
        return tensor * _factor(message) if _factor(message) != 1 else tensor.clone()
    made = _repeated(tensor, numel).view(shape)
    return made * _factor(message) if message.kind == Collective.REDUCE_SCATTER else made


def _shape(message: Message, tensor: torch.Tensor) -> tuple[int, ...]:
    shape, ranks, args = list(tensor.shape), message.group.size(), message.args
    if message.kind == Collective.ALL_GATHER:
        return (ranks * shape[0], *shape[1:]) if shape else (ranks,)
    if message.kind == Collective.REDUCE_SCATTER:
        return (shape[0] // ranks, *shape[1:])
    if message.name.startswith("_dtensor"):
        shape[args[1]] *= ranks
        shape[args[2]] //= ranks
    elif message.kind == Collective.ALL_TO_ALL and args[1]:
        shape[0] = sum(args[1])
    return tuple(shape)


def _repeated(tensor: torch.Tensor, numel: int) -> torch.Tensor:
    """The values of a tensor again and again, numel of them."""
    flat = tensor.reshape(-1)
    if not len(flat):
        return flat.new_zeros(numel)
    return flat.repeat(-(-numel // len(flat)))[:numel]


def _factor(message: Message) -> int:
    """What a reduction over equal data multiplies them by: the ranks for a sum, one for any other."""
    operation = message.args[1] if message.name.startswith("_c10d_functional") else reducing()
    return message.group.size() if str(operation).lower() == "sum" else 1


@contextmanager
def reduces_by(operation: Any) -> Iterator[None]:
    """Tells with which ReduceOp collectives inside reduce; the dispatcher does not show it."""
    _operations.append(str(operation).rpartition(".")[2])
    try:
        yield
    finally:
        _operations.pop()


def reducing() -> str:
    """The reduction that was told last; '' for an unknown one."""
    return _operations[-1] if _operations else ""


def _scaled(message: Message) -> None:
    factor = _factor(message)
    for tensor in message.received if factor != 1 else ():
        if tensor.dtype != torch.bool:
            tensor.mul_(factor)


def _gathered(message: Message) -> None:
    per_input = len(message.received) // max(1, len(message.sent))
    for i, tensor in enumerate(message.received):
        source = message.sent[min(i // max(1, per_input), len(message.sent) - 1)]
        tensor.copy_(_repeated(source, tensor.numel()).view(tensor.shape))


def _scattered(message: Message) -> None:
    mine = message.group.rank()
    for i, tensor in enumerate(message.received):
        if len(message.sent) == len(message.received):
            flat = message.sent[i].reshape(-1)
            part = flat[mine * tensor.numel() : (mine + 1) * tensor.numel()]
        else:
            part = message.sent[mine].reshape(-1)
        tensor.copy_(_repeated(part, tensor.numel()).view(tensor.shape))
    _scaled(message)


def _from_root(message: Message) -> None:
    if message.sent is not message.received and message.sent and "scatter" in message.name:
        message.received[0].copy_(message.sent[message.group.rank()].view_as(message.received[0]))


def _exchanged(message: Message) -> None:
    if len(message.sent) == len(message.received):
        for source, tensor in zip(message.sent, message.received, strict=True):
            tensor.copy_(_repeated(source, tensor.numel()).view(tensor.shape))


_WRITERS: dict[Collective, Callable[[Message], None]] = {
    Collective.ALL_REDUCE: _scaled,
    Collective.ALL_GATHER: _gathered,
    Collective.REDUCE_SCATTER: _scattered,
    Collective.BROADCAST: _from_root,
    Collective.ALL_TO_ALL: _exchanged,
    Collective.PERMUTE: _exchanged,
}
