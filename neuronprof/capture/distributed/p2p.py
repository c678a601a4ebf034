"""Point to point: sends and receives. Ranks that pass data on in a ring run the same program, a pipeline's stages different ones."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import _disable_current_modes

from neuronprof.capture.distributed.messages import Message, members
from neuronprof.capture.distributed.peers import Peers
from neuronprof.capture.simtensor import Sim
from neuronprof.errors import NeuronprofError
from neuronprof.terms import Collective

_Permute = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor], Message], None]
_Record = Callable[[Message, int, int], None]
_STARTED_TOGETHER = 64
"""Ranks of a group that are started when one of them is needed; of a larger group each is started when it is named."""
_MOST_EARLY = 64
"""Messages of a group after which it is taken for a ring for good."""


@dataclass
class _Early:
    """A message of a group of which nobody knows yet whether its ranks run the same program. values: of what is sent, as it was then."""

    message: Message
    values: list[bytes | None]
    paired: bool = False


class PointToPoint:
    """Pairs each send with the receive from the rank at the same distance on the other side, or passes them on to other ranks.

    Where all ranks run the same program, this one sends to the next but one and the last but one sends to it: a permutation. A group in
    which a message is waited for before its partner has been posted is no such ring: its ranks are run as processes of their own, and what
    has values travels between them. permute: is called with what is sent and received, and one of the two messages; record: with a message
    to or from another rank, that rank, and the number of the message among those of the two.
    """

    def __init__(self, permute: _Permute, record: _Record) -> None:
        self.peers: Peers | None = None
        self._permute, self._record = permute, record
        self._early: dict[str, list[_Early]] = defaultdict(list)
        self._rings: set[str] = set()
        self._apart: set[str] = set()
        self._expected: dict[int, list[tuple[torch.Tensor, int, str]]] = defaultdict(list)
        self._numbers: dict[tuple[int, int], int] = defaultdict(int)
        self._keys: dict[tuple[int, int, str], int] = defaultdict(int)

    def add(self, message: Message) -> None:
        """Takes a send or a receive.

        Raises:
            NeuronprofError: the ranks run different programs, and this one is recorded alone.
        """
        group = str(message.group.group_name)
        if self._is_apart(group):
            self._exchange(message, _sent(message))
            return
        early = self._early[group]
        partner = next((e for e in early if not e.paired and _partners(e.message, message)), None)
        early.append(_Early(message, [] if group in self._rings else _sent(message), partner is not None))
        if partner is not None:
            partner.paired = True
            pair = (message, partner.message)
            sends, receives = pair if message.kind == Collective.SEND else pair[::-1]
            self._permute(sends.sent, receives.received, message)
        if len(early) > _MOST_EARLY or group in self._rings:
            self._rings.add(group)
            early[:] = [e for e in early if not e.paired]

    def _is_apart(self, group: str) -> bool:
        """Whether a rank has found out that the ranks of a group run different programs."""
        unknown = group not in self._apart and group not in self._rings and not self._early[group]
        if unknown and self.peers is not None and self.peers.started and self.peers.is_apart(group):
            self._apart.add(group)
        return group in self._apart

    def waited(self, tensor: torch.Tensor) -> None:
        """The script waits for the message that a tensor is sent or received by.

        Raises:
            LostPeerError: the message will never come.
        """
        unpaired = [(group, e.message) for group, early in self._early.items() for e in early if not e.paired]
        alone = next((g for g, m in unpaired if any(t is tensor for t in (*m.sent, *m.received))), None)
        if alone is not None:
            self._separate(alone)
        for into, source, key in self._expected.pop(id(tensor), ()):
            assert self.peers is not None
            data = self.peers.get(source, key)
            if data is not None:
                with _disable_current_modes():
                    _fill(into, data)

    def _separate(self, group: str) -> None:
        """From now on the messages of a group go to other ranks, and so do those that were taken for a ring's."""
        if self.peers is None:
            raise NeuronprofError(
                "The script's ranks send each other messages as the stages of a pipeline do; record it as a whole, with "
                "'neuronprof record --world-size N'."
            )
        self._apart.add(group)
        self.peers.separate(group)
        for early in self._early.pop(group):
            self._exchange(early.message, early.values, early.paired)

    def _exchange(self, message: Message, values: Sequence[bytes | None], recorded: bool = False) -> None:
        assert self.peers is not None
        ranks = members(message.group)
        peer = dist.get_global_rank(message.group, message.peer) if message.peer >= 0 else message.peer
        self.peers.start(ranks if len(ranks) <= _STARTED_TOGETHER and len(ranks) < dist.get_world_size() else [peer])
        sends = message.kind == Collective.SEND
        link = (dist.get_rank(), peer) if sends else (peer, dist.get_rank())
        if not recorded:
            self._record(message, peer, self._numbers[link])
        self._numbers[link] += 1
        for at, tensor in enumerate(message.sent if sends else message.received):
            name = f"{message.group.group_name} {message.args[3] if message.peer >= 0 else message.args[2]}"
            key = f"{name} {self._keys[(*link, name)]}"
            self._keys[(*link, name)] += 1
            if sends:
                self.peers.put(peer, key, values[at])
            elif not recorded and not isinstance(tensor, Sim):
                self._expected[id(tensor)].append((tensor, peer, key))


def _sent(message: Message) -> list[bytes | None]:
    """The values of what is sent; None for a tensor without any."""
    if message.kind != Collective.SEND:
        return []
    with _disable_current_modes():
        return [None if isinstance(t, Sim) else _values(t) for t in message.sent]


def _values(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _fill(tensor: torch.Tensor, data: bytes) -> None:
    values = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(tensor.dtype)
    if len(values) == tensor.numel():
        with torch.no_grad():
            tensor.copy_(values.view(tensor.shape))


def _partners(one: Message, other: Message) -> bool:
    if one.kind == other.kind or one.group.group_name != other.group.group_name:
        return False
    if one.peer < 0 or other.peer < 0:  # takes what any rank sends
        return True
    rank, size = one.group.rank(), one.group.size()
    return (one.peer - rank) % size == (rank - other.peer) % size
