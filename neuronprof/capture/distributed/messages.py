"""Messages: what a collective operator of PyTorch sends and receives, and among which ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import ProcessGroup, _resolve_process_group

from neuronprof.capture.signatures import tensors_in
from neuronprof.terms import Collective

PERMUTE = "neuronprof.permute_.default"
SEND, RECV = "c10d.send.default", "c10d.recv_.default"


@dataclass(frozen=True, slots=True)
class Form:
    """How an operator is called: positions of what it sends, of what it writes (None: it returns new tensors) and of the group."""

    kind: Collective
    sends: int
    receives: int | None
    group: int


_REDUCE, _GATHER, _SCATTER = Collective.ALL_REDUCE, Collective.ALL_GATHER, Collective.REDUCE_SCATTER
_EXCHANGE, _BROADCAST = Collective.ALL_TO_ALL, Collective.BROADCAST

# Rooted operations run as the device runs them, which has none but the broadcast: reduce as an all-reduce whose result the other ranks do
# not use, gather as an all-gather, scatter as a broadcast of everything.
FORMS: dict[str, Form] = {
    "c10d.allreduce_.default": Form(_REDUCE, 0, 0, 1),
    "c10d.allreduce_coalesced_.default": Form(_REDUCE, 0, 0, 1),
    "c10d.reduce_.default": Form(_REDUCE, 0, 0, 1),
    "c10d.broadcast_.default": Form(_BROADCAST, 0, 0, 1),
    "c10d.allgather_.default": Form(_GATHER, 1, 0, 2),
    "c10d._allgather_base_.default": Form(_GATHER, 1, 0, 2),
    "c10d.allgather_coalesced_.default": Form(_GATHER, 1, 0, 2),
    "c10d.allgather_into_tensor_coalesced_.default": Form(_GATHER, 1, 0, 2),
    "c10d.gather_.default": Form(_GATHER, 1, 0, 2),
    "c10d.reduce_scatter_.default": Form(_SCATTER, 1, 0, 2),
    "c10d._reduce_scatter_base_.default": Form(_SCATTER, 1, 0, 2),
    "c10d.reduce_scatter_tensor_coalesced_.default": Form(_SCATTER, 1, 0, 2),
    "c10d.scatter_.default": Form(_BROADCAST, 1, 0, 2),
    "c10d.alltoall_.default": Form(_EXCHANGE, 1, 0, 2),
    "c10d.alltoall_base_.default": Form(_EXCHANGE, 1, 0, 2),
    "c10d.barrier.default": Form(Collective.BARRIER, 0, None, 1),
    "c10d.monitored_barrier_.default": Form(Collective.BARRIER, 0, None, 1),
    "c10d.send.default": Form(Collective.SEND, 0, None, 1),
    "c10d.recv_.default": Form(Collective.RECV, 0, 0, 1),
    "c10d.recv_any_source_.default": Form(Collective.RECV, 0, 0, 1),
    "_c10d_functional.all_reduce.default": Form(_REDUCE, 0, None, 2),
    "_c10d_functional.all_reduce_.default": Form(_REDUCE, 0, 0, 2),
    "_c10d_functional.all_reduce_coalesced.default": Form(_REDUCE, 0, None, 2),
    "_c10d_functional.all_reduce_coalesced_.default": Form(_REDUCE, 0, 0, 2),
    "_c10d_functional.broadcast.default": Form(_BROADCAST, 0, None, 2),
    "_c10d_functional.broadcast_.default": Form(_BROADCAST, 0, 0, 2),
    "_c10d_functional.all_gather_into_tensor.default": Form(_GATHER, 0, None, 2),
    "_c10d_functional.all_gather_into_tensor_coalesced.default": Form(_GATHER, 0, None, 2),
    "_c10d_functional.reduce_scatter_tensor.default": Form(_SCATTER, 0, None, 3),
    "_c10d_functional.reduce_scatter_tensor_coalesced.default": Form(_SCATTER, 0, None, 3),
    "_c10d_functional.all_to_all_single.default": Form(_EXCHANGE, 0, None, 3),
    "_dtensor.shard_dim_alltoall.default": Form(_EXCHANGE, 0, None, 3),
}  # fmt: skip

WRITTEN: dict[str, tuple[int, ...]] = {name: (f.receives,) for name, f in FORMS.items() if f.receives is not None}
"""Positions of the arguments that are written, which the schemas of c10d do not tell."""
WRITTEN[PERMUTE] = (1,)


@dataclass(frozen=True, slots=True)
class Message:
    """One call of a collective.

    group: its PyTorch group. sent, received: the tensors; received is empty where the operator makes its results. peer: rank in the
    group of the other end of a send or receive, -1 otherwise. uneven: most that a rank exchanges with another one over the mean.
    """

    name: str
    kind: Collective
    group: ProcessGroup
    sent: Sequence[torch.Tensor]
    received: Sequence[torch.Tensor]
    args: Sequence[Any]
    peer: int = -1
    uneven: float = 1.0

    @property
    def nbytes(self) -> int:
        """The larger side of this rank's message; of an all-to-all what it sends."""
        sent = sum(t.nbytes for t in self.sent)
        return sent if self.kind == _EXCHANGE else max(sent, sum(t.nbytes for t in self.received))


def read(name: str, args: Sequence[Any]) -> Message:
    """The message of a call of one of FORMS."""
    form = FORMS[name]
    point_to_point = form.kind in (Collective.SEND, Collective.RECV) and "any_source" not in name
    return Message(
        name,
        form.kind,
        _group(args[form.group]),
        tensors_in(args[form.sends]),
        [] if form.receives is None else tensors_in(args[form.receives]),
        args,
        peer=args[2] if point_to_point else -1,
        uneven=_uneven(args) if form.kind == _EXCHANGE else 1.0,
    )


def _group(value: Any) -> ProcessGroup:
    if isinstance(value, ProcessGroup):
        return value
    return _resolve_process_group(value) if isinstance(value, str) else ProcessGroup.unbox(value)


def _uneven(args: Sequence[Any]) -> float:
    """Largest split over the mean split; 1 where no splits are given."""
    splits = [a for a in args if isinstance(a, (list, tuple)) and a and all(isinstance(n, int) for n in a)]
    return max((max(s) * len(s) / sum(s) for s in splits if sum(s)), default=1.0)


def members(group: ProcessGroup) -> list[int]:
    """The ranks of a group, ascending."""
    return sorted(dist.get_process_group_ranks(group))
